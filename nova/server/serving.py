"""The socket and the server under the HTTP API."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from typing import Any

import msgspec
import uvicorn
from litestar import Litestar

from nova.errors import (
    ConfigError,
)
from nova.server.addresses import split_address
from nova.transport.tls import Tls
from nova.transport.tls_layer import TlsLayer


def bind(address: str) -> socket.socket:
    """A socket bound to HOST:PORT, not yet listening. Raises ConfigError if the address cannot be had."""
    host, port = split_address(address)
    try:
        family, kind, protocol, _, target = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        sock = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ConfigError(f"http {address}: {host} is no address of this machine ({error.strerror})") from None
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(target)
        sock.listen(1024)  # here, so that a port in use is found now
    except OSError as error:
        sock.close()
        mend = "stop the program that uses it or choose another port with --http"
        raise ConfigError(f"http {address}: cannot listen there ({error.strerror}); {mend}") from None
    return sock


def tls_layer(tls: Tls) -> TlsLayer:
    """TLS below the HTTP API."""
    return TlsLayer(tls, use="http", tell=_refusal)


def _refusal(text: str) -> bytes:
    body = msgspec.json.encode({"code": "bad_request", "error": text})
    head = "HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\nconnection: close\r\n"
    return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body


class Server(uvicorn.Server):
    """uvicorn without its hands on the signals: the node decides when to stop (set `should_exit`)."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def make_server(app: Litestar, layer: TlsLayer | None = None) -> Server:
    """A server for `app`; run it with ``await server.serve(sockets=[bind(address)])``.

    layer  of `tls_layer`, for HTTPS; None: plain
    """
    if layer is None:
        http: Any = "httptools"
    else:
        from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

        def http(**arguments: Any) -> asyncio.Protocol:  # where uvicorn would make the protocol itself
            return layer.over(HttpToolsProtocol(**arguments), server_side=True)

    return Server(
        uvicorn.Config(
            app,
            http=http,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            backlog=1024,
            timeout_keep_alive=75,
            timeout_graceful_shutdown=2,
            h11_max_incomplete_event_size=64 * 1024,
        )
    )
