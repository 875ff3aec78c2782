/* csrc/frame.c */
#include "frame.h"
#include "simd.h"

static inline uint32_t get32(const uint8_t *p)
{
    return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}

static inline void put32(uint8_t *p, uint32_t v)
{
    p[0] = (uint8_t)(v >> 24), p[1] = (uint8_t)(v >> 16), p[2] = (uint8_t)(v >> 8), p[3] = (uint8_t)v;
}

/* Four bits a step: the table is small enough to be read as source, and this path is for processors without CRC32. */
static const uint32_t NIBBLE[16] = {
    0x00000000, 0x105ec76f, 0x20bd8ede, 0x30e349b1, 0x417b1dbc, 0x5125dad3, 0x61c69362, 0x7198540d,
    0x82f63b78, 0x92a8fc17, 0xa24bb5a6, 0xb21572c9, 0xc38d26c4, 0xd3d3e1ab, 0xe330a81a, 0xf36e6f75,
};

uint32_t nova_frame_crc32c_plain(uint32_t crc, const uint8_t *bytes, size_t n)
{
    crc = ~crc;
    for (; n; n--) {
        crc ^= *bytes++;
        crc = crc >> 4 ^ NIBBLE[crc & 15];
        crc = crc >> 4 ^ NIBBLE[crc & 15];
    }
    return ~crc;
}

#if defined(__x86_64__) && defined(__GNUC__)
#define TARGET_CRC __attribute__((target("sse4.2")))
#define TARGET_FOLD __attribute__((target("pclmul,sse4.2")))
#define TARGET_WIDE __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,vpclmulqdq,pclmul,sse4.2")))

/* The state of these is the complement of the checksum, so that pieces follow each other without conversion. */
TARGET_CRC static uint32_t step_sse42(uint32_t crc, const uint8_t *bytes, size_t n)
{
    uint64_t state = crc, word;
    for (; n >= 8; n -= 8, bytes += 8) {
        memcpy(&word, bytes, 8);
        state = __builtin_ia32_crc32di(state, word);
    }
    uint32_t tail = (uint32_t)state;
    for (; n; n--)
        tail = __builtin_ia32_crc32qi(tail, *bytes++);
    return tail;
}

/* Folding (Gopal et al. 2009, "Fast CRC Computation for Generic Polynomials Using PCLMULQDQ"): x^(d+32) and x^(d-32)
 * modulo the polynomial, bits reflected and shifted once, move 128 bits forward by d. What is left, 16 bytes, has the
 * checksum of everything before it, and the instruction takes it. */
#define FOLD_2048 0xb9e02b86, 0xdcb17aa4
#define FOLD_512 0x9e4addf8, 0x740eef02
#define FOLD_128 0x14cd00bd6, 0xf20c0dfe

TARGET_FOLD static inline __m128i fold(__m128i sum, __m128i by, __m128i data)
{
    __m128i low = _mm_clmulepi64_si128(sum, by, 0x00), high = _mm_clmulepi64_si128(sum, by, 0x11);
    return _mm_xor_si128(_mm_xor_si128(low, high), data);
}

TARGET_FOLD static inline __m128i load(const uint8_t *bytes)
{
    return _mm_loadu_si128((const __m128i *)bytes);
}

TARGET_FOLD static uint32_t finish(__m128i sum, const uint8_t *bytes, size_t n)
{
    const __m128i by = _mm_set_epi64x(FOLD_128);
    for (; n >= 16; n -= 16, bytes += 16)
        sum = fold(sum, by, load(bytes));
    uint64_t state = __builtin_ia32_crc32di(0, (uint64_t)_mm_cvtsi128_si64(sum));
    state = __builtin_ia32_crc32di(state, (uint64_t)_mm_extract_epi64(sum, 1));
    return step_sse42((uint32_t)state, bytes, n);
}

TARGET_FOLD static uint32_t step_fold(uint32_t crc, const uint8_t *bytes, size_t n)
{
    if (n < 128)
        return step_sse42(crc, bytes, n);
    const __m128i far = _mm_set_epi64x(FOLD_512), near = _mm_set_epi64x(FOLD_128);
    __m128i a = _mm_xor_si128(load(bytes), _mm_cvtsi32_si128((int)crc));
    __m128i b = load(bytes + 16), c = load(bytes + 32), d = load(bytes + 48);
    for (n -= 64, bytes += 64; n >= 64; n -= 64, bytes += 64) {
        a = fold(a, far, load(bytes));
        b = fold(b, far, load(bytes + 16));
        c = fold(c, far, load(bytes + 32));
        d = fold(d, far, load(bytes + 48));
    }
    return finish(fold(fold(fold(a, near, b), near, c), near, d), bytes, n);
}

TARGET_WIDE static inline __m512i fold_wide(__m512i sum, __m512i by, __m512i data)
{
    __m512i low = _mm512_clmulepi64_epi128(sum, by, 0x00), high = _mm512_clmulepi64_epi128(sum, by, 0x11);
    return _mm512_ternarylogic_epi64(low, high, data, 0x96);
}

TARGET_WIDE static uint32_t step_wide(uint32_t crc, const uint8_t *bytes, size_t n)
{
    if (n < 512)
        return step_fold(crc, bytes, n);
    const __m512i far = _mm512_broadcast_i32x4(_mm_set_epi64x(FOLD_2048));
    const __m512i close = _mm512_broadcast_i32x4(_mm_set_epi64x(FOLD_512));
    const __m128i near = _mm_set_epi64x(FOLD_128);
    __m512i a = _mm512_xor_si512(_mm512_loadu_si512(bytes), _mm512_zextsi128_si512(_mm_cvtsi32_si128((int)crc)));
    __m512i b = _mm512_loadu_si512(bytes + 64), c = _mm512_loadu_si512(bytes + 128);
    __m512i d = _mm512_loadu_si512(bytes + 192);
    for (n -= 256, bytes += 256; n >= 256; n -= 256, bytes += 256) {
        a = fold_wide(a, far, _mm512_loadu_si512(bytes));
        b = fold_wide(b, far, _mm512_loadu_si512(bytes + 64));
        c = fold_wide(c, far, _mm512_loadu_si512(bytes + 128));
        d = fold_wide(d, far, _mm512_loadu_si512(bytes + 192));
    }
    a = fold_wide(fold_wide(fold_wide(a, close, b), close, c), close, d);
    for (; n >= 64; n -= 64, bytes += 64)
        a = fold_wide(a, close, _mm512_loadu_si512(bytes));
    __m128i sum = _mm512_castsi512_si128(a);
    sum = fold(sum, near, _mm512_extracti64x2_epi64(a, 1));
    sum = fold(sum, near, _mm512_extracti64x2_epi64(a, 2));
    return finish(fold(sum, near, _mm512_extracti64x2_epi64(a, 3)), bytes, n);
}

int nova_frame_crc32c_level(void)
{
    static signed char known = -1; /* racing threads write the same answer */
    if (__builtin_expect(known < 0, 0)) {
        int level = NOVA_CRC_PLAIN;
        if (__builtin_cpu_supports("sse4.2"))
            level = nova_has_clmul() ? NOVA_CRC_FOLD : NOVA_CRC_INSTRUCTION;
        if (level == NOVA_CRC_FOLD && nova_has_avx512() && __builtin_cpu_supports("vpclmulqdq"))
            level = NOVA_CRC_WIDE;
        known = (signed char)level;
    }
    return known;
}

uint32_t nova_frame_crc32c_at(int level, uint32_t crc, const uint8_t *bytes, size_t n)
{
    switch (level < nova_frame_crc32c_level() ? level : nova_frame_crc32c_level()) {
    case NOVA_CRC_WIDE:
        return ~step_wide(~crc, bytes, n);
    case NOVA_CRC_FOLD:
        return ~step_fold(~crc, bytes, n);
    case NOVA_CRC_INSTRUCTION:
        return ~step_sse42(~crc, bytes, n);
    default:
        return nova_frame_crc32c_plain(crc, bytes, n);
    }
}

uint32_t nova_frame_crc32c(uint32_t crc, const uint8_t *bytes, size_t n)
{
    return nova_frame_crc32c_at(NOVA_CRC_WIDE, crc, bytes, n);
}
#elif defined(__aarch64__) && defined(__ARM_FEATURE_CRC32)
#include <arm_acle.h>
int nova_frame_crc32c_level(void)
{
    return NOVA_CRC_INSTRUCTION;
}

uint32_t nova_frame_crc32c_at(int level, uint32_t crc, const uint8_t *bytes, size_t n)
{
    return level == NOVA_CRC_PLAIN ? nova_frame_crc32c_plain(crc, bytes, n) : nova_frame_crc32c(crc, bytes, n);
}

uint32_t nova_frame_crc32c(uint32_t crc, const uint8_t *bytes, size_t n)
{
    uint64_t word;
    crc = ~crc;
    for (; n >= 8; n -= 8, bytes += 8) {
        memcpy(&word, bytes, 8);
        crc = __crc32cd(crc, word);
    }
    for (; n; n--)
        crc = __crc32cb(crc, *bytes++);
    return ~crc;
}
#else
int nova_frame_crc32c_level(void)
{
    return NOVA_CRC_PLAIN;
}

uint32_t nova_frame_crc32c_at(int level, uint32_t crc, const uint8_t *bytes, size_t n)
{
    return nova_frame_crc32c_plain(crc, bytes, n);
}

uint32_t nova_frame_crc32c(uint32_t crc, const uint8_t *bytes, size_t n)
{
    return nova_frame_crc32c_plain(crc, bytes, n);
}
#endif

int nova_frame_read(const uint8_t *bytes, size_t length_max, nova_frame *out)
{
    if (bytes[0] != 'N')
        return NOVA_EMAGIC;
    if (bytes[1] != NOVA_FRAME_VERSION)
        return NOVA_EVERSION;
    uint8_t flags = bytes[3];
    if (flags & ~(NOVA_FLAG_TRACE | NOVA_FLAG_MAC))
        return NOVA_EFLAGS;
    uint32_t length = get32(bytes + 4);
    if (length > length_max)
        return NOVA_ELENGTH;
    size_t extras = (flags & NOVA_FLAG_TRACE ? NOVA_FRAME_TRACE : 0) + (flags & NOVA_FLAG_MAC ? NOVA_FRAME_MAC : 0);
    if (length < extras)
        return NOVA_ESHORT;
    *out = (nova_frame){.type = bytes[2],
                        .flags = flags,
                        .length = length,
                        .sequence = (uint64_t)get32(bytes + 8) << 32 | get32(bytes + 12),
                        .stream = get32(bytes + 16),
                        .crc = get32(bytes + 20)};
    return 0;
}

void nova_frame_write_signed(uint8_t *bytes, const nova_frame *frame)
{
    bytes[0] = 'N', bytes[1] = NOVA_FRAME_VERSION, bytes[2] = frame->type, bytes[3] = frame->flags;
    put32(bytes + 4, frame->length);
    put32(bytes + 8, (uint32_t)(frame->sequence >> 32));
    put32(bytes + 12, (uint32_t)frame->sequence);
    put32(bytes + 16, frame->stream);
}

void nova_frame_write(uint8_t *bytes, const nova_frame *frame)
{
    nova_frame_write_signed(bytes, frame);
    uint32_t crc = nova_frame_crc32c(0, bytes, NOVA_FRAME_SIGNED);
    put32(bytes + 20, nova_frame_crc32c(crc, bytes + NOVA_FRAME_HEADER, frame->length));
}

int nova_frame_checks(const uint8_t *header, const uint8_t *body, size_t n)
{
    return nova_frame_crc32c(nova_frame_crc32c(0, header, NOVA_FRAME_SIGNED), body, n) == get32(header + 20);
}
