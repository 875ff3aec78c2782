"""What `nova hw detect` says of a kernel that has everything, and of one that has not."""

from __future__ import annotations

import subprocess
import sys

import pytest
from conftest import in_lab, lack, require_modules, sh

from nova.hardware import detect
from nova.hardware_network import MODULES
from nova.transport.rdma.devices import devices


def report():
    return {finding.name: finding for finding in detect()}


def test_every_check_is_present_absent_or_broken_and_says_what_to_do():
    found = report()
    assert len(found) == len(detect())  # each name once
    for finding in found.values():
        assert finding.state in ("present", "absent", "broken")
        assert finding.state == "present" or finding.mend or finding.detail


def test_a_soft_device_is_found_with_its_kind_and_its_addresses(rdma_device):
    assert rdma_device.active
    assert rdma_device.node.startswith("/dev/infiniband/uverbs")
    found = report()
    assert found["RDMA device"].state == "present"
    assert f"{rdma_device.name} ({rdma_device.kind})" in found["RDMA device"].detail
    assert found["RoCE v2 address"].state == "present"
    for gid in rdma_device.ports[0].gids:
        assert gid.type in ("RoCE v2", "IB/RoCE v1")
        assert gid.interface
        assert gid.ip in sh(f"ip address show dev {gid.interface}")


def test_a_soft_device_without_a_link_is_broken_and_not_present(request, rdma_device):
    interface = rdma_device.ports[0].gids[0].interface
    if not interface.startswith("nova-rxe"):
        pytest.skip("takes down the link of hw/softroce.sh's device only")
    others = [device for device in devices() if device.name != rdma_device.name]
    sh(f"ip link set {interface} down")
    try:
        assert not next(device for device in devices() if device.name == rdma_device.name).active
        finding = report()["RDMA device"]
        assert rdma_device.name not in finding.detail or finding.state == "broken"
        if not any(device.active for device in others):
            assert finding.state == "broken"
            assert "no active port" in finding.detail
    finally:
        sh(f"ip link set {interface} up")
        sh("hw/softroce.sh")


@pytest.mark.parametrize("name", [name for name in MODULES if name != "siw"])
def test_a_loaded_module_is_present(request, name):
    require_modules(request, name)
    title = MODULES[name][0]
    assert report()[title].state == "present"


def test_kernel_tls_is_offered_by_a_kernel_that_has_it(request):
    require_modules(request, "tls")
    with open("/proc/sys/net/ipv4/tcp_available_ulp") as file:
        assert "tls" in file.read().split()


def test_pyverbs_lists_the_devices_that_the_kernel_lists(request, rdma_device):
    finding = report()["pyverbs"]
    if finding.state == "absent":
        lack(request, f"no pyverbs: {finding.mend}")
    assert finding.state == "present", finding
    code = (
        "import sys; sys.path.append('/usr/lib/python3/dist-packages'); import pyverbs.device as d; "
        "print(*sorted(x.name.decode() for x in d.get_device_list()))"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.split() == sorted(device.name for device in devices())


def test_the_lab_has_all_that_it_is_made_for(request):
    if not in_lab():
        pytest.skip("this is not the guest lab")
    found = report()
    for name in ("libibverbs", "librdmacm", "pyverbs", "locked memory", "network namespaces", "io_uring"):
        assert found[name].state == "present", found[name]
