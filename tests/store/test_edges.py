"""The edges of the store: each test failed once."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from nova import ReplicatedStore
from nova.crdt.keyspace import Keyspace
from nova.errors import LimitError, UsageError
from nova.metrics import Registry
from nova.storage.pipeline import Pipeline
from nova.store.core import Durable, Replica, StoreConfig
from nova.store.model import Put
from nova.types import Outputs


def replica(node: str, metrics: Registry | None = None) -> Replica:
    return Replica(node, wall_ns=lambda: 1_700_000_000_000_000_000, metrics=metrics)


def commit(member: Replica, outputs: Outputs | None) -> list[bytes]:
    """Say that everything is on disk; the records."""
    assert outputs is not None
    for event in outputs.apply:
        if isinstance(event, Durable):
            member.applied(event)
    return outputs.persist


def write(space: Keyspace, key: str, kind: int, stamp: int, *, clear: bool = False, context: Any = None) -> bytes:
    space.write(key, kind, [] if clear else [("", b"\xc0")], [], clear, context, stamp)
    closed = space.close_batch()
    assert closed is not None
    return closed[2]


def test_a_removal_of_the_newest_row_gives_the_kind_back_to_the_rows_that_are_left() -> None:
    a, b = Keyspace("a~1"), Keyspace("b~1")
    old, new = write(a, "k", 0, 10), write(b, "k", 2, 20)
    gone = write(b, "k", 2, 30, clear=True)
    one, other = Keyspace("c~1"), Keyspace("d~1")
    for batch in (old, new, gone):
        one.receive(batch)
    for batch in (new, gone, old):
        other.receive(batch)
    assert one.digest == other.digest
    assert one.get("k").kind == other.get("k").kind == 0


def test_a_joined_state_that_removes_the_newest_row_gives_the_kind_back() -> None:
    a, b = Keyspace("a~1"), Keyspace("b~1")
    old, new = write(a, "k", 0, 10), write(b, "k", 2, 20)
    one, other = Keyspace("c~1"), Keyspace("d~1")
    for batch in (old, new):
        one.receive(batch)
    for batch in (old, new, write(b, "k", 2, 30, clear=True)):
        other.receive(batch)
    one.join(other.state())
    assert one.digest == other.digest
    assert one.get("k").kind == other.get("k").kind == 0


def test_a_watcher_gets_the_changes_of_a_joined_state_after_a_restart_too() -> None:
    source, target = replica("a"), replica("b")
    for number in range(3):
        source.put(Put(f"k{number}", number))
    commit(source, source.turn())
    records = commit(target, target.join(source.snapshot()))
    before = [(change.revision, change.key) for change in target.changes(0)]
    again = replica("b")
    for record in records:
        again.replay(record)
    again.recovered()
    assert before
    assert [(change.revision, change.key) for change in again.changes(0)] == before


def test_a_long_chain_of_siblings_is_freed_without_recursion() -> None:
    program = (
        "from nova.crdt.keyspace import Keyspace\n"
        "a = Keyspace('a~1')\n"
        "for n in range(20_000): a.write('k', 0, [('', b'x')], [], False, {}, n)\n"
        "import threading\n"
        "b = Keyspace('b~1')\n"
        "b.receive(a.close_batch()[2])\n"
        "a.write('k', 0, [], [], True, {'a~1': 20_000}, 20_001)\n"
        "a.close_batch()\n"
        "threading.stack_size(256 * 1024)\n"
        "t = threading.Thread(target=b.join, args=[a.state()])\n"
        "t.start(); t.join()\n"
        "assert b.get('k') is None\n"
        "print('freed')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.stdout == "freed\n", (done.returncode, done.stderr)


@pytest.mark.parametrize(
    ("key", "value", "kind", "merge"),
    [
        ("half\ud800", 1, None, False),
        ("text", "half\ud800", None, False),
        ("huge", 1 << 70, None, False),
        ("set", {"add": "ab"}, "set", True),
        ("set", {"add": 5}, "set", True),
        ("map", {"half\ud800": 1}, "map", False),
    ],
)
def test_a_value_that_cannot_be_stored_is_the_callers_mistake(key: str, value: Any, kind: Any, merge: bool) -> None:
    with ReplicatedStore() as store:
        with pytest.raises(UsageError):
            store.put(key, value, kind=kind, merge=merge)
        store.put("after", 1)
        assert store.get("after").value == 1


def test_siblings_of_one_who_never_reads_are_bounded():
    store = ReplicatedStore(node="a", config=StoreConfig(siblings_max=3))
    for n in range(3):
        store.put("k", n, context={})
    with pytest.raises(LimitError, match="3 concurrent values"):
        store.put("k", 9, context={})
    store.put("k", 9, context=store.get("k").clock)
    assert store.get("k").siblings == []


@pytest.mark.parametrize("count", [-1, 1 << 48, 1 << 70])
def test_a_context_that_no_clock_can_be_is_refused(count):
    store = ReplicatedStore(node="a")
    with pytest.raises(UsageError, match="counts are 0 to"):
        store.put("k", 1, context={"a~1": count})
    assert store.replica.settled


def test_a_change_of_nothing_writes_nothing():
    store = ReplicatedStore(node="a", kinds={"m/": "map"})
    before = store.put("m/1", {"x": 1})
    assert store.put("m/1", {}, merge=True) == before
    assert store.clock == {"a~1": 1}


def test_whoever_cannot_take_what_is_released_stops_the_pipeline():
    class Instant:
        last = durable = 0

        def append(self, records):
            self.last += len(records)
            return self.last

        def sync(self, done):
            done(self.last, None)

    failures = []

    def broken(event):
        raise ZeroDivisionError("a defect")

    pipeline = Pipeline(Instant(), send=lambda peer, message: None, apply=broken, failed=failures.append)
    pipeline.submit(Outputs(persist=[b"x"], apply=["event"]))
    with pytest.raises(ZeroDivisionError):
        pipeline.flush()
    assert failures == [pipeline.error]
    with pytest.raises(ZeroDivisionError):
        pipeline.submit(Outputs(persist=[b"y"]))


def test_a_joined_state_counts_its_keys_as_merges_and_its_clashes_as_conflicts() -> None:
    registry = Registry()
    source, target = replica("a"), replica("b", metrics=registry)
    for number in range(3):
        source.put(Put(f"k{number}", number))
    target.put(Put("k1", "other"))
    commit(source, source.turn())
    commit(target, target.turn())
    commit(target, target.join(source.snapshot()))
    page = registry.render()
    assert b'dwcp_crdt_merges_total{crdt_type="register",result="clean"} 2\n' in page
    assert b'dwcp_crdt_merges_total{crdt_type="register",result="conflict"} 1\n' in page
    assert b'dwcp_crdt_conflicts_total{crdt_type="register",conflict_type="concurrent_update"} 1\n' in page
    assert b'dwcp_resource_conflict_count{resource_id="k1"} 1\n' in page
    assert b"dwcp_data_loss_events_total 1\n" in page
