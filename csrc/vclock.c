/* csrc/vclock.c */
#include "vclock.h"

#include "simd.h"

/* The order of two columns of counts of the same actors. Branches once a block, so the block vectorizes. */
static inline NOVA_INLINE nova_order order_counts(const uint64_t *a, const uint64_t *b, size_t n)
{
    uint64_t before = 0, after = 0;
    size_t i = 0;
    while (n - i >= 16) {
        uint64_t less = 0, more = 0;
        for (size_t end = i + 16; i < end; i++) {
            less |= a[i] < b[i] ? UINT64_MAX : 0;
            more |= a[i] > b[i] ? UINT64_MAX : 0;
        }
        before |= less, after |= more;
        if (before & after)
            return NOVA_CONCURRENT;
    }
    for (; i < n; i++) {
        before |= a[i] < b[i];
        after |= a[i] > b[i];
    }
    return (nova_order)((before != 0) | (after != 0) << 1);
}

static nova_order order_plain(const uint64_t *a, const uint64_t *b, size_t n)
{
    return order_counts(a, b, n);
}

NOVA_TARGET_AVX2 static nova_order order_avx2(const uint64_t *a, const uint64_t *b, size_t n)
{
    return order_counts(a, b, n);
}

#ifdef NOVA_HAS_INTRINSICS
/* What the greater of both counts changes in a is where a lies behind, and in b, where b does. A maximum and two bitwise
 * operations a vector go to any of the vector units, where compares into masks would wait for one. */
NOVA_TARGET_AVX512 static nova_order order_avx512(const uint64_t *a, const uint64_t *b, size_t n)
{
    const __m512i zero = _mm512_setzero_si512();
    __m512i behind[4] = {zero, zero, zero, zero}, ahead[4] = {zero, zero, zero, zero};
    size_t i = 0;
    for (; n - i >= 32; i += 32) {
        for (size_t k = 0; k < 4; k++) {
            __m512i x = _mm512_loadu_si512(a + i + 8 * k), y = _mm512_loadu_si512(b + i + 8 * k);
            __m512i most = _mm512_max_epu64(x, y);
            behind[k] = _mm512_ternarylogic_epi64(behind[k], most, x, 0xf6); /* behind | (most ^ x) */
            ahead[k] = _mm512_ternarylogic_epi64(ahead[k], most, y, 0xf6);
        }
        if (i & 32) { /* a second block: often enough to stop early, seldom enough to cost little */
            __m512i less =
                _mm512_or_si512(_mm512_or_si512(behind[0], behind[1]), _mm512_or_si512(behind[2], behind[3]));
            __m512i more = _mm512_or_si512(_mm512_or_si512(ahead[0], ahead[1]), _mm512_or_si512(ahead[2], ahead[3]));
            if (_mm512_test_epi64_mask(less, less) && _mm512_test_epi64_mask(more, more))
                return NOVA_CONCURRENT;
        }
    }
    for (size_t k = 0; i < n; i += 8, k++) {
        __mmask8 in = n - i >= 8 ? 0xff : (__mmask8)((1u << (n - i)) - 1);
        __m512i x = _mm512_maskz_loadu_epi64(in, a + i), y = _mm512_maskz_loadu_epi64(in, b + i);
        __m512i most = _mm512_max_epu64(x, y);
        behind[k] = _mm512_ternarylogic_epi64(behind[k], most, x, 0xf6);
        ahead[k] = _mm512_ternarylogic_epi64(ahead[k], most, y, 0xf6);
    }
    __m512i less = _mm512_or_si512(_mm512_or_si512(behind[0], behind[1]), _mm512_or_si512(behind[2], behind[3]));
    __m512i more = _mm512_or_si512(_mm512_or_si512(ahead[0], ahead[1]), _mm512_or_si512(ahead[2], ahead[3]));
    return (nova_order)((_mm512_test_epi64_mask(less, less) != 0) | (_mm512_test_epi64_mask(more, more) != 0) << 1);
}
#else
#define order_avx512 order_plain
#endif

nova_order nova_counts_compare(const uint64_t *a, const uint64_t *b, size_t n)
{
    int level = nova_simd_level();
    return level >= NOVA_SIMD_AVX512 ? order_avx512(a, b, n)
           : level >= NOVA_SIMD_AVX2 ? order_avx2(a, b, n)
                                     : order_plain(a, b, n);
}

nova_order nova_vclock_compare(nova_clock a, nova_clock b)
{
    if (a.size == b.size && a.actors == b.actors)
        return nova_counts_compare(a.counts, b.counts, a.size);
    size_t i = 0, j = 0;
    unsigned before = 0, after = 0;
    while (i < a.size && j < b.size && !(before & after)) {
        if (a.actors[i] == b.actors[j]) {
            before |= a.counts[i] < b.counts[j];
            after |= a.counts[i] > b.counts[j];
            i++, j++;
        } else if (a.actors[i] < b.actors[j]) {
            after = 1, i++;
        } else {
            before = 1, j++;
        }
    }
    before |= j < b.size; /* whatever is left is news to the other side */
    after |= i < a.size;
    return (nova_order)(before | after << 1);
}

size_t nova_vclock_merge(nova_clock a, nova_clock b, uint32_t *actors, uint64_t *counts)
{
    size_t i = 0, j = 0, n = 0;
    while (i < a.size || j < b.size) {
        if (j == b.size || (i < a.size && a.actors[i] < b.actors[j])) {
            actors[n] = a.actors[i], counts[n++] = a.counts[i++];
        } else if (i == a.size || b.actors[j] < a.actors[i]) {
            actors[n] = b.actors[j], counts[n++] = b.counts[j++];
        } else {
            actors[n] = a.actors[i];
            counts[n++] = a.counts[i] > b.counts[j] ? a.counts[i] : b.counts[j];
            i++, j++;
        }
    }
    return n;
}

size_t nova_vclock_find(const uint32_t *ids, size_t n, uint32_t actor)
{
    size_t low = 0, high = n;
    while (low < high) {
        size_t mid = low + (high - low) / 2;
        if (ids[mid] < actor)
            low = mid + 1;
        else
            high = mid;
    }
    return low < n && ids[low] == actor ? low : n;
}

size_t nova_spans_seek(const nova_span *spans, size_t n, uint64_t count)
{
    size_t low = 0, high = n;
    while (low < high) {
        size_t mid = low + (high - low) / 2;
        if (spans[mid].last < count)
            low = mid + 1;
        else
            high = mid;
    }
    return low;
}

size_t nova_spans_union(const nova_span *a, size_t na, const nova_span *b, size_t nb, nova_span *out)
{
    size_t i = 0, j = 0, n = 0;
    while (i < na || j < nb) {
        nova_span next = j == nb || (i < na && a[i].first <= b[j].first) ? a[i++] : b[j++];
        /* first > 0, so first - 1 does not wrap; last + 1 could. */
        if (n && out[n - 1].last >= next.first - 1) {
            if (out[n - 1].last < next.last)
                out[n - 1].last = next.last;
        } else {
            out[n++] = next;
        }
    }
    return n;
}

size_t nova_spans_minus(const nova_span *a, size_t na, const nova_span *b, size_t nb, nova_span *out)
{
    size_t j = 0, n = 0;
    for (size_t i = 0; i < na; i++) {
        nova_span rest = a[i];
        int left = 1;
        while (j < nb && b[j].last < rest.first)
            j++;
        for (; left && j < nb && b[j].first <= rest.last; j++) {
            if (b[j].first > rest.first)
                out[n++] = (nova_span){rest.first, b[j].first - 1};
            if (b[j].last >= rest.last) {
                left = 0;
                break; /* this span of b may cut the next one of a too */
            }
            rest.first = b[j].last + 1;
        }
        if (left)
            out[n++] = rest;
    }
    return n;
}

int nova_spans_cover(const nova_span *a, size_t na, const nova_span *b, size_t nb)
{
    size_t i = 0;
    for (size_t j = 0; j < nb; j++) {
        while (i < na && a[i].last < b[j].first)
            i++;
        if (i == na || a[i].first > b[j].first || a[i].last < b[j].last)
            return 0;
    }
    return 1;
}
