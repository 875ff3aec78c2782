"""In which order committed instances are executed: strongly connected components of what depends on what.

An instance may be executed when everything that it depends on, and so on, is committed. Components come in topological
order; within one, by (seq, owner, number). Interfering instances have a path between them in one direction at least,
so every member executes them in the same order (Moraru et al. 2013, section 4.3).

Each instance that can't go on waits under one other that it needs, and is looked at again when that one is decided. So
work grows with what is new, not with the history. The search (Tarjan 1972) has a stack of its own: a long chain must
not exhaust the interpreter's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from heapq import heappop, heappush
from itertools import chain

from nova.consensus.epaxos.conflicts import Conflicts
from nova.consensus.epaxos.instances import Executed, Id, Instance, Keys, Status, is_void


class Graph:
    """The commands that are known and not executed, and what waits for what."""

    def __init__(self, count: int, executed: Executed, conflicts: Conflicts) -> None:
        self.executed = executed
        self._conflicts = conflicts
        self._by_key: dict[bytes, dict[Id, Instance]] = {}
        self._wide: dict[Id, Instance] = {}
        self._all: dict[Id, Instance] = {}
        self._waiters: dict[Id, dict[Id, Instance]] = {}
        self._newest = list(executed.frontier)
        self._blanks: list[set[int]] = [set() for _ in range(count)]
        self._blank_heaps: list[list[int]] = [[] for _ in range(count)]
        self.waiting = 0
        """Committed instances that are not executed yet."""
        for owner in range(count):
            self.heard(owner, executed.last(owner))

    # -- what is known --

    def newest(self, owner: int) -> int:
        """The highest number of a member that was heard of."""
        return self._newest[owner]

    def heard(self, owner: int, number: int) -> None:
        """This number was given by its owner, and so were all before it: what we do not know of them are blanks."""
        for blank in range(self._newest[owner] + 1, number + 1):
            if (owner, blank) not in self.executed:
                self._blanks[owner].add(blank)
                heappush(self._blank_heaps[owner], blank)
        self._newest[owner] = max(self._newest[owner], number)

    def blank(self, owner: int) -> int:
        """The first number of a member whose command is not known."""
        heap, blanks = self._blank_heaps[owner], self._blanks[owner]
        while heap:
            if heap[0] in blanks and (owner, heap[0]) not in self.executed:
                return heap[0]
            blanks.discard(heappop(heap))
        return self._newest[owner] + 1

    def blanks(self, owner: int, limit: int) -> list[int]:
        """The first few of them."""
        if not self._blanks[owner]:
            return []
        numbers = range(self.executed.frontier[owner] + 1, self._newest[owner] + 1)
        found = (number for number in numbers if number in self._blanks[owner] and (owner, number) not in self.executed)
        return [number for number, _ in zip(found, range(limit), strict=False)]

    def know(self, instance: Instance) -> None:
        """Its command is known now."""
        self.heard(*instance.id)
        self._blanks[instance.owner].discard(instance.number)
        if instance.status >= Status.EXECUTED:
            return
        self._all[instance.id] = instance
        if instance.keys is None:
            self._wide[instance.id] = instance
        else:
            for key in instance.keys:
                self._by_key.setdefault(key, {})[instance.id] = instance

    def meeting(self, keys: Keys) -> Iterator[Instance]:
        """Those that are not executed and interfere with these keys."""
        if keys is None:
            return iter(self._all.values())
        if not keys:
            return iter(())
        return chain(*(self._by_key[key].values() for key in keys if key in self._by_key), self._wide.values())

    def _forget(self, instance: Instance) -> None:
        if self._all.pop(instance.id, None) is None:
            return
        if instance.keys is None:
            del self._wide[instance.id]
            return
        for key in instance.keys:
            those = self._by_key[key]
            del those[instance.id]
            if not those:
                del self._by_key[key]

    # -- execution --

    def awaited(self) -> Iterable[Id]:
        """What others wait for."""
        return self._waiters

    def run(self, decided: Iterable[Instance]) -> list[Instance]:
        """These were decided, or became known: what can be executed now, in order."""
        order: list[Instance] = []
        blocked: dict[Id, Id] = {}
        for instance in decided:
            roots: list[Instance] = []
            if instance.decided and instance.status < Status.EXECUTED:
                self.waiting += 1
                roots.append(instance)
            roots += self._waiters.pop(instance.id, {}).values()
            # Marks of an earlier round of this call may name what is decided by now.
            blocked.clear()
            for root in roots:
                if root.status >= Status.EXECUTED:
                    continue
                blocker = self._visit(root, blocked, order)
                if blocker is not None:
                    self._waiters.setdefault(blocker, {})[root.id] = root
        return order

    def repeat(self, instance: Instance) -> None:
        """Execute what was executed before, on top of another state."""
        self.waiting += 1
        self._finish([instance], [])

    def _finish(self, component: list[Instance], order: list[Instance]) -> None:
        component.sort(key=_place)
        for instance in component:
            self._forget(instance)
            self._blanks[instance.owner].discard(instance.number)
            instance.status = Status.EXECUTED
            self.executed.add(instance.id)
            self.waiting -= 1
            assert instance.value is not None
            if not is_void(instance.value):
                self._conflicts.execute(instance.keys, instance.owner, instance.number)
        order += component

    def _needs(self, instance: Instance) -> list[Instance] | Id:
        """What has to come before, or is in a cycle with it; or one that is not decided."""
        value = instance.value
        assert value is not None
        if is_void(value):
            return []
        for owner, upto in enumerate(value.deps):
            blank = self.blank(owner)
            if blank <= upto and (owner, blank) != instance.id:
                return owner, blank
        needs: list[Instance] = []
        for other in self.meeting(instance.keys):
            if other is instance or other.number > value.deps[other.owner]:
                continue
            if not other.decided:
                return other.id
            needs.append(other)
        return needs

    def _visit(self, root: Instance, blocked: dict[Id, Id], order: list[Instance]) -> Id | None:
        """Execute what can be reached from here, as far as it is closed; what stands in the way, if something does."""
        index: dict[Id, int] = {}
        low: dict[Id, int] = {}
        stack: list[Instance] = []
        path: list[tuple[Instance, Iterator[Instance]]] = []
        entering: Instance | None = root
        while True:
            if entering is not None:
                needs = blocked[entering.id] if entering.id in blocked else self._needs(entering)
                if isinstance(needs, tuple):
                    # All on the stack reach it: those left by the search belong to a component that is still open.
                    blocked[entering.id] = needs
                    for instance in stack:
                        blocked[instance.id] = needs
                    return needs
                index[entering.id] = low[entering.id] = len(index)
                stack.append(entering)
                path.append((entering, iter(needs)))
                entering = None
            instance, rest = path[-1]
            for other in rest:
                if other.status >= Status.EXECUTED:
                    continue
                if other.id not in index:
                    entering = other
                    break
                low[instance.id] = min(low[instance.id], index[other.id])
            if entering is not None:
                continue
            path.pop()
            if path:
                before = path[-1][0].id
                low[before] = min(low[before], low[instance.id])
            if low[instance.id] == index[instance.id]:
                component: list[Instance] = []
                while True:
                    component.append(stack.pop())
                    if component[-1] is instance:
                        break
                self._finish(component, order)
            if not path:
                return None


def _place(instance: Instance) -> tuple[int, int, int]:
    assert instance.value is not None
    return instance.value.seq, instance.owner, instance.number
