"""The scenarios of PBFT: the normal case, views, checkpoints, states and liars, each by its number."""

from __future__ import annotations

import sys
from itertools import pairwise

import pytest

from nova.consensus.core import Command as ClientCommand
from nova.consensus.core import Epoch, Kind, NotLeaderError, OverloadedError, SealedError, pack, pack_epoch, unpack
from nova.consensus.pbft import Replies
from nova.consensus.pbft.base import quorum_of
from nova.consensus.pbft.evidence import STRANGERS, Wrong
from nova.consensus.pbft.messages import (
    NULL,
    Authentic,
    Checkpoint,
    Claim,
    Commit,
    NewView,
    Ordered,
    Prepare,
    PrePrepare,
    Request,
    SealVote,
    Signed,
    StateChunk,
    Status,
    checkpoint_content,
    decode_body,
    entry_digest,
    seal_content,
)
from nova.consensus.sessions import Code, Sessions
from nova.errors import CorruptionError, UsageError
from nova.sim import machine
from nova.sim.byzantine import DealtKeys
from nova.sim.machine import KeyValue
from nova.types import Outputs
from tests.consensus.pbft_net import Net, T, command, content_of, kinds, pre_prepare


def digest_of(data, kind=Kind.COMMANDS):
    return entry_digest(kind, data)


def checkpoint(net, who, position, digest=b"d" * 32, size=10):
    content = checkpoint_content(0, position, digest, size)
    return Checkpoint(position, digest, size, DealtKeys(str(who), net.names).sign(content))


def holding(*names):
    """Members that stop talking to each other: nothing goes to or from these."""
    held = set(map(str, names))
    return lambda source, target, body: source not in held and target not in held


def test_46_requests_execute_after_two_quorums_in_order_everywhere():
    net = Net(4)
    backup = net[3]
    net.say(0, 3, pre_prepare(0, 1, command(1)))
    digest = digest_of(command(1))
    slot = backup.core.slots[1]
    assert not slot.prepared  # the primary's word and our own: one more is lacking
    net.say(1, 3, Prepare(0, 1, digest))
    assert slot.prepared
    net.say(1, 3, Commit(0, 1, digest))
    assert backup.told == []  # our own and one other
    net.say(0, 3, Commit(0, 1, digest))
    assert backup.commands == [(1, command(1))]

    net = Net(4)
    for number in range(1, 251):
        net[0].propose(command(number))
        if number % 7 == 0:
            net.deliver()
    net.deliver()
    expected = [(number, command(number)) for number in range(1, 251)]
    assert all(member.commands == expected for member in net)
    replies = Replies(f=1)
    assert replies.add("3", b"no") is None
    assert replies.add("3", b"no") is None
    assert replies.add("0", b"yes") is None
    assert replies.add("1", b"yes") == b"yes"


def test_46_votes_are_counted_also_when_they_overtake_the_pre_prepare():
    net = Net(4)
    digest = digest_of(command(1))
    for voter in (1, 2):
        net.say(voter, 3, Prepare(0, 1, digest))
        net.say(voter, 3, Commit(0, 1, digest))
    assert net[3].told == []
    net.say(0, 3, pre_prepare(0, 1, command(1)))
    assert net[3].commands == [(1, command(1))]


@pytest.mark.parametrize("commits", [False, True])
@pytest.mark.parametrize("first", [1, 2, 3])
def test_47_an_equivocating_primary_gets_one_entry_prepared_at_most_and_is_replaced(first, commits):
    net = Net(4)
    net.cut(0)  # what follows is said in its name
    for backup in (1, 2, 3):
        assert not net[backup].ask(command(1, b"x"))
    net.flying.clear()
    for backup in (1, 2, 3):
        net.say(0, backup, pre_prepare(0, 1, command(1, b"y" if backup == first else b"x")))
    net.deliver()
    for backup in (1, 2, 3) if commits else ():
        for digest in (digest_of(command(1, b"x")), digest_of(command(1, b"y"))):
            net.say(0, backup, Commit(0, 1, digest))
    slots = [member.core.slots[1] for member in net if member.core.slots]
    assert {slot.digest for slot in slots if slot.prepared} == {digest_of(command(1, b"x"))}
    net.run(3 * T)
    if not commits:  # two correct commits are too few, so nothing was executed in its view
        assert all(net[backup].core.view >= 1 for backup in (1, 2, 3))
    (executed,) = {tuple(net[backup].commands) for backup in (1, 2, 3)}
    assert executed[0] == (1, command(1, b"x"))
    # A new primary that has not got the entry yet may order the request again: sessions apply it once.
    assert {data for _, data in executed} == {command(1, b"x")}


def test_48_a_silent_primary_is_replaced_and_timers_double_until_something_executes():
    net = Net(7)
    net.crash(0, 1)  # the primaries of views 0 and 1
    assert not net[3].ask(command(1))
    member = net[3].core
    assert member.timeout_ticks == T
    net.run(T - 1)
    assert member.view == 0
    net.run(T)
    assert (member.view, member.active) == (1, False)
    assert member.timeout_ticks == T
    net.run(T)
    assert member.view == 2
    assert member.timeout_ticks == 1 * T  # it executed at once
    assert all(net[alive].commands == [(1, command(1))] for alive in range(2, 7))

    net = Net(7, view_ticks=30, request_ticks=5)
    net.crash(0, 1)
    net[3].ask(command(1))
    times = []
    view = 0
    for tick in range(2_000):
        net.run(1, lambda source, target, body: not isinstance(body, PrePrepare | Prepare))
        if net[3].core.view > view:
            view = net[3].core.view
            times.append(tick)
    gaps = [later - sooner for sooner, later in pairwise(times)]
    assert gaps[0] == 30 + 5  # the others heard of the request later
    assert gaps[1:5] == [60, 120, 240, 480]


def test_48_backups_that_were_not_asked_hear_of_a_request_that_is_not_executed():
    net = Net(4)
    net.crash(0)
    net[2].ask(command(1))
    net.run(net[2].core.options.request_ticks + 1)
    assert all(len(net[backup].core.requests) == 1 for backup in (1, 2, 3))
    net.run(3 * T)
    assert all(net[backup].commands == [(1, command(1))] for backup in (1, 2, 3))
    assert all(len(net[backup].core.requests) == 0 for backup in (1, 2, 3))


def test_49_what_one_correct_member_prepared_is_ordered_again_at_its_position():
    net = Net(4)
    net[0].propose(command(1))
    net.deliver(
        lambda source, target, body: isinstance(body, PrePrepare) or (isinstance(body, Prepare) and target == "2")
    )
    assert [member.name for member in net if member.core.slots[1].prepared] == ["2"]
    net.crash(0)
    for backup in (1, 2, 3):
        net[backup].take(_left(net[backup], 1))
    net.deliver()
    assert all(net[backup].core.view == 1 and net[backup].core.active for backup in (1, 2, 3))
    assert all(net[backup].commands == [(1, command(1))] for backup in (1, 2, 3))


def _left(member, view):
    out = Outputs()
    member.core._leave(view, out)
    return member.core._done(out)


def test_50_a_new_view_that_leaves_out_what_was_prepared_is_refused():
    net = Net(4)
    claim = Claim(1, 0, digest_of(command(1)))
    changes = [net.change(0, 1, [claim]), net.change(2, 1, [claim]), net.change(3, 1)]
    backup = net[2]
    for who in (0, 3):
        net.say(who, 2, changes[0] if who == 0 else changes[2])
    assert backup.core.view == 1
    for chosen in ((), ((1, NULL),), ((1, claim.digest), (2, NULL))):
        net = Net(4)
        backup = net[2]
        backup.take(_left(backup, 1))
        net.say(1, 2, net.signed(1, NewView(1, tuple(changes), chosen)))
        assert (backup.core.view, backup.core.active) == (2, False)
        assert backup.core.evidence.of("1", Wrong.NEW_VIEW) == 1
    net = Net(4)
    net[2].take(_left(net[2], 1))
    net.say(1, 2, net.signed(1, NewView(1, tuple(changes), ((1, claim.digest),))))
    assert (net[2].core.view, net[2].core.active) == (1, True)


@pytest.mark.parametrize("wrong", ["few", "twice", "other view", "forged", "signer"])
def test_50_a_new_view_needs_the_view_changes_of_a_quorum(wrong):
    net = Net(4)
    changes = [net.change(who, 1) for who in (0, 2, 3)]
    signer = 1
    match wrong:
        case "few":
            changes.pop()
        case "twice":
            changes[2] = changes[1]
        case "other view":
            changes[2] = net.change(3, 2)
        case "forged":
            changes[2] = Signed("3", changes[2].content, bytes(32))
        case "signer":
            signer = 3
    backup = net[2]
    backup.take(_left(backup, 1))
    net.say(1, 2, net.signed(signer, NewView(1, tuple(changes), ())))
    assert not backup.core.active


def test_51_a_gap_is_filled_with_null_requests_everywhere():
    net = Net(4)
    for member in net:
        member.core._next = 3  # a primary that leaves a gap
    net[0].propose(command(1))
    net.deliver()
    assert all(member.told == [] and member.core.slots[3].decided for member in net)
    net.run(3 * T)
    assert all(member.core.view >= 1 for member in net)
    for member in net:
        assert member.told[:3] == [(1, Kind.NOOP, b""), (2, Kind.NOOP, b""), (3, Kind.COMMANDS, command(1))]


def test_52_a_wrong_digest_or_a_second_one_brings_no_prepare_and_is_counted():
    net = Net(4)
    wrong = PrePrepare(0, 1, digest_of(b"other"), Kind.COMMANDS, command(1))
    net.say(0, 3, wrong)
    assert net.flying == []
    assert 1 not in net[3].core.slots
    assert net[3].core.evidence.of("0", Wrong.DIGEST) == 1
    net.say(0, 3, pre_prepare(0, 1, command(1)))
    assert len(net.flying) == 3
    net.flying.clear()
    net.say(0, 3, pre_prepare(0, 1, command(2)))
    assert net.flying == []
    assert net[3].core.slots[1].digest == digest_of(command(1))
    assert net[3].core.evidence.of("0", Wrong.EQUIVOCATION) == 1


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        (Kind.COMMANDS, b"no commands"),
        (Kind.COMMANDS, pack([])),
        (Kind.COMMANDS, pack([ClientCommand(1, 1, bytes(2_000))])),
        (Kind.NOOP, b"\xc1"),
        (Kind.MEMBERS, b""),
        (Kind.SEAL, b"nothing"),
    ],
)
def test_52_what_no_member_could_execute_brings_no_prepare(kind, data):
    net = Net(4, entry_bytes_max=1_000)
    net.say(0, 3, pre_prepare(0, 1, data, kind))
    assert net.flying == []
    assert net[3].core.evidence.of("0", Wrong.CONTENT) == 1


def test_53_what_is_not_authentic_or_of_an_older_view_changes_nothing():
    net = Net(4)
    net[0].propose(command(1))
    flying, net.flying = list(net.flying), []
    _, _, good = next(each for each in flying if each[1] == "3")
    core = net[3].core
    for sender, message in [
        ("0", Authentic(good.body, bytes(16))),
        ("0", Authentic(good.body + b" ", good.mac)),
        ("1", good),
        ("9", good),
        ("3", good),
        ("0", flying[0][2]),  # meant for somebody else
    ]:
        out = core.step(sender, message)
        assert not out
    assert core.slots == {}
    assert core.evidence.of("0", Wrong.AUTHENTICATOR) == 3
    assert core.evidence.of("1", Wrong.AUTHENTICATOR) == 1
    assert core.evidence.of(STRANGERS, Wrong.OUTSIDER) == 1
    assert not net.say("0", 3, ("nonsense",))
    assert core.evidence.of("0", Wrong.MALFORMED) == 1
    net[3].take(_left(net[3], 2))
    net.flying.clear()
    assert not core.step("0", good)
    assert not net.say(1, 3, Prepare(1, 1, digest_of(command(1))))
    assert not net.say(1, 3, net.change(1, 1))
    assert core.slots == {}
    assert net.flying == []
    assert core.evidence.of("0", Wrong.STALE) == 1
    assert core.evidence.of("1", Wrong.STALE) == 2


def test_54_a_stable_checkpoint_lets_go_of_all_it_covers():
    def bytes_of(core):
        seen = set()

        def size(value):
            if id(value) in seen:
                return 0
            seen.add(id(value))
            total = sys.getsizeof(value)
            if isinstance(value, dict):
                return total + sum(size(k) + size(v) for k, v in value.items())
            if isinstance(value, list | tuple | set) or type(value).__name__ == "deque":
                return total + sum(map(size, value))
            if hasattr(value, "__slots__") and type(value).__module__.startswith("nova"):
                return total + sum(size(getattr(value, name)) for name in value.__slots__ if hasattr(value, name))
            return total

        held = {key: value for key, value in vars(core).items() if key != "_states"}
        return size(held)

    net = Net(4)
    sizes = {}
    for number in range(1, 10_001):
        net[0].propose(command(number % 100 + 1))
        net.deliver()
        if number % 100 == 99:
            for member in net:
                member.told = member.told[-1:]  # the state is not what is measured
        if number == 100:
            assert all(member.core.low.position == 100 and member.core.slots == {} for member in net)
            assert len(net[0].core.low.proof) >= 3
        if number in (1_000, 10_000):
            sizes[number] = [bytes_of(member.core) for member in net]
    assert all(member.core.low.position == 10_000 for member in net)
    for before, after in zip(sizes[1_000], sizes[10_000], strict=True):
        assert abs(after - before) <= before // 10


def test_55_too_few_checkpoints_or_one_of_another_state_free_nothing():
    net = Net(4)
    for number in range(1, 101):
        net[0].propose(command(number))
        net.deliver(lambda source, target, body: not isinstance(body, Checkpoint))
    core = net[3].core
    assert core.executed == 100
    mine = core._votes["3"][100]
    net.say(0, 3, checkpoint(net, 0, 100, mine.digest, mine.size))
    net.say(0, 3, checkpoint(net, 0, 100, mine.digest, mine.size))
    net.say(1, 3, checkpoint(net, 1, 100))  # another state
    net.say(2, 3, Checkpoint(100, mine.digest, mine.size, bytes(32)))  # nobody's signature
    assert core.low.position == 0
    assert len(core.slots) == 100
    assert core.evidence.of("2", Wrong.SIGNATURE) == 1
    net.say(2, 3, checkpoint(net, 2, 100, mine.digest, mine.size))
    assert core.low.position == 100
    assert core.slots == {}


def test_56_positions_beyond_the_window_are_ignored():
    net = Net(4)
    core = net[3].core
    for position in (0, -1, 201, 10**9):
        net.say(0, 3, pre_prepare(0, position, command(1)))
        net.say(0, 3, Commit(0, position, digest_of(command(1))))
    net.say(1, 3, Prepare(0, 201, digest_of(command(1))))
    assert core.slots == {}
    assert net.flying == []
    assert core.evidence.of("0", Wrong.WINDOW) == 4
    net.say(0, 3, pre_prepare(0, 200, command(1)))
    assert list(core.slots) == [200]
    for position in (10**6, 10**6 + 1, *range(300, 3_000, 100)):
        net.say(0, 3, checkpoint(net, 0, position))
    assert len(core._votes["0"]) <= core.options.checkpoints_max
    primary = net[0]
    primary.propose(*[command(number) for number in range(1, 201)])
    with pytest.raises(OverloadedError, match="200"):
        primary.propose(command(201))


def behind(net, *, upto=220):
    """A net whose member 3 missed everything up to a stable checkpoint."""
    net.cut(3)
    for number in range(1, upto + 1):
        net[0].propose(command(number))
        net.deliver()
    assert net[0].core.low.position == upto - upto % 100
    net.heal()
    return net[3]


def test_57_a_member_that_missed_a_checkpoint_gets_its_state():
    net = Net(4, chunk_bytes=1_000)
    late = behind(net)
    net.run(60)
    assert late.installed == [200]
    assert late.told == net[0].told
    assert late.core.low == net[0].core.low
    net[0].propose(command(221))
    net.deliver()
    assert late.commands[-1] == (221, command(221))


def test_57_a_wrong_state_is_refused_and_another_source_asked():
    net = Net(4, chunk_bytes=1_000)
    late = behind(net)
    liar = []

    def lying(source, target, body):
        if isinstance(body, StateChunk) and (not liar or source == liar[0]):
            liar[:] = [source]
            net.say(source, target, StateChunk(body.position, body.digest, body.offset, bytes(len(body.data))))
            return False
        return True

    net.run(100, lying)
    assert liar
    assert late.core.evidence.of(liar[0], Wrong.STATE) == 1
    assert late.installed == [200]
    assert late.told == net[0].told


def test_57_a_state_without_the_signatures_of_a_quorum_is_not_asked_for():
    net = Net(4)
    late = behind(net)
    stable = net[0].core.low
    for proof in (stable.proof[:2], stable.proof[:2] * 2, (*stable.proof[:2], ("3", bytes(32)))):
        net.say(0, 3, type(stable)(stable.position, stable.digest, stable.size, proof))
    assert late.core.mark.position == 0
    assert late.core.evidence.of("0", Wrong.SIGNATURE) == 3
    net.say(0, 3, stable)
    assert late.core.mark == stable


def test_58_a_request_that_is_sent_again_is_applied_once_also_across_views():
    net = Net(4)
    opened = pack([ClientCommand(0, (1 << 63) - 1, b"me")])
    net[0].propose(opened)
    net.deliver()
    session = 1 << 16
    first = ClientCommand(session, 1, machine.append("k", 1))
    second = ClientCommand(session, 2, machine.append("k", 2))
    for each in (first, first, second, first):
        net[0].propose(pack([each]))
    net.deliver()
    net.crash(0)
    for backup in (1, 2, 3):
        net[backup].ask(pack([second]))
    net.run(3 * T)
    assert net[1].core.view >= 1
    assert net[1].commands[-1][1] == pack([second])
    tables = []
    for member in (net[1], net[2], net[3]):
        sessions = Sessions(KeyValue())
        outcomes = [sessions.apply(position, unpack(data)) for position, data in member.commands]
        assert [outcome.code for (outcome,) in outcomes] == [Code.OK] * 6
        assert outcomes[1] == outcomes[2] == outcomes[4]
        assert outcomes[3] == outcomes[5]
        assert sessions.machine.values == {"k": [1, 2]}
        tables.append(sessions.snapshot())
    assert len(set(tables)) == 1


@pytest.mark.parametrize(("count", "quorum"), [(4, 3), (5, 4), (6, 4), (7, 5), (10, 7)])
def test_59_any_two_quorums_share_a_correct_member(count, quorum):
    f = (count - 1) // 3
    assert quorum_of(count) == quorum
    assert 2 * quorum - count >= f + 1
    assert quorum <= count - f


@pytest.mark.parametrize("count", [5, 6])
def test_59_two_halves_and_a_liar_never_commit_two_values(count):
    net = Net(count)
    halves = [[name for name in net.names[1:] if int(name) % 2 == parity] for parity in (0, 1)]
    values = [command(1, b"x"), command(1, b"y")]
    apart = [(a, b) for a in halves[0] for b in halves[1]]
    net.cuts |= {*apart, *((b, a) for a, b in apart)}
    net.cut(0)  # spoken for
    for half, value in zip(halves, values, strict=True):
        for backup in half:
            net.say(0, backup, pre_prepare(0, 1, value))
    net.deliver()
    for half, value in zip(halves, values, strict=True):
        for backup in half:
            net.say(0, backup, Commit(0, 1, digest_of(value)))
    net.deliver()
    # With five members neither half is a quorum with the liar; with six one is, and the other is not.
    told = {data for member in net for _, data in member.commands}
    assert told == (set() if count == 5 else {values[1]})


def test_60_a_member_joins_the_smallest_of_f_plus_1_later_views():
    net = Net(4)
    core = net[3].core
    net.say(1, 3, net.change(1, 7))
    assert core.view == 0
    net.say(1, 3, net.change(1, 8))  # the same member again
    assert core.view == 0
    net.say(2, 3, net.change(2, 5))
    assert (core.view, core.active) == (5, False)
    sent = [content_of(message).view for _, _, message in _bodies(net, Signed)]
    assert sent == [5, 5, 5]


def _bodies(net, kind):
    found = [(source, target, decode_body(message.body)) for source, target, message in net.flying]
    return [each for each in found if isinstance(each[2], kind)]


# ------------------------------------------------------------------------------------------- disks and crashes


def test_no_promise_leaves_before_its_record_is_durable():
    net = Net(4, auto=False)
    net[0].propose(command(1))
    assert net.flying == []  # a pre-prepare as well: a primary that forgot it would give the position again
    net[0].sync()
    net.deliver()
    assert net.flying == []
    assert net[3].core.slots[1].prepares.keys() == {"3"}
    for backup in (1, 2, 3):
        net[backup].sync()
    net.deliver()
    assert net[3].core.slots[1].prepared
    assert all(not member.core.slots[1].commits for member in net)
    for member in net:
        member.sync()
    net.deliver()
    assert all(member.commands == [(1, command(1))] for member in net)


def test_a_disk_that_never_answers_does_not_make_promises_pile_up():
    net = Net(4, held_count_max=50)
    net[0].propose(command(1))
    net.deliver(kinds(PrePrepare, Prepare))
    net[3].auto = False
    net[3].take(_left(net[3], 1))
    for _ in range(1_000):
        net[3].tick()
        net.say(1, 3, Status(0, True, 0, 0))
    assert len(net[3].core._held) <= 50 + 3
    net[3].sync()
    assert len(net[3].core._held) == 0


def test_our_own_commit_counts_when_it_is_durable():
    net = Net(4, auto=False)
    digest = digest_of(command(1))
    net.say(0, 3, pre_prepare(0, 1, command(1)))
    net[3].sync()
    net.say(1, 3, Prepare(0, 1, digest))
    for voter in (0, 1):
        net.say(voter, 3, Commit(0, 1, digest))
    assert net[3].told == []
    net[3].sync()
    assert net[3].commands == [(1, command(1))]


def test_a_member_that_crashes_keeps_what_it_prepared_and_its_view():
    net = Net(4)
    net[0].propose(command(1))
    net.deliver(kinds(PrePrepare, Prepare))
    before = net[2].core.slots[1]
    net[2].crash()
    net[2].start()
    after = net[2].core.slots[1]
    assert after.last_prepared == before.last_prepared == (0, digest_of(command(1)))
    assert after.accepted == before.accepted
    net[2].take(_left(net[2], 3))
    net[2].crash()
    net[2].start()
    assert (net[2].core.view, net[2].core.active) == (3, False)


def test_a_log_that_is_none_is_refused():
    net = Net(4)
    net[0].propose(command(1))
    net.deliver()
    net[3].crash()
    whole = net[3].disk
    for broken, word in [(whole[1:], "does not hold"), ([b"?"], "not pbft's"), ([b"A\xc1"], "is none")]:
        net[3].disk = broken
        with pytest.raises(CorruptionError, match=word):
            net[3].start()
    net[3].disk = whole
    net[3].start()
    assert net[3].commands == [(1, command(1))]


def test_what_many_views_put_into_one_position_survives_a_crash():
    net = Net(4, digests_max=2)
    member = net[3]
    net.say(0, 3, pre_prepare(0, 1, command(1)))
    net.say(1, 3, Prepare(0, 1, digest_of(command(1))))
    for view in range(5):
        if view:
            changes = tuple(net.change(who, view) for who in range(4) if who != 3)
            net.say(view % 4, 3, net.signed(view % 4, NewView(view, changes, ())))
        if view != 3:  # its own view
            net.say(view % 4, 3, pre_prepare(view, 1, command(view + 1)))
    assert len(member.core.slots[1].accepted) == 2
    for _ in range(2):
        slot = member.core.slots[1]
        assert slot.last_prepared == (0, digest_of(command(1)))
        assert slot.contents[digest_of(command(1))] == (Kind.COMMANDS, command(1))
        before = slot.accepted
        member.crash()
        member.start()
        assert member.core.slots[1].accepted == before
        member.checkpoint()
    for sayer in (0, 1):
        net.say(sayer, 3, Ordered(((1, Kind.COMMANDS, command(1)),)))
    assert member.commands == [(1, command(1))]
    member.crash()
    member.start()
    assert member.commands == [(1, command(1))]


def test_a_primary_that_crashes_does_not_give_a_position_twice():
    net = Net(4)
    net[0].propose(command(1))
    net.flying.clear()
    net[0].crash()
    net[0].start()
    net[0].propose(command(2))
    net.run(20)
    assert all(member.commands == [(1, command(1)), (2, command(2))] for member in net)


def test_a_restart_behind_a_snapshot_tells_the_rest_again():
    net = Net(4)
    for number in range(1, 131):
        net[0].propose(command(number))
        net.deliver()
    expected = list(net[2].told)
    net[2].checkpoint()
    assert net[2].snapshot.position == 100
    for number in range(131, 141):
        net[0].propose(command(number))
        net.deliver()
    expected = list(net[0].told)
    net[2].crash()
    net[2].start()
    assert net[2].told == expected
    assert net[2].core.low == net[0].core.low
    late = net[3]
    late.crash()
    late.disk, late.snapshot = [], None
    late.start()
    net.crash(0, 1)  # only the one that restarted has the state
    net.run(40)
    assert late.installed == [100]


def test_all_crash_at_once_and_go_on():
    net = Net(4, auto=False)
    for number in range(1, 31):
        net[0].propose(command(number))
        for _ in range(3):
            for member in net:
                member.sync(1)
            net.deliver()
    known = max((member.told for member in net), key=len)
    for member in net:
        member.crash()
    net.flying.clear()
    for member in net:
        member.auto = True
        member.start()
    net.run(2 * T)
    for member in net:
        assert member.told[: len(known)] == known
    net[0].ask(command(99))
    net.run(2 * T)
    assert len({tuple(member.told) for member in net}) == 1


# ------------------------------------------------------------------------------------------- reads and the end


def test_what_one_member_tells_of_takes_no_more_than_its_share():
    net = Net(4, requests_max=10, requests_bytes_max=300)
    for number in range(20):
        net.say(2, 3, Request(Kind.COMMANDS, command(number + 1, bytes(100), session=number + 1)))
    assert len(net[3].core.requests) == 2
    for number in range(20):
        net.say(1, 3, Request(Kind.COMMANDS, command(number + 1, session=number + 50)))
    assert len(net[3].core.requests) == 12
    net.say(2, 3, Request(Kind.COMMANDS, b"nonsense"))
    net.say(2, 3, Request(Kind.SEAL, b""))
    assert net[3].core.evidence.of("2", Wrong.MALFORMED) == net[3].core.evidence.of("2", Wrong.CONTENT) == 1
    net.say(2, 3, Commit(0, 1, bytes(33)))
    assert net[3].core.evidence.of("2", Wrong.MALFORMED) == 2
    assert net[3].core.slots == {}


def test_a_read_waits_for_a_barrier_that_is_ordered_after_it():
    net = Net(4)
    net[0].propose(command(1))
    net.deliver()
    net[2].take(net[2].core.read(41))
    net[2].take(net[2].core.read(42))  # waits for the next barrier: this one may be ordered already
    net[2].take(net[2].core.read(43))
    assert net[2].ready == []
    net.deliver()
    assert [(ready.ids, ready.position) for ready in net[2].ready] == [((41,), 2), ((42, 43), 3)]


SUCCESSOR = Epoch(1, "raft", ("0", "1", "2"), start=3)


def test_the_epoch_ends_when_f_plus_1_members_ask_for_it():
    net = Net(4)
    net[0].propose(command(1))
    net.deliver()
    net[2].take(net[2].core.seal(SUCCESSOR))
    net.run(3 * T)
    assert all(member.core.sealed_at is None for member in net)  # one member alone may lie
    net[3].take(net[3].core.seal(Epoch(1, "raft", ("0", "1", "3"), start=3)))
    net.run(3 * T)
    assert all(member.core.sealed_at is None for member in net)  # and these two do not want the same
    net[1].take(net[1].core.seal(SUCCESSOR))
    net.deliver()
    for member in net:
        assert member.told[-1] == (2, Kind.SEAL, pack_epoch(SUCCESSOR))
        assert member.core.role == "sealed"
        certificate = member.core.seal_certificate
        assert certificate.position == 2
        assert len(certificate.proof) >= 3
        assert member.core._proved(certificate)
        for call in (lambda m=member: m.propose(command(2)), lambda m=member: m.core.read(1)):
            with pytest.raises(SealedError):
                call()
    net[3].crash()
    net[3].start()
    assert net[3].core.sealed_at == 2
    assert net[3].core.seal_certificate.position == 2


def test_what_is_ordered_behind_the_seal_is_void():
    net = Net(4)
    for asker in (1, 2):
        net[asker].take(net[asker].core.seal(SUCCESSOR))
    net.deliver(kinds(SealVote))
    primary = net[0].core
    assert primary._sealing()
    with pytest.raises(SealedError):
        net[0].propose(command(1))
    primary._sealing = lambda: False  # one that orders on
    net[0].propose(command(1))
    net.run(T)
    assert all(member.told == [(1, Kind.SEAL, pack_epoch(SUCCESSOR))] for member in net)


def test_a_primary_cannot_end_the_epoch_by_itself():
    net = Net(4)
    data = pack_epoch(SUCCESSOR)
    signature = DealtKeys("0", net.names).sign(seal_content(0, data))
    for proof in ((), (("0", signature),), (("0", signature), ("0", signature)), (("0", signature), ("1", signature))):
        net.say(0, 3, PrePrepare(0, 1, entry_digest(Kind.SEAL, data), Kind.SEAL, data, proof))
    assert net.flying == []
    assert net[3].core.evidence.of("0", Wrong.CONTENT) == 4


def test_a_seal_that_the_primary_does_not_order_ends_its_view():
    net = Net(4)
    net.crash(0)
    for asker in (1, 2):
        net[asker].take(net[asker].core.seal(SUCCESSOR))
    net.run(3 * T)
    assert all(net[alive].core.sealed_at == 1 for alive in (1, 2, 3))


def test_who_missed_the_seal_learns_of_it_with_the_state():
    net = Net(4)
    net.cut(3)
    for asker in (1, 2):
        net[asker].take(net[asker].core.seal(SUCCESSOR))
    net.run(2)
    net.heal()
    net.run(T)
    assert net[3].core.sealed_at == 1
    assert net[3].core.seal_data == pack_epoch(SUCCESSOR)
    with pytest.raises(SealedError):
        net[3].propose(command(1))


def test_commands_that_no_client_signed_are_not_accepted():
    net = Net(4, admits=lambda command: command.data != b"forged")
    net.say(0, 3, pre_prepare(0, 1, command(1, b"forged")))
    assert net[3].core.slots == {}
    assert net[3].core.evidence.of("0", Wrong.CONTENT) == 1
    net[0].propose(command(1, b"forged"), command(2))  # as if another member had forwarded the first
    net.deliver()
    assert all(member.commands == [(1, command(2))] for member in net)


def test_what_cannot_be_a_member_or_an_option_is_refused():
    with pytest.raises(UsageError, match="at least 4 members"):
        Net(3)
    with pytest.raises(UsageError, match="window is 100"):
        Net(4, window=100)
    with pytest.raises(UsageError, match="do not fit pbft"):
        Net(4, windoww=1)
    with pytest.raises(UsageError, match="f is -1"):
        Replies(-1)
    net = Net(4)
    with pytest.raises(NotLeaderError):
        net[1].propose(command(1))
    with pytest.raises(UsageError, match="MEMBERS cannot be proposed"):
        net[0].core.propose([(Kind.MEMBERS, b"")])
