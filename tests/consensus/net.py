"""Members of one Raft group, and how a test makes one of them the leader."""

from __future__ import annotations

from nova.consensus.core import Committed, Entry, Epoch, Kind
from nova.consensus.raft import Raft
from nova.consensus.raft.core import ENTRIES, HARD, _pack
from tests.consensus.members import CoreMember, CoreNet

T = 10
"""Election timeout in ticks, as configured below."""


class Member(CoreMember):
    """A member of a Raft group; `now_ns` is what its clock shows."""

    now_ns = 0

    def make(self, chance):
        epoch = Epoch(0, "raft", self.net.epoch_members, options=self.net.options)
        return Raft(self.name, epoch, chance, lambda: self.now_ns)

    @property
    def committed(self):
        """What was reported committed in this life, without the no-ops: (position, data)."""
        told = [entry for event in self.events if isinstance(event, Committed) for entry in event.entries]
        return [(entry.position, entry.data) for entry in told if entry.kind == Kind.COMMANDS]

    @property
    def log(self):
        return [(entry.position, entry.term, entry.data) for entry in self.core.log.entries]


class Net(CoreNet):
    """A Raft group, its members named from 1 on."""

    member = Member

    def __init__(self, count=3, *, seed=0, auto=True, members=None, **options):
        self.options = {"election_ticks": T, **options}
        names = [str(number) for number in range(1, count + 1)]
        self.epoch_members = tuple(members or names)
        super().__init__(names, seed=seed, auto=auto)

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
        return [member.name for member in self.alive if member.core.role == "leader"]


def with_log(net, name, terms, term=None):
    """Restart a member with a log of entries of these terms on its disk."""
    member = net[name]
    entries = [Entry(number, each, Kind.COMMANDS, b"%d" % each) for number, each in enumerate(terms, 1)]
    member.crash()
    member.disk = [HARD + _pack((term or max(terms, default=0), None))]
    if entries:
        member.disk.append(ENTRIES + _pack(entries))
    return member.start()
