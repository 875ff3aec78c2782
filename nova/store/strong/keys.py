"""Strong keys as a program uses them: an engine, the machine behind it, and what its answers mean.

keys = StrongKeys(engine, machine, node="a", now_ms=...)
entry = await keys.put("config/limit", 10, expect=0)      # only if nothing is there
entry = await keys.put("config/limit", 20, expect=entry.version)
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Final, Literal, NamedTuple, Protocol

from nova.consensus.core import Command
from nova.consensus.engine import EngineStatus
from nova.errors import KeyNotFoundError, LimitError, StaleContextError, UnavailableError, UsageError
from nova.store.model import Change as Shown
from nova.store.model import StrongEntry
from nova.store.strong.commands import (
    CONDITIONS_MAX,
    LIST_MAX,
    OPERATIONS_MAX,
    Add,
    Change,
    Condition,
    Exists,
    Get,
    Held,
    Operation,
    Page,
    Remove,
    Told,
    Transact,
    Verdict,
    VersionIs,
    Write,
    pack,
    packed,
    unpack_held,
    unpack_listed,
    unpack_told,
    unpacked,
)
from nova.store.strong.machine import INTEGER_MAX, StrongMachine

BYTES_MAX: Final = 256 << 20
SILENCE_S: Final = 10.0

# `list` below is a method: inside the class, annotations need another name for the type.
Changes = list[Shown]
Consistency = Literal["linearizable", "lease", "local"]
CONSISTENCIES: Final[tuple[Consistency, ...]] = ("linearizable", "lease", "local")


class Asked(Protocol):
    """What orders the commands: a `ConsensusEngine`, or what stands before one."""

    async def propose(self, data: bytes) -> bytes:
        """Have a command applied, once; the machine's answer."""

    async def read(self, query: bytes) -> bytes:
        """What the machine answers to a query now."""

    def status(self) -> EngineStatus:
        """How the member stands."""


class WatchedMachine(StrongMachine):
    """The machine, and a bell that rings when it has applied something."""

    def __init__(self, **bounds: int) -> None:
        super().__init__(**bounds)
        self.changed = asyncio.Event()

    def apply(self, commands: Sequence[Command]) -> list[bytes]:
        """As `StrongMachine.apply`."""
        before = self.revision
        told = super().apply(commands)
        if self.revision != before:
            self.ring()
        return told

    def restore(self, data: bytes) -> None:
        """As `StrongMachine.restore`."""
        super().restore(data)
        self.ring()

    def ring(self) -> None:
        """Wake whoever waits."""
        self.changed.set()
        self.changed = asyncio.Event()


class Transacted(NamedTuple):
    """What a transaction that was carried out left behind: what the key holds now, and held behind each operation."""

    entry: StrongEntry | None
    results: list[Any]
    revision: int


class StrongKeys:
    """The strong keys of one member of a group.

    engine     of the machine; the caller starts and closes it
    node       named as the origin of what is written here
    now_ms     wall clock, for people to read
    bytes_max  of the state of all keys: more is refused

    Calls raise what `ConsensusEngine.propose` and `read` raise. After UnknownOutcomeError look before you write again:
    the change was made once, or not at all, perhaps later.
    """

    def __init__(
        self,
        engine: Asked,
        machine: WatchedMachine,
        *,
        node: str,
        now_ms: Callable[[], int],
        bytes_max: int = BYTES_MAX,
    ) -> None:
        self.engine, self.machine = engine, machine
        self._node, self._now_ms, self._bytes_max = node, now_ms, bytes_max
        self._closed = False

    def close(self) -> None:
        """End all watches, without an error. The engine is the caller's to close."""
        self._closed = True
        self.machine.ring()

    # -- changes --

    async def put(self, key: str, value: Any, *, expect: int | None = None) -> StrongEntry:
        """Write a key.

        expect  the version that the key has to have, 0: it holds nothing. None: whatever it has
        raises  StaleContextError with what it holds now, if that is another one; UsageError, LimitError
        """
        done = await self.transact(key, _expected(expect), [Write(packed(value))])
        assert done.entry is not None
        return done.entry

    async def delete(self, key: str, *, expect: int | None = None) -> StrongEntry:
        """Delete a key; the answer has no value, and the revision of the deletion as its version.

        raises  KeyNotFoundError if there is nothing and nothing was expected; StaleContextError as `put`
        """
        conditions: list[Condition] = [Exists()] if expect is None else _expected(expect)
        told = await self._asked(key, conditions, [Remove()])
        if told.verdict is Verdict.STALE and expect is None:
            raise _nothing(key)
        self._fulfilled(key, conditions, told)
        return _entry(key, Held(b"null", told.revision, self._now_ms(), self._node))

    async def transact(self, key: str, conditions: Sequence[Condition], operations: Sequence[Operation]) -> Transacted:
        """Carry out operations on one key if all conditions hold: all of them or none, and nothing in between.

        raises  StaleContextError for a condition that does not hold; UsageError for an operation that can't be carried
                out, which says why; nothing has changed then
        """
        told = await self._asked(key, conditions, operations)
        self._fulfilled(key, conditions, told)
        entry = None if told.held is None else _entry(key, told.held)
        results = [None if result is None else unpacked(result) for result in told.results]
        return Transacted(entry, results, told.revision)

    async def _asked(self, key: str, conditions: Sequence[Condition], operations: Sequence[Operation]) -> Told:
        if not key:
            raise UsageError("the key is empty; a key has at least 1 byte")
        for what, given, limit in (
            ("conditions", conditions, CONDITIONS_MAX),
            ("operations", operations, OPERATIONS_MAX),
        ):
            if len(given) > limit:
                raise LimitError(f"{len(given)} {what}; a transaction has at most {limit}: split it")
        for operation in operations:
            if isinstance(operation, Add) and not -INTEGER_MAX <= operation.amount <= INTEGER_MAX:  # nor is NaN
                raise UsageError(f"add {operation.amount}: give a finite number within 63 bits")
        asked = Transact(key, tuple(conditions), tuple(operations), self._node, self._now_ms(), self._bytes_max)
        try:
            data = pack(asked)
        except (UnicodeEncodeError, OverflowError) as error:
            raise UsageError(f"the key {key[:80]!r} or an operand can't be stored: {error}") from None
        # No key for the protocol: versions number the changes of all keys, so all have to come in one order.
        told: Told = unpack_told(await self.engine.propose(data))
        return told

    def _fulfilled(self, key: str, conditions: Sequence[Condition], told: Told) -> None:
        if told.verdict is Verdict.STALE:
            condition = conditions[told.failed]
            now = "holds nothing" if told.held is None else f"is at version {told.held.version}"
            wanted = f"expected version {condition.version}" if isinstance(condition, VersionIs) else (
                f"condition {told.failed + 1} does not hold"
            )  # fmt: skip
            current = None if told.held is None else _entry(key, told.held)
            raise StaleContextError(f"{key!r} {now}, {wanted}; read it again", current)
        if told.verdict is Verdict.REFUSED:
            which = f", operation {told.failed + 1}" if told.failed >= 0 else ""
            raise UsageError(f"{key!r}{which}: {told.reason}")

    # -- reads --

    async def get(self, key: str, *, consistency: str = "linearizable") -> StrongEntry:
        """What a key holds. Raises KeyNotFoundError.

        consistency  linearizable: every change that was answered before this call began. lease: the same, as long as no
                     clock of a member runs apart from the others' by more than the protocol's `drift_ratio`; quicker
                     where the group was begun with `lease_reads`. local: what this member has applied, without asking
                     anybody, however long it was cut off; it does not go back
        """
        held: Held | None
        if _checked(consistency) == "local":
            held = self.machine.get(key)
        else:
            held = unpack_held(await self._read(pack(Get(key)), consistency))
        if held is None:
            raise _nothing(key)
        return _entry(key, held)

    async def list(
        self, prefix: str = "", limit: int = 100, after: str = "", *, consistency: str = "linearizable"
    ) -> tuple[list[StrongEntry], str | None]:
        """Keys in order behind `after`, of one moment, and the key to go on after or None at the end."""
        limit = min(limit, LIST_MAX)
        if _checked(consistency) == "local":
            listed = self.machine.page(prefix, after, limit)
        else:
            listed = unpack_listed(await self._read(pack(Page(prefix, after, limit)), consistency))
        entries = [_entry(key, held) for key, held in listed.items]
        return entries, entries[-1].key if listed.more else None

    async def _read(self, query: bytes, consistency: str) -> bytes:
        """By a round of heartbeats, or by lease. A group that has leases answers all reads by them, so there the strict
        ones go through the log; as do those that might have met one because the epoch changed meanwhile."""
        if consistency == "lease":
            return await self.engine.read(query)
        epoch = self.engine.status().epoch
        if not epoch.options.get("lease_reads"):
            answer = await self.engine.read(query)
            if self.engine.status().epoch.number == epoch.number:
                return answer
        # Its answer is not looked at: what is applied behind it, here, holds all that was answered before.
        await self.engine.propose(pack(Transact("-", (), (), self._node, self._now_ms(), self._bytes_max)))
        return self.machine.read(query)

    def changes(self, since: int, prefix: str = "") -> Changes:
        """Every change behind a revision that this member has applied, oldest first. Raises CompactedError."""
        found: Changes = []
        while since < self.machine.revision:
            changes, since = self.machine.changes(since, prefix)
            found += map(_shown, changes)
        return found

    async def watch(self, since: int | None, prefix: str = "") -> AsyncIterator[Shown | None]:
        """Changes behind a revision of the group, None: from now on, in order and without gaps, as this member applies
        them. A None item says that nothing happened for a while.

        raises  CompactedError if it is too long ago, UsageError for a revision that no change has, UnavailableError
                when the member stops
        """
        seen = self.machine.revision if since is None else since
        if seen > self.machine.revision:
            raise UsageError(
                f"since is {seen}, the newest revision of strong keys that is known here is {self.machine.revision}; "
                "they start with /v1/consensus, those of a region with /v1/status"
            )
        while not self._closed:
            changed = self.machine.changed
            changes, seen = self.machine.changes(seen, prefix)
            for change in changes:
                yield _shown(change)
            if changes or seen < self.machine.revision:
                continue
            if (failure := self.engine.status().failure) is not None:
                raise UnavailableError(f"this member has stopped: {failure}; watch at another one", 10**10)
            try:
                await asyncio.wait_for(changed.wait(), SILENCE_S)
            except TimeoutError:
                yield None


def _checked(consistency: str) -> str:
    if consistency not in CONSISTENCIES:
        raise UsageError(f"consistency is {consistency!r}; use one of {', '.join(CONSISTENCIES)}")
    return consistency


def _expected(expect: int | None) -> list[Condition]:
    if expect is None:
        return []
    if not 0 <= expect <= INTEGER_MAX:
        raise UsageError(f"expect is {expect}; give the version that was read, or 0 for a key that holds nothing")
    return [VersionIs(expect)]


def _nothing(key: str) -> KeyNotFoundError:
    return KeyNotFoundError(f"{key!r} holds nothing; nova list shows the keys")


def _entry(key: str, held: Held) -> StrongEntry:
    return StrongEntry(
        key, "register", unpacked(held.value), {}, held.time_ms << 16, held.origin, (held.origin, held.version),
        held.version, version=held.version,
    )  # fmt: skip


def _shown(change: Change) -> Shown:
    value = None if change.held is None else unpacked(change.held.value)
    return Shown(
        change.revision, change.key, "register", change.held is None, value, {}, change.time_ms << 16, change.origin
    )


__all__ = ["BYTES_MAX", "CONSISTENCIES", "Consistency", "StrongKeys", "Transacted", "WatchedMachine"]
