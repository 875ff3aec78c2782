"""Tunnels of the kernel between two network namespaces, and our streams through them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random

import pytest
from conftest import require_modules, require_tools, sh
from netns import captured, inside

from nova.transport.base import Identity
from nova.transport.tcp import TcpTransport

KEY = bytes(range(32))
MARK = b"this is what nobody may read on the way"
LEFT, RIGHT = "10.10.0.1", "10.10.0.2"


def wireguard(request, ns):
    place = request.getfixturevalue("tmp_path")
    require_modules(request, "wireguard")
    require_tools(request, "wg")
    secrets = {name: sh("wg genkey").strip() for name, _, _ in ns.ends}
    for name, secret in secrets.items():
        (place / name).write_text(secret)
    public = {name: sh("wg pubkey", input=secret).strip() for name, secret in secrets.items()}
    for (name, _, _), (other, _, far), own, remote in ends_and_inner(ns):
        sh(f"ip -n {name} link add wg0 type wireguard")
        sh(f"ip netns exec {name} wg set wg0 listen-port 51820 private-key {place / name} peer {public[other]} "
           f"allowed-ips {remote}/32 endpoint {far}:51820")  # fmt: skip
        up(name, "wg0", own)
    return "wg0"


def gre(request, ns):
    require_modules(request, "ip_gre")
    for (name, _, near), (_, _, far), own, _ in ends_and_inner(ns):
        sh(f"ip -n {name} tunnel add gre1 mode gre local {near} remote {far} ttl 64 key 77")
        up(name, "gre1", own)
    return "gre1"


def vxlan(request, ns):
    require_modules(request, "vxlan")
    for (name, end, near), (_, _, far), own, _ in ends_and_inner(ns):
        sh(f"ip -n {name} link add vx0 type vxlan id 42 local {near} remote {far} dstport 4789 dev {end}")
        up(name, "vx0", own)
    return "vx0"


def xfrm(request, ns):
    """ESP by AES-GCM between the inner addresses, in tunnel mode, on an interface of its own."""
    require_modules(request, "esp4", "xfrm_interface")
    spis = {name: spi for (name, _, _), spi in zip(ns.ends, ("0x101", "0x102"), strict=True)}
    keys = {name: "0x" + os.urandom(20).hex() for name in spis}
    for name, _, _ in ns.ends:
        for (source, _, near), (_, _, far), inner, outer in ends_and_inner(ns):
            sh(f"ip -n {name} xfrm state add src {near} dst {far} proto esp spi {spis[source]} reqid 1 mode tunnel "
               f"aead 'rfc4106(gcm(aes))' {keys[source]} 128 if_id 7")  # fmt: skip
            for direction in ("out",) if source == name else ("in", "fwd"):
                sh(f"ip -n {name} xfrm policy add src {inner}/32 dst {outer}/32 dir {direction} if_id 7 "
                   f"tmpl src {near} dst {far} proto esp reqid 1 mode tunnel")  # fmt: skip
    for (name, end, _), _, own, _ in ends_and_inner(ns):
        sh(f"ip -n {name} link add xfrm0 type xfrm dev {end} if_id 7")
        up(name, "xfrm0", own)
    return "xfrm0"


def ends_and_inner(ns):
    one, two = ns.ends
    return [(one, two, LEFT, RIGHT), (two, one, RIGHT, LEFT)]


def up(name, interface, address):
    sh(f"ip -n {name} address add {address}/24 dev {interface}")
    sh(f"ip -n {name} link set {interface} mtu 1380 up")


def carried(ns, interface):
    """How many bytes the left end of the tunnel has sent and received, the lesser. Packets are merged in the kernel."""
    folder = f"/sys/class/net/{interface}/statistics"
    told = sh(f"ip netns exec {ns.left} cat {folder}/tx_bytes {folder}/rx_bytes").split()
    return min(int(count) for count in told)


@contextlib.asynccontextmanager
async def streams(ns, address):
    """Two streams of ours, one in each namespace, joined at `address`."""
    one, two = (TcpTransport(Identity(name, "r", "c", 1, ""), key=KEY) for name in "ab")
    accepted = asyncio.get_running_loop().create_future()

    async def accept(stream):
        accepted.set_result(stream)

    try:
        with inside(ns.right):
            place = await two.listen(f"{address}:0", accept)
        with inside(ns.left):
            stream = await one.connect(place)
        yield stream, await accepted
    finally:
        await one.close()
        await two.close()


@pytest.mark.parametrize(("make", "secret"), [(wireguard, True), (gre, False), (vxlan, False), (xfrm, True)])
def test_a_tunnel_carries_our_streams_both_ways(request, namespaces, make, secret):
    interface = make(request, namespaces)

    async def test():
        async with streams(namespaces, RIGHT) as (one, two):
            sent = [MARK, *(random.Random(n).randbytes(5000) for n in range(40)), MARK]
            for message in sent:
                assert one.send(message)
                assert two.send(message)
            for stream in (one, two):
                got = []
                while len(got) < len(sent):
                    got += await stream.recv_batch()
                assert got == sent

    with captured(namespaces.left, "left0") as frames:
        asyncio.run(asyncio.wait_for(test(), 60))
    assert carried(namespaces, interface) > 200_000
    assert sum(map(len, frames)) > 400_000
    # It went this way and no other: what is not encrypted can be read there.
    assert any(MARK in frame for frame in frames) is not secret


def test_a_stream_survives_a_tunnel_that_is_down_for_a_moment(request, namespaces):
    interface = gre(request, namespaces)

    async def test():
        async with streams(namespaces, RIGHT) as (one, two):
            one.send(b"before")
            assert await two.recv() == b"before"
            sh(f"ip -n {namespaces.left} link set {interface} down")
            one.send(b"while it is down")
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(two.recv(), 0.3)
            sh(f"ip -n {namespaces.left} link set {interface} up")
            assert await asyncio.wait_for(two.recv(), 30) == b"while it is down"

    asyncio.run(test())
