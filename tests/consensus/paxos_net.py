"""Members of one Multi-Paxos group, messages that a test delivers one by one, and disks that sync when it says so."""

from __future__ import annotations

import random

from nova.consensus.core import Entry, Epoch, Kind
from nova.consensus.paxos import Paxos, records
from nova.consensus.paxos.ballots import Ballots
from nova.types import Outputs
from tests.consensus.net import Member, Net

T = 10
"""Election timeout in ticks, as configured below."""


class PaxosMember(Member):
    def start(self):
        epoch = Epoch(0, "paxos", self.net.epoch_members, options=self.net.options)
        self.core = Paxos(self.name, epoch, random.Random(f"{self.net.seed} {self.name}"), lambda: self.now_ns)
        for record in self.disk:
            self.core.replay(record)
        self.take(self.core.recovered())
        return self

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
    """The group. Nothing arrives before `deliver`."""

    def __init__(self, count=3, *, seed=0, auto=True, members=None, **options):
        self.seed = seed
        self.options = {"election_ticks": T, **options}
        names = [str(number) for number in range(1, count + 1)]
        self.epoch_members = tuple(members or names)
        self.ballots = Ballots(self.epoch_members)
        self.flying = []
        self.cuts = set()
        self.members = {name: PaxosMember(self, name, auto=auto) for name in names}
        for member in self.members.values():
            member.start()

    def forget_leaders(self):
        """Nobody has heard of a leader for an election timeout."""
        for member in self:
            if member.core is not None:
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
