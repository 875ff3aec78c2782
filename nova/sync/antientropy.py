"""What gossip missed, found and mended by comparing states.

Every `period_ms` a node compares its clock and the digest of its whole state with one random peer: 16 bytes when all is
well. If a peer's history does not reach back far enough (gossip's event `Behind`), or the same operations are still
missing one period later, the states themselves are synchronized: the requester sends a sketch of its set of rows, the
answerer finds what differs and sends from one instant its clock, the rows that the requester lacks and which it lacks
itself, in parts; whole, they are joined. If more differs than the sketch reveals, the answerer asks for a wider one
(cells of a rateless table, Yang et al. 2024), and in the end, or when most differs, for a digest per range of keys, and
then sends the rows of the ranges that differ. Each question stands alone, of one instant, so nobody keeps a table for
somebody else and states may move meanwhile. The requester checks that what it got leads from the set that it asked with
to that of the answerer before it joins it; if not, it asks by ranges. Then it invites the other side to do the same if
that lacks something.

There are no tombstones that could be collected too early: a row that is absent on one side, and whose dot that side's
clock covers, was deleted, so a deleted key never comes back however long a replica was away.

Two states under equal clocks must be equal. If they are not, after `confirmations` looks at the unchanged pair, the
event `Diverged` says so; it is a fault of memory, disk or program, and nothing here guesses which side is right.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from math import ceil
from typing import assert_never

import msgspec

from nova.errors import ConfigError, PeerError
from nova.sync.gossip import Replica
from nova.sync.retire import count_of, lacking
from nova.types import Actor, NodeId, Outputs, Random


class Compare(msgspec.Struct, frozen=True, array_like=True, tag="ac"):
    """My clock, and a digest of my leaf digests. `asked`: answer though we are equal."""

    clock: dict[Actor, int]
    digest: bytes
    asked: bool = False


class Compared(msgspec.Struct, frozen=True, array_like=True, tag="ae"):
    """The same of the answerer."""

    clock: dict[Actor, int]
    digest: bytes


class Request(msgspec.Struct, frozen=True, array_like=True, tag="aq"):
    """Send me what differs from this summary."""

    number: int
    summary: bytes


class Wider(msgspec.Struct, frozen=True, array_like=True, tag="aw"):
    """More differs than that summary reveals: ask again with so many cells, or if 0 by ranges of keys."""

    number: int
    cells: int


class Part(msgspec.Struct, frozen=True, array_like=True, tag="ap"):
    """The `index`-th of `count` pieces of a state whose digest is `digest`; `clock` is the answerer's."""

    number: int
    index: int
    count: int
    digest: bytes
    clock: dict[Actor, int]
    data: bytes


class More(msgspec.Struct, frozen=True, array_like=True, tag="am"):
    """Send me the `index`-th piece."""

    number: int
    index: int


class Gone(msgspec.Struct, frozen=True, array_like=True, tag="ag"):
    """I cannot serve this request now: begin again later."""

    number: int


class Invite(msgspec.Struct, frozen=True, array_like=True, tag="ai"):
    """I have joined your state, and have what you lack: ask me."""


Message = Compare | Compared | Request | Wider | Part | More | Gone | Invite
ANTIENTROPY_MESSAGES = (Compare, Compared, Request, Wider, Part, More, Gone, Invite)


class Diverged(msgspec.Struct, frozen=True):
    """Event: this peer has the same clock and another state. Never repaired by guess: an operator must decide."""

    node: NodeId
    mine: bytes
    theirs: bytes
    clock: dict[Actor, int]


class Joined(msgspec.Struct, frozen=True):
    """Event: a state of so many bytes was joined."""

    node: NodeId
    bytes: int


class AntiEntropyConfig(msgspec.Struct, frozen=True):
    """Times are milliseconds and count in whole ticks.

    period_ms       how often one random peer is compared with
    timeout_ms      a piece not answered in this time ends the exchange; it begins again in the next period
    part_bytes      size of the pieces of a state
    state_bytes_max a larger state is refused
    sessions_max    states kept for others to fetch at a time
    cells_max       instead of a wider summary, ranges of keys are asked by; a cell is 13 bytes
    confirmations   looks at an unchanged pair before it is called diverged
    confirm_ms      time between those looks
    """

    tick_ms: int = 100
    period_ms: int = 30_000
    timeout_ms: int = 5_000
    part_bytes: int = 1024 * 1024
    state_bytes_max: int = 4 * 1024 * 1024 * 1024
    sessions_max: int = 4
    cells_max: int = 16_384
    confirmations: int = 3
    confirm_ms: int = 1_000

    def __post_init__(self) -> None:
        if min(self.tick_ms, self.part_bytes, self.sessions_max, self.confirmations) < 1:
            raise ConfigError("antientropy wants tick_ms, part_bytes, sessions_max and confirmations of at least 1")

    def ticks(self, ms: int) -> int:
        """At least one tick."""
        return max(1, ceil(ms / self.tick_ms))


@dataclass(slots=True)
class _Fetch:
    node: NodeId
    number: int = 0
    end: int = 0
    cells: int | None = 0
    """What was asked with: a sketch, so many cells, or None for ranges of keys."""
    parts: list[bytes] = field(default_factory=list)
    size: int = 0
    count: int = 0
    digest: bytes = b""


@dataclass(slots=True)
class _Serving:
    number: int
    state: bytes
    digest: bytes
    clock: dict[Actor, int]
    end: int


@dataclass(slots=True)
class _Doubt:
    mine: bytes
    theirs: bytes
    clock: dict[Actor, int]
    looks: int
    next_look: int


class AntiEntropy:
    """One node's part in comparing states. The driver deals a `tick` every `config.tick_ms`."""

    def __init__(
        self, node: NodeId, replica: Replica, *, config: AntiEntropyConfig | None = None, random: Random
    ) -> None:
        self._node = node
        self._replica = replica
        self._config = config or AntiEntropyConfig()
        self._random = random
        self._now = 0
        self._number = 0
        self._peers: list[NodeId] = []
        self._fetch: _Fetch | None = None
        self._wanted: dict[NodeId, None] = {}
        self._serving: dict[NodeId, _Serving] = {}
        self._missing: dict[NodeId, dict[Actor, int]] = {}
        self._doubts: dict[NodeId, _Doubt] = {}
        self._next = 1 + random.randrange(self._config.ticks(self._config.period_ms))

    def set_peers(self, peers: Iterable[NodeId]) -> None:
        """The live peers."""
        self._peers = [node for node in peers if node != self._node]
        for table in (self._wanted, self._serving, self._missing, self._doubts):
            for node in table.keys() - set(self._peers):
                del table[node]
        if self._fetch is not None and self._fetch.node not in self._peers:
            self._fetch = None

    def sync(self, node: NodeId) -> Outputs:
        """Synchronize states with this peer: now, or when the exchange under way has ended."""
        out = Outputs()
        if node != self._node and (self._fetch is None or self._fetch.node != node):
            self._wanted[node] = None
            self._begin(out)
        return out

    def comparison(self) -> Compare:
        """This state as it is compared with others."""
        return Compare(dict(self._replica.clock()), _digest(self._replica.leaf_digests()))

    def tick(self) -> Outputs:
        """Let one tick pass."""
        self._now += 1
        out = Outputs()
        if self._fetch is not None and self._now >= self._fetch.end:
            self._fetch = None
            self._begin(out)
        for node in [node for node, serving in self._serving.items() if self._now >= serving.end]:
            del self._serving[node]
        for node, doubt in self._doubts.items():
            if self._now >= doubt.next_look:
                doubt.next_look = self._now + self._config.ticks(self._config.confirm_ms)
                out.send.append((node, self.comparison()))
        if self._now >= self._next:
            self._next = self._now + self._config.ticks(self._config.period_ms)
            if self._peers:
                # Whoever had something we lacked a period ago is looked at again first.
                behind = [node for node in self._peers if node in self._missing]
                node = behind[0] if behind else self._random.sample(self._peers, 1)[0]
                out.send.append((node, self.comparison()))
        return out

    def step(self, sender: NodeId, message: Message) -> Outputs:
        """Take a message from an authenticated peer. Raises PeerError if it cannot be."""
        out = Outputs()
        match message:
            case Compare(clock, digest, asked):
                mine = self.comparison()
                if asked or (clock, digest) != (mine.clock, mine.digest):
                    out.send.append((sender, Compared(mine.clock, mine.digest)))
                self._judge(sender, clock, digest, mine, out)
            case Compared(clock, digest):
                self._judge(sender, clock, digest, self.comparison(), out)
            case Request(number, summary):
                self._serve(sender, number, summary, out)
            case Wider(number, cells):
                self._widen(sender, number, cells, out)
            case Part():
                self._collect(sender, message, out)
            case More(number, index):
                serving = self._serving.get(sender)
                if serving is None or serving.number != number:
                    out.send.append((sender, Gone(number)))
                else:
                    self._send_part(sender, serving, index, out)
            case Gone(number):
                if self._fetch is not None and (self._fetch.node, self._fetch.number) == (sender, number):
                    self._fetch = None
                    self._begin(out)
            case Invite():
                out.extend(self.sync(sender))
            case _:
                assert_never(message)
        return out

    # -- comparing --

    def _judge(self, node: NodeId, clock: dict[Actor, int], digest: bytes, mine: Compare, out: Outputs) -> None:
        if clock == mine.clock:
            self._missing.pop(node, None)
            if digest == mine.digest:
                self._doubts.pop(node, None)
            else:
                self._doubt(node, digest, mine, out)
            return
        self._doubts.pop(node, None)
        before = self._missing.pop(node, {})
        # Gossip had a whole period to bring these and did not.
        if any(count > count_of(mine.clock, actor) for actor, count in before.items()):
            out.extend(self.sync(node))
        missing = lacking(mine.clock, clock)
        if missing:
            self._missing[node] = missing

    def _doubt(self, node: NodeId, theirs: bytes, mine: Compare, out: Outputs) -> None:
        # The clock tells what is durable and the digest what is in memory: one of the two may be a sync ahead. That
        # passes; the same four values again and again do not.
        doubt = self._doubts.get(node)
        if doubt is None or (doubt.mine, doubt.theirs, doubt.clock) != (mine.digest, theirs, mine.clock):
            looks = self._config.ticks(self._config.confirm_ms)
            self._doubts[node] = _Doubt(mine.digest, theirs, mine.clock, 1, self._now + looks)
            return
        doubt.looks += 1
        if doubt.looks == self._config.confirmations:
            out.apply.append(Diverged(node, mine.digest, theirs, mine.clock))
            # Told once; only a change can begin another doubt.
            doubt.next_look = self._now + self._config.ticks(self._config.period_ms)

    # -- fetching --

    def _begin(self, out: Outputs) -> None:
        if self._fetch is not None or not self._wanted:
            return
        node = next(iter(self._wanted))
        del self._wanted[node]
        self._ask(node, 0, out)

    def _ask(self, node: NodeId, cells: int | None, out: Outputs) -> None:
        # Each question has its own number, so that a late answer to an older one is not taken for its.
        self._number += 1
        end = self._now + self._config.ticks(self._config.timeout_ms)
        self._fetch = _Fetch(node, self._number, end, cells)
        out.send.append((node, Request(self._number, self._replica.summary(cells))))

    def _widen(self, sender: NodeId, number: int, cells: int, out: Outputs) -> None:
        fetch = self._fetch
        if fetch is None or (fetch.node, fetch.number) != (sender, number) or fetch.parts:
            return
        # At least twice as many each time: all questions together are then not larger than two of the widest.
        if fetch.cells is None or (cells != 0 and cells < max(1, 2 * fetch.cells)):
            self._fetch = None
            raise PeerError(
                f"{sender} wants to be asked with {cells} cells after {fetch.cells}; the next are at least twice as "
                "many, and after ranges of keys none: it is broken or speaks another version"
            )
        self._ask(sender, cells if 0 < cells <= self._config.cells_max else None, out)

    def _collect(self, sender: NodeId, part: Part, out: Outputs) -> None:
        fetch = self._fetch
        if fetch is None or (fetch.node, fetch.number) != (sender, part.number) or part.index != len(fetch.parts):
            return
        if part.index == 0:
            fetch.count, fetch.digest = part.count, part.digest
        if part.count != fetch.count or part.digest != fetch.digest or part.index >= part.count:
            self._fetch = None
            raise PeerError(f"{sender} sent piece {part.index} of {part.count} of a state that began otherwise")
        fetch.size += len(part.data)
        if fetch.size > self._config.state_bytes_max or (not part.data and part.count > 1):
            self._fetch = None
            raise PeerError(
                f"{sender} sent {fetch.size} bytes of a state in {part.index + 1} pieces; "
                f"the limit is {self._config.state_bytes_max}: raise antientropy.state_bytes_max"
            )
        fetch.parts.append(part.data)
        fetch.end = self._now + self._config.ticks(self._config.timeout_ms)
        if len(fetch.parts) < fetch.count:
            out.send.append((sender, More(part.number, len(fetch.parts))))
            return
        self._fetch = None
        state = b"".join(fetch.parts)
        if _digest(state) != fetch.digest:
            raise PeerError(f"{sender} sent a state of {len(state)} bytes whose digest is another than it said")
        joined = self._replica.join(state)
        if joined is None:
            if fetch.cells is None:
                raise PeerError(f"{sender} answered a question by ranges with a difference that does not fit")
            self._ask(sender, None, out)
            return
        out.extend(joined)
        out.apply.append(Joined(sender, len(state)))
        self._missing.pop(sender, None)
        if lacking(part.clock, self._replica.clock()):
            out.send.append((sender, Invite()))
        self._begin(out)

    # -- serving --

    def _serve(self, node: NodeId, number: int, summary: bytes, out: Outputs) -> None:
        self._serving.pop(node, None)
        if len(self._serving) >= self._config.sessions_max:
            out.send.append((node, Gone(number)))
            return
        clock = dict(self._replica.clock())
        state = self._replica.state_for(summary)
        if isinstance(state, int):
            out.send.append((node, Wider(number, state)))
            return
        end = self._now + self._config.ticks(self._config.timeout_ms)
        serving = _Serving(number, state, _digest(state), clock, end)
        if len(state) > self._config.part_bytes:
            self._serving[node] = serving
        self._send_part(node, serving, 0, out)

    def _send_part(self, node: NodeId, serving: _Serving, index: int, out: Outputs) -> None:
        size = self._config.part_bytes
        count = max(1, ceil(len(serving.state) / size))
        if not 0 <= index < count:
            raise PeerError(f"{node} asked for piece {index} of a state of {count}")
        serving.end = self._now + self._config.ticks(self._config.timeout_ms)
        data = serving.state[index * size : (index + 1) * size]
        clock: Mapping[Actor, int] = serving.clock if index == 0 or index == count - 1 else {}
        out.send.append((node, Part(serving.number, index, count, serving.digest, dict(clock), data)))
        if index == count - 1:
            self._serving.pop(node, None)


def _digest(data: bytes) -> bytes:
    return blake2b(data, digest_size=16).digest()
