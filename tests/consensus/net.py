"""Members of one Raft group, messages that a test delivers one by one, and disks that it syncs when it wants."""

from __future__ import annotations

import random
from collections import deque

from nova.consensus.core import Committed, Entry, Epoch, Kind, Persisted
from nova.consensus.raft import Raft
from nova.consensus.raft.core import ENTRIES, HARD, _pack

T = 10
"""Election timeout in ticks, as configured below."""


class Member:
    """A core, and what a driver does for it. `auto`: each sync is done at once."""

    def __init__(self, net, name, *, auto=True):
        self.net, self.name, self.auto = net, name, auto
        self.disk = []
        self.waiting = deque()
        self.events = []
        self.core = None
        self.now_ns = 0

    def start(self):
        epoch = Epoch(0, "raft", self.net.epoch_members, options=self.net.options)
        self.core = Raft(self.name, epoch, random.Random(f"{self.net.seed} {self.name}"), lambda: self.now_ns)
        for record in self.disk:
            self.core.replay(record)
        self.take(self.core.recovered())
        return self

    def crash(self):
        """Power is lost: what was not synced never was."""
        self.waiting.clear()
        self.events.clear()
        self.core = None

    def take(self, out):
        for peer, message in out.early:
            self.net.post(self.name, peer, message)
        if out.persist:
            self.waiting.append(out)
            if self.auto:
                self.sync()
        else:
            self.release(out)
        return out

    def sync(self, count=None):
        """Let the disk finish what waits for it (the first `count` of it)."""
        count = len(self.waiting) if count is None else count
        while self.waiting and count:
            count -= 1
            out = self.waiting.popleft()
            self.disk += out.persist
            self.release(out)

    def release(self, out):
        for peer, message in out.send:
            self.net.post(self.name, peer, message)
        for event in out.apply:
            self.events.append(event)
            if isinstance(event, Persisted):
                self.take(self.core.advance(event.token))

    def tick(self, count=1):
        for _ in range(count):
            self.take(self.core.tick())

    def step(self, sender, message):
        return self.take(self.core.step(sender, message))

    def propose(self, *commands):
        return self.take(self.core.propose([(Kind.COMMANDS, command) for command in commands]))

    @property
    def committed(self):
        """What was reported committed in this life, without the no-ops: (position, data)."""
        told = [entry for event in self.events if isinstance(event, Committed) for entry in event.entries]
        return [(entry.position, entry.data) for entry in told if entry.kind == Kind.COMMANDS]

    @property
    def log(self):
        return [(entry.position, entry.term, entry.data) for entry in self.core.log.entries]


class Net:
    """The group. Nothing arrives before `deliver`."""

    def __init__(self, count=3, *, seed=0, auto=True, members=None, **options):
        self.seed = seed
        self.options = {"election_ticks": T, **options}
        names = [str(number) for number in range(1, count + 1)]
        self.epoch_members = tuple(members or names)
        self.flying = []
        self.cuts = set()
        self.members = {name: Member(self, name, auto=auto) for name in names}
        for member in self.members.values():
            member.start()

    def __getitem__(self, name):
        return self.members[str(name)]

    def __iter__(self):
        return iter(self.members.values())

    def post(self, source, target, message):
        if target in self.members:
            self.flying.append((source, target, message))

    def cut(self, *names):
        """These hear nobody and nobody hears them."""
        for name in map(str, names):
            self.cuts |= {(name, other) for other in self.members} | {(other, name) for other in self.members}

    def deliver(self, only=None, rounds=1_000):
        """Deliver what flies, and what that brings about; `only(source, target, message)` lets the rest be lost."""
        for _ in range(rounds):
            if not self.flying:
                return
            source, target, message = self.flying.pop(0)
            if (source, target) in self.cuts or (only is not None and not only(source, target, message)):
                continue
            if self.members[target].core is not None:
                self.members[target].step(source, message)

    def run(self, ticks):
        """Time passes for all, and everything arrives."""
        for _ in range(ticks):
            for member in self:
                if member.core is not None:
                    member.tick()
            self.deliver()

    def elect(self, name):
        """Make this one the leader; nobody else has heard of one lately."""
        member = self[name]
        for other in self:
            if other.core is not None:
                other.core._heard = T
        for _ in range(5 * T):
            member.tick()
            self.deliver()
            if member.core.role == "leader":
                return member
        raise AssertionError(f"{name} was not elected")

    @property
    def leaders(self):
        return [member.name for member in self if member.core is not None and member.core.role == "leader"]


def with_log(net, name, terms, term=None):
    """Restart a member with a log of entries of these terms on its disk."""
    member = net[name]
    entries = [Entry(number, each, Kind.COMMANDS, b"%d" % each) for number, each in enumerate(terms, 1)]
    member.crash()
    member.disk = [HARD + _pack((term or max(terms, default=0), None))]
    if entries:
        member.disk.append(ENTRIES + _pack(entries))
    return member.start()
