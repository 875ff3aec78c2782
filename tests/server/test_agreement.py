"""Nodes that are configured for other classes of keys: what one of them orders, the others refuse."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import socket
from pathlib import Path
from typing import Any

import pytest

from nova.errors import ConfigError, PeerError
from nova.server.agreement import Agreement
from nova.server.config import Limits, NodeConfig, load
from nova.server.group_config import Consensus
from nova.server.node import Node
from nova.server.strong_node import StrongNode
from nova.store.cluster import CODEC
from nova.store.model import Put
from nova.store.strong.commands import Add
from nova.sync.membership import CLASSES_TEXT_MAX, Member, Membership, MemberUpdated, News


def members(**classes: Any) -> dict[str, Member]:
    return {node: Member(node, classes=told) for node, told in classes.items()}


STRONG = (("acc/", "strong"), ("acc/seen/", "eventual"))


def test_the_side_that_orders_nothing_refuses_and_says_where_to_look() -> None:
    here = Agreement("b", {})
    (line,) = here.heard(members(a=STRONG, b=(), c=STRONG[1:]) | {"c": Member("c", classes=())})
    assert line.startswith('a has the classes "acc/" = strong, "acc/seen/" = eventual, and this node none')
    assert here.differs
    with pytest.raises(ConfigError, match="'acc/1' is strong at a, and eventual at this node, b: it is refused here"):
        here.check("acc/1")
    here.check("acc/seen/1")
    here.check("free")
    assert here.heard(members(a=STRONG)) == []  # it is said once
    assert here.heard(members(a=(("acc/", "hybrid"),))) != []
    there = Agreement("a", dict(STRONG))
    assert len(there.heard(members(b=()))) == 1
    assert (len(there), there.differs) == (1, False)
    there.check("acc/1")


def test_a_key_that_two_groups_would_order_is_refused_at_both() -> None:
    for mine, theirs in (("strong", "hybrid"), ("hybrid", "strong")):
        here = Agreement("b", {"acc/": mine})
        here.heard(members(a=(("acc/", theirs),)))
        with pytest.raises(ConfigError, match=f"is {theirs} at a, and {mine} at this node"):
            here.check("acc/eu/1")


def test_who_is_dead_counts_and_who_left_or_says_nothing_does_not() -> None:
    here = Agreement("b", {})
    for state, count in (("dead", 1), ("suspect", 1), ("left", 0)):
        here.heard({"a": Member("a", state=state, classes=STRONG)})  # type: ignore[arg-type]
        assert len(here) == count
    assert here.heard(members(a=None, b=STRONG)) == []
    assert "a tells classes that this release does not know" in here.heard(members(a=(("x/", "causal"),)))[0]
    assert not here.differs


def test_members_tell_their_classes_and_a_change_is_an_event() -> None:
    membership = Membership(Member("a", classes=()), random=random.Random(1))
    membership.step("b", News([Member("b", 1)]))
    out = membership.step("b", News([Member("b", 2, classes=STRONG)]))
    assert [type(event) for event in out.apply] == [MemberUpdated]
    decoded = CODEC.decode(CODEC.encode(News([membership.members["b"]])))
    assert decoded.updates[0].classes == STRONG
    long = (("x" * CLASSES_TEXT_MAX, "strong"),)
    with pytest.raises(PeerError, match="classes of 4102 characters; the limit is 4096"):
        membership.step("b", News([Member("b", 3, classes=long)]))


def test_classes_that_no_member_could_tell_are_refused_when_they_are_configured(tmp_path: Path) -> None:
    file = tmp_path / "nova.toml"
    file.write_text(f'[classes]\n"{"x" * 4096}" = "eventual"\n')
    with pytest.raises(ConfigError, match="4104 characters; the limit is 4096"):
        load(str(file))


def test_a_node_without_classes_takes_no_write_below_a_prefix_that_is_strong_elsewhere(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(3)]
        ports = [f"127.0.0.1:{sock.getsockname()[1]}" for sock in sockets]
    limits = Limits(segment_bytes=1 << 20)

    async def scenario() -> None:
        a = StrongNode(
            NodeConfig(
                name="a", listen=ports[0], data=str(tmp_path / "a"), classes={"acc/": "strong"}, limits=limits,
                consensus=Consensus(members={"a": ports[2]}),
            )
        )  # fmt: skip
        b = Node(NodeConfig(name="b", listen=ports[1], data=str(tmp_path / "b"), limits=limits, join=[ports[0]]))
        for node in (a, b):
            await node.start()
        try:
            made = await a.put(Put("acc/1", 1, expect=0))
            while not (len(a.agreement) and b.agreement.differs):
                await asyncio.sleep(0.005)
            for call in (
                b.put(Put("acc/1", 2)), b.get("acc/1"), b.delete("acc/1", None, False), b.decide("acc/1", "x", {}, ""),
                b.rollback("acc/1", "x", None, ""), b.list("acc/1", 9, None), anext(b.watch(None, "acc/1")),
            ):  # fmt: skip
                with pytest.raises(ConfigError, match="'acc/1' is strong at a"):
                    await call
            results = await b.put_many([Put("acc/1", 3), Put("free", 1)])
            assert [type(result) for result in results][:1] == [ConfigError]
            assert (await b.get("free")).value == 1
            assert [entry.key for entry in (await b.list("", 9, None))[0]] == ["free"]
            assert await a.get("acc/1") == made
            assert (await a.transact("acc/1", [], [Add(1)])).results == [2]
            assert b"\nnova_classes_differ 1\n" in a.metrics()
        finally:
            for node in (a, b):
                node.stopping()
            for node in (a, b):
                await node.stop()

    with caplog.at_level(logging.WARNING, "nova.node"):
        asyncio.run(asyncio.wait_for(scenario(), 30))
    assert any('a has the classes "acc/" = strong, and this node none' in line for line in caplog.messages)
