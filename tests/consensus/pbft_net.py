"""Members of one PBFT group, messages that a test delivers or forges, and disks that it syncs when it wants."""

from __future__ import annotations

import random
from collections import deque

import msgspec

from nova.consensus.core import Command as ClientCommand
from nova.consensus.core import Committed, Epoch, Fatal, Installed, Kind, Persisted, ReadReady, StateWanted, pack
from nova.consensus.pbft import PBFT
from nova.consensus.pbft.messages import (
    Authentic,
    PrePrepare,
    Signed,
    Stable,
    ViewChange,
    decode_body,
    decode_content,
    encode,
    entry_digest,
    mac_content,
    view_content,
)
from nova.errors import NovaError
from nova.sim.byzantine import DealtKeys

T = 50
"""view_ticks, as below."""


def command(number, data=b"", session=7):
    """The data of an entry with one command."""
    return pack([ClientCommand(session, number, data or b"%d" % number)])


class Member:
    """A core, and what a driver does for it. `auto`: each sync is done at once. The state: all that was told."""

    def __init__(self, net, identity, *, auto=True):
        self.net, self.name, self.auto = net, identity, auto
        self.disk = []
        self.snapshot = None
        self.waiting = deque()
        self.core = None
        self.reset()

    def reset(self):
        self.told, self.ready, self.fatal, self.installed = [], [], [], []

    def start(self):
        net = self.net
        epoch = Epoch(0, "pbft", net.names, options=net.options)
        seeded = random.Random(f"{net.seed} {self.name}")
        keys = DealtKeys(self.name, net.names)
        self.core = PBFT(self.name, epoch, seeded, lambda: 0, authenticator=keys, admits=net.admits)
        if self.snapshot is not None:
            self.core.restore(self.snapshot)
            self.told = decoded_state(self.snapshot.state)
        for record in self.disk:
            self.core.replay(record)
        self.take(self.core.recovered())
        return self

    def crash(self):
        """Power is lost: what was not synced never was."""
        self.waiting.clear()
        self.core = None
        self.reset()

    def checkpoint(self):
        """What a driver does now and then: a snapshot, and a log that begins behind it."""
        assert not self.waiting
        self.snapshot = self.core.snapshot(self.core.executed, encode(self.told))
        self.disk = list(self.core.compact(self.snapshot))

    def take(self, out):
        for peer, message in out.early:
            self.net.post(self.name, peer, message, self)
        # What is told is acted upon at once, as a ReplicatedMachine does.
        for event in list(out.apply):
            self.heed(event, out)
        if out.persist:
            self.waiting.append(out)
            if self.auto:
                self.sync()
        else:
            self.release(out)
        return out

    def heed(self, event, out):
        match event:
            case Committed(entries):
                for entry in entries:
                    assert entry.position == (self.told[-1][0] if self.told else 0) + 1
                    self.told.append((entry.position, int(entry.kind), entry.data))
            case StateWanted(position):
                assert position == self.told[-1][0]
                more = self.core.checkpointed(position, encode(self.told))
                for event in more.apply:
                    self.heed(event, more)
                out.extend(more)
            case Installed(snapshot):
                self.told = decoded_state(snapshot.state)
                self.installed.append(snapshot.position)
            case ReadReady():
                self.ready.append(event)
            case Fatal(reason):
                self.fatal.append(reason)

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
            self.net.post(self.name, peer, message, self)
        for event in out.apply:
            if isinstance(event, Persisted):
                self.take(self.core.advance(event.token))

    def tick(self, count=1):
        for _ in range(count):
            self.take(self.core.tick())

    def step(self, sender, message):
        return self.take(self.core.step(sender, message))

    def propose(self, *entries):
        return self.take(self.core.propose([(Kind.COMMANDS, data) for data in entries]))

    def ask(self, data):
        """As a ReplicatedMachine does: propose; whether it was the primary."""
        try:
            self.propose(data)
        except NovaError:
            return False
        return True

    @property
    def commands(self):
        return [(position, data) for position, kind, data in self.told if kind == Kind.COMMANDS]


def decoded_state(state):
    return [tuple(each) for each in msgspec.msgpack.decode(state)]


class Net:
    """The group, its members named 0 .. n - 1, the primary of view v is v mod n. Nothing arrives before `deliver`."""

    def __init__(self, count=4, *, seed=0, auto=True, admits=None, **options):
        self.seed, self.admits = seed, admits
        self.options = {"checkpoint_interval": 100, "window": 200, "view_ticks": T, **options}
        self.names = tuple(str(number) for number in range(count))
        self.flying = []
        self.cuts = set()
        self.members = {name: Member(self, name, auto=auto) for name in self.names}
        for member in self.members.values():
            member.start()

    def __getitem__(self, name):
        return self.members[str(name)]

    def __iter__(self):
        return iter(self.members.values())

    def post(self, source, target, message, member):
        self.flying.append((source, target, message))

    def cut(self, *names):
        """These hear nobody and nobody hears them."""
        for name in map(str, names):
            self.cuts |= {(name, other) for other in self.names} | {(other, name) for other in self.names}

    def heal(self):
        self.cuts.clear()

    def crash(self, *names):
        for name in names:
            self[name].crash()

    def deliver(self, only=None, rounds=200_000):
        """Deliver what flies, and what that brings about; `only(source, target, body)` lets the rest be lost."""
        for _ in range(rounds):
            if not self.flying:
                return
            source, target, message = self.flying.pop(0)
            body = decode_body(message.body)
            if (source, target) in self.cuts or (only is not None and not only(source, target, body)):
                continue
            if self.members[target].core is not None:
                self.members[target].step(source, message)

    def run(self, ticks, only=None):
        """Time passes for all, and everything arrives."""
        for _ in range(ticks):
            for member in self:
                if member.core is not None:
                    member.tick()
            self.deliver(only)

    def say(self, source, target, body):
        """Let a member say what its core would not: authentic, and delivered at once."""
        source, target = str(source), str(target)
        packed = encode(body)
        mac = DealtKeys(source, self.names).mac(target, mac_content(0, source, target, packed))
        return self[target].step(source, Authentic(packed, mac))

    def signed(self, signer, content):
        packed = encode(content)
        return Signed(str(signer), packed, DealtKeys(str(signer), self.names).sign(view_content(0, packed)))

    def change(self, signer, view, prepared=(), accepted=None, stable=None):
        """A signed view change with these claims."""
        accepted = prepared if accepted is None else accepted
        return self.signed(signer, ViewChange(view, stable or Stable(0), tuple(prepared), tuple(accepted)))


def pre_prepare(view, position, data, kind=Kind.COMMANDS):
    return PrePrepare(view, position, entry_digest(kind, data), kind, data)


def kinds(*types):
    return lambda source, target, body: isinstance(body, types)


def content_of(signed):
    return decode_content(signed.content)
