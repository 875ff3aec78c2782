/* csrc/rows_log.c */
#include "rows_inner.h"

void nova_rows_begin_log(nova_rows *r)
{
    r->logs = 1;
    r->nlog = 0;
}

void nova_rows_log_span(nova_rows *r, uint32_t who, uint64_t first, uint64_t last, int dropped)
{
    if (!r->logs)
        return;
    entry *end = r->nlog ? &r->log[r->nlog - 1] : NULL;
    if (end && end->who == who && end->dropped == (uint32_t)dropped && end->span.last + 1 == first) {
        end->span.last = last;
        return;
    }
    size_t most = LOG_MIN + r->rows / ROWS_PER_ENTRY;
    if (r->nlog >= most) { /* half of it goes: a log may begin anywhere */
        r->nlog = most / 2;
        memmove(r->log, end + 1 - r->nlog, r->nlog * sizeof *r->log);
    }
    if (reserve(&r->log, &r->log_room, r->nlog + 1, sizeof *r->log)) {
        r->nlog = 0; /* it begins behind this entry */
        return;
    }
    r->log[r->nlog++] = (entry){{first, last}, who, (uint32_t)dropped};
}

/* How many of the counts first..last are in these spans. */
static uint64_t count_in(nova_known known, uint64_t first, uint64_t last)
{
    uint64_t n = 0;
    for (size_t i = known.size ? nova_spans_seek(known.at, known.size, first) : 0;
         i < known.size && known.at[i].first <= last; i++)
        n += (known.at[i].last < last ? known.at[i].last : last) -
             (known.at[i].first > first ? known.at[i].first : first) + 1;
    return n;
}

int nova_rows_since(const nova_rows *r, const nova_known *known, size_t *from)
{
    unsigned __int128 news = 0; /* events that they do not know, and that the log has not shown yet */
    for (uint32_t who = 0; who < r->nwriters; who++)
        for (size_t i = 0; i < r->writers[who].nspans; i++) {
            nova_span span = r->writers[who].spans[i];
            news += span.last - span.first + 1 - count_in(known[who], span.first, span.last);
        }
    size_t at = r->nlog;
    while (news && at) {
        const entry *e = &r->log[--at];
        if (!e->dropped)
            news -= e->span.last - e->span.first + 1 - count_in(known[e->who], e->span.first, e->span.last);
    }
    *from = at;
    return r->logs && !news;
}

static int order_dropped(const void *x, const void *y)
{
    const nova_dropped *a = x, *b = y;
    if (a->who != b->who)
        return a->who < b->who ? -1 : 1;
    return (a->span.first > b->span.first) - (a->span.first < b->span.first);
}

nova_dropped *nova_rows_dropped(const nova_rows *r, const nova_known *known, size_t from, size_t *size)
{
    nova_dropped *out = malloc((r->nlog - from + 1) * sizeof *out);
    size_t n = 0, k = 0, room = r->nlog - from + 1;
    for (size_t i = from; out && i < r->nlog; i++) {
        const entry *e = &r->log[i];
        if (!e->dropped)
            continue;
        nova_known theirs = known[e->who];
        for (size_t j = theirs.size ? nova_spans_seek(theirs.at, theirs.size, e->span.first) : 0;
             j < theirs.size && theirs.at[j].first <= e->span.last; j++) {
            nova_span both = {theirs.at[j].first > e->span.first ? theirs.at[j].first : e->span.first,
                              theirs.at[j].last < e->span.last ? theirs.at[j].last : e->span.last};
            if (reserve(&out, &room, n + 1, sizeof *out)) {
                free(out);
                return NULL;
            }
            out[n++] = (nova_dropped){both, e->who};
        }
    }
    if (!out)
        return NULL;
    qsort(out, n, sizeof *out, order_dropped);
    for (size_t i = 0; i < n; i++) {
        if (k && out[k - 1].who == out[i].who && out[k - 1].span.last + 1 == out[i].span.first)
            out[k - 1].span.last = out[i].span.last;
        else
            out[k++] = out[i];
    }
    *size = k;
    return out;
}

/* To the log: the news of one writer, of which some come with rows. Those from *next on are the fresh ones; it is moved
 * behind the last of this writer. */
static void log_rowless(nova_rows *r, const nova_rows *o, uint32_t who, uint32_t me, const nova_span *news, size_t n,
                        const nova_plan *plan, size_t *next)
{
    for (size_t i = 0; i < n; i++) {
        uint64_t first = news[i].first, last = news[i].last;
        int open = 1; /* first..last are not told of yet */
        for (; *next < plan->fresh.size; ++*next) {
            uint32_t reference = load32(record(o, plan->fresh.at[*next]));
            const chunk *c = o->chunks[reference >> 6];
            uint64_t count = c->block << 6 | (reference & 63);
            if (c->who != who || count > last)
                break;
            if (count > first)
                nova_rows_log_span(r, me, first, count - 1, 1);
            open = count < last;
            first = count + 1;
        }
        if (open)
            nova_rows_log_span(r, me, first, last, 1);
    }
}

void nova_rows_log_join(nova_rows *r, const nova_rows *o, const uint32_t *map, const nova_plan *plan)
{
    size_t next = 0;
    for (int rowless = 0; rowless < 2; rowless++)
        for (uint32_t who = 0; who < o->nwriters; who++) {
            const writer *theirs = &o->writers[who], *mine = &r->writers[map[who]];
            if (!theirs->nspans)
                continue;
            nova_span few[FEW], *news = few;
            if (theirs->nspans + mine->nspans > FEW &&
                !(news = malloc((theirs->nspans + mine->nspans) * sizeof *news))) {
                r->logs = 0; /* it would have to tell of this */
                r->nlog = 0;
                return;
            }
            size_t n = nova_spans_minus(theirs->spans, theirs->nspans, mine->spans, mine->nspans, news);
            if (rowless)
                log_rowless(r, o, who, map[who], news, n, plan, &next);
            else
                for (size_t i = 0; i < n; i++)
                    nova_rows_log_span(r, map[who], news[i].first, news[i].last, 0);
            if (news != few)
                free(news);
        }
}
