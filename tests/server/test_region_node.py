"""Nodes with hybrid keys, in one process: who may change what, beside strong and eventual keys, and over restarts."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from pathlib import Path
from typing import Any

import msgspec
import pytest

from nova.errors import KeyNotFoundError, StaleContextError, UnavailableError, UsageError
from nova.server.config import Limits, NodeConfig
from nova.server.dashboard import render
from nova.server.dashboard.view import ClusterView
from nova.server.group_config import Consensus
from nova.server.region_config import Hybrid
from nova.server.region_node import RegionNode, RegionStrongNode
from nova.store.model import Put
from nova.store.strong.commands import Add, Read

REGIONS = {"a": "eu", "b": "us"}
CLASSES = {"vm/": "hybrid", "vm/eu/log/": "eventual", "cfg/": "strong"}


def configs(folder: Path) -> list[NodeConfig]:
    """One node in eu, one in us, both of a group of strong keys, too."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(6)]
        ports = [f"127.0.0.1:{sock.getsockname()[1]}" for sock in sockets]
    return [
        NodeConfig(
            name=name, region=REGIONS[name], listen=ports[at], http=f"127.0.0.1:{8500 + at}", join=ports[:2],
            data=str(folder / name), classes=CLASSES, limits=Limits(segment_bytes=1 << 20),
            hybrid=Hybrid(members=dict(zip("ab", ports[2:4], strict=True)), regions=REGIONS),
            consensus=Consensus(members=dict(zip("ab", ports[4:], strict=True))),
        )
        for at, name in enumerate("ab")
    ]  # fmt: skip


async def until(condition: Any) -> None:
    while not condition():
        await asyncio.sleep(0.005)


@contextlib.asynccontextmanager
async def both(folder: Path) -> Any:
    nodes = [RegionStrongNode(config) for config in configs(folder)]
    try:
        for node in nodes:
            await node.start()
        yield nodes
    finally:
        for node in nodes:
            node.stopping()
        for node in nodes:
            await node.stop()


def run(scenario: Any) -> None:
    asyncio.run(asyncio.wait_for(scenario(), 30))


def test_only_the_owning_region_changes_a_key_and_others_read_what_has_arrived(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with both(tmp_path) as (a, b):
            made = await a.put(Put("vm/eu/1", 1, expect=0))
            with pytest.raises(StaleContextError):
                await a.put(Put("vm/eu/1", 2, expect=0))
            await until(lambda: b.region_group.machine.of["eu"].revision == 1)
            assert await b.get("vm/eu/1") == await b.get("vm/eu/1", "local") == await a.get("vm/eu/1") == made
            await until(lambda: "a" in b.cluster.membership.members)
            calls = (
                b.put(Put("vm/eu/1", 3)), b.delete("vm/eu/1", None, False), b.transact("vm/eu/1", [], [Add(1)]),
                b.get("vm/eu/1", "linearizable"), b.get("vm/eu/1", "lease"), b.list("vm/eu/", 9, None, "linearizable"),
            )  # fmt: skip
            for call in calls:
                with pytest.raises(UsageError, match=r"owned by region eu.*of us.*ask a node of eu, http://127.*:8500"):
                    await call
            assert (await a.get("vm/eu/1")).value == 1
            with pytest.raises(UsageError, match=r"'mars', which is no region of the group; .* one of eu, us"):
                await b.get("vm/mars/1")
            for wrong in (Put("vm/eu/1", 1, merge=True), Put("vm/eu/1", 1, kind="counter"), Put("vm/eu/1", 1, {})):
                with pytest.raises(UsageError, match="hybrid"):
                    await a.put(wrong)
            results = await a.put_many([Put("vm/eu/2", 1, expect=0), Put("vm/us/2", 1), Put("vm/eu/2", 2)])
            assert [type(result) for result in results[1:2]] == [UsageError]
            assert (await a.get("vm/eu/2")).value == 2
            assert (await a.transact("vm/eu/2", [], [Add(3), Read()])).results == [5, 5]
            await a.delete("vm/eu/2", None, False)
            with pytest.raises(KeyNotFoundError):
                await a.get("vm/eu/2")
            assert a.status()["hybrid"]["regions"]["eu"]["revision"] == 5
            await until(lambda: len({node.status()["hybrid"]["digest"] for node in (a, b)}) == 1)
            assert b'\nnova_hybrid_keys{owner="eu"} 1' in b.metrics()

            def leads(node: Any, group: str) -> bool:
                return f'\nnova_consensus_leads{{group="{group}"}} 1\n'.encode() in node.metrics()

            await until(lambda: leads(a, "hybrid/eu") and leads(b, "hybrid/us"))
            await until(lambda: leads(a, "strong") != leads(b, "strong"))
            view = ClusterView([], None)
            assert render.regions(view) == ""
            for node in (a, b):
                seen = view.nodes.setdefault(node.config.name, type("Seen", (), {})())
                seen.name, seen.up, seen.status = node.config.name, True, node.status()
            assert "<td>eu</td><td>a</td><td>1</td><td>5</td><td>nobody</td>" in render.regions(view)
            view.nodes["b"].status["hybrid"]["regions"]["eu"]["revision"] = 3
            assert "<td>b 2</td>" in render.regions(view)

    run(scenario)


def test_three_classes_stand_beside_each_other_in_lists_and_watches(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with both(tmp_path) as (a, b):
            keys = ["cfg/1", "free", "vm/eu/1", "vm/eu/log/1", "vm/eu/z"]
            for key in keys:
                await a.put(Put(key, key))
            await b.put(Put("vm/us/1", 1))
            await until(lambda: a.region_group.machine.of["us"].revision == 1)
            everything = [*keys, "vm/us/1"]
            found, after = [], ""
            while after is not None:
                page, after = await a.list("", 2, after)
                assert len(page) <= 2
                found += [entry.key for entry in page]
            assert found == everything
            assert [entry.key for entry in (await a.list("vm/", 99, None))[0]] == everything[2:]
            assert [entry.key for entry in (await a.list("vm/us/", 99, None, "local"))[0]] == ["vm/us/1"]
            for prefix in ("", "vm/eu/"):
                with pytest.raises(UsageError, match="class=eventual or class=hybrid"):
                    await anext(a.watch(0, prefix))
            with pytest.raises(UsageError, match="those of one: PREFIX/REGION/, the regions are eu, us"):
                await anext(a.watch(0, "vm/", "hybrid"))
            watch = a.watch(0, "vm/eu/", "hybrid")
            assert [(await anext(watch)).key for _ in range(2)] == ["vm/eu/1", "vm/eu/z"]
            assert (await anext(b.watch(0, "vm/us/"))).key == "vm/us/1"
            assert (await anext(a.watch(0, "", "strong"))).key == "cfg/1"
            assert [(await a.why(key))["writes"][0]["origin"] for key in ("cfg/1", "vm/eu/1", "free")] == ["a"] * 3
            await until(lambda: b.region_group.machine.of["eu"].revision == 2)
            assert "change 1 of region eu" in (await b.why("vm/eu/1"))["text"]

    run(scenario)


def test_without_its_majority_a_region_answers_local_reads_only(tmp_path: Path) -> None:
    async def scenario() -> None:
        config = configs(tmp_path)[0]
        plain = {name: getattr(config, name) for name in config.__struct_fields__}
        hybrid = Hybrid(members=config.hybrid.members, regions={"a": "eu", "b": "eu"}, timeout_ms=100)
        node = RegionNode(NodeConfig(**{**plain, "hybrid": hybrid, "classes": {"vm/": "hybrid"}}))
        await node.start()
        for call in (node.put(Put("vm/eu/1", 1)), node.get("vm/eu/1"), node.list("vm/", 9, None)):
            with pytest.raises(UnavailableError, match="no leader is known"):
                await call
        with pytest.raises(KeyNotFoundError):
            await node.get("vm/eu/1", "local")
        assert await node.list("vm/", 9, None, "local") == ([], None)
        node.region_group.engine.options = msgspec.structs.replace(node.region_group.engine.options, close_ms=1)
        await node.stop()

    run(scenario)


def test_what_a_region_acknowledged_is_there_after_a_restart_of_all(tmp_path: Path) -> None:
    async def scenario() -> None:
        settings = configs(tmp_path)
        for expected in range(3):
            nodes = [RegionNode(config) for config in settings]
            for node in nodes:
                await node.start()
            told = await nodes[0].transact("vm/eu/n", [], [Read(), Add(1)])
            assert told.results == [expected or None, expected + 1]
            for node in nodes:
                await node.stop()
        again = RegionNode(settings[0])
        await again.start()
        assert (await again.get("vm/eu/n")).value == 3
        again.region_group.engine._fatal(OSError("no space left"))
        ready, reason = again.ready()
        assert (ready, reason) == (False, "hybrid keys have stopped here: no space left")
        with pytest.raises(UnavailableError, match="no space left"):
            await again.put(Put("vm/eu/n", 1))
        await again.stop()

    run(scenario)


def test_a_node_that_begins_with_a_snapshot_has_the_keys_of_all_regions_and_catches_up(tmp_path: Path) -> None:
    async def scenario() -> None:
        settings = configs(tmp_path)
        a, b = (RegionNode(config) for config in settings)
        for node in (a, b):
            engine = node.region_group.engine
            engine.options = msgspec.structs.replace(engine.options, checkpoint_entries=5)
            await node.start()
        for number in range(20):
            await a.put(Put("vm/eu/x", number))
            await b.put(Put("vm/us/x", -number))
        await until(lambda: all(node.region_group.engine.status().checkpoint > 0 for node in (a, b)))
        await b.stop()
        for number in range(20, 40):  # what b lacks is kept for it
            await a.put(Put("vm/eu/x", number))
        b = RegionNode(settings[1])
        await b.start()
        assert (await b.get("vm/us/x")).value == -19
        await until(lambda: b.region_group.machine.digest == a.region_group.machine.digest)
        assert (await b.get("vm/eu/x")).value == 39
        await a.stop()
        await b.stop()

    run(scenario)
