/* csrc/blake3.c */
#include "blake3.h"
#include "simd.h"

enum { CHUNK_START = 1, CHUNK_END = 2, PARENT = 4, ROOT = 8, KEYED = 16, DERIVE_CONTEXT = 32, DERIVE_MATERIAL = 64 };
enum { BLOCK = NOVA_BLAKE3_BLOCK_BYTES, CHUNK = NOVA_BLAKE3_CHUNK_BYTES, LANES = 8, WIDE = 64, DEPTH_MAX = 54 };

static const uint32_t IV[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                               0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};

/* The rounds for one input (uint32_t) and for eight (a vector of them): the operators are the same. */
#define ROTATE(x, by) (((x) >> (by)) | ((x) << (32 - (by))))
#define QUARTER(a, b, c, d, x, y)       \
    do {                                \
        v[a] += v[b] + m[x];            \
        v[d] = ROTATE(v[d] ^ v[a], 16); \
        v[c] += v[d];                   \
        v[b] = ROTATE(v[b] ^ v[c], 12); \
        v[a] += v[b] + m[y];            \
        v[d] = ROTATE(v[d] ^ v[a], 8);  \
        v[c] += v[d];                   \
        v[b] = ROTATE(v[b] ^ v[c], 7);  \
    } while (0)
#define ROUND(i0, i1, i2, i3, i4, i5, i6, i7, i8, i9, i10, i11, i12, i13, i14, i15) \
    do {                                                                            \
        QUARTER(0, 4, 8, 12, i0, i1);                                               \
        QUARTER(1, 5, 9, 13, i2, i3);                                               \
        QUARTER(2, 6, 10, 14, i4, i5);                                              \
        QUARTER(3, 7, 11, 15, i6, i7);                                              \
        QUARTER(0, 5, 10, 15, i8, i9);                                              \
        QUARTER(1, 6, 11, 12, i10, i11);                                            \
        QUARTER(2, 7, 8, 13, i12, i13);                                             \
        QUARTER(3, 4, 9, 14, i14, i15);                                             \
    } while (0)
#define ALL_ROUNDS                                                   \
    do {                                                             \
        ROUND(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15); \
        ROUND(2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8); \
        ROUND(3, 4, 10, 12, 13, 2, 7, 14, 6, 5, 9, 0, 11, 15, 8, 1); \
        ROUND(10, 7, 12, 9, 14, 3, 13, 15, 4, 0, 11, 2, 5, 8, 1, 6); \
        ROUND(12, 13, 9, 11, 15, 10, 14, 8, 7, 2, 5, 3, 0, 1, 6, 4); \
        ROUND(9, 14, 11, 5, 8, 12, 15, 1, 13, 3, 0, 10, 2, 6, 4, 7); \
        ROUND(11, 15, 5, 0, 1, 9, 8, 6, 14, 10, 2, 12, 3, 4, 7, 13); \
    } while (0)

static inline uint32_t load32(const uint8_t *p)
{
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

static inline void store32(uint8_t *p, uint32_t x)
{
    p[0] = (uint8_t)x;
    p[1] = (uint8_t)(x >> 8);
    p[2] = (uint8_t)(x >> 16);
    p[3] = (uint8_t)(x >> 24);
}

static void compress(uint32_t cv[8], const uint8_t *block, uint32_t bytes, uint64_t counter, uint32_t flags)
{
    uint32_t m[16], v[16];
    for (int i = 0; i < 16; i++)
        m[i] = load32(block + 4 * i);
    memcpy(v, cv, 32);
    memcpy(v + 8, IV, 16);
    v[12] = (uint32_t)counter;
    v[13] = (uint32_t)(counter >> 32);
    v[14] = bytes;
    v[15] = flags;
    ALL_ROUNDS;
    for (int i = 0; i < 8; i++)
        cv[i] = v[i] ^ v[i + 8];
}

/* Hash one chunk into cv; `end` is ROOT where it is all of the input. */
static void hash_chunk(const nova_blake3_mode *mode, const uint8_t *p, size_t n, uint64_t counter, uint32_t end,
                       uint32_t cv[8])
{
    uint32_t flags = mode->flags | CHUNK_START;
    memcpy(cv, mode->words, 32);
    while (n > BLOCK) {
        compress(cv, p, BLOCK, counter, flags);
        flags = mode->flags;
        p += BLOCK;
        n -= BLOCK;
    }
    if (n == BLOCK) {
        compress(cv, p, BLOCK, counter, flags | CHUNK_END | end);
    } else {
        uint8_t last[BLOCK] = {0};
        if (n)
            memcpy(last, p, n);
        compress(cv, last, (uint32_t)n, counter, flags | CHUNK_END | end);
    }
}

typedef uint32_t lanes __attribute__((vector_size(4 * LANES)));

/* Words 0..7 of eight blocks, from lane after lane to word after word. */
static inline NOVA_INLINE void transpose(const uint8_t *const p[LANES], size_t at, lanes out[LANES])
{
    lanes r[LANES], s[LANES];
    for (int i = 0; i < LANES; i++)
        memcpy(&r[i], p[i] + at, sizeof r[i]);
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    for (int i = 0; i < LANES; i++)
        for (int j = 0; j < LANES; j++)
            r[i][j] = __builtin_bswap32(r[i][j]);
#endif
    for (int i = 0; i < 4; i++) {
        s[2 * i] = __builtin_shufflevector(r[2 * i], r[2 * i + 1], 0, 8, 1, 9, 4, 12, 5, 13);
        s[2 * i + 1] = __builtin_shufflevector(r[2 * i], r[2 * i + 1], 2, 10, 3, 11, 6, 14, 7, 15);
    }
    for (int i = 0; i < 2; i++) {
        r[4 * i] = __builtin_shufflevector(s[4 * i], s[4 * i + 2], 0, 1, 8, 9, 4, 5, 12, 13);
        r[4 * i + 1] = __builtin_shufflevector(s[4 * i], s[4 * i + 2], 2, 3, 10, 11, 6, 7, 14, 15);
        r[4 * i + 2] = __builtin_shufflevector(s[4 * i + 1], s[4 * i + 3], 0, 1, 8, 9, 4, 5, 12, 13);
        r[4 * i + 3] = __builtin_shufflevector(s[4 * i + 1], s[4 * i + 3], 2, 3, 10, 11, 6, 7, 14, 15);
    }
    for (int i = 0; i < 4; i++) {
        out[i] = __builtin_shufflevector(r[i], r[i + 4], 0, 1, 2, 3, 8, 9, 10, 11);
        out[i + 4] = __builtin_shufflevector(r[i], r[i + 4], 4, 5, 6, 7, 12, 13, 14, 15);
    }
}

/* Eight chunks of any lengths, each as hash_chunk would do it. A lane whose chunk has ended keeps what it has. */
static inline NOVA_INLINE void chunks_body(const nova_blake3_mode *mode, const uint8_t *const p[LANES],
                                           const size_t n[LANES], const uint64_t counter[LANES], uint32_t end,
                                           uint32_t out[LANES][8])
{
    static const uint8_t zeros[BLOCK];
    uint8_t tails[LANES][BLOCK];
    size_t most = 0;
    lanes cv[8], low, high;
    for (int l = 0; l < LANES; l++) {
        most = n[l] > most ? n[l] : most;
        low[l] = (uint32_t)counter[l];
        high[l] = (uint32_t)(counter[l] >> 32);
    }
    for (int i = 0; i < 8; i++)
        cv[i] = (lanes){0} + mode->words[i];
    for (size_t at = 0; at == 0 || at < most; at += BLOCK) {
        const uint8_t *block[LANES];
        lanes m[16], v[16], bytes, flags, live;
        for (int l = 0; l < LANES; l++) {
            size_t left = n[l] > at ? n[l] - at : 0;
            int last = left <= BLOCK, runs = left || !at;
            block[l] = zeros;
            if (left >= BLOCK) {
                block[l] = p[l] + at;
            } else if (left) {
                memset(tails[l], 0, BLOCK);
                memcpy(tails[l], p[l] + at, left);
                block[l] = tails[l];
            }
            bytes[l] = (uint32_t)(last ? left : BLOCK);
            flags[l] = mode->flags | (at ? 0 : CHUNK_START) | (last ? CHUNK_END | end : 0);
            live[l] = runs ? UINT32_MAX : 0;
        }
        transpose(block, 0, m);
        transpose(block, 32, m + 8);
        for (int i = 0; i < 8; i++)
            v[i] = cv[i];
        for (int i = 0; i < 4; i++)
            v[8 + i] = (lanes){0} + IV[i];
        v[12] = low;
        v[13] = high;
        v[14] = bytes;
        v[15] = flags;
        ALL_ROUNDS;
        for (int i = 0; i < 8; i++)
            cv[i] = ((v[i] ^ v[i + 8]) & live) | (cv[i] & ~live);
    }
    for (int l = 0; l < LANES; l++)
        for (int i = 0; i < 8; i++)
            out[l][i] = cv[i][l];
}

#define ARGUMENTS                                                                                                \
    const nova_blake3_mode *mode, const uint8_t *const p[LANES], const size_t n[LANES], const uint64_t c[LANES], \
        uint32_t end, uint32_t out[LANES][8]

NOVA_TARGET_AVX512 static void chunks_avx512(ARGUMENTS)
{
    chunks_body(mode, p, n, c, end, out);
}

NOVA_TARGET_AVX2 static void chunks_avx2(ARGUMENTS)
{
    chunks_body(mode, p, n, c, end, out);
}

static void chunks_plain(ARGUMENTS)
{
    for (int l = 0; l < LANES; l++)
        hash_chunk(mode, p[l], n[l], c[l], end, out[l]);
}

static void hash_chunks(ARGUMENTS)
{
    if (nova_has_avx512())
        chunks_avx512(mode, p, n, c, end, out);
    else if (nova_has_avx2())
        chunks_avx2(mode, p, n, c, end, out);
    else
        chunks_plain(mode, p, n, c, end, out);
}

static void store_words(uint8_t *out, const uint32_t cv[8])
{
    for (int i = 0; i < 8; i++)
        store32(out + 4 * i, cv[i]);
}

/* left becomes the parent of itself and right. */
static void join(const nova_blake3_mode *mode, uint32_t left[8], const uint32_t right[8], uint32_t end)
{
    uint8_t block[BLOCK];
    store_words(block, left);
    store_words(block + 32, right);
    memcpy(left, mode->words, 32);
    compress(left, block, BLOCK, 0, mode->flags | PARENT | end);
}

/* Up to eight chunks that follow each other, n > 0 bytes of them. From three on all lanes are quicker than one. */
static void hash_run(const nova_blake3_mode *mode, const uint8_t *p, size_t n, uint64_t first, uint32_t cvs[LANES][8])
{
    const uint8_t *starts[LANES];
    size_t sizes[LANES], count = (n + CHUNK - 1) / CHUNK;
    uint64_t counters[LANES];
    for (size_t i = 0; i < LANES; i++) {
        size_t at = i < count ? i * CHUNK : 0;
        starts[i] = p + at;
        sizes[i] = i >= count ? 0 : n - at < CHUNK ? n - at : CHUNK;
        counters[i] = first + i;
    }
    if (count > 2 && nova_has_avx2())
        hash_chunks(mode, starts, sizes, counters, 0, cvs);
    else
        for (size_t i = 0; i < count; i++)
            hash_chunk(mode, starts[i], sizes[i], counters[i], 0, cvs[i]);
}

/* The stack holds the roots of whole subtrees, one for each bit that is set in the number of chunks before. */
static size_t push(const nova_blake3_mode *mode, uint32_t (*stack)[8], size_t depth, const uint32_t cv[8],
                   uint64_t number)
{
    memcpy(stack[depth++], cv, 32);
    for (; !(number & 1); number >>= 1, depth--)
        join(mode, stack[depth - 2], stack[depth - 1], 0);
    return depth;
}

/* Eight parents; the two values that each joins stand in a row. */
static inline NOVA_INLINE void parents_body(const nova_blake3_mode *mode, const uint8_t *const p[LANES],
                                            uint32_t out[LANES][8])
{
    lanes m[16], v[16];
    transpose(p, 0, m);
    transpose(p, 32, m + 8);
    for (int i = 0; i < 8; i++)
        v[i] = (lanes){0} + mode->words[i];
    for (int i = 0; i < 4; i++)
        v[8 + i] = (lanes){0} + IV[i];
    v[12] = v[13] = (lanes){0};
    v[14] = (lanes){0} + BLOCK;
    v[15] = (lanes){0} + (mode->flags | PARENT);
    ALL_ROUNDS;
    for (int i = 0; i < 8; i++) {
        lanes cv = v[i] ^ v[i + 8];
        for (int l = 0; l < LANES; l++)
            out[l][i] = cv[l];
    }
}

NOVA_TARGET_AVX512 static void parents_avx512(const nova_blake3_mode *mode, const uint8_t *const p[LANES],
                                              uint32_t out[LANES][8])
{
    parents_body(mode, p, out);
}

NOVA_TARGET_AVX2 static void parents_avx2(const nova_blake3_mode *mode, const uint8_t *const p[LANES],
                                          uint32_t out[LANES][8])
{
    parents_body(mode, p, out);
}

/* The root of a subtree of WIDE whole chunks that is not all of the input: parents side by side, as chunks are. One after
 * the other they took as long as all chunks. Only where nova_has_avx2(), so words stand in memory as they are hashed. */
static void hash_wide(const nova_blake3_mode *mode, const uint8_t *p, uint64_t first, uint32_t cv[8])
{
    uint32_t cvs[WIDE][8];
    for (int run = 0; run < WIDE / LANES; run++)
        hash_run(mode, p + run * LANES * CHUNK, LANES * CHUNK, first + (uint64_t)(run * LANES), cvs + run * LANES);
    for (int count = WIDE / 2; count; count /= 2)
        for (int at = 0; at < count; at += LANES) {
            const uint8_t *pairs[LANES];
            uint32_t joined[LANES][8];
            for (int l = 0; l < LANES; l++) /* the last ones are fewer than lanes */
                pairs[l] = (const uint8_t *)cvs[2 * (at + (l < count ? l : 0))];
            if (nova_has_avx512())
                parents_avx512(mode, pairs, joined);
            else
                parents_avx2(mode, pairs, joined);
            memcpy(cvs[at], joined, 32 * (size_t)(count < LANES ? count : LANES));
        }
    memcpy(cv, cvs[0], 32);
}

/* More than one chunk; the last one is not pushed like the others, because only what joins last is the root. */
static void hash_tree(const nova_blake3_mode *mode, const uint8_t *p, size_t n, uint8_t *out)
{
    uint32_t stack[DEPTH_MAX + 1][8];
    size_t depth = 0;
    uint64_t chunks = (n + CHUNK - 1) / CHUNK;
    uint64_t wide = nova_has_avx2() ? (n / CHUNK - (n == WIDE * CHUNK)) / WIDE * WIDE : 0;
    for (uint64_t first = 0; first < wide; first += WIDE) {
        uint32_t cv[8];
        hash_wide(mode, p + (size_t)first * CHUNK, first, cv);
        if (first + WIDE < chunks)
            depth = push(mode, stack, depth, cv, first / WIDE + 1);
        else
            memcpy(stack[depth++], cv, 32);
    }
    for (uint64_t first = wide; first < chunks; first += LANES) {
        uint32_t cvs[LANES][8];
        uint64_t count = chunks - first < LANES ? chunks - first : LANES;
        size_t at = (size_t)first * CHUNK, run = n - at < LANES * CHUNK ? n - at : LANES * CHUNK;
        hash_run(mode, p + at, run, first, cvs);
        for (uint64_t i = 0; i < count && first + i + 1 < chunks; i++)
            depth = push(mode, stack, depth, cvs[i], first + i + 1);
        if (first + count == chunks)
            memcpy(stack[depth++], cvs[count - 1], 32);
    }
    for (; depth > 1; depth--)
        join(mode, stack[depth - 2], stack[depth - 1], depth == 2 ? ROOT : 0);
    store_words(out, stack[0]);
}

void nova_blake3_begin(nova_blake3_stream *s, const nova_blake3_mode *mode)
{
    s->mode = *mode;
    s->chunks = 0;
    s->held = s->depth = 0;
}

/* Eight whole chunks that others follow. */
static void add_run(nova_blake3_stream *s, const uint8_t *p)
{
    uint32_t cvs[LANES][8];
    hash_run(&s->mode, p, LANES * CHUNK, s->chunks, cvs);
    for (int i = 0; i < LANES; i++)
        s->depth = push(&s->mode, s->stack, s->depth, cvs[i], ++s->chunks);
}

void nova_blake3_add(nova_blake3_stream *s, const void *bytes, size_t n)
{
    const uint8_t *p = bytes;
    while (n) {
        if (s->held == sizeof s->waiting) {
            add_run(s, s->waiting);
            s->held = 0;
        }
        for (; !s->held && n > sizeof s->waiting; p += sizeof s->waiting, n -= sizeof s->waiting)
            add_run(s, p);
        size_t room = sizeof s->waiting - s->held, take = n < room ? n : room;
        memcpy(s->waiting + s->held, p, take);
        s->held += take, p += take, n -= take;
    }
}

void nova_blake3_end(nova_blake3_stream *s, uint8_t *out)
{
    uint32_t cvs[LANES][8];
    if (!s->chunks && s->held <= CHUNK) {
        hash_chunk(&s->mode, s->waiting, s->held, 0, ROOT, cvs[0]);
        store_words(out, cvs[0]);
        return;
    }
    size_t count = (s->held + CHUNK - 1) / CHUNK;
    hash_run(&s->mode, s->waiting, s->held, s->chunks, cvs);
    for (size_t i = 0; i + 1 < count; i++)
        s->depth = push(&s->mode, s->stack, s->depth, cvs[i], ++s->chunks);
    memcpy(s->stack[s->depth++], cvs[count - 1], 32);
    for (; s->depth > 1; s->depth--)
        join(&s->mode, s->stack[s->depth - 2], s->stack[s->depth - 1], s->depth == 2 ? ROOT : 0);
    store_words(out, s->stack[0]);
}

nova_blake3_mode nova_blake3_plain(void)
{
    nova_blake3_mode mode = {{0}, 0};
    memcpy(mode.words, IV, 32);
    return mode;
}

nova_blake3_mode nova_blake3_keyed(const uint8_t *key)
{
    nova_blake3_mode mode = {{0}, KEYED};
    for (int i = 0; i < 8; i++)
        mode.words[i] = load32(key + 4 * i);
    return mode;
}

nova_blake3_mode nova_blake3_derive(const void *context, size_t n)
{
    uint8_t key[NOVA_BLAKE3_BYTES];
    nova_blake3_mode mode = nova_blake3_plain();
    mode.flags = DERIVE_CONTEXT;
    nova_blake3(&mode, context, n, key);
    mode = nova_blake3_keyed(key);
    mode.flags = DERIVE_MATERIAL;
    return mode;
}

void nova_blake3(const nova_blake3_mode *mode, const void *p, size_t n, uint8_t *out)
{
    uint32_t cv[8];
    if (n > CHUNK) {
        hash_tree(mode, p, n, out);
    } else {
        hash_chunk(mode, p, n, 0, ROOT, cv);
        store_words(out, cv);
    }
}

void nova_blake3_many(const nova_blake3_mode *mode, const uint8_t *const *p, const size_t *n, size_t count,
                      uint8_t *out)
{
    static const uint64_t counters[LANES];
    size_t waiting[LANES], held = 0;
    for (size_t i = 0; i < count; i++) {
        if (n[i] > CHUNK) {
            nova_blake3(mode, p[i], n[i], out + NOVA_BLAKE3_BYTES * i);
            continue;
        }
        waiting[held++] = i;
        if (held == LANES) {
            const uint8_t *starts[LANES];
            size_t sizes[LANES];
            uint32_t cvs[LANES][8];
            for (size_t l = 0; l < LANES; l++) {
                starts[l] = p[waiting[l]];
                sizes[l] = n[waiting[l]];
            }
            hash_chunks(mode, starts, sizes, counters, ROOT, cvs);
            for (size_t l = 0; l < LANES; l++)
                store_words(out + NOVA_BLAKE3_BYTES * waiting[l], cvs[l]);
            held = 0;
        }
    }
    for (size_t l = 0; l < held; l++)
        nova_blake3(mode, p[waiting[l]], n[waiting[l]], out + NOVA_BLAKE3_BYTES * waiting[l]);
}
