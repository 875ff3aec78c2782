/* tests/fuzz/targets/pack.c - packed text from strangers, and anything packed by us.
 *
 * The first two bytes are the size that the rest is said to unpack to. */
#include "pack.h"
#include "fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 2)
        return 0;
    size_t room = (size_t)data[0] | (size_t)data[1] << 8;
    uint8_t *out = malloc(room + 1), *fresh = malloc(size), *back = malloc(size);
    nova_unpack(data + 2, size - 2, out, room); /* whatever it says, it stays within its bounds */
    size_t n = nova_pack(data, size, fresh);
    REQUIRE(n < size && size <= n * NOVA_PACK_GAIN_MAX + (n ? 0 : size));
    REQUIRE(!n || (nova_unpack(fresh, n, back, size) == 0 && !memcmp(back, data, size)));
    REQUIRE(!n || nova_unpack(fresh, n, back, size - 1) == -1);
    free(out), free(fresh), free(back);
    return 0;
}
