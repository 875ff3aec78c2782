"""RDMA devices as the kernel lists them in /sys/class/infiniband: no library is needed to know what is there."""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path
from typing import Literal

import msgspec

SYSFS = Path("/sys/class/infiniband")
EMPTY_GID = ":".join(["0000"] * 8)

Kind = Literal["hw", "rxe", "siw"]
"""A device of its own, or one that the kernel emulates on a network interface (RoCE, iWARP)."""


class Gid(msgspec.Struct, frozen=True):
    """One address of a port. RoCE v2 travels in UDP, so it is the one that passes routers."""

    index: int
    address: str
    type: str
    """As the kernel has it: "IB/RoCE v1" or "RoCE v2"."""
    interface: str
    """The network interface it belongs to; empty if the kernel does not say."""

    @property
    def ip(self) -> str:
        """The address as sockets write it: IPv4 where the GID maps one."""
        address = ipaddress.IPv6Address(self.address)
        return str(address.ipv4_mapped or address)


class Port(msgspec.Struct, frozen=True):
    number: int
    active: bool
    link_layer: str
    gids: tuple[Gid, ...]


class Device(msgspec.Struct, frozen=True):
    name: str
    kind: Kind
    ports: tuple[Port, ...]
    node: str
    """The file below /dev/infiniband that programs open; empty if there is none."""

    @property
    def active(self) -> bool:
        return any(port.active for port in self.ports)


def devices(root: Path = SYSFS) -> list[Device]:
    """All devices of this machine by name; empty where the kernel has no RDMA."""
    try:
        folders = sorted(root.iterdir())
    except OSError:
        return []
    return [Device(folder.name, _kind(folder), _ports(folder), _node(root, folder.name)) for folder in folders]


def _kind(folder: Path) -> Kind:
    if (folder / "device").exists():
        return "hw"
    return "siw" if _text(folder / "node_type").startswith("4") else "rxe"


def _ports(folder: Path) -> tuple[Port, ...]:
    found = []
    for port in sorted((folder / "ports").glob("*"), key=lambda path: int(path.name)):
        found.append(
            Port(int(port.name), "ACTIVE" in _text(port / "state"), _text(port / "link_layer"), tuple(_gids(port)))
        )
    return tuple(found)


def _gids(port: Path) -> list[Gid]:
    found: list[Gid] = []
    try:
        count = len(os.listdir(port / "gids"))
    except OSError:
        return found
    places = f"{port}/gids/"
    for index in range(count):
        # A table has up to 1024 places, nearly all of them empty: nothing but zeros, and without a type.
        address = _text(f"{places}{index}")
        if address in ("", EMPTY_GID) or not (kind := _text(f"{port}/gid_attrs/types/{index}")):
            continue
        interface = _text(f"{port}/gid_attrs/ndevs/{index}")
        found.append(Gid(index, str(ipaddress.IPv6Address(address)), kind, interface))
    return found


def _node(root: Path, name: str) -> str:
    verbs = root.parent / "infiniband_verbs"
    try:
        for path in sorted(verbs.iterdir()):
            if _text(path / "ibdev") == name:
                return f"/dev/infiniband/{path.name}"
    except OSError:
        pass
    return ""


def usable(device: Device) -> str:
    """Why the device cannot be used by this process; empty if it can."""
    if not device.active:
        return f"{device.name}: no active port"
    if not device.node:
        return f"{device.name}: the kernel offers no verbs for it (modprobe ib_uverbs)"
    if not os.access(device.node, os.R_OK | os.W_OK):
        return f"{device.name}: {device.node} is not open to this user"
    return ""


def _text(path: Path | str) -> str:
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        return os.read(file, 4096).decode("utf-8", "replace").strip()
    except OSError:
        return ""
    finally:
        os.close(file)
