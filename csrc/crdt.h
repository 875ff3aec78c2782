/* csrc/crdt.h - values in their one spelling.
 *
 * A CRDT value is one MessagePack object: nil, bool, int, float64, str, bin, array, map. Each has many spellings on the
 * wire; replicas compare and hash values as bytes, so only the shortest one is let in, and one NaN. The order of map
 * keys is left to the decoder. */
#pragma once
#include <stddef.h>
#include <stdint.h>

enum {
    NOVA_VALUE_DEPTH_MAX = 64,
    NOVA_VALUE_MAPS = 1,       /* result bit: it holds a map, so check the order of keys too */
    NOVA_EVALUE_CUT = -1,      /* ends in the middle, or goes on behind its end */
    NOVA_EVALUE_DEPTH = -2,    /* nested deeper than NOVA_VALUE_DEPTH_MAX */
    NOVA_EVALUE_SPELLING = -3, /* a longer spelling than need be, or another NaN */
    NOVA_EVALUE_TYPE = -4,     /* an extension, float32, or a reserved byte */
    NOVA_EVALUE_TEXT = -5,     /* a str that is not UTF-8 */
};

/* Check the n bytes at p: 0 or NOVA_VALUE_MAPS, else NOVA_E...; with mend, NaNs are brought to their one form. O(n). */
int nova_value_check(uint8_t *p, size_t n, int mend);
/* Is this UTF-8 (RFC 3629): shortest forms only, no surrogates, nothing over U+10FFFF? */
int nova_is_utf8(const uint8_t *p, size_t n);
