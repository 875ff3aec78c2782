"""The socket and the server under the HTTP API."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

import uvicorn
from litestar import Litestar

from nova.errors import (
    ConfigError,
)
from nova.server.addresses import split_address


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


class Server(uvicorn.Server):
    """uvicorn without its hands on the signals: the node decides when to stop (set `should_exit`)."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def make_server(app: Litestar) -> Server:
    """A server for `app`; run it with ``await server.serve(sockets=[bind(address)])``."""
    return Server(
        uvicorn.Config(
            app,
            http="httptools",
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
