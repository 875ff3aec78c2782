/* csrc/blake3.h - the BLAKE3 hash (O'Connor, Aumasson, Neves, Wilcox-O'Hearn 2020), written from its paper.
 *
 * Inputs of up to 1,024 bytes are one chunk: a chain of 64-byte blocks. Longer ones are the leaves of a binary tree of
 * chunks. Independent inputs are hashed eight at a time, one to a lane of a vector: that is what records of a log are.
 * Nothing here allocates or fails; arguments are borrowed. */
#pragma once
#include <stddef.h>
#include <stdint.h>

enum { NOVA_BLAKE3_BYTES = 32, NOVA_BLAKE3_BLOCK_BYTES = 64, NOVA_BLAKE3_CHUNK_BYTES = 1024 };

/* How to hash: the words that a chain begins with, and the flags of the mode. */
typedef struct {
    uint32_t words[8], flags;
} nova_blake3_mode;

/* The plain hash. */
nova_blake3_mode nova_blake3_plain(void);

/* The keyed hash, a MAC, under 32 bytes of key. */
nova_blake3_mode nova_blake3_keyed(const uint8_t *key);

/* The mode in which hashing key material makes a key for the purpose that `context` names. */
nova_blake3_mode nova_blake3_derive(const void *context, size_t n);

/* 32 bytes of hash of n bytes. p may be NULL if n is 0. */
void nova_blake3(const nova_blake3_mode *mode, const void *p, size_t n, uint8_t *out);

/* The same for `count` inputs; the hash of input i goes to out + 32 * i. */
void nova_blake3_many(const nova_blake3_mode *mode, const uint8_t *const *p, const size_t *n, size_t count,
                      uint8_t *out);

/* The same hash of bytes that come in pieces: begin, add any number of times, end. */
typedef struct {
    nova_blake3_mode mode;
    uint64_t chunks;    /* hashed, each of them followed by another */
    size_t held, depth; /* bytes that wait for what follows; roots of whole subtrees */
    uint32_t stack[56][8];
    uint8_t waiting[8 * NOVA_BLAKE3_CHUNK_BYTES];
} nova_blake3_stream;

void nova_blake3_begin(nova_blake3_stream *s, const nova_blake3_mode *mode);
void nova_blake3_add(nova_blake3_stream *s, const void *p, size_t n);

/* 32 bytes of hash; the stream has to begin again. */
void nova_blake3_end(nova_blake3_stream *s, uint8_t *out);
