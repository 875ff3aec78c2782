/* csrc/simd.h - one body, compiled for several instruction sets, chosen at run time.
 *
 *     static inline NOVA_INLINE int body(const uint64_t *a, size_t n) { ... }
 *     NOVA_TARGET_AVX2 static int sum_avx2(const uint64_t *a, size_t n) { return body(a, n); }
 *     static int sum_plain(const uint64_t *a, size_t n) { return body(a, n); }
 *     int sum(const uint64_t *a, size_t n) { return nova_has_avx2() ? sum_avx2(a, n) : sum_plain(a, n); }
 *
 * The test is one load and one branch. Nothing is ever built with -march=native. NOVA_SIMD=plain or =avx2 in the
 * environment keeps a process from using more, so that a test can hold all bodies to one answer. */
#pragma once
#include <stdlib.h>
#include <string.h>

#define NOVA_INLINE __attribute__((always_inline))

enum { NOVA_SIMD_PLAIN, NOVA_SIMD_AVX2, NOVA_SIMD_AVX512 };

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#define NOVA_HAS_INTRINSICS 1
#define NOVA_TARGET_AVX2 __attribute__((target("avx2,bmi,bmi2")))
/* 512-bit registers and compares into masks, as every server has that has AVX-512 at all. To clang the preferred width is
 * an option of the command line: it ignores the whole attribute for it, and then refuses the intrinsics. */
#if defined(__clang__)
#define NOVA_TARGET_AVX512 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,bmi,bmi2")))
#else
#define NOVA_TARGET_AVX512 \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,bmi,bmi2,prefer-vector-width=512")))
#endif
#define NOVA_TARGET_CLMUL __attribute__((target("pclmul,sse4.1")))

static inline int nova_simd_level(void)
{
    static signed char known = -1; /* racing threads write the same answer */
    if (__builtin_expect(known < 0, 0)) {
        int level = NOVA_SIMD_PLAIN;
        const char *most = getenv("NOVA_SIMD");
        if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi2"))
            level = NOVA_SIMD_AVX2;
        if (level && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
            __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
            level = NOVA_SIMD_AVX512;
        if (most && !strcmp(most, "avx2") && level > NOVA_SIMD_AVX2)
            level = NOVA_SIMD_AVX2;
        if (most && !strcmp(most, "plain"))
            level = NOVA_SIMD_PLAIN;
        known = (signed char)level;
    }
    return known;
}

static inline int nova_has_clmul(void)
{
    static signed char known = -1;
    if (__builtin_expect(known < 0, 0))
        known = (signed char)(nova_simd_level() > NOVA_SIMD_PLAIN && __builtin_cpu_supports("pclmul"));
    return known;
}
#else
#define NOVA_TARGET_AVX2
#define NOVA_TARGET_AVX512
#define NOVA_TARGET_CLMUL
static inline int nova_simd_level(void)
{
    return NOVA_SIMD_PLAIN;
}
static inline int nova_has_clmul(void)
{
    return 0;
}
#endif

/* NEON is in every aarch64, so only NOVA_SIMD=plain keeps from it. */
static inline int nova_has_neon(void)
{
#if defined(__aarch64__)
    static signed char known = -1;
    if (__builtin_expect(known < 0, 0)) {
        const char *most = getenv("NOVA_SIMD");
        known = !(most && !strcmp(most, "plain"));
    }
    return known;
#else
    return 0;
#endif
}

static inline int nova_has_avx2(void)
{
    return nova_simd_level() >= NOVA_SIMD_AVX2;
}

static inline int nova_has_avx512(void)
{
    return nova_simd_level() >= NOVA_SIMD_AVX512;
}
