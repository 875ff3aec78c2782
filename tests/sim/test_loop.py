import asyncio
import time

import pytest

from nova.errors import CorruptionError
from nova.sim import loop as virtual


def test_time_jumps_to_the_next_timer():
    async def sleepers():
        loop = asyncio.get_running_loop()
        order = []

        async def one(seconds):
            await asyncio.sleep(seconds)
            order.append((seconds, round(loop.time(), 6)))

        await asyncio.gather(one(3600), one(5), one(86_400 * 30))
        return order

    began = time.monotonic()
    assert virtual.run(sleepers()) == [(5, 5), (3600, 3600), (2_592_000, 2_592_000)]
    assert time.monotonic() - began < 2


def test_a_deadlock_is_named():
    async def stuck():
        await asyncio.get_running_loop().create_future()

    with pytest.raises(CorruptionError, match="deadlock at virtual time"):
        virtual.run(stuck())


def test_what_is_left_is_cancelled():
    seen = []

    async def background():
        try:
            await asyncio.sleep(1e6)
        finally:
            seen.append("cancelled")

    async def main():
        asyncio.create_task(background())  # noqa: RUF006
        await asyncio.sleep(1)
        return 7

    assert virtual.run(main()) == 7
    assert seen == ["cancelled"]
