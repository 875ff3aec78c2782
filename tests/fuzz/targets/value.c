/* tests/fuzz/targets/value.c - nova_value_check on any bytes.
 *
 * What passes is whole: no part of it from the front passes, nor it with a byte more. Mending changes nothing that
 * passes unmended, and what passes mended then passes unmended. */
#include "crdt.h"
#include "fuzz.h"

/* On a block of exactly n bytes, so that a read behind its end is seen. */
static int check(const uint8_t *data, size_t n, int mend, uint8_t *after)
{
    uint8_t *own = malloc(n ? n : 1);
    memcpy(own, data, n);
    int result = nova_value_check(own, n, mend);
    if (after)
        memcpy(after, own, n);
    else
        REQUIRE(!memcmp(own, data, n));
    free(own);
    return result;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    uint8_t *mended = malloc(size + 1);
    int plain = check(data, size, 0, NULL), result = check(data, size, 1, mended);
    REQUIRE(plain == result || plain == NOVA_EVALUE_SPELLING);
    if (result >= 0) {
        REQUIRE(check(mended, size, 0, NULL) == result);
        if (plain >= 0)
            REQUIRE(!memcmp(mended, data, size));
        for (size_t n = size > 64 ? size - 64 : 0; n < size; n++)
            REQUIRE(check(mended, n, 0, NULL) == NOVA_EVALUE_CUT);
        mended[size] = 0;
        REQUIRE(check(mended, size + 1, 0, NULL) == NOVA_EVALUE_CUT);
    }
    free(mended);
    return 0;
}
