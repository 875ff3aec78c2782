"""A node with keys of several classes: each goes the way of its class, and what asks for many is answered over all."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

from nova.errors import NovaError, UsageError
from nova.server.config import NodeConfig
from nova.server.node import Names, Node, Points, Puts, Results
from nova.server.upkeep import LIST_MAX
from nova.store.classes import READY, KeyClass, KeyClasses
from nova.store.decisions import Decided
from nova.store.model import Change, Entry, Put, StrongEntry
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
        below = self.classes.below(prefix)
        if kind is None:
            if len(below) > 1:
                raise UsageError(
                    f"keys below {prefix!r} are {' and '.join(sorted(below))}, whose revisions are numbered apart; "
                    f"watch one class: {' or '.join(f'class={each}' for each in sorted(below))}"
                )
            (chosen,) = below
        else:
            chosen = _chosen(kind)
        async for change in self.changes(chosen, since, prefix):
            if change is None or self.classes.of(change.key) is chosen:
                yield change

    def check_plain(self, put: Put) -> None:
        """Keys that a log orders hold one value, and have versions and no clocks. Raises UsageError."""
        kind = self.classes.of(put.key)
        if put.context is not None or put.conditional:
            raise UsageError(f"{put.key!r} is {kind} and has no clock; give the version that was read as expect")
        if put.merge:
            raise UsageError(f"{put.key!r} is {kind}; merge is for eventual keys: write the whole value with expect")
        if put.kind not in (None, "register"):
            raise UsageError(f"{put.key!r} is {kind} and holds one value, a register; leave out the kind {put.kind!r}")

    def explained(self, entry: StrongEntry, text: str) -> dict[str, Any]:
        """What `why` says of a key that a log orders."""
        write = {
            "path": "", "value": entry.value, "origin": entry.origin, "dot": entry.dot, "timestamp": entry.timestamp,
            "time_ms": entry.timestamp >> 16,
        }  # fmt: skip
        return {
            "key": entry.key, "kind": entry.kind, "value": entry.value, "writes": [write], "conflicts": [],
            "text": text,
        }  # fmt: skip

    def _only_eventual(self, key: str, what: str) -> None:
        if (kind := self.classes.of(key)) is not KeyClass.EVENTUAL:
            raise UsageError(f"{key!r} is {kind}, and {what}; write it with the version that you expect")

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


__all__ = ["ClassedNode", "Entries", "Names", "merged"]
