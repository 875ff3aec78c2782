"""Which instances a command has to depend on: per key and member the newest one known, and the newest one executed.

Two questions are answered. A pre-accept asks what is *known* to interfere. A validation asks whether something that
was *executed* here stands against a value (see recovery.py). What every member has executed is dropped for good. When
more than `keys_max` keys are left (a member is away, and does not execute), the oldest are folded into one mark: what
does not reach up to it depends on everything below, and cannot be validated here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from nova.consensus.epaxos.instances import Keys


class _Newest:
    __slots__ = ("executed", "known", "seq")

    def __init__(self, count: int) -> None:
        self.known = [0] * count
        self.executed = [0] * count
        self.seq = 0


Plain = tuple[list[tuple[bytes, list[int], int]], list[int], list[int], list[int], list[int], int]


class Conflicts:
    """The map of one member. All vectors are indexed by the owner of an instance."""

    def __init__(self, count: int, keys_max: int) -> None:
        self._count, self._keys_max = count, keys_max
        self._keys: dict[bytes, _Newest] = {}
        self._wide = _Newest(count)  # what interferes with everything
        self._all = _Newest(count)  # anything at all
        self.dropped = [0] * count
        self.folded = [0] * count

    def __len__(self) -> int:
        return len(self._keys)

    def _of(self, keys: Keys) -> list[_Newest]:
        """What these keys meet."""
        if keys is None:
            return [self._all]
        return [self._wide, *(found for key in keys if (found := self._keys.get(key)) is not None)]

    def _into(self, keys: Keys) -> list[_Newest]:
        """Where a command with these keys is noted down."""
        if keys is None:
            return [self._wide, self._all]
        made = [self._all]
        for key in keys:
            if (newest := self._keys.get(key)) is None:
                newest = self._keys[key] = _Newest(self._count)
            made.append(newest)
        return made

    def know(self, keys: Keys, owner: int, number: int, seq: int) -> None:
        """A command is known."""
        for newest in self._into(keys):
            if number > newest.known[owner]:
                newest.known[owner] = number
            if seq > newest.seq:
                newest.seq = seq

    def execute(self, keys: Keys, owner: int, number: int) -> None:
        """A command that is not void was executed."""
        for newest in self._into(keys):
            if number > newest.executed[owner]:
                newest.executed[owner] = number

    def deps(self, keys: Keys) -> tuple[list[int], int]:
        """What is known to interfere, and the highest seq among it."""
        found = [0] * self._count
        seq = 0
        for newest in self._of(keys):
            found = [max(pair) for pair in zip(found, newest.known, strict=True)]
            seq = max(seq, newest.seq)
        return found, seq

    def forgotten(self, deps: Sequence[int]) -> list[int]:
        """Of what was dropped or folded, what these dependencies do not reach: it may interfere."""
        return [
            max(one, other) if max(one, other) > dep else 0
            for one, other, dep in zip(self.dropped, self.folded, deps, strict=True)
        ]

    def certain(self, deps: Sequence[int]) -> bool:
        """Nothing beyond these dependencies was folded."""
        return all(dep >= mark for dep, mark in zip(deps, self.folded, strict=True))

    def against(self, keys: Keys, deps: Sequence[int]) -> tuple[int, int] | None:
        """An executed command that interferes and is not among these dependencies."""
        for newest in self._of(keys):
            for owner, number in enumerate(newest.executed):
                if number > deps[owner]:
                    return owner, number
        return None

    def prune(self, stable: Sequence[int], executed: Sequence[int]) -> None:
        """Drop what everybody has executed; fold the oldest keys, if executed here, when too many stay."""
        for key, newest in list(self._keys.items()):
            if all(number <= mark for number, mark in zip(newest.known, stable, strict=True)):
                del self._keys[key]
                self.dropped = [max(pair) for pair in zip(self.dropped, newest.known, strict=True)]
        for key in list(self._keys)[: max(0, len(self._keys) - self._keys_max)]:
            known = self._keys[key].known
            if all(number <= mark for number, mark in zip(known, executed, strict=True)):
                del self._keys[key]
                self.folded = [max(pair) for pair in zip(self.folded, known, strict=True)]

    def plain(self) -> Plain:
        """What a snapshot holds: of executed commands only."""
        keys = [
            (key, newest.executed, newest.seq) for key, newest in sorted(self._keys.items()) if any(newest.executed)
        ]
        return keys, self._wide.executed, self._all.executed, self.dropped, self.folded, self._all.seq

    def merge(self, plain: Plain) -> None:
        """Take what a snapshot holds."""
        keys, wide, everything, dropped, folded, seq = plain
        self._merge(self._wide, wide, seq)
        self._merge(self._all, everything, seq)
        for key, executed, key_seq in keys:
            if key not in self._keys:
                self._keys[key] = _Newest(self._count)
            self._merge(self._keys[key], executed, key_seq)
        self.dropped = [max(pair) for pair in zip(self.dropped, dropped, strict=True)]
        self.folded = [max(pair) for pair in zip(self.folded, folded, strict=True)]

    @staticmethod
    def _merge(newest: _Newest, executed: Iterable[int], seq: int) -> None:
        newest.executed = [max(pair) for pair in zip(newest.executed, executed, strict=True)]
        newest.known = [max(pair) for pair in zip(newest.known, executed, strict=True)]
        newest.seq = max(newest.seq, seq)
