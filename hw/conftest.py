"""What tests of real kernel features ask for: a device, a module, namespaces. Absent is a skip with the remedy.

--require-hw (or NOVA_REQUIRE_HW=1) turns every such skip into a failure: for where all of it ought to be.
NOVA_REQUIRE_RDMA=rxe|hw does so for RDMA only, and asks for a device of that kind.
NOVA_RDMA_DEV names the device to use.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from netns import Namespaces, inside, namespace, sh

from nova.hardware_network import MODULES
from nova.hardware_network import module as module_finding
from nova.transport.rdma.devices import Device, devices, usable

HERE = Path(__file__).resolve().parent
for folder in (HERE.parent / "tests" / "consensus", HERE.parent / "tests" / "conformance"):
    sys.path.append(str(folder))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--require-hw", action="store_true", help="what is absent is a failure")


def pytest_configure(config: pytest.Config) -> None:
    wanted = os.environ.get("NOVA_REQUIRE_RDMA", "")
    if wanted not in ("", "rxe", "hw"):
        raise pytest.UsageError(f"NOVA_REQUIRE_RDMA is {wanted!r}; it is rxe, hw or not set")


def pytest_report_header() -> list[str]:
    """Every result carries the kind of device."""
    found = ", ".join(f"{device.name} ({device.kind}) {usable(device)}".strip() for device in devices()) or "none"
    return [f"RDMA devices: {found}", f"kernel {platform.release()}, {'the guest lab' if in_lab() else 'this machine'}"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What runs on the simulator only is the same on every machine: it has its place among the other tests."""
    items[:] = [item for item in items if not (HERE in item.path.parents and "[sim" in item.nodeid)]


def in_lab() -> bool:
    return os.environ.get("NOVA_LAB") == "1"


def lack(request: pytest.FixtureRequest, reason: str, *, rdma: bool = False) -> None:
    """Skip the test for want of something, or fail it where it ought to be."""
    config = request.config
    required = config.getoption("--require-hw") or os.environ.get("NOVA_REQUIRE_HW") == "1"
    if required or (rdma and os.environ.get("NOVA_REQUIRE_RDMA")):
        pytest.fail(f"required, and not there: {reason}", pytrace=False)
    pytest.skip(reason)


def require_modules(request: pytest.FixtureRequest, *names: str) -> None:
    """Load kernel modules, or say why they cannot be had."""
    if os.geteuid():
        lack(request, "only root may load kernel modules and make network namespaces")
    for name in names:
        if module_finding(name, name, "").detail not in ("loaded", "built into the kernel"):
            if shutil.which("modprobe") is None:
                lack(request, f"no program modprobe to load {name} with: apt install kmod")
            done = subprocess.run(["modprobe", name], capture_output=True, text=True, check=False)
            if done.returncode:
                mend = MODULES.get(name, ("", f"modprobe {name}"))[1]
                lack(request, f"kernel {platform.release()} has no module {name} ({done.stderr.strip()}); {mend}")


def require_tools(request: pytest.FixtureRequest, *names: str) -> None:
    for name in names:
        if shutil.which(name) is None:
            lack(request, f"no program {name}: apt install iproute2 wireguard-tools")


@pytest.fixture
def namespaces(request):
    require_modules(request, "veth")
    require_tools(request, "ip")
    with Namespaces() as both:
        yield both


@pytest.fixture
def wide(request):
    """A namespace whose loopback is made slow by netem: `wide("delay 20ms loss 1%")`; the test runs inside of it."""
    require_modules(request, "sch_netem")
    require_tools(request, "ip", "tc")
    with namespace("nova-wide") as name, inside(name):
        # Packets as on a wire: loss takes one of them, and not 64 KiB at once.
        sh("ip link set lo mtu 1500")
        yield lambda profile: sh(f"tc qdisc replace dev lo root netem limit 20000 {profile}")


@pytest.fixture(scope="session")
def rdma_device(request) -> Device:
    """A device with an active port; NOVA_RDMA_DEV names it, else the first one of the kind that is required."""
    kind = os.environ.get("NOVA_REQUIRE_RDMA")
    if in_lab():
        sh(str(HERE / "softroce.sh"))
    found = {device.name: device for device in devices() if not kind or device.kind == kind}
    reasons = {name: usable(device) for name, device in found.items()}
    good = [name for name in found if not reasons[name]]
    wanted = os.environ.get("NOVA_RDMA_DEV", good[0] if good else None)
    if wanted not in good:
        why = "; ".join(filter(None, reasons.values())) or f"RDMA devices here: {', '.join(found) or 'none'}"
        lack(request, f"no usable RDMA device {wanted or ''}: {why}; hw/softroce.sh makes soft ones", rdma=True)
    return found[wanted]
