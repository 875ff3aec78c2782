"""A node with strong keys: each key goes the way of its class, and what asks for many keys is answered over both."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

from nova.errors import NovaError, UsageError
from nova.server.adaptive import Adaptive
from nova.server.config import NodeConfig
from nova.server.group import Group
from nova.server.node import Names, Node, Points, Puts, Results
from nova.server.upkeep import LIST_MAX
from nova.store.classes import READY, KeyClass, KeyClasses
from nova.store.decisions import Decided
from nova.store.model import Change, Entry, Put
from nova.store.points import Rollback
from nova.store.strong import Transacted
from nova.store.strong.commands import Condition, Operation
from nova.sync.statesync import Carrier

Entries = list[Entry]


class StrongNode(Node):
    """A node in a group."""

    def __init__(self, config: NodeConfig) -> None:
        super().__init__(config)
        self.classes = KeyClasses(config.classes)
        self._adaptive: Adaptive | None = None
        try:
            self.group = Group(config, self.registry)
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
        return self._by_group(self.classes.of(key))

    def _by_group(self, kind: KeyClass) -> bool:
        return self.pace.sync.carrier(kind) is not Carrier.GOSSIP

    # -- the API's backend --

    async def put(self, put: Put) -> Entry:
        if not self._strong(put.key):
            return await super().put(put)
        self._check_strong(put)
        return await self.group.keys.put(put.key, put.value, expect=put.expect)

    def _check_strong(self, put: Put) -> None:
        if put.context is not None or put.conditional:
            raise UsageError(f"{put.key!r} is strong and has no clock; give the version that was read as expect")
        if put.merge:
            raise UsageError(f"{put.key!r} is strong; merge is for eventual keys: write the whole value with expect")
        if put.kind not in (None, "register"):
            raise UsageError(f"{put.key!r} is strong and holds one value, a register; leave out the kind {put.kind!r}")

    async def put_many(self, puts: Puts) -> Results:
        strong = [at for at, put in enumerate(puts) if self._strong(put.key)]
        if not strong:
            return await super().put_many(puts)
        strong_at = set(strong)
        others = iter(await super().put_many([put for at, put in enumerate(puts) if at not in strong_at]))
        # In their order, so that of several puts of one key the last counts; they share entries of the log.
        told = iter(await asyncio.gather(*(self._put_one(puts[at]) for at in strong)))
        return [next(told) if at in strong_at else next(others) for at in range(len(puts))]

    async def _put_one(self, put: Put) -> Entry | Exception:
        try:
            return await self.put(put)
        except NovaError as error:
            return error

    async def get(self, key: str, consistency: str | None = None) -> Entry:
        if not self._strong(key):
            return await super().get(key, consistency)
        return await self.group.keys.get(key, consistency=consistency or "linearizable")

    async def delete(
        self, key: str, context: dict[str, int] | None, conditional: bool, expect: int | None = None
    ) -> Entry:
        if not self._strong(key):
            return await super().delete(key, context, conditional, expect)
        self._check_strong(Put(key, None, context=context, conditional=conditional))
        return await self.group.keys.delete(key, expect=expect)

    async def transact(self, key: str, conditions: Sequence[Condition], operations: Sequence[Operation]) -> Transacted:
        if not self._strong(key):
            raise UsageError(f"{key!r} is eventual; transactions are for keys of class strong")
        return await self.group.keys.transact(key, conditions, operations)

    async def list(
        self, prefix: str, limit: int, after: str | None, consistency: str | None = None
    ) -> tuple[Entries, str | None]:
        ways = {self._by_group(kind) for kind in self.classes.below(prefix)}
        if ways == {False}:
            return await super().list(prefix, limit, after, consistency)
        limit = min(limit, LIST_MAX)
        strong, more = await self.group.keys.list(prefix, limit, after or "", consistency=consistency or "linearizable")
        # The group may hold keys of a prefix that is not strong any more, as the store may hold such that are now.
        pages: list[tuple[Entries, str | None]] = [([entry for entry in strong if self._strong(entry.key)], more)]
        if False in ways:
            eventual, more = await super().list(prefix, limit, after, None)
            pages.append(([entry for entry in eventual if not self._strong(entry.key)], more))
        return merged(pages, limit)

    async def watch(self, since: int | None, prefix: str, kind: str | None = None) -> AsyncIterator[Change | None]:
        below = self.classes.below(prefix)
        if kind is None:
            if len(below) > 1:
                raise UsageError(
                    f"keys below {prefix!r} are eventual and strong, whose revisions are numbered apart; watch one "
                    "class: class=eventual or class=strong"
                )
            (chosen,) = below
        else:
            chosen = _chosen(kind)
        changes = super().watch(since, prefix) if not self._by_group(chosen) else self.group.keys.watch(since, prefix)
        async for change in changes:
            if change is None or self.classes.of(change.key) is chosen:
                yield change

    async def why(self, key: str) -> dict[str, Any]:
        if not self._strong(key):
            return await super().why(key)
        entry = await self.group.keys.get(key)
        when = entry.timestamp >> 16
        write = {
            "path": "", "value": entry.value, "origin": entry.origin, "dot": entry.dot, "timestamp": entry.timestamp,
            "time_ms": when,
        }  # fmt: skip
        text = (
            f"{key} is strong: it holds what {entry.origin} wrote as change {entry.revision} of its group. Changes of "
            "strong keys have one order, so there was nothing to settle."
        )
        return {
            "key": key, "kind": entry.kind, "value": entry.value, "writes": [write], "conflicts": [], "text": text,
        }  # fmt: skip

    def _only_eventual(self, key: str, what: str) -> None:
        if self._strong(key):
            raise UsageError(f"{key!r} is strong, and {what}; write it with the version that you expect")

    async def past(self, key: str, at_ms: int) -> Entry:
        self._only_eventual(key, "keeps no past")
        return await super().past(key, at_ms)

    def points(self, key: str) -> Points:
        self._only_eventual(key, "has no rollback points")
        return super().points(key)

    async def make_point(self, key: str, note: str) -> str:
        self._only_eventual(key, "has no rollback points")
        return await super().make_point(key, note)

    async def rollback(self, key: str, to: str, context: dict[str, int] | None, by: str) -> Rollback:
        self._only_eventual(key, "has no rollback points")
        return await super().rollback(key, to, context, by)

    async def decide(self, key: str, shown: str, values: dict[str, Any], by: str) -> Decided:
        self._only_eventual(key, "never has conflicts to decide")
        return await super().decide(key, shown, values, by)

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


def merged(pages: Sequence[tuple[Entries, str | None]], limit: int) -> tuple[Entries, str | None]:
    """Pages of several sources as one in order of key; each comes with the key up to which it was looked at, None: to
    its end."""
    # Behind the end of the shortest page nothing is known of its side.
    end = min((more for _, more in pages if more is not None), default=None)
    found = [entry for entries, _ in pages for entry in entries if end is None or entry.key <= end]
    found.sort(key=lambda entry: entry.key)
    if len(found) > limit:
        return found[:limit], found[limit - 1].key
    return found, end


def _chosen(kind: str) -> KeyClass:
    if kind not in READY:
        raise UsageError(f"class is {kind!r}; use one of {', '.join(READY)}")
    return KeyClass(kind)


__all__ = ["StrongNode"]
