"""Members of one EPaxos group, messages that a test delivers one by one, and disks that it syncs when it wants."""

from __future__ import annotations

import random
from collections import deque

import msgspec

from nova.consensus.core import (
    Command,
    Committed,
    Epoch,
    Installed,
    Kind,
    Persisted,
    ReadLost,
    ReadReady,
    pack,
    unpack,
)
from nova.consensus.epaxos import EPaxos

R = 20
"""Recovery time-out in ticks, as configured below."""


def command(key, text="x"):
    return pack([Command(0, 1, text.encode(), key.encode())])


class Member:
    """A core, and what a driver does for it. `auto`: each sync is done at once."""

    def __init__(self, net, name, *, auto=True):
        self.net, self.name, self.auto = net, name, auto
        self.disk = []
        self.waiting = deque()
        self.events = []
        self.core = None
        self.snapshot = None
        self.machine = []

    def start(self):
        epoch = Epoch(0, "epaxos", self.net.names, options=self.net.options)
        self.core = EPaxos(self.name, epoch, random.Random(f"{self.net.seed} {self.name}"), lambda: 0)
        self.machine = []
        if self.snapshot is not None:
            self.core.restore(self.snapshot)
            self._heed(Installed(self.snapshot))
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
        for event in out.apply:
            self._heed(event)
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

    def propose(self, key, text="x"):
        """The id of the instance."""
        self.take(self.core.propose([(Kind.COMMANDS, command(key, text))]))
        return self.core._me, self.core._next - 1

    def _heed(self, event):
        """A machine that remembers what was done to it, in order: (position, commands)."""
        if isinstance(event, Committed):
            self.machine += [(entry.position, entry.data) for entry in event.entries if entry.data]
        elif isinstance(event, Installed) and event.snapshot.state.startswith(b"\x92\xa7machine"):
            self.machine = [tuple(each) for each in msgspec.msgpack.decode(event.snapshot.state)[1]]

    def checkpoint(self, state=None):
        """As a driver does: a snapshot, and a log that begins anew."""
        self.sync()
        if state is None:
            state = msgspec.msgpack.encode(("machine", self.machine))
        self.snapshot = self.core.snapshot(0, state)
        self.disk = self.core.compact(self.snapshot)

    def state(self, id):
        return self.core.instances[id]

    @property
    def entries(self):
        """What was told in this life, in order."""
        return [entry for event in self.events if isinstance(event, Committed) for entry in event.entries]

    @property
    def executed(self):
        """The texts of the commands that were told, in order."""
        found = [entry for entry in self.entries if entry.kind == Kind.COMMANDS]
        return [command.data.decode() for entry in found for command in unpack(entry.data)]

    @property
    def reads(self):
        return [id for event in self.events if isinstance(event, ReadReady) for id in event.ids]

    @property
    def lost(self):
        return [id for event in self.events if isinstance(event, ReadLost) for id in event.ids]


class Net:
    """The group. Nothing arrives before `deliver`."""

    def __init__(self, count=3, *, seed=0, auto=True, **options):
        self.seed = seed
        self.options = {"recovery_ticks": R, **options}
        self.names = tuple(str(number) for number in range(1, count + 1))
        self.flying = []
        self.cuts = set()
        self.members = {name: Member(self, name, auto=auto) for name in self.names}
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
        self.flying.append((source, target, message))

    def cut(self, *names):
        """These hear nobody and nobody hears them."""
        for name in map(str, names):
            self.cuts |= {(name, other) for other in self.members} | {(other, name) for other in self.members}

    def deliver(self, only=None, rounds=100_000):
        """Deliver what flies, and what that brings about; `only(source, target, message)` lets the rest be lost."""
        for _ in range(rounds):
            if not self.flying:
                return
            self._arrive(*self.flying.pop(0), only)
        raise AssertionError("there is no end to it")

    def pick(self, source=None, target=None, kind=None):
        """Deliver just these, and leave what else flies, and what comes of it, where it is."""
        chosen = [
            each
            for each in self.flying
            if source in (None, each[0]) and target in (None, each[1]) and (kind is None or isinstance(each[2], kind))
        ]
        for each in chosen:
            self.flying.remove(each)
        for each in chosen:
            self._arrive(*each, None)
        return [message for _, _, message in chosen]

    def _arrive(self, source, target, message, only):
        if (source, target) in self.cuts or (only is not None and not only(source, target, message)):
            return
        if self.members[target].core is not None:
            self.members[target].step(source, message)

    def run(self, ticks, only=None):
        """Time passes for all, and everything arrives."""
        for _ in range(ticks):
            for member in self.alive:
                member.tick()
            self.deliver(only)
