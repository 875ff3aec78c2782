"""The text CRDT against the tree of the FugueMax paper, and its laws and traps."""

from __future__ import annotations

import pickle
from itertools import permutations, product
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nova.crdt import RGA, Crdt
from nova.digest import digest128
from nova.errors import CorruptionError, UsageError
from tests.models import sequence as model

NAMES = ("a", "b", "c")
edits = st.tuples(st.just("insert"), st.integers(0, 2), st.integers(0, 30), st.text("xyzé𝒳", min_size=1, max_size=3))
cuts = st.tuples(st.just("delete"), st.integers(0, 2), st.integers(0, 30), st.integers(1, 3))
exchanges = st.tuples(st.sampled_from(["merge", "delta"]), st.integers(0, 2), st.integers(0, 2), st.none())
histories = st.lists(st.one_of(edits, cuts, exchanges), max_size=25)
quick = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])


class Pair:
    """A replica and the operations that it knows."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.replica = RGA(actor=name)
        self.ops: set[model.Op] = set()

    def insert(self, pos: int, text: str) -> None:
        pos %= len(self.replica) + 1
        self.replica.insert(pos, text)
        model.insert(self.ops, self.name, pos, text)

    def delete(self, pos: int, n: int) -> None:
        if len(self.replica):
            pos %= len(self.replica)
            n = min(n, len(self.replica) - pos)
            self.replica.delete(pos, n)
            model.delete(self.ops, self.name, pos, n)

    def learn(self, other: Pair, delta: bool) -> None:
        if delta:
            data = other.replica.delta_since(self.replica.context)
            self.replica.apply_delta(data)
            self.replica.apply_delta(data)  # twice is once
        else:
            self.replica.merge(other.replica)
        self.ops |= other.ops


def play(steps: list[tuple[Any, ...]]) -> list[Pair]:
    pairs = [Pair(name) for name in NAMES]
    for what, i, j, extra in steps:
        if what == "insert":
            pairs[i].insert(j, extra)
        elif what == "delete":
            pairs[i].delete(j, extra)
        else:
            pairs[i].learn(pairs[j], what == "delta")
        assert pairs[i].replica.text == model.Fugue(pairs[i].ops).text
        assert pairs[i].replica._check() == 0
    return pairs


@quick
@given(histories)
def test_every_step_agrees_with_the_tree_of_the_paper(steps):
    play(steps)


@quick
@given(histories)
def test_replicas_that_know_the_same_are_the_same_bytes_whatever_the_order(steps):
    pairs = play(steps)
    found = set()
    for order in permutations(pairs):
        out = RGA()
        for pair in order:
            before = out.context
            out.merge(pair.replica)
            assert out.context.covers(before)
        for pair in order:
            data = out.to_bytes()
            out.apply_delta(pair.replica.delta_since())
            assert out.to_bytes() == data
        back = RGA.from_bytes(out.to_bytes())
        assert back._check() == 0
        found.add((out.text, out.to_bytes(), out.digest()))
        found.add((back.text, back.to_bytes(), back.digest()))
    for pair in pairs:  # whoever wrote a run has it from typing, the others from integrating
        for other in pairs:
            pair.replica.merge(other.replica)
        found.add((pair.replica.text, pair.replica.to_bytes(), pair.replica.digest()))
    assert len(found) == 1


@quick
@given(histories)
def test_operations_one_by_one_are_as_good_as_the_state(steps):
    """Each event's own delta, delivered in the order made, gives what merging gives."""
    pairs = [Pair(name) for name in NAMES]
    log: list[bytes] = []
    mirror = RGA()
    for what, i, j, extra in steps:
        before = pairs[i].replica.context
        if what == "insert":
            pairs[i].insert(j, extra)
        elif what == "delete":
            pairs[i].delete(j, extra)
        else:
            pairs[i].learn(pairs[j], what == "delta")
        log.append(pairs[i].replica.delta_since(before))
    for data in log:
        mirror.apply_delta(data)
    whole = RGA()
    for pair in pairs:
        whole.merge(pair.replica)
    assert mirror.to_bytes() == whole.to_bytes()


def test_all_interleavings_of_three_replicas_and_four_operations_converge():
    """12 operations in every choice of four kinds a replica, exchanged in all orders at the end and once in between."""
    kinds = [("insert", 0, "x"), ("insert", 9, "yz"), ("delete", 0, 1), ("delete", 1, 2)]
    for firsts in product(range(4), repeat=3):
        for between in (None, 0, 1, 2):
            pairs = [Pair(name) for name in NAMES]
            pairs[0].insert(0, "mn")
            for pair in pairs[1:]:
                pair.learn(pairs[0], True)
            for turn in range(4):
                for i, pair in enumerate(pairs):
                    what, pos, extra = kinds[(firsts[i] + turn) % 4]
                    getattr(pair, what)(pos, extra)
                if between is not None and turn == 1:
                    pairs[between].learn(pairs[(between + 1) % 3], True)
            expected = model.Fugue(set().union(*(pair.ops for pair in pairs))).text
            seen = set()
            for order in permutations(pairs):
                out = RGA()
                for pair in order:
                    out.merge(pair.replica)
                seen.add(out.to_bytes())
                assert out.text == expected
            assert len(seen) == 1


@pytest.mark.parametrize("backward", [False, True])
def test_runs_typed_at_one_place_do_not_interleave(backward):
    a = RGA(actor="a")
    a.insert(0, "[]")
    b = a.fork("b")
    for i, (x, y) in enumerate(zip("abcdef", "uvwxyz", strict=True)):
        a.insert(1 if backward else 1 + i, x)
        b.insert(1 if backward else 1 + i, y)
    a.merge(b)
    b.merge(a)
    one, two = ("fedcba", "zyxwvu") if backward else ("abcdef", "uvwxyz")
    assert a.text == b.text
    assert a.text in (f"[{one}{two}]", f"[{two}{one}]")


def test_deleting_the_same_text_at_once_deletes_it_once():
    a = RGA(actor="a")
    a.insert(0, "hello world")
    b = a.fork("b")
    a.delete(2, 5)
    b.delete(4, 5)
    a.merge(b)
    assert b.merge(a).text == a.text == "held"


def test_an_insert_into_text_that_is_deleted_meanwhile_stays():
    a = RGA(actor="a")
    a.insert(0, "hello")
    b = a.fork("b")
    a.delete(0, 5)
    b.insert(3, "!")
    assert a.merge(b).text == b.merge(a).text == "!"


def test_positions_are_code_points():
    a = RGA(actor="a")
    a.insert(0, "a𝒳b")
    a.insert(2, "é")
    a.delete(1, 1)
    assert a.text == "aéb"
    assert len(a) == 3


def test_a_lone_surrogate_is_refused():
    a = RGA(actor="a")
    with pytest.raises(UsageError, match="lone surrogate at 1"):
        a.insert(0, "x\ud800")
    with pytest.raises(UsageError, match="lone surrogate"):
        a.apply_patches([(0, 0, "ok"), (0, 0, "\udfff𝒳")])
    assert a.text == ""


@pytest.mark.parametrize(("pos", "n"), [(-1, 0), (4, 0), (0, 4), (3, 1), (2, -1), (2**62, 2**62)])
def test_a_range_that_is_not_there_is_refused_whole(pos, n):
    a = RGA(actor="a")
    a.insert(0, "abc")
    with pytest.raises(UsageError, match="not within the text of 3 code points"):
        a.splice(pos, n, "x")
    with pytest.raises(UsageError, match="patch 1"):
        a.apply_patches([(0, 1, "x"), (pos, n, "x")])
    assert a.text == "abc"


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 4), st.text("ab\xff\u0100𝒳", max_size=4)), max_size=20))
def test_patches_in_one_call_are_patches_one_by_one(steps):
    from array import array

    one, many, flat = RGA(actor="a"), RGA(actor="a"), RGA(actor="a")
    patches, text = [], ""
    for pos, n, inserted in steps:
        pos %= len(text) + 1
        n = min(n, len(text) - pos)
        patches.append((pos, n, inserted))
        text = text[:pos] + inserted + text[pos + n :]
        one.splice(pos, n, inserted)
    many.apply_patches(patches)
    rows = array("q", [x for pos, n, inserted in patches for x in (pos, n, len(inserted))])
    if patches:
        flat.apply_patches(memoryview(rows).cast("B").cast("q", [len(patches), 3]), "".join(p[2] for p in patches))
    assert one.text == many.text == flat.text == text
    assert one.to_bytes() == many.to_bytes() == flat.to_bytes()


def test_two_live_replicas_of_one_actor_are_found_out():
    a = RGA(actor="a")
    a.insert(0, "x")
    copy = RGA(actor="a")
    with pytest.raises(CorruptionError, match="two replicas share an actor"):
        copy.merge(a)
    assert copy.text == ""
    with pytest.raises(UsageError, match="already wrote here"):
        RGA.from_bytes(a.to_bytes(), actor="a")
    with pytest.raises(UsageError, match="already wrote here"):
        a.fork("a")


def test_a_replica_without_an_actor_reads_and_merges_only():
    a = RGA(actor="a")
    a.insert(0, "x")
    reader = a.fork(None)
    assert reader.text == "x"
    with pytest.raises(UsageError, match="no actor"):
        reader.insert(0, "y")


def test_a_delta_over_a_gap_is_refused_and_changes_nothing():
    a = RGA(actor="a")
    a.insert(0, "x")
    known = a.context
    a.insert(1, "y")
    b = RGA(actor="b")
    with pytest.raises(UsageError, match="knew more"):
        b.apply_delta(a.delta_since(known))
    assert (b.text, len(b.context)) == ("", 0)
    assert b.apply_delta(a.delta_since(b.context)).text == "xy"


def test_an_edit_anywhere_in_a_large_text_keeps_every_invariant():
    a = RGA(actor="a")
    text = ""
    for i in range(4000):
        pos = i * 7919 % (len(text) + 1)
        if i % 5 == 4:
            n = min(3, len(text) - pos)
            a.delete(pos, n)
            text = text[:pos] + text[pos + n :]
        else:
            a.insert(pos, "ab")
            text = text[:pos] + "ab" + text[pos:]
    assert a.text == text
    assert a._check() == 0
    b = RGA.from_bytes(a.to_bytes(), actor="b")
    assert b.text == text
    assert b._check() == 0
    b.delete(0, len(b))
    assert a.merge(b).text == ""
    assert a._check() == 0


def test_a_run_that_goes_on_before_something_new_keeps_its_own_right_origin():
    a = RGA(actor="a")
    a.insert(0, "x")
    b = a.fork("b")
    b.insert(1, "w")
    a.merge(b)
    a.insert(1, "y")
    assert b.merge(a).text == a.text == "xyw"
    assert b.to_bytes() == a.to_bytes()


Id = tuple[int, int] | None  # the agent's place and the count; None is the end of the sequence
HEADS = {"insert": 2, "gone": 5, "remove": 6, "remove back": 7}  # with the right origin named


def number(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes(out) + bytes([value])


def column(agents: int, ids: list[tuple[Id, tuple[int, int] | None]]) -> bytes:
    """Differences to the count that came last, of each agent; with each id, what comes last then, if it is not that."""
    last, out = [0] * agents, b""
    for id, then in ids:
        if id is None:
            out += b"\0"
        else:
            step = id[1] - last[id[0]]
            out += number(1 + (2 * step if step >= 0 else -2 * step - 1) * agents + id[0])
            last[id[0]] = id[1]
        if then is not None:
            last[then[0]] = then[1]
    return out


def hostile(
    counts: list[tuple[str, int, int]],
    *runs: tuple[Any, ...],
    text: str = "",
    says: list[tuple[str, Any]] = [],  # noqa: B006
) -> bytes:
    """A delta of (actor, first count, last count) and, in the order of these, runs of (what, length, left, right), or
    ("mark", flags, left, right, place in says, stamp); with a right sum, as a stranger would make it."""
    body = b"NVU\x02" + number(len(counts))
    for name, first, last in counts:
        body += number(len(name)) + name.encode() + number(first) + number(last)
    body += number(len(text.encode()) << 1) + text.encode() + number(len(says))
    for say in says:
        raw = msgspec.msgpack.encode(say)
        body += number(len(raw)) + raw
    dots = [(place, at) for place, (_, first, last) in enumerate(counts) for at in range(first, last)]
    heads, lefts, rights, marks, stamp = b"", [], [], b"", 0
    for what, length, left, right, *said in runs:
        dot = dots[0]
        if what == "mark":
            heads += number(length)
            step = said[1] - stamp
            marks += number(said[0]) + number(2 * step if step >= 0 else -2 * step - 1)
            stamp = said[1]
            lefts.append((left, None))
            rights.append((right, None))
            dots = dots[1:]
            continue
        heads += number(length << 3 | HEADS[what])
        if what in ("insert", "gone"):
            lefts.append((left, (dot[0], dot[1] + length - 1)))
            rights.append((right, None))
        else:
            back = what == "remove back" or length == 1
            lefts.append((left, (left[0], left[1] - 1 if back else left[1] + length)))
        dots = dots[length:]
    body += heads + column(len(counts), lefts) + column(len(counts), rights) + marks
    return body + digest128(body, 0x4E56)[:8]


def test_a_run_that_goes_on_before_what_nobody_inserted_is_refused():
    # Its first events are known here, so only the rest is new; the right origin was not looked at and then followed.
    replica = RGA().merge(typed("a", "abc")).merge(typed("b", "xyz"))
    before = replica.to_bytes()
    with pytest.raises(CorruptionError, match="no possible history"):
        replica.apply_delta(hostile([("a", 0, 5)], ("insert", 5, None, (0, 60)), text="abcde"))
    assert replica.to_bytes() == before
    assert replica.text == "abcxyz"


def test_what_is_known_as_a_deletion_is_not_taken_for_an_insert():
    # The run that says so is known and passed over; the next one holds on to its last event.
    writer = typed("a", "abc")
    writer.delete(2, 1)
    replica = writer.fork(None)
    before = replica.to_bytes()
    with pytest.raises(CorruptionError, match="no possible history"):
        replica.apply_delta(
            hostile([("a", 0, 5)], ("insert", 4, None, None), ("insert", 1, (0, 3), None), text="abcde")
        )
    assert replica.to_bytes() == before


def test_what_goes_on_behind_a_run_but_before_another_element_is_no_part_of_it():
    # y has the next count and stands next to x, but was typed before z; nobody may think that it was at the end.
    a = typed("a", "x")
    z = a.fork("b")
    z.insert(1, "z")
    a.merge(z).insert(1, "y")
    reader = RGA().merge(a)
    assert reader.text == "xyz"
    assert reader.to_bytes() == a.to_bytes() == RGA.from_bytes(a.to_bytes()).merge(reader).to_bytes()
    for replica in (a, reader):
        assert replica._check() == 0


@pytest.mark.parametrize("steps", [(2, 1), (0, 0)], ids=["backward", "forward"])
def test_deleting_character_by_character_keeps_every_element_findable(steps):
    # The border between what is there and what is gone moves, in the index of the actor, too; its pieces hold 64 runs.
    replica = RGA(actor="a")
    for _ in range(100):
        replica.insert(0, "abcd")  # each is a run of its own
    for left, offset in zip((3, 2), steps, strict=True):
        for run in range(100):
            replica.delete(left * run + offset, 1)
            assert replica._check() == 0
    assert replica.text == ("ad" if steps[0] else "cd") * 100
    assert RGA.from_bytes(replica.to_bytes()).digest() == replica.digest()


def typed(actor: str, text: str) -> RGA:
    replica = RGA(actor=actor)
    replica.insert(0, text)
    return replica


@pytest.mark.parametrize(
    ("left", "right", "text"),
    [
        (2, 1, "abcde*"),  # behind what it should stand before
        (2, 2, "abcde*"),
        (0, 3, "abc*de"),  # honest writers have the right origin at the beginning of a run, or break the run there
    ],
)
def test_origins_that_no_honest_writer_names_break_no_order(left, right, text):
    base = typed("a", "abcde")
    strange = hostile([("a", 5, 5), ("z", 0, 1)], ("insert", 1, (0, left), (0, right)), text="*")
    direct, by_state = base.fork(None).apply_delta(strange), RGA()
    by_state.merge(direct)
    assert direct.text == text
    assert direct._check() == by_state._check() == 0
    assert direct.to_bytes() == by_state.to_bytes() == RGA.from_bytes(direct.to_bytes()).to_bytes()
    # Who learned of other text first has the same order.
    late = base.fork("b")
    late.insert(3, "...")
    early = late.fork(None)
    late.apply_delta(strange)
    assert late._check() == 0
    assert direct.merge(early).to_bytes() == late.to_bytes()
    assert direct.text == late.text


claims = st.lists(
    st.tuples(st.integers(0, 2), st.integers(1, 3), st.integers(-1, 40), st.integers(-1, 40), st.booleans()),
    min_size=2,
    max_size=12,
)


@given(claims, st.randoms(use_true_random=False))
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_made_up_origins_give_one_order_however_they_come(steps, random):
    ops: set[model.Op] = set()
    ids: list[model.Id] = []
    runs: list[tuple[str, int, int, model.Id | None, model.Id | None]] = []
    for who, length, at, behind, fresh in steps:
        name = f"{NAMES[who]}{len(runs) if fresh else ''}"
        left, right = (ids[i % len(ids)] if ids and i >= 0 else None for i in (at, behind))
        first = model.next_count(ops, name)
        runs.append((name, first, length, left, right))
        for count in range(first, first + length):
            model.claim(ops, name, left, right, chr(97 + len(ids) % 26))
            left = (name, count)
            ids.append(left)
    chars = {op[1]: op[4] for op in ops}
    expected = model.Fugue(ops)

    def send(replica: RGA, name: str, first: int, until: int, left: model.Id | None, right: model.Id | None) -> None:
        named = sorted({name} | {node[0] for node in (left, right) if node})
        at = [None if node is None else (named.index(node[0]), node[1]) for node in (left, right)]
        text = "".join(chars[name, i] for i in range(first, until))
        counts = [(n, first, until) if n == name else (n, *[replica.context.vector.get(n)] * 2) for n in named]
        replica.apply_delta(hostile(counts, ("insert", until - first, *at), text=text))

    states = []
    for _ in range(2):
        replica, todo = RGA(), runs[:]
        while todo:
            ready = [
                run
                for run in todo
                if replica.context.vector.get(run[0]) == run[1]
                and all(n is None or n[1] < replica.context.vector.get(n[0]) for n in run[3:])
            ]
            name, first, length, left, right = run = random.choice(ready)
            cut = random.randint(1, length)
            if cut < length:  # in pieces: the second as a run of its own, or as one of which a part is known
                send(replica, name, first, first + cut, left, right)
                if random.random() < 0.5:
                    first, left = first + cut, (name, first + cut - 1)
            send(replica, name, first, run[1] + length, left, right)
            assert replica._check() == 0
            todo.remove(run)
        states.append(replica)
        assert replica.text == expected.text
    assert states[0].to_bytes() == states[1].to_bytes()
    assert states[0].digest() == states[1].digest() == RGA.from_bytes(states[0].to_bytes()).digest()


def test_refused_events_leave_no_actors_behind():
    # A sequence has room for 65535; whoever could fill it with names would shut every new writer out.
    replica = typed("a", "abc")
    before = replica.memory_bytes
    for i in range(300):
        names = sorted(f"{i:03}{j:03}" for j in range(100))
        behind = [("insert", 1, (place, 50), None) for place in range(100)]  # what nobody inserted
        with pytest.raises(CorruptionError, match="no possible history"):
            replica.apply_delta(hostile([(name, 0, 1) for name in names], *behind, text="x" * 100))
    assert replica.memory_bytes < before + 100_000
    replica.merge(typed("b", "xyz"))
    assert replica.text == "abcxyz"


def test_a_jump_of_counts_costs_no_memory():
    # A stranger says in a few bytes that he wrote and deleted four thousand million elements. That may be so.
    count = 2**32 - 2
    body = b"NVU\x02\1\1z\0" + number(count) + b"\0\0" + number(count << 3 | HEADS["gone"]) + b"\0\0"
    replica = typed("a", "abc").apply_delta(body + digest128(body, 0x4E56)[:8])
    assert replica.context.vector.get("z") == count
    assert replica.text == "abc"
    assert replica.memory_bytes < 100_000
    assert RGA.from_bytes(replica.to_bytes())._check() == 0


def test_an_actor_cannot_delete_more_than_there_is():
    # One actor deletes an element once; a hostile one could make each of its few bytes a pass over the whole text.
    base = typed("a", "abcde")
    removal = ("remove", 5, (0, 0), None)
    with pytest.raises(CorruptionError, match="no possible history"):
        base.fork(None).apply_delta(hostile([("a", 5, 5), ("z", 0, 10)], removal, removal))
    once = hostile([("a", 5, 5), ("z", 0, 5)], removal)
    assert base.fork(None).apply_delta(once).text == ""


def test_pickles_come_back():
    a = RGA(actor="a")
    a.insert(0, "x")
    assert pickle.loads(pickle.dumps(a)) == a


def test_it_fills_the_seam():
    assert isinstance(RGA(), Crdt)
