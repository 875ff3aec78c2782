/* tests/fuzz/targets/sketch.c - sketches and cells from strangers.
 *
 * The first byte is a mode. 0: ten words, as they came; else: cells, of which the second byte says how many, with as many
 * ids put in as fit (one side's or the other's by the id's last bit) and what is left of the input xored over them.
 * Whatever decodes gives ids that make the very same words or cells again. */
#include "sketch.h"
#include "fuzz.h"

enum { CELLS_MAX = 600 };
static const uint64_t SEED = 5;

static void check_words(nova_reader r)
{
    uint64_t words[NOVA_SKETCH_WORDS] = {0}, again[NOVA_SKETCH_WORDS] = {0}, ids[NOVA_SKETCH_WORDS];
    const uint8_t *at;
    if (nova_left(&r) == 8 * NOVA_SKETCH_WORDS) {
        for (int i = 0; i < NOVA_SKETCH_WORDS; i++)
            words[i] = nova_load64le(nova_take(&r, 8));
    } else { /* ids, at most twice as many as can be found */
        for (int i = 0; i < 2 * NOVA_SKETCH_WORDS && (at = nova_take(&r, 8)); i++)
            if (nova_load64le(at))
                nova_sketch_toggle(words, nova_load64le(at));
    }
    int n = nova_sketch_decode(words, ids);
    REQUIRE(n >= -1 && n <= NOVA_SKETCH_WORDS);
    for (int i = 0; i < n; i++) {
        REQUIRE(ids[i]);
        for (int j = 0; j < i; j++)
            REQUIRE(ids[i] != ids[j]);
        nova_sketch_toggle(again, ids[i]);
    }
    if (n >= 0)
        REQUIRE(!memcmp(words, again, sizeof words));
}

static void check_cells(nova_reader r)
{
    size_t n = 1 + nova_take_byte(&r) * (CELLS_MAX - 1) / 255, count = nova_take_byte(&r), plus, minus;
    nova_cell *cells = calloc(n, sizeof *cells), *again = calloc(n, sizeof *cells), *taken = malloc(n * sizeof *cells);
    uint32_t *stack = malloc(n * sizeof *stack);
    uint64_t *out = malloc(n * sizeof *out);
    const uint8_t *at;
    for (; count && (at = nova_take(&r, 8)); count--)
        nova_cells_toggle(cells, n, SEED, nova_load64le(at), nova_load64le(at) & 1 ? 1 : UINT32_MAX);
    r.ok = 1;
    for (size_t i = 0; i < n && (at = nova_take(&r, NOVA_CELL_WIRE)); i++) {
        cells[i].ids ^= nova_load64le(at);
        cells[i].checks ^= (uint32_t)nova_load_tail(at + 8, 4);
        cells[i].count ^= at[12];
    }
    memcpy(taken, cells, n * sizeof *cells);
    int whole = nova_cells_decode(taken, n, SEED, stack, out, &plus, &minus);
    REQUIRE((whole == 0 || whole == 1) && plus <= n && minus <= n - plus);
    if (whole) {
        for (size_t i = 0; i < plus; i++)
            nova_cells_toggle(again, n, SEED, out[i], 1);
        for (size_t i = n - minus; i < n; i++)
            nova_cells_toggle(again, n, SEED, out[i], UINT32_MAX);
        for (size_t i = 0; i < n; i++)
            REQUIRE(again[i].ids == cells[i].ids && again[i].checks == cells[i].checks &&
                    (uint8_t)again[i].count == (uint8_t)cells[i].count);
    }
    free(cells), free(again), free(taken), free(stack), free(out);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    nova_reader r = nova_reader_of(data, size);
    if (nova_take_byte(&r))
        check_cells(r);
    else
        check_words(r);
    return 0;
}
