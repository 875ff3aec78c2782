/* csrc/delta_read.c - makes pages of tokens and literals. */
#include <string.h>

#include "bytes.h"
#include "delta.h"
#include "simd.h"

enum { HEAD_COUNT = 32 };

void nova_delta_read_begin(nova_delta_reader *r)
{
    for (size_t i = nova_pages_in(r->size), n = nova_pages_in(r->base.size); i < n; i++)
        r->sum = nova_digest_sub(r->sum, nova_page_share(r->digests[i], i));
}

static const uint8_t *base_page(const nova_delta_reader *r, uint64_t i, uint8_t *room)
{
    return nova_image_page(&r->base, (size_t)i, room);
}

/* Where page i of the new image is made; the last one of a size that is no multiple is made in `room`. */
static uint8_t *place(nova_delta_reader *r, uint8_t *room)
{
    if (!r->out)
        return r->stage + r->stage_used * NOVA_PAGE;
    return (r->page + 1) * (uint64_t)NOVA_PAGE <= r->size ? r->out + r->page * NOVA_PAGE : room;
}

/* The page is made: keep its digest, and where it belongs. */
static void placed(nova_delta_reader *r, uint8_t *page)
{
    uint64_t begin = r->page * (uint64_t)NOVA_PAGE, left = r->size - begin;
    if (left < NOVA_PAGE)
        memset(page + left, 0, NOVA_PAGE - left);
    nova_digest digest = nova_page_digest(page);
    r->sum = nova_digest_add(r->sum, nova_page_share(digest, r->page));
    if (!r->out)
        r->staged[r->stage_used++] = (nova_fresh_page){r->page, digest};
    else if (left < NOVA_PAGE)
        memcpy(r->out + begin, page, left);
    r->page++;
}

/* Leave the present page of the base: its share goes out of the sum. Where the bytes are at hand they must be those that
 * the digest was taken of. */
static int leave(nova_delta_reader *r, uint8_t *room)
{
    if (r->page >= nova_pages_in(r->base.size))
        return 0;
    nova_digest known = r->digests[r->page], now = nova_page_digest(base_page(r, r->page, room));
    if (known.lo != now.lo || known.hi != now.hi)
        return NOVA_DELTA_E_BASE;
    r->sum = nova_digest_sub(r->sum, nova_page_share(known, r->page));
    return 0;
}

/* Is the last page, which the image ends in, as in the base, where the base goes on? Then zeros go on. */
static int ends_alike(const nova_delta_reader *r)
{
    uint64_t stop = nova_pages_in(r->size) * (uint64_t)NOVA_PAGE;
    for (uint64_t i = r->size; i < stop && i < r->base.size; i++) {
        if (r->base.bytes[i])
            return 0;
    }
    return 1;
}

/* n pages as in the base. */
static int same(nova_delta_reader *r, uint64_t n)
{
    uint64_t end = r->page + n, known = nova_pages_in(r->base.size);
    if (!n) /* behind a last page that is not whole there is nothing, not even a negative rest of it */
        return 0;
    if (end * NOVA_PAGE > r->size && !ends_alike(r))
        return NOVA_DELTA_E_TOKEN;
    if (r->out) {
        uint64_t at = r->page * (uint64_t)NOVA_PAGE, stop = end * NOVA_PAGE < r->size ? end * NOVA_PAGE : r->size;
        uint64_t have = at >= r->base.size ? 0 : (stop < r->base.size ? stop : r->base.size) - at;
        if (have)
            memcpy(r->out + at, r->base.bytes + at, have);
        memset(r->out + at + have, 0, stop - at - have);
    }
    if (end > known) {
        static const uint8_t zeros[NOVA_PAGE];
        nova_digest zero = nova_page_digest(zeros);
        for (uint64_t i = r->page > known ? r->page : known; i < end; i++)
            r->sum = nova_digest_add(r->sum, nova_page_share(zero, i));
    }
    r->page = (size_t)end;
    return 0;
}

/* The page so many before this one. */
static const uint8_t *earlier(const nova_delta_reader *r, uint64_t distance, uint8_t *room)
{
    uint64_t page = r->page - distance;
    if (r->out)
        return r->out + page * NOVA_PAGE;
    size_t low = 0, high = r->stage_used;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (r->staged[middle].page < page)
            low = middle + 1;
        else
            high = middle;
    }
    if (low < r->stage_used && r->staged[low].page == page)
        return r->stage + low * NOVA_PAGE;
    return base_page(r, page, room);
}

/* One page of RUNS. Counts literals; with a page also changes it. */
static inline NOVA_INLINE void take_runs(nova_reader *t, nova_reader *literals, uint8_t *page)
{
    uint64_t n = nova_take_number(t), at = 0;
    for (uint64_t i = 0; t->ok && i <= n; i++) {
        uint64_t gap = nova_take_number(t), length = nova_take_number(t);
        if (!t->ok || gap > NOVA_PAGE - at || length >= NOVA_PAGE - at - gap) {
            t->ok = 0;
            return;
        }
        const uint8_t *bytes = nova_take(literals, ++length);
        if (!bytes)
            return;
        if (page)
            memcpy(page + at + gap, bytes, length);
        at += gap + length;
        if (at == NOVA_PAGE && i < n)
            t->ok = 0;
    }
}

static inline NOVA_INLINE void take_bitmap(nova_reader *t, nova_reader *literals, uint8_t *page)
{
    uint64_t masks[NOVA_LINES];
    const uint8_t *raw = nova_take(t, 8);
    if (!raw)
        return;
    uint64_t lines = nova_load64le(raw), count = 0;
    for (unsigned line = 0; line < NOVA_LINES; line++) {
        masks[line] = 0;
        if (!(lines >> line & 1))
            continue;
        if (!(raw = nova_take(t, 8)))
            return;
        masks[line] = nova_load64le(raw);
        if (!masks[line])
            t->ok = 0;
        count += (unsigned)__builtin_popcountll(masks[line]);
    }
    const uint8_t *bytes = nova_take(literals, count);
    if (!bytes || !page || !t->ok)
        return;
    nova_page_scatter(page, masks, bytes);
}

static inline NOVA_INLINE void take_pieces(nova_delta_reader *r, nova_reader *t, nova_reader *literals, uint8_t *page)
{
    uint64_t n = nova_take_number(t), at = 0, begin = r->page * (uint64_t)NOVA_PAGE;
    for (uint64_t i = 0; t->ok && i <= n; i++) {
        uint64_t plain = nova_take_number(t), length = nova_take_number(t), zigzag = nova_take_number(t);
        if (!t->ok || plain > NOVA_PAGE - at || length >= NOVA_PAGE - at - plain) {
            t->ok = 0;
            return;
        }
        const uint8_t *bytes = nova_take(literals, plain);
        length++;
        r->shift = (int64_t)((uint64_t)r->shift + (zigzag >> 1 ^ -(zigzag & 1)));
        uint64_t from = begin + at + plain + (uint64_t)r->shift;
        if (!bytes || from >= r->base.size || length > r->base.size - from) {
            t->ok = 0;
            return;
        }
        if (page) {
            memcpy(page + at, bytes, plain);
            memcpy(page + at + plain, r->base.bytes + from, length);
        }
        at += plain + length;
    }
    const uint8_t *rest = nova_take(literals, NOVA_PAGE - at);
    if (page && rest)
        memcpy(page + at, rest, NOVA_PAGE - at);
}

/* Both passes: the first one, `dry`, finds what cannot be, so that the second one need not look for it. */
static inline NOVA_INLINE int take_frame(nova_delta_reader *r, nova_reader t, nova_reader literals, uint64_t pages,
                                         int dry)
{
    uint8_t room[NOVA_PAGE], made[NOVA_PAGE];
    uint64_t all = nova_pages_in(r->size), known = nova_pages_in(r->base.size);
    if (pages > all - r->page)
        return NOVA_DELTA_E_TOKEN;
    uint64_t end = r->page + pages;
    while (t.at < t.end) {
        uint8_t head = nova_take_byte(&t);
        uint64_t n = (head >> 3) + 1u, from = 0;
        unsigned kind = head & 7;
        if (n == HEAD_COUNT) {
            n = nova_take_number(&t);
            if (n > UINT64_MAX - HEAD_COUNT)
                return NOVA_DELTA_E_TOKEN;
            n += HEAD_COUNT;
        }
        if (!t.ok || n > end - r->page)
            return NOVA_DELTA_E_TOKEN;
        if (kind == NOVA_COPY) {
            uint64_t zigzag = nova_take_number(&t);
            from = (r->copied ? r->copy_next : r->page) + (zigzag >> 1 ^ -(zigzag & 1));
            if (!t.ok || from >= known || n > known - from)
                return NOVA_DELTA_E_TOKEN;
            r->copied = 1;
            r->copy_next = from + n;
        } else if (kind == NOVA_AGAIN) {
            from = nova_take_number(&t);
            if (!t.ok || !from || from > r->page)
                return NOVA_DELTA_E_TOKEN;
        }
        r->pages_of[kind] += n;
        if (kind == NOVA_SAME) {
            if (dry)
                r->page += n;
            else if (same(r, n))
                return NOVA_DELTA_E_TOKEN;
            continue;
        }
        if (dry && kind < NOVA_RUNS) {
            if (kind == NOVA_RAW && (n > NOVA_DELTA_LITERALS / NOVA_PAGE || !nova_take(&literals, n * NOVA_PAGE)))
                return NOVA_DELTA_E_TOKEN;
            r->touched += n;
            r->page += n;
            continue;
        }
        for (uint64_t i = 0; i < n; i++) {
            uint8_t *page = NULL;
            if (!dry) {
                if (!r->out && r->stage_used == r->stage_room)
                    return NOVA_DELTA_E_ROOM;
                if (leave(r, room))
                    return NOVA_DELTA_E_BASE;
                page = place(r, made);
            }
            if (kind == NOVA_PIECES) {
                take_pieces(r, &t, &literals, page);
            } else if (kind == NOVA_RUNS || kind == NOVA_BITMAP) {
                if (!dry)
                    memcpy(page, base_page(r, r->page, room), NOVA_PAGE);
                if (kind == NOVA_RUNS)
                    take_runs(&t, &literals, page);
                else
                    take_bitmap(&t, &literals, page);
            } else if (!dry) {
                static const uint8_t zeros[NOVA_PAGE];
                const uint8_t *from_where = kind == NOVA_ZERO    ? zeros
                                            : kind == NOVA_COPY  ? base_page(r, from + i, room)
                                            : kind == NOVA_AGAIN ? earlier(r, from, room)
                                                                 : nova_take(&literals, NOVA_PAGE);
                if (from_where)
                    memcpy(page, from_where, NOVA_PAGE);
            }
            if (!t.ok || !literals.ok)
                return NOVA_DELTA_E_TOKEN;
            if (dry) {
                r->touched++;
                r->page++;
            } else {
                placed(r, page);
            }
        }
    }
    return r->page != end || literals.at != literals.end ? NOVA_DELTA_E_TOKEN : 0;
}

int nova_delta_check(nova_delta_reader *r, const uint8_t *tokens, size_t tokens_bytes, const uint8_t *literals,
                     size_t literals_bytes, uint64_t pages)
{
    return take_frame(r, nova_reader_of(tokens, tokens_bytes), nova_reader_of(literals, literals_bytes), pages, 1);
}

int nova_delta_apply(nova_delta_reader *r, const uint8_t *tokens, size_t tokens_bytes, const uint8_t *literals,
                     size_t literals_bytes, uint64_t pages)
{
    return take_frame(r, nova_reader_of(tokens, tokens_bytes), nova_reader_of(literals, literals_bytes), pages, 0);
}

int nova_delta_read_end(nova_delta_reader *r)
{
    return same(r, nova_pages_in(r->size) - r->page);
}

void nova_delta_commit(const nova_delta_reader *r, uint8_t *image)
{
    if (r->size > r->base.size) /* what SAME pages behind the end of the base are */
        memset(image + r->base.size, 0, r->size - r->base.size);
    for (size_t i = 0; i < r->stage_used; i++) {
        uint64_t begin = r->staged[i].page * NOVA_PAGE, left = r->size - begin;
        memcpy(image + begin, r->stage + i * NOVA_PAGE, left < NOVA_PAGE ? left : NOVA_PAGE);
    }
}
