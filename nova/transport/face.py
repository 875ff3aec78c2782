"""`connect` and `listen`: streams by address, whatever the engine.

    async with await nova.transport.listen("tcp://127.0.0.1:0") as listener:
        stream = await nova.transport.connect(listener.url)
        stream.send(b"hello")
        served = await listener.accept()
        with await served.recv() as message:
            ...

For threads and scripts `nova.transport.blocking` has the same words.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, Self

from nova.errors import UnavailableError, UsageError
from nova.transport.base import Identity, Limits, Stream, Tls, Transport
from nova.transport.engines import check_key, engine, local_identity, split_url

ACCEPTED_MAX = 128
"""Streams that wait to be taken by `Listener.accept`; more are refused with a reason."""


async def connect(
    url: str,
    *,
    key: bytes | None = None,
    identity: Identity | None = None,
    limits: Limits | None = None,
    tls: Tls | None = None,
    timeout: float | None = None,
    **options: Any,
) -> Stream:
    """A stream to whoever listens on `url`, both sides proved.

    key       what both ends hold, 32 random bytes or more; without one a stream stays on this machine
    identity  what the other side learns; by default what the certificate of `tls` says, else host and process
    timeout   seconds; by default the handshake's limit is the only one
    options   further arguments of the engine
    raises    UsageError; UnavailableError if nobody answers; PeerError if the other side is not who it should be
    """
    scheme, address = split_url(url)
    check_key(url, address, key, tls, server=False)
    transport = engine(scheme)(identity or _own(tls), key=key, limits=limits, tls=tls, **options)
    try:
        async with asyncio.timeout(timeout):
            return await transport.connect(address)
    except TimeoutError:
        raise UnavailableError(f"no stream to {url} within {timeout:g} s") from None


class Listener:
    """Accepts streams on one address. Made by `listen`; closing it ends the streams that it accepted."""

    def __init__(self, scheme: str, transport: Transport, serve: Callable[[Stream], Awaitable[None]] | None) -> None:
        self._scheme = scheme
        self._transport = transport
        self._serve = serve
        self._accepted: asyncio.Queue[Stream | None] = asyncio.Queue()
        self._address = ""
        self._closed = False

    async def _open(self, address: str) -> None:
        self._address = await self._transport.listen(address, self._serve or self._keep)

    async def _keep(self, stream: Stream) -> None:
        if self._accepted.qsize() >= ACCEPTED_MAX:
            await stream.close(f"{ACCEPTED_MAX} streams wait to be accepted here; come again")
        else:
            self._accepted.put_nowait(stream)

    @property
    def address(self) -> str:
        """Where it listens, with the port that was chosen."""
        return self._address

    @property
    def url(self) -> str:
        return f"{self._scheme}://{self._address}"

    async def accept(self) -> Stream:
        """The next stream. Raises UsageError once the listener is closed, or if it was given `serve`."""
        if self._serve is not None:
            raise UsageError(f"{self.url} hands its streams to serve=; accept() has none")
        stream = None if self._closed and self._accepted.empty() else await self._accepted.get()
        if stream is None:
            self._accepted.put_nowait(None)  # for whoever else waits
            raise UsageError(f"{self.url} is closed; listen again to accept")
        return stream

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Stream:
        try:
            return await self.accept()
        except UsageError:
            if self._closed:
                raise StopAsyncIteration from None
            raise

    async def close(self) -> None:
        """Accept no more; streams that were accepted send what is queued and say goodbye. May be called twice."""
        if not self._closed:
            self._closed = True
            self._accepted.put_nowait(None)
        await self._transport.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


async def listen(
    url: str,
    serve: Callable[[Stream], Awaitable[None]] | None = None,
    *,
    key: bytes | None = None,
    identity: Identity | None = None,
    limits: Limits | None = None,
    tls: Tls | None = None,
    **options: Any,
) -> Listener:
    """Accept streams on `url` (port 0 picks one).

    serve     gets each stream in a task of its own; without it they wait for `Listener.accept`
    raises    UsageError if the address cannot be used, or if anybody could reach it and there is no key

    The other arguments are those of `connect`.
    """
    scheme, address = split_url(url)
    check_key(url, address, key, tls, server=True)
    transport = engine(scheme)(identity or _own(tls), key=key, limits=limits, tls=tls, **options)
    listener = Listener(scheme, transport, serve)
    await listener._open(address)
    return listener


def _own(tls: Tls | None) -> Identity:
    return local_identity() if tls is None else tls.identity()


__all__ = ["Listener", "connect", "listen"]
