/* tests/fuzz/targets/sequence.c - runs of events of a text from strangers.
 *
 * The input is two sets of runs: a byte tells how many agents, and then each set is, per agent, how many known events it
 * repeats and how many follow, and then the number of its bytes, and these. What is applied leaves every invariant whole,
 * and read again it is the same; what is refused leaves the sequence as it was. */
#include "sequence.h"
#include "fuzz.h"

enum { AGENTS_MAX = 6 };

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
    nova_sequence_runs runs = {0};
    state out = {.digest = nova_sequence_digest(s), .length = nova_sequence_length(s)};
    for (uint32_t i = 0; i < agents; i++)
        order[i] = i;
    int broken = nova_sequence_check(s);
    if (broken)
        fprintf(stderr, "csrc/sequence.c:%d: does not hold\n", broken);
    REQUIRE(!broken);
    REQUIRE(nova_sequence_since(s, known, order, agents, &runs) == 0);
    REQUIRE(nova_sequence_runs_write(&runs, order, &out.at, &out.size) == 0);
    nova_sequence_runs_free(&runs);
    return out;
}

static void require_same(state a, state b)
{
    REQUIRE(a.size == b.size && (!a.size || !memcmp(a.at, b.at, a.size)));
    REQUIRE(a.digest.lo == b.digest.lo && a.digest.hi == b.digest.hi && a.length == b.length);
}

/* The state read into a new sequence, and once more into its own. */
static void check_round_trip(nova_sequence *s, size_t agents)
{
    uint64_t first[AGENTS_MAX] = {0}, last[AGENTS_MAX];
    nova_sequence_runs runs = {0};
    state whole = state_of(s, agents), again, twice;
    nova_sequence *copy = empty(agents);
    for (uint32_t i = 0; i < agents; i++)
        last[i] = nova_sequence_count(s, i);
    REQUIRE(nova_sequence_runs_read(whole.at, whole.size, first, last, agents, &runs) == 0);
    REQUIRE(nova_sequence_apply(copy, &runs) == 0);
    again = state_of(copy, agents);
    require_same(whole, again);
    REQUIRE(nova_sequence_apply(copy, &runs) == 0);
    twice = state_of(copy, agents);
    require_same(whole, twice);
    free(whole.at), free(again.at), free(twice.at);
    nova_sequence_runs_free(&runs);
    nova_sequence_free(copy);
}

static void learn(nova_sequence *s, size_t agents, nova_reader *r)
{
    uint64_t first[AGENTS_MAX], last[AGENTS_MAX];
    nova_sequence_runs runs = {0};
    for (uint32_t i = 0; i < agents; i++) {
        uint64_t known = nova_sequence_count(s, i), again = nova_take_number(r), more = nova_take_number(r);
        first[i] = again < known ? known - again : 0;
        last[i] = more > UINT64_MAX - first[i] ? more : first[i] + more;
    }
    uint64_t size = nova_take_number(r);
    if (size > nova_left(r))
        size = nova_left(r);
    const uint8_t *at = nova_take(r, size);
    if (at && nova_sequence_runs_read(at, size, first, last, agents, &runs) == 0) {
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
    nova_sequence_runs_free(&runs);
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
