/* csrc/crdt.c */
#include "crdt.h"

#include "bytes.h"

/* The big-endian number in the next n bytes. */
static uint64_t take_be(nova_reader *r, unsigned n)
{
    const uint8_t *p = nova_take(r, n);
    uint64_t v = 0;
    for (unsigned i = 0; p && i < n; i++)
        v = v << 8 | p[i];
    return v;
}

static int check_float(uint8_t *p, int mend)
{
    static const uint8_t nan[8] = {0x7f, 0xf8};
    int is_nan = (p[0] & 0x7f) == 0x7f && p[1] >= 0xf0 && (p[1] & 0x0f || p[2] || p[3] || p[4] || p[5] || p[6] || p[7]);
    if (is_nan && mend)
        memcpy(p, nan, 8);
    return is_nan && memcmp(p, nan, 8) ? NOVA_EVALUE_SPELLING : 0;
}

int nova_is_utf8(const uint8_t *p, size_t n)
{
    for (size_t i = 0; i < n;) {
        if (n - i >= 8 && !(nova_load64le(p + i) & 0x8080808080808080u)) {
            i += 8;
            continue;
        }
        uint8_t first = p[i++];
        if (first < 0x80)
            continue;
        unsigned more = first >= 0xf0 ? 3 : first >= 0xe0 ? 2 : 1;
        if (first < 0xc2 || first > 0xf4 || n - i < more)
            return 0;
        uint8_t low = first == 0xe0 ? 0xa0 : first == 0xf0 ? 0x90 : 0x80;
        uint8_t high = first == 0xed ? 0x9f : first == 0xf4 ? 0x8f : 0xbf;
        if (p[i] < low || p[i] > high)
            return 0;
        for (i++; --more; i++)
            if ((p[i] & 0xc0) != 0x80)
                return 0;
    }
    return 1;
}

int nova_value_check(uint8_t *p, size_t n, int mend)
{
    uint64_t open[NOVA_VALUE_DEPTH_MAX]; /* items still to come at each level */
    unsigned depth = 0;
    int result = 0;
    nova_reader r = nova_reader_of(p, n);
    for (;;) {
        uint8_t tag = nova_take_byte(&r);
        uint64_t size = 0, items = 0, least = 0;
        unsigned width;
        int text = 0;
        if (!r.ok)
            return NOVA_EVALUE_CUT;
        if (tag < 0x80 || tag >= 0xe0 || tag == 0xc0 || tag == 0xc2 || tag == 0xc3) {
            /* whole in itself */
        } else if (tag < 0x90) {
            items = 2 * (uint64_t)(tag & 15), result |= NOVA_VALUE_MAPS;
        } else if (tag < 0xa0) {
            items = tag & 15;
        } else if (tag < 0xc0) {
            size = tag & 31, text = 1;
        } else if (tag == 0xcb) {
            if (!nova_take(&r, 8))
                return NOVA_EVALUE_CUT;
            int failed = check_float(p + (r.at - p) - 8, mend);
            if (failed)
                return failed;
        } else if (tag >= 0xcc && tag <= 0xcf) { /* uint 8, 16, 32, 64 */
            width = 1u << (tag - 0xcc);
            if (take_be(&r, width) < (width == 1 ? 0x80 : 1ull << 4 * width) && r.ok)
                return NOVA_EVALUE_SPELLING;
        } else if (tag >= 0xd0 && tag <= 0xd3) { /* int: only what is negative and does not fit in half */
            width = 1u << (tag - 0xd0);
            uint64_t low = take_be(&r, width);
            int64_t v = (int64_t)(low << (64 - 8 * width)) >> (64 - 8 * width);
            if (r.ok && v >= (width == 1 ? -32 : -(1ll << (4 * width - 1))))
                return NOVA_EVALUE_SPELLING;
        } else if ((tag >= 0xc4 && tag <= 0xc6) || (tag >= 0xd9 && tag <= 0xdb)) { /* bin, str 8, 16, 32 */
            text = tag >= 0xd9;
            width = 1u << (tag - (text ? 0xd9 : 0xc4));
            size = take_be(&r, width);
            least = width == 1 ? (text ? 32 : 0) : 1ull << 4 * width;
            if (r.ok && size < least)
                return NOVA_EVALUE_SPELLING;
        } else if (tag >= 0xdc && tag <= 0xdf) { /* array, map 16, 32 */
            width = tag & 1 ? 4 : 2;
            items = take_be(&r, width);
            if (r.ok && items < (width == 2 ? 16 : 0x10000))
                return NOVA_EVALUE_SPELLING;
            if (tag >= 0xde)
                items *= 2, result |= NOVA_VALUE_MAPS;
        } else {
            return NOVA_EVALUE_TYPE;
        }
        if (!nova_take(&r, size) || items > nova_left(&r))
            return NOVA_EVALUE_CUT;
        if (text && !nova_is_utf8(r.at - size, size))
            return NOVA_EVALUE_TEXT;
        if (items) {
            if (depth == NOVA_VALUE_DEPTH_MAX)
                return NOVA_EVALUE_DEPTH;
            open[depth++] = items;
            continue;
        }
        while (depth && !--open[depth - 1])
            depth--;
        if (!depth)
            return r.at == r.end ? result : NOVA_EVALUE_CUT;
    }
}
