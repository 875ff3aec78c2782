"""Words that every part of nova may say: identities, causal order, and what a core hands its driver."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias

if TYPE_CHECKING:
    from typing_extensions import Buffer as _Buffer

    Buffer: TypeAlias = _Buffer
    """Whatever gives its bytes to others without a copy (PEP 688): bytes, bytearray, memoryview, arrays."""
else:
    Buffer: TypeAlias = object  # it has a name at run time from Python 3.12 on

NodeId = str
"""Name of a node, unique in its cluster and stable over restarts."""

Region = str
"""Name of a region: nodes in one region are close to each other."""

Actor = str
"""One life of a node, ``node~incarnation``: dots are numbered per actor, so no number is ever given twice."""

Clock = Mapping[Actor, int]
"""A vector clock in its plain form: actor -> number of its newest known event. An absent actor counts 0."""


class Order(IntEnum):
    """How one clock stands to another. Bit 0: the other knows more; bit 1: this one knows more."""

    EQUAL = 0
    BEFORE = 1
    AFTER = 2
    CONCURRENT = 3


class Dot(NamedTuple):
    """One event: the `count`-th of `actor`, counting from 1."""

    actor: Actor
    count: int  # type: ignore[assignment]  # hides tuple.count, which nobody asks of a dot


class Difference(NamedTuple):
    """How two sets of ids differ: ascending ids that only this or only the other one has."""

    here: list[int]
    there: list[int]


class Random(Protocol):
    """The seeded generator that a driver lends to a core (``random.Random`` fits)."""

    def random(self) -> float: ...
    def randrange(self, start: int, stop: int | None = None, /) -> int: ...
    def sample(self, population: Any, k: int) -> list[Any]: ...
    def shuffle(self, x: list[Any], /) -> None: ...


@dataclass(slots=True)
class Outputs:
    """What a core wants done after one step, in this order: persist - sync - send - apply.

    persist  records for the log, each acknowledged only when it is on disk
    send     (peer, message) pairs; they leave after `persist` is durable
    apply    events for whoever composes the core (watchers, metrics, waiting clients); seen after `send`
    early    (peer, message) pairs that promise nothing about `persist`: they leave at once, while the disk is busy

    Outputs without anything to persist are released at once.
    """

    persist: list[bytes] = field(default_factory=list)
    send: list[tuple[NodeId, Any]] = field(default_factory=list)
    apply: list[Any] = field(default_factory=list)
    early: list[tuple[NodeId, Any]] = field(default_factory=list)

    def extend(self, other: Outputs) -> None:
        """Append what `other` wants behind what this one wants."""
        self.persist += other.persist
        self.send += other.send
        self.apply += other.apply
        self.early += other.early

    def __bool__(self) -> bool:
        return bool(self.persist or self.send or self.apply or self.early)
