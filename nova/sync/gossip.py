"""How a new batch of operations reaches every replica.

Eager push with lazy repair, as in Plumtree (Leitao, Pereira, Rodrigues 2007) but without a tree: a batch is pushed as
soon as it is durable, to everybody in a small cluster, else to `fanout` random peers which pass on what was new to
them. That alone reaches nearly all. The rest hear from a clock: whoever learned something tells some peers what it
has now, for about log n rounds, and once in `push_pull_ms` without occasion. A node that sees a clock ahead of its own
pulls exactly the missing batches from there.

What is told is only what is durable (`Replica.clock`); what is asked for leaves out what is already here and on its
way to the disk, and what another peer was asked for.

Regions: a batch crosses into each other region `relays` times, sent by its origin; whoever gets it from abroad passes
it on at home only. Clocks cross rarely, a few per round and pair of regions however large they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import ceil, log2
from typing import Protocol, assert_never

import msgspec

from nova.errors import ConfigError, PeerError, UnavailableError
from nova.sync.retire import FLOOR, TOTAL, count_of, floors, lacking, tidy
from nova.types import Actor, NodeId, Outputs, Random, Region


class Head(Protocol):
    """Which operations a batch holds: `first` to `last` of `origin`."""

    @property
    def origin(self) -> Actor: ...
    @property
    def first(self) -> int: ...
    @property
    def last(self) -> int: ...


class Replica(Protocol):
    """What gossip and anti-entropy need of the state; the store implements it."""

    def clock(self) -> Mapping[Actor, int]:
        """What is durable here."""

    def batches_since(self, clock: Mapping[Actor, int], limit_bytes: int) -> list[bytes] | None:
        """What `clock` lacks, in causal order, about `limit_bytes` of it but at least one batch; None if history
        does not reach back that far."""

    def receive(self, batch: bytes) -> Outputs | None:
        """Apply a batch. None: something it depends on is missing. Empty: nothing new. Raises PeerError."""

    def retire(self, node: NodeId, upto: int, total: int) -> Outputs:
        """Take the earlier lives of a node out of the clock, if all of them is applied here; see nova.sync.retire."""

    def leaf_digests(self) -> bytes:
        """One digest per range of keys."""

    def summary(self, cells: int | None = None) -> bytes:
        """What a state is asked for with: the clock and, of the same instant, a digest of each range of keys; or a
        sketch of the set of rows (0 cells), or so many cells, which reveal more rows that differ."""

    def state_for(self, summary: bytes) -> bytes | int:
        """Clock and the rows that differ from a peer's summary (or all rows of the ranges that do), from one instant;
        or how many cells to ask with instead, 0 for ranges. Raises PeerError.

        The state repeats the clock of the summary: what reaches the peer between its question and the answer must be
        told from what was there."""

    def join(self, state: bytes) -> Outputs | None:
        """Merge what `state_for` of a peer gave: all is then as if its whole state had been merged. Raises PeerError.

        None, and nothing has changed: the difference does not lead from what was asked with to what the peer has."""


class Batches(msgspec.Struct, frozen=True, array_like=True, tag="gb"):
    """Operations. `number` is that of the pull it answers, 0 for a push; `more`: ask again."""

    number: int
    batches: list[bytes]
    more: bool = False


class Have(msgspec.Struct, frozen=True, array_like=True, tag="gh"):
    """What is durable here, or the part of it that changed lately. `urgent`: the whole of it; pull at once and, if
    `answer`, tell me yours."""

    clock: dict[Actor, int]
    urgent: bool = False
    answer: bool = False


class Pull(msgspec.Struct, frozen=True, array_like=True, tag="gp"):
    """Send me what this clock lacks."""

    number: int
    clock: dict[Actor, int]


class Forgotten(msgspec.Struct, frozen=True, array_like=True, tag="gf"):
    """My history does not reach back to what you asked for: synchronize states."""

    number: int


Message = Batches | Have | Pull | Forgotten
GOSSIP_MESSAGES = (Batches, Have, Pull, Forgotten)


class Behind(msgspec.Struct, frozen=True):
    """Event: this peer has no history left for what is missing here; `AntiEntropy.sync` with it."""

    node: NodeId


class Refused(msgspec.Struct, frozen=True):
    """Event: a batch of this peer was refused; those before it were taken."""

    node: NodeId
    reason: str


class GossipConfig(msgspec.Struct, frozen=True):
    """Times are milliseconds and count in whole ticks.

    fanout           peers that one node pushes to; up to one more and everybody is told directly
    relays           peers in each other region that the origin pushes to
    round_ms         clocks are told at most this often; 500 suits a WAN
    push_pull_ms     a random peer is told the whole clock this often, news or not
    pull_timeout_ms  then another peer is asked; the first time after one round, then twice as long up to this
    reply_bytes_max  about so much answers one pull; the rest is asked for again
    round_bytes_max  so much goes to one peer in a round; pushes beyond it are left to be pulled
    buffer_bytes_max batches held back because something before them is missing
    """

    tick_ms: int = 100
    fanout: int = 3
    relays: int = 2
    round_ms: int = 200
    push_pull_ms: int = 5_000
    pull_timeout_ms: int = 2_000
    reply_bytes_max: int = 512 * 1024
    round_bytes_max: int = 16 * 1024 * 1024
    buffer_bytes_max: int = 16 * 1024 * 1024

    def __post_init__(self) -> None:
        if min(self.tick_ms, self.fanout, self.relays, self.reply_bytes_max, self.buffer_bytes_max) < 1:
            raise ConfigError("gossip: tick_ms, fanout, relays, reply_bytes_max and buffer_bytes_max start at 1")
        if self.round_bytes_max < self.reply_bytes_max:
            raise ConfigError(
                f"gossip.round_bytes_max {self.round_bytes_max} must hold one answer of {self.reply_bytes_max} bytes"
            )

    def ticks(self, ms: int) -> int:
        """At least one tick."""
        return max(1, ceil(ms / self.tick_ms))


@dataclass(slots=True)
class _Peer:
    region: Region
    clock: dict[Actor, int] = field(default_factory=dict)
    round_bytes: int = 0
    pull: _Pulling | None = None
    claim: dict[Actor, int] | None = None  # what it was seen to have and we lack ...
    claimed_at: int = 0  # ... since this tick
    deferred: Pull | None = None  # its pull, waiting for the next round's bandwidth
    refused_until: int = 0
    timeouts: int = 0


@dataclass(slots=True)
class _Pulling:
    number: int
    target: dict[Actor, int]
    end: int


class Gossip:
    """One node's part in spreading batches. The driver deals a `tick` every `config.tick_ms`.

    head    reads the head of a batch
    """

    def __init__(
        self,
        node: NodeId,
        replica: Replica,
        *,
        head: Callable[[bytes], Head],
        region: Region = "local",
        config: GossipConfig | None = None,
        random: Random,
    ) -> None:
        self._node = node
        self._replica = replica
        self._head = head
        self._region = region
        self._config = config or GossipConfig()
        self._random = random
        self._now = 0
        self._number = 0
        self._peers: dict[NodeId, _Peer] = {}
        self._clocks: dict[NodeId, dict[Actor, int]] = {}
        self._home: list[NodeId] = []
        self._abroad: dict[Region, list[NodeId]] = {}
        self._arrived: dict[Actor, int] = {}  # received, perhaps not yet durable
        self._hot: dict[Actor, int] = {}  # actor -> rounds for which its count is still told
        self._told: dict[Actor, int] = dict(replica.clock())
        self._buffer: dict[Actor, dict[int, tuple[int, bytes]]] = {}
        self._buffer_bytes = 0
        self._next_round = self._config.ticks(self._config.round_ms)
        self._next_push_pull = 1 + random.randrange(self._config.ticks(self._config.push_pull_ms))

    def pace(self, round_ms: int) -> None:
        """Tell clocks at most this often from the next round on."""
        self._config = msgspec.structs.replace(self._config, round_ms=round_ms)

    # -- who is there --

    def set_peers(self, peers: Mapping[NodeId, Region]) -> None:
        """The live peers and their regions, this node not among them."""
        for node in self._peers.keys() - peers.keys():
            del self._peers[node]
        for node, region in peers.items():
            if node == self._node:
                continue
            known = self._peers.get(node)
            if known is None:
                if node not in self._clocks and len(self._clocks) >= 4 * len(peers) + 256:
                    self._clocks = {name: clock for name, clock in self._clocks.items() if name in self._peers}
                self._peers[node] = _Peer(region, self._clocks.setdefault(node, {}))
            else:
                known.region = region
        self._home = [node for node, peer in self._peers.items() if peer.region == self._region]
        self._abroad = {}
        for node, peer in self._peers.items():
            if peer.region != self._region:
                self._abroad.setdefault(peer.region, []).append(node)

    def peer_up(self, node: NodeId) -> Outputs:
        """There is a session with this peer: exchange clocks at once."""
        if node not in self._peers:
            return Outputs()
        peer = self._peers[node]
        peer.pull = peer.claim = peer.deferred = None
        return Outputs(send=[(node, Have(dict(self._replica.clock()), True, True))])

    def peer_clock(self, node: NodeId) -> dict[Actor, int]:
        """The newest clock known of a peer."""
        return dict(self._clocks.get(node, ()))

    def lag(self, node: NodeId) -> int:
        """Operations durable here that the peer is not known to have."""
        theirs = self._clocks.get(node, {})
        return sum(
            max(0, count - count_of(theirs, actor))
            for actor, count in self._replica.clock().items()
            if not actor.endswith((FLOOR, TOTAL))
        )

    @property
    def buffered_bytes(self) -> int:
        """Batches that wait for something before them."""
        return self._buffer_bytes

    # -- what happens --

    def published(self, batch: bytes) -> Outputs:
        """The store closed a local batch: the pushes that must leave once it is durable."""
        head = self._head(batch)
        self._arrive(head)
        if self._small:
            targets = list(self._peers)
        else:
            targets = self._some(self._home, self._config.fanout)
            for nodes in self._abroad.values():
                targets += self._some(nodes, self._config.relays)
        out = Outputs()
        self._push(targets, batch, head, out)
        return out

    def step(self, sender: NodeId, message: Message) -> Outputs:
        """Take a message from an authenticated peer. Raises PeerError if it cannot be."""
        out = Outputs()
        peer = self._peers.get(sender)
        if peer is None:
            # Membership is a little behind the transport: it will call peer_up once it knows this node.
            if isinstance(message, Batches):
                self._take(sender, message.batches, out)
            return out
        match message:
            case Batches(number, batches, more):
                self._answered(peer, sender, number, batches, more, out)
            case Have(clock, urgent, answer):
                if any(count < 0 for count in clock.values()):
                    raise PeerError(f"{sender} told a clock with a negative count; counts start at 0")
                _raise_to(peer.clock, clock)
                self._retire(peer.clock, clock, out)
                if answer:
                    out.send.append((sender, Have(dict(self._replica.clock()), True)))
                self._consider(sender, peer, clock, urgent, out)
            case Pull():
                _raise_to(peer.clock, message.clock)
                self._answer(sender, peer, message, out)
            case Forgotten(number):
                if peer.pull is not None and peer.pull.number == number:
                    peer.pull = None
                    peer.claim = None
                    peer.refused_until = self._now + self._config.ticks(self._config.push_pull_ms)
                    out.apply.append(Behind(sender))
            case _:
                assert_never(message)
        return out

    def tick(self) -> Outputs:
        """Let one tick pass."""
        self._now += 1
        out = Outputs()
        late = False
        for node, peer in self._peers.items():
            if peer.pull is not None and self._now >= peer.pull.end:
                peer.pull = None
                peer.timeouts += 1
                peer.refused_until = self._now + self._config.ticks(self._config.round_ms)
                late = True
            if peer.claim is not None and self._now > peer.claimed_at:
                self._pull(node, peer, peer.claim, out)
        if late:
            self._ask_another(out)
        if self._now >= self._next_round:
            self._next_round = self._now + self._config.ticks(self._config.round_ms)
            self._tell(out)
        if self._now >= self._next_push_pull:
            self._next_push_pull = self._now + self._config.ticks(self._config.push_pull_ms)
            for peer in self._peers.values():
                tidy(peer.clock)  # an old message may have named what had gone
            if self._peers:
                node = self._some(list(self._peers), 1)[0]
                out.send.append((node, Have(dict(self._replica.clock()), True, True)))
        return out

    # -- pushing --

    @property
    def _small(self) -> bool:
        return len(self._peers) <= self._config.fanout + 1

    def _some(self, nodes: list[NodeId], count: int) -> list[NodeId]:
        return self._random.sample(nodes, min(count, len(nodes)))

    def _push(self, targets: list[NodeId], batch: bytes, head: Head, out: Outputs) -> None:
        message = None
        for node in targets:
            peer = self._peers[node]
            if count_of(peer.clock, head.origin) >= head.last or peer.round_bytes >= self._config.round_bytes_max:
                continue
            peer.round_bytes += len(batch)
            message = message or Batches(0, [batch])
            out.send.append((node, message))

    def _forward(self, sender: NodeId, batch: bytes, head: Head, out: Outputs) -> None:
        origin = head.origin.rpartition("~")[0]
        if self._small:
            if origin in self._peers:
                return  # the origin told everybody itself
            targets = list(self._peers)
        else:
            targets = self._some(self._home, self._config.fanout)
        self._push([node for node in targets if node not in (sender, origin)], batch, head, out)

    # -- receiving --

    def _arrive(self, head: Head) -> None:
        if head.last > self._arrived.get(head.origin, 0):
            self._arrived[head.origin] = head.last

    def _here(self, actor: Actor) -> int:
        return max(count_of(self._arrived, actor), count_of(self._replica.clock(), actor))

    def _take(self, sender: NodeId, batches: list[bytes], out: Outputs) -> bool:
        """Receive batches and what waited for them; whether anything was new."""
        fresh = False
        peer = self._peers.get(sender)
        # All heads are read before anything is taken: an error after that would lose what must be persisted.
        heads = [self._head(batch) for batch in batches]
        for head in heads:
            if not 0 < head.first <= head.last:
                raise PeerError(f"{sender} sent a batch {head.first}..{head.last}; batches count upward from 1")
        for head, batch in zip(heads, batches, strict=True):
            if peer is not None:
                _raise_to(peer.clock, {head.origin: head.last})
            if head.last <= self._here(head.origin):
                continue
            if self._receive(sender, batch, head, out):
                fresh = True
            elif peer is not None and peer.claim is None and peer.pull is None:
                peer.claim, peer.claimed_at = {}, self._now  # a gap: look again at the next tick
        if fresh and self._buffer:
            self._retry(sender, out)
        return fresh

    def _receive(self, sender: NodeId, batch: bytes, head: Head, out: Outputs) -> bool:
        try:
            effect = self._replica.receive(batch)
        except (PeerError, UnavailableError) as error:
            # What was taken before must still be persisted, so this is told and not raised.
            out.apply.append(Refused(sender, str(error)))
            return False
        if effect is None:
            self._hold(batch, head)
            return False
        self._arrive(head)
        if effect:
            out.extend(effect)
            self._forward(sender, batch, head, out)
        return bool(effect)

    def _hold(self, batch: bytes, head: Head) -> None:
        held = self._buffer.setdefault(head.origin, {})
        if head.first in held:
            return
        held[head.first] = (head.last, batch)
        self._buffer_bytes += len(batch)
        while self._buffer_bytes > self._config.buffer_bytes_max:
            # The farthest from being needed goes; it is pulled when its turn comes.
            origin = max(self._buffer, key=lambda actor: sum(len(b) for _, b in self._buffer[actor].values()))
            self._unhold(origin, max(self._buffer[origin]))

    def _unhold(self, origin: Actor, first: int) -> bytes:
        held = self._buffer[origin]
        batch = held.pop(first)[1]
        self._buffer_bytes -= len(batch)
        if not held:
            del self._buffer[origin]
        return batch

    def _retry(self, sender: NodeId, out: Outputs) -> None:
        moved = True
        while moved:
            moved = False
            for origin in list(self._buffer):
                while origin in self._buffer:
                    here = self._here(origin)
                    first = min(self._buffer[origin])
                    if self._buffer[origin][first][0] <= here:
                        self._unhold(origin, first)
                        continue
                    if first > here + 1:
                        break
                    batch = self._unhold(origin, first)
                    if not self._receive(sender, batch, self._head(batch), out):
                        break
                    moved = True

    # -- clocks --

    def _tell(self, out: Outputs) -> None:
        for node, peer in self._peers.items():
            peer.round_bytes = 0
            if peer.deferred is not None:
                pull, peer.deferred = peer.deferred, None
                self._answer(node, peer, pull, out)
        clock = self._replica.clock()
        if clock != self._told:
            rounds = max(1, ceil(log2(len(self._peers) + 1)))
            for actor, count in clock.items():
                if count != self._told.get(actor):
                    self._hot[actor] = rounds
            self._told = dict(clock)
        if not self._hot or not self._peers:
            return
        told = {actor: clock[actor] for actor in self._hot if actor in clock}
        for actor in [actor for actor in told if actor.endswith(FLOOR) and actor + "+" in clock]:
            told[actor + "+"] = clock[actor + "+"]
        for node in self._listeners() if told else ():
            out.send.append((node, Have(told)))
        self._hot = {actor: rounds - 1 for actor, rounds in self._hot.items() if rounds > 1}

    def _retire(self, theirs: dict[Actor, int], news: Mapping[Actor, int], out: Outputs) -> None:
        """A peer told a clock: take its floors over, where all below them is here."""
        raised = False
        for node, upto, total in floors(news):
            raised = True
            if upto > self._here(node + FLOOR):
                effect = self._replica.retire(node, upto, total)
                if effect:
                    _raise_to(self._arrived, {node + FLOOR: upto, node + TOTAL: total})
                    out.extend(effect)
        if raised:
            tidy(theirs)
            tidy(self._arrived)

    def _listeners(self) -> list[NodeId]:
        if self._small:
            return list(self._peers)
        chosen = self._some(self._home, self._config.fanout)
        for nodes in self._abroad.values():
            if self._random.random() * (len(self._home) + 1) < self._config.relays:
                chosen += self._some(nodes, 1)
        return chosen

    # -- pulling --

    def _consider(self, node: NodeId, peer: _Peer, clock: Mapping[Actor, int], urgent: bool, out: Outputs) -> None:
        """A peer told what it has: remember what we lack of it, and ask for it at the next tick, when what is under
        way from elsewhere has come."""
        if peer.claim is None:
            lacking = self._lacking(clock)
            if not lacking:
                return
            peer.claim, peer.claimed_at = lacking, self._now
        if urgent:
            self._pull(node, peer, peer.clock, out)

    def _lacking(self, clock: Mapping[Actor, int]) -> dict[Actor, int]:
        """What of this clock is neither here nor asked for."""
        lacking = {actor: count for actor, count in clock.items() if count > self._here(actor)}
        if lacking:
            for peer in self._peers.values():
                if peer.pull is not None:
                    for actor, count in peer.pull.target.items():
                        if lacking.get(actor, count + 1) <= count:
                            del lacking[actor]
        return lacking

    def _pull(self, node: NodeId, peer: _Peer, claim: Mapping[Actor, int], out: Outputs) -> None:
        if peer.pull is not None or self._now < peer.refused_until:
            return
        if not claim:  # a gap was seen: whatever this peer has
            claim = peer.clock
        if not self._lacking(claim):
            if not any(count > self._here(actor) for actor, count in claim.items()):
                peer.claim = None  # it came in the meantime; else somebody else was asked: keep it in mind
            return
        peer.claim = None
        self._number += 1
        # A late answer is still taken; to ask twice too early costs bytes, to ask too late costs seconds.
        patience_ms = min(self._config.pull_timeout_ms, self._config.round_ms << min(peer.timeouts, 8))
        peer.pull = _Pulling(self._number, dict(peer.clock), self._now + self._config.ticks(patience_ms))
        out.send.append((node, Pull(self._number, self._all_here())))

    def _ask_another(self, out: Outputs) -> None:
        """An answer is overdue: somebody else who is known to have it may be quicker."""
        others = list(self._peers)
        self._random.shuffle(others)
        for node in others:
            if self._lacking(self._peers[node].clock):
                self._pull(node, self._peers[node], self._peers[node].clock, out)

    def _all_here(self) -> dict[Actor, int]:
        here = dict(self._replica.clock())
        _raise_to(here, self._arrived)
        return here

    def _answer(self, node: NodeId, peer: _Peer, pull: Pull, out: Outputs) -> None:
        room = self._config.round_bytes_max - peer.round_bytes
        if room <= 0:
            peer.deferred = pull
            return
        batches = self._replica.batches_since(pull.clock, min(room, self._config.reply_bytes_max))
        if batches is None:
            out.send.append((node, Forgotten(pull.number)))
            return
        covered = dict(pull.clock)
        for batch in batches:
            head = self._head(batch)
            _raise_to(covered, {head.origin: head.last})
            peer.round_bytes += len(batch)
        more = bool(batches) and bool(lacking(covered, self._replica.clock()))
        out.send.append((node, Batches(pull.number, batches, more)))

    def _answered(
        self, peer: _Peer, sender: NodeId, number: int, batches: list[bytes], more: bool, out: Outputs
    ) -> None:
        mine = peer.pull is not None and peer.pull.number == number
        if mine:
            peer.pull = None
        fresh = self._take(sender, batches, out)
        if number == 0:
            return
        peer.timeouts = 0
        if more and fresh:
            self._pull(sender, peer, peer.clock, out)
        elif mine and not fresh:
            # Asking again would bring the same: leave it for later, and to others.
            peer.claim = None
            peer.refused_until = self._now + self._config.ticks(self._config.round_ms)


def _raise_to(clock: dict[Actor, int], other: Mapping[Actor, int]) -> None:
    for actor, count in other.items():
        if count > clock.get(actor, 0):
            clock[actor] = count
