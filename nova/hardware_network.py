"""What `nova.hardware` finds about networks: RDMA devices, their addresses and libraries, kernel TLS, tunnels."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import resource
from pathlib import Path
from typing import Literal

import msgspec

from nova.transport.rdma.devices import DIST_PACKAGES, SYSFS, Device, devices, import_pyverbs, usable
from nova.transport.rdma.native import lack

State = Literal["present", "absent", "broken"]

MEMLOCK_BYTES_MIN = 64 << 20
"""Below that a registered pool is too small to be of use."""


class Finding(msgspec.Struct, frozen=True):
    """One thing: there, not there (`mend` says how to get it) or there but unusable (`detail` says why)."""

    name: str
    state: State
    detail: str = ""
    mend: str = ""


MODULES = {
    "tls": ("kernel TLS", "modprobe tls"),
    "wireguard": ("WireGuard", "modprobe wireguard"),
    "ip_gre": ("GRE", "modprobe ip_gre"),
    "vxlan": ("VXLAN", "modprobe vxlan"),
    "esp4": ("XFRM (ESP)", "modprobe esp4"),
    "veth": ("veth", "modprobe veth"),
    "sch_netem": ("netem", "modprobe sch_netem"),
    "rdma_rxe": ("soft RDMA (rxe)", "modprobe rdma_rxe, then: rdma link add rxe0 type rxe netdev eth0"),
    "siw": ("soft RDMA (siw)", "modprobe siw, then: rdma link add siw0 type siw netdev eth0"),
}


def findings() -> list[Finding]:
    """Everything about networks, in a fixed order."""
    found = devices(SYSFS)
    return [
        rdma(found),
        gids(found),
        library("libibverbs", "libibverbs.so.1", "apt install rdma-core ibverbs-providers"),
        library("librdmacm", "librdmacm.so.1", "apt install librdmacm1"),
        compiled(),
        pyverbs(),
        memlock(),
        *(module(name, title, mend) for name, (title, mend) in MODULES.items()),
        namespaces(),
    ]


def rdma(found: list[Device]) -> Finding:
    name = "RDMA device"
    if not found:
        return Finding(name, "absent", "", "install a device, or make a soft one (see soft RDMA below)")
    reasons = {device.name: usable(device) for device in found}
    good = [device for device in found if not reasons[device.name]]
    if good:
        return Finding(name, "present", ", ".join(f"{device.name} ({device.kind})" for device in good))
    mend = "bring the link up (ip link set up), and give the user or the container access to /dev/infiniband"
    return Finding(name, "broken", "; ".join(reasons.values()), mend)


def gids(found: list[Device]) -> Finding:
    """RoCE needs an address, and version 2 to be routed."""
    name = "RoCE v2 address"
    ports = [(device, port) for device in found for port in device.ports if port.link_layer == "Ethernet"]
    if not ports:
        return Finding(name, "absent", "no Ethernet port of an RDMA device", "see RDMA device")
    told = [
        f"{device.name}/{port.number}[{gid.index}] {gid.ip}"
        for device, port in ports
        for gid in port.gids
        if gid.type == "RoCE v2"
    ]
    if not told:
        return Finding(name, "broken", "no GID of type RoCE v2", "give the interface an address: ip address add ...")
    return Finding(name, "present", ", ".join(told))


def library(name: str, file: str, mend: str) -> Finding:
    try:
        ctypes.CDLL(file)
    except OSError as error:
        absent = "cannot open shared object file" in str(error) and str(error).startswith(file)
        return Finding(name, "absent" if absent else "broken", "" if absent else str(error), mend)
    return Finding(name, "present", file)


def compiled() -> Finding:
    """Our own module over libibverbs: is built without it as well, and then knows only that."""
    said = lack()
    mend = "apt install libibverbs-dev rdma-core ibverbs-providers, then build nova again"
    return Finding("RDMA data path", "absent" if said else "present", said or "compiled", mend if said else "")


def pyverbs() -> Finding:
    """Found on the module path, or in Debian's folder, which is looked into for this one package only."""
    mend = "apt install python3-pyverbs (for the system's Python)"
    folder = DIST_PACKAGES / "pyverbs"
    try:
        module = import_pyverbs("device")
    except ModuleNotFoundError as error:
        if not folder.is_dir():
            return Finding("pyverbs", "absent", "", mend)
        # Debian builds it for its own Python only, so another version does not find the modules in the folder.
        return Finding("pyverbs", "broken", f"{folder}: {error}; this is Python {platform.python_version()}", mend)
    except Exception as error:  # a build for another Python or another libibverbs fails in many ways
        return Finding("pyverbs", "broken", f"{type(error).__name__}: {error}", mend)
    return Finding("pyverbs", "present", str(Path(module.__file__ or "").parent))


def memlock() -> Finding:
    """Registered memory counts as locked memory, whose limit is 8 MiB where nobody has raised it."""
    name = "locked memory"
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if soft == resource.RLIM_INFINITY:
        return Finding(name, "present", "no limit")
    told = f"limit of {soft} bytes"
    if soft >= MEMLOCK_BYTES_MIN:
        return Finding(name, "present", told)
    mend = "ulimit -l unlimited; LimitMEMLOCK=infinity in a unit; --ulimit memlock=-1 for a container"
    return Finding(name, "broken", f"{told}; RDMA needs {MEMLOCK_BYTES_MIN} or more", mend)


def module(name: str, title: str, mend: str) -> Finding:
    if Path("/sys/module", name).exists():
        return Finding(title, "present", "loaded")
    folder = Path("/lib/modules", platform.release())
    if _lists(folder / "modules.builtin", name):
        return Finding(title, "present", "built into the kernel")
    if _lists(folder / "modules.dep", name):
        return Finding(title, "absent", "not loaded", mend)
    detail = f"no module {name} for kernel {platform.release()}"
    return Finding(title, "absent", detail, f"use a kernel with it; {mend}")


def _lists(index: Path, name: str) -> bool:
    """Whether a module index names `name`; dashes and underscores are the same to the kernel."""
    try:
        text = index.read_text()
    except OSError:
        return False
    return re.search(rf"^(?:\S*/)?{name.replace('_', '[-_]')}\.ko", text, re.MULTILINE) is not None


def namespaces() -> Finding:
    name = "network namespaces"
    if not Path("/proc/self/ns/net").exists():
        return Finding(name, "absent", f"kernel {platform.release()}", "use a kernel with CONFIG_NET_NS")
    if os.geteuid():
        return Finding(name, "broken", "this user may not make any", "run as root")
    return Finding(name, "present")
