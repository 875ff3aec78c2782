"""What both data paths offer, and what they share: the C one over libibverbs, and pyverbs as the reference."""

from __future__ import annotations

import resource
from typing import Protocol

from nova.errors import UnavailableError, UsageError
from nova.transport.base import Buffer
from nova.transport.rdma.devices import Device, Gid, Port, choose_gid, devices, usable
from nova.transport.rdma.flow import Offer

MIN_RNR_TIMER = 12
RNR_RETRY = 6
RETRY = 6
"""Seven, the most that fits, is "for ever" to rxe: a peer that is gone would never be noticed."""
TIMEOUT = 14
"""4.096 us * 2^14, 67 ms without an acknowledgement; seven of them break the connection after half a second."""


class Endpoint(Protocol):
    """One end of one connection: bytes in, bytes out, never waits. Broken, it stays broken."""

    @property
    def offer(self) -> Offer:
        """What the other side has to know; receives are posted before anybody can be told."""

    @property
    def fd(self) -> int:
        """Readable when `poll` may have something, once `arm` was called."""

    def connect(self, remote: Offer) -> None:
        """Receive from and send to this peer. Raises PeerError, UnavailableError."""

    def write(self, data: Buffer) -> None:
        """Queue bytes, and post what may be posted. A break is told by `poll` and `flush`."""

    def flush(self, last: bool = ...) -> None:
        """Post what may be posted. Raises PeerError if the connection broke."""

    def poll(self) -> list[bytes]:
        """What has arrived, in order; takes completions, gives credits back. Raises PeerError if it broke."""

    def arm(self) -> None:
        """Ask for an event at the next completion. Those before it bring none: poll once more after it."""

    def take_event(self) -> None:
        """Take the event that made `fd` readable. Never waits."""

    @property
    def queued_bytes(self) -> int: ...

    @property
    def idle(self) -> bool:
        """Nothing is queued, and all that was posted is known to have arrived."""

    def close(self) -> None:
        """Give everything back to the device. May be called twice."""


def choose_device(name: str = "", ip: str = "") -> tuple[Device, Port, Gid]:
    """The device, port and address to use: by name, or by the address of a network interface, else the first usable.

    raises  UnavailableError, with what is wrong with each device and how to mend it
    """
    found = devices()
    if name and all(device.name != name for device in found):
        there = ", ".join(device.name for device in found) or "none"
        raise UsageError(f"there is no RDMA device {name!r}; there are: {there}")
    complaints = []
    choices: list[tuple[bool, int, Device, Port, Gid]] = []
    for number, device in enumerate(found):
        if name and device.name != name:
            continue
        if why := usable(device):
            complaints.append(why)
            continue
        for port in device.ports:
            if not port.active:
                continue
            gid = choose_gid(port, ip)
            if gid is None:
                complaints.append(f"{device.name}: port {port.number} has no address (ip address add)")
            else:
                choices.append((gid.ip != ip, number, device, port, gid))
    if not choices:
        raise UnavailableError(
            "no usable RDMA device: " + ("; ".join(complaints) or "the kernel knows none; nova hw detect tells more")
        )
    _, _, device, port, gid = min(choices, key=lambda choice: choice[:2])
    return device, port, gid


def memory_refused(count: int, cause: str) -> UnavailableError:
    """Registered memory is locked memory: who cannot register is told the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    said = ["no limit" if limit == resource.RLIM_INFINITY else f"{limit} bytes" for limit in (soft, hard)]
    return UnavailableError(
        f"cannot register {count} bytes of memory for RDMA ({cause}): the limit of locked memory is {said[0]} (hard "
        f"{said[1]}), for all connections together; raise it: ulimit -l, LimitMEMLOCK= in a unit, --ulimit memlock=-1 "
        f"for a container"
    )


STATUS = {
    1: "a local length is wrong",
    2: "a local queue pair operation is wrong",
    4: "local memory is not registered for this (local protection error)",
    5: "the queue pair was in the error state, the request was flushed",
    6: "a memory window could not be bound",
    7: "the answer does not fit (bad response)",
    8: "local memory may not be accessed like this",
    9: "the peer cannot make sense of the request",
    10: "the peer does not let us access this memory (remote access error)",
    11: "the peer failed in the operation",
    12: "no acknowledgement within all retries: the peer or the way to it is gone",
    13: "the peer had no receive posted within all retries",
    21: "the queue pair is in a fatal state",
    22: "the peer did not answer in time",
}
"""What a completion's status means to whoever runs the node."""


def status_text(status: int) -> str:
    """What a completion says in words; 0 is none of them."""
    return STATUS.get(status, f"completion status {status}")
