"""A node with strong keys: a group of nodes orders their changes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

from nova.errors import UsageError
from nova.server.adaptive import Adaptive
from nova.server.classed_node import ClassedNode, Entries, Names
from nova.server.config import NodeConfig
from nova.server.group import Group
from nova.store.classes import KeyClass, explained
from nova.store.model import Change, Entry, Put
from nova.store.strong import Transacted
from nova.store.strong.commands import Condition, Operation
from nova.sync.statesync import Carrier


class StrongNode(ClassedNode):
    """A node in a group."""

    def __init__(self, config: NodeConfig) -> None:
        super().__init__(config)
        self._adaptive: Adaptive | None = None
        try:
            self.group = Group(config, self.registry, self.tls)
        except BaseException:
            self.directory.close()
            raise

    async def start(self) -> None:
        """As `Node.start`, and take part in the group; there may be no leader yet."""
        await super().start()
        await self.group.engine.start()
        if self.config.consensus.adaptive:
            self._adaptive = Adaptive(self.group, self._links, self.config.region)
            self._adaptive.start()

    async def stop(self) -> None:
        """As `Node.stop`; leadership is handed over before."""
        try:
            if self._adaptive is not None:
                await self._adaptive.stop()
            await self.group.engine.aclose()
        finally:
            await super().stop()

    def _links(self) -> dict[str, tuple[float, str]]:
        """peer -> (round trip in milliseconds, region), of those that are connected."""
        members = self.cluster.membership.members
        return {
            peer: (link.rtt_ms, members[peer].region)
            for peer, link in self.mesh.stats().items()
            if link.connected and peer in members
        }

    def _strong(self, key: str) -> bool:
        return self.carrier(key) is Carrier.LOG

    # -- the API's backend --

    async def put(self, put: Put) -> Entry:
        if not self._strong(put.key):
            return await super().put(put)
        self.check_ordered(put)
        return await self.group.keys.put(put.key, put.value, expect=put.expect)

    async def get(self, key: str, consistency: str | None = None) -> Entry:
        if not self._strong(key):
            return await super().get(key, consistency)
        return await self.group.keys.get(key, consistency=consistency or "linearizable")

    async def delete(
        self, key: str, context: dict[str, int] | None, conditional: bool, expect: int | None = None
    ) -> Entry:
        if not self._strong(key):
            return await super().delete(key, context, conditional, expect)
        self.check_ordered(Put(key, None, context=context, conditional=conditional))
        return await self.group.keys.delete(key, expect=expect)

    async def transact(self, key: str, conditions: Sequence[Condition], operations: Sequence[Operation]) -> Transacted:
        if not self._strong(key):
            raise UsageError(f"{key!r} is eventual; transactions are for keys of class strong")
        self.check_ordered(Put(key, None))
        return await self.group.keys.transact(key, conditions, operations)

    async def page(
        self, kind: KeyClass, prefix: str, limit: int, after: str, consistency: str | None
    ) -> list[tuple[Entries, str | None]]:
        if kind is not KeyClass.STRONG:
            return await super().page(kind, prefix, limit, after, consistency)
        found, more = await self.group.keys.list(prefix, limit, after, consistency=consistency or "linearizable")
        return [([*found], more)]

    def changes(self, kind: KeyClass, since: int | None, prefix: str) -> AsyncIterator[Change | None]:
        if kind is not KeyClass.STRONG:
            return super().changes(kind, since, prefix)
        return self.group.keys.watch(since, prefix)

    async def why(self, key: str) -> dict[str, Any]:
        if not self._strong(key):
            return await super().why(key)
        entry = await self.group.keys.get(key)
        return explained(entry, None)

    def status(self) -> dict[str, Any]:
        return {**super().status(), "strong_keys": len(self.group.machine)}

    def stopping(self) -> None:
        super().stopping()
        self.group.keys.close()

    def ready(self) -> tuple[bool, str]:
        ready, reason = super().ready()
        if ready and (failure := self.group.failure) is not None:
            return False, f"strong keys have stopped here: {failure}"
        return ready, reason

    def chaos_cut(self, peers: Names) -> Names:
        cut = super().chaos_cut(peers)
        self.group.engine.cut(cut)
        return cut

    def chaos_heal(self) -> Names:
        self.group.engine.cut(())
        return super().chaos_heal()

    # -- operators of the group --

    def consensus(self) -> dict[str, Any]:
        status = self.group.status()
        leader = self.cluster.membership.members.get(status["leader"] or "")
        http = self.config.http if status["leader"] == self.config.name else leader.http if leader is not None else ""
        adaptive = self._adaptive.status() if self._adaptive is not None else None
        return {**status, "leader_http": http, "adaptive": adaptive}

    async def consensus_add(self, node: str, address: str | None, learner: bool) -> dict[str, Any]:
        await self.group.add(node, address, learner=learner)
        return self.consensus()

    async def consensus_remove(self, node: str) -> dict[str, Any]:
        await self.group.remove(node)
        return self.consensus()

    async def consensus_transfer(self, node: str) -> dict[str, Any]:
        await self.group.transfer(node)
        return self.consensus()

    async def consensus_switch(
        self, protocol: str, members: Sequence[str], addresses: dict[str, str]
    ) -> dict[str, Any]:
        await self.group.switch(protocol, members, addresses)
        return self.consensus()


__all__ = ["StrongNode"]
