"""What is compiled of Raft against all of it in Python: the same outputs and the same state, whatever comes."""

from __future__ import annotations

import random
from collections import deque

import pytest

from nova.consensus.core import Entry, Epoch, Kind, Persisted, Snapshot
from nova.consensus.raft import Raft
from nova.consensus.raft.messages import Append, AppendReply, Heartbeat, HeartbeatReply, Vote, VoteReply
from nova.errors import NovaError

NAMES = ("a", "b", "c")
ODD = (-1, 0, 1, 2, 3, 1 << 31, 1 << 62, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)


class Plain(Raft):
    compiled = False


class Pair:
    """One member twice."""

    def __init__(self, name, seed, *, names=NAMES, **options):
        epoch = Epoch(0, "raft", names, options={"trailing": 0, **options})
        self.now_ns = 0
        self.cores = [kind(name, epoch, random.Random(seed), lambda: self.now_ns) for kind in (Raft, Plain)]
        self.both("recovered")

    @property
    def core(self):
        return self.cores[0]

    def both(self, method, *arguments):
        """Call it on both; what came of it."""
        told = []
        for core in self.cores:
            try:
                told.append(getattr(core, method)(*arguments))
            except NovaError as error:
                told.append((type(error), str(error)))
        assert told[0] == told[1], (method, arguments)
        assert state(self.cores[0]) == state(self.cores[1]), (method, arguments)
        return told[0]


def state(core):
    log = core.log
    return (
        core.status, core.term, core.voted_for, core._told, core._token, core._durable_token, list(core._held),
        core._elapsed, core._heard, core._uncommitted_bytes, core._sealed_at, log.offset, log.offset_term, log.entries,
        log.durable, list(log._syncing), core._configurations,
        [
            (peer, *(getattr(each, field) for field in ("matched", "next", "mode", "active", "paused", "quiet")),
             list(each.flying), each.flying_bytes)
            for peer, each in core._progress.items()
        ],
    )  # fmt: skip


class Three:
    """Three pairs and what flies between them; it may be lost, come twice, or be something else."""

    def __init__(self, seed, **options):
        self.chance = random.Random(seed)
        self.pairs = {name: Pair(name, f"{seed} {name}", **options) for name in NAMES}
        self.flying = deque()
        self.tokens = {name: deque() for name in NAMES}

    def take(self, name, out):
        if isinstance(out, tuple):  # an error: nothing came of it
            return
        self.flying += [(name, peer, message) for peer, message in (*out.early, *out.send)]
        self.tokens[name] += [event.token for event in out.apply if type(event) is Persisted]

    def move(self):
        chance, names = self.chance, NAMES
        name = chance.choice(names)
        pair = self.pairs[name]
        what = chance.random()
        if what < 0.6 and self.flying:
            source, target, message = self.flying.popleft()
            if chance.random() < 0.05:
                self.flying.append((source, target, message))  # later, perhaps twice
            if chance.random() < 0.97:
                self.take(target, self.pairs[target].both("step", source, message))
        elif what < 0.75 and self.tokens[name]:
            for _ in range(chance.randrange(len(self.tokens[name]))):
                self.tokens[name].popleft()
            self.take(name, pair.both("advance", self.tokens[name].popleft()))
        elif what < 0.9:
            data = [(Kind.COMMANDS, bytes(chance.randrange(40))) for _ in range(chance.randrange(1, 4))]
            self.take(name, pair.both("propose", data))
        elif what < 0.93:
            self.take(name, pair.both("read", chance.randrange(1 << 40)))
        elif what < 0.97 or not pair.core.committed > pair.core.log.offset:
            pair.now_ns += 10_000_000
            self.take(name, pair.both("tick"))
        else:
            snapshot = pair.both("snapshot", pair.core.committed, b"")
            if isinstance(snapshot, Snapshot):
                pair.both("compact", snapshot)

    def settle(self):
        """Until somebody leads and all hold its first entry."""
        while not any(pair.core.role == "leader" for pair in self.pairs.values()) or self.flying:
            for name, pair in self.pairs.items():
                self.take(name, pair.both("tick"))
            self.deliver()

    def deliver(self):
        while self.flying or any(self.tokens.values()):
            for name, tokens in self.tokens.items():
                while tokens:
                    self.take(name, self.pairs[name].both("advance", tokens.popleft()))
            if self.flying:
                source, target, message = self.flying.popleft()
                self.take(target, self.pairs[target].both("step", source, message))


@pytest.mark.parametrize("seed", range(40))
def test_both_do_the_same_whatever_is_lost(seed):
    small = {"flying_count_max": 3, "append_bytes_max": 90, "uncommitted_bytes_max": 400} if seed % 2 else {}
    three = Three(seed, lease_reads=seed % 3 == 0, **small)
    three.settle()
    for _ in range(400):
        three.move()


def hostile(chance, core):
    """A message whose numbers fit, nearly fit, or can't be."""

    def some(*likely):
        return chance.choice(likely) if chance.random() < 0.85 else chance.choice(ODD)

    term = chance.choices([core.term, core.term - 1, core.term + 1, chance.choice(ODD)], [80, 10, 8, 2])[0]
    last, kind = core.log.last, chance.randrange(6)
    if kind <= 1:
        previous = some(last, last, last - 1, core.committed)
        first = some(last, previous)
        entries = tuple(
            Entry(some(first + n), some(core.term, core.term - 1), chance.choice((Kind.COMMANDS, Kind.NOOP)), b"x")
            for n in range(1, chance.randrange(1, 4))
        )
        newest = some(core.log.last_term, core.log.last_term, core.term)
        return Append(term, previous, newest, some(core.committed, last, last + 1), entries)
    if kind <= 3:
        return AppendReply(term, some(last, last + 1, core.committed), some(0), some(0, last), some(0, core.term))
    if kind == 4:
        return Heartbeat(term, some(1), some(core.committed, last))
    return chance.choice((HeartbeatReply(term, some(1)), Vote(term, some(last), some(1)), VoteReply(term, True)))


@pytest.mark.parametrize("seed", range(60))
def test_both_do_the_same_whatever_a_peer_says(seed):
    three = Three(seed)
    three.settle()
    pair = three.pairs[three.chance.choice(NAMES)]
    for _ in range(300):
        sender = three.chance.choice((*NAMES, pair.core.leader or "a", "stranger"))
        message = hostile(three.chance, pair.core)
        if isinstance(pair.both("step", sender, message), tuple) or pair.core.term > 1 << 40:
            break  # the member stops, as its driver would
        if three.chance.random() < 0.3:
            pair.both("propose", [(Kind.COMMANDS, b"y")])
        if three.chance.random() < 0.3 and pair.core._token:
            pair.both("advance", three.chance.randrange(pair.core._token + 1))


@pytest.mark.parametrize("position", [(1 << 62) + 1, (1 << 63) - 2, 1 << 63])
def test_a_state_with_a_position_that_is_none_is_left_to_python(position):
    pair = Pair("b", 1)
    members = pair.both("snapshot", 0, b"").core
    pair.both("restore", Snapshot(position, 1, members, b""))
    pair.both("step", "a", Append(1, position, 1, position, (Entry(position + 1, 1, Kind.COMMANDS, b"x"),)))
    pair.both("advance", pair.core._token)
    elect(pair, "a")
    pair.both("propose", [(Kind.COMMANDS, b"x")])
    for peer in NAMES:
        pair.both("step", peer, AppendReply(pair.core.term, pair.core.log.last))
        pair.both("advance", pair.core._token)


def test_what_is_usual_is_not_left_to_python(monkeypatch):
    three = Three(1)
    three.settle()
    three.deliver()
    leader = next(name for name, pair in three.pairs.items() if pair.core.role == "leader")
    left = []
    for method in ("_append", "_answer", "_lead_append", "_count_stored", "_commit"):
        monkeypatch.setattr(Raft, method, lambda self, *rest, method=method: left.append(method))
    cores = {name: pair.core for name, pair in three.pairs.items()}
    flying = deque()

    def take(name, out):
        flying.extend((name, peer, message) for peer, message in (*out.early, *out.send))
        for event in out.apply:
            if type(event) is Persisted:
                take(name, cores[name].advance(event.token))

    before = cores[leader].committed
    for _ in range(3):
        take(leader, cores[leader].propose([(Kind.COMMANDS, b"x")]))
        while flying:
            source, target, message = flying.popleft()
            take(target, cores[target].step(source, message))
    assert left == []
    assert cores[leader].committed == before + 3
    assert {core.committed for core in cores.values()} == {before + 2, before + 3}


def elect(pair, *voters):
    """Let it lead with these votes."""
    while not (pair.core.role == "candidate" and pair.core._votes_pre):
        pair.both("tick")
    term = pair.core.term + 1
    for pre in (True, False):
        for voter in voters:
            pair.both("step", voter, VoteReply(term, True, pre))
        pair.both("advance", pair.core._token)
    assert pair.core.role == "leader"
    pair.both("advance", pair.core._token)


def test_a_majority_of_an_earlier_term_commits_nothing():
    pair = Pair("a", 3)
    elect(pair, "b")
    for _ in range(3):
        pair.both("propose", [(Kind.COMMANDS, b"x")])
    pair.both("step", "c", Heartbeat(pair.core.term + 1, 1, 0))
    elect(pair, "b")
    for matched in (1, 2, 3, 4):
        pair.both("step", "b", AppendReply(pair.core.term, matched))
        assert pair.core.committed == 0
    pair.both("step", "b", AppendReply(pair.core.term, 5))
    assert pair.core.committed == 5


@pytest.mark.parametrize("names", [("a",), tuple("abcd"), tuple("abcde"), tuple(f"{n:02}" for n in range(17))])
def test_a_majority_of_any_number_is_the_same_majority(names):
    pair = Pair(names[0], 3, names=names)
    pair.both("lead")
    pair.both("advance", pair.core._token)
    for peer in names[1:]:
        pair.both("step", peer, VoteReply(pair.core.term, True))
    assert pair.core.role == "leader"
    pair.both("advance", pair.core._token)
    for round in range(4):
        for said, peer in enumerate(names[1:], start=2):
            pair.both("step", peer, AppendReply(pair.core.term, pair.core.log.last))
            assert (pair.core.committed == pair.core.log.last) == (said > len(names) // 2)
        assert pair.core.committed == pair.core.log.last
        pair.both("propose", [(Kind.COMMANDS, b"x")])
        pair.both("advance", pair.core._token)
        assert (pair.core.committed == pair.core.log.last) == (len(names) == 1), round
