"""What must hold of a run: replicas converge, nothing acknowledged is lost, sessions never see time go back."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from typing import Literal

import msgspec

from nova.sync.retire import count_of
from nova.types import Actor, Clock, Dot, NodeId


def differences(states: Mapping[NodeId, tuple[Hashable, Clock]]) -> list[str]:
    """Why these replicas (digest, clock) are not equal; empty if they are."""
    found: list[str] = []
    nodes = sorted(states)
    for node in nodes[1:]:
        (digest, clock), (first_digest, first_clock) = states[node], states[nodes[0]]
        for actor in sorted({*clock, *first_clock}):
            if clock.get(actor, 0) != first_clock.get(actor, 0):
                found.append(
                    f"{nodes[0]} knows {first_clock.get(actor, 0)} of {actor}, {node} knows {clock.get(actor, 0)}"
                )
        if digest != first_digest:
            found.append(f"the digest of {nodes[0]} is {first_digest!r}, that of {node} {digest!r}")
    return found


def converged(states: Mapping[NodeId, tuple[Hashable, Clock]]) -> bool:
    """All replicas (digest, clock) are equal."""
    values = list(states.values())
    return all(digest == values[0][0] and dict(clock) == dict(values[0][1]) for digest, clock in values[1:])


def lost(acknowledged: Iterable[Dot], clock: Clock) -> list[Dot]:
    """Acknowledged writes that a replica with this clock does not know."""
    return [dot for dot in acknowledged if count_of(clock, dot.actor) < dot.count]


class Operation(msgspec.Struct, frozen=True):
    """One call of a session: a write that was acknowledged with `dot`, or a read at a replica of clock `clock`."""

    session: str
    kind: Literal["read", "write"]
    key: str
    clock: dict[Actor, int] = {}
    dot: Dot | None = None


class Histories:
    """Records what sessions did and saw, in order, and tells what breaks their guarantees."""

    def __init__(self) -> None:
        self.operations: list[Operation] = []

    def write(self, session: str, key: str, dot: Dot) -> None:
        """A write was acknowledged."""
        self.operations.append(Operation(session, "write", key, {}, dot))

    def read(self, session: str, key: str, clock: Clock) -> None:
        """A read was answered with what this clock covers."""
        self.operations.append(Operation(session, "read", key, dict(clock)))

    @property
    def acknowledged(self) -> list[Dot]:
        """Dots of all acknowledged writes."""
        return [operation.dot for operation in self.operations if operation.dot is not None]

    def violations(self) -> list[str]:
        """Reads that miss what the session wrote (read your writes) or had read before (monotonic reads)."""
        seen: dict[tuple[str, str], dict[Actor, int]] = {}
        wrote: dict[tuple[str, str], dict[Actor, int]] = {}
        found: list[str] = []
        for number, operation in enumerate(self.operations):
            at = (operation.session, operation.key)
            if operation.dot is not None:
                wrote.setdefault(at, {})[operation.dot.actor] = operation.dot.count
                continue
            for name, floor in (("read your writes", wrote.get(at, {})), ("monotonic reads", seen.get(at, {}))):
                for actor, count in floor.items():
                    if count_of(operation.clock, actor) < count:
                        found.append(
                            f"{name}: operation {number} of session {operation.session} read {operation.key!r} at "
                            f"{count_of(operation.clock, actor)} of {actor}; it must be {count} or newer"
                        )
            floor = seen.setdefault(at, {})
            for actor, count in operation.clock.items():
                floor[actor] = max(count, floor.get(actor, 0))
        return found
