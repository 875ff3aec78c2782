/* csrc/page.c */
#include "page.h"

#include <string.h>

#include "bytes.h"
#include "simd.h"

#if defined(__aarch64__)
#include <arm_neon.h>
#endif

enum { COLUMNS = 8, WORDS = NOVA_PAGE / 8 };

/* One line more than a page: the second hash reads its key a line later. */
static uint64_t key[WORDS + COLUMNS] __attribute__((aligned(64)));
static signed char key_made; /* racing threads write the same words */

static const uint64_t *page_key(void)
{
    if (__builtin_expect(!__atomic_load_n(&key_made, __ATOMIC_ACQUIRE), 0)) {
        uint64_t state = 0x6a09e667f3bcc908u; /* SplitMix64 (Steele et al. 2014) of the square root of 2 */
        for (size_t i = 0; i < WORDS + COLUMNS; i++) {
            uint64_t z = state += 0x9e3779b97f4a7c15u;
            z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
            z = (z ^ z >> 27) * 0x94d049bb133111ebu;
            key[i] = z ^ z >> 31;
        }
        __atomic_store_n(&key_made, 1, __ATOMIC_RELEASE);
    }
    return key;
}

const uint8_t *nova_image_page(const nova_image *image, size_t i, uint8_t *room)
{
    size_t begin = i * NOVA_PAGE;
    if (begin <= image->size && image->size - begin >= NOVA_PAGE)
        return image->bytes + begin;
    size_t have = begin < image->size ? image->size - begin : 0;
    if (have)
        memcpy(room, image->bytes + begin, have);
    memset(room + have, 0, NOVA_PAGE - have);
    return room;
}

/* ---- equal pages ---- */

static size_t same_plain(const uint8_t *a, const uint8_t *b, size_t n)
{
    for (size_t page = 0; page < n; page++, a += NOVA_PAGE, b += NOVA_PAGE) {
        uint64_t differs = 0;
        for (size_t at = 0; at < NOVA_PAGE; at += 8) {
            uint64_t x, y;
            memcpy(&x, a + at, 8);
            memcpy(&y, b + at, 8);
            differs |= x ^ y;
        }
        if (differs)
            return page;
    }
    return n;
}

static unsigned differences_plain(const uint8_t *a, const uint8_t *b, uint64_t *masks)
{
    unsigned count = 0;
    for (size_t line = 0; line < NOVA_LINES; line++, a += NOVA_LINE, b += NOVA_LINE) {
        uint64_t mask = 0;
        if (memcmp(a, b, NOVA_LINE)) {
            for (size_t i = 0; i < 8; i++) {
                uint64_t x = nova_load64le(a + 8 * i) ^ nova_load64le(b + 8 * i);
                /* The top bit of each byte that is not zero, and those eight bits side by side. */
                uint64_t tops = (((x & 0x7f7f7f7f7f7f7f7fu) + 0x7f7f7f7f7f7f7f7fu) | x) & 0x8080808080808080u;
                mask |= (tops >> 7) * 0x0102040810204080u >> 56 << 8 * i;
            }
        }
        masks[line] = mask;
        count += (unsigned)__builtin_popcountll(mask);
    }
    return count;
}

/* Sums of the two hashes: out[0..7] and out[8..15]. */
static void sums_plain(const uint8_t *page, uint64_t *out)
{
    const uint64_t *k = page_key();
    memset(out, 0, 2 * COLUMNS * 8);
    for (size_t i = 0; i < WORDS; i += COLUMNS) {
        for (size_t c = 0; c < COLUMNS; c++) {
            uint64_t x = nova_load64le(page + 8 * (i + c)), one = k[i + c], two = k[i + c + COLUMNS];
            out[c] += (uint64_t)(uint32_t)(x + one) * (uint32_t)((x >> 32) + (one >> 32));
            out[COLUMNS + c] += (uint64_t)(uint32_t)(x + two) * (uint32_t)((x >> 32) + (two >> 32));
        }
    }
}

static size_t gather_plain(const uint8_t *page, const uint64_t *masks, uint8_t *out)
{
    uint8_t *at = out;
    for (size_t line = 0; line < NOVA_LINES; line++, page += NOVA_LINE) {
        for (uint64_t mask = masks[line]; mask; mask &= mask - 1)
            *at++ = page[__builtin_ctzll(mask)];
    }
    return (size_t)(at - out);
}

static void scatter_plain(uint8_t *page, const uint64_t *masks, const uint8_t *bytes)
{
    for (size_t line = 0; line < NOVA_LINES; line++, page += NOVA_LINE) {
        for (uint64_t mask = masks[line]; mask; mask &= mask - 1)
            page[__builtin_ctzll(mask)] = *bytes++;
    }
}

#ifdef NOVA_HAS_INTRINSICS

NOVA_TARGET_AVX2 static size_t same_avx2(const uint8_t *a, const uint8_t *b, size_t n)
{
    for (size_t page = 0; page < n; page++, a += NOVA_PAGE, b += NOVA_PAGE) {
        __m256i one = _mm256_setzero_si256(), two = one;
        for (size_t at = 0; at < NOVA_PAGE; at += 64) {
            one = _mm256_or_si256(one, _mm256_xor_si256(_mm256_loadu_si256((const __m256i *)(a + at)),
                                                        _mm256_loadu_si256((const __m256i *)(b + at))));
            two = _mm256_or_si256(two, _mm256_xor_si256(_mm256_loadu_si256((const __m256i *)(a + at + 32)),
                                                        _mm256_loadu_si256((const __m256i *)(b + at + 32))));
        }
        one = _mm256_or_si256(one, two);
        if (!_mm256_testz_si256(one, one))
            return page;
    }
    return n;
}

NOVA_TARGET_AVX512 static size_t same_avx512(const uint8_t *a, const uint8_t *b, size_t n)
{
    enum { OR_OF_XOR = 0xf6 };
    for (size_t page = 0; page < n; page++, a += NOVA_PAGE, b += NOVA_PAGE) {
        __m512i one = _mm512_setzero_si512(), two = one;
        for (size_t at = 0; at < NOVA_PAGE; at += 128) {
            one = _mm512_ternarylogic_epi64(one, _mm512_loadu_si512(a + at), _mm512_loadu_si512(b + at), OR_OF_XOR);
            two = _mm512_ternarylogic_epi64(two, _mm512_loadu_si512(a + at + 64), _mm512_loadu_si512(b + at + 64),
                                            OR_OF_XOR);
        }
        one = _mm512_or_si512(one, two);
        if (_mm512_test_epi64_mask(one, one))
            return page;
    }
    return n;
}

NOVA_TARGET_AVX2 static unsigned differences_avx2(const uint8_t *a, const uint8_t *b, uint64_t *masks)
{
    unsigned count = 0;
    for (size_t line = 0; line < NOVA_LINES; line++, a += NOVA_LINE, b += NOVA_LINE) {
        __m256i low = _mm256_cmpeq_epi8(_mm256_loadu_si256((const __m256i *)a), _mm256_loadu_si256((const __m256i *)b));
        __m256i high = _mm256_cmpeq_epi8(_mm256_loadu_si256((const __m256i *)(a + 32)),
                                         _mm256_loadu_si256((const __m256i *)(b + 32)));
        masks[line] =
            ~((uint64_t)(uint32_t)_mm256_movemask_epi8(low) | (uint64_t)(uint32_t)_mm256_movemask_epi8(high) << 32);
        count += (unsigned)__builtin_popcountll(masks[line]);
    }
    return count;
}

NOVA_TARGET_AVX512 static unsigned differences_avx512(const uint8_t *a, const uint8_t *b, uint64_t *masks)
{
    unsigned count = 0;
    for (size_t line = 0; line < NOVA_LINES; line++, a += NOVA_LINE, b += NOVA_LINE) {
        masks[line] = _mm512_cmpneq_epi8_mask(_mm512_loadu_si512(a), _mm512_loadu_si512(b));
        count += (unsigned)__builtin_popcountll(masks[line]);
    }
    return count;
}

NOVA_TARGET_AVX2 static void sums_avx2(const uint8_t *page, uint64_t *out)
{
    const uint64_t *k = page_key();
    __m256i a[4] = {_mm256_setzero_si256(), _mm256_setzero_si256(), _mm256_setzero_si256(), _mm256_setzero_si256()};
    for (size_t i = 0; i < WORDS; i += COLUMNS) {
        for (size_t half = 0; half < 2; half++) {
            __m256i x = _mm256_loadu_si256((const __m256i *)(page + 8 * i + 32 * half));
            __m256i one = _mm256_add_epi32(x, _mm256_load_si256((const __m256i *)(k + i + 4 * half)));
            __m256i two = _mm256_add_epi32(x, _mm256_load_si256((const __m256i *)(k + i + COLUMNS + 4 * half)));
            a[half] = _mm256_add_epi64(a[half], _mm256_mul_epu32(one, _mm256_srli_epi64(one, 32)));
            a[2 + half] = _mm256_add_epi64(a[2 + half], _mm256_mul_epu32(two, _mm256_srli_epi64(two, 32)));
        }
    }
    for (size_t i = 0; i < 4; i++)
        _mm256_storeu_si256((__m256i *)(out + 4 * i), a[i]);
}

NOVA_TARGET_AVX512 static void sums_avx512(const uint8_t *page, uint64_t *out)
{
    const uint64_t *k = page_key();
    /* Two sums a hash: the chain of additions is not what the loop waits for. */
    __m512i a0 = _mm512_setzero_si512(), a1 = a0, b0 = a0, b1 = a0;
    __m512i ahead = _mm512_load_si512(k);
    for (size_t i = 0; i < WORDS; i += 2 * COLUMNS) {
        __m512i x = _mm512_loadu_si512(page + 8 * i), y = _mm512_loadu_si512(page + 8 * i + NOVA_LINE);
        __m512i middle = _mm512_load_si512(k + i + COLUMNS), last = _mm512_load_si512(k + i + 2 * COLUMNS);
        __m512i one = _mm512_add_epi32(x, ahead), two = _mm512_add_epi32(x, middle);
        __m512i three = _mm512_add_epi32(y, middle), four = _mm512_add_epi32(y, last);
        a0 = _mm512_add_epi64(a0, _mm512_mul_epu32(one, _mm512_srli_epi64(one, 32)));
        b0 = _mm512_add_epi64(b0, _mm512_mul_epu32(two, _mm512_srli_epi64(two, 32)));
        a1 = _mm512_add_epi64(a1, _mm512_mul_epu32(three, _mm512_srli_epi64(three, 32)));
        b1 = _mm512_add_epi64(b1, _mm512_mul_epu32(four, _mm512_srli_epi64(four, 32)));
        ahead = last;
    }
    _mm512_storeu_si512(out, _mm512_add_epi64(a0, a1));
    _mm512_storeu_si512(out + COLUMNS, _mm512_add_epi64(b0, b1));
}

/* Eight bits to eight bytes of all ones. */
#define SPREAD(bits) (_pdep_u64((bits), 0x0101010101010101u) * 0xff)

/* Writes up to 7 bytes behind the last one, within the page that `out` has room for: n more are still to come. */
NOVA_TARGET_AVX2 static size_t gather_bmi2(const uint8_t *page, const uint64_t *masks, uint8_t *out)
{
    size_t used = 0;
    for (size_t line = 0; line < NOVA_LINES; line++, page += NOVA_LINE) {
        if (!masks[line])
            continue;
        for (size_t i = 0; i < 8; i++) {
            uint64_t bits = masks[line] >> 8 * i & 0xff;
            /* used <= what was looked at, so eight bytes at `used` never pass the end of the page. */
            nova_store64le(out + used, _pext_u64(nova_load64le(page + 8 * i), SPREAD(bits)));
            used += (size_t)__builtin_popcountll(bits);
        }
    }
    return used;
}
#endif

#if defined(__aarch64__)
/* NEON is in every aarch64. The other kernels' plain loops become NEON by themselves. */
static void sums_neon(const uint8_t *page, uint64_t *out)
{
    const uint64_t *k = page_key();
    uint64x2_t a[4], b[4];
    for (size_t c = 0; c < 4; c++)
        a[c] = b[c] = vdupq_n_u64(0);
    for (size_t i = 0; i < WORDS; i += COLUMNS) {
        for (size_t c = 0; c < 4; c++) {
            uint32x4_t x = vreinterpretq_u32_u8(vld1q_u8(page + 8 * i + 16 * c));
            uint32x4_t one = vaddq_u32(x, vreinterpretq_u32_u64(vld1q_u64(k + i + 2 * c)));
            uint32x4_t two = vaddq_u32(x, vreinterpretq_u32_u64(vld1q_u64(k + i + COLUMNS + 2 * c)));
            uint64x2_t wide = vreinterpretq_u64_u32(one), wider = vreinterpretq_u64_u32(two);
            a[c] = vmlal_u32(a[c], vmovn_u64(wide), vshrn_n_u64(wide, 32));
            b[c] = vmlal_u32(b[c], vmovn_u64(wider), vshrn_n_u64(wider, 32));
        }
    }
    for (size_t c = 0; c < 4; c++) {
        vst1q_u64(out + 2 * c, a[c]);
        vst1q_u64(out + COLUMNS + 2 * c, b[c]);
    }
}

static size_t same_neon(const uint8_t *a, const uint8_t *b, size_t n)
{
    for (size_t page = 0; page < n; page++, a += NOVA_PAGE, b += NOVA_PAGE) {
        uint8x16_t one = vdupq_n_u8(0), two = one;
        for (size_t at = 0; at < NOVA_PAGE; at += 32) {
            one = vorrq_u8(one, veorq_u8(vld1q_u8(a + at), vld1q_u8(b + at)));
            two = vorrq_u8(two, veorq_u8(vld1q_u8(a + at + 16), vld1q_u8(b + at + 16)));
        }
        if (vmaxvq_u8(vorrq_u8(one, two)))
            return page;
    }
    return n;
}
#endif

size_t nova_pages_same(const uint8_t *a, const uint8_t *b, size_t n)
{
#ifdef NOVA_HAS_INTRINSICS
    if (nova_has_avx512())
        return same_avx512(a, b, n);
    if (nova_has_avx2())
        return same_avx2(a, b, n);
#elif defined(__aarch64__)
    if (nova_has_neon())
        return same_neon(a, b, n);
#endif
    return same_plain(a, b, n);
}

int nova_page_is_zero(const uint8_t *page)
{
    static const uint8_t zeros[NOVA_PAGE];
    uint64_t first;
    memcpy(&first, page, 8);
    return !first && nova_pages_same(page, zeros, 1);
}

unsigned nova_page_differences(const uint8_t *a, const uint8_t *b, uint64_t masks[NOVA_LINES])
{
#ifdef NOVA_HAS_INTRINSICS
    if (nova_has_avx512())
        return differences_avx512(a, b, masks);
    if (nova_has_avx2())
        return differences_avx2(a, b, masks);
#endif
    return differences_plain(a, b, masks);
}

size_t nova_page_gather(const uint8_t *page, const uint64_t masks[NOVA_LINES], uint8_t *out)
{
#ifdef NOVA_HAS_INTRINSICS
    if (nova_has_avx2())
        return gather_bmi2(page, masks, out);
#endif
    return gather_plain(page, masks, out);
}

void nova_page_scatter(uint8_t *page, const uint64_t masks[NOVA_LINES], const uint8_t *bytes)
{
    scatter_plain(page, masks, bytes);
}

nova_digest nova_page_digest(const uint8_t *page)
{
    uint64_t sums[2 * COLUMNS];
#ifdef NOVA_HAS_INTRINSICS
    if (nova_has_avx512())
        sums_avx512(page, sums);
    else if (nova_has_avx2())
        sums_avx2(page, sums);
    else
        sums_plain(page, sums);
#elif defined(__aarch64__)
    if (nova_has_neon())
        sums_neon(page, sums);
    else
        sums_plain(page, sums);
#else
    sums_plain(page, sums);
#endif
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    for (size_t i = 0; i < 2 * COLUMNS; i++)
        nova_store64le(&sums[i], sums[i]);
#endif
    return nova_digest_bytes(sums, sizeof sums, NOVA_PAGE);
}

nova_digest nova_page_share(nova_digest page, uint64_t index)
{
    /* An odd factor is a permutation; two pages that change places change the sum by twice their difference and theirs. */
    uint64_t factor = 2 * index + 1;
    unsigned __int128 low = (unsigned __int128)page.lo * factor;
    nova_digest out = {(uint64_t)low, (uint64_t)(low >> 64) + page.hi * factor};
    return out;
}

void nova_image_digests(const nova_image *image, nova_digest *digests, nova_digest *sum)
{
    uint8_t room[NOVA_PAGE];
    size_t pages = nova_pages_in(image->size);
    nova_digest total = {0, 0};
    for (size_t i = 0; i < pages; i++) {
        digests[i] = nova_page_digest(nova_image_page(image, i, room));
        total = nova_digest_add(total, nova_page_share(digests[i], i));
    }
    *sum = total;
}

nova_digest nova_image_identity(nova_digest sum, uint64_t size)
{
    uint8_t raw[24];
    nova_store64le(raw, sum.lo);
    nova_store64le(raw + 8, sum.hi);
    nova_store64le(raw + 16, size);
    return nova_digest_bytes(raw, sizeof raw, NOVA_PAGE + 1);
}
