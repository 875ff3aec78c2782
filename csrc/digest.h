/* csrc/digest.h - 128-bit digests of many small things, and of sets of them.
 *
 * A set's digest is the sum of its members' digests mod 2^128 (Clarke et al. 2003, MSet-Add-Hash): members come and go
 * in O(1), in any order, and a member twice is not a member gone, as it would be under XOR.
 *
 * The hash is a keyed chain of invertible steps on two 64-bit words. A step takes 16 bytes in and runs two Feistel
 * rounds whose round function folds a 64x64 -> 128 multiplication; the end runs four. Each step is a permutation of the
 * state, so two inputs of equal length that differ in one 16-byte block never collide, and lengths go in first.
 * It finds differences between honest replicas; whoever knows the seed can make collisions, so it is not a signature. */
#pragma once
#include <stddef.h>
#include <stdint.h>

typedef struct {
    uint64_t lo, hi;
} nova_digest;

/* Digest of n bytes under a key. p may be NULL if n is 0. */
nova_digest nova_digest_bytes(const void *p, size_t n, uint64_t seed);

/* Digest of one row of a replicated map. Different fields give different digests, wherever their borders are. */
nova_digest nova_digest_row(const void *key, size_t nkey, const void *path, size_t npath, uint64_t actor_hash,
                            uint64_t count, uint64_t stamp, const void *value, size_t nvalue);

static inline nova_digest nova_digest_add(nova_digest a, nova_digest b)
{
    nova_digest out = {a.lo + b.lo, a.hi + b.hi};
    out.hi += out.lo < a.lo;
    return out;
}

static inline nova_digest nova_digest_sub(nova_digest a, nova_digest b)
{
    nova_digest out = {a.lo - b.lo, a.hi - b.hi - (a.lo < b.lo)};
    return out;
}
