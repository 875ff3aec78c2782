/* tests/fuzz/targets/ottext.c - any two text operations on a text of which every code point is told apart.
 *
 * Each byte is a piece: its kind, whose it is, and its size. Both orders of application must end in one text (TP1), and
 * what two operations compose to must do what they do one after the other. */
#include "ottext.h"
#include "fuzz.h"

enum { PIECES_MAX = 48, SIZE_MAX_ = 8, TEXT = PIECES_MAX * SIZE_MAX_, ROOM = 4 * TEXT };

typedef struct {
    nova_ottext_piece at[4 * PIECES_MAX];
    size_t n;
} op;

typedef struct {
    uint32_t at[ROOM];
    size_t n;
} text;

/* What a piece of an operation inserts: whose (1 or 2), of which piece, which code point. */
static uint32_t letter(uint32_t whose, uint32_t source, uint32_t start)
{
    return whose << 28 | source << 8 | start;
}

/* The text after an operation whose pieces come from `first` if their source is below nfirst, else from a second one;
 * `whose` is who wrote the first. */
static void apply(const text *before, const op *o, uint32_t whose, size_t nfirst, text *after)
{
    size_t from = 0;
    after->n = 0;
    for (size_t i = 0; i < o->n; i++) {
        const nova_ottext_piece *p = o->at + i;
        REQUIRE(p->size > 0 && p->kind <= NOVA_DELETE);
        if (p->kind == NOVA_INSERT) {
            uint32_t writer = p->source < nfirst ? whose : whose + 1,
                     source = p->source - (writer > whose ? nfirst : 0);
            for (uint32_t k = 0; k < p->size; k++)
                after->at[after->n++] = letter(writer, source, p->start + k);
            continue;
        }
        REQUIRE(p->size <= before->n - from); /* nobody reaches behind the end */
        if (p->kind == NOVA_SKIP) {
            memcpy(after->at + after->n, before->at + from, p->size * sizeof *after->at);
            after->n += p->size;
        }
        from += p->size;
    }
    memcpy(after->at + after->n, before->at + from, (before->n - from) * sizeof *after->at);
    after->n += before->n - from;
}

static int same(const text *a, const text *b)
{
    return a->n == b->n && !memcmp(a->at, b->at, a->n * sizeof *a->at);
}

static void add(op *o, uint32_t kind, uint32_t size)
{
    if (o->n < PIECES_MAX)
        o->at[o->n] = (nova_ottext_piece){kind, (uint32_t)o->n, 0, size}, o->n++;
}

/* Pieces one after the other, none of them longer than the text has left. */
static void read(const uint8_t *data, size_t size, int bit, size_t length, op *o)
{
    o->n = 0;
    for (size_t i = 0; i < size; i++) {
        uint32_t kind = data[i] % 3, many = 1 + (data[i] >> 4) % SIZE_MAX_;
        if ((data[i] >> 7) != bit)
            continue;
        if (kind != NOVA_INSERT) {
            many = many < length ? many : (uint32_t)length;
            length -= many;
        }
        if (many)
            add(o, kind, many);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static op a, b, a_after, b_after, both;
    static text base, one, other, left, right;
    if (!size)
        return 0;
    base.n = data[0] % TEXT;
    for (uint32_t i = 0; i < base.n; i++)
        base.at[i] = i;
    read(data + 1, size - 1, 0, base.n, &a);
    read(data + 1, size - 1, 1, base.n, &b);

    a_after.n = nova_ottext_transform(a.at, a.n, b.at, b.n, 1, a_after.at);
    b_after.n = nova_ottext_transform(b.at, b.n, a.at, a.n, 0, b_after.at);
    REQUIRE(a_after.n <= 2 * (a.n + b.n) && b_after.n <= 2 * (a.n + b.n));
    apply(&base, &a, 1, a.n, &one);
    apply(&one, &b_after, 2, b.n, &left);
    apply(&base, &b, 2, b.n, &other);
    apply(&other, &a_after, 1, a.n, &right);
    REQUIRE(same(&left, &right));

    read(data + 1, size - 1, 1, one.n, &b); /* on what a made */
    apply(&one, &b, 2, b.n, &right);
    both.n = nova_ottext_compose(a.at, a.n, b.at, b.n, both.at);
    REQUIRE(both.n <= 2 * (a.n + b.n));
    apply(&base, &both, 1, a.n, &left);
    REQUIRE(same(&left, &right));
    return 0;
}
