"""What a keyspace holds, in ten lines over the set of all operations that a replica has: too simple to be wrong."""

from __future__ import annotations

from typing import NamedTuple


class Op(NamedTuple):
    actor: str
    count: int
    key: str
    puts: tuple[tuple[str, bytes], ...]
    drops: tuple[str, ...]
    clear: bool
    context: tuple[tuple[str, int], ...]

    def touches(self, key: str, path: str) -> bool:
        return self.key == key and (self.clear or path in self.drops or any(path == put for put, _ in self.puts))

    def saw(self, other: Op) -> bool:
        return dict(self.context).get(other.actor, 0) >= other.count


def live(ops: set[Op]) -> set[tuple[str, str, str, int, bytes]]:
    """(key, path, actor, count, value) of every row that no operation which saw it has superseded."""
    return {
        (op.key, path, op.actor, op.count, value)
        for op in ops
        for path, value in op.puts
        if not any(other.touches(op.key, path) and other.saw(op) for other in ops)
    }
