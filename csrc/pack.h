/* csrc/pack.h - text in fewer bytes, always the same ones.
 *
 * A byte-oriented LZ77 (Ziv, Lempel 1977): no entropy coder, so that a text is there as fast as memory is copied. It is
 * part of the canonical bytes of a document, which a library's compressor cannot be: its output changes from release to
 * release. A block is a row of sequences: a byte of two 4-bit lengths, more of the first (15: bytes follow, up to the
 * first below 255), so many literal bytes, 2 bytes of distance, and if the second was 15, one byte more of it. A match
 * is at least 4 bytes long and at most 273; the last sequence has literals only. */
#pragma once
#include <stddef.h>
#include <stdint.h>

#define NOVA_PACK_GAIN_MAX 96 /* no block unpacks to more than so many times its size */

/* Pack n < 2^31 bytes. Returns the packed size, or 0 if it would not be below n, or memory was not to be had. out has
 * room for n bytes. O(n). */
size_t nova_pack(const uint8_t *in, size_t n, uint8_t *out);

/* Unpack into exactly `room` bytes: 0, or -1 for bytes that nova_pack did not write. Never reads or writes beyond. */
int nova_unpack(const uint8_t *in, size_t n, uint8_t *out, size_t room);
