"""The whole store in the simulator, and the simulator's own test: it has to notice bugs that are put in on purpose."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import pytest

from nova.cli.histories import History
from nova.conflict.audit import AuditChain
from nova.crdt.keyspace import Keyspace
from nova.sim.disk import SimSnapshots
from nova.sim.faults import load_plan
from nova.storage.pipeline import Pipeline
from nova.store.conflicts import Conflicts
from nova.store.core import Replica
from nova.store.history import Feed
from nova.store.kinds import Counter
from nova.sync.retire import Retirement, count_of
from nova.types import Outputs
from tests.models.keyspace import Op, live

PLANS = Path(__file__).parent / "plans"
"""Faults under which a bug was found that is mended since; plans are drawn in another way now."""


@pytest.mark.parametrize("seed", range(1_000, 1_030))
def test_every_promise_holds_under_faults(seed):
    assert History(seed, nodes=3, faults=20).run() == []


# 162: a state is joined over what had arrived meanwhile; see `base` in Keyspace.join
# 797, 1779: one batch removes a key and creates another, and a listing goes by the keys of before
@pytest.mark.parametrize("seed", [162, 797, 1_779])
def test_a_history_that_once_broke_a_promise_keeps_it(seed):
    plan = load_plan((PLANS / f"store-{seed}.json").read_bytes())
    assert History(seed, nodes=3, faults=plan).run() == []


@pytest.mark.parametrize("seed", range(1_100, 1_106))
def test_every_promise_holds_in_a_larger_cluster(seed):
    assert History(seed, nodes=7, faults=20).run() == []


def rows_of(replica):
    return {
        (key, path, *row.write.dot, row.value)
        for key, entry in replica.space.entries.items()
        for path, rows in entry.live()
        for row in rows
    }


@pytest.mark.parametrize("seed", range(1_200, 1_220))
def test_every_node_ends_with_the_rows_that_the_definition_says(seed, monkeypatch):
    written = defaultdict(set)
    write = Replica._write

    def recorded(self, key, kind, puts, drops, clear, context):
        token, done = write(self, key, kind, puts, drops, clear, context)
        known = done.context if context is None else context
        written[key].add(Op(*done.dot, key, tuple(puts), tuple(drops), clear, tuple(sorted(known.items()))))
        return token, done

    monkeypatch.setattr(Replica, "_write", recorded)
    history = History(seed, nodes=3, faults=12)
    assert history.run() == []
    for member in history.world:
        clock = member.replica.clock()
        expected = set()
        for ops in written.values():  # a crash before the disk had them undid some: nobody knows of those
            expected |= live(
                {op for op in ops if op.count <= min(count_of(clock, op.actor), history.finals.get(op.actor, op.count))}
            )
        assert rows_of(member.replica) == expected


def test_one_seed_is_one_history():
    traces = []
    for _ in range(2):
        history = History(7, nodes=3, faults=12)
        history.run()
        traces.append((history.world.trace, history.world.events))
    assert traces[0] == traces[1]


def release_before_the_disk_answered(monkeypatch):
    submit = Pipeline.submit

    def hasty(self, outputs):
        self._release(Outputs(send=outputs.send, apply=outputs.apply))
        submit(self, Outputs(persist=outputs.persist))

    monkeypatch.setattr(Pipeline, "submit", hasty)


def forget_a_batch_now_and_then(monkeypatch):
    receive = Replica.receive

    def lossy(self, batch):
        outputs = receive(self, batch)
        if outputs and outputs.persist and len(batch) % 7 == 0:
            outputs.persist.clear()
        return outputs

    monkeypatch.setattr(Replica, "receive", lossy)


def tell_clocks_that_are_not_durable(monkeypatch):
    monkeypatch.setattr(Replica, "clock", lambda self: self.space.clock)


def claim_more_in_a_snapshot_than_it_holds(monkeypatch):
    save = SimSnapshots.save
    monkeypatch.setattr(SimSnapshots, "save", lambda self, position, state: save(self, position + 3, state))


def settle_by_who_is_asked(monkeypatch):
    settle = Conflicts.settle

    def partial(self, rows, contended):
        if self._replica.node == "n0":
            contended = {path: items[:-1] or items for path, items in contended.items()}
        return settle(self, rows, contended)

    monkeypatch.setattr(Conflicts, "settle", partial)


def restart_under_the_old_name(monkeypatch):
    make = Replica.__init__

    def same_incarnation(self, node, **options):
        make(self, node, **{**options, "incarnation": 1})

    monkeypatch.setattr(Replica, "__init__", same_incarnation)
    # A node that continues its old actor after it lost unsynced events gives their numbers away twice, unless it never
    # sends before it syncs. So the order is broken here, too.
    release_before_the_disk_answered(monkeypatch)


def acknowledge_what_was_not_written(monkeypatch):
    put = Replica.put
    monkeypatch.setattr(Replica, "put", lambda self, request: (0, put(self, request)[1]))


def do_what_the_condition_forbids(monkeypatch):
    monkeypatch.setattr(Replica, "_check_condition", lambda self, key, rows, request: None)


def delete_more_than_the_context_knows(monkeypatch):
    write = Replica._write

    def greedy(self, key, kind, puts, drops, clear, context):
        return write(self, key, kind, puts, drops, clear, None if clear else context)

    monkeypatch.setattr(Replica, "_write", greedy)


def show_what_is_not_on_disk(monkeypatch):
    monkeypatch.setattr(Replica, "token_of", lambda self, key: 0)


def wait_for_all_but_the_open_batch(monkeypatch):
    monkeypatch.setattr(Replica, "newest_token", property(lambda self: self._token))


def add_up_what_writers_of_another_kind_left(monkeypatch):
    monkeypatch.setattr(
        Counter, "join", lambda self, leaves: sum(up - down for path, (up, down) in leaves.items() if path)
    )


def tell_of_joined_keys_as_one_change(monkeypatch):
    monkeypatch.setattr(Replica, "_revised", lambda self, keys: [(self.space.revision, key) for key in keys])


def leave_a_change_out_of_the_feed(monkeypatch):
    add = Feed.add

    def forgetful(self, revision, key):
        if revision % 50:
            add(self, revision, key)
        self.newest = max(self.newest, revision)

    monkeypatch.setattr(Feed, "add", forgetful)


def lose_an_audit_event_now_and_then(monkeypatch):
    append = AuditChain.append

    def lossy(self, *event):
        record = append(self, *event)
        if self.seq % 20 == 0:
            append(self, *event)
        return record

    monkeypatch.setattr(AuditChain, "append", lossy)


def take_a_floor_over_without_what_is_below_it(monkeypatch):
    retire = Replica.retire
    monkeypatch.setattr(
        Replica,
        "retire",
        lambda self, node, upto, total: retire(self, node, upto, self.space.operations(node, upto)),
    )
    # Where all were asked before, all have everything.
    monkeypatch.setattr(Retirement, "waits_for", lambda self: [])


def raise_a_floor_in_memory_only(monkeypatch):
    retire = Replica.retire

    def forgetful(self, node, upto, total):
        outputs = retire(self, node, upto, total)
        outputs.persist.clear()
        return outputs

    monkeypatch.setattr(Replica, "retire", forgetful)


MUTANTS = [
    release_before_the_disk_answered,
    forget_a_batch_now_and_then,
    tell_clocks_that_are_not_durable,
    claim_more_in_a_snapshot_than_it_holds,
    settle_by_who_is_asked,
    restart_under_the_old_name,
    acknowledge_what_was_not_written,
    do_what_the_condition_forbids,
    delete_more_than_the_context_knows,
    show_what_is_not_on_disk,
    wait_for_all_but_the_open_batch,
    add_up_what_writers_of_another_kind_left,
    tell_of_joined_keys_as_one_change,
    leave_a_change_out_of_the_feed,
    lose_an_audit_event_now_and_then,
    take_a_floor_over_without_what_is_below_it,
    raise_a_floor_in_memory_only,
]


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.__name__)
def test_a_bug_put_in_on_purpose_is_caught(mutant, monkeypatch):
    mutant(monkeypatch)
    for seed in range(60):
        try:
            if History(seed, nodes=3, faults=24).run():
                return
        except AssertionError:
            return
    pytest.fail(f"60 seeds did not notice: {mutant.__name__}")


def test_the_keyspace_under_test_is_the_compiled_one():
    assert Keyspace.__module__ == "nova._native.keyspace"
