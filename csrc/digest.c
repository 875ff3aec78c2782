/* csrc/digest.c */
#include "digest.h"
#include "bytes.h"

/* Fractional parts of the square roots of the primes 2, 3, 5 .. 19 (as SHA-512 starts), made odd. */
#define K0 0x6a09e667f3bcc909u
#define K1 0xbb67ae8584caa73bu
#define K2 0x3c6ef372fe94f82bu
#define K3 0xa54ff53a5f1d36f1u
#define K4 0x510e527fade682d1u
#define K5 0x9b05688c2b3e6c1fu
#define K6 0x1f83d9abfb41bd6bu
#define K7 0x5be0cd19137e2179u

typedef struct {
    uint64_t a, b;
} state;

static inline uint64_t fold(uint64_t x, uint64_t y)
{
    unsigned __int128 p = (unsigned __int128)x * y;
    return (uint64_t)p ^ (uint64_t)(p >> 64);
}

static inline void absorb(state *s, uint64_t x, uint64_t y)
{
    s->a ^= x;
    s->b ^= y;
    s->a += fold(s->b ^ K0, K1);
    s->b += fold(s->a ^ K2, K3);
}

static inline void absorb_bytes(state *s, const void *data, size_t n)
{
    const uint8_t *p = data;
    for (; n >= 16; n -= 16, p += 16)
        absorb(s, nova_load64le(p), nova_load64le(p + 8));
    if (n >= 8)
        absorb(s, nova_load64le(p), nova_load_tail(p + 8, n - 8));
    else if (n)
        absorb(s, nova_load_tail(p, n), 0);
}

static inline nova_digest finish(state s)
{
    s.a += fold(s.b ^ K4, K5);
    s.b += fold(s.a ^ K6, K7);
    s.a += fold(s.b ^ K5, K4);
    s.b += fold(s.a ^ K7, K6);
    nova_digest out = {s.a, s.b};
    return out;
}

static inline state start(uint64_t seed, uint64_t length)
{
    state s = {K6, K7};
    absorb(&s, seed, length);
    return s;
}

nova_digest nova_digest_bytes(const void *p, size_t n, uint64_t seed)
{
    state s = start(seed, n);
    absorb_bytes(&s, p, n);
    return finish(s);
}

nova_digest nova_digest_row(const void *key, size_t nkey, const void *path, size_t npath, uint64_t actor_hash,
                            uint64_t count, uint64_t stamp, const void *value, size_t nvalue)
{
    state s = {K5, K6};
    absorb(&s, nkey, npath);
    absorb(&s, nvalue, count);
    absorb(&s, actor_hash, stamp);
    absorb_bytes(&s, key, nkey);
    absorb_bytes(&s, path, npath);
    absorb_bytes(&s, value, nvalue);
    return finish(s);
}
