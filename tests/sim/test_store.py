"""The whole store in the simulator, and the simulator's own test: it has to notice bugs that are put in on purpose."""

from __future__ import annotations

import pytest

from nova.cli.simulate import History
from nova.crdt.keyspace import Keyspace
from nova.sim.disk import SimSnapshots
from nova.storage.pipeline import Pipeline
from nova.store.conflicts import Conflicts
from nova.store.core import Replica
from nova.types import Outputs

SEEDS = [157, *range(1_000, 1_030)]  # 157: a state joined over what had arrived meanwhile


@pytest.mark.parametrize("seed", SEEDS)
def test_every_promise_holds_under_faults(seed):
    assert History(seed, nodes=3, faults=12).run() == []


@pytest.mark.parametrize("seed", range(1_100, 1_106))
def test_every_promise_holds_in_a_larger_cluster(seed):
    assert History(seed, nodes=7, faults=20).run() == []


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


MUTANTS = [
    release_before_the_disk_answered,
    forget_a_batch_now_and_then,
    tell_clocks_that_are_not_durable,
    claim_more_in_a_snapshot_than_it_holds,
    settle_by_who_is_asked,
    restart_under_the_old_name,
    acknowledge_what_was_not_written,
]


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.__name__)
def test_a_bug_put_in_on_purpose_is_caught(mutant, monkeypatch):
    mutant(monkeypatch)
    for seed in range(60):
        try:
            if History(seed, nodes=3, faults=12).run():
                return
        except AssertionError:
            return
    pytest.fail(f"60 seeds did not notice: {mutant.__name__}")


def test_the_keyspace_under_test_is_the_compiled_one():
    assert Keyspace.__module__ == "nova._native.keyspace"
