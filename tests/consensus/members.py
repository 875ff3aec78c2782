"""What groups of cores have in common under test, whatever the protocol: members with disks, and what flies between
them. Nothing is synced, and nothing arrives, before the test says so."""

from __future__ import annotations

import random
from collections import deque

from nova.consensus.core import Kind, Persisted


class CoreMember:
    """A core, and what a driver does for it. `auto`: each sync is done at once."""

    def __init__(self, net, name, *, auto=True):
        self.net, self.name, self.auto = net, name, auto
        self.disk = []
        self.snapshot = None
        self.waiting = deque()
        self.events = []
        self.core = None

    def make(self, chance):
        """A new core, which knows nothing."""
        raise NotImplementedError

    def restored(self, snapshot):
        """What the machine holds now: what is in this snapshot, or (None) nothing."""

    def heed(self, event, out):
        """What is told is acted upon at once, as a ReplicatedMachine does; `out` is what it came with."""

    def start(self):
        self.core = self.make(random.Random(f"{self.net.seed} {self.name}"))
        if self.snapshot is not None:
            self.core.restore(self.snapshot)
        self.restored(self.snapshot)
        for record in self.disk:
            self.core.replay(record)
        self.take(self.core.recovered())
        return self

    def crash(self):
        """Power is lost: what was not synced never was."""
        self.waiting.clear()
        self.events.clear()
        self.restored(None)
        self.core = None

    def take(self, out):
        for event in list(out.apply):
            self.heed(event, out)
        for peer, message in out.early:
            self.post(peer, message)
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
            self.post(peer, message)
        for event in out.apply:
            self.events.append(event)
            if isinstance(event, Persisted):
                self.take(self.core.advance(event.token))

    def post(self, peer, message):
        self.net.post(self.name, peer, message)

    def tick(self, count=1):
        for _ in range(count):
            self.take(self.core.tick())

    def step(self, sender, message):
        return self.take(self.core.step(sender, message))

    def propose(self, *commands):
        return self.take(self.core.propose([(Kind.COMMANDS, command) for command in commands]))


class CoreNet:
    """The group: members of type `member`. Nothing arrives before `deliver`."""

    member = CoreMember

    def __init__(self, names, *, seed=0, auto=True):
        self.seed = seed
        self.names = tuple(names)
        self.flying = []
        self.cuts = set()
        self.members = {name: self.member(self, name, auto=auto) for name in self.names}
        for member in self.members.values():
            member.start()

    def __getitem__(self, name):
        return self.members[str(name)]

    def __iter__(self):
        return iter(self.members.values())

    @property
    def alive(self):
        return [member for member in self if member.core is not None]

    def post(self, source, target, message):
        if target in self.members:
            self.flying.append((source, target, message))

    def cut(self, *names):
        """These hear nobody and nobody hears them."""
        for name in map(str, names):
            self.cuts |= {(name, other) for other in self.members} | {(other, name) for other in self.members}

    def heal(self):
        self.cuts.clear()

    def shown(self, message):
        """A message as `only` of `deliver` gets it."""
        return message

    def deliver(self, only=None, rounds=200_000):
        """Deliver what flies, and what that brings about; `only(source, target, message)` lets the rest be lost."""
        for _ in range(rounds):
            if not self.flying:
                return
            self.arrive(*self.flying.pop(0), only)
        raise AssertionError(f"after {rounds} messages {len(self.flying)} still fly")

    def arrive(self, source, target, message, only=None):
        if (source, target) in self.cuts or (only is not None and not only(source, target, self.shown(message))):
            return
        if self.members[target].core is not None:
            self.members[target].step(source, message)

    def run(self, ticks, only=None):
        """Time passes for all, and everything arrives."""
        for _ in range(ticks):
            for member in self.alive:
                member.tick()
            self.deliver(only)
