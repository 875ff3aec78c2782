"""Whole members of a group (core, sessions, machine, disk), between which a test delivers what it likes."""

from __future__ import annotations

import random

from nova.consensus.chain import Switched
from nova.consensus.core import Command, Committed, Epoch
from nova.consensus.notices import Sealed
from nova.consensus.replicated import Answered, Checkpoint, ReadAnswered, ReplicatedConfig, ReplicatedMachine
from nova.consensus.sessions import OPEN
from nova.sim import machine
from nova.sim.machine import KeyValue
from nova.types import Outputs


class Member:
    """One member; its disk survives `crash`. `held`: nothing is synced while it is set."""

    def __init__(self, net, name):
        self.net, self.name = net, name
        self.random = random.Random(f"{net.seed} {name}")  # another one in each life, as if drawn from the system
        self.records, self.first = [], 1
        self.saved = None
        self.replica = None
        self.held = False
        self.waiting = []
        self.answers = {}
        self.reads = {}
        self.epochs = []
        self.told = []
        self.start()

    @property
    def last(self):
        return self.first + len(self.records) - 1

    def start(self):
        self.values = self.net.machine()
        self.replica = ReplicatedMachine(
            self.name,
            self.net.epoch,
            self.values,
            protocols=self.net.protocols,
            random=self.random,
            now_ns=lambda: self.net.now * 10_000_000,
            log_last=lambda: self.last,
            config=ReplicatedConfig(retry_ticks=self.net.retry_ticks),
        )
        start = 1
        if self.saved is not None:
            start = self.saved[0] + 1
            self.replica.restore(self.saved[1])
        for record in self.records[start - self.first :]:
            self.replica.replay(record)
        self.take(self.replica.recovered())

    def crash(self):
        """Power is lost: what was not synced never was."""
        self.waiting.clear()
        self.replica = None

    def take(self, out):
        if self.replica is None:
            return
        out.extend(self.replica.turn())
        self.replica.checkpoint(out, 1_000)
        for peer, frame in out.early:
            self.net.post(self.name, peer, frame)
        self.waiting.append(out)
        if not self.held:
            self.sync()

    def sync(self):
        waiting, self.waiting = self.waiting, []
        for out in waiting:
            self.records += out.persist
            for peer, frame in out.send:
                self.net.post(self.name, peer, frame)
            for event in out.apply:
                self._event(event)

    def _event(self, event):
        match event:
            case Checkpoint(position, state):
                self.saved = (position, state)
                del self.records[: position + 1 - self.first]
                self.first = position + 1
            case Answered(command, outcome, _):
                self.answers[name(command)] = outcome
            case ReadAnswered(id, data):
                self.reads[id] = machine.answer(data)
            case Committed(entries, epoch):
                self.told += [(epoch, entry) for entry in entries]
            case Switched(epoch):
                self.epochs.append(epoch)
        if self.replica is not None:
            out = self.replica.applied(event)
            if out:
                self.take(out)

    def step(self, sender, frame):
        self.take(self.replica.step(sender, frame))

    def submit(self, command):
        self.replica.submit(command)
        self.take(Outputs())

    def switch(self, *args, **kwargs):
        self.take(self.replica.switch(*args, **kwargs))

    def read(self, id, key):
        self.take(self.replica.read(id, machine.get(key)))


class Net:
    """The group. Nothing arrives before `deliver`."""

    def __init__(self, protocols, protocol, count=3, *, spares=0, seed=0, options=None, retry_ticks=30, machine=None):
        self.retry_ticks = retry_ticks
        self.machine = machine or KeyValue
        self.seed, self.protocols = seed, protocols
        self.now = 0
        every = [f"n{number}" for number in range(count + spares)]
        self.names = every
        self.epoch = Epoch(0, protocol, tuple(every[:count]), options=options or {})
        self.flying = []
        self.cuts = set()
        self.lost = None
        """A frame of which this is true is lost: (source, target, frame)."""
        self.members = {}
        for each in every:
            self.members[each] = Member(self, each)
        self._serial = 0

    def __getitem__(self, name):
        return self.members[name]

    def __iter__(self):
        return iter([member for member in self.members.values() if member.replica is not None])

    def post(self, source, target, frame):
        self.flying.append((source, target, frame))

    def cut(self, *names):
        for one in names:
            self.cuts |= {(one, other) for other in self.members} | {(other, one) for other in self.members}

    def deliver(self, rounds=100_000):
        for _ in range(rounds):
            if not self.flying:
                return
            source, target, frame = self.flying.pop(0)
            if (source, target) in self.cuts or (self.lost is not None and self.lost(source, target, frame)):
                continue
            if self.members[target].replica is not None:
                self.members[target].step(source, frame)

    def run(self, ticks=1, until=None):
        """Time passes, and everything arrives, until the condition holds."""
        for _ in range(ticks):
            if until is not None and until():
                return True
            self.now += 1
            for member in self:
                if member.replica is not None:
                    member.take(member.replica.tick())
            self.deliver()
        return until is not None and until()

    def until(self, condition, ticks=2_000):
        assert self.run(ticks, condition), [
            (m.name, m.replica.epoch.number, m.replica.core.status, m.replica.applied_position) for m in self
        ]

    def lead(self):
        """The member to which the newest epoch's proposals go."""
        self.until(lambda: any(self._leads(member) for member in self))
        return next(member for member in self if self._leads(member))

    def _leads(self, member):
        newest = max(other.replica.epoch.number for other in self)
        return member.replica.epoch.number == newest and member.replica.core.leader == member.name

    def session(self, member):
        """Open a session at a member."""
        self._serial += 1
        data = self._serial.to_bytes(8, "big")
        member.submit(Command(0, OPEN, data))
        self.until(lambda: (0, OPEN, data) in member.answers)
        return int.from_bytes(member.answers[0, OPEN, data].data, "big")

    def append(self, member, session, sequence, key, value):
        """Submit an append; the name of its answer."""
        command = Command(session, sequence, machine.append(key, value), key.encode())
        member.submit(command)
        return name(command)

    def done(self, member, asked):
        """Wait for the answer to an append."""
        self.until(lambda: asked in member.answers)
        return member.answers[asked]

    def agree(self):
        """Wait until all that run and belong to the newest epoch hold the same; what they hold."""

        def same():
            newest = max((member.replica.epoch for member in self), key=lambda epoch: epoch.number)
            inside = [member for member in self if member.name in newest.members]
            return (
                all(m.replica.epoch == newest and m.replica.chain.whole for m in inside)
                and len({(m.replica.applied_position, m.values.digest) for m in inside}) == 1
            )

        self.until(same)
        newest = max((member.replica.epoch for member in self), key=lambda epoch: epoch.number)
        return next(m.values.values for m in self if m.name in newest.members)

    def settle(self):
        """Wait until the newest epoch may be sealed."""
        self.until(lambda: all(member.replica.chain.settled for member in self))


def name(command):
    """What tells a command from all others: its place in its session, or else its data."""
    return (command.session, command.sequence) if command.session else (0, command.sequence, command.data)


def notices(frame):
    """Is it a frame by which members hear of another epoch?"""
    return isinstance(frame[1], Sealed)
