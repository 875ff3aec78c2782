/* csrc/simd.h - one body, compiled for several instruction sets, chosen at run time.
 *
 *     static inline NOVA_INLINE int body(const uint64_t *a, size_t n) { ... }
 *     NOVA_TARGET_AVX2 static int sum_avx2(const uint64_t *a, size_t n) { return body(a, n); }
 *     static int sum_plain(const uint64_t *a, size_t n) { return body(a, n); }
 *     int sum(const uint64_t *a, size_t n) { return nova_has_avx2() ? sum_avx2(a, n) : sum_plain(a, n); }
 *
 * The test is one load and one branch. Nothing is ever built with -march=native. */
#pragma once

#define NOVA_INLINE __attribute__((always_inline))

#if defined(__x86_64__) && defined(__GNUC__)
#define NOVA_TARGET_AVX2 __attribute__((target("avx2,bmi,bmi2")))
static inline int nova_has_avx2(void)
{
    static signed char known = -1; /* racing threads write the same answer */
    if (__builtin_expect(known < 0, 0))
        known = (signed char)(__builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi2"));
    return known;
}
#else
#define NOVA_TARGET_AVX2
static inline int nova_has_avx2(void)
{
    return 0;
}
#endif
