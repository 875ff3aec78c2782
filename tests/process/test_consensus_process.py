"""Consensus engines as real processes: killed, stopped, cut off, on full and damaged disks."""

from __future__ import annotations

import asyncio
import contextlib
import time

import pytest
from consensus_group import Group, Lost, eventually

from nova.storage.log import FileLog

pytestmark = pytest.mark.process


def run(scenario, folder, **options):
    async def inner():
        group = Group(folder, **options)
        try:
            async with group, asyncio.timeout(150):
                await scenario(group)
        except BaseException as error:
            error.add_note(group.words())
            raise

    asyncio.run(inner())


async def commits(group, member, key="k0"):
    """Append until it is acknowledged; how long that took in seconds."""
    began = time.monotonic()
    while True:
        try:
            await group.append(member, key, timeout=5.0)
        except Lost:
            await asyncio.sleep(0.005)
        else:
            return time.monotonic() - began


def test_kill_9_and_power_cuts_of_the_leader_under_load_lose_and_repeat_nothing(tmp_path):
    async def scenario(group):
        group.load(6)
        power = True
        for _ in range(5):
            leader = await group.leader()
            count = len(group.acknowledged)
            await eventually(lambda count=count: asyncio.sleep(0, len(group.acknowledged) > count + 30))
            await leader.kill()
            survivor = next(member for member in group.members.values() if member.running)
            took = await commits(group, survivor)
            assert took < 10
            power = leader.cut_power() and power
            await leader.start()
        await group.settle()
        assert len(group.acknowledged) > 150
        if not power:
            pytest.skip("the kernel does not tell which pages are not synced: killed, and no power cut")

    run(scenario, tmp_path)


def test_kill_9_of_all_at_once_loses_nothing(tmp_path):
    async def scenario(group):
        for _ in range(3):
            count = len(group.acknowledged)
            group._stopping = False
            group.load(8)
            await eventually(lambda count=count: asyncio.sleep(0, len(group.acknowledged) > count + 50))
            await asyncio.gather(*(member.kill() for member in group.members.values()))
            for member in group.members.values():
                member.cut_power()
            await asyncio.gather(*(member.start() for member in group.members.values()))
            await group.settle()

    run(scenario, tmp_path, checkpoint_entries=50, disk_ms=15)


@pytest.mark.parametrize("lease", [False, True], ids=["rounds", "lease"])
def test_a_leader_that_was_stopped_answers_no_read_with_what_is_old(tmp_path, lease):
    async def scenario(group):
        for _ in range(3):
            old = await group.leader()
            await group.append(old, "k0")
            assert await group.get(old, "k0")
            old.stop()
            others = "".join(set(group.members) - {old.name})
            # When it wakes it has no word from the others yet: it takes itself for the leader still.
            group.proxies.hold(*((other, old.name) for other in others))
            new = await group.leader(among=others)
            value = await group.append(new, "k0")
            reads = [asyncio.ensure_future(group.get(old, "k0", 0.5)) for _ in range(3)]
            old.resume()
            for found in await asyncio.gather(*reads, return_exceptions=True):
                assert isinstance(found, Lost), f"it answered {found}, {value} was written before it was asked"
            group.proxies.hold()
            await commits(group, old)
            assert value in await group.get(old, "k0")
        await group.settle()

    run(scenario, tmp_path, protocol={"lease_reads": True} if lease else {})


@pytest.mark.parametrize("way", ["out", "in"])
def test_a_leader_that_is_cut_off_in_one_direction_is_replaced_and_comes_back(tmp_path, way):
    async def scenario(group):
        group.load(4)
        for _ in range(2):
            old = await group.leader()
            others = "".join(set(group.members) - {old.name})
            pairs = [(old.name, other) for other in others]
            group.proxies.hold(*(pairs if way == "out" else [(there, here) for here, there in pairs]))
            new = await group.leader(among=others)
            await commits(group, new)
            group.proxies.hold()  # what was held comes now, late
            await commits(group, old)
        await group.settle()

    run(scenario, tmp_path)


def test_a_follower_that_hears_nobody_disturbs_nobody(tmp_path):
    async def scenario(group):
        leader = await group.leader()
        follower = next(member for member in group.members.values() if member is not leader)
        before = (await leader.ask("status"))["term"]
        group.proxies.hold(*((other, follower.name) for other in group.members if other != follower.name))

        async def alone():
            return (await follower.ask("status"))["leader"] is None

        await eventually(alone)
        for _ in range(30):
            await group.append(leader, "k0")
        group.proxies.hold()
        await commits(group, follower)
        assert (await leader.ask("status"))["term"] == before
        await group.settle()

    run(scenario, tmp_path)


def test_a_full_disk_stops_the_leader_and_acknowledges_nothing_that_is_not_durable(tmp_path):
    async def scenario(group):
        leader = await group.leader()
        await group.append(leader, "k0")
        await leader.ask("files_max", bytes=60_000)  # in the middle of the segment, which is laid out
        group.load(4)

        async def failed():
            return (await leader.ask("status"))["failure"]

        assert "log" in await eventually(failed)
        with pytest.raises(Lost, match="has stopped"):
            await group.append(leader, "k0")
        others = "".join(set(group.members) - {leader.name})
        await commits(group, await group.leader(among=others))
        await leader.kill()
        await leader.start()  # with room again
        await commits(group, leader)
        await group.settle()

    run(scenario, tmp_path)


def test_a_torn_record_is_cut_and_damage_before_whole_records_refuses_to_start(tmp_path):
    async def scenario(group):
        for number in range(30):
            await group.append(group["abc"[number % 3]], "k0")
        victim = group["a"]
        await victim.kill()
        (segment,) = (victim.directory / "log").glob("*.log")
        with FileLog(victim.directory / "log", segment_bytes=1 << 20) as log:
            end = log.size_bytes
        with open(segment, "r+b") as file:  # the beginning of a record that never was whole
            file.seek(end)
            file.write(b"\x40\0\0\0torn and unacknowledged")
        await victim.start()
        assert "torn bytes" in victim.words()
        await group.settle()
        await victim.kill()
        with open(segment, "r+b") as file:
            file.seek(segment.read_bytes().index(b"append"))
            file.write(b"A")
        await victim.launch()
        with contextlib.suppress(Lost):
            await asyncio.wait_for(victim._ready, 30)
        assert await victim.process.wait() == 1
        assert "CorruptionError" in victim.words()
        assert f"{segment}: offset" in victim.words()
        await commits(group, await group.leader(among="bc"))  # the others go on

    run(scenario, tmp_path)


def test_a_killed_leader_is_replaced_within_a_second_or_so(tmp_path):
    async def scenario(group):
        took = []
        for _ in range(5):
            leader = await group.leader()
            await group.append(leader, "k0")
            survivor = next(member for member in group.members.values() if member is not leader)
            await leader.kill()
            took.append(await commits(group, survivor))
            await leader.start()
        print("leader killed to first new commit:", [round(each, 3) for each in took])
        assert sorted(took)[len(took) // 2] < 2
        await group.settle()

    run(scenario, tmp_path)
