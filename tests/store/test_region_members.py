"""Members of regions come and go, while their keys are read and written: over real engines, logs and sockets."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
from strong_group import eventually, free_ports

from nova.consensus.core import UnknownOutcomeError
from nova.errors import UnavailableError, UsageError
from nova.store.strong import Add, GroupOptions, RegionMember

BEGAN = {"a": "eu", "b": "eu", "c": "us"}


class Regions:
    """name -> RegionMember; a and b are in eu, c is in us, and d is not yet anywhere."""

    def __init__(self, folder):
        self.addresses = {name: f"127.0.0.1:{port}" for name, port in zip("abcd", free_ports(4), strict=True)}
        self.folder, self.up = folder, {}

    async def start(self, name, places=BEGAN, founders="abc"):
        member = RegionMember(
            name, {each: self.addresses[each] for each in places}, places, self.folder / name, cluster="nova", key=None,
            options=GroupOptions(segment_bytes=1 << 20, founders=tuple(founders), timeout_ms=20_000),
            key_bytes_max=1024, value_bytes_max=1 << 18,
        )  # fmt: skip
        await member.engine.start()
        self.up[name] = member
        return member

    async def stop(self, name):
        await self.up.pop(name).engine.aclose()

    async def same(self, names):
        await eventually(lambda: len({self.up[name].machine.digest for name in names}) == 1)


def run(scenario, folder):
    async def inner():
        regions = Regions(folder)
        try:
            async with asyncio.timeout(60):
                for name in BEGAN:
                    await regions.start(name)
                await scenario(regions, *regions.up.values())
        finally:
            for name in list(regions.up):
                await regions.stop(name)

    asyncio.run(inner())


async def counted(keys, done, doubts, region="eu"):
    """Add one to a key of the region until cancelled."""
    with contextlib.suppress(asyncio.CancelledError):
        while True:
            try:
                await keys.transact(region, f"vm/{region}/n", [], [Add(1)])
                done.append(1)
            except UnknownOutcomeError:  # it was made in the epoch that ended, and its answer is not kept
                doubts.append(1)


def test_a_member_joins_a_region_under_load_and_leaves_it(tmp_path):
    async def scenario(regions, a, b, c):
        done, doubts = [], []
        writing = [asyncio.ensure_future(counted(member.keys, done, doubts, member.region)) for member in (a, b, c)]

        async def goes_on():
            before = len(done)
            await eventually(lambda: len(done) > before + 10)

        await goes_on()
        joined = {**BEGAN, "d": "us"}
        d = await regions.start("d", joined)
        with pytest.raises(UsageError, match=r"d is not known here; give the HOST:PORT of its hybrid\.listen"):
            await a.add("d", None, "us")
        await b.add("d", regions.addresses["d"], "us")  # any member may be asked, of any region
        assert a.placed == b.placed == joined
        await goes_on()
        await d.keys.put("us", "vm/us/of-d", 1, expect=0)
        assert (await c.keys.get("us", "vm/us/of-d")).origin == "d"
        assert d.status()["regions"]["us"]["members"] == ["c", "d"]
        with pytest.raises(UsageError, match="owned by region eu, and this node is of us"):
            await d.keys.put("eu", "vm/eu/1", 1)
        # All come back from their disks: what they began with is in the founders, what changed in their logs.
        for task in writing:
            task.cancel()
        await asyncio.gather(*writing)
        for name in "abcd":
            await regions.stop(name)
        for name in "abcd":
            await regions.start(name, joined)
        a, d = regions.up["a"], regions.up["d"]
        assert (await d.keys.get("us", "vm/us/of-d")).value == 1
        await d.remove("c", "us")
        assert d.placed == {"a": "eu", "b": "eu", "d": "us"}
        await regions.stop("c")
        assert (await d.keys.put("us", "vm/us/of-d", 2, expect=None)).value == 2
        await eventually(lambda: a.machine.of["us"].get("vm/us/of-d").value == b"2")
        counts = [(await member.keys.get(place, f"vm/{place}/n")).value for member, place in ((a, "eu"), (d, "us"))]
        assert len(done) <= sum(counts) <= len(done) + len(doubts) + 3
        await regions.same("abd")

    run(scenario, tmp_path)


def test_a_word_that_was_lost_is_said_again(tmp_path):
    async def scenario(regions, a, b, c):
        await regions.start("d", {**BEGAN, "d": "us"})
        switch, asked = b.engine.switch, []

        async def lossy(*given, **named):
            asked.append(given)
            if len(asked) == 1:
                raise UnknownOutcomeError("nobody heard")
            return await switch(*given, **named)

        b.engine.switch = lossy
        await b.add("d", regions.addresses["d"], "us")
        assert b.placed == {**BEGAN, "d": "us"}
        assert len(asked) > 1

    run(scenario, tmp_path)


def test_what_cannot_be_is_refused_and_nothing_has_changed(tmp_path):
    async def scenario(regions, a, b, c):
        address = regions.addresses["d"]
        for call, words in (
            (a.add("b", None, "us"), "b is a member in eu already"),
            (a.add("d", address, "mars"), "no region of the group; they are eu, us"),
            (a.remove("c", "eu"), "c is no member in eu; there are a, b"),
            (a.remove("c", "us"), "c is the last member in us; a region has at least one"),
        ):
            with pytest.raises(UsageError, match=words):
                await call
        await regions.stop("c")
        await eventually(lambda: "c" not in b.engine._replica.core._alive())
        with pytest.raises(UnavailableError, match="of region us only nobody was heard of late"):
            await b.add("d", address, "eu")
        assert a.engine.status().epoch.number == 0

    run(scenario, tmp_path)


def test_who_was_not_let_in_yet_answers_nothing(tmp_path):
    async def scenario(regions, a, b, c):
        await a.keys.put("eu", "vm/eu/1", 1)
        d = await regions.start("d", {**BEGAN, "d": "us"})
        assert d.engine.status().core.role == "outside"
        with pytest.raises(UnavailableError):
            await d.engine.propose(b"", timeout_s=0.3)
        assert d.machine.of["eu"].revision == 0
        with pytest.raises(UsageError, match="'d' has no region"):
            RegionMember(
                "d", regions.addresses, BEGAN, tmp_path / "e", cluster="nova", key=None, options=GroupOptions(),
                key_bytes_max=1, value_bytes_max=1,
            )  # fmt: skip

    run(scenario, tmp_path)
