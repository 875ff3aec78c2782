"""The search for an order that fits real time (Wing & Gong 1993; Lowe 2017).

`nova.sim.linearize` is the face.
"""

from libc.stdint cimport int32_t, int64_t, uint64_t
from libc.stdlib cimport calloc, free, malloc

cdef struct Table:
    # Open addressing; a slot is two words of key and one of value, all 0 where nobody is.
    uint64_t *slots
    uint64_t mask
    uint64_t count


cdef inline uint64_t mixed(uint64_t x) noexcept nogil:
    """SplitMix64 (Steele, Lea & Flood 2014)."""
    x += <uint64_t>0x9E3779B97F4A7C15
    x = (x ^ (x >> 30)) * <uint64_t>0xBF58476D1CE4E5B9
    x = (x ^ (x >> 27)) * <uint64_t>0x94D049BB133111EB
    return x ^ (x >> 31)


cdef int table_open(Table *t, uint64_t size) noexcept nogil:
    t.slots = <uint64_t *>calloc(size * 3, sizeof(uint64_t))
    t.mask = size - 1
    t.count = 0
    return t.slots != NULL


cdef uint64_t *table_find(Table *t, uint64_t a, uint64_t b) noexcept nogil:
    """The slot of a key, or the empty one where it belongs."""
    cdef uint64_t at = (a ^ (b >> 7)) & t.mask
    cdef uint64_t *slot
    while True:
        slot = t.slots + 3 * at
        if (slot[0] == a and slot[1] == b) or not (slot[0] or slot[1] or slot[2]):
            return slot
        at = (at + 1) & t.mask


cdef int table_put(Table *t, uint64_t a, uint64_t b, uint64_t value) noexcept nogil:
    """1 if it is new, 0 if it was there, -1 without memory. `value` is not 0."""
    cdef uint64_t *slot = table_find(t, a, b)
    cdef uint64_t *old
    cdef uint64_t size, i
    if slot[2]:
        return 0
    slot[0], slot[1], slot[2] = a, b, value
    t.count += 1
    if t.count * 2 <= t.mask:
        return 1
    old, size = t.slots, t.mask + 1
    if not table_open(t, size * 4):
        t.slots = old
        t.mask = size - 1
        return -1
    for i in range(size):
        if old[3 * i + 2]:
            slot = table_find(t, old[3 * i], old[3 * i + 1])
            slot[0], slot[1], slot[2] = old[3 * i], old[3 * i + 1], old[3 * i + 2]
            t.count += 1
    free(old)
    return 1


def search(events, optional, step, uint64_t entries_max):
    """(whether there is an order, the longest beginning of one that was found, configurations looked at).

    events       in order of time: 2 * i where operation i begins, 2 * i + 1 where it ends
    optional     operations that need not have taken effect; they end last
    step         (state, operation) -> state, or -1 where the model refuses; states are numbered from 0 by the caller
    entries_max  configurations kept; beyond it the verdict is None
    """
    cdef Py_ssize_t count = len(events), n = count // 2, at, i
    cdef int32_t *following = <int32_t *>malloc((count + 1) * sizeof(int32_t))
    cdef int32_t *before = <int32_t *>malloc((count + 1) * sizeof(int32_t))
    cdef int32_t *what = <int32_t *>malloc((count + 1) * sizeof(int32_t))
    cdef int32_t *where = <int32_t *>malloc((count + 1) * sizeof(int32_t))
    cdef int32_t *stack = <int32_t *>malloc((n + 1) * sizeof(int32_t))
    cdef int64_t *states = <int64_t *>malloc((n + 1) * sizeof(int64_t))
    cdef int32_t *best = <int32_t *>malloc((n + 1) * sizeof(int32_t))
    cdef char *may = <char *>malloc(n + 1)
    cdef Table seen, moves
    cdef int ok = -1
    cdef Py_ssize_t longest = 0
    seen.slots = moves.slots = NULL
    try:
        if not (following and before and what and where and stack and states and best and may):
            raise MemoryError
        if not (table_open(&seen, 1 << 12) and table_open(&moves, 1 << 12)):
            raise MemoryError
        for at in range(count):
            what[at + 1] = events[at]
            where[what[at + 1]] = at + 1
        for at in range(count + 1):
            following[at] = at + 1 if at < count else 0
            before[at] = at - 1 if at else count
        for i in range(n):
            may[i] = 1 if optional[i] else 0
        ok, longest = explore(
            following, before, what, where, stack, states, best, may, &seen, &moves, n, step, entries_max
        )
        return (None if ok < 0 else bool(ok)), [best[i] for i in range(longest)], seen.count
    finally:
        free(following)
        free(before)
        free(what)
        free(where)
        free(stack)
        free(states)
        free(best)
        free(may)
        free(seen.slots)
        free(moves.slots)


cdef tuple explore(
    int32_t *following, int32_t *before, int32_t *what, int32_t *where, int32_t *stack, int64_t *states, int32_t *best,
    char *may, Table *seen, Table *moves, Py_ssize_t n, object step, uint64_t entries_max
):
    """Lift operations out of the list, first ones first; put the last one back where none fits."""
    cdef int64_t state = 0, new
    cdef uint64_t done_a = 0, done_b = 0, key
    cdef Py_ssize_t depth = 0, longest = 0, i
    cdef int32_t entry = following[0], op
    cdef uint64_t *slot
    cdef int put, verdict = -1
    with nogil:
        while True:
            if entry == 0 or (what[entry] & 1 and may[what[entry] >> 1]):
                verdict = 1          # all that is left may never have happened
                break
            op = what[entry] >> 1
            if not what[entry] & 1:
                key = <uint64_t>state * <uint64_t>n + <uint64_t>op
                slot = table_find(moves, mixed(key), key)
                if slot[2]:
                    new = <int64_t>(slot[2] - 3)
                else:
                    with gil:
                        new = step(state, op)
                    if table_put(moves, mixed(key), key, <uint64_t>(new + 3)) < 0:
                        with gil:
                            raise MemoryError
                if new >= 0:
                    done_a ^= mixed(<uint64_t>op * 2 + 1)
                    done_b ^= mixed(<uint64_t>op * 2 + 2)
                    key = mixed(<uint64_t>new ^ <uint64_t>0x5851F42D4C957F2D)
                    put = table_put(seen, done_a ^ key, done_b + key, 1)
                    if put < 0:
                        with gil:
                            raise MemoryError
                    if put:
                        if seen.count > entries_max:
                            break
                        stack[depth], states[depth] = op, state
                        depth += 1
                        if depth > longest:
                            longest = depth
                            for i in range(depth):
                                best[i] = stack[i]
                        state = new
                        lift(following, before, where[2 * op])
                        lift(following, before, where[2 * op + 1])
                        entry = following[0]
                        continue
                    done_a ^= mixed(<uint64_t>op * 2 + 1)
                    done_b ^= mixed(<uint64_t>op * 2 + 2)
                entry = following[entry]
            else:                    # it has ended and does not fit: something before it went wrong
                if depth == 0:
                    verdict = 0
                    break
                depth -= 1
                op, state = stack[depth], states[depth]
                done_a ^= mixed(<uint64_t>op * 2 + 1)
                done_b ^= mixed(<uint64_t>op * 2 + 2)
                drop(following, before, where[2 * op + 1])
                drop(following, before, where[2 * op])
                entry = following[where[2 * op]]
    return verdict, longest


cdef inline void lift(int32_t *following, int32_t *before, int32_t at) noexcept nogil:
    following[before[at]] = following[at]
    before[following[at]] = before[at]


cdef inline void drop(int32_t *following, int32_t *before, int32_t at) noexcept nogil:
    following[before[at]] = at
    before[following[at]] = at
