"""RDMA on a device: both data paths, and each trap by its name."""

from __future__ import annotations

import asyncio
import os
import random
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest
from conftest import HERE, lack, sh

from nova.errors import NovaError, PeerError, UnavailableError, UsageError
from nova.transport.base import Identity, Limits
from nova.transport.rdma.devices import devices, usable
from nova.transport.rdma.endpoint import choose_device
from nova.transport.rdma.flow import BULK_BYTES, INLINE_BYTES, SLOT_BYTES, SLOTS
from nova.transport.rdma.transport import RdmaTransport, make_endpoint
from nova.transport.tcp import TcpTransport

KEY = bytes(range(32))
BREAK_SECONDS = 60
"""All retries of a device that is gone take about four seconds; an emulated processor has its own."""


def names(rdma_device):
    """One device for each side; the same one twice where there is one only."""
    good = [device.name for device in devices() if device.kind == rdma_device.kind and not usable(device)]
    return [rdma_device.name, *[name for name in good if name != rdma_device.name], rdma_device.name][:2]


@pytest.fixture(params=["c", "pyverbs"])
def path(request, rdma_device):
    try:
        make_endpoint(request.param)
    except UnavailableError as error:
        lack(request, str(error))
    return request.param


@pytest.fixture
def pair(request, rdma_device):
    """Makes two connected endpoints, of one data path each."""
    made = []

    def make(one="c", two="c", **tampered):
        for which in (one, two):
            try:
                make_endpoint(which)
            except UnavailableError as error:
                lack(request, str(error))
        for which, name in zip((one, two), names(rdma_device), strict=True):
            made.append(make_endpoint(which)(*choose_device(name)))
        a, b = made[-2:]
        a.connect(msgspec.structs.replace(b.offer, **tampered))
        b.connect(a.offer)
        return a, b

    yield make
    for endpoint in made:
        endpoint.close()


def counters(rdma_device, word):
    """The sum of the device's counters with this word in their names; None if it has none."""
    found = [
        int(path.read_text())
        for name in set(names(rdma_device))
        for path in Path("/sys/class/infiniband", name, "ports/1/hw_counters").glob(f"*{word}*")
    ]
    return sum(found) if found else None


def spin(condition, *endpoints, seconds=BREAK_SECONDS):
    """Poll until the condition holds; what each endpoint received."""
    got = [bytearray() for _ in endpoints]
    end = time.monotonic() + seconds
    while not condition(*got):
        assert time.monotonic() < end, f"not within {seconds} s; {[len(data) for data in got]} bytes came"
        for data, endpoint in zip(got, endpoints, strict=True):
            for part in endpoint.poll():
                data += part
    return got


def breaks(*endpoints):
    """What the first of them says when it breaks."""
    end = time.monotonic() + BREAK_SECONDS
    while time.monotonic() < end:
        for number, endpoint in enumerate(endpoints):
            try:
                endpoint.poll()
            except PeerError as error:
                if number == 0:
                    return str(error)
    raise AssertionError(f"nothing broke within {BREAK_SECONDS} s")


SIZES = [
    1,
    INLINE_BYTES,
    INLINE_BYTES + 1,
    SLOT_BYTES,
    SLOT_BYTES + 1,
    65536,
    65537,
    BULK_BYTES,
    BULK_BYTES + 1,
    900_000,
]


@pytest.mark.parametrize("ways", [("c", "c"), ("pyverbs", "pyverbs"), ("c", "pyverbs")], ids="-".join)
def test_inline_medium_and_bulk_arrive_in_order_both_ways(pair, ways):
    one, two = pair(*ways)
    chance = random.Random(1)
    data = [chance.randbytes(size) for size in SIZES]
    for part in data:
        one.write(part)
        two.write(part)
    whole = b"".join(data)
    got = spin(lambda a, b: len(a) >= len(whole) <= len(b), one, two)
    assert got == [whole, whole]
    for endpoint in (one, two):
        endpoint.flush(last=True)
    spin(lambda *_: one.idle and two.idle, one, two)


def test_a_receiver_that_is_not_there_makes_the_sender_wait_and_never_retry(pair, path, rdma_device):
    before = counters(rdma_device, "rnr")
    one, two = pair(path, path)
    for number in range(4 * SLOTS):
        one.write(b"%04d" % number + bytes(SLOT_BYTES - 4))  # a slot each, so nothing is gathered
    # As many as receives were posted, but one, which is for credits; the rest waits in the queue.
    assert one.queued_bytes >= (3 * SLOTS + 1) * SLOT_BYTES
    queued = one.queued_bytes
    for _ in range(20):
        assert one.poll() == []
    assert one.queued_bytes == queued
    (_, got) = spin(lambda a, b: len(b) == 4 * SLOTS * SLOT_BYTES, one, two)
    assert [int(got[at : at + 4]) for at in range(0, len(got), SLOT_BYTES)] == list(range(4 * SLOTS))
    assert counters(rdma_device, "rnr") == before


def test_completions_that_nobody_takes_do_not_overrun_the_queue(pair, path):
    one, two = pair(path, path)
    for endpoint in (one, two):
        for _ in range(500):
            endpoint.write(b"x" * 300)
    total = 500 * 300
    got = spin(lambda a, b: len(a) == total == len(b), one, two)
    assert got == [b"x" * total] * 2


@pytest.mark.parametrize("way", ["c", "pyverbs"])
def test_an_rkey_of_memory_that_was_given_back_is_refused(pair, way):
    one, two = pair(way, "pyverbs")
    two._bulk_mr.close()
    one.write(bytes(BULK_BYTES))
    assert "does not let us access this memory" in breaks(one, two)


def test_a_peer_cannot_write_outside_of_its_slots(pair, path):
    one, two = pair(path, "pyverbs")
    right = two.offer.bulk_address
    one.close()
    two.close()
    one, two = pair(path, "pyverbs", bulk_address=right + 64 * BULK_BYTES)
    one.write(bytes(BULK_BYTES))
    assert "does not let us access this memory" in breaks(one, two)


def test_a_peer_that_is_gone_is_an_error_and_stays_one(pair, path):
    one, two = pair(path, path)
    one.write(b"hello")
    spin(lambda a, b: b == b"hello", one, two)
    two.close()
    two.close()
    for _ in range(3):
        one.write(b"are you there?" * 1000)
    assert "no acknowledgement within all retries" in breaks(one)
    for _ in range(2):
        with pytest.raises(PeerError, match="no acknowledgement"):
            one.poll()
        with pytest.raises(PeerError):
            one.flush()
    one.close()
    with pytest.raises(PeerError, match="closed"):
        one.poll()


def test_what_came_before_the_break_is_delivered(pair, path):
    one, two = pair("pyverbs", path)
    one.write(b"last words")
    one.flush(last=True)
    spin(lambda _: one.idle, one)
    one.close()
    two.write(b"x")
    got, end = b"", time.monotonic() + BREAK_SECONDS
    try:
        while time.monotonic() < end:
            got += b"".join(two.poll())
    except PeerError as error:
        assert "no acknowledgement" in str(error)  # noqa: PT017
    assert got == b"last words"
    with pytest.raises(PeerError):
        two.poll()


def test_a_completion_before_the_arming_brings_no_event_so_one_polls_again(pair, path):
    one, two = pair(path, path)
    two.arm()
    one.write(b"first")
    assert select.select([two.fd], [], [], BREAK_SECONDS)[0]
    two.take_event()
    one.flush(last=True)
    spin(lambda _: one.idle, one)  # it has arrived, and nobody was told: the event is taken, the queue not armed
    two.arm()
    assert not select.select([two.fd], [], [], 0)[0]
    assert b"".join(two.poll()) == b"first"
    two.take_event()  # without one it does not wait
    one.write(b"second")
    assert select.select([two.fd], [], [], BREAK_SECONDS)[0]
    two.take_event()
    assert b"".join(two.poll()) == b"second"


def test_a_fork_is_refused(pair, path):
    one, _ = pair(path, path)
    child = os.fork()
    if not child:
        status = 1
        try:
            one.poll()
        except UsageError as error:
            status = 0 if f"belongs to process {os.getppid()}" in str(error) else 2
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    assert one.poll() == []


CHILD = """
import os, resource, sys
from nova.errors import UnavailableError
from nova.transport.rdma.endpoint import choose_device
from nova.transport.rdma.transport import make_endpoint
makers, where = [make_endpoint(path) for path in sys.argv[2:]], choose_device(sys.argv[1])
resource.setrlimit(resource.RLIMIT_MEMLOCK, (1 << 20, 1 << 20))
os.setuid(65534)
for make in makers:
    try:
        make(*where)
    except UnavailableError as error:
        print(error)
"""


def test_a_limit_of_locked_memory_is_named_with_its_mend(rdma_device):
    if os.geteuid():
        pytest.skip("only root can become a user whose limit counts")
    command = [sys.executable, "-c", CHILD, rdma_device.name, "c", "pyverbs"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    said = done.stdout.strip().splitlines()
    assert len(said) == 2, done.stderr
    for line in said:
        assert "cannot register 3145728 bytes of memory for RDMA" in line
        assert "the limit of locked memory is 1048576 bytes" in line
        assert "ulimit -l" in line


def test_a_device_is_chosen_by_the_address_and_by_its_name(rdma_device):
    for port in rdma_device.ports[:1]:
        wanted = [gid for gid in port.gids if gid.type == "RoCE v2"]
        for gid in wanted:
            device, _, chosen = choose_device("", gid.ip)
            assert (device.name, chosen) == (rdma_device.name, gid)
    device, _, gid = choose_device(rdma_device.name)
    assert device.name == rdma_device.name
    assert gid.type == "RoCE v2"
    with pytest.raises(UsageError, match="no RDMA device 'nosuch0'; there are: .*" + rdma_device.name):
        choose_device("nosuch0")


# -- streams -----------------------------------------------------------------------------------------------------------


class World:
    """Transports that are closed in the end."""

    def __init__(self, rdma_device):
        self.names, self.made = names(rdma_device), []

    def make(self, node, **options):
        kind = options.pop("kind", RdmaTransport)
        if kind is RdmaTransport:
            options = {"device": self.names[len(self.made) % 2], **options}
        made = kind(Identity(node, "r", "c", 1, ""), key=KEY, **options)
        self.made.append(made)
        return made

    def run(self, test):
        async def whole():
            try:
                await asyncio.wait_for(test(), 150)
            finally:
                await asyncio.gather(*(transport.close() for transport in self.made))

        asyncio.run(whole())


@pytest.fixture
def world(rdma_device):
    return World(rdma_device)


async def listening(transport):
    accepted = asyncio.Queue()

    async def accept(stream):
        accepted.put_nowait(stream)

    return await transport.listen("127.0.0.1:0", accept), accepted


async def hello(one, two, word=b"hello"):
    assert one.send(word)
    assert await asyncio.wait_for(two.recv(), BREAK_SECONDS) == word


def test_a_broken_stream_is_noticed_and_the_next_connection_works(world, path, rdma_device):
    if not Path("/sys/class/net/nova-rxe0").exists() or "rxe0" not in world.names:
        pytest.skip("takes down the link of hw/softroce.sh's device only")

    async def test():
        a, b = world.make("a", data_path=path), world.make("b", data_path=path)
        address, accepted = await listening(b)
        one = await a.connect(address)
        await hello(one, await accepted.get())
        sh("ip link set nova-rxe0 down")
        try:
            one.send(bytes(100_000))
            with pytest.raises(PeerError, match=r"no acknowledgement within all retries|hung up"):
                await asyncio.wait_for(one.recv(), BREAK_SECONDS)
        finally:
            sh("ip link set nova-rxe0 up")
            sh(str(HERE / "softroce.sh"))
        again = await a.connect(address)
        await hello(again, await accepted.get(), b"here again")

    world.run(test)


SERVER = """
import asyncio, sys
from nova.transport.base import Identity
from nova.transport.rdma.transport import RdmaTransport
async def main():
    transport = RdmaTransport(Identity("b", "r", "c", 1, ""), key=bytes(range(32)), device=sys.argv[1])
    async def accept(stream):
        stream.send(b"hello")
        await stream.recv()
    print(await transport.listen("127.0.0.1:0", accept), flush=True)
    await asyncio.sleep(1000)
asyncio.run(main())
"""


def test_a_process_that_is_killed_ends_the_stream_though_nothing_was_under_way(world):
    server = subprocess.Popen([sys.executable, "-c", SERVER, world.names[1]], stdout=subprocess.PIPE, text=True)
    try:

        async def test():
            address = (await asyncio.to_thread(server.stdout.readline)).strip()
            one = await world.make("a").connect(address)
            assert await one.recv() == b"hello"
            server.send_signal(signal.SIGKILL)
            with pytest.raises(PeerError, match="the peer is gone"):
                await asyncio.wait_for(one.recv(), BREAK_SECONDS)

        world.run(test)
    finally:
        server.kill()
        server.wait()


def test_who_has_no_device_declines_and_falls_back_to_tcp_only_where_allowed(world):
    async def test():
        for fallback in (False, True):
            a, b = world.make("a", fallback=fallback), world.make("b", fallback=fallback)
            b._device = "nosuch0"
            address, accepted = await listening(b)
            if fallback:
                await hello(await a.connect(address), await accepted.get())
            else:
                with pytest.raises(NovaError, match="nosuch0"):
                    await a.connect(address)

    world.run(test)


def test_a_node_without_rdma_is_told_apart(world):
    async def test():
        tcp = world.make("t", kind=TcpTransport)
        address, accepted = await listening(tcp)
        with pytest.raises(UnavailableError, match=r"does not speak RDMA: it listens for tcp:// only"):
            await world.make("a").connect(address)
        await accepted.get()
        await hello(await world.make("c", fallback=True).connect(address), await accepted.get())
        strict = world.make("b")
        address, accepted = await listening(strict)
        stream = await tcp.connect(address)
        assert await stream.recv() is None
        assert "connect by rdma://" in stream.reason
        assert accepted.empty()

    world.run(test)


def test_an_offer_that_is_garbage_gets_a_closed_door_and_others_are_served(world, caplog):
    async def test():
        b = world.make("b", limits=Limits(handshake_ms_max=2000))
        address, accepted = await listening(b)
        attacker = world.make("x")
        for word in (b"", b"garbage", b"NVW\x01\x91\xa5offer"):
            stream = await attacker._tcp.connect(address)
            stream.send(word)
            assert await asyncio.wait_for(stream.recv(), BREAK_SECONDS) is None
        silent = await attacker._tcp.connect(address)
        assert await asyncio.wait_for(silent.recv(), BREAK_SECONDS) is None
        assert accepted.empty()
        await hello(await world.make("a").connect(address), await accepted.get())

    world.run(test)


def test_tls_is_refused_because_the_device_does_not_encrypt():
    from nova.transport.rdma import engine

    with pytest.raises(UsageError, match="rdma:// has no TLS"):
        engine(Identity("a", "r", "c", 1, ""), key=KEY, tls=object())
