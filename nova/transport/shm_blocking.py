"""Shared memory for threads and scripts: what `nova.transport.blocking` does for ``shm://``.

Who waits looks again and again for a short while, if this process may use more than one processor, and then sleeps on a
futex in the shared memory. Spinning is bounded, and is given up step by step while it is in vain: then it is tried for
a microsecond in every 32nd wait.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Collection
from typing import Any

from nova._native.channel import Channel
from nova._native.shm import DATA, ROOM, Rings, RingStream
from nova.errors import NovaError, PeerError, UnavailableError, UsageError
from nova.transport import handover
from nova.transport.base import Identity, Limits
from nova.transport.blocking import BlockingListener, BlockingStream, new_session
from nova.transport.session import Session

SPIN_US = 20.0
"""How long to spin at most: about what it takes to sleep and be woken, so that at worst it costs as much again."""

PROCESSORS_TO_SPIN = 2
"""On one, who spins keeps the processor from whom he waits for. On two it pays: a round trip takes a fifteenth while
both are free, and no longer while others want them (bench/bench_shm.py), because then spinning is soon given up."""


class ShmStream(RingStream, BlockingStream):
    """A `BlockingStream` through shared memory."""

    def __init__(self, channel: Channel, sock: socket.socket, session: Session, rings: Rings, spin: int) -> None:
        super().__init__(channel, sock, session)


def spin_ns(spin_us: float | None) -> int:
    """What to spin at most: as asked for, else by the processors that this process may use. Raises UsageError."""
    if spin_us is None:
        spin_us = SPIN_US if len(os.sched_getaffinity(0)) >= PROCESSORS_TO_SPIN else 0.0
    if not 0 <= spin_us <= 1e6:
        raise UsageError(f"spin_us is {spin_us}; it is microseconds, from 0 (never spin) to 1000000")
    return int(spin_us * 1000)


def connect(
    address: str,
    session: Session,
    seconds: float,
    *,
    ring_bytes: int = handover.RING_BYTES,
    uids: Collection[int] | None = None,
    spin_us: float | None = None,
) -> ShmStream:
    """A stream to whoever listens on `address`. Arguments and errors as `nova.transport.blocking.connect`."""
    name = handover.socket_name(address)
    spin = spin_ns(spin_us)
    handover.check_ring(ring_bytes)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.settimeout(seconds)
        try:
            sock.connect(name)
            peer = handover.check_user(sock, uids)
            sock.send(handover.greeting(ring_bytes))
            memory, ring_bytes = handover.receive_memory(sock, ring_bytes)
        except TimeoutError:
            raise UnavailableError(f"no answer from {address} within {seconds:g} s") from None
        except (FileNotFoundError, ConnectionRefusedError):
            raise UnavailableError(f"cannot connect to {address}: connection refused, nobody listens there") from None
        except OSError as error:
            raise UnavailableError(f"cannot connect to {address}: {handover.plain(error)}") from None
        return _started(sock, memory, ring_bytes, session, f"{address} (process {peer.pid})", seconds, spin)
    except BaseException:
        sock.close()
        raise


def _started(
    sock: socket.socket, memory: int, ring_bytes: int, session: Session, remote: str, seconds: float, spin: int
) -> ShmStream:
    """The stream on memory that both ends have, after its handshake. The memory's descriptor is closed."""
    sock.settimeout(None)
    try:
        rings = Rings(memory, ring_bytes, initiator=session.initiator, bell=sock.fileno())
    finally:
        os.close(memory)
    try:
        _handshake(rings, sock, session, remote, seconds)
        assert session.channel is not None
        return ShmStream(session.channel, sock, session, rings, spin)
    except BaseException:
        rings.close()
        raise


def _handshake(rings: Rings, sock: socket.socket, session: Session, remote: str, seconds: float) -> None:
    until = time.monotonic() + seconds

    def say() -> None:
        out = b"".join(session.take_handshake())
        while out:
            out = out[rings.write(out) :]
            if out:
                wait(ROOM)

    def wait(wants: int) -> None:
        while not rings.wait(wants, 0.02):
            with contextlib.suppress(BlockingIOError):
                if not sock.recv(64, socket.MSG_DONTWAIT):
                    if wants == DATA and rings.ready:
                        return
                    raise PeerError(f"{remote} hung up without a goodbye")
            if time.monotonic() >= until:
                raise UnavailableError(f"handshake with {remote} not finished within {seconds:g} s")

    try:
        while True:
            say()
            if session.established:
                return
            wait(DATA)
            session.feed(rings.read(session.need), time.monotonic_ns())
    except PeerError:
        with contextlib.suppress(NovaError):
            say()  # why the peer is refused
        raise
    except OSError as error:
        raise PeerError(f"the connection to {remote} broke: {handover.plain(error)}") from None


class ShmListener(BlockingListener):
    """Accepts streams through shared memory. Made by `nova.transport.blocking.listen`."""

    def __init__(
        self,
        address: str,
        identity: Identity,
        key: bytes | None,
        limits: Limits,
        *,
        ring_bytes: int = handover.RING_BYTES,
        uids: Collection[int] | None = None,
        spin_us: float | None = None,
    ) -> None:
        self._ring_bytes = handover.check_ring(ring_bytes)
        self._uids = uids
        self._spin = spin_ns(spin_us)
        super().__init__(handover.bind(address), identity, key, limits)
        self._address = handover.address_of(self._socket)

    @property
    def address(self) -> str:
        return self._address

    @property
    def url(self) -> str:
        return f"shm://{self._address}"

    def _establish(self, sock: socket.socket, name: Any) -> BlockingStream:
        seconds = self._limits.handshake_ms_max / 1000
        try:
            peer = handover.check_user(sock, self._uids)
            sock.settimeout(seconds)
            data = b""
            while len(data) < handover.GREETING.size and (more := sock.recv(handover.GREETING.size - len(data))):
                data += more
            ring_bytes = handover.agree(self._ring_bytes, handover.parse_greeting(data))
            memory = handover.make_memory(ring_bytes)
            try:
                handover.send_memory(sock, memory, ring_bytes)
            except BaseException:
                os.close(memory)
                raise
            session = new_session(self._identity, self._key, self._limits, initiator=False)
            remote = f"{self._address} (process {peer.pid})"
            return _started(sock, memory, ring_bytes, session, remote, seconds, self._spin)
        except BaseException as error:
            if isinstance(error, NovaError):
                handover.send_refusal(sock, error)
            sock.close()
            if isinstance(error, TimeoutError):
                raise UnavailableError("no greeting in time") from None
            if isinstance(error, OSError):
                raise PeerError(f"the connection broke: {handover.plain(error)}") from None
            raise

    def _close(self) -> None:
        handover.unbind(self._socket)


__all__ = ["ShmListener", "ShmStream", "connect"]
