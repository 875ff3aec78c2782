"""What is wrong for the length of one event is found: invariants are asked after each, and of all that it wrote to."""

from __future__ import annotations

import pytest

from nova.consensus.epaxos.instances import Instance, Status
from nova.sim.changes import Watched
from nova.sim.group import Group
from nova.sim.subjects import SUBJECTS


def wrong_for_one_event(name, break_it):
    """A calm run in which `break_it(core)` breaks something of a member, and the very next event mends it."""
    group = Group(SUBJECTS[name], 3, faults=0, seconds=1, liars={})
    mends = []

    def breaks():
        # In between two events of others: nothing that the member does itself may be needed for it to be seen.
        mends.extend(break_it(group.world["n1"].core))
        group.world.at(0, lambda: [mend() for mend in mends])

    group.world.at(700_000_000, breaks)
    found = group.run()
    assert mends, "there was something to break"
    return found


def set_for_now(thing, name, value):
    before = getattr(thing, name)
    setattr(thing, name, value)
    return [lambda: setattr(thing, name, before)]


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("status", lambda instance: Status.PREACCEPTED, "I6: n1 went back from status 3 to 1"),
        ("ballot", lambda instance: -1, "I6: n1 went back from ballot"),
        ("value", lambda instance: instance.init or b"another", "I3: instance"),
    ],
)
def test_an_instance_that_goes_back_for_one_event_is_found(name, value, says):
    def breaks(core):
        decided = [each for each in core.instances.values() if each.decided and each.init != each.value]
        return set_for_now(decided[-1], name, value(decided[-1]))

    (found,) = wrong_for_one_event("epaxos", breaks)
    assert says in found


def test_another_entry_prepared_for_one_event_is_found():
    def breaks(core):
        prepared = [slot for slot in core.slots.values() if slot.last_prepared is not None]
        view, _ = prepared[-1].last_prepared
        return set_for_now(prepared[-1], "last_prepared", (view, b"another"))

    (found,) = wrong_for_one_event("pbft", breaks)
    assert "n1 prepared different entries for view 0" in found


def test_calm_runs_find_nothing():
    for name in ("epaxos", "pbft"):
        assert wrong_for_one_event(name, lambda core: [lambda: None]) == []


def test_a_watched_table_tells_what_was_put_in_or_written_to_and_tells_it_once():
    first, second, gone = Instance((0, 1)), Instance((0, 2)), Instance((0, 3))
    table = Watched({first.id: first, gone.id: gone}, Instance)
    assert list(table.changed()) == [first, gone]
    assert list(table.changed()) == []
    table[second.id] = second
    first.ballot = 7
    del table[gone.id]
    gone.status = Status.COMMITTED  # who holds it writes to it, wherever it is
    assert list(table.changed()) == [second, first, gone]
    assert first.ballot == 7
    assert isinstance(first, Instance)
    for call in (lambda: table.setdefault(first.id, first), lambda: table.update({})):
        with pytest.raises(NotImplementedError, match="table"):
            call()
