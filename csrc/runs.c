/* csrc/runs.c */
#include "runs.h"

#include <stdlib.h>
#include <string.h>

#include "bytes.h"

#define ROOT NOVA_SEQUENCE_ROOT
#define NONE UINT32_MAX
#define GROW(array, size, room, more) nova_runs_grow((void **)&(array), size, &(room), sizeof *(array), more)

/* How a right origin is known. */
enum { SPLITS, ENDS, NAMED, RIGHTS };

/* The low bits of a head are what a run is: insertions are RIGHTS * gone + how their right origin is known. A head of
 * length 0 is a mark, and the bits are its flags. */
enum { REMOVES = 2 * RIGHTS, REMOVES_DESCENDING, BITS = 3 };

int nova_runs_grow(void **at, size_t size, size_t *room, size_t each, size_t more)
{
    if (size + more <= *room)
        return 0;
    size_t wanted = *room * 2 > size + more ? *room * 2 : size + more;
    wanted = wanted < 16 ? 16 : wanted;
    void *grown = wanted > SIZE_MAX / each ? NULL : realloc(*at, wanted * each);
    if (!grown)
        return NOVA_SEQUENCE_EMEMORY;
    *at = grown, *room = wanted;
    return 0;
}

void nova_runs_free(nova_runs *runs)
{
    free(runs->at), free(runs->elements), free(runs->marks);
    memset(runs, 0, sizeof *runs);
}

static void rename_id(uint64_t *id, const uint32_t *agents)
{
    if (*id != NOVA_SEQUENCE_ROOT)
        *id = (uint64_t)agents[nova_agent_of(*id)] << NOVA_SEQUENCE_COUNT_BITS | nova_count_of(*id);
}

void nova_runs_rename(nova_runs *runs, const uint32_t *agents)
{
    for (size_t i = 0; i < runs->size; i++)
        rename_id(&runs->at[i].dot, agents), rename_id(&runs->at[i].left, agents),
            rename_id(&runs->at[i].right, agents);
}

/* The insertion among those of one agent, ascending, that has an element; NULL if none does. */
static const nova_run *run_of(const nova_run *first, const nova_run *end, uint64_t id)
{
    while (end - first > 1) {
        const nova_run *mid = first + (end - first) / 2;
        if (mid->dot <= id)
            first = mid;
        else
            end = mid;
    }
    return first < end && first->kind == NOVA_RUN_INSERT && id - first->dot < first->len ? first : NULL;
}

/* How the right origin of a run is known to who has read the runs of its agent before it, from `first` on. */
static int right_of(const nova_run *first, const nova_run *run)
{
    const nova_run *into = run->left == ROOT ? NULL : run_of(first, run, run->left);
    if (run->left != ROOT && nova_count_of(run->left) < NOVA_SEQUENCE_COUNT_MASK && run->right == run->left + 1)
        return SPLITS;
    return into && run->right == into->right ? ENDS : NAMED;
}

/* --- columns --- */

typedef struct {
    uint8_t *at; /* to write: 10 bytes a number are there */
    size_t size;
    uint64_t *last; /* of each place: the count that came last */
} column;

static uint64_t zigzag(uint64_t now, uint64_t before)
{
    int64_t d = (int64_t)(now - before);
    return (uint64_t)d << 1 ^ (uint64_t)(d >> 63);
}

static uint64_t unzigzag(uint64_t code, uint64_t before)
{
    return before + (code >> 1 ^ (0 - (code & 1)));
}

static void put_number(column *c, uint64_t value)
{
    c->size += nova_put_number(c->at + c->size, value);
}

/* One number for agent and count: a difference has 49 bits, a place 15. */
static void put_id(column *c, uint64_t id, const uint32_t *rank, size_t agents)
{
    uint32_t place = id == ROOT ? 0 : rank[nova_agent_of(id)];
    if (id == ROOT) {
        put_number(c, 0);
        return;
    }
    put_number(c, 1 + zigzag(nova_count_of(id), c->last[place]) * agents + place);
    c->last[place] = nova_count_of(id);
}

static uint64_t take_id(nova_reader *r, uint64_t *last, size_t agents)
{
    uint64_t code = nova_take_number(r);
    if (!code || !r->ok || !agents)
        return ROOT;
    uint64_t place = agents == 1 ? 0 : (code - 1) % agents, step = agents == 1 ? code - 1 : (code - 1) / agents;
    uint64_t count = unzigzag(step, last[place]);
    if (count > NOVA_SEQUENCE_COUNT_MASK) {
        r->ok = 0;
        return ROOT;
    }
    last[place] = count;
    return place << NOVA_SEQUENCE_COUNT_BITS | count;
}

/* Where the next run of its agent most likely stands: behind this one, or where this one has deleted up to. */
static void expect(uint64_t *last, const nova_run *run, const uint32_t *rank)
{
    uint32_t who = nova_agent_of(run->kind == NOVA_RUN_REMOVE ? run->left : run->dot), place = rank ? rank[who] : who;
    if (run->kind == NOVA_RUN_INSERT)
        last[place] = nova_count_of(run->dot) + run->len - 1;
    else if (run->kind == NOVA_RUN_REMOVE)
        last[place] = run->flags || run->len == 1 ? nova_count_of(run->left) - 1 : nova_count_of(run->left) + run->len;
}

int nova_runs_write(const nova_runs *runs, const uint32_t *rank, size_t agents, uint8_t **out, size_t *size)
{
    size_t n = runs->size, marks = 0;
    uint8_t *p = malloc(n * 3 * 10 + runs->marks_size * 2 * 10 + 1);
    uint64_t *last = calloc(2 * agents + 1, sizeof *last), stamp = 0;
    int *how = malloc((n + 1) * sizeof *how);
    if (!p || !last || !how) {
        free(p), free(last), free(how);
        return NOVA_SEQUENCE_EMEMORY;
    }
    column all = {p, 0, last};
    size_t first = 0;
    for (size_t i = 0; i < n; i++) {
        const nova_run *r = &runs->at[i];
        if (nova_agent_of(r->dot) != nova_agent_of(runs->at[first].dot))
            first = i;
        how[i] = r->kind == NOVA_RUN_INSERT ? right_of(&runs->at[first], r) : NAMED;
        if (r->kind == NOVA_RUN_MARK)
            put_number(&all, r->flags);
        else if (r->kind == NOVA_RUN_REMOVE)
            put_number(&all, (uint64_t)r->len << BITS | (r->flags ? REMOVES_DESCENDING : REMOVES));
        else
            put_number(&all, (uint64_t)r->len << BITS | (unsigned)(RIGHTS * r->flags + how[i]));
    }
    for (size_t i = 0; i < n; i++) {
        put_id(&all, runs->at[i].left, rank, agents);
        expect(last, &runs->at[i], rank);
    }
    all.last = last + agents;
    for (size_t i = 0; i < n; i++)
        if (runs->at[i].kind != NOVA_RUN_REMOVE && how[i] == NAMED)
            put_id(&all, runs->at[i].right, rank, agents);
    for (; marks < runs->marks_size; stamp = runs->marks[marks++].stamp) {
        put_number(&all, runs->marks[marks].value);
        put_number(&all, zigzag(runs->marks[marks].stamp, stamp));
    }
    free(last), free(how);
    *out = p, *size = all.size;
    return 0;
}

/* The heads of all agents. A right origin is left as the number of how it is known. */
static int read_heads(nova_reader *r, const uint64_t *first, const uint64_t *last, size_t agents, nova_runs *out)
{
    for (size_t who = 0; who < agents; who++) {
        if (last[who] > NOVA_SEQUENCE_COUNT_MASK || first[who] > last[who])
            return NOVA_SEQUENCE_EBYTES;
        for (uint64_t at = first[who]; at < last[who];) {
            uint64_t head = nova_take_number(r), len = head >> BITS, bits = head & ((1 << BITS) - 1);
            nova_run run = {(uint64_t)who << NOVA_SEQUENCE_COUNT_BITS | at, ROOT, NAMED, (uint32_t)len, 0, 0};
            if (!len)
                run.kind = NOVA_RUN_MARK, run.len = 1, run.flags = (uint8_t)bits;
            else if (bits >= REMOVES)
                run.kind = NOVA_RUN_REMOVE, run.flags = bits == REMOVES_DESCENDING ? NOVA_RUN_DESCENDING : 0;
            else
                run.flags = bits >= RIGHTS ? NOVA_RUN_GONE : 0, run.right = bits % RIGHTS;
            if (!r->ok || len >= NONE || run.len > last[who] - at || (!len && bits > 3))
                return NOVA_SEQUENCE_EBYTES;
            if (GROW(out->at, out->size, out->room, 1))
                return NOVA_SEQUENCE_EMEMORY;
            out->at[out->size++] = run;
            at += run.len;
        }
    }
    return 0;
}

static int read_marks(nova_reader *r, nova_runs *out)
{
    uint64_t stamp = 0;
    for (size_t i = 0; i < out->size; i++) {
        if (out->at[i].kind != NOVA_RUN_MARK)
            continue;
        uint64_t value = nova_take_number(r);
        stamp = unzigzag(nova_take_number(r), stamp);
        if (!r->ok || value >= NONE)
            return NOVA_SEQUENCE_EBYTES;
        if (GROW(out->marks, out->marks_size, out->marks_room, 1))
            return NOVA_SEQUENCE_EMEMORY;
        out->marks[out->marks_size++] = (nova_mark){stamp, 0, (uint32_t)value};
    }
    return 0;
}

int nova_runs_read(const uint8_t *p, size_t n, const uint64_t *first, const uint64_t *last, size_t agents,
                   nova_runs *out)
{
    nova_reader r = nova_reader_of(p, n);
    if (agents > NOVA_SEQUENCE_AGENTS_MAX)
        return NOVA_SEQUENCE_EAGENTS;
    int code = read_heads(&r, first, last, agents, out);
    if (code)
        return code;
    uint64_t *seen = calloc(2 * agents + 1, sizeof *seen);
    if (!seen)
        return NOVA_SEQUENCE_EMEMORY;
    code = NOVA_SEQUENCE_EBYTES;
    for (size_t i = 0; i < out->size; i++) {
        nova_run *run = &out->at[i];
        run->left = take_id(&r, seen, agents);
        if (!r.ok || (run->kind == NOVA_RUN_REMOVE &&
                      (run->left == ROOT || run->len > NOVA_SEQUENCE_COUNT_MASK - nova_count_of(run->left))))
            goto end;
        expect(seen, run, NULL);
    }
    size_t own = 0; /* the first run of the agent */
    for (size_t i = 0; i < out->size; i++) {
        nova_run *run = &out->at[i];
        const nova_run *into;
        uint64_t how = run->right;
        if (nova_agent_of(run->dot) != nova_agent_of(out->at[own].dot))
            own = i;
        if (run->kind == NOVA_RUN_REMOVE) {
            run->right = ROOT;
        } else if (how == NAMED) {
            run->right = take_id(&r, seen + agents, agents);
        } else if (run->left == ROOT || nova_count_of(run->left) == NOVA_SEQUENCE_COUNT_MASK) {
            goto end;
        } else if (how == SPLITS) {
            run->right = run->left + 1;
        } else {
            into = run_of(&out->at[own], run, run->left);
            if (!into)
                goto end;
            run->right = into->right;
        }
        if (!r.ok)
            goto end;
    }
    code = read_marks(&r, out);
    if (!code && nova_left(&r))
        code = NOVA_SEQUENCE_EBYTES;
end:
    free(seen);
    return code;
}
