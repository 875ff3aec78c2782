/* tests/fuzz/targets/sequence.c - runs of events of a text from strangers.
 *
 * The input is two sets of runs without elements, which are made up: a byte tells how many agents, and then each set is, per agent, how many known events it
 * repeats and how many follow, and then the number of its bytes, and these. What is applied leaves every invariant whole,
 * and read again it is the same; what is refused leaves the sequence as it was. */
#include "sequence.h"
#include "fuzz.h"
#include "marks.h"

enum { AGENTS_MAX = 6, MARKS_MAX = 8, ELEMENTS_MAX = 100000 };

typedef struct {
    uint8_t *at;
    size_t size;
    nova_digest digest;
    uint64_t length;
} state;

static nova_sequence *empty(size_t agents)
{
    nova_sequence *s = nova_sequence_new();
    for (size_t i = 0; i < agents; i++)
        REQUIRE(nova_sequence_add_agent(s, 77 * (i + 1)) == (int)i);
    for (size_t i = 0; i < agents; i++) /* numbers and ranks are two orders */
        nova_sequence_rank(s, (uint32_t)i, (uint32_t)i);
    return s;
}

static state state_of(nova_sequence *s, size_t agents)
{
    uint64_t known[AGENTS_MAX] = {0};
    uint32_t order[AGENTS_MAX];
    nova_runs runs = {0};
    state out = {.digest = nova_sequence_digest(s), .length = nova_sequence_length(s)};
    for (uint32_t i = 0; i < agents; i++)
        order[i] = i;
    int broken = nova_sequence_check(s);
    if (broken)
        fprintf(stderr, "csrc/sequence.c:%d: does not hold\n", broken);
    REQUIRE(!broken);
    REQUIRE(nova_sequence_since(s, known, order, agents, 0, &runs) == 0);
    REQUIRE(nova_runs_write(&runs, order, agents, &out.at, &out.size) == 0);
    nova_runs_free(&runs);
    return out;
}

/* An element for each live one, unless there would be too many: the runs are then refused. */
static void give_elements(nova_runs *runs)
{
    uint64_t n = 0;
    for (size_t i = 0; i < runs->size; i++)
        if (runs->at[i].kind == NOVA_RUN_INSERT && !runs->at[i].flags)
            n += runs->at[i].len;
    if (n > ELEMENTS_MAX || nova_runs_grow((void **)&runs->elements, 0, &runs->elements_room, 4, (size_t)n + 1))
        return;
    for (; runs->elements_size < n; runs->elements_size++)
        runs->elements[runs->elements_size] = (uint32_t)(runs->elements_size * 37 % 300);
}

static void require_same_events(state a, state b)
{
    REQUIRE(a.size == b.size && (!a.size || !memcmp(a.at, b.at, a.size)));
    REQUIRE(a.length == b.length);
}

static void require_same(state a, state b)
{
    require_same_events(a, b);
    REQUIRE(a.digest.lo == b.digest.lo && a.digest.hi == b.digest.hi);
}

/* Marks of two names are painted without overlaps, within the text. */
static void check_marks(nova_sequence *s)
{
    size_t n = nova_sequence_marks(s), size = 0;
    nova_marked *marks = malloc((n + 1) * sizeof *marks);
    nova_painted *out = malloc((2 * n + 1) * sizeof *out);
    uint32_t name_of[MARKS_MAX];
    for (uint32_t i = 0; i < MARKS_MAX; i++)
        name_of[i] = i % 2;
    nova_sequence_marked(s, marks);
    REQUIRE(nova_marks_paint(marks, n, name_of, out, &size) == 0);
    for (size_t i = 0; i < size; i++) {
        REQUIRE(out[i].start < out[i].end && out[i].end <= nova_sequence_length(s));
        REQUIRE(!i || out[i - 1].name < out[i].name || out[i - 1].end <= out[i].start);
    }
    free(marks), free(out);
}

/* The state read into a new sequence, and once more into its own; then with the elements apart, as states have them. */
static void check_round_trip(nova_sequence *s, size_t agents)
{
    uint64_t first[AGENTS_MAX] = {0}, last[AGENTS_MAX];
    nova_runs runs = {0};
    state whole = state_of(s, agents), again, twice;
    nova_sequence *copy = empty(agents);
    for (uint32_t i = 0; i < agents; i++)
        last[i] = nova_sequence_count(s, i);
    REQUIRE(nova_runs_read(whole.at, whole.size, first, last, agents, &runs) == 0);
    unsigned width;
    const void *text = nova_sequence_view(s, &width);
    for (size_t i = 0; i < runs.marks_size; i++)
        runs.marks[i].hash = runs.marks[i].value;
    REQUIRE(nova_sequence_load(copy, &runs, text, width, nova_sequence_length(s)) == 0);
    check_marks(s);
    again = state_of(copy, agents);
    require_same(whole, again);
    give_elements(&runs);
    REQUIRE(nova_sequence_apply(copy, &runs) == 0);
    twice = state_of(copy, agents);
    require_same(again, twice);
    free(whole.at), free(again.at), free(twice.at);
    nova_runs_free(&runs);
    nova_sequence_free(copy);
}

static void learn(nova_sequence *s, size_t agents, nova_reader *r)
{
    uint64_t first[AGENTS_MAX], last[AGENTS_MAX];
    nova_runs runs = {0};
    for (uint32_t i = 0; i < agents; i++) {
        uint64_t known = nova_sequence_count(s, i), again = nova_take_number(r), more = nova_take_number(r);
        first[i] = again < known ? known - again : 0;
        last[i] = more > UINT64_MAX - first[i] ? more : first[i] + more;
    }
    uint64_t size = nova_take_number(r);
    if (size > nova_left(r))
        size = nova_left(r);
    const uint8_t *at = nova_take(r, size);
    if (at && nova_runs_read(at, size, first, last, agents, &runs) == 0) {
        give_elements(&runs);
        for (size_t i = 0; i < runs.marks_size; i++)
            runs.marks[i].value %= MARKS_MAX, runs.marks[i].hash = runs.marks[i].value;
        state before = state_of(s, agents);
        int code = nova_sequence_apply(s, &runs);
        REQUIRE(code == 0 || code == NOVA_SEQUENCE_EEVENTS || code == NOVA_SEQUENCE_EGAP);
        if (code) {
            state after = state_of(s, agents);
            require_same(before, after);
            free(after.at);
        } else {
            for (uint32_t i = 0; i < agents; i++)
                REQUIRE(nova_sequence_count(s, i) >= last[i]);
            check_round_trip(s, agents);
        }
        free(before.at);
    }
    nova_runs_free(&runs);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    nova_reader r = nova_reader_of(data, size);
    size_t agents = 1 + nova_take_byte(&r) % AGENTS_MAX;
    nova_sequence *s = empty(agents);
    learn(s, agents, &r);
    learn(s, agents, &r);
    uint64_t length = nova_sequence_length(s);
    if (length && size % 2 && nova_sequence_count(s, 0) < 1ull << 40) { /* what came from strangers can be edited */
        REQUIRE(nova_sequence_delete(s, 0, length / 2, 1) == 0);
        REQUIRE(nova_sequence_insert(s, 0, length / 2, "ab", 1, 2) == 0);
        REQUIRE(nova_sequence_length(s) == length + 1);
        check_round_trip(s, agents);
    }
    nova_sequence_free(s);
    return 0;
}
