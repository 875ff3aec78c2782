"""The table of engines: which module serves the scheme of an address.

An engine is a function ``(identity, *, key, limits, tls, **options) -> Transport``. Its module is imported when its
scheme is first asked for, so that a part that is not installed costs nothing. What an engine holds beyond its streams
(threads, rings) it shares among the transports of a loop and lets go with the last stream and listener.
"""

from __future__ import annotations

import importlib
import ipaddress
import os
import socket
import ssl
import time
from typing import Protocol

from nova.errors import UnavailableError, UsageError
from nova.transport.base import Identity, Limits, Tls, Transport


class Engine(Protocol):
    def __call__(
        self, identity: Identity, *, key: bytes | None, limits: Limits | None, tls: Tls | None
    ) -> Transport: ...


ENGINES = {
    "tcp": "nova.transport.tcp:engine",
    "auto": "nova.transport.choose:engine",
    "epoll": "nova.transport.uring:epoll_engine",
    "uring": "nova.transport.uring:engine",
    "rdma": "nova.transport.rdma:engine",
    "shm": "nova.transport.shm:engine",
}


def engine(scheme: str) -> Engine:
    """The engine of a scheme. Raises UsageError for an unknown one, UnavailableError if this install lacks it."""
    place = ENGINES.get(scheme)
    if place is None:
        raise UsageError(f"scheme {scheme!r} is not known; there are {', '.join(ENGINES)}")
    module, _, name = place.partition(":")
    try:
        found: Engine = getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        if error.name != module and not module.startswith(f"{error.name}."):
            raise
        raise UnavailableError(f"{scheme}:// is not part of this nova; tcp:// always is") from None
    return found


def split_url(url: str) -> tuple[str, str]:
    """Scheme and address of ``scheme://address``. Raises UsageError."""
    scheme, separator, address = url.partition("://")
    if not separator or not address:
        raise UsageError(f"{url!r} is not scheme://address; for example tcp://127.0.0.1:7400")
    engine_names = ", ".join(ENGINES)
    if scheme not in ENGINES:
        raise UsageError(f"scheme {scheme!r} of {url!r} is not known; there are {engine_names}")
    return scheme, address


def local_identity() -> Identity:
    """A name for a program that gave none: host and process. Two streams of one process have the same."""
    host = socket.gethostname() or "localhost"
    return Identity(f"{host}-{os.getpid()}", "local", "nova", time.time_ns(), "")


def stays_here(url: str, address: str) -> bool:
    """Whether an address can be reached from this machine only: shared memory, or a loopback address."""
    if url.startswith("shm://"):
        return True
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdigit():
        host = address  # the engine will complain of it
    host = host.removeprefix("[").removesuffix("]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_key(url: str, address: str, key: bytes | None, tls: Tls | None, *, server: bool) -> None:
    """Raises UsageError if strangers could take part: without a key a stream stays on this machine."""
    if key is not None or stays_here(url, address):
        return
    if tls is not None and tls.context(server).verify_mode is ssl.CERT_REQUIRED:
        return
    raise UsageError(
        f"{url} is not on this machine, and there is no key: give both ends key=, the same 32 random bytes or more, "
        f"or tls= with certificates on both sides"
    )
