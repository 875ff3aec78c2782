"""The machine of strong keys against a dictionary, and its promises one by one."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nova.consensus.core import Command
from nova.errors import CompactedError, CorruptionError, UsageError
from nova.store.strong import (
    Add,
    Exists,
    Read,
    Remove,
    StrongMachine,
    Transact,
    ValueIs,
    VersionIs,
    Write,
)
from nova.store.strong.commands import (
    Get,
    Page,
    Told,
    Verdict,
    pack,
    packed,
    unpack_held,
    unpack_listed,
    unpack_told,
    unpacked,
)

ROOM = 1 << 20


def asked(machine, key, conditions=(), operations=(), *, room=ROOM, origin="a"):
    command = pack(Transact(key, tuple(conditions), tuple(operations), origin, 7, room))
    (told,) = machine.apply([Command(1, 1, command)])
    return unpack_told(told)


def put(machine, key, value, *conditions, **more):
    return asked(machine, key, conditions, [Write(packed(value))], **more)


def same(machine, other):
    assert machine.digest == other.digest
    assert machine.snapshot() == other.snapshot()
    assert (machine.revision, machine.bytes, len(machine)) == (other.revision, other.bytes, len(other))


# ------------------------------------------------------------------------------------------------ a model

keys = st.sampled_from(["a", "a/b", "a/c", "b", "ä"])
numbers = st.integers(-3, 3)
values = st.one_of(numbers, st.text(max_size=3), st.lists(numbers, max_size=2), st.booleans(), st.none())
conditions = st.one_of(
    st.tuples(st.just("version"), st.integers(0, 12)),
    st.tuples(st.just("value"), values),
    st.tuples(st.just("exists"), st.none()),
)
operations = st.one_of(
    st.tuples(st.just("write"), values),
    st.tuples(st.just("remove"), st.none()),
    st.tuples(st.just("add"), numbers),
    st.tuples(st.just("read"), st.none()),
)
transactions = st.tuples(keys, st.lists(conditions, max_size=2), st.lists(operations, max_size=3))

CONDITION = {
    "version": VersionIs,
    "value": lambda value: ValueIs(packed(value)),
    "exists": lambda _: Exists(),
}
OPERATION = {
    "write": lambda value: Write(packed(value)),
    "remove": lambda _: Remove(),
    "add": Add,
    "read": lambda _: Read(),
}
ABSENT = object()


class Model:
    """The same in the words of a dictionary: key -> (value, version)."""

    def __init__(self):
        self.held, self.revision, self.log = {}, 0, []

    def transact(self, key, conditions, operations):
        value, version = self.held.get(key, (ABSENT, 0))
        for what, operand in conditions:
            if what == "version" and version != operand:
                return "stale"
            if what == "exists" and value is ABSENT:
                return "stale"
            if what == "value" and (value is ABSENT or json.dumps(value) != json.dumps(operand)):
                return "stale"
        was, changes = value, False
        for what, operand in operations:
            changes = changes or what != "read"
            if what == "write":
                value = operand
            elif what == "remove":
                value = ABSENT
            elif what == "add":
                base = 0 if value is ABSENT else value
                if isinstance(base, bool) or not isinstance(base, int):
                    return "refused"
                value = base + operand
        if changes and not (was is ABSENT and value is ABSENT):
            self.revision += 1
            if value is ABSENT:
                del self.held[key]
            else:
                self.held[key] = (value, self.revision)
            self.log.append((self.revision, key, None if value is ABSENT else value, value is ABSENT))
        return "done"


@settings(max_examples=200, deadline=None)
@given(st.lists(transactions, max_size=25), st.integers(0, 25))
def test_the_machine_does_what_a_dictionary_does_and_a_restored_one_goes_on_alike(steps, cut):
    machine, model = StrongMachine(), Model()
    other = StrongMachine()
    for number, (key, ifs, dos) in enumerate(steps):
        if number == cut:
            other.restore(machine.snapshot())
            same(machine, other)
        told = asked(machine, key, [CONDITION[w](o) for w, o in ifs], [OPERATION[w](o) for w, o in dos])
        assert told.verdict.name.lower() == model.transact(key, ifs, dos)
        assert told.revision == model.revision
        if number >= cut:
            asked(other, key, [CONDITION[w](o) for w, o in ifs], [OPERATION[w](o) for w, o in dos])
            same(machine, other)
    held = {key: (unpacked(entry.value), entry.version) for key, entry in machine.page("", "", 1000).items}
    assert held == model.held
    assert list(held) == sorted(held)
    changes, newest = machine.changes(0)
    assert newest == model.revision
    seen = [(c.revision, c.key, None if c.held is None else unpacked(c.held.value), c.held is None) for c in changes]
    assert seen == model.log


@settings(max_examples=50, deadline=None)
@given(st.lists(transactions, max_size=15))
def test_it_does_not_matter_how_commands_are_batched(steps):
    commands = []
    for number, (key, ifs, dos) in enumerate(steps):
        conditions, operations = [CONDITION[w](o) for w, o in ifs], [OPERATION[w](o) for w, o in dos]
        commands.append(Command(1, number, pack(Transact(key, tuple(conditions), tuple(operations), "a", 1, ROOM))))
    whole, single = StrongMachine(), StrongMachine()
    assert whole.apply(commands) == [told for command in commands for told in single.apply([command])]
    same(whole, single)


# ------------------------------------------------------------------------------------------------ one by one


def test_compare_and_set_takes_the_version_that_was_read_and_no_other():
    machine = StrongMachine()
    first = put(machine, "k", 1, VersionIs(0))
    assert first.verdict is Verdict.DONE
    assert put(machine, "k", 2, VersionIs(0)).verdict is Verdict.STALE
    second = put(machine, "k", 2, VersionIs(first.held.version))
    assert second.verdict is Verdict.DONE
    stale = put(machine, "k", 3, VersionIs(first.held.version))
    assert (stale.verdict, stale.held, stale.failed) == (Verdict.STALE, second.held, 0)
    assert unpacked(machine.get("k").value) == 2


def test_a_key_that_was_deleted_and_made_again_never_has_a_version_that_it_had():
    machine = StrongMachine()
    version = put(machine, "k", 1).held.version
    assert asked(machine, "k", [], [Remove()]).held is None
    again = put(machine, "k", 1)
    assert again.held.version > version
    assert put(machine, "k", 2, VersionIs(version)).verdict is Verdict.STALE


def test_a_transaction_is_all_or_nothing():
    machine = StrongMachine()
    put(machine, "k", 1)
    before = machine.snapshot()
    told = asked(machine, "k", [], [Write(packed("text")), Add(1)])
    assert (told.verdict, told.failed) == (Verdict.REFUSED, 1)
    assert "number" in told.reason
    told = asked(machine, "k", [Exists(), VersionIs(9)], [Write(packed(2))])
    assert (told.verdict, told.failed) == (Verdict.STALE, 1)
    assert machine.snapshot() == before
    told = asked(machine, "k", [ValueIs(packed(1))], [Add(2), Read(), Remove(), Write(packed("x"))])
    assert told.results == (b"3", b"3", None, b'"x"')
    assert told.held.version == machine.revision == 2  # one change, however many operations


def test_what_would_not_fit_is_refused_and_deleting_makes_room():
    machine = StrongMachine()
    assert put(machine, "a", "x" * 100, room=300).verdict is Verdict.DONE
    told = put(machine, "b", "x" * 200, room=300)
    assert (told.verdict, told.held) == (Verdict.REFUSED, None)
    assert "consensus.bytes_max" in told.reason
    assert put(machine, "a", "x" * 90, room=10).verdict is Verdict.DONE  # smaller than before
    assert asked(machine, "a", [], [Remove()], room=10).verdict is Verdict.DONE
    assert machine.bytes == 0
    assert put(machine, "b", "x" * 200, room=300).verdict is Verdict.DONE


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        pack(("no", "such", "command")),
        pack(Transact("", (), (Write(b"1"),), "a", 1, ROOM)),
        pack(Transact("k", (Exists(),) * 65, (), "a", 1, ROOM)),
        pack(Transact("k", (), (Read(),) * 65, "a", 1, ROOM)),
        pack(Transact("k", (), (Write(b"not json"), Add(1)), "a", 1, ROOM)),
        pack(Transact("k", (), (Write(b"true"), Add(1)), "a", 1, ROOM)),
        pack(Transact("k", (), (Write(b"1e308"), Add(1e308)), "a", 1, ROOM)),
        pack(Transact("k", (), (Write(str(2**63 - 1).encode()), Add(1)), "a", 1, ROOM)),
    ],
)
def test_whatever_comes_through_the_log_is_answered_and_changes_nothing(data):
    machine = StrongMachine()
    told = unpack_told(machine.apply([Command(1, 1, data)])[0])
    assert told.verdict is Verdict.REFUSED
    assert told.reason
    assert (len(machine), machine.revision) == (0, 0)


def test_a_page_begins_behind_a_key_and_says_whether_there_is_more():
    machine = StrongMachine()
    for key in ("b/2", "a", "b/1", "b/3", "c"):
        put(machine, key, key)
    page = unpack_listed(machine.read(pack(Page("b/", "", 2))))
    assert ([key for key, _ in page.items], page.more) == (["b/1", "b/2"], True)
    page = unpack_listed(machine.read(pack(Page("b/", "b/2", 2))))
    assert ([key for key, _ in page.items], page.more) == (["b/3"], False)
    assert unpack_held(machine.read(pack(Get("none")))) is None
    for query in (pack(Page("", "", 0)), pack(Page("", "", 1001)), b"\xc1"):
        with pytest.raises(UsageError):
            machine.read(query)


def test_the_feed_is_bounded_and_says_what_it_forgot():
    machine = StrongMachine(feed_max=3)
    for number in range(5):
        put(machine, f"k{number}", number)
    assert machine.compacted == 2
    with pytest.raises(CompactedError) as error:
        machine.changes(1)
    assert error.value.oldest == 2
    changes, newest = machine.changes(2)
    assert ([change.revision for change in changes], newest) == ([3, 4, 5], 5)
    assert machine.changes(2, limit=1)[1] == 3
    assert machine.changes(2, "k4")[0][0].key == "k4"
    assert machine.changes(5) == ([], 5)
    small = StrongMachine(feed_bytes_max=300)
    for number in range(5):
        put(small, f"k{number}", "x" * 100)
    assert 0 < small.revision - small.compacted < 3


def test_a_snapshot_of_another_format_is_refused():
    machine = StrongMachine()
    for data in (b"", b"\xc1", pack((2, 0, []))):
        with pytest.raises(CorruptionError):
            machine.restore(data)
    put(machine, "k", 1)
    other = StrongMachine()
    other.restore(machine.snapshot())
    assert other.compacted == 1  # what was before can't be watched here
    assert isinstance(put(other, "k", 2), Told)
    assert [change.revision for change in other.changes(1)[0]] == [2]


def test_a_member_that_was_overtaken_by_a_snapshot_shows_no_gap_as_if_it_were_none():
    ahead, behind = StrongMachine(), StrongMachine()
    for machine, count in ((ahead, 5), (behind, 2)):
        for number in range(count):
            put(machine, f"k{number}", number)
    behind.restore(ahead.snapshot())
    assert behind.compacted == 5
    with pytest.raises(CompactedError):
        behind.changes(2)
    put(behind, "k", 1)
    assert [change.key for change in behind.changes(5)[0]] == ["k"]
