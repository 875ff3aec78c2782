"""Chooses the engine that carries a node's streams, explains the choice, and changes it when an engine fails.

uring, epoll and tcp put the same bytes on the wire, so each side chooses for itself, by what its own kernel and build
have: io_uring where it is allowed, else the same engine on epoll, else asyncio. An engine that fails while it runs is
left for the next one; its streams are lost, as with any broken connection, its listeners are opened again. After a
while it is tried anew, and when it can be had, new streams and the listeners go back to it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from typing import Any

import msgspec

from nova.errors import UsageError
from nova.transport.base import Identity, Limits, Stream, Transport
from nova.transport.engine import EngineError, Kind, probe
from nova.transport.tcp import TcpTransport
from nova.transport.uring import EngineTransport, EpollTransport, UringTransport

__all__ = ["AutoTransport", "Choice", "Option", "engine", "explain"]

logger = logging.getLogger("nova.transport")

SCHEMES = ("uring", "epoll", "tcp")
RETRY_SECONDS = 60.0


class Option(msgspec.Struct, frozen=True):
    """One engine: usable, or why not and what to do about it."""

    scheme: str
    usable: bool
    cause: str = ""
    mend: str = ""


class Choice(msgspec.Struct, frozen=True):
    """What `auto` takes here, and all that it looked at, the best first."""

    chosen: str
    reason: str
    options: list[Option]


def _missing(scheme: str) -> str:
    """Why an engine cannot be had here; empty if it can."""
    kinds = {"uring": Kind.URING, "epoll": Kind.EPOLL}
    return probe(kinds[scheme]) if scheme in kinds else ""


def explain(missing: Callable[[str], str] = _missing) -> Choice:
    """Ask the kernel and this build, and say what `auto` makes of it. Takes less than a millisecond."""
    options = []
    for scheme in SCHEMES:
        cause, _, mend = missing(scheme).partition(": ")
        options.append(Option(scheme, not cause, cause, mend))
    chosen = next(option.scheme for option in options if option.usable)
    lacking = [f"{option.scheme} is not: {option.cause}" for option in options[: SCHEMES.index(chosen)]]
    return Choice(chosen, "; ".join([f"{chosen} is the first that is usable", *lacking]), options)


class _Listener:
    __slots__ = ("accept", "address", "scheme")

    def __init__(self, address: str, accept: Callable[[Stream], Awaitable[None]], scheme: str) -> None:
        self.address = address
        self.accept = accept
        self.scheme = scheme


class AutoTransport:
    """Streams by the best engine that works now. See the module; arguments are those of EngineTransport.

    retry_s  after how long an engine that failed is tried again
    missing  why an engine cannot be had, by scheme; the kernel is asked unless a test answers
    """

    def __init__(
        self,
        identity: Identity,
        *,
        key: bytes | None,
        limits: Limits | None = None,
        send_delay: Callable[[Identity], float] | None = None,
        retry_s: float = RETRY_SECONDS,
        missing: Callable[[str], str] = _missing,
    ) -> None:
        common: dict[str, Any] = {"key": key, "limits": limits, "send_delay": send_delay}
        self._makers: dict[str, Callable[[], Transport]] = {
            "uring": lambda: UringTransport(identity, **common, on_failed=partial(self._failed, "uring")),
            "epoll": lambda: EpollTransport(identity, **common, on_failed=partial(self._failed, "epoll")),
            "tcp": lambda: TcpTransport(identity, **common),
        }
        self._missing = missing
        self._retry_s = retry_s
        self._made: dict[str, Transport] = {}
        self._down: set[str] = set()
        self._listeners: list[_Listener] = []
        self._timer: asyncio.TimerHandle | None = None
        self._moving: asyncio.Task[None] | None = None
        self._asked = False
        self._closed = False

    @property
    def scheme(self) -> str:
        """The engine that the next stream is made by."""
        return next(self._usable())

    async def listen(self, address: str, accept: Callable[[Stream], Awaitable[None]]) -> str:
        self._open("listen")
        for scheme in self._usable():
            try:
                bound = await self._transport(scheme).listen(address, accept)
            except EngineError as error:
                self._give_up(scheme, str(error))
                continue
            self._listeners.append(_Listener(bound, accept, scheme))
            return bound
        raise AssertionError("tcp raises no EngineError")

    async def connect(self, address: str) -> Stream:
        self._open("connect")
        for scheme in self._usable():
            try:
                return await self._transport(scheme).connect(address)
            except EngineError as error:
                self._give_up(scheme, str(error))
        raise AssertionError("tcp raises no EngineError")

    async def close(self) -> None:
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        if self._moving is not None:
            self._moving.cancel()
            await asyncio.gather(self._moving, return_exceptions=True)
        await asyncio.gather(*(transport.close() for transport in self._made.values()))

    # -- inside --------------------------------------------------------------------------------------------------

    def _open(self, what: str) -> None:
        if self._closed:
            raise UsageError(f"this transport is closed; make a new one to {what}")
        if not self._asked:
            self._asked = True
            choice = explain(self._missing)
            logger.info("transport: %s", choice.reason)
            self._down = {option.scheme for option in choice.options if not option.usable}

    def _usable(self) -> Iterator[str]:
        return (scheme for scheme in SCHEMES if scheme not in self._down)

    def _transport(self, scheme: str) -> Transport:
        if scheme not in self._made:
            self._made[scheme] = self._makers[scheme]()
        return self._made[scheme]

    def _give_up(self, scheme: str, cause: str) -> None:
        if scheme not in self._down:
            self._down.add(scheme)
            logger.warning(
                "transport: %s goes on, %s is tried again in %g s: %s", self.scheme, scheme, self._retry_s, cause
            )
        if self._timer is None and not self._closed:
            self._timer = asyncio.get_running_loop().call_later(self._retry_s, self._try_again)

    def _failed(self, scheme: str, cause: str) -> None:
        if not self._closed:
            self._give_up(scheme, cause)
            self._move()

    def _try_again(self) -> None:
        self._timer = None
        for scheme in sorted(self._down, key=SCHEMES.index):
            if cause := self._missing(scheme):
                self._give_up(scheme, cause)
            else:
                self._down.discard(scheme)
                logger.info("transport: %s is back", scheme)
        self._move()

    def _move(self) -> None:
        if self._moving is None or self._moving.done():
            self._moving = asyncio.get_running_loop().create_task(self._move_listeners())

    async def _move_listeners(self) -> None:
        """Have every listener at the best engine. Who calls in the moment between two is refused, and calls again."""
        for listener in self._listeners:
            for scheme in self._usable():
                if scheme == listener.scheme:
                    break
                old = self._made[listener.scheme]
                if isinstance(old, EngineTransport):
                    await old.unlisten(listener.address)
                elif listener.scheme not in self._down:
                    break  # asyncio cannot stop to listen and keep its streams
                try:
                    await self._transport(scheme).listen(listener.address, listener.accept)
                except (EngineError, UsageError) as error:
                    self._give_up(scheme, str(error))
                    continue
                listener.scheme = scheme
                break


def engine(identity: Identity, *, key: bytes | None, limits: Limits | None = None, tls: object = None) -> Transport:
    """The engine of ``auto://``. With `tls` it is tcp, the only one that carries it."""
    if tls is not None:
        more: dict[str, Any] = {"tls": tls}
        return TcpTransport(identity, key=key, limits=limits, **more)
    return AutoTransport(identity, key=key, limits=limits)
