#include "ottext.h"

#define NOWHERE UINT32_MAX /* the source of a skip over text that no piece names */

/* Hands an operation out in parts. */
typedef struct {
    const nova_ottext_piece *at, *end;
    uint32_t index, taken;
} reader;

static reader reader_of(const nova_ottext_piece *op, size_t n)
{
    return (reader){op, op + n, 0, 0};
}

/* The next part, of at most size code points unless its kind is to stay whole. After the end there is text to skip. */
static nova_ottext_piece take(reader *r, uint32_t size, nova_ottext_kind whole)
{
    if (r->at == r->end)
        return (nova_ottext_piece){NOVA_SKIP, NOWHERE, 0, size};
    uint32_t rest = r->at->size - r->taken;
    if (rest < size || r->at->kind == (uint32_t)whole)
        size = rest;
    nova_ottext_piece part = {r->at->kind, r->index, r->taken, size};
    r->taken += size;
    if (size == rest)
        r->at++, r->index++, r->taken = 0;
    return part;
}

static size_t copy_rest(reader *r, nova_ottext_piece *out)
{
    size_t n = 0;
    while (r->at < r->end)
        out[n++] = take(r, UINT32_MAX, NOVA_SKIP);
    return n;
}

size_t nova_ottext_transform(const nova_ottext_piece *first, size_t nfirst, const nova_ottext_piece *second,
                             size_t nsecond, int left, nova_ottext_piece *out)
{
    reader walk = reader_of(first, nfirst);
    size_t n = 0;
    for (const nova_ottext_piece *other = second; other < second + nsecond; other++) {
        if (other->kind == NOVA_INSERT) {
            while (left && walk.at < walk.end && walk.at->kind == NOVA_INSERT)
                out[n++] = take(&walk, 0, NOVA_INSERT);
            out[n++] = (nova_ottext_piece){NOVA_SKIP, NOWHERE, 0, other->size};
            continue;
        }
        for (uint32_t rest = other->size; rest;) {
            nova_ottext_piece part = take(&walk, rest, NOVA_INSERT);
            if (part.kind == NOVA_INSERT || other->kind == NOVA_SKIP)
                out[n++] = part;
            if (part.kind != NOVA_INSERT)
                rest -= part.size;
        }
    }
    return n + copy_rest(&walk, out + n);
}

size_t nova_ottext_compose(const nova_ottext_piece *first, size_t nfirst, const nova_ottext_piece *second,
                           size_t nsecond, nova_ottext_piece *out)
{
    reader walk = reader_of(first, nfirst);
    size_t n = 0;
    for (size_t i = 0; i < nsecond; i++) {
        const nova_ottext_piece *next = second + i;
        uint32_t source = (uint32_t)(nfirst + i);
        if (next->kind == NOVA_INSERT) {
            out[n++] = (nova_ottext_piece){NOVA_INSERT, source, 0, next->size};
            continue;
        }
        for (uint32_t rest = next->size; rest;) {
            nova_ottext_piece part = take(&walk, rest, NOVA_DELETE);
            if (part.kind == NOVA_DELETE) { /* first deleted it: second never saw it */
                out[n++] = part;
                continue;
            }
            if (next->kind == NOVA_SKIP)
                out[n++] = part;
            else if (part.kind == NOVA_SKIP) /* what first inserted and second deletes leaves no trace */
                out[n++] = (nova_ottext_piece){NOVA_DELETE, source, next->size - rest, part.size};
            rest -= part.size;
        }
    }
    return n + copy_rest(&walk, out + n);
}
