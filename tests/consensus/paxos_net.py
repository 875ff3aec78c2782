"""Members of one Multi-Paxos group, and how a test makes one of them the leader."""

from __future__ import annotations

from nova.consensus.core import Entry, Epoch, Kind
from nova.consensus.paxos import Paxos, records
from nova.consensus.paxos.ballots import Ballots
from nova.types import Outputs
from tests.consensus.net import Member, Net, T


class PaxosMember(Member):
    def make(self, chance):
        epoch = Epoch(0, "paxos", self.net.epoch_members, options=self.net.options)
        return Paxos(self.name, epoch, chance, lambda: self.now_ns)

    @property
    def log(self):
        """What is accepted: slot -> (ballot, data)."""
        return {slot: (entry.term, entry.data) for slot, entry in sorted(self.core.slots.entries.items())}

    def campaign(self):
        """Prepare at once, without asking first."""
        out = Outputs()
        self.core._begin(out)
        return self.take(self.core._done(out))


class PaxosNet(Net):
    """A Multi-Paxos group, its members named from 1 on."""

    member = PaxosMember

    def __init__(self, count=3, **options):
        super().__init__(count, **options)
        self.ballots = Ballots(self.epoch_members)

    def forget_leaders(self):
        """Nobody has heard of a leader for an election timeout."""
        for member in self.alive:
            member.core._pace.heard = T

    def elect(self, name):
        """Make this one the leader."""
        self.forget_leaders()
        self[name].campaign()
        self.deliver()
        assert self[name].core.role == "leader"
        return self[name]

    def sent(self, *types, source=None):
        """What flies, of these types: (source, target, message)."""
        return [one for one in self.flying if isinstance(one[2], types) and source in (None, one[0])]


def accepted(net, name, promised, slots, committed=0):
    """Restart a member with these on its disk: slot -> (ballot, data)."""
    member = net[name]
    entries = [Entry(slot, ballot, Kind.COMMANDS, data) for slot, (ballot, data) in slots.items()]
    member.crash()
    member.disk = records.written([(records.LEARNED, entries)], promised, committed, 1 << 20)
    return member.start()
