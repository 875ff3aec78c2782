"""What is found out about devices, on a tree of files as the kernel lays them out."""

from __future__ import annotations

import pytest

from nova import hardware, hardware_network
from nova.transport.rdma.devices import devices, usable

EMPTY = ":".join(["0000"] * 8)


def make_device(root, name, *, state="4: ACTIVE", node_type="1: CA", hw=False, gids=(), layer="Ethernet"):
    folder = root / "infiniband" / name
    port = folder / "ports" / "1"
    for sub in ("gids", "gid_attrs/types", "gid_attrs/ndevs"):
        (port / sub).mkdir(parents=True)
    (port / "state").write_text(state + "\n")
    (port / "link_layer").write_text(layer + "\n")
    (folder / "node_type").write_text(node_type + "\n")
    if hw:
        (folder / "device").mkdir()
    for index, gid in enumerate([*gids, None, None]):
        (port / "gids" / str(index)).write_text((gid[0] if gid else EMPTY) + "\n")
        if gid:
            (port / "gid_attrs/types" / str(index)).write_text(gid[1] + "\n")
            (port / "gid_attrs/ndevs" / str(index)).write_text("eth0\n")
    verbs = root / "infiniband_verbs" / f"uverbs{len(list(root.glob('infiniband_verbs/*')))}"
    verbs.mkdir(parents=True)
    (verbs / "ibdev").write_text(name + "\n")
    return root / "infiniband"


V4 = "0000:0000:0000:0000:0000:ffff:0a4d:0001"
LINK_LOCAL = "fe80:0000:0000:0000:0202:c9ff:fe11:2233"


def test_devices_have_a_kind_a_node_and_the_addresses_that_are_set(tmp_path):
    make_device(tmp_path, "mlx5_0", hw=True, gids=[(LINK_LOCAL, "IB/RoCE v1"), None, (V4, "RoCE v2")])
    make_device(tmp_path, "rxe0", gids=[(V4, "RoCE v2")])
    root = make_device(tmp_path, "siw0", node_type="4: RNIC")
    found = {device.name: device for device in devices(root)}
    assert {name: device.kind for name, device in found.items()} == {"mlx5_0": "hw", "rxe0": "rxe", "siw0": "siw"}
    assert [device.node for device in found.values()] == [f"/dev/infiniband/uverbs{n}" for n in range(3)]
    (port,) = found["mlx5_0"].ports
    assert [(gid.index, gid.type, gid.ip, gid.interface) for gid in port.gids] == [
        (0, "IB/RoCE v1", "fe80::202:c9ff:fe11:2233", "eth0"),
        (2, "RoCE v2", "10.77.0.1", "eth0"),
    ]


def test_a_device_whose_port_is_down_is_broken_and_says_so(tmp_path):
    found = devices(make_device(tmp_path, "rxe0", state="1: DOWN", gids=[(V4, "RoCE v2")]))
    assert usable(found[0]) == "rxe0: no active port"
    finding = hardware_network.rdma(found)
    assert (finding.state, finding.detail) == ("broken", "rxe0: no active port")
    assert finding.mend


def test_a_device_whose_file_may_not_be_opened_is_broken(tmp_path):
    found = devices(make_device(tmp_path, "nosuch0"))
    if not usable(found[0]):
        pytest.skip("this machine has /dev/infiniband/uverbs0")
    assert "is not open to this user" in hardware_network.rdma(found).detail


def test_no_device_is_absent_and_no_address_is_broken(tmp_path):
    assert devices(tmp_path / "nothing") == []
    assert hardware_network.rdma([]).state == "absent"
    assert hardware_network.gids([]).state == "absent"
    found = devices(make_device(tmp_path, "rxe0", gids=[(LINK_LOCAL, "IB/RoCE v1")]))
    assert hardware_network.gids(found).state == "broken"


def test_a_library_is_absent_and_one_that_cannot_be_loaded_is_broken(tmp_path):
    assert hardware_network.library("x", "libnosuch.so.1", "get it").state == "absent"
    bad = tmp_path / "libbad.so.1"
    bad.write_bytes(b"\x7fELF, but no more")
    finding = hardware_network.library("x", str(bad), "get it")
    assert finding.state == "broken"
    assert finding.detail


@pytest.mark.parametrize(("limit", "state"), [(-1, "present"), (8 << 20, "broken"), (64 << 20, "present")])
def test_the_limit_of_locked_memory_is_told_with_its_mend(monkeypatch, limit, state):
    monkeypatch.setattr(hardware_network.resource, "getrlimit", lambda _: (limit, limit))
    finding = hardware_network.memlock()
    assert finding.state == state
    assert state == "present" or ("8388608 bytes" in finding.detail and "ulimit -l" in finding.mend)


def test_a_module_index_is_read_whichever_dash_it_uses(tmp_path):
    index = tmp_path / "modules.dep"
    index.write_text("kernel/drivers/infiniband/sw/rxe/rdma_rxe.ko.xz: kernel/a.ko\nkernel/net/sched/sch-netem.ko:\n")
    assert hardware_network._lists(index, "rdma_rxe")
    assert hardware_network._lists(index, "sch_netem")
    for other in ("rxe", "rdma_rx", "a"):  # the last is only what another one needs
        assert not hardware_network._lists(index, other)
    assert not hardware_network._lists(tmp_path / "none", "rdma_rxe")


def test_the_report_names_everything_once_and_what_to_do_about_what_is_not_there():
    found = hardware.detect()
    assert len({finding.name for finding in found}) == len(found)
    for finding in found:
        assert finding.state in ("present", "absent", "broken")
        assert finding.state == "present" or finding.mend or finding.detail
    assert {
        "RDMA device",
        "RoCE v2 address",
        "libibverbs",
        "pyverbs",
        "locked memory",
        "kernel TLS",
        "netem",
        "io_uring",
    } <= {finding.name for finding in found}
