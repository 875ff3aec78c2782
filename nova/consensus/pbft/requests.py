"""What somebody wants ordered and was not executed yet: what a member holds the primary to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from nova.consensus.core import Command, Kind, pack
from nova.consensus.pbft.messages import encode
from nova.consensus.sessions import OPEN
from nova.types import NodeId

Name = tuple[str, int, int, bytes]
"""(node of a barrier or "", session or number, sequence, data where nothing else tells requests apart)."""


def command_name(command: Command) -> Name:
    """What tells a command from others."""
    return "", command.session, command.sequence, b"" if command.session else command.data


def barrier_name(node: NodeId, number: int) -> Name:
    """What tells a barrier for reads from others."""
    return node, number, 0, b""


def repeatable(command: Command) -> bool:
    """It may be ordered twice: its session sees to it that it is applied once (or, opening one, it is harmless)."""
    return bool(command.session) or command.sequence == OPEN


class Waiting:
    """A request, who told of it, and for how many ticks it has waited here."""

    __slots__ = ("age", "data", "kind", "origin", "told")

    def __init__(self, origin: NodeId, kind: Kind, data: bytes) -> None:
        self.origin, self.kind, self.data = origin, kind, data
        self.age = self.told = 0


class Requests:
    """Requests by name, each origin with its own limit: nobody fills the table of another."""

    def __init__(self, count_max: int, bytes_max: int) -> None:
        self._count_max, self._bytes_max = count_max, bytes_max
        self._waiting: dict[Name, Waiting] = {}
        self._held: dict[NodeId, tuple[int, int]] = {}  # origin -> (count, bytes)

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[tuple[Name, Waiting]]:
        return iter(self._waiting.items())

    def add(self, origin: NodeId, name: Name, kind: Kind, data: bytes) -> bool:
        """Whether it is new, and there was room."""
        count, size = self._held.get(origin, (0, 0))
        if name in self._waiting or count >= self._count_max or size + len(data) > self._bytes_max:
            return False
        self._waiting[name] = Waiting(origin, kind, data)
        self._held[origin] = count + 1, size + len(data)
        return True

    def add_commands(self, origin: NodeId, commands: Iterable[Command]) -> list[Command]:
        """Those that are new."""
        return [
            command
            for command in commands
            if repeatable(command) and self.add(origin, command_name(command), Kind.COMMANDS, pack([command]))
        ]

    def add_barrier(self, origin: NodeId, node: NodeId, number: int) -> bool:
        """Whether it is new."""
        return self.add(origin, barrier_name(node, number), Kind.NOOP, encode([(node, number)]))

    def done(self, name: Name) -> None:
        """Executed, or of no use any more."""
        waiting = self._waiting.pop(name, None)
        if waiting is not None:
            count, size = self._held[waiting.origin]
            self._held[waiting.origin] = count - 1, size - len(waiting.data)

    def clear(self) -> None:
        self._waiting.clear()
        self._held.clear()

    def keep_own(self, node: NodeId) -> None:
        """A state came in place of entries, so what of this was executed is not known. Our own will be ordered again;
        what others told us of they will tell again, if it is to be."""
        for name in [name for name, waiting in self._waiting.items() if waiting.origin != node]:
            self.done(name)
        self.renew()

    def tick(self) -> int:
        """A tick passes; the greatest age."""
        oldest = 0
        for waiting in self._waiting.values():
            waiting.age += 1
            waiting.told += 1
            oldest = max(oldest, waiting.age)
        return oldest

    def renew(self) -> None:
        """A view begins, and gets its time."""
        for waiting in self._waiting.values():
            waiting.age = 0
