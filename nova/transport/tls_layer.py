"""TLS between a socket and whatever protocol stands on it, on asyncio.

`TlsLayer.over(protocol)` is a protocol for the socket. It makes the handshake, then tells the inner protocol of a
connection, hands it plaintext, and takes plaintext from it: to the inner protocol it is a transport like any other.
asyncio's own `ssl=` would do, but for what operators need: it keeps to itself why a handshake failed, and goes on with
the certificate that it began with.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
from collections.abc import Callable
from typing import Any, Final, cast

from nova.errors import PeerError
from nova.transport.base import Certified
from nova.transport.tls import HUNG_UP, PLAIN, PLAIN_HTTP, Refused, Tls, Use, explain

__all__ = ["TlsLayer", "TlsProtocol"]

log = logging.getLogger("nova.transport")

HANDSHAKES_MAX: Final = 256
LINGER_S: Final = 1.0
RECORD_BYTES: Final = 16 * 1024
READ_BYTES: Final = 256 * 1024
HANDSHAKE_RECORD, ALERT_RECORD = 22, 21


class TlsLayer:
    """TLS for the connections of one transport.

    use          what the port is for; decides who may come
    handshake_s  a handshake that takes longer is given up
    tell         a refusal in the language of what stands above TLS: for who comes without TLS, or with a name that has
                 no place here, of which TLS itself has no word
    """

    def __init__(
        self,
        tls: Tls,
        *,
        use: Use = "peers",
        handshake_s: float = 5.0,
        tell: Callable[[str], bytes] = lambda text: b"",
        handshakes_max: int = HANDSHAKES_MAX,
    ) -> None:
        self.tls = tls
        self.use = use
        self.handshake_s = handshake_s
        self.tell = tell
        self._handshakes_max = handshakes_max
        self._shaking: set[TlsProtocol] = set()
        # One for all connections: it is empty again whenever the loop has its turn.
        self.plaintext = memoryview(bytearray(READ_BYTES))
        self._closed = False

    def over(
        self,
        inner: asyncio.Protocol,
        *,
        server_side: bool,
        remote: str = "",
        done: Callable[[Exception | None], None] | None = None,
    ) -> TlsProtocol:
        """A protocol for a socket, below `inner`.

        remote  what to call the other side; "": by its address
        done    told once, when the handshake is over: None, or why it failed
        """
        return TlsProtocol(self, inner, server_side, remote, done)

    def begins(self, protocol: TlsProtocol) -> bool:
        """False: too many handshakes are under way, or the transport closes."""
        if self._closed or len(self._shaking) >= self._handshakes_max:
            why = "closing" if self._closed else "too many handshakes under way"
            self.tls.quiet.warning(("full", why), "a connection is refused: %s", why)
            return False
        self._shaking.add(protocol)
        return True

    def ended(self, protocol: TlsProtocol) -> None:
        self._shaking.discard(protocol)

    def close(self) -> None:
        """Give up the handshakes that are under way, and begin no more."""
        self._closed = True
        for protocol in list(self._shaking):
            protocol.abort()


class TlsProtocol(asyncio.Protocol):
    """One connection; see `TlsLayer.over`."""

    def __init__(
        self,
        layer: TlsLayer,
        inner: asyncio.Protocol,
        server_side: bool,
        remote: str,
        done: Callable[[Exception | None], None] | None,
    ) -> None:
        self.certified: Certified | None = None
        self.inner: asyncio.BaseProtocol = inner
        self.raw: asyncio.Transport | None = None
        self._layer = layer
        self._server_side = server_side
        self._remote = remote
        self._done = done
        self.context = context = layer.tls.context(server_side, layer.use)
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.end = context.wrap_bio(self._in, self._out, server_side=server_side)
        self._timer: asyncio.TimerHandle | None = None
        self._shaken = False
        self._heard = False
        self._over = False  # nothing more is handed on or taken
        self._closing = False
        self._error: Exception | None = None
        self._upper: _TlsTransport | None = None

    # -- what the socket's transport calls -----------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.raw = cast(asyncio.Transport, transport)
        name = transport.get_extra_info("peername")
        if not self._remote:
            self._remote = _address(name) if isinstance(name, tuple) else "an unknown peer"
        if self._server_side and not self._layer.begins(self):
            self._over = True
            self.raw.abort()
            return
        self._timer = asyncio.get_running_loop().call_later(self._layer.handshake_s, self._late)
        self._shake()

    def data_received(self, data: bytes) -> None:
        if self._over:
            return
        if not self._heard:
            self._heard = True
            if data[0] not in (HANDSHAKE_RECORD, ALERT_RECORD):
                said = "this port speaks TLS 1.3, and you do not: "
                http = self._layer.use == "http"
                self._fail(
                    PLAIN_HTTP if http else PLAIN, self._layer.tell(said + ("ask https://" if http else "set [tls]"))
                )
                return
        self._in.write(data)
        if not self._shaken:
            self._shake()
        if self._shaken and not self._over:
            self._read()

    def eof_received(self) -> None:
        return None  # closes the socket: TLS 1.3 can be closed in one direction, what stands on it can't

    def connection_lost(self, error: Exception | None) -> None:
        if not self._shaken and not self._over:
            self._fail(HUNG_UP)
        self._over = True
        self._ended(self._error)
        self._layer.ended(self)
        if self._shaken:
            self.inner.connection_lost(self._error or error)

    def pause_writing(self) -> None:
        if self._shaken:
            self.inner.pause_writing()

    def resume_writing(self) -> None:
        if self._shaken:
            self.inner.resume_writing()

    # -- what stands above calls ---------------------------------------------------------------------------------

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self._over or self._closing or not len(data):
            return
        assert self.raw is not None
        if self.raw.is_closing():
            return
        try:
            self.end.write(data)
        except ssl.SSLError as error:
            self._broken(explain(error))
            return
        self.raw.write(self._out.read())

    def close(self) -> None:
        """Once everything written has left."""
        if self._closing:
            return
        self._closing = True
        if self.raw is not None and not self.raw.is_closing():
            if self._shaken:
                with contextlib.suppress(ssl.SSLError):  # it wants the other side's word, too; ours will do
                    self.end.unwrap()
                self.raw.write(self._out.read())
            self.raw.close()

    def abort(self) -> None:
        self._over = True
        if self.raw is not None:
            self.raw.abort()

    @property
    def closing(self) -> bool:
        return self._closing or self._over or self.raw is None or self.raw.is_closing()

    # -- inside --------------------------------------------------------------------------------------------------

    def _shake(self) -> None:
        assert self.raw is not None
        try:
            self.end.do_handshake()
        except ssl.SSLWantReadError:
            self._flush()
            return
        except ssl.SSLError as error:
            self._flush()  # the alert
            self._fail(explain(error))
            return
        self._flush()
        layer = self._layer
        if layer.use != "http":
            try:
                self.certified = layer.tls.certified(self.end, layer.use)
            except PeerError as error:
                refusal: Refused = error.args[1]
                self.end.write(layer.tell(refusal.text.replace("its certificate", "your certificate")))
                self._fail(refusal, self._out.read())
                return
        self._shaken = True
        self._ended(None)
        layer.ended(self)
        self._upper = _TlsTransport(self)
        self.inner.connection_made(self._upper)

    def _flush(self) -> None:
        if self._out.pending and self.raw is not None:
            self.raw.write(self._out.read())

    def _read(self) -> None:
        """Hand on what has arrived."""
        end, view = self.end, self._layer.plaintext
        at, over, error = 0, False, None
        while True:
            try:
                # One record at most. With a buffer it is their number that is returned.
                count = cast(int, end.read(READ_BYTES - at, cast(bytearray, view[at:])))
            except ssl.SSLWantReadError:
                break
            except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
                over = True
                break
            except ssl.SSLError as broken:
                over, error = True, broken
                break
            if count == 0:
                over = True
                break
            at += count
            if not self._in.pending and not end.pending():
                break  # as asking once more would find out, by way of an exception
            if READ_BYTES - at < RECORD_BYTES:
                self._hand_on(view[:at])
                at = 0
                if self._over:
                    return
        if at:
            self._hand_on(view[:at])
        if self._over:
            return
        self._flush()  # answers of TLS itself: to a change of keys, say
        if error is not None:
            self._broken(explain(error))
        elif over and self.raw is not None:
            self.raw.close()

    def _hand_on(self, data: memoryview) -> None:
        inner = self.inner
        if isinstance(inner, asyncio.BufferedProtocol):
            while data:
                room = memoryview(inner.get_buffer(len(data)))
                count = min(len(room), len(data))
                room[:count] = data[:count]
                inner.buffer_updated(count)
                data = data[count:]
        else:
            cast(asyncio.Protocol, inner).data_received(bytes(data))

    def _late(self) -> None:
        self._timer = None
        self._fail(Refused("late", f"no TLS handshake within {self._layer.handshake_s:g} s"))

    def _fail(self, refusal: Refused, last: bytes = b"") -> None:
        """The handshake failed: say so on this side, and with `last` on the other."""
        self._error = PeerError("TLS: " + self._layer.tls.refused(self._remote, refusal))
        self._over = True
        self._ended(self._error)
        raw = self.raw
        assert raw is not None
        if last:
            raw.write(last)
        if raw.is_closing() or refusal.cause == "late" or not raw.can_write_eof():
            raw.close()
            return
        # What the other side sends meanwhile would turn a close into a reset, which may overtake why.
        raw.write_eof()
        self._timer = asyncio.get_running_loop().call_later(LINGER_S, raw.abort)

    def _broken(self, refusal: Refused) -> None:
        """After the handshake; it is then that a TLS 1.3 client hears what the server thinks of its certificate."""
        if refusal.theirs:
            self._error = PeerError("TLS: " + self._layer.tls.refused(self._remote, refusal))
        else:
            self._error = PeerError(f"TLS: {self._layer.tls.line(self._remote, refusal)}")
        assert self.raw is not None
        self._over = True
        self.raw.abort()

    def _ended(self, error: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._done is not None:
            done, self._done = self._done, None
            done(error)


class _TlsTransport(asyncio.Transport):
    """What the protocol above TLS takes for its socket."""

    def __init__(self, below: TlsProtocol) -> None:
        super().__init__()
        assert below.raw is not None
        self._below = below
        self._raw = below.raw

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        below = self._below
        if name in ("sslcontext", "ssl_object", "nova_certified"):
            return {"sslcontext": below.context, "ssl_object": below.end, "nova_certified": below.certified}[name]
        return self._raw.get_extra_info(name, default)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self._below.write(data)

    def close(self) -> None:
        self._below.close()

    def abort(self) -> None:
        self._below.abort()

    def is_closing(self) -> bool:
        return self._below.closing

    def can_write_eof(self) -> bool:
        return False

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._below.inner = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self._below.inner

    def pause_reading(self) -> None:
        self._raw.pause_reading()

    def resume_reading(self) -> None:
        self._raw.resume_reading()

    def is_reading(self) -> bool:
        return self._raw.is_reading()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._raw.set_write_buffer_limits(high, low)

    def get_write_buffer_size(self) -> int:
        return self._raw.get_write_buffer_size()

    def get_write_buffer_limits(self) -> tuple[int, int]:
        return self._raw.get_write_buffer_limits()


def _address(name: tuple[Any, ...]) -> str:
    host, port = name[0], name[1]
    return f"[{host}]:{port}" if ":" in str(host) else f"{host}:{port}"
