"""Members of one EPaxos group, and a machine that remembers what was done to it."""

from __future__ import annotations

import msgspec

from nova.consensus.core import (
    Command,
    Committed,
    Epoch,
    Installed,
    Kind,
    ReadLost,
    ReadReady,
    pack,
    unpack,
)
from nova.consensus.epaxos import EPaxos
from tests.consensus.members import CoreMember, CoreNet

R = 20
"""Recovery time-out in ticks, as configured below."""


def command(key, text="x"):
    return pack([Command(0, 1, text.encode(), key.encode())])


class Member(CoreMember):
    """A member of an EPaxos group. `machine` is all that was done to it, in order: (position, commands)."""

    machine = ()

    def make(self, chance):
        return EPaxos(self.name, Epoch(0, "epaxos", self.net.names, options=self.net.options), chance, lambda: 0)

    def restored(self, snapshot):
        self.machine = []
        if snapshot is not None:
            self.heed(Installed(snapshot), None)

    def propose(self, key, text="x"):
        """The id of the instance."""
        self.take(self.core.propose([(Kind.COMMANDS, command(key, text))]))
        return self.core._me, self.core._next - 1

    def heed(self, event, out):
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


class Net(CoreNet):
    """An EPaxos group, its members named from 1 on."""

    member = Member

    def __init__(self, count=3, *, seed=0, auto=True, **options):
        self.options = {"recovery_ticks": R, **options}
        super().__init__(map(str, range(1, count + 1)), seed=seed, auto=auto)

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
            self.arrive(*each)
        return [message for _, _, message in chosen]
