"""The count of conflicts that wait for somebody is kept, not searched for; it is what a search would find."""

from __future__ import annotations

from nova.store import ReplicatedStore


def searched(store: ReplicatedStore) -> int:
    return sum(conflict["status"] == "pending" for conflict in store.conflicts(10_000))


def test_the_pending_conflicts_are_those_that_a_search_finds() -> None:
    with ReplicatedStore(node="a", kinds={"vm/": "vm"}) as store:
        conflicts = store.replica.conflicts
        assert conflicts.pending() == searched(store) == 0
        for number in range(3):
            networks = [{"mac": f"52:54:00:00:00:0{number}", "ip": f"10.0.0.{number // 2}"}]
            store.put(f"vm/{number}", {"id": str(number), "power_state": "running", "networks": networks})
        assert conflicts.pending() == searched(store) == 1  # vm/0 and vm/1 claim one address
        store.delete("vm/1")
        assert conflicts.pending() == searched(store) == 0
