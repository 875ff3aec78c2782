"""Four members of PBFT a hundred milliseconds apart, every message signed with Ed25519: simulated distance and disks,
real signatures.

Rates are of virtual time, in which signing takes none; beside them stands what a core for each member would bear, by
the processor time that all four took here.
"""

from __future__ import annotations

import time
from hashlib import blake2b

import msgspec
import pytest

from nova.consensus.core import Command
from nova.consensus.pbft import maker
from nova.consensus.pbft.auth import Ed25519Keys
from nova.consensus.replicated import Answered
from nova.consensus.sessions import OPEN, Code
from nova.crypto import ed25519
from nova.sim import machine
from nova.sim.group import Group
from nova.sim.network import Link
from nova.sim.subjects import SUBJECTS
from nova.types import Outputs

SECOND = 1_000_000_000
VALUE = "v" * 128
SECONDS = 3


class Signed(Ed25519Keys):
    """Every word is signed, also what one member tells another."""

    signed = verified = 0

    def mac(self, peer, data):
        Signed.signed += 1
        return self.sign(data)

    def check(self, peer, data, mac):
        Signed.verified += 1
        return self.verify(peer, data, mac)


def signed(node, epoch):
    library = ed25519("a benchmark")
    secrets = {member: blake2b(member.encode(), digest_size=32).digest() for member in epoch.members}
    publics = {
        member: library.Ed25519PrivateKey.from_private_bytes(secret).public_key().public_bytes_raw()
        for member, secret in secrets.items()
    }
    return Signed(secrets[node], publics, {})


class Callers(Group):
    """Callers at all members, each with one command out at a time."""

    def __init__(self, callers, link):
        subject = msgspec.structs.replace(SUBJECTS["pbft"], make=maker(signed), options={}, invariants=None, liars=None)
        super().__init__(subject, 1, clients=0, faults=0, link=link, liars={})
        self.took = []
        self._of_session = {}
        for number in range(callers):
            node = self.world.names[number % 4]
            self.ask(node, Command(0, OPEN, number.to_bytes(8, "big")))

    def ask(self, node, command):
        self.world[node].replica.submit(command)
        self.world.submit(node, Outputs())

    def _event(self, node, event):
        super()._event(node, event)
        if not isinstance(event, Answered):
            return
        assert event.outcome.code is Code.OK, event
        session, number = event.command.session, event.command.sequence + 1
        if not session:
            session, number = int.from_bytes(event.outcome.data, "big"), 1
        else:
            self.took.append(self.world.now - self._of_session[session])
        self._of_session[session] = self.world.now
        self.ask(node, Command(session, number, machine.put(f"k{session % 1_000}", VALUE)))


@pytest.mark.parametrize("callers", [16, 64])
def test_pbft_at_a_hundred_milliseconds_with_every_message_signed(benchmark, callers):
    group = Callers(callers, Link(delay_ns_min=50_000_000, jitter_ns_mean=1_000_000))
    assert group.world.run(until=lambda: len(group.took) >= callers, ticks_max=2_000)
    group.took.clear()
    Signed.signed = Signed.verified = 0
    began, cpu = group.world.now, time.process_time()
    group.world.run(until=lambda: group.world.now >= began + SECONDS * SECOND, ticks_max=5_000)
    seconds, cpu = (group.world.now - began) / SECOND, time.process_time() - cpu
    took = sorted(group.took)
    figures = {
        "ops_per_virtual_s": round(len(took) / seconds),
        "p50_ms": round(took[len(took) // 2] / 1e6),
        "p99_ms": round(took[len(took) * 99 // 100] / 1e6),
        "signed_per_op": round(Signed.signed / len(took), 2),
        "verified_per_op": round(Signed.verified / len(took), 2),
        "ops_per_s_max, a core for each member": round(4 * len(took) / cpu),
    }
    benchmark.group = "consensus.PBFT, n = 4, 100 ms round trips, every message signed (simulated)"
    benchmark.extra_info["figures"] = figures
    benchmark.pedantic(lambda: None, rounds=1)
    if callers >= 64:
        assert figures["ops_per_virtual_s"] >= 100, figures
