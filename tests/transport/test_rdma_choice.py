"""What is chosen and refused about RDMA where there is no device; with one, hw/test_rdma.py goes on."""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path

import pytest

from nova.errors import UnavailableError, UsageError
from nova.transport.base import Identity
from nova.transport.rdma import endpoint, engine, flow
from nova.transport.rdma.devices import Device, Gid, Port, choose_gid
from nova.transport.rdma.transport import RdmaTransport, make_endpoint

HEADER = Path(__file__).resolve().parents[2] / "csrc" / "rdma.h"


def gid(index, ip, kind="RoCE v2"):
    address = ipaddress.ip_address(ip)
    return Gid(index, f"::ffff:{ip}" if address.version == 4 else ip, kind, "eth0")


def test_an_address_of_roce_v2_is_chosen_the_wanted_one_before_ipv4_before_others():
    gids = (
        gid(0, "fe80::1"),
        gid(1, "10.0.0.1", "IB/RoCE v1"),
        gid(2, "2001:db8::1"),
        gid(3, "10.0.0.1"),
        gid(4, "10.0.0.2"),
    )
    port = Port(1, True, "Ethernet", gids)
    assert choose_gid(port).index == 3
    assert choose_gid(port, "10.0.0.2").index == 4
    assert choose_gid(port, "2001:db8::1").index == 2
    assert choose_gid(Port(1, True, "Ethernet", gids[:2])).index == 0
    assert choose_gid(Port(1, True, "Ethernet", ())) is None


def device(name, *ips, active=True):
    gids = tuple(gid(number, ip) for number, ip in enumerate(ips))
    return Device(name, "rxe", (Port(1, active, "Ethernet", gids),), "/dev/null")


def test_the_device_with_the_address_is_chosen_else_the_first_that_is_usable(monkeypatch):
    found = [device("rxe0", active=False), device("rxe1", "10.0.0.1"), device("rxe2", "10.0.0.2"), device("rxe3")]
    monkeypatch.setattr(endpoint, "devices", lambda: found)
    assert endpoint.choose_device()[0].name == "rxe1"
    assert endpoint.choose_device(ip="10.0.0.2")[0].name == "rxe2"
    assert endpoint.choose_device("rxe2", "10.0.0.1")[0].name == "rxe2"
    with pytest.raises(UnavailableError, match="rxe0: no active port"):
        endpoint.choose_device("rxe0")
    with pytest.raises(UnavailableError, match="rxe3: port 1 has no address"):
        endpoint.choose_device("rxe3")
    with pytest.raises(UsageError, match="no RDMA device 'mlx5_0'; there are: rxe0, rxe1, rxe2, rxe3"):
        endpoint.choose_device("mlx5_0")
    found.clear()
    with pytest.raises(UnavailableError, match="nova hw detect tells more"):
        endpoint.choose_device()


def test_both_data_paths_have_the_same_sizes():
    told = dict(re.findall(r"NOVA_RDMA_(\w+) = ([\d *]+)[,;]", HEADER.read_text()))
    sizes = {name: eval(text) for name, text in told.items()}
    assert len(sizes) == 8
    assert sizes == {name: getattr(flow, name) for name in sizes}


def test_a_device_that_is_not_there_is_unavailable_to_the_compiled_path():
    from nova.transport.rdma.native import NativeEndpoint

    port = Port(1, True, "Ethernet", ())
    with pytest.raises(UnavailableError):
        NativeEndpoint(Device("nosuch0", "rxe", (port,), ""), port, gid(0, "10.0.0.1"))


def test_an_unknown_data_path_and_tls_are_refused():
    with pytest.raises(UsageError, match="'fast' is not known; there are auto, c and pyverbs"):
        make_endpoint("fast")
    who = Identity("a", "r", "c", 1, "")
    assert isinstance(engine(who, key=None), RdmaTransport)
    with pytest.raises(UsageError, match="rdma:// has no TLS"):
        engine(who, key=None, tls=object())


def test_memory_that_is_refused_names_the_limit(monkeypatch):
    monkeypatch.setattr(endpoint.resource, "getrlimit", lambda _: (8 << 20, endpoint.resource.RLIM_INFINITY))
    text = str(endpoint.memory_refused(1000, "Cannot allocate memory"))
    assert "cannot register 1000 bytes" in text
    assert "8388608 bytes (hard no limit)" in text
    assert "ulimit -l" in text
