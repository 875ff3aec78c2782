"""A node with keys that regions own: strong in its own region, and as far as they arrived of the others."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

from nova.errors import UsageError
from nova.server.classed_node import ClassedNode, Entries, Names
from nova.server.config import NodeConfig
from nova.server.region_group import RegionGroup
from nova.server.strong_node import StrongNode
from nova.store.classes import KeyClass, explained
from nova.store.model import Change, Entry, Put
from nova.store.strong import Transacted
from nova.store.strong.commands import Condition, Operation


class RegionNode(ClassedNode):
    """A node that is a member of a region."""

    def __init__(self, config: NodeConfig) -> None:
        super().__init__(config)
        try:
            self.region_group = RegionGroup(config, self.registry, self._where, self.tls)
        except BaseException:
            self.directory.close()
            raise

    async def start(self) -> None:
        """As `Node.start`, and take part in the region; there may be no leader yet."""
        await super().start()
        await self.region_group.engine.start()

    async def stop(self) -> None:
        """As `Node.stop`."""
        try:
            await self.region_group.engine.aclose()
        finally:
            await super().stop()

    def _where(self, region: str) -> str:
        """Where a node of a region answers, as far as membership knows one that lives."""
        there, members = self.region_group.placed, self.cluster.membership.members
        known = (members[node] for node in sorted(there) if there[node] == region and node in members)
        scheme = "http" if self.tls is None else "https"
        return next((f"{scheme}://{member.http}" for member in known if member.live and member.http), "")

    def _owner(self, key: str) -> str | None:
        """The region that owns a key of class hybrid, None: it is of another class. Raises UsageError."""
        return self.classes.owner(key) if self.classes.of(key) is KeyClass.HYBRID else None

    # -- the API's backend --

    async def put(self, put: Put) -> Entry:
        if (owner := self._owner(put.key)) is None:
            return await super().put(put)
        self.check_ordered(put)
        return await self.region_group.keys.put(owner, put.key, put.value, expect=put.expect)

    async def get(self, key: str, consistency: str | None = None) -> Entry:
        if (owner := self._owner(key)) is None:
            return await super().get(key, consistency)
        return await self.region_group.keys.get(owner, key, consistency=consistency)

    async def delete(
        self, key: str, context: dict[str, int] | None, conditional: bool, expect: int | None = None
    ) -> Entry:
        if (owner := self._owner(key)) is None:
            return await super().delete(key, context, conditional, expect)
        self.check_ordered(Put(key, None, context=context, conditional=conditional))
        return await self.region_group.keys.delete(owner, key, expect=expect)

    async def transact(self, key: str, conditions: Sequence[Condition], operations: Sequence[Operation]) -> Transacted:
        if (owner := self._owner(key)) is None:
            return await super().transact(key, conditions, operations)
        self.check_ordered(Put(key, None))
        return await self.region_group.keys.transact(owner, key, conditions, operations)

    async def page(
        self, kind: KeyClass, prefix: str, limit: int, after: str, consistency: str | None
    ) -> list[tuple[Entries, str | None]]:
        if kind is not KeyClass.HYBRID:
            return await super().page(kind, prefix, limit, after, consistency)
        keys, pinned = self.region_group.keys, self.classes.pinned(prefix)
        pages: list[tuple[Entries, str | None]] = []
        for owner in keys.machine.of if pinned is None else [pinned]:
            found, more = await keys.list(owner, prefix, limit, after, consistency=consistency)
            pages.append(([entry for entry in found if self._owner(entry.key) == owner], more))
        return pages

    def changes(self, kind: KeyClass, since: int | None, prefix: str) -> AsyncIterator[Change | None]:
        if kind is not KeyClass.HYBRID:
            return super().changes(kind, since, prefix)
        if (owner := self.classes.pinned(prefix)) is None:
            raise UsageError(
                f"hybrid keys below {prefix!r} are of several regions, whose revisions are numbered apart; watch those "
                f"of one: PREFIX/REGION/, the regions are {', '.join(self.region_group.machine.of)}"
            )
        return self.region_group.keys.watch(owner, since, prefix)

    async def why(self, key: str) -> dict[str, Any]:
        if (owner := self._owner(key)) is None:
            return await super().why(key)
        entry = await self.region_group.keys.get(owner, key)
        return explained(entry, owner)

    def status(self) -> dict[str, Any]:
        return {**super().status(), "hybrid": self.region_group.status()}

    def stopping(self) -> None:
        super().stopping()
        self.region_group.keys.close()

    def ready(self) -> tuple[bool, str]:
        ready, reason = super().ready()
        if ready and (failure := self.region_group.failure) is not None:
            return False, f"hybrid keys have stopped here: {failure}"
        return ready, reason

    async def region_add(self, node: str, address: str | None, region: str) -> dict[str, Any]:
        await self.region_group.add(node, address, region)
        return self.region_group.status()

    async def region_remove(self, node: str, region: str) -> dict[str, Any]:
        await self.region_group.remove(node, region)
        return self.region_group.status()

    def chaos_cut(self, peers: Names) -> Names:
        cut = super().chaos_cut(peers)
        self.region_group.engine.cut(cut)
        return cut

    def chaos_heal(self) -> Names:
        self.region_group.engine.cut(())
        return super().chaos_heal()


class RegionStrongNode(RegionNode, StrongNode):
    """A node that is of a group of strong keys as well."""


__all__ = ["RegionNode", "RegionStrongNode"]
