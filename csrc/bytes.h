/* csrc/bytes.h - bounds-checked reader and writer for hostile bytes.
 *
 * A reader never moves past its end and remembers the first failure, so a parser may read a whole record and
 * look once at `ok`. Numbers are LEB128 in their shortest form only: one number, one spelling. */
#pragma once
#include <stddef.h>
#include <stdint.h>
#include <string.h>

typedef struct {
    const uint8_t *at, *end;
    int ok;
} nova_reader;

static inline uint64_t nova_load64le(const void *p)
{
    uint64_t v;
    memcpy(&v, p, 8);
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    v = __builtin_bswap64(v);
#endif
    return v;
}

static inline void nova_store64le(void *p, uint64_t v)
{
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    v = __builtin_bswap64(v);
#endif
    memcpy(p, &v, 8);
}

/* The n < 8 bytes at p as the low end of a little-endian word, zeros above. */
static inline uint64_t nova_load_tail(const uint8_t *p, size_t n)
{
    uint64_t v = 0;
    for (size_t i = 0; i < n; i++)
        v |= (uint64_t)p[i] << (8 * i);
    return v;
}

static inline nova_reader nova_reader_of(const void *p, size_t n)
{
    nova_reader r = {(const uint8_t *)p, (const uint8_t *)p + n, 1};
    return r;
}

static inline size_t nova_left(const nova_reader *r)
{
    return (size_t)(r->end - r->at);
}

/* The next n bytes, or NULL if fewer are left. */
static inline const uint8_t *nova_take(nova_reader *r, uint64_t n)
{
    const uint8_t *p = r->at;
    if (!r->ok || n > nova_left(r)) {
        r->ok = 0;
        return NULL;
    }
    r->at += n;
    return p;
}

static inline uint8_t nova_take_byte(nova_reader *r)
{
    const uint8_t *p = nova_take(r, 1);
    return p ? *p : 0;
}

/* The next number; 0 and !ok if it is cut, longer than need be, or over 64 bits. */
static inline uint64_t nova_take_number(nova_reader *r)
{
    uint64_t value = 0;
    for (unsigned shift = 0; shift < 64; shift += 7) {
        if (!r->ok || r->at == r->end)
            break;
        uint8_t byte = *r->at++;
        if ((shift == 63 && byte > 1) || (shift && !byte))
            break;
        value |= (uint64_t)(byte & 0x7f) << shift;
        if (byte < 0x80)
            return value;
    }
    r->ok = 0;
    return 0;
}

/* A number of items of at least `each` bytes; never more than fit into what is left. */
static inline uint64_t nova_take_size(nova_reader *r, size_t each)
{
    uint64_t n = nova_take_number(r);
    if (n > nova_left(r) / each)
        r->ok = 0;
    return r->ok ? n : 0;
}

/* Write value at out, which has room for 10 bytes; returns how many it took. */
static inline size_t nova_put_number(uint8_t *out, uint64_t value)
{
    size_t n = 0;
    for (; value >= 0x80; value >>= 7)
        out[n++] = (uint8_t)(value | 0x80);
    out[n++] = (uint8_t)value;
    return n;
}
