"""Keys of a store in a program that a log orders: strong ones, and hybrid ones. Blocking calls, from any thread.

Behind them is what a node has (`nova.store.strong`): members of groups, whose engines live on a thread of their own. A
store without peers is the only member of its group: what it acknowledged is on its disk, and its calls have one order.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from nova.errors import LimitError, UsageError
from nova.metrics import Registry
from nova.store.blocking import LoopThread
from nova.store.classes import KeyClass, KeyClasses, explained
from nova.store.core import StoreConfig
from nova.store.model import Change, Entry, Put, StrongEntry
from nova.store.strong.commands import Condition, Operation, packed
from nova.store.strong.keys import Transacted
from nova.store.strong.member import VALUE_BYTES_MAX, GroupOptions, StrongMember
from nova.store.strong.region_member import RegionMember
from nova.types import NodeId, Region

Result = TypeVar("Result")
Page = tuple[list[Entry], str | None]


class Ordered:
    """All of one store's.

    peers    name -> HOST:PORT of every member of the group of strong keys, this one included; none: it is alone
    regions  region -> (name -> HOST:PORT) of all members that keep hybrid keys; none: this store is its region's one
    key      the cluster key; None only on loopback
    raises   UsageError if a group can't be, or another process has the directory open; CorruptionError if what was
             durable is damaged
    """

    def __init__(
        self,
        data: Path,
        classes: KeyClasses,
        *,
        node: NodeId,
        region: Region,
        cluster: str,
        peers: Mapping[NodeId, str],
        regions: Mapping[Region, Mapping[NodeId, str]],
        key: bytes | None,
        group: GroupOptions,
        region_group: GroupOptions,
        config: StoreConfig,
        metrics: Registry | None = None,
    ) -> None:
        self.classes, self._config = classes, config
        self.strong: StrongMember | None = None
        self.hybrid: RegionMember | None = None
        if classes.uses(KeyClass.STRONG):
            self.strong = StrongMember(
                node,
                peers or {node: ""},
                data,
                cluster=cluster,
                key=key,
                options=group,
                key_bytes_max=config.key_bytes_max,
                value_bytes_max=config.value_bytes_max,
                metrics=metrics,
            )
        if classes.uses(KeyClass.HYBRID):
            addresses, placed = _together(regions or {region: {node: ""}})
            if placed.get(node) != region:
                raise UsageError(
                    f"regions has {', '.join(sorted(regions.get(region, {}))) or 'nobody'} in {region}, not this "
                    f"store, {node}; add its address there"
                )
            self.hybrid = RegionMember(
                node,
                addresses,
                placed,
                data,
                cluster=cluster,
                key=key,
                options=region_group,
                key_bytes_max=config.key_bytes_max,
                value_bytes_max=config.value_bytes_max,
                metrics=metrics,
            )
        self._thread = LoopThread(f"nova-keys {node}")
        try:
            self._thread.call(self._start())
        except BaseException:
            self._thread.close()
            raise

    @property
    def _members(self) -> list[StrongMember | RegionMember]:
        return [member for member in (self.strong, self.hybrid) if member is not None]

    async def _start(self) -> None:
        started: list[StrongMember | RegionMember] = []
        try:
            for member in self._members:
                await member.engine.start()
                started.append(member)
            for member in self._members:
                if member.engine.status().core.members == (member.engine.node,):
                    await member.caught_up()  # else the first local reads would miss what was acknowledged
        except BaseException:
            for member in started:
                await member.engine.aclose()
            raise

    def close(self) -> None:
        """End the watches, let what is under way end, hand leadership over, sync. May be called twice."""
        if self._thread.alive:
            try:
                self._thread.call(self._close())
            finally:
                self._thread.close()

    async def _close(self) -> None:
        for member in self._members:
            member.keys.close()
        await asyncio.gather(*(member.engine.aclose() for member in self._members))

    @property
    def member(self) -> StrongMember:
        """Of the group of strong keys, which there is."""
        assert self.strong is not None
        return self.strong

    def status(self) -> dict[str, Any]:
        """How that group stands."""

        async def told() -> dict[str, Any]:
            return {**self.member.status(), "classes": self.classes.plain()}

        return self.run(told())

    @property
    def region_member(self) -> RegionMember:
        """Of the group whose regions own keys, which there is."""
        assert self.hybrid is not None
        return self.hybrid

    def region_status(self) -> dict[str, Any]:
        """How that group stands."""

        async def told() -> dict[str, Any]:
            return self.region_member.status()

        return self.run(told())

    def run(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Run on the thread of the engines; what it returns or raises."""
        return self._thread.call(work)

    # -- one key --

    def has(self, key: str) -> bool:
        """Whether a log orders this key."""
        return self.classes.of(key) is not KeyClass.EVENTUAL

    def put(self, put: Put) -> StrongEntry:
        """As `StrongKeys.put`, or `RegionalKeys.put`."""
        return self.run(self._put(put))

    async def _put(self, put: Put) -> StrongEntry:
        self.classes.check_plain(put)
        self._check(put.key, put.value)
        keys, owner = self._keys(put.key)
        entry: StrongEntry = await keys.put(*owner, put.key, put.value, expect=put.expect)
        return entry

    def put_many(self, puts: Sequence[Put]) -> None:
        """Those of one key one after the other; all others share entries of the log. The first error is raised when all
        others have their answer."""
        self.run(self._put_many(puts))

    async def _put_many(self, puts: Sequence[Put]) -> None:
        by_key: dict[str, list[int]] = {}
        for at, put in enumerate(puts):
            by_key.setdefault(put.key, []).append(at)
        errors: dict[int, Exception] = {}

        async def in_turn(places: Sequence[int]) -> None:
            for at in places:
                try:
                    await self._put(puts[at])
                except Exception as error:
                    errors[at] = error
                    return  # the next one of the key was meant behind it

        await asyncio.gather(*map(in_turn, by_key.values()))
        if errors:
            raise errors[min(errors)]

    def get(self, key: str, consistency: str | None) -> StrongEntry:
        """As `StrongKeys.get`, or `RegionalKeys.get`."""
        return self.run(self._get(key, consistency))

    async def _get(self, key: str, consistency: str | None) -> StrongEntry:
        keys, owner = self._keys(key)
        if not owner:
            consistency = consistency or "linearizable"
        entry: StrongEntry = await keys.get(*owner, key, consistency=consistency)
        return entry

    def delete(self, key: str, context: Any, conditional: bool, expect: int | None) -> None:
        """As `StrongKeys.delete`, or `RegionalKeys.delete`."""
        self.classes.check_plain(Put(key, None, context=context, conditional=conditional))
        self._check(key)
        keys, owner = self._keys(key)
        self.run(keys.delete(*owner, key, expect=expect))

    def transact(self, key: str, conditions: Sequence[Condition], operations: Sequence[Operation]) -> Transacted:
        """As `StrongKeys.transact`, or `RegionalKeys.transact`."""
        self._check(key)
        keys, owner = self._keys(key)
        work: Coroutine[Any, Any, Transacted] = keys.transact(*owner, key, conditions, operations)
        return self.run(work)

    def why(self, key: str) -> dict[str, Any]:
        """Why a key holds what it holds."""
        entry = self.get(key, None)
        return explained(entry, self.classes.owner(key) if self.classes.of(key) is KeyClass.HYBRID else None)

    # -- many keys --

    def pages(self, kind: KeyClass, prefix: str, limit: int, after: str, consistency: str | None) -> list[Page]:
        """Pages of the keys of a class, of each source its own."""
        found = self.run(self._pages(kind, prefix, limit, after, consistency))
        # They may hold keys of times when their prefix had another class.
        return [([entry for entry in page if self._mine(entry.key, kind, owner)], more) for owner, page, more in found]

    async def _pages(
        self, kind: KeyClass, prefix: str, limit: int, after: str, consistency: str | None
    ) -> list[tuple[str, list[StrongEntry], str | None]]:
        if kind is KeyClass.STRONG:
            assert self.strong is not None
            told = consistency or "linearizable"
            return [("", *await self.strong.keys.list(prefix, limit, after, consistency=told))]
        assert self.hybrid is not None
        keys, pinned = self.hybrid.keys, self.classes.pinned(prefix)
        return [
            (owner, *await keys.list(owner, prefix, limit, after, consistency=consistency))
            for owner in (keys.machine.of if pinned is None else [pinned])
        ]

    def _mine(self, key: str, kind: KeyClass, owner: str) -> bool:
        return self.classes.of(key) is kind and (kind is KeyClass.STRONG or self.classes.owner(key) == owner)

    def watch(self, kind: KeyClass, since: int | None, prefix: str, timeout_s: float | None) -> Iterator[Change]:
        """Changes behind a revision, None: from now on, as they come; ends after `timeout_s` without one, None: waits
        for ever. As `StrongKeys.watch`."""
        seen = self._revision(kind, prefix) if since is None else since
        return self._thread.iterate(self._changes(kind, seen, prefix), timeout_s)

    async def _changes(self, kind: KeyClass, since: int, prefix: str) -> AsyncIterator[Change]:
        async for change in self._feed(kind, since, prefix):
            if change is not None and self.classes.of(change.key) is kind:
                yield change

    def _feed(self, kind: KeyClass, since: int, prefix: str) -> AsyncIterator[Change | None]:
        if kind is KeyClass.STRONG:
            assert self.strong is not None
            return self.strong.keys.watch(since, prefix)
        assert self.hybrid is not None
        return self.hybrid.keys.watch(self._watched(prefix), since, prefix)

    def _watched(self, prefix: str) -> str:
        assert self.hybrid is not None
        if (owner := self.classes.pinned(prefix)) is None:
            raise UsageError(
                f"hybrid keys below {prefix!r} are of several regions, whose revisions are numbered apart; watch those "
                f"of one: PREFIX/REGION/, the regions are {', '.join(self.hybrid.machine.of)}"
            )
        return owner

    def _revision(self, kind: KeyClass, prefix: str) -> int:
        if kind is KeyClass.STRONG:
            assert self.strong is not None
            return self.strong.machine.revision
        assert self.hybrid is not None
        machine = self.hybrid.machine.of.get(self._watched(prefix))
        return 0 if machine is None else machine.revision

    def changes(self, kind: KeyClass, since: int, prefix: str) -> list[Change]:
        """Every change behind a revision that is applied here, oldest first."""

        async def told() -> list[Change]:
            if kind is KeyClass.STRONG:
                assert self.strong is not None
                return self.strong.keys.changes(since, prefix)
            assert self.hybrid is not None
            return self.hybrid.keys.changes(self._watched(prefix), since, prefix)

        return [change for change in self.run(told()) if self.classes.of(change.key) is kind]

    def __len__(self) -> int:
        return sum(len(member.machine) for member in self._members)

    # -- whose a key is --

    def _keys(self, key: str) -> tuple[Any, tuple[str, ...]]:
        """The keys of its group, and the region that owns it."""
        if self.classes.of(key) is KeyClass.STRONG:
            assert self.strong is not None
            return self.strong.keys, ()
        assert self.hybrid is not None
        return self.hybrid.keys, (self.classes.owner(key),)

    def _check(self, key: str, *values: Any) -> None:
        """As large as a store takes. Raises UsageError, LimitError."""
        try:
            size = len(key.encode())
        except UnicodeEncodeError:
            raise UsageError(f"key {key!r} holds half of a surrogate pair; keys are UTF-8 text") from None
        if not 0 < size <= self._config.key_bytes_max:
            raise LimitError(f"a key of {size} bytes; keys have 1 to {self._config.key_bytes_max} bytes of UTF-8")
        limit = min(self._config.value_bytes_max, VALUE_BYTES_MAX)
        for value in values:
            if (size := len(packed(value))) > limit:
                raise LimitError(
                    f"the value of {key!r} takes {size} bytes; the limit is {limit}: split it over several keys, or "
                    f"raise value_bytes_max (to {VALUE_BYTES_MAX} at most)"
                )


def _together(regions: Mapping[Region, Mapping[NodeId, str]]) -> tuple[dict[NodeId, str], dict[NodeId, Region]]:
    """The address and the region of each member. Raises UsageError if one is in two of them."""
    addresses: dict[NodeId, str] = {}
    placed: dict[NodeId, Region] = {}
    for region, members in regions.items():
        for node, address in members.items():
            if node in placed:
                raise UsageError(f"regions has {node} in {placed[node]} and in {region}; a member is in one region")
            addresses[node], placed[node] = address, region
    return addresses, placed


__all__ = ["Ordered"]
