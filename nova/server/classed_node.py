"""A node with keys of several classes: each goes the way of its class, and what asks for many is answered over all."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

from nova.errors import NovaError
from nova.server.config import NodeConfig
from nova.server.node import Names, Node, Points, Puts, Results
from nova.server.upkeep import LIST_MAX
from nova.store.classes import KeyClass, KeyClasses, merged
from nova.store.decisions import Decided
from nova.store.model import Change, Entry, Put
from nova.store.points import Rollback
from nova.sync.statesync import Carrier

Entries = list[Entry]


class ClassedNode(Node):
    """A node whose keys have classes. A class that has a group adds `page` and `changes` of it, and asks the next one
    for all others; so several can stand beside each other."""

    def __init__(self, config: NodeConfig) -> None:
        super().__init__(config)
        self.classes = KeyClasses(config.classes)

    def carrier(self, key: str) -> Carrier:
        """What carries a key."""
        return self.pace.sync.carrier(self.classes.of(key))

    async def page(
        self, kind: KeyClass, prefix: str, limit: int, after: str, consistency: str | None
    ) -> list[tuple[Entries, str | None]]:
        """Pages of all keys of a class, by source; they may have keys of other classes, of times before."""
        return [await super().list(prefix, limit, after, consistency)]

    def changes(self, kind: KeyClass, since: int | None, prefix: str) -> AsyncIterator[Change | None]:
        """Changes of keys of a class; there may be others among them."""
        return super().watch(since, prefix)

    # -- the API's backend --

    async def put_many(self, puts: Puts) -> Results:
        ordered = [at for at, put in enumerate(puts) if self.carrier(put.key) is not Carrier.GOSSIP]
        if not ordered:
            return await super().put_many(puts)
        ordered_at = set(ordered)
        others = iter(await super().put_many([put for at, put in enumerate(puts) if at not in ordered_at]))
        # Those of one key one after the other, for the last counts; all others share entries of the log.
        by_key: dict[str, list[int]] = {}
        for at in ordered:
            by_key.setdefault(puts[at].key, []).append(at)
        told: dict[int, Entry | Exception] = {}

        async def in_turn(places: Sequence[int]) -> None:
            for at in places:
                told[at] = await self._put_one(puts[at])

        await asyncio.gather(*map(in_turn, by_key.values()))
        return [told[at] if at in ordered_at else next(others) for at in range(len(puts))]

    async def _put_one(self, put: Put) -> Entry | Exception:
        try:
            return await self.put(put)
        except NovaError as error:
            return error

    async def list(
        self, prefix: str, limit: int, after: str | None, consistency: str | None = None
    ) -> tuple[Entries, str | None]:
        below = self.classes.below(prefix)
        if below == {KeyClass.EVENTUAL}:
            return await super().list(prefix, limit, after, consistency)
        limit = min(limit, LIST_MAX)
        pages: list[tuple[Entries, str | None]] = []
        for kind in sorted(below):
            asked = None if kind is KeyClass.EVENTUAL else consistency
            # Each may hold keys of a prefix that has another class by now.
            pages += [
                ([entry for entry in entries if self.classes.of(entry.key) is kind], more)
                for entries, more in await self.page(kind, prefix, limit, after or "", asked)
            ]
        return merged(pages, limit)

    async def watch(self, since: int | None, prefix: str, kind: str | None = None) -> AsyncIterator[Change | None]:
        chosen = self.classes.watched(prefix, kind)
        async for change in self.changes(chosen, since, prefix):
            if change is None or self.classes.of(change.key) is chosen:
                yield change

    def check_ordered(self, put: Put) -> None:
        """What a log orders here, and elsewhere alike. Raises UsageError, ConfigError."""
        self.classes.check_plain(put)
        if self.agreement.differs:
            self.agreement.check(put.key)

    async def past(self, key: str, at_ms: int) -> Entry:
        self.classes.only_eventual(key, "keeps no past")
        return await super().past(key, at_ms)

    def points(self, key: str) -> Points:
        self.classes.only_eventual(key, "has no rollback points")
        return super().points(key)

    async def make_point(self, key: str, note: str) -> str:
        self.classes.only_eventual(key, "has no rollback points")
        return await super().make_point(key, note)

    async def rollback(self, key: str, to: str, context: dict[str, int] | None, by: str) -> Rollback:
        self.classes.only_eventual(key, "has no rollback points")
        return await super().rollback(key, to, context, by)

    async def decide(self, key: str, shown: str, values: dict[str, Any], by: str) -> Decided:
        self.classes.only_eventual(key, "never has conflicts to decide")
        return await super().decide(key, shown, values, by)


__all__ = ["ClassedNode", "Entries", "Names"]
