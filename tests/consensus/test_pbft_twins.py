"""Twins (Bano and others 2021): a member that lies, as two sound ones with one identity who do not know of each other.

Cases are small and enumerated, not drawn: who is a twin, who stands on which side, round by round. Both twins speak
with the same keys, so they equivocate, vote twice and forget, without a line of malicious code.
"""

from __future__ import annotations

from itertools import product

import pytest

from nova.consensus.pbft.messages import PrePrepare, decode_body
from tests.consensus.pbft_net import Member, Net, command


class TwinNet(Net):
    """Members 0 .. 3 and a twin of one; `sides` says who hears whom."""

    def __init__(self, twin, **options):
        super().__init__(4, checkpoint_interval=4, window=8, view_ticks=10, request_ticks=4, **options)
        self.twin = str(twin)
        self.other = Member(self, self.twin).start()
        self.everybody = [*self.members.values(), self.other]
        self.sides = {id(member): 0 for member in self.everybody}

    def post(self, source, target, message, member):
        self.flying.append((member, target, message))

    def split(self, sides):
        for member, side in zip(self.everybody, sides, strict=True):
            self.sides[id(member)] = side

    def deliver(self, only=None, rounds=20_000):
        for _ in range(rounds):
            if not self.flying:
                return
            sender, target, message = self.flying.pop(0)
            for member in self.everybody:
                if member.name == target and self.sides[id(member)] == self.sides[id(sender)]:
                    member.step(sender.name, message)

    def run(self, ticks, only=None):
        for _ in range(ticks):
            for member in self.everybody:
                member.tick()
            self.deliver()

    @property
    def correct(self):
        return [member for member in self.members.values() if member.name != self.twin]

    def check(self):
        longest = max((member.told for member in self.correct), key=len)
        for member in self.correct:
            assert member.told == longest[: len(member.told)]
            assert not member.fatal
        prepared = {}
        for member in self.correct:
            for position, slot in member.core.slots.items():
                if slot.last_prepared is not None:
                    view, digest = slot.last_prepared
                    assert prepared.setdefault((view, position), digest) == digest


# The first correct member stands on side 0: the other half of the cases is the same by symmetry.
SIDES = [sides for sides in product((0, 1), repeat=5) if sides[1] == 0]


@pytest.mark.parametrize("twin", [0, 1])
@pytest.mark.parametrize("first", SIDES, ids=lambda sides: "".join(map(str, sides)))
def test_twins_never_make_correct_members_disagree(twin, first):
    for second in SIDES:
        net = TwinNet(twin)
        net.split(first)
        for number, member in enumerate(net.everybody):  # each is asked for something else, for the same place
            member.ask(command(1, session=number + 1))
        net.deliver()
        net.check()
        net.split(second)
        net.run(24)
        net.check()
        net.split([0] * 5)
        net.run(60)
        net.check()


@pytest.mark.parametrize("twin", [0, 1, 2])
def test_a_group_with_twins_gets_on_when_all_hear_all(twin):
    net = TwinNet(twin)
    for number, member in enumerate(net.everybody):
        member.ask(command(1, session=number + 1))
    net.run(200)
    net.check()
    asked = [command(1, session=number + 1) for number, member in enumerate(net.everybody) if member in net.correct]
    for member in net.correct:
        assert set(asked) <= {data for _, data in member.commands}


def test_twin_primaries_do_equivocate():
    net = TwinNet(0)
    net[0].ask(command(1, b"a"))
    net.other.ask(command(1, b"b"))
    told = [decode_body(message.body) for _, target, message in net.flying if target == "1"]
    assert len({body.digest for body in told if isinstance(body, PrePrepare)}) == 2
