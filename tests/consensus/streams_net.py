"""Cores that deliver streams (eventual, hybrid), between which a test delivers what it likes; each has its own disk."""

from __future__ import annotations

import random

from nova.consensus.core import Committed, Epoch, Fatal, Installed, Kind, Persisted, ReadLost, ReadReady


class Member:
    """One core. `held`: nothing is synced while it is set. `told`: the data of what it told, in order."""

    def __init__(self, net, name):
        self.net, self.name = net, name
        self.records, self.snapshot = [], None
        self.held = False
        self.core = None
        self.start()

    def start(self):
        self.told, self.ready, self.lost, self.installed = [], [], [], []
        self.seal = None
        self.waiting = []
        self.core = self.net.make(self.name, self.net.epoch, random.Random(self.name), lambda: 0)
        if self.snapshot is not None:
            self.core.restore(self.snapshot)
            self.told = list(self.snapshot.state.decode().split())
        for record in self.records:
            self.core.replay(record)
        self.take(self.core.recovered())

    def crash(self):
        """What was not synced never was."""
        self.core = None

    def take(self, out):
        for event in out.apply:
            match event:
                case Committed(entries):
                    for entry in entries:
                        if entry.kind == Kind.SEAL:
                            self.seal = entry
                        else:
                            self.told.append(entry.data.decode())
                case ReadReady(ids, _):
                    self.ready += ids
                case ReadLost(ids, _):
                    self.lost += ids
                case Installed(snapshot):
                    self.installed.append(snapshot)
                    self.told = list(snapshot.state.decode().split())
                case Fatal(reason):
                    raise AssertionError(reason)
        for peer, message in out.early:
            self.net.post(self.name, peer, message)
        self.waiting.append(out)
        if not self.held:
            self.sync()

    def sync(self):
        waiting, self.waiting = self.waiting, []
        for out in waiting:
            self.records += out.persist
            for peer, message in out.send:
                self.net.post(self.name, peer, message)
        for out in waiting:
            for event in out.apply:
                if isinstance(event, Persisted) and self.core is not None:
                    self.take(self.core.advance(event.token))

    def propose(self, *texts):
        self.take(self.core.propose([(Kind.COMMANDS, text.encode()) for text in texts]))

    def read(self, id, after=()):
        self.take(self.core.read(id, after))

    def checkpoint(self):
        self.snapshot = self.core.snapshot(0, " ".join(self.told).encode())
        self.records = self.core.compact(self.snapshot)


class Net:
    """The group. Nothing arrives before `deliver`; what is `lost` never does."""

    def __init__(self, make, protocol, count=3, **options):
        self.make = make
        self.names = [f"n{number}" for number in range(count)]
        self.epoch = Epoch(0, protocol, tuple(self.names), options=options)
        self.flying = []
        self.cuts = set()
        self.lost = None
        self.members = {name: Member(self, name) for name in self.names}

    def __getitem__(self, name):
        return self.members[name]

    def __iter__(self):
        return iter([member for member in self.members.values() if member.core is not None])

    def post(self, source, target, message):
        self.flying.append((source, target, message))

    def cut(self, *names):
        for one in names:
            self.cuts |= {(one, other) for other in self.members} | {(other, one) for other in self.members}

    def deliver(self, count=100_000):
        for _ in range(count):
            if not self.flying:
                return
            source, target, message = self.flying.pop(0)
            if (source, target) in self.cuts or (self.lost is not None and self.lost(source, target, message)):
                continue
            member = self.members[target]
            if member.core is not None:
                member.take(member.core.step(source, message))

    def run(self, ticks=1, until=None):
        for _ in range(ticks):
            if until is not None and until():
                return True
            for member in self:
                member.take(member.core.tick())
            self.deliver()
        return until is not None and until()

    def until(self, condition, ticks=1_000):
        assert self.run(ticks, condition), [(m.name, m.told, m.core.status) for m in self]

    def all_told(self, *texts):
        """Wait until every running member told just these, in whatever order."""
        self.until(lambda: all(sorted(member.told) == sorted(texts) for member in self))
