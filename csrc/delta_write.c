/* csrc/delta_write.c - finds what differs and chooses a token for each page. */
#include <string.h>

#include "bytes.h"
#include "delta.h"

enum {
    JOIN = 1,       /* so many equal bytes between two runs cost less as literals than as a run of their own */
    RUNS_MAX = 160, /* beyond that a bitmap is smaller whatever the gaps */
    MOVED_MIN = 24, /* from so many changed bytes on it pays to look whether the page is another one */
    HEAVY = 256,    /* from so many bytes of tokens and literals on it pays to look for pieces */
    /* A page of which so much is new, in runs so long, is other content and no scatter of changes: as a whole it
     * compresses better than without what happened to stay. */
    MUCH = 1024,
    LONG_RUN = 2,
    ASK_SHARE = 256, /* a table of blocks is made when one of so many pages could use it */
    PAGE_TOKENS = 600,
    NEAR = 1, /* ranges ahead */
    FAR = 4,
    HEAD_COUNT = 32 /* pages that a token counts in its first byte */
};

typedef struct {
    uint16_t begin, end;
} run;

static void flush(nova_delta_writer *w)
{
    if (!w->pending_count)
        return;
    uint8_t *at = w->tokens + w->tokens_used;
    uint64_t n = w->pending_count;
    if (w->pending >= NOVA_RUNS) {
        w->tokens[w->head_at] = (uint8_t)(w->pending | (n - 1) << 3);
        w->pending_count = 0;
        return;
    }
    if (n < HEAD_COUNT) {
        *at++ = (uint8_t)(w->pending | (n - 1) << 3);
    } else {
        *at++ = (uint8_t)(w->pending | (HEAD_COUNT - 1) << 3);
        at += nova_put_number(at, n - HEAD_COUNT);
    }
    if (w->pending == NOVA_COPY) {
        int64_t distance = (int64_t)(w->pending_from - w->copy_next);
        at += nova_put_number(at, (uint64_t)distance << 1 ^ (uint64_t)(distance >> 63));
        w->copy_next = w->pending_from + n;
    } else if (w->pending == NOVA_AGAIN) {
        at += nova_put_number(at, w->pending_from);
    }
    w->tokens_used = (size_t)(at - w->tokens);
    w->pending_count = 0;
}

/* n pages of a kind; `from` says where COPY and AGAIN have them from. */
static void put(nova_delta_writer *w, nova_delta_kind kind, uint64_t n, uint64_t from)
{
    int body = kind >= NOVA_RUNS, first_copy = kind == NOVA_COPY && !w->pages_of[NOVA_COPY];
    w->pages_of[kind] += n;
    if (w->pending_count && w->pending == kind) {
        if (body                 ? w->pending_count < HEAD_COUNT - 1
            : kind == NOVA_COPY  ? from == w->pending_from + w->pending_count
            : kind == NOVA_AGAIN ? from == w->pending_from
                                 : 1) {
            w->pending_count += n;
            return;
        }
    }
    flush(w);
    w->pending = kind;
    w->pending_count = n;
    w->pending_from = from;
    if (first_copy)
        w->copy_next = w->page;
    if (body)
        w->head_at = w->tokens_used++;
}

/* Runs of differing bytes, as many as `room`; room + 1 if there are more. Gaps up to JOIN are taken in. */
static size_t find_runs(const uint64_t *masks, run *runs, size_t room)
{
    size_t count = 0;
    for (unsigned line = 0; line < NOVA_LINES; line++) {
        uint64_t mask = masks[line];
        while (mask) {
            unsigned begin = (unsigned)__builtin_ctzll(mask);
            uint64_t rest = ~(mask >> begin);
            unsigned length = rest ? (unsigned)__builtin_ctzll(rest) : 64;
            if (length > 64 - begin)
                length = 64 - begin;
            unsigned at = line * NOVA_LINE + begin;
            if (count && at - runs[count - 1].end <= JOIN) {
                runs[count - 1].end = (uint16_t)(at + length);
            } else {
                if (count == room)
                    return room + 1;
                runs[count].begin = (uint16_t)at;
                runs[count++].end = (uint16_t)(at + length);
            }
            mask = begin + length < 64 ? mask & ~0ull << (begin + length) : 0;
        }
    }
    return count;
}

static void put_runs(nova_delta_writer *w, const run *runs, size_t n, const uint8_t *new)
{
    put(w, NOVA_RUNS, 1, 0);
    uint8_t *at = w->tokens + w->tokens_used;
    size_t last = 0;
    at += nova_put_number(at, n - 1);
    for (size_t i = 0; i < n; i++) {
        size_t length = runs[i].end - runs[i].begin;
        at += nova_put_number(at, runs[i].begin - last);
        at += nova_put_number(at, length - 1);
        memcpy(w->literals + w->literals_used, new + runs[i].begin, length);
        w->literals_used += length;
        last = runs[i].end;
    }
    w->tokens_used = (size_t)(at - w->tokens);
}

static void put_bitmap(nova_delta_writer *w, const uint64_t *masks, const uint8_t *new)
{
    put(w, NOVA_BITMAP, 1, 0);
    uint8_t *at = w->tokens + w->tokens_used, *lines_at = at;
    uint64_t lines = 0;
    at += 8;
    for (unsigned line = 0; line < NOVA_LINES; line++) {
        if (masks[line]) {
            lines |= 1ull << line;
            nova_store64le(at, masks[line]);
            at += 8;
        }
    }
    nova_store64le(lines_at, lines);
    w->tokens_used = (size_t)(at - w->tokens);
    w->literals_used += nova_page_gather(new, masks, w->literals + w->literals_used);
}

static void put_pieces(nova_delta_writer *w, const nova_piece *pieces, size_t n, const uint8_t *new)
{
    put(w, NOVA_PIECES, 1, 0);
    uint8_t *at = w->tokens + w->tokens_used;
    size_t covered = 0;
    at += nova_put_number(at, n - 1);
    for (size_t i = 0; i < n; i++) {
        int64_t turn = pieces[i].shift - w->shift;
        at += nova_put_number(at, pieces[i].literals);
        at += nova_put_number(at, pieces[i].length - 1u);
        at += nova_put_number(at, (uint64_t)turn << 1 ^ (uint64_t)(turn >> 63));
        memcpy(w->literals + w->literals_used, new + covered, pieces[i].literals);
        w->literals_used += pieces[i].literals;
        covered += pieces[i].literals + pieces[i].length;
        w->shift = pieces[i].shift;
    }
    memcpy(w->literals + w->literals_used, new + covered, NOVA_PAGE - covered);
    w->literals_used += NOVA_PAGE - covered;
    w->tokens_used = (size_t)(at - w->tokens);
}

static void put_raw(nova_delta_writer *w, const uint8_t *new)
{
    put(w, NOVA_RAW, 1, 0);
    memcpy(w->literals + w->literals_used, new, NOVA_PAGE);
    w->literals_used += NOVA_PAGE;
    w->raw_in_frame++;
}

/* The page of the base with these bytes, or -1. */
static int64_t find_in_base(const nova_delta_writer *w, nova_digest digest, const uint8_t *new)
{
    uint8_t room[NOVA_PAGE];
    if (!w->index)
        return -1;
    for (size_t slot = digest.lo & (w->index_slots - 1); w->index[slot]; slot = (slot + 1) & (w->index_slots - 1)) {
        size_t page = w->index[slot] - 1;
        if (w->digests[page].lo == digest.lo && w->digests[page].hi == digest.hi)
            return nova_pages_same(nova_image_page(&w->base, page, room), new, 1) ? (int64_t)page : -1;
    }
    return -1;
}

/* How many pages before this one the image has the same bytes; 0: not found. Remembers this page. */
static uint64_t find_in_image(nova_delta_writer *w, nova_digest digest, const uint8_t *new)
{
    nova_seen_page *seen = &w->seen[digest.lo % NOVA_SEEN];
    uint64_t found = 0;
    if (seen->page && seen->low == digest.lo && nova_pages_same(w->image.bytes + (seen->page - 1) * NOVA_PAGE, new, 1))
        found = w->page - (seen->page - 1);
    /* The latest one: what repeats then does so at one distance, in one token. */
    seen->low = digest.lo;
    seen->page = w->page + 1;
    return found;
}

/* What a page costs as runs or as a bitmap, and how many runs it has. */
static size_t cost_of(const uint64_t *masks, unsigned differing, run *runs, size_t *n, int *as_runs)
{
    size_t runs_cost = NOVA_PAGE, bitmap_cost = 8 + differing;
    *n = find_runs(masks, runs, RUNS_MAX);
    if (*n <= RUNS_MAX) {
        runs_cost = 2;
        for (size_t k = 0; k < *n; k++) {
            unsigned gap = runs[k].begin - (k ? runs[k - 1].end : 0), length = runs[k].end - runs[k].begin;
            runs_cost += 2 + (gap > 127) + (length > 128) + length;
        }
    }
    for (size_t line = 0; line < NOVA_LINES; line++)
        bitmap_cost += masks[line] ? 8 : 0;
    *as_runs = runs_cost <= bitmap_cost;
    return *as_runs ? runs_cost : bitmap_cost;
}

/* Runs, however near they are to each other. */
static unsigned count_runs(const uint64_t *masks)
{
    unsigned count = 0;
    for (size_t line = 0; line < NOVA_LINES; line++)
        count += (unsigned)__builtin_popcountll(masks[line] & ~(masks[line] << 1));
    return count;
}

/* Is it worth while to look for pieces? Not where they were not found again and again: then only now and then. */
static int worth_trying(nova_delta_writer *w)
{
    return w->tried < 16 + 4 * w->won || w->heavy % 32 == 0;
}

/* A page that differs. 0, NOVA_WRITE_INDEX or NOVA_WRITE_BLOCKS before anything is done, or NOVA_DELTA_E_BASE. */
static int put_page(nova_delta_writer *w, const uint8_t *old, const uint8_t *new, nova_digest digest)
{
    size_t i = w->page, base_pages = nova_pages_in(w->base.size), n = 0, pieces_count = 0, literals = 0;
    uint64_t masks[NOVA_LINES];
    run runs[RUNS_MAX];
    nova_piece pieces[NOVA_DELTA_PIECES_MAX];
    int as_runs = 0, zero = nova_page_is_zero(new);
    unsigned differing = old && !zero ? nova_page_differences(old, new, masks) : NOVA_PAGE;
    size_t least = old && !zero ? cost_of(masks, differing, runs, &n, &as_runs) : NOVA_PAGE;
    int moved = !zero && differing >= MOVED_MIN;
    int64_t from = -1;
    uint64_t before = 0;
    if (moved && w->base.bytes && base_pages) {
        if (!w->index && !w->no_index)
            return NOVA_WRITE_INDEX;
        from = find_in_base(w, digest, new);
    }
    if (moved && from < 0 && least >= HEAVY && w->base.bytes && base_pages) {
        if (!w->blocks && !w->no_blocks && w->heavy >= nova_pages_in(w->image.size) / ASK_SHARE)
            return NOVA_WRITE_BLOCKS;
        if (w->blocks && worth_trying(w)) {
            pieces_count = nova_delta_pieces(&w->base, w->blocks, new, i * (uint64_t)NOVA_PAGE, w->shift, pieces,
                                             NOVA_DELTA_PIECES_MAX, &literals);
            if (6 * pieces_count + literals >= least)
                pieces_count = 0;
            w->tried++;
            w->won += pieces_count > 0;
        }
        w->heavy++;
    }
    if (i < base_pages) {
        nova_digest known = w->digests[i], now = old && !w->base_is_own ? nova_page_digest(old) : known;
        if (known.lo != now.lo || known.hi != now.hi)
            return NOVA_DELTA_E_BASE;
        w->sum = nova_digest_sub(w->sum, nova_page_share(known, i));
    }
    w->sum = nova_digest_add(w->sum, nova_page_share(digest, i));
    if (w->fresh)
        w->fresh[w->fresh_count++] = (nova_fresh_page){i, digest};
    if (moved && from < 0 && (i + 1) * NOVA_PAGE <= w->image.size)
        before = find_in_image(w, digest, new);
    if (zero)
        put(w, NOVA_ZERO, 1, 0);
    else if (from >= 0)
        put(w, NOVA_COPY, 1, (uint64_t)from);
    else if (before)
        put(w, NOVA_AGAIN, 1, before);
    else if (pieces_count)
        put_pieces(w, pieces, pieces_count, new);
    else if (least >= NOVA_PAGE * 7 / 8 || (differing >= MUCH && differing >= LONG_RUN * count_runs(masks)))
        put_raw(w, new);
    else if (as_runs)
        put_runs(w, runs, n, new);
    else
        put_bitmap(w, masks, new);
    w->page++;
    return 0;
}

/* Pages [w->page, end): those that are equal are passed over, the others get a token. */
static int write_pages(nova_delta_writer *w, size_t end)
{
    uint8_t old_room[NOVA_PAGE], new_room[NOVA_PAGE];
    size_t base_pages = nova_pages_in(w->base.size);
    size_t whole = w->base.size < w->image.size ? w->base.size / NOVA_PAGE : w->image.size / NOVA_PAGE;
    while (w->page < end) {
        if (NOVA_DELTA_TOKENS - w->tokens_used < PAGE_TOKENS || NOVA_DELTA_LITERALS - w->literals_used < NOVA_PAGE)
            return NOVA_WRITE_FULL;
        size_t i = w->page;
        int differs = 0;
        if (w->how != NOVA_BY_DIGEST && w->base.bytes && i < whole) {
            size_t most = (end < whole ? end : whole) - i;
            size_t same = nova_pages_same(w->base.bytes + i * NOVA_PAGE, w->image.bytes + i * NOVA_PAGE, most);
            if (same) {
                put(w, NOVA_SAME, same, 0);
                w->page += same;
                continue;
            }
            differs = 1;
        }
        const uint8_t *new = nova_image_page(&w->image, i, new_room);
        const uint8_t *old = NULL;
        nova_digest digest;
        if (w->how != NOVA_BY_DIGEST && w->base.bytes) {
            old = nova_image_page(&w->base, i, old_room);
            if (!differs && nova_pages_same(old, new, 1)) {
                if (i >= base_pages)
                    w->sum = nova_digest_add(w->sum, nova_page_share(nova_page_digest(new), i));
                put(w, NOVA_SAME, 1, 0);
                w->page++;
                continue;
            }
            digest = nova_page_digest(new);
        } else {
            digest = nova_page_digest(new);
            if (i < base_pages ? digest.lo == w->digests[i].lo && digest.hi == w->digests[i].hi
                               : nova_page_is_zero(new)) {
                if (i >= base_pages)
                    w->sum = nova_digest_add(w->sum, nova_page_share(digest, i));
                put(w, NOVA_SAME, 1, 0);
                w->page++;
                continue;
            }
            if (w->base.bytes)
                old = nova_image_page(&w->base, i, old_room);
        }
        int said = put_page(w, old, new, digest);
        if (said)
            return said;
    }
    return NOVA_WRITE_END;
}

void nova_delta_begin(nova_delta_writer *w)
{
    for (size_t i = nova_pages_in(w->image.size), n = nova_pages_in(w->base.size); i < n; i++)
        w->sum = nova_digest_sub(w->sum, nova_page_share(w->digests[i], i));
}

/* Pages far from each other are not foreseen by the processor. One byte is read early, so that where the page lies is
 * looked up in time (a prefetch does not always wait for that); the rest is asked for one page ahead. */
static void fetch_ahead(const nova_delta_writer *w, size_t range)
{
    for (int near = 0; near < 2; near++) {
        size_t ahead = range + (near ? NEAR : FAR);
        if (ahead >= w->ranges_count)
            continue;
        size_t page = w->ranges[ahead].first, at = page * NOVA_PAGE;
        if (at + NOVA_PAGE > w->image.size || at + NOVA_PAGE > w->base.size || !w->base.bytes)
            continue;
        if (!near) {
            (void)*(const volatile uint8_t *)(w->image.bytes + at);
            (void)*(const volatile uint8_t *)(w->base.bytes + at);
            __builtin_prefetch(&w->digests[page], 0, 2);
            continue;
        }
        for (size_t line = 0; line < NOVA_PAGE; line += NOVA_LINE) {
            __builtin_prefetch(w->image.bytes + at + line, 0, 2);
            __builtin_prefetch(w->base.bytes + at + line, 0, 2);
        }
    }
}

int nova_delta_write(nova_delta_writer *w)
{
    size_t pages = nova_pages_in(w->image.size);
    if (w->how != NOVA_BY_RANGES)
        return write_pages(w, pages);
    for (; w->range < w->ranges_count; w->range++) {
        size_t first = w->ranges[w->range].first;
        if (w->page < first) {
            put(w, NOVA_SAME, first - w->page, 0);
            w->page = first;
        }
        fetch_ahead(w, w->range);
        int said = write_pages(w, first + w->ranges[w->range].count);
        if (said)
            return said;
    }
    /* Where the images end differently nobody had to say that something changed. */
    size_t apart = pages;
    if (w->base.size != w->image.size)
        apart = (w->base.size < w->image.size ? w->base.size : w->image.size) / NOVA_PAGE;
    if (w->page < apart) {
        put(w, NOVA_SAME, apart - w->page, 0);
        w->page = apart;
    }
    return write_pages(w, pages);
}

uint64_t nova_delta_cut(nova_delta_writer *w, int last)
{
    uint64_t covered = w->page - w->frame_first;
    if (last && w->pending == NOVA_SAME && w->pending_count) {
        covered -= w->pending_count;
        w->pending_count = 0;
    }
    flush(w);
    return covered;
}

void nova_delta_next(nova_delta_writer *w)
{
    w->tokens_used = w->literals_used = w->raw_in_frame = 0;
    w->frame_first = w->page;
}

static void add_to_index(const nova_digest *digests, size_t page, uint32_t *index, size_t slots)
{
    size_t slot = digests[page].lo & (slots - 1);
    while (index[slot]) {
        const nova_digest *there = &digests[index[slot] - 1];
        if (there->lo == digests[page].lo && there->hi == digests[page].hi)
            return; /* many pages are alike: the first one will do, and chains stay short */
        slot = (slot + 1) & (slots - 1);
    }
    index[slot] = (uint32_t)(page + 1);
}

void nova_delta_index(const nova_digest *digests, size_t pages, uint32_t *index, size_t slots)
{
    memset(index, 0, slots * sizeof *index);
    for (size_t i = 0; i < pages; i++)
        add_to_index(digests, i, index, slots);
}

void nova_delta_index_more(const nova_digest *digests, const nova_fresh_page *fresh, size_t n, uint32_t *index,
                           size_t slots)
{
    for (size_t i = 0; i < n; i++)
        add_to_index(digests, fresh[i].page, index, slots);
}
