from __future__ import annotations

import random
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nova.errors import ConfigError, PeerError
from nova.sync.antientropy import AntiEntropy, AntiEntropyConfig, Gone, Invite, More, Part, Request, Wider, _digest
from nova.sync.gossip import Batches, Gossip, GossipConfig, Have
from nova.sync.membership import MembershipConfig
from tests.models.replica import LEAVES, ToyReplica, head_of


def gossip_of(replica: ToyReplica, **config: int) -> Gossip:
    gossip = Gossip("a", replica, head=head_of, config=GossipConfig(**config), random=random.Random(1))
    gossip.set_peers({"b": "local", "c": "local"})
    return gossip


def batches_of(actor: str, count: int) -> list[bytes]:
    writer = ToyReplica(actor)
    out = []
    for i in range(count):
        writer.write(f"k{i}", "v" * 100)
        closed = writer.close()
        assert closed is not None
        out.append(closed[0])
    return out


def test_nothing_is_taken_of_a_message_with_a_malformed_batch() -> None:
    replica = ToyReplica("a~1")
    gossip = gossip_of(replica)
    good = batches_of("b~1", 1)[0]
    with pytest.raises(PeerError):
        gossip.step("b", Batches(0, [good, b"\xc1junk"]))
    with pytest.raises(PeerError):
        gossip.step("b", Batches(0, [good, msgspec.msgpack.encode(("b~1", 5, 4, {}, []))]))
    assert not replica.rows
    with pytest.raises(PeerError):
        gossip.step("b", Have({"b~1": -1}))


def test_batches_that_must_wait_take_bounded_memory_and_are_applied_in_order() -> None:
    replica = ToyReplica("a~1")
    batches = batches_of("b~1", 100)
    gossip = gossip_of(replica, buffer_bytes_max=2_000)
    assert not gossip.step("b", Batches(0, batches[1:])).persist
    assert 0 < gossip.buffered_bytes <= 2_000
    out = gossip.step("b", Batches(0, batches[:1]))
    assert 5 < len(out.persist) < 100
    assert gossip.buffered_bytes == 0
    # The rest is pulled: the next tick asks whoever sent it.
    out = gossip.tick()
    assert [peer for peer, _ in out.send] == ["b"]


@given(st.permutations(range(8)))
def test_any_order_of_arrival_gives_the_same_state(order: list[int]) -> None:
    replica = ToyReplica("a~1")
    gossip = gossip_of(replica)
    batches = batches_of("b~1", 8)
    kept = 0
    for index in order:
        kept += len(gossip.step("b", Batches(0, [batches[index]])).persist)
    assert kept == 8
    assert replica.known == {"b~1": 8}


def anti_entropy(**config: int) -> tuple[ToyReplica, AntiEntropy]:
    replica = ToyReplica("a~1")
    core = AntiEntropy("a", replica, config=AntiEntropyConfig(**config), random=random.Random(1))
    core.set_peers(["b", "c"])
    return replica, core


def request_of(core: AntiEntropy) -> Request:
    ((_, request),) = core.sync("b").send
    assert isinstance(request, Request)
    return request


def test_a_state_is_joined_only_when_it_is_whole_and_as_it_was_announced() -> None:
    other = ToyReplica("b~1")
    other.write("k", "v")
    replica, core = anti_entropy()
    request = request_of(core)
    state = other.state_for(request.summary)
    assert isinstance(state, bytes)
    half = len(state) // 2
    first = Part(request.number, 0, 2, _digest(state), {}, state[:half])
    assert core.step("c", first).send == []
    assert core.step("b", first).send == [("b", More(request.number, 1))]
    assert not replica.rows
    with pytest.raises(PeerError, match="digest"):
        core.step("b", Part(request.number, 1, 2, _digest(state), {}, b"x" * (len(state) - half)))
    assert not replica.rows
    request = request_of(core)
    core.step("b", Part(request.number, 0, 1, _digest(state), {}, state))
    assert list(replica.rows) == ["k"]


def wide(count: int) -> tuple[ToyReplica, ToyReplica, AntiEntropy]:
    """A peer with `count` rows more than a core's own replica, which has 40 of them."""
    replica, core = anti_entropy(cells_max=32)
    other = ToyReplica("b~1")
    for i in range(40):
        other.write(f"k{i}", "v")
    closed = other.close()
    assert closed is not None
    replica.receive(closed[0])
    for i in range(count):
        other.write(f"new{i}", "v")
    return other, replica, core


@pytest.mark.parametrize(
    ("count", "asked"), [(2, [0]), (3, [0, 8]), (4, [0, 8]), (9, [0, 8, 32]), (17, [0, 8, 32, None])]
)
def test_a_question_is_widened_until_it_is_answered_and_in_the_end_asked_by_ranges(
    count: int, asked: list[int | None]
) -> None:
    other, replica, core = wide(count)
    request, seen = request_of(core), []
    while True:
        body = msgspec.msgpack.decode(request.summary)
        seen.append(body[1] if len(body) == 3 else None)
        state = other.state_for(request.summary)
        if not isinstance(state, int):
            break
        ((_, request),) = core.step("b", Wider(request.number, state)).send
    assert seen == asked
    core.step("b", Part(request.number, 0, 1, _digest(state), {}, state))
    assert replica.row_ids() == other.row_ids()
    assert replica.known == other.known


@pytest.mark.parametrize("cells", [-1, 1, 7, 15])
def test_a_peer_cannot_have_many_or_large_questions_asked(cells: int) -> None:
    _, _, core = wide(3)
    request = request_of(core)
    ((_, request),) = core.step("b", Wider(request.number, 8)).send
    with pytest.raises(PeerError, match=f"with {cells} cells after 8"):
        core.step("b", Wider(request.number, cells))
    assert core.step("b", Wider(request.number, 16)).send == [], "the exchange has ended"


def test_only_the_newest_question_is_answered_and_ranges_are_asked_by_once() -> None:
    _, _, core = wide(3)
    first = request_of(core)
    assert core.step("c", Wider(first.number, 8)).send == []
    ((_, second),) = core.step("b", Wider(first.number, 8)).send
    assert core.step("b", Wider(first.number, 32)).send == []
    assert core.step("b", Part(first.number, 0, 1, _digest(b""), {}, b"")).send == []
    ((_, third),) = core.step("b", Wider(second.number, 0)).send
    with pytest.raises(PeerError, match="with 0 cells after None"):
        core.step("b", Wider(third.number, 0))


@pytest.mark.parametrize("cells", [33, 1 << 40])
def test_instead_of_a_summary_over_the_limit_ranges_are_asked_by(cells: int) -> None:
    _, replica, core = wide(3)
    request = request_of(core)
    assert core.step("b", Wider(request.number, cells)).send == [("b", Request(request.number + 1, replica.summary()))]


def test_a_difference_that_does_not_fit_changes_nothing_and_ranges_are_asked_by() -> None:
    other, replica, core = wide(2)
    request = request_of(core)
    state = other.state_for(request.summary)
    assert isinstance(state, bytes)
    body = msgspec.msgpack.decode(state)
    body[1] = [b"no row of"]
    wrong = msgspec.msgpack.encode(body)
    before = replica.row_ids()
    out = core.step("b", Part(request.number, 0, 1, _digest(wrong), other.known, wrong))
    assert replica.row_ids() == before
    assert not out.persist
    ((to, again),) = out.send
    assert to == "b"
    assert again == Request(request.number + 1, replica.summary())
    with pytest.raises(PeerError, match="does not fit"):
        core.step("b", Part(again.number, 0, 1, _digest(wrong), other.known, wrong))
    assert replica.row_ids() == before


@pytest.mark.parametrize("seed", range(50))
def test_a_damaged_answer_is_refused_and_changes_nothing(seed: int) -> None:
    chance = random.Random(seed)
    other, replica, core = wide(2)
    request = request_of(core)
    state = other.state_for(request.summary)
    assert isinstance(state, bytes)
    damaged = bytearray(state)
    damaged[chance.randrange(len(damaged))] ^= 1 << chance.randrange(8)
    before = replica.row_ids(), dict(replica.known)
    with pytest.raises(PeerError, match="digest"):
        core.step("b", Part(request.number, 0, 1, _digest(state), other.known, bytes(damaged)))
    assert (replica.row_ids(), replica.known) == before


def test_a_state_over_the_limit_is_refused() -> None:
    _, core = anti_entropy(state_bytes_max=100)
    request = request_of(core)
    with pytest.raises(PeerError, match="limit is 100"):
        core.step("b", Part(request.number, 0, 2, b"d", {}, b"x" * 101))


@pytest.mark.parametrize("digests", [b"", b"x" * (LEAVES * 16 - 1), b"x" * 100_000])
def test_leaf_digests_of_another_length_are_refused(digests: bytes) -> None:
    _, core = anti_entropy()
    with pytest.raises(PeerError, match="leaf digests"):
        core.step("b", Request(1, msgspec.msgpack.encode(({}, digests))))


def test_states_kept_for_others_are_few_and_end() -> None:
    replica, core = anti_entropy(part_bytes=10, sessions_max=1, timeout_ms=500)
    replica.write("k", "v" * 100)
    wanted = Request(1, ToyReplica("b~1").summary())
    assert isinstance(core.step("b", wanted).send[0][1], Part)
    assert core.step("c", wanted).send == [("c", Gone(1))]
    for _ in range(6):
        core.tick()
    assert core.step("b", More(1, 1)).send == [("b", Gone(1))]


@pytest.mark.parametrize(
    ("config", "options"),
    [
        (GossipConfig, {"fanout": 0}),
        (GossipConfig, {"round_bytes_max": 10}),
        (MembershipConfig, {"probe_timeout_ms": 1_000}),
        (AntiEntropyConfig, {"part_bytes": 0}),
    ],
)
def test_a_configuration_that_cannot_work_is_refused(config: Any, options: dict[str, int]) -> None:
    with pytest.raises(ConfigError):
        config(**options)


def test_whoever_joined_a_state_invites_the_other_side_to_what_it_lacks() -> None:
    replica, core = anti_entropy()
    replica.write("mine", "v")
    replica.durable = dict(replica.known)
    request = request_of(core)
    other = ToyReplica("b~1")
    other.write("k", "v")
    state = other.state_for(request.summary)
    assert isinstance(state, bytes)
    out = core.step("b", Part(request.number, 0, 1, _digest(state), other.known, state))
    assert out.persist
    assert out.send == [("b", Invite())]
    assert sorted(replica.rows) == ["k", "mine"]
