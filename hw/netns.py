"""Network namespaces for tests: sockets that are made inside of one stay there, wherever they are used."""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import subprocess
from collections.abc import Iterator

CLONE_NEWNET = 0x40000000
ETH_P_ALL = 3
SO_RCVBUFFORCE = 33  # beyond the limit of the system, as root may
SOCKET_BYTES = 16 << 20


def sh(command: str, *, check: bool = True, input: str | None = None) -> str:
    """Run one command of iproute2 and its like; what it printed. A failure shows what it said."""
    done = subprocess.run(command, shell=True, text=True, capture_output=True, input=input, timeout=60, check=False)
    if check and done.returncode:
        raise AssertionError(f"{command!r} ended with {done.returncode}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


@contextlib.contextmanager
def inside(name: str) -> Iterator[None]:
    """This thread is in the namespace for so long: what it makes meanwhile belongs there."""
    with open("/proc/thread-self/ns/net") as home, open(f"/run/netns/{name}") as there:
        _enter(there.fileno())
        try:
            yield
        finally:
            _enter(home.fileno())


def _enter(file: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(file, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


@contextlib.contextmanager
def namespace(name: str) -> Iterator[str]:
    """A namespace of its own, with nothing but its loopback."""
    sh(f"ip netns delete {name}", check=False)
    sh(f"ip netns add {name}")
    try:
        sh(f"ip -n {name} link set lo up")
        yield name
    finally:
        sh(f"ip netns delete {name}")


class Namespaces:
    """Two namespaces, `left` (10.9.0.1) and `right` (10.9.0.2), joined by a pair of interfaces, left0 and right0."""

    left, right = "nova-left", "nova-right"
    left_address, right_address = "10.9.0.1", "10.9.0.2"

    def __enter__(self) -> Namespaces:
        with contextlib.ExitStack() as stack:
            stack.enter_context(namespace(self.left))
            stack.enter_context(namespace(self.right))
            sh(f"ip link add left0 netns {self.left} type veth peer name right0 netns {self.right}")
            for name, end, address in self.ends:
                sh(f"ip -n {name} address add {address}/24 dev {end}")
                sh(f"ip -n {name} link set {end} up")
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def ends(self) -> list[tuple[str, str, str]]:
        return [(self.left, "left0", self.left_address), (self.right, "right0", self.right_address)]


@contextlib.contextmanager
def captured(name: str, interface: str) -> Iterator[list[bytes]]:
    """Frames that the interface has seen; the list is filled when the block ends."""
    frames: list[bytes] = []
    with inside(name):
        tap = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
    with tap:
        tap.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, SOCKET_BYTES)
        tap.setblocking(False)
        yield frames
        with contextlib.suppress(BlockingIOError):
            while True:
                data, address = tap.recvfrom(65535)
                if address[0] == interface:
                    frames.append(data)
