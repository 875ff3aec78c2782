/* csrc/page.h - memory pages: which are equal, which bytes differ, and a digest of each.
 *
 * A page has 4096 bytes in 64 lines; a mask of a line has one bit a byte. All calls answer alike whatever instructions the
 * processor has. Pages need no alignment. Nothing here allocates or fails. */
#pragma once
#include <stddef.h>
#include <stdint.h>

#include "digest.h"

enum { NOVA_PAGE = 4096, NOVA_LINE = 64, NOVA_LINES = NOVA_PAGE / NOVA_LINE };

/* Bytes in memory that count as pages; behind the last byte stand zeros, as many as anybody asks for. */
typedef struct {
    const uint8_t *bytes;
    size_t size;
} nova_image;

static inline size_t nova_pages_in(uint64_t size)
{
    return (size_t)(size / NOVA_PAGE + (size % NOVA_PAGE != 0));
}

/* Page i of an image: where it lies, or a copy in `room` (one page) if the image ends within or before it. */
const uint8_t *nova_image_page(const nova_image *image, size_t i, uint8_t *room);

/* How many pages at the beginning of a and b are equal, of n. */
size_t nova_pages_same(const uint8_t *a, const uint8_t *b, size_t n);

int nova_page_is_zero(const uint8_t *page);

/* Which bytes of two pages differ, a mask a line; returns how many do. */
unsigned nova_page_differences(const uint8_t *a, const uint8_t *b, uint64_t masks[NOVA_LINES]);

/* Copy out the bytes of a page that the masks name, one behind the other; returns how many. `out` has room for a page. */
size_t nova_page_gather(const uint8_t *page, const uint64_t masks[NOVA_LINES], uint8_t *out);
/* The way back: `bytes` has as many bytes as the masks have bits. */
void nova_page_scatter(uint8_t *page, const uint64_t masks[NOVA_LINES], const uint8_t *bytes);

/* 128-bit digest of a page. Two NH hashes over 32-bit words, their keys one line apart (Black et al. 1999, UMAC), a sum
 * for each of eight columns, and the digest of those sums. Two different pages that were not made with the key in mind
 * agree with a chance of 2^-64; the key is public, so it is no signature. */
nova_digest nova_page_digest(const uint8_t *page);

/* The digests of all pages of an image, and their weighed sum. */
void nova_image_digests(const nova_image *image, nova_digest *digests, nova_digest *sum);

/* A page's share in the digest of its image: the sum of all shares. A page elsewhere has another share. */
nova_digest nova_page_share(nova_digest page, uint64_t index);

/* The identity of an image of so many bytes, whose shares have this sum. */
nova_digest nova_image_identity(nova_digest sum, uint64_t size);
