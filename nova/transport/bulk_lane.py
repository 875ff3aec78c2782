"""One stream of a bulk transfer on the sending side, and what the codes of the compiled loops mean."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from nova._native import bulk as native
from nova._native.bulk import BulkStream
from nova.errors import NovaError, PeerError, UnavailableError, UsageError
from nova.transport.bulk_wire import Call, Go, Message, Ready, Refuse, raise_refusal, tune

if TYPE_CHECKING:
    from nova.transport.bulk import BulkSender

ANSWER_SECONDS = 10.0
SO_MAX_PACING_RATE = 47

_BROKEN = {
    native.ETYPE: "a frame of another type",
    native.ESEQUENCE: "a frame out of its turn",
    native.ETRANSFER: "a frame of another transfer",
    native.EOFFSET: "an offset that is not on the grid of chunks, or behind the end",
    native.ELENGTH: "a frame whose length is not that of its chunk",
    native.ECRC: "a frame with a wrong checksum",
    native.EMAC: "a frame that it did not make: its MAC is wrong",
    native.EACK: "an acknowledgement of what was not sent",
    native.EOTHER: "a chunk twice, with different bytes",
    native.EHANGUP: "nothing more, in the middle of a transfer",
}


def error_of(code: int, cause: int, who: str) -> NovaError | None:
    """What a loop's code means; None for a loop that was ended from this side or is done."""
    if code in (0, native.ECUT):
        return None
    if code == native.EFILE:
        return UnavailableError(f"a file of the transfer cannot be read or written: {os.strerror(cause).lower()}")
    if code == native.ESHORT:
        return UsageError("the source became shorter while it was sent; send what does not change")
    if code == native.ESOCKET:
        return PeerError(f"the connection with {who} broke: {os.strerror(cause).lower()}")
    return PeerError(f"{who} sent {_BROKEN.get(code, f'bytes that are no frame ({code})')}")


def is_local(code: int) -> bool:
    """Whether another connection would not help."""
    return code in (native.EFILE, native.ESHORT)


def dial(address: tuple[str, int], seconds: float, *, congestion: str | None = None) -> socket.socket:
    """A connection, or UnavailableError; UsageError for a congestion control that this machine does not have."""
    name = f"{address[0]}:{address[1]}"
    cause: OSError | None = None
    try:
        found = socket.getaddrinfo(*address, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        raise UnavailableError(f"cannot connect to {name}: the name is not known ({error.strerror})") from None
    for family, kind, protocol, _, target in found:
        sock = socket.socket(family, kind, protocol)
        try:
            sock.settimeout(seconds)
            if congestion is not None:
                _set_congestion(sock, congestion)
            sock.connect(target)
            tune(sock)
            return sock
        except OSError as error:
            sock.close()
            cause = error
        except BaseException:
            sock.close()
            raise
    if isinstance(cause, TimeoutError):
        raise UnavailableError(f"no answer from {name} within {seconds:g} s")
    text = (cause.strerror or str(cause)).lower() if cause is not None else "the name has no address"
    raise UnavailableError(f"cannot connect to {name}: {text}")


def _set_congestion(sock: socket.socket, congestion: str) -> None:
    """Before the socket connects: one that began with BBR stays paced, for a third more CPU time."""
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, congestion.encode())
    except OSError:
        raise UsageError(
            f"congestion control {congestion!r} is not one of this machine's; see "
            f"/proc/sys/net/ipv4/tcp_available_congestion_control"
        ) from None


def ask(call: Call, message: Message) -> Message:
    """The answer; a refusal is raised."""
    call.send(message)
    answer = call.recv()
    if isinstance(answer, Refuse):
        raise_refusal(answer, f"node {call.peer.node!r}")
    return answer


class Lane:
    """Connects, opens the transfer, moves chunks until it is cut, asked to leave, broken or done."""

    def __init__(self, sender: BulkSender) -> None:
        self._sender = sender
        self.stream = BulkStream(sender.board)
        self.sock: socket.socket | None = None
        self.error: Exception | None = None
        self.local = False
        self.leaving = False
        self.attached = False
        """True from when it knows what is in place on the other side."""
        self.over = threading.Event()
        self.started_ns = time.monotonic_ns()
        self._given_up = False
        self._thread = threading.Thread(target=self._run, name="nova-bulk-lane", daemon=True)
        self._thread.start()

    @property
    def running(self) -> bool:
        return self.stream.heard_ns > 0 and not self.over.is_set()

    def leave(self) -> None:
        self.leaving = True
        self.stream.leave()

    def cut(self) -> None:
        self._given_up = True
        self.stream.cut()
        sock = self.sock
        if sock is not None and not self.attached:  # it may wait for an answer of the handshake
            with_suppressed(lambda: sock.shutdown(socket.SHUT_RDWR))

    def join(self) -> None:
        self._thread.join()

    def _run(self) -> None:
        sender = self._sender
        sock = None
        try:
            sock = dial(sender.target, ANSWER_SECONDS, congestion=sender.congestion)
            if sender.stream_pace_bps:
                sock.setsockopt(socket.SOL_SOCKET, SO_MAX_PACING_RATE, max(1, sender.stream_pace_bps // 8))
            self.sock = sock
            call = Call(sock, sender.identity, key=sender.key, initiator=True, seconds=ANSWER_SECONDS)
            answer = ask(call, sender.opening())
            if not isinstance(answer, Ready):
                raise PeerError(f"node {call.peer.node!r} answered {type(answer).__name__} where Ready was due")
            sender.attach(self, answer)
            call.send(Go())
            call.release()
            if self._given_up:
                return
            code = self.stream.run(sock.fileno(), *call.keys(True))
            self.local = is_local(code)
            self.error = error_of(code, self.stream.cause, f"node {call.peer.node!r}")
        except (NovaError, OSError) as error:
            self.error = None if self._given_up else error
        finally:
            self.over.set()
            self.sock = None
            if sock is not None:
                sock.close()
            sender.board.poke()


def with_suppressed(act: Callable[[], object]) -> None:
    """Do it; a socket that is gone already is as good."""
    with contextlib.suppress(OSError):
        act()
