"""A node of a group whose member stops for good, or that can't begin."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from pathlib import Path
from typing import Any

import pytest

from nova.errors import UnavailableError, UsageError
from nova.server.config import Limits, NodeConfig
from nova.server.group_config import Consensus
from nova.server.strong_node import StrongNode
from nova.store.model import Put
from nova.transport.mesh import PeerStats


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [sock.getsockname()[1] for sock in sockets]


def config(folder: Path, **group: Any) -> NodeConfig:
    ports = free_ports(2)
    given = {"members": {"a": f"127.0.0.1:{ports[1]}"}, **group}
    return NodeConfig(
        name="a", listen=f"127.0.0.1:{ports[0]}", data=str(folder / "a"), classes={"cfg/": "strong"},
        limits=Limits(segment_bytes=1 << 20), consensus=Consensus(**given),
    )  # fmt: skip


def test_a_member_that_has_stopped_makes_the_node_not_ready_and_eventual_keys_go_on(tmp_path: Path) -> None:
    async def scenario() -> None:
        node = StrongNode(config(tmp_path))
        await node.start()
        try:
            await node.put(Put("cfg/x", 1))
            assert node.ready() == (True, "ok")
            assert node.status()["strong_keys"] == 1
            node.group.engine._fatal(OSError("no space left"))
            ready, reason = node.ready()
            assert not ready
            assert "no space left" in reason
            assert "no space left" in node.consensus()["failure"]
            for call in (node.put(Put("cfg/x", 2)), node.get("cfg/x"), node.list("cfg/", 10, None)):
                with pytest.raises(UnavailableError, match="no space left"):
                    await call
            with pytest.raises(UnavailableError, match="no space left"):
                async for _ in node.watch(1, "cfg/"):
                    pass
            assert (await node.get("cfg/x", "local")).value == 1
            assert (await node.put(Put("vm/1", 2))).value == 2
        finally:
            node.stopping()
            await node.stop()

    asyncio.run(asyncio.wait_for(scenario(), 30))


def test_watches_end_when_the_node_stops(tmp_path: Path) -> None:
    async def scenario() -> None:
        node = StrongNode(config(tmp_path))
        await node.start()
        seen: list[Any] = []

        async def look(prefix: str) -> None:
            async for change in node.watch(None, prefix):
                seen.append(change)

        tasks = [asyncio.ensure_future(look(prefix)) for prefix in ("cfg/", "vm/")]
        await asyncio.sleep(0)
        await node.put(Put("cfg/x", 1))
        await node.put(Put("vm/x", 1))
        while len(seen) < 2:
            await asyncio.sleep(0.005)
        node.stopping()
        await asyncio.wait_for(asyncio.gather(*tasks), 5)
        await node.stop()

    asyncio.run(asyncio.wait_for(scenario(), 30))


def test_a_port_that_is_taken_ends_the_start_and_leaves_nothing_open(tmp_path: Path) -> None:
    async def scenario() -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            settings = config(tmp_path, members={"a": f"127.0.0.1:{taken.getsockname()[1]}"})
            node = StrongNode(settings)
            with pytest.raises(UsageError, match=str(taken.getsockname()[1])):
                await node.start()
            await node.stop()
        again = StrongNode(settings)
        await again.start()
        await again.stop()

    asyncio.run(asyncio.wait_for(scenario(), 30))


def test_hidden_keys_are_of_the_other_class_and_come_back_with_it(tmp_path: Path) -> None:
    async def scenario() -> None:
        settings = config(tmp_path)
        plain = {name: getattr(settings, name) for name in settings.__struct_fields__}
        for classes, key_value in (({}, "before"), ({"cfg/": "strong"}, "strong"), ({}, None)):
            node = StrongNode(NodeConfig(**{**plain, "classes": classes}))
            await node.start()
            try:
                if key_value is not None:
                    await node.put(Put("cfg/x", key_value))
                entries, _ = await node.list("", 10, None)
                assert [(entry.key, entry.value) for entry in entries] == [("cfg/x", key_value or "before")]
                assert (await node.get("cfg/x")).value == (key_value or "before")
            finally:
                await node.stop()

    asyncio.run(asyncio.wait_for(scenario(), 30))


def test_slow_links_slow_the_pace_of_gossip_where_the_mode_is_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(sync: str, began: int, ended: int) -> None:
        settings = config(tmp_path)
        plain = {name: getattr(settings, name) for name in settings.__struct_fields__}
        node = StrongNode(NodeConfig(**{**plain, "sync": sync}))
        await node.start()
        try:
            assert node.cluster.gossip._config.round_ms == began
            node.pace.sync._every_ns = 0
            far = PeerStats("127.0.0.1:1", True, 1, 0, 0, 180.0, 0)
            monkeypatch.setattr(node.mesh, "stats", lambda: {"b": far, "c": far})
            for _ in range(2):
                node._look_at_links()
            assert node.cluster.gossip._config.round_ms == ended
            assert node.status().get("sync") == {"auto": "internet", "": None}.get(sync, sync)
            assert (b"\nnova_sync_mode_internet 1" in node.metrics()) == (ended == 500)
        finally:
            monkeypatch.undo()
            await node.stop()

    for sync, began, ended in (("auto", 200, 500), ("datacenter", 200, 200), ("internet", 500, 500), ("", 200, 200)):
        asyncio.run(asyncio.wait_for(scenario(sync, began, ended), 30))
