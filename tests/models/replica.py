"""A replica too simple to be wrong, for gossip and anti-entropy: rows by dot under one vector clock, no tombstones."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b
from typing import Any, NamedTuple
from zlib import crc32

import msgspec

from nova.errors import PeerError
from nova.storage.base import Log
from nova.sync.antientropy import ANTIENTROPY_MESSAGES, AntiEntropy, AntiEntropyConfig
from nova.sync.gossip import GOSSIP_MESSAGES, Behind, Gossip, GossipConfig
from nova.types import Outputs, Random

LEAVES = 64
SKETCH, CELLS_MAX = 2, 32
"""Rows that a sketch reveals (a cell: half a row), and the most cells: few, so that every route is taken."""
DIGEST_BYTES = 16


class Head(NamedTuple):
    origin: str
    first: int
    last: int


class Durable(msgspec.Struct, frozen=True):
    clock: dict[str, int]
    batch: bytes | None


def head_of(batch: bytes) -> Head:
    try:
        origin, first, last = msgspec.msgpack.decode(batch)[:3]
    except (msgspec.DecodeError, ValueError) as error:
        raise PeerError(f"a batch that is none: {error}") from None
    return Head(origin, first, last)


class ToyReplica:
    """`history_count` batches are remembered for `batches_since`."""

    def __init__(self, actor: str, history_count: int = 1_000_000) -> None:
        self.actor = actor
        self.rows: dict[str, dict[tuple[str, int], str]] = {}
        self.known: dict[str, int] = {}
        self.durable: dict[str, int] = {}
        self.history: list[tuple[Head, bytes]] = []
        self.history_start: dict[str, int] = {}
        self.history_count = history_count
        self.open: list[Any] = []
        self.open_deps: dict[str, int] = {}
        self.joined_bytes = 0

    def write(self, key: str, value: str | None) -> tuple[str, int]:
        if not self.open:
            self.open_deps = {a: n for a, n in self.known.items() if a != self.actor}
        count = self.known[self.actor] = self.known.get(self.actor, 0) + 1
        drops = list(self.rows.get(key, {}))
        self._apply(key, value, drops, (self.actor, count))
        self.open.append((key, value, drops))
        return self.actor, count

    def _apply(self, key: str, value: str | None, drops: list[Any], dot: tuple[str, int]) -> None:
        rows = self.rows.setdefault(key, {})
        for drop in drops:
            rows.pop(tuple(drop), None)
        if value is not None:
            rows[dot] = value
        if not rows:
            del self.rows[key]

    def close(self) -> tuple[bytes, Outputs] | None:
        if not self.open:
            return None
        last = self.known[self.actor]
        batch = msgspec.msgpack.encode((self.actor, last - len(self.open) + 1, last, self.open_deps, self.open))
        self.open = []
        return batch, Outputs(persist=[b"b" + batch], apply=[Durable({self.actor: last}, batch)])

    def applied(self, event: Durable) -> None:
        for actor, count in event.clock.items():
            self.durable[actor] = max(count, self.durable.get(actor, 0))
        if event.batch is None:
            self.history.clear()
            self.history_start = dict(self.durable)
        else:
            self.history.append((head_of(event.batch), event.batch))
            if len(self.history) > self.history_count:
                head, _ = self.history.pop(0)
                self.history_start[head.origin] = head.last

    def replay(self, log: Log) -> None:
        for _, record in log.replay():
            if record[:1] == b"b":
                assert self.receive(record[1:]) is not None
                head = head_of(record[1:])
                self.applied(Durable({head.origin: head.last}, record[1:]))
            else:
                self.join(record[1:])
                self.applied(Durable(dict(self.known), None))

    # -- the protocol Replica --

    def clock(self) -> dict[str, int]:
        return self.durable

    def batches_since(self, clock: Mapping[str, int], limit_bytes: int) -> list[bytes] | None:
        if any(clock.get(a, 0) < n for a, n in self.history_start.items()):
            return None
        out: list[bytes] = []
        size = 0
        for head, batch in self.history:
            if head.last > clock.get(head.origin, 0):
                if out and size + len(batch) > limit_bytes:
                    break
                out.append(batch)
                size += len(batch)
        return out

    def receive(self, batch: bytes) -> Outputs | None:
        origin, first, last, deps, ops = msgspec.msgpack.decode(batch)
        known = self.known.get(origin, 0)
        if last <= known:
            return Outputs()
        if first > known + 1 or any(self.known.get(a, 0) < n for a, n in deps.items()):
            return None
        for offset, (key, value, drops) in enumerate(ops):
            if first + offset > known:
                self._apply(key, value, drops, (origin, first + offset))
        self.known[origin] = last
        return Outputs(persist=[b"b" + batch], apply=[Durable({origin: last}, batch)])

    def retire(self, node: str, upto: int, total: int) -> Outputs:
        return Outputs()

    def leaf_digests(self) -> bytes:
        leaves: list[list[Any]] = [[] for _ in range(LEAVES)]
        for key in sorted(self.rows):
            leaves[leaf_of(key)].append((key, sorted(self.rows[key].items())))
        return b"".join(blake2b(repr(leaf).encode(), digest_size=DIGEST_BYTES).digest() for leaf in leaves)

    def row_ids(self) -> dict[bytes, tuple[str, tuple[str, int], str]]:
        rows = ((key, dot, value) for key, items in self.rows.items() for dot, value in items.items())
        return {blake2b(repr(row).encode(), digest_size=8).digest(): row for row in rows}

    def summary(self, cells: int | None = None) -> bytes:
        if cells is None:
            return msgspec.msgpack.encode((self.known, self.leaf_digests()))
        return msgspec.msgpack.encode((self.known, cells, sorted(self.row_ids())))

    def difference(self, base: dict[str, int], cells: int, theirs: set[bytes]) -> bytes | int:
        """What a summary of cells that holds the ids themselves would reveal, and no more than that."""
        mine = self.row_ids()
        if len(mine.keys() ^ theirs) > (cells // 2 or SKETCH):
            return 4 * (cells or SKETCH) if 4 * (cells or SKETCH) <= CELLS_MAX else 0
        here = [mine[id] for id in sorted(mine.keys() - theirs)]
        rows = [(key, dot, value) for key, dot, value in here if dot[1] > base.get(dot[0], 0)]
        return msgspec.msgpack.encode((self.known, sorted(theirs - mine.keys()), rows, base, sorted(theirs)))

    def state_for(self, summary: bytes) -> bytes | int:
        asked = msgspec.msgpack.decode(summary)
        if len(asked) == 3:
            return self.difference(asked[0], asked[1], set(asked[2]))
        base, leaf_digests = asked
        mine = self.leaf_digests()
        if len(leaf_digests) != len(mine):
            raise PeerError(f"{len(leaf_digests)} bytes of leaf digests, not {len(mine)}")
        differ = [
            i
            for i in range(LEAVES)
            if mine[i * DIGEST_BYTES : (i + 1) * DIGEST_BYTES]
            != leaf_digests[i * DIGEST_BYTES : (i + 1) * DIGEST_BYTES]
        ]
        rows = [(key, list(rows.items())) for key, rows in sorted(self.rows.items()) if leaf_of(key) in set(differ)]
        return msgspec.msgpack.encode((self.known, differ, rows, base))

    def join(self, state: bytes) -> Outputs | None:
        self.joined_bytes += len(state)
        if len(msgspec.msgpack.decode(state)) == 5:
            return self.join_difference(state)
        clock, leaves, rows, base = msgspec.msgpack.decode(state)
        theirs = {key: {tuple(dot): value for dot, value in items} for key, items in rows}
        for key in {*theirs, *self.rows}:
            mine, other = self.rows.get(key, {}), theirs.get(key, {})
            asked = {} if leaf_of(key) in leaves else base  # in a range that was equal, only news can be old news
            merged = {
                d: v for d, v in mine.items() if d in other or d[1] > clock.get(d[0], 0) or d[1] <= asked.get(d[0], 0)
            }
            merged |= {d: v for d, v in other.items() if d in mine or d[1] > self.known.get(d[0], 0)}
            if merged:
                self.rows[key] = merged
            else:
                self.rows.pop(key, None)
        return self.joined(clock, state)

    def join_difference(self, state: bytes) -> Outputs | None:
        clock, gone, rows, base, asked = msgspec.msgpack.decode(state)
        if not set(gone) <= set(asked):
            return None
        mine, theirs = self.row_ids(), {(key, tuple(dot)) for key, dot, _ in rows}
        for id, (key, dot, _) in mine.items():
            late = dot[1] > base.get(dot[0], 0) and (key, dot) not in theirs
            if dot[1] <= clock.get(dot[0], 0) and (id in gone or late):
                del self.rows[key][dot]
        for key, dot, value in rows:
            if dot[1] > self.known.get(dot[0], 0):
                self.rows.setdefault(key, {})[tuple(dot)] = value
        self.rows = {key: items for key, items in self.rows.items() if items}
        return self.joined(clock, state)

    def joined(self, clock: dict[str, int], state: bytes) -> Outputs:
        for actor, count in clock.items():
            self.known[actor] = max(count, self.known.get(actor, 0))
        return Outputs(persist=[b"s" + state], apply=[Durable(dict(self.known), None)])


def leaf_of(key: str) -> int:
    return crc32(key.encode()) % LEAVES


class ToyNode:
    """Replica, gossip and anti-entropy in one; peers are given, not found."""

    def __init__(
        self,
        name: str,
        log: Log,
        random: Random,
        regions: Mapping[str, str],
        *,
        gossip: GossipConfig | None = None,
        antientropy: AntiEntropyConfig | None = None,
        history_count: int = 1_000_000,
    ) -> None:
        self.name = name
        self.replica = ToyReplica(f"{name}~{log.last + 1}", history_count)
        self.replica.replay(log)
        self.gossip = Gossip(name, self.replica, head=head_of, region=regions[name], config=gossip, random=random)
        self.antientropy = AntiEntropy(name, self.replica, config=antientropy, random=random)
        self.gossip.set_peers({peer: region for peer, region in regions.items() if peer != name})
        self.antientropy.set_peers([peer for peer in regions if peer != name])
        self.events: list[Any] = []

    def step(self, sender: str, message: Any) -> Outputs:
        if isinstance(message, GOSSIP_MESSAGES):
            return self.gossip.step(sender, message)
        assert isinstance(message, ANTIENTROPY_MESSAGES)
        return self.antientropy.step(sender, message)

    def tick(self) -> Outputs:
        out = self.gossip.tick()
        out.extend(self.antientropy.tick())
        return out

    def turn(self) -> Outputs:
        closed = self.replica.close()
        if closed is None:
            return Outputs()
        batch, out = closed
        out.extend(self.gossip.published(batch))
        return out

    def applied(self, event: Any) -> Outputs | None:
        self.events.append(event)
        if isinstance(event, Durable):
            self.replica.applied(event)
        elif isinstance(event, Behind):
            return self.antientropy.sync(event.node)
        return None

    @property
    def state(self) -> tuple[bytes, dict[str, int]]:
        return self.replica.leaf_digests(), self.replica.durable
