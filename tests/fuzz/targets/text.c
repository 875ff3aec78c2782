/* tests/fuzz/targets/text.c - where any two sequences differ.
 *
 * The first byte says how many different numbers there are, the second where the first sequence ends. What neither side
 * flags is the same on both, and never longer than their longest common subsequence; equal sequences have no flags; and
 * both directions are asked. */
#include "text.h"
#include "fuzz.h"

enum { LENGTH_MAX = 4096, SHORT = 64 };

/* Length of the longest common subsequence, by the definition. */
static size_t common(const uint32_t *a, size_t na, const uint32_t *b, size_t nb)
{
    static size_t best[SHORT + 1][SHORT + 1];
    for (size_t i = 0; i <= na; i++)
        for (size_t j = 0; j <= nb; j++) {
            size_t skipped = i && j ? (best[i - 1][j] > best[i][j - 1] ? best[i - 1][j] : best[i][j - 1]) : 0;
            best[i][j] = i && j && a[i - 1] == b[j - 1] ? best[i - 1][j - 1] + 1 : skipped;
        }
    return best[na][nb];
}

/* Compare in blocks of exactly the size that is asked for; how many of a stay. */
static size_t kept(const uint32_t *a, size_t na, const uint32_t *b, size_t nb, size_t distinct)
{
    uint8_t *gone = malloc(na + 1), *come = malloc(nb + 1);
    void *scratch = malloc(nova_text_scratch_bytes(na, nb, distinct));
    memset(gone, 0xAA, na + 1), memset(come, 0xAA, nb + 1);
    nova_text_diff(a, na, b, nb, distinct, gone, come, scratch);
    REQUIRE(!gone[na] && !come[nb]);
    size_t i = 0, j = 0, stay = 0;
    for (;; i++, j++, stay++) {
        for (; i < na && gone[i]; i++)
            REQUIRE(gone[i] == 1);
        for (; j < nb && come[j]; j++)
            REQUIRE(come[j] == 1);
        if (i == na || j == nb)
            break;
        REQUIRE(a[i] == b[j]);
    }
    REQUIRE(i == na && j == nb);
    free(gone), free(come), free(scratch);
    return stay;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static uint32_t items[LENGTH_MAX];
    if (size < 2 || size - 2 > LENGTH_MAX)
        return 0;
    size_t n = size - 2, distinct = 1 + data[0], na = n * data[1] / 255;
    for (size_t i = 0; i < n; i++)
        items[i] = data[i + 2] % distinct;
    const uint32_t *a = items, *b = items + na;
    size_t nb = n - na, stay = kept(a, na, b, nb, distinct);
    if (na <= SHORT && nb <= SHORT)
        REQUIRE(stay <= common(a, na, b, nb));
    if (na == nb && !memcmp(a, b, na * sizeof *a))
        REQUIRE(stay == na);
    REQUIRE(kept(a, na, a, na, distinct) == na);
    kept(b, nb, a, na, distinct);
    return 0;
}
