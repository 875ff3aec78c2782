"""Instances: what is decided about each, and which of them were executed.

An instance is (owner, number): the owner's index among the epoch's sorted members, and 1, 2, 3 ... Its place in the
epoch is `start + (number - 1) * members + owner`: unique, the same everywhere, and without meaning for the order.

Dependencies are one number for each member: x with deps[r] = m comes after, or is in a cycle with, *every* interfering
instance of r up to m. So they stay small, and do not break when one of those turns out void. Depending on more than is
known never hurts, but for time.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum
from typing import Any

import msgspec

from nova.consensus.core import Kind, unpack

Id = tuple[int, int]
Keys = frozenset[bytes] | None
"""What a value interferes on; None: everything; empty: nothing."""

FENCE = b"fence"
"""Data of a NOOP that interferes with everything: reads wait for one. A NOOP without data is void."""

NOTHING: frozenset[bytes] = frozenset()


class Status(IntEnum):
    """How far an instance is; it never goes back (but for EXECUTED, when a snapshot replaces the state)."""

    NONE = 0
    PREACCEPTED = 1
    ACCEPTED = 2
    COMMITTED = 3
    EXECUTED = 4


class Value(msgspec.Struct, frozen=True, array_like=True):
    """What is agreed upon: a command and its attributes. `seq` orders the members of a cycle."""

    kind: Kind
    data: bytes
    deps: tuple[int, ...]
    seq: int


def keys_of(kind: Kind, data: bytes) -> Keys:
    """What these commands interfere on. Raises CorruptionError for data that holds none."""
    if kind == Kind.NOOP and not data:
        return NOTHING
    if kind != Kind.COMMANDS:
        return None
    keys = frozenset(command.key for command in unpack(data))
    return None if b"" in keys else keys


def interfere(one: Keys, other: Keys) -> bool:
    """They do not commute."""
    if one is None or other is None:
        return one != NOTHING and other != NOTHING
    return not one.isdisjoint(other)


def is_void(value: Value) -> bool:
    """Nothing comes of it: its recovery found nothing that could have been decided."""
    return value.kind == Kind.NOOP and not value.data


class Instance:
    """What one member knows of an instance.

    ballot    promised: nothing lower counts any more
    accepted  the ballot under which `value` was accepted; kept apart from the promise (Sutra 2020)
    value     pre-accepted, accepted or committed
    init      what the owner proposed, also if only a recovery told us
    keys      of the command, as soon as it is known; None with `known` False: not known
    token     of the record that made it pre-accepted or accepted here, or committed if it was neither
    deciding  committed on the fast path by us, and not yet on our disk: nobody may know
    """

    __slots__ = (
        "accepted", "attempt", "ballot", "deciding", "due", "hint", "id", "init", "keys", "known", "lead", "number",
        "owner", "status", "token", "value", "waiting",
    )  # fmt: skip

    def __init__(self, id: Id) -> None:
        self.id = id
        self.owner, self.number = id
        self.ballot = self.accepted = self.token = self.due = self.attempt = self.hint = self.waiting = 0
        self.status = Status.NONE
        self.value: Value | None = None
        self.init: Value | None = None
        self.keys: Keys = NOTHING
        self.known = self.deciding = False
        self.lead: Any = None

    @property
    def decided(self) -> bool:
        """Committed, and known to others or certain to survive us."""
        return self.status >= Status.COMMITTED and not self.deciding

    def record(self) -> bytes:
        """As it is written to the log."""
        status = min(self.status, Status.COMMITTED)
        return pack_record((self.id, self.ballot, self.accepted, status, self.value, self.init))


class Executed:
    """A set of instances: for each member all up to `frontier`, and some beyond."""

    def __init__(self, count: int) -> None:
        self.frontier = [0] * count
        self.beyond: list[set[int]] = [set() for _ in range(count)]

    def __contains__(self, id: Id) -> bool:
        owner, number = id
        return number <= self.frontier[owner] or number in self.beyond[owner]

    def add(self, id: Id) -> None:
        """Put one in."""
        owner, number = id
        beyond = self.beyond[owner]
        if number > self.frontier[owner]:
            beyond.add(number)
        while self.frontier[owner] + 1 in beyond:
            self.frontier[owner] += 1
            beyond.discard(self.frontier[owner])

    def covers(self, other: Executed) -> bool:
        """Everything in `other` is in this."""
        return all(
            other.frontier[owner] <= self.frontier[owner]
            or all((owner, number) in self for number in range(self.frontier[owner] + 1, other.frontier[owner] + 1))
            for owner in range(len(self.frontier))
        ) and all((owner, number) in self for owner, beyond in enumerate(other.beyond) for number in beyond)

    def last(self, owner: int) -> int:
        """The highest number of a member in it."""
        return max(self.beyond[owner], default=self.frontier[owner])

    def __len__(self) -> int:
        return sum(self.frontier) + sum(map(len, self.beyond))

    def plain(self) -> tuple[list[int], list[list[int]]]:
        """As it is packed; equal sets give equal values."""
        return list(self.frontier), [sorted(beyond) for beyond in self.beyond]

    @staticmethod
    def of(frontier: Iterable[int], beyond: Iterable[Iterable[int]]) -> Executed:
        """The reverse of `plain`."""
        frontier = list(frontier)
        made = Executed(len(frontier))
        made.frontier = frontier
        made.beyond = [set(numbers) for numbers in beyond]
        return made


Record = tuple[Id, int, int, int, Value | None, Value | None]
pack_record = msgspec.msgpack.Encoder().encode
unpack_record = msgspec.msgpack.Decoder(Record).decode
