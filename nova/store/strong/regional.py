"""Keys that regions own, as a program uses them: strong in the own region, and as far as they arrived everywhere else.

keys = RegionalKeys(engine, machine, node="a", region="eu", now_ms=...)
entry = await keys.put("eu", "vm/eu/1", 10, expect=0)     # the region of the caller
entry = await keys.get("us", "vm/us/1")                   # what has arrived of another one
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from nova.consensus.engine import ConsensusEngine, EngineStatus
from nova.errors import UsageError
from nova.store.model import Change as Shown
from nova.store.model import StrongEntry
from nova.store.strong.commands import Condition, Operation, pack
from nova.store.strong.keys import BYTES_MAX, Changes, StrongKeys, Transacted
from nova.store.strong.regions import Addressed, RegionalMachine


class RegionalKeys:
    """The keys of all regions at one member of a group of protocol `hybrid`.

    engine     of the machine; the caller starts and closes it
    region     of this member, which may change the keys of that one only
    where      region -> where to ask instead, for refusals; "": unknown
    bytes_max  of the keys and values of one region: more is refused

    `region` of a call is the owner of the key. Calls raise what those of `StrongKeys` raise, and UsageError for what
    only members of the owning region can do, or for a region that there is not.
    """

    def __init__(
        self,
        engine: ConsensusEngine,
        machine: RegionalMachine,
        *,
        node: str,
        region: str,
        now_ms: Callable[[], int],
        where: Callable[[str], str] = lambda region: "",
        bytes_max: int = BYTES_MAX,
    ) -> None:
        self.engine, self.machine, self.region = engine, machine, region
        self._where = where
        self._keys = {
            owner: StrongKeys(_Asked(engine, owner), inner, node=node, now_ms=now_ms, bytes_max=bytes_max)
            for owner, inner in machine.of.items()
        }

    def close(self) -> None:
        """End all watches, without an error. The engine is the caller's to close."""
        for keys in self._keys.values():
            keys.close()

    async def put(self, region: str, key: str, value: Any, *, expect: int | None = None) -> StrongEntry:
        """As `StrongKeys.put`, in the own region."""
        return await self._changed(region, key).put(key, value, expect=expect)

    async def delete(self, region: str, key: str, *, expect: int | None = None) -> StrongEntry:
        """As `StrongKeys.delete`, in the own region."""
        return await self._changed(region, key).delete(key, expect=expect)

    async def transact(
        self, region: str, key: str, conditions: Sequence[Condition], operations: Sequence[Operation]
    ) -> Transacted:
        """As `StrongKeys.transact`, in the own region."""
        return await self._changed(region, key).transact(key, conditions, operations)

    async def get(self, region: str, key: str, *, consistency: str | None = None) -> StrongEntry:
        """What a key holds.

        consistency  as `StrongKeys.get`; None: linearizable in the own region, else local. Local reads at one member
                     do not go back, and show nothing of another region without all that it was caused by
        """
        keys = self._of(region, key)
        return await keys.get(key, consistency=self._consistency(region, consistency, f"{key!r} is"))

    async def list(
        self, region: str, prefix: str, limit: int, after: str, *, consistency: str | None = None
    ) -> tuple[list[StrongEntry], str | None]:
        """As `StrongKeys.list`, of the keys of one region."""
        keys = self._of(region, prefix)
        told = self._consistency(region, consistency, f"keys below {prefix!r} are")
        return await keys.list(prefix, limit, after, consistency=told)

    def changes(self, region: str, since: int, prefix: str = "") -> Changes:
        """As `StrongKeys.changes`, of the keys of one region."""
        return self._of(region, prefix).changes(since, prefix)

    def watch(self, region: str, since: int | None, prefix: str) -> AsyncIterator[Shown | None]:
        """As `StrongKeys.watch`: changes of one region by its revisions, alike at all members."""
        return self._of(region, prefix).watch(since, prefix)

    # -- whose a key is --

    def _of(self, region: str, key: str) -> StrongKeys:
        try:
            return self._keys[region]
        except KeyError:
            raise UsageError(
                f"{key!r} names {region!r}, which is no region of the group; behind its prefix a key names one of "
                f"{', '.join(self._keys)}"
            ) from None

    def _changed(self, region: str, key: str) -> StrongKeys:
        keys = self._of(region, key)
        if region != self.region:
            raise UsageError(
                f"{key!r} is owned by region {region}, and this node is of {self.region}; only nodes there change it: "
                f"{self._instead(region)}"
            )
        return keys

    def _consistency(self, region: str, asked: str | None, what: str) -> str:
        if region == self.region:
            return asked or "linearizable"
        if asked in ("linearizable", "lease"):
            raise UsageError(
                f"consistency is {asked!r}, but {what} owned by region {region}, of which this node, of {self.region}, "
                f"has what has arrived: {self._instead(region)}, or read with consistency local"
            )
        return asked or "local"

    def _instead(self, region: str) -> str:
        known = self._where(region)
        return f"ask a node of {region}, {known}" if known else f"ask a node of {region}"


class _Asked:
    """The engine, as the keys of one region see it."""

    def __init__(self, engine: ConsensusEngine, region: str) -> None:
        self._engine, self._region = engine, region

    async def propose(self, data: bytes) -> bytes:
        return await self._engine.propose(pack(Addressed(self._region, data)))

    async def read(self, query: bytes) -> bytes:
        return await self._engine.read(pack(Addressed(self._region, query)))

    def status(self) -> EngineStatus:
        return self._engine.status()


__all__ = ["RegionalKeys"]
