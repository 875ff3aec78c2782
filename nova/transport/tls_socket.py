"""TLS on blocking sockets, where OpenSSL holds the socket: the kernel encrypts for it (kTLS), where it can."""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Final

from nova.errors import PeerError
from nova.transport.base import Certified
from nova.transport.tls import HUNG_UP, PLAIN, Refused, Tls, Use, explain

__all__ = ["kernel_tls", "kernel_tls_available", "secure"]

LINGER_S: Final = 1.0
_SOL_TLS: Final = 282
_TLS_TX, _TLS_RX = 1, 2
_CRYPTO_INFO_BYTES = 4  # version and cipher alone; a length that fits neither them nor all of it is an error


def secure(
    sock: socket.socket,
    tls: Tls,
    *,
    server_side: bool,
    remote: str = "",
    use: Use = "peers",
    tell: Callable[[str], bytes] = lambda text: b"",
) -> tuple[ssl.SSLSocket, Certified]:
    """Make the handshake on a connected socket, which belongs to what is returned, or is closed.

    Waits as long as the socket's own time-out lets it.

    remote  what to call the other side; "": by its address
    tell    as for `TlsLayer`
    raises  PeerError with why, which is counted and logged as `Tls.refused` does
    """
    if not remote:
        host, port = sock.getpeername()[:2]
        remote = f"{host}:{port}"
    context = tls.context(server_side, use)
    try:
        if server_side and sock.recv(1, socket.MSG_PEEK) not in (b"\x16", b""):
            sock.sendall(tell("this port speaks TLS 1.3, and you do not: set [tls]"))
            raise PeerError(PLAIN.text, PLAIN)
        # An end of stream without TLS's own word for it may be somebody's cut, so it is an error.
        end = context.wrap_socket(
            sock, server_side=server_side, do_handshake_on_connect=False, suppress_ragged_eofs=False
        )
        sock = end
        end.do_handshake()
    except PeerError as error:
        _hang_up(sock)
        raise PeerError("TLS: " + tls.refused(remote, error.args[1])) from None
    except ssl.SSLError as error:
        _hang_up(sock)
        raise PeerError("TLS: " + tls.refused(remote, explain(error))) from None
    except TimeoutError:
        sock.close()
        late = Refused("late", f"no TLS handshake within {sock.gettimeout() or 0:g} s")
        raise PeerError("TLS: " + tls.refused(remote, late)) from None
    except OSError:
        sock.close()
        raise PeerError("TLS: " + tls.refused(remote, HUNG_UP)) from None
    try:
        return end, tls.certified(end, use)
    except PeerError as error:
        refusal: Refused = error.args[1]
        end.sendall(tell(refusal.text.replace("its certificate", "your certificate")))
        _hang_up(end)
        raise PeerError("TLS: " + tls.refused(remote, refusal)) from None


def kernel_tls(sock: socket.socket) -> tuple[bool, bool]:
    """Whether the kernel encrypts what this socket sends, and decrypts what it receives."""
    found = []
    for way in (_TLS_TX, _TLS_RX):
        try:
            found.append(bool(sock.getsockopt(_SOL_TLS, way, _CRYPTO_INFO_BYTES)))
        except OSError:  # no kTLS on this socket, or no such option in this kernel
            found.append(False)
    return found[0], found[1]


def kernel_tls_available() -> str:
    """Why the kernel can't encrypt for OpenSSL here; empty if it can. Only looks: nothing is loaded."""
    if ssl.OPENSSL_VERSION_INFO < (3, 0):
        return f"{ssl.OPENSSL_VERSION} does not use it; 3.0 does"
    try:
        known = Path("/proc/sys/net/ipv4/tcp_available_ulp").read_text().split()
    except OSError:
        return "this kernel has no upper layers on TCP"
    return "" if "tls" in known else "the kernel module tls is not loaded: modprobe tls"


def _hang_up(sock: socket.socket) -> None:
    """Close so that what was said last arrives: a close with something unread is a reset."""
    with socket.socket(fileno=sock.detach()) as raw, contextlib.suppress(OSError):
        raw.shutdown(socket.SHUT_WR)
        raw.settimeout(LINGER_S)
        for _ in range(64):
            if not raw.recv(65536):
                break
