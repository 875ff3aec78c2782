/* tests/fuzz/targets/images.c - frames of a delta from a stranger, and images that go there and back.
 *
 * Tokens that pass the check are applied, to a whole image and page by page, and both agree in every byte and in the
 * digest. Any two images give a delta that makes the second of the first one. */
#include <dlfcn.h>

#include "delta.h"
#include "entropy.h"
#include "fuzz.h"

enum { PAGES_MAX = 24 };

static nova_digest digests[PAGES_MAX], seen_digests[PAGES_MAX];
static uint8_t tokens[NOVA_DELTA_TOKENS], literals[NOVA_DELTA_LITERALS];
static uint8_t out[PAGES_MAX * NOVA_PAGE], again[PAGES_MAX * NOVA_PAGE];
static nova_seen_page seen[NOVA_SEEN];
static uint32_t slots[64], *blocks;

/* As nova/_native/delta.pyx does: without the library compressed streams are refused. */
static void find_zstd(void)
{
    void *functions[NOVA_ZSTD_FUNCTIONS], *library = dlopen("libzstd.so.1", RTLD_NOW);
    for (int i = 0; library && i < NOVA_ZSTD_FUNCTIONS; i++)
        REQUIRE(functions[i] = dlsym(library, nova_zstd_names[i]));
    if (library)
        nova_zstd_bind(functions);
}

/* One stream of a frame; NULL: it is not what it says. */
static const uint8_t *unpack(unsigned method, const nova_image *base, const nova_delta_frame *f, const uint8_t *stored,
                             size_t n, uint8_t *room, size_t raw)
{
    static nova_zstd_dctx *context;
    if (method == NOVA_STORED)
        return stored;
    if (!context && !(context = nova_zstd_decompressor()))
        return NULL;
    int prefixed = method == NOVA_PREFIXED;
    return nova_zstd_decompress(context, prefixed ? base->bytes + f->prefix_at : NULL, f->prefix_bytes, stored, n, room,
                                raw)
               ? room
               : NULL;
}

static void start(nova_delta_reader *r, const nova_image *base, nova_digest sum, uint64_t size)
{
    memset(r, 0, sizeof *r);
    r->base = *base;
    r->digests = digests;
    r->sum = sum;
    r->size = size;
}

/* Frames made of data; 1 if all of them are sound. */
static int apply(const nova_image *base, nova_digest sum, uint64_t size, const uint8_t *frames, size_t n,
                 nova_digest *result)
{
    nova_delta_span span = {.base_size = base->size, .size = size, .frames = frames, .frames_bytes = n};
    nova_delta_reader dry, whole, staged;
    static uint8_t stage[PAGES_MAX * NOVA_PAGE];
    static nova_fresh_page fresh[PAGES_MAX];
    size_t at = 0;
    start(&dry, base, sum, size);
    start(&whole, base, sum, size);
    start(&staged, base, sum, size);
    whole.out = out;
    staged.stage = stage, staged.staged = fresh, staged.stage_room = PAGES_MAX;
    nova_delta_read_begin(&whole);
    nova_delta_read_begin(&staged);
    while (at < n) {
        nova_delta_frame f;
        if (nova_delta_read_frame(&span, &at, &f))
            return 0;
        const uint8_t *t = unpack(f.methods & 3, base, &f, f.tokens, f.tokens_stored, tokens, f.tokens_raw);
        const uint8_t *l = unpack(f.methods >> 2, base, &f, f.literals, f.literals_stored, literals, f.literals_raw);
        if (!t || !l || nova_delta_check(&dry, t, f.tokens_raw, l, f.literals_raw, f.pages))
            return 0;
        int said = nova_delta_apply(&whole, t, f.tokens_raw, l, f.literals_raw, f.pages);
        REQUIRE(said == nova_delta_apply(&staged, t, f.tokens_raw, l, f.literals_raw, f.pages));
        if (said) { /* only a last page that is cut is looked at as late as that */
            REQUIRE(said == NOVA_DELTA_E_TOKEN && size % NOVA_PAGE && size < base->size);
            return 0;
        }
    }
    int said = nova_delta_read_end(&whole);
    REQUIRE(said == nova_delta_read_end(&staged));
    if (said)
        return 0;
    memset(again, 0xee, sizeof again);
    memcpy(again, base->bytes, base->size);
    nova_delta_commit(&staged, again);
    REQUIRE(!memcmp(out, again, size));
    REQUIRE(whole.sum.lo == staged.sum.lo && whole.sum.hi == staged.sum.hi);
    nova_image image = {out, size};
    nova_digest real;
    nova_image_digests(&image, seen_digests, &real);
    REQUIRE(whole.sum.lo == real.lo && whole.sum.hi == real.hi);
    *result = real;
    return 1;
}

static void there_and_back(const nova_image *base, nova_digest sum, const nova_image *image, int with_blocks)
{
    static uint8_t frames[NOVA_DELTA_LITERALS];
    nova_delta_writer w = {.base = *base, .image = *image, .digests = digests, .sum = sum, .seen = seen};
    nova_digest result;
    int said;
    memset(seen, 0, sizeof seen);
    w.tokens = tokens;
    w.literals = literals;
    w.no_blocks = !with_blocks;
    nova_delta_begin(&w);
    while ((said = nova_delta_write(&w)) != NOVA_WRITE_END) {
        REQUIRE(said == NOVA_WRITE_INDEX || said == NOVA_WRITE_BLOCKS);
        if (said == NOVA_WRITE_INDEX) {
            nova_delta_index(digests, nova_pages_in(base->size), slots, 64);
            w.index = slots, w.index_slots = 64;
        } else {
            if (!blocks)
                blocks = malloc(sizeof *blocks << NOVA_DELTA_BLOCK_BITS);
            nova_delta_index_blocks(base, blocks);
            w.blocks = blocks;
        }
    }
    nova_delta_frame f = {.pages = nova_delta_cut(&w, 1)};
    f.tokens_raw = f.tokens_stored = w.tokens_used;
    f.literals_raw = f.literals_stored = w.literals_used;
    size_t n = 0;
    if (f.pages) {
        n = nova_delta_put_frame(frames, &f);
        memcpy(frames + n, tokens, w.tokens_used);
        memcpy(frames + n + w.tokens_used, literals, w.literals_used);
        n += w.tokens_used + w.literals_used;
    }
    REQUIRE(apply(base, sum, image->size, frames, n, &result));
    REQUIRE(!memcmp(out, image->bytes, image->size));
    REQUIRE(result.lo == w.sum.lo && result.hi == w.sum.hi);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static uint8_t old[PAGES_MAX * NOVA_PAGE], new[PAGES_MAX * NOVA_PAGE];
    static int sought;
    if (!sought++)
        find_zstd();
    if (size < 5)
        return 0;
    /* The base is 0 to 7 pages and something, made of the head; so is the image. */
    nova_image base = {old, (size_t)(data[1] % 8) * NOVA_PAGE + data[2] * 16u};
    size_t image_size = (size_t)(data[3] % 16) * NOVA_PAGE + data[4] * 16u;
    nova_digest sum, result;
    for (size_t i = 0; i < base.size; i++)
        old[i] = (uint8_t)(i >> 12 ^ i * 7 ^ i >> 5);
    nova_image_digests(&base, digests, &sum);
    if (data[0] & 1) {
        /* What follows are edits: where, how long, and a byte to write there or a distance to copy from. */
        memcpy(new, old, sizeof new);
        for (const uint8_t *e = data + 5; e + 5 <= data + size; e += 5) {
            size_t at = (e[0] | (size_t)e[1] << 8 | (size_t)(e[4] & 1) << 16) % sizeof new, n = 1u << (e[2] % 13);
            n = n < sizeof new - at ? n : sizeof new - at;
            if (e[4] & 2)
                memmove(new + at, new + e[3] * 16u, n < sizeof new - e[3] * 16u ? n : 0);
            else
                memset(new + at, e[3], n);
        }
        nova_image image = {new, image_size};
        there_and_back(&base, sum, &image, (data[0] & 0x70) == 0x70);
    } else {
        apply(&base, sum, image_size, data + 5, size - 5, &result);
    }
    return 0;
}
