"""Members of one PBFT group, and messages that a test forges."""

from __future__ import annotations

import msgspec

from nova.consensus.core import Command as ClientCommand
from nova.consensus.core import Committed, Epoch, Fatal, Installed, Kind, ReadReady, StateWanted, pack
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
from tests.consensus.members import CoreMember, CoreNet

T = 50
"""view_ticks, as below."""


def command(number, data=b"", session=7):
    """The data of an entry with one command."""
    return pack([ClientCommand(session, number, data or b"%d" % number)])


class Member(CoreMember):
    """A member of a PBFT group. The state of its machine: all that was told."""

    def make(self, chance):
        net = self.net
        epoch = Epoch(0, "pbft", net.names, options=net.options)
        keys = DealtKeys(self.name, net.names)
        return PBFT(self.name, epoch, chance, lambda: 0, authenticator=keys, admits=net.admits)

    def restored(self, snapshot):
        self.told = decoded_state(snapshot.state) if snapshot is not None else []
        self.ready, self.fatal, self.installed = [], [], []

    def post(self, peer, message):
        self.net.post(self.name, peer, message, self)

    def checkpoint(self):
        """What a driver does now and then: a snapshot, and a log that begins behind it."""
        assert not self.waiting
        self.snapshot = self.core.snapshot(self.core.executed, encode(self.told))
        self.disk = list(self.core.compact(self.snapshot))

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


class Net(CoreNet):
    """A PBFT group, its members named 0 .. n - 1; the primary of view v is v mod n. `only` gets bodies of messages."""

    member = Member

    def __init__(self, count=4, *, seed=0, auto=True, admits=None, **options):
        self.admits = admits
        self.options = {"checkpoint_interval": 100, "window": 200, "view_ticks": T, **options}
        super().__init__(map(str, range(count)), seed=seed, auto=auto)

    def post(self, source, target, message, member):
        super().post(source, target, message)

    def shown(self, message):
        return decode_body(message.body)

    def crash(self, *names):
        for name in names:
            self[name].crash()

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
