"""Who is in the cluster, and who of them is alive.

SWIM (Das, Gupta, Motivala 2002): every period each node probes one other, in a shuffled round-robin; if the answer
fails to come, `indirect` others probe it too; if that fails, it is suspected, and after a while declared dead. What
is learned travels on the probes themselves, so traffic per node does not grow with the cluster. A suspect that hears
of it refutes with a higher incarnation.

Lifeguard (Dadgar, Phillips, Currey 2017): a node that misses its own deadlines doubts itself first. Its health score
stretches its timeouts; helpers that cannot reach the target either say so (Nack), which tells "he is gone" from "I am
deaf"; a suspicion starts long and shortens as others confirm it.

Deviations. News about a member is ordered by (incarnation, state): SWIM lets a death override every incarnation, which
would make a restarted node with a lower one unable to return before the record expires; here it hears the accusation
from whoever it talks to and answers it with a higher incarnation. The whole table is compared by one digest when two
nodes meet and every `sync_ms` with one random peer, and exchanged only if it differs.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import chain
from math import ceil, log, log10
from types import MappingProxyType
from typing import Any, Literal, assert_never

import msgspec

from nova.errors import ConfigError, PeerError
from nova.types import NodeId, Outputs, Random, Region

State = Literal["alive", "suspect", "dead", "left"]

RANK: dict[str, int] = {"alive": 0, "suspect": 1, "dead": 2, "left": 3}
INCARNATION_MAX = 2**53
TEXT_BYTES_MAX = 255
CLASSES_TEXT_MAX = 4_096
"""Characters of all classes that a member tells."""
CHUNK = 64
"""Members in one message of a table exchange."""


class Member(msgspec.Struct, frozen=True, array_like=True):
    """A node as others know it. `incarnation` rises when it restarts or refutes; `address` and `http` are host:port."""

    node: NodeId
    incarnation: int = 0
    state: State = "alive"
    region: Region = "local"
    address: str = ""
    http: str = ""
    version: str = ""
    roles: tuple[str, ...] = ()
    accuser: NodeId = ""
    """Who suspects it: distinct accusers confirm a suspicion, repeated rumours do not."""
    classes: tuple[tuple[str, str], ...] | None = None
    """What it promises of keys, (prefix, class) each; None: it does not say."""

    @property
    def live(self) -> bool:
        """Alive, or suspected and not yet given up."""
        return self.state in ("alive", "suspect")


class Ping(msgspec.Struct, frozen=True, array_like=True, tag="mp"):
    number: int
    updates: list[Member]


class PingRequest(msgspec.Struct, frozen=True, array_like=True, tag="mq"):
    """Please ping `target` for me."""

    number: int
    target: NodeId
    updates: list[Member]


class Ack(msgspec.Struct, frozen=True, array_like=True, tag="ma"):
    number: int
    updates: list[Member]


class Nack(msgspec.Struct, frozen=True, array_like=True, tag="mn"):
    """I could not reach the target you asked about, but I heard you."""

    number: int


class News(msgspec.Struct, frozen=True, array_like=True, tag="mu"):
    """Updates that wait for no answer."""

    updates: list[Member]


class TableDigest(msgspec.Struct, frozen=True, array_like=True, tag="md"):
    """Sum over my table; send me yours if it differs."""

    digest: int


class TableChunk(msgspec.Struct, frozen=True, array_like=True, tag="mt"):
    """All members with a name above `after` and up to `until` ("" is the end). With `answer`, tell me what you know
    better in that range."""

    after: NodeId
    until: NodeId
    members: list[Member]
    answer: bool


Message = Ping | PingRequest | Ack | Nack | News | TableDigest | TableChunk
MEMBERSHIP_MESSAGES = (Ping, PingRequest, Ack, Nack, News, TableDigest, TableChunk)


class MemberUp(msgspec.Struct, frozen=True):
    """Event: a member is new, or back, or cleared of suspicion."""

    member: Member


class MemberSuspected(msgspec.Struct, frozen=True):
    """Event: a member does not answer; it has the suspicion time to refute."""

    member: Member


class MemberDown(msgspec.Struct, frozen=True):
    """Event: a member is declared dead."""

    member: Member


class MemberLeft(msgspec.Struct, frozen=True):
    """Event: a member left on purpose."""

    member: Member


class MemberUpdated(msgspec.Struct, frozen=True):
    """Event: a live member changed what it says of itself."""

    member: Member


class MembershipConfig(msgspec.Struct, frozen=True):
    """Times are milliseconds and count in whole ticks.

    probe_ms          one probe per this time
    probe_timeout_ms  patience for the direct answer; the rest of the period is for the indirect ones
    indirect          how many others are asked to probe
    suspicion_ms      least time from suspicion to death; times log10(members)
    suspicion_factor  how much longer while nobody confirms it
    health_max        highest health score: timeouts stretch up to 1 + this
    updates_max       members piggybacked on one message
    retransmit        each update is sent `retransmit * ceil(log10(members + 1))` times
    sync_ms           the table is compared with one random peer this often
    forget_ms         records of the dead and the departed are kept this long
    members_max       beyond it the longest dead are forgotten first and strangers are ignored
    """

    tick_ms: int = 100
    probe_ms: int = 1_000
    probe_timeout_ms: int = 400
    indirect: int = 3
    suspicion_ms: int = 4_000
    suspicion_factor: int = 3
    health_max: int = 8
    updates_max: int = 8
    retransmit: int = 4
    sync_ms: int = 30_000
    forget_ms: int = 3_600_000
    members_max: int = 20_000

    def __post_init__(self) -> None:
        if self.tick_ms <= 0 or not self.tick_ms <= self.probe_timeout_ms < self.probe_ms:
            raise ConfigError(
                f"membership wants 0 < tick_ms <= probe_timeout_ms < probe_ms, got {self.tick_ms}, "
                f"{self.probe_timeout_ms}, {self.probe_ms}"
            )

    def ticks(self, ms: int) -> int:
        """At least one tick."""
        return max(1, ceil(ms / self.tick_ms))


@dataclass(slots=True)
class _Record:
    member: Member
    since: int
    fingerprint: int
    accusers: set[NodeId]
    sent: int = 0


@dataclass(slots=True)
class _Probe:
    target: NodeId
    indirect_at: int
    end: int
    asked: list[NodeId] = field(default_factory=list)
    nacks: set[NodeId] = field(default_factory=set)


@dataclass(slots=True)
class _Errand:
    """A probe made for somebody else."""

    asker: NodeId
    number: int
    target: NodeId
    nack_at: int
    end: int


class Membership:
    """One node's view of the cluster. The driver deals a `tick` every `config.tick_ms`."""

    def __init__(self, self_member: Member, *, config: MembershipConfig | None = None, random: Random) -> None:
        self._config = config or MembershipConfig()
        self._random = random
        self._self = _checked(self_member)
        self._now = 0
        self._number = random.randrange(1 << 32)
        self._records: dict[NodeId, _Record] = {}
        self._view: dict[NodeId, Member] = {}
        self._digest = 0
        self._live = 0
        self._queue: dict[NodeId, None] = {}
        self._suspects: set[NodeId] = set()
        self._probes: dict[int, _Probe] = {}
        self._errands: dict[int, _Errand] = {}
        self._round: deque[NodeId] = deque()
        self._health = 0
        self._next_probe = 1 + random.randrange(self._config.ticks(self._config.probe_ms))
        self._next_sync = 1 + random.randrange(self._config.ticks(self._config.sync_ms))
        self._store(self._self)

    @property
    def members(self) -> Mapping[NodeId, Member]:
        """Everybody known, this node, the dead and the departed included. A live view."""
        return MappingProxyType(self._view)

    @property
    def self_member(self) -> Member:
        """This node as it tells others."""
        return self._self

    @property
    def health(self) -> int:
        """0: this node keeps its deadlines; higher: it doubts itself and waits longer."""
        return self._health

    @property
    def digest(self) -> int:
        """Equal on nodes that know the same."""
        return self._digest

    def peers(self) -> dict[NodeId, Member]:
        """Live members but this one."""
        return {node: member for node, member in self._view.items() if member.live and node != self._self.node}

    def tick(self) -> Outputs:
        """Let one tick pass."""
        self._now += 1
        out = Outputs()
        if self._self.state == "left":
            return out
        self._end_errands(out)
        self._advance_probes(out)
        self._end_suspicions(out)
        if self._now >= self._next_probe:
            self._next_probe = self._now + self._config.ticks(self._config.probe_ms) * (1 + self._health)
            target = self._next_target()
            if target is not None:
                self._probe(target, out)
        if self._now >= self._next_sync:
            self._next_sync = self._now + self._config.ticks(self._config.sync_ms)
            self._forget()
            peers = self._some_live(1)
            if peers:
                out.send.append((peers[0], TableDigest(self._digest)))
        return out

    def met(self, member: Member) -> Outputs:
        """The transport has an authenticated session with this node: it lives. Both sides call this."""
        out = Outputs()
        if member.node == self._self.node:
            return out
        self._learn(_checked(member), out)
        out.send.append((member.node, News([self._self, *self._accusation(member.node)])))
        out.send.append((member.node, TableDigest(self._digest)))
        return out

    def lost(self, node: NodeId) -> Outputs:
        """The transport lost its session with a node: probe it at once."""
        out = Outputs()
        record = self._records.get(node)
        if record is not None and record.member.live and all(p.target != node for p in self._probes.values()):
            self._probe(node, out)
        return out

    def leave(self) -> Outputs:
        """Tell the others that this node goes on purpose; afterwards it is silent."""
        out = Outputs()
        if self._self.state != "left":
            self._become(msgspec.structs.replace(self._self, state="left"))
            for peer in self._some_live(max(self._config.indirect, self._spread())):
                out.send.append((peer, News([self._self])))
        return out

    def step(self, sender: NodeId, message: Message) -> Outputs:
        """Take a message from an authenticated peer. Raises PeerError if it cannot be."""
        out = Outputs()
        if self._self.state == "left":
            return out
        match message:
            case Ping(number, updates):
                self._learn_all(updates, out)
                out.send.append((sender, Ack(number, self._updates(sender))))
            case PingRequest(number, target, updates):
                self._learn_all(updates, out)
                self._run_errand(sender, number, target, out)
            case Ack(number, updates):
                self._learn_all(updates, out)
                self._acked(sender, number, out)
            case Nack(number):
                probe = self._probes.get(number)
                if probe is not None and sender in probe.asked:
                    probe.nacks.add(sender)
            case News(updates):
                self._learn_all(updates, out)
            case TableDigest(digest):
                if digest != self._digest:
                    out.send += ((sender, chunk) for chunk in self._chunks())
            case TableChunk():
                self._compare(sender, message, out)
            case _:
                assert_never(message)
        return out

    # -- probing --

    def _probe(self, target: NodeId, out: Outputs) -> None:
        config, stretch = self._config, 1 + self._health
        self._number += 1
        self._probes[self._number] = _Probe(
            target,
            self._now + config.ticks(config.probe_timeout_ms) * stretch,
            self._now + config.ticks(config.probe_ms) * stretch,
        )
        out.send.append((target, Ping(self._number, self._updates(target))))

    def _advance_probes(self, out: Outputs) -> None:
        for number, probe in list(self._probes.items()):
            if self._now >= probe.end:
                del self._probes[number]
                self._missed(probe, out)
            elif self._now == probe.indirect_at:
                helpers = self._some_live(self._config.indirect, but=probe.target)
                probe.asked = helpers
                for helper in helpers:
                    out.send.append((helper, PingRequest(number, probe.target, self._updates(helper))))

    def _missed(self, probe: _Probe, out: Outputs) -> None:
        # Helpers that heard us and could not reach the target either speak for us; silent ones speak against us.
        silent = len(probe.asked) - len(probe.nacks)
        self._health = min(self._config.health_max, self._health + (silent if probe.asked else 1))
        record = self._records.get(probe.target)
        if record is not None and record.member.live:
            suspect = msgspec.structs.replace(record.member, state="suspect", accuser=self._self.node)
            self._learn(suspect, out)

    def _acked(self, sender: NodeId, number: int, out: Outputs) -> None:
        errand = self._errands.get(number)
        if errand is not None and errand.target == sender:
            del self._errands[number]
            out.send.append((errand.asker, Ack(errand.number, self._updates(errand.asker))))
            return
        probe = self._probes.get(number)
        if probe is not None and (sender == probe.target or sender in probe.asked):
            del self._probes[number]
            self._health = max(0, self._health - 1)

    def _run_errand(self, asker: NodeId, number: int, target: NodeId, out: Outputs) -> None:
        if target == self._self.node:
            out.send.append((asker, Ack(number, self._updates(asker))))
        elif target not in self._records or len(self._errands) >= 1024:
            out.send.append((asker, Nack(number)))
        else:
            config = self._config
            self._number += 1
            # The Nack must be back before the asker closes its books.
            patience = max(1, config.ticks(config.probe_timeout_ms) * 4 // 5)
            self._errands[self._number] = _Errand(
                asker, number, target, self._now + patience, self._now + config.ticks(config.probe_ms)
            )
            out.send.append((target, Ping(self._number, self._updates(target))))

    def _end_errands(self, out: Outputs) -> None:
        for own, errand in list(self._errands.items()):
            if self._now == errand.nack_at:
                out.send.append((errand.asker, Nack(errand.number)))
            if self._now >= errand.end:
                del self._errands[own]

    def _next_target(self) -> NodeId | None:
        for _ in range(2):
            while self._round:
                node = self._round.popleft()
                record = self._records.get(node)
                if record is not None and record.member.live and node != self._self.node:
                    return node
            names = [node for node in self._view if node != self._self.node]
            self._random.shuffle(names)
            self._round.extend(names)
        return None

    def _end_suspicions(self, out: Outputs) -> None:
        again = self._config.ticks(self._config.probe_ms)
        for node in list(self._suspects):
            record = self._records[node]
            silent = self._now - record.since
            if silent >= self._patience(record):
                self._learn(msgspec.structs.replace(record.member, state="dead"), out)
            elif silent % again == 0 and silent and self._self.node in record.accusers:
                # Whoever accuses tells the accused again and again: its answer brings the refutation.
                out.send.append((node, Ping(0, self._updates(node))))

    def _patience(self, record: _Record) -> int:
        """Ticks a suspect has; from `suspicion_factor` times the least, down to it as others confirm."""
        config = self._config
        least = config.suspicion_ms * max(1.0, log10(self._live))
        wanted = min(config.indirect, self._live - 2)
        if wanted < 1:
            return config.ticks(ceil(least))
        most = least * config.suspicion_factor
        confirmed = min(1.0, log(len(record.accusers)) / log(wanted + 1))
        return config.ticks(ceil(most - (most - least) * confirmed))

    # -- news --

    def _learn_all(self, updates: Iterable[Member], out: Outputs) -> None:
        for member in updates:
            self._learn(_checked(member), out)

    def _learn(self, news: Member, out: Outputs) -> None:
        if news.node == self._self.node:
            self._refute(news)
            return
        record = self._records.get(news.node)
        if record is None:
            self._meet_stranger(news, out)
            return
        old = record.member
        if (news.incarnation, RANK[news.state]) <= (old.incarnation, RANK[old.state]):
            same = news.state == old.state == "suspect" and news.incarnation == old.incarnation
            if same and news.accuser not in record.accusers and len(record.accusers) <= self._config.indirect:
                record.accusers.add(news.accuser)
                record.member = self._view[news.node] = news
                self._announce(news.node)
            return
        self._store(news)
        self._announce(news.node)
        event = _event(old, news)
        if event is not None:
            out.apply.append(event)

    def _meet_stranger(self, news: Member, out: Outputs) -> None:
        if len(self._records) >= self._config.members_max and not self._make_room():
            return
        self._store(news)
        # Also an accusation about a node never heard of is passed on: the node itself must get to hear it.
        self._announce(news.node)
        if news.live:
            out.apply.append(MemberUp(news))
            if news.state == "suspect":
                out.apply.append(MemberSuspected(news))
            # SWIM inserts newcomers at a random place of the round, so that each is probed within one.
            self._round.insert(self._random.randrange(len(self._round) + 1), news.node)

    def _refute(self, news: Member) -> None:
        mine = self._self
        if news.incarnation < mine.incarnation and news.state != "alive":
            self._announce(mine.node)  # the refutation did not get there: it was sent as often as news is, and lost
        if news.incarnation < mine.incarnation or (news.incarnation == mine.incarnation and news.state == "alive"):
            return
        if news.state == "suspect":
            self._health = min(self._config.health_max, self._health + 1)
        self._become(msgspec.structs.replace(mine, incarnation=news.incarnation + 1))

    def _become(self, member: Member) -> None:
        self._self = member
        self._store(member)
        self._announce(member.node)

    def _announce(self, node: NodeId) -> None:
        self._records[node].sent = 0
        self._queue.pop(node, None)
        self._queue[node] = None

    def _updates(self, receiver: NodeId) -> list[Member]:
        """What is piggybacked on a message: first what the receiver stands accused of, then the least sent news."""
        chosen = self._accusation(receiver)
        if not self._queue:
            return chosen
        limit = self._spread()
        room = self._config.updates_max - len(chosen)
        # Taking from the front and putting back at the end is a round robin: every update gets its turns.
        for node in list(self._queue)[:room]:
            del self._queue[node]
            record = self._records[node]
            if node != receiver or record.member.live:
                chosen.append(record.member)
            record.sent += 1
            if record.sent < limit:
                self._queue[node] = None
        return chosen

    def _spread(self) -> int:
        return self._config.retransmit * ceil(log10(self._live + 2))

    def _accusation(self, receiver: NodeId) -> list[Member]:
        record = self._records.get(receiver)
        return [] if record is None or record.member.state == "alive" else [record.member]

    # -- the table --

    def _store(self, member: Member) -> None:
        node = member.node
        old = self._records.get(node)
        if old is not None:
            self._digest ^= old.fingerprint
            self._live -= old.member.live
        fingerprint = _fingerprint(member)
        self._records[node] = _Record(member, self._now, fingerprint, {member.accuser})
        self._view[node] = member
        self._digest ^= fingerprint
        self._live += member.live
        if member.state == "suspect":
            self._suspects.add(node)
        else:
            self._suspects.discard(node)

    def _drop(self, node: NodeId) -> None:
        record = self._records.pop(node)
        del self._view[node]
        self._queue.pop(node, None)
        self._digest ^= record.fingerprint

    def _forget(self) -> None:
        limit = self._config.ticks(self._config.forget_ms)
        for node in [n for n, r in self._records.items() if not r.member.live and self._now - r.since >= limit]:
            self._drop(node)

    def _make_room(self) -> bool:
        gone = [(record.since, node) for node, record in self._records.items() if not record.member.live]
        if gone:
            self._drop(min(gone)[1])
        return bool(gone)

    def _chunks(self) -> list[TableChunk]:
        names = sorted(self._view)
        chunks = []
        for start in range(0, len(names), CHUNK):
            part = names[start : start + CHUNK]
            after = names[start - 1] if start else ""
            until = part[-1] if start + CHUNK < len(names) else ""
            chunks.append(TableChunk(after, until, [self._view[name] for name in part], True))
        return chunks

    def _compare(self, sender: NodeId, chunk: TableChunk, out: Outputs) -> None:
        for member in chunk.members:
            record = self._records.get(member.node)
            # The other half of a healed partition holds our half dead; whoever lives here gets the time to refute.
            if member.state == "dead" and record is not None and record.member.live:
                member = msgspec.structs.replace(member, state="suspect", accuser=sender)
            self._learn(_checked(member), out)
        if not chunk.answer:
            return
        theirs = {member.node: member for member in chunk.members}
        better = []
        for node, mine in self._view.items():
            if node > chunk.after and (not chunk.until or node <= chunk.until):
                told = theirs.get(node)
                if told is None or (mine.incarnation, RANK[mine.state]) > (told.incarnation, RANK[told.state]):
                    better.append(mine)
        for start in range(0, len(better), CHUNK):
            out.send.append((sender, TableChunk(chunk.after, chunk.until, better[start : start + CHUNK], False)))

    def _some_live(self, count: int, but: NodeId | None = None) -> list[NodeId]:
        mine = self._self.node
        names = [node for node, member in self._view.items() if member.live and node != mine and node != but]
        return self._random.sample(names, min(count, len(names)))


def _fingerprint(member: Member) -> int:
    # A suspicion comes and goes; it must not make two tables different.
    standing = "alive" if member.state == "suspect" else member.state
    text = f"{member.node}\0{member.incarnation}\0{standing}".encode()
    return int.from_bytes(blake2b(text, digest_size=7).digest())


def _event(old: Member, new: Member) -> Any:
    if new.state == "suspect":
        return MemberSuspected(new)
    if new.state == "dead":
        return MemberDown(new) if old.live else None
    if new.state == "left":
        return MemberLeft(new)
    if old.state != "alive":
        return MemberUp(new)
    return None if _said(old) == _said(new) else MemberUpdated(new)


def _said(member: Member) -> tuple[Any, ...]:
    return member.region, member.address, member.http, member.version, member.roles, member.classes


def _checked(member: Member) -> Member:
    if not 0 <= member.incarnation <= INCARNATION_MAX:
        raise PeerError(f"member {member.node!r} has incarnation {member.incarnation}; it is 0 to {INCARNATION_MAX}")
    texts = (member.node, member.region, member.address, member.http, member.version, member.accuser, *member.roles)
    longest = max(map(len, texts))
    if not member.node or longest > TEXT_BYTES_MAX or len(member.roles) > 16:
        raise PeerError(
            f"member {member.node[:64]!r} has a text of {longest} characters and {len(member.roles)} roles; "
            f"a name is not empty, a text has up to {TEXT_BYTES_MAX}, roles up to 16"
        )
    if member.classes and (size := sum(map(len, chain(*member.classes)))) > CLASSES_TEXT_MAX:
        raise PeerError(f"member {member.node!r} tells classes of {size} characters; the limit is {CLASSES_TEXT_MAX}")
    return member
