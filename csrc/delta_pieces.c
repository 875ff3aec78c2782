/* csrc/delta_pieces.c - content of the base that lies elsewhere in the image, at any byte.
 *
 * Every block of the base at a multiple of the stride is in a table, by a hash of its 32 bytes; a page of the image is
 * looked up at every byte (Tridgell 1999, the other way round: here the known side has the blocks). A match grows both
 * ways, so one block of it in the table is enough, and what follows is expected where the last match would go on. */
#include <string.h>

#include "bytes.h"
#include "delta.h"

enum {
    BLOCK = 32,
    LEAP = 96,       /* where so many places in a row are unknown as a block has bytes the next ones are left out */
    WINDOWS_MAX = 32 /* so many times in a page */
};

static inline uint64_t block_hash(const uint8_t *p)
{
    static const uint64_t k[BLOCK / 8] = {0x6a09e667f3bcc909u, 0xbb67ae8584caa73bu, 0x3c6ef372fe94f82bu,
                                          0xa54ff53a5f1d36f1u};
    uint64_t h = 0;
    for (int i = 0; i < BLOCK / 8; i++) {
        uint64_t x = nova_load64le(p + 8 * i);
        h += (x ^ x >> 31) * k[i];
    }
    return (h ^ h >> 29) * 0x9e3779b97f4a7c15u;
}

size_t nova_delta_stride(size_t size)
{
    size_t stride = BLOCK;
    while (size / stride > (size_t)1 << (NOVA_DELTA_BLOCK_BITS - 1))
        stride *= 2;
    return stride;
}

void nova_delta_index_blocks(const nova_image *base, uint32_t *blocks)
{
    size_t stride = nova_delta_stride(base->size);
    memset(blocks, 0, sizeof *blocks << NOVA_DELTA_BLOCK_BITS);
    for (size_t i = 0; i * stride + BLOCK <= base->size; i++) {
        const uint8_t *p = base->bytes + i * stride;
        if (!memcmp(p, p + 8, BLOCK - 8))
            continue; /* zeros and other fillings are everywhere */
        uint32_t *slot = &blocks[block_hash(p) >> (64 - NOVA_DELTA_BLOCK_BITS)];
        if (!*slot)
            *slot = (uint32_t)(i + 1);
    }
}

static size_t equal_ahead(const uint8_t *a, const uint8_t *b, size_t most)
{
    size_t n = 0;
    while (n + 8 <= most) {
        uint64_t x = nova_load64le(a + n) ^ nova_load64le(b + n);
        if (x)
            return n + (size_t)__builtin_ctzll(x) / 8;
        n += 8;
    }
    while (n < most && a[n] == b[n])
        n++;
    return n;
}

size_t nova_delta_pieces(const nova_image *base, const uint32_t *blocks, const uint8_t *page, uint64_t begin,
                         int64_t shift, nova_piece *pieces, size_t room, size_t *literals)
{
    size_t stride = nova_delta_stride(base->size), covered = 0, at = 0, count = 0, unknown = 0, windows = 0;
    *literals = NOVA_PAGE;
    while (at + BLOCK <= NOVA_PAGE && count < room && windows < WINDOWS_MAX) {
        uint64_t from = begin + at + (uint64_t)shift;
        if (!(from < base->size && base->size - from >= BLOCK && !memcmp(base->bytes + from, page + at, BLOCK))) {
            uint32_t block = blocks[block_hash(page + at) >> (64 - NOVA_DELTA_BLOCK_BITS)];
            from = (uint64_t)(block - 1) * stride;
            if (!block || memcmp(base->bytes + from, page + at, BLOCK)) {
                at++;
                if (++unknown == BLOCK) {
                    unknown = 0;
                    windows++;
                    at += LEAP;
                }
                continue;
            }
        }
        size_t most = base->size - from < NOVA_PAGE - at ? base->size - from : NOVA_PAGE - at;
        size_t length = equal_ahead(base->bytes + from, page + at, most), back = 0;
        while (at - back > covered && from - back > 0 && base->bytes[from - back - 1] == page[at - back - 1])
            back++;
        shift = (int64_t)(from - (begin + at));
        pieces[count++] = (nova_piece){(uint16_t)(at - back - covered), (uint16_t)(length + back), shift};
        *literals -= length + back;
        covered = at += length;
        unknown = windows = 0;
    }
    return count;
}
