"""Hostile bytes in place of what a member sends: a PeerError, or what Raft in Python makes of the message."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nova.consensus.core import Command, Entry, Epoch, Kind, Persisted, pack, unpack
from nova.consensus.frames import FrameCodec
from nova.consensus.protocols import all_messages
from nova.consensus.raft import Raft
from nova.consensus.raft.messages import Append, AppendReply, Heartbeat, Message, VoteReply
from nova.consensus.sessions import Sessions
from nova.errors import CorruptionError, NovaError, PeerError
from nova.sim.machine import KeyValue

CODEC = FrameCodec(*all_messages())
COMMANDS = pack([Command(1 << 16, n, b"x" * n) for n in range(1, 4)])
FRAMES = [
    CODEC.encode((0, message))
    for message in (
        Append(1, 1, 1, 1, (Entry(2, 1, Kind.COMMANDS, COMMANDS), Entry(3, 1, Kind.NOOP, b""))),
        AppendReply(1, 1),
        Heartbeat(1, 7, 1),
    )
]


class Plain(Raft):
    compiled = False


class PlainSessions(Sessions):
    compiled = False


def damaged(whole):
    """Whole bytes with some of them replaced, cut or doubled."""
    change = st.tuples(st.integers(0, len(whole) - 1), st.integers(0, 255))
    return st.builds(
        lambda changes, start, stop: splice(bytearray(whole), changes, start, stop),
        st.lists(change, max_size=4), st.integers(0, len(whole)), st.integers(0, len(whole)),
    )  # fmt: skip


def splice(data, changes, start, stop):
    for place, value in changes:
        data[place] = value
    return bytes(data[:start] + data[min(start, stop) :]) if stop % 3 == 0 else bytes(data)


def members(leads):
    """One member twice, with an entry of term 1 that is committed."""
    out = []
    for kind in (Raft, Plain):
        core = kind("a", Epoch(0, "raft", ("a", "b", "c")), random.Random(1), lambda: 0)
        if leads:
            settle(core, core.lead())
            settle(core, core.step("b", VoteReply(1, True)))
            settle(core, core.step("b", AppendReply(1, 1)))
        else:
            settle(core, core.step("b", Append(1, 0, 0, 1, (Entry(1, 1, Kind.NOOP, b""),))))
        assert core.committed == 1
        out.append(core)
    return out


def settle(core, out):
    for event in out.apply:
        if type(event) is Persisted:
            settle(core, core.advance(event.token))


def outcome(function, *arguments):
    try:
        return function(*arguments)
    except NovaError as error:
        return type(error), str(error)


@pytest.mark.parametrize("leads", [False, True])
@given(st.lists(st.sampled_from(range(len(FRAMES))).flatmap(lambda n: damaged(FRAMES[n])), min_size=1, max_size=6))
def test_a_frame_is_refused_or_means_the_same_compiled_or_not(leads, frames):
    compiled, plain = members(leads)
    for frame in frames:
        try:
            number, message = CODEC.decode(frame)
        except PeerError:
            continue
        if number or not isinstance(message, Message):
            continue
        told, expected = (outcome(core.step, "b", message) for core in (compiled, plain))
        assert told == expected
        assert compiled.status == plain.status
        if isinstance(told, tuple):
            return  # the driver stops the member, or drops the peer


@given(damaged(COMMANDS))
def test_an_entry_is_refused_or_applied_alike_compiled_or_not(data):
    try:
        commands = unpack(data)
    except CorruptionError:
        return
    tables = [kind(Quiet()) for kind in (Sessions, PlainSessions)]
    for table in tables:
        table.apply(1, [Command(0, (1 << 63) - 1, b"")])
    told, expected = (table.apply(2, commands) for table in tables)
    assert told == expected
    assert tables[0].snapshot() == tables[1].snapshot()


class Quiet(KeyValue):
    """What a command means is not asked here."""

    def apply(self, commands):
        return [command.data for command in commands]
