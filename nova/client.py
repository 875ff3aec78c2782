"""A small client of a node's HTTP API: keep-alive connections, pipelined requests, server-sent events.

It exists for load (the demonstration, benchmarks) and for the dashboard, where one process talks to several nodes at
once. Requests on one connection are answered in their order (RFC 9112, section 9.3.2); a connection that breaks fails
the requests that are out on it and is opened again by the next one. Nothing is repeated here: only the caller knows
whether a write may be made twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections import deque
from collections.abc import AsyncIterator
from typing import Any, NamedTuple, cast
from urllib.parse import quote, urlencode, urlsplit

import msgspec

from nova.errors import KeyNotFoundError, NovaError, PeerError, UnavailableError, UsageError
from nova.transport.tls import explain_http, http_client

HEAD_BYTES_MAX = 64 * 1024
ANSWER_BYTES_MAX = 256 * 1024 * 1024

encode = msgspec.json.Encoder().encode


class Answer(NamedTuple):
    """Status code and undecoded body."""

    status: int
    body: bytes

    def json(self) -> Any:
        """The body. Raises PeerError if it is no JSON, so that a proxy's error page gives one clear line."""
        try:
            return msgspec.json.decode(self.body)
        except msgspec.DecodeError as error:
            raise PeerError(f"the answer (status {self.status}) is no JSON: {error}; is this a nova node?") from None


class Problem(msgspec.Struct):
    """The body of an error."""

    code: str = "error"
    error: str = ""


class Client:
    """One node.

    url          http://HOST:PORT or https://HOST:PORT
    token        bearer token, if the node asks for one
    connections  requests are spread over so many connections, round robin
    timeout_s    after so long without its answer a request raises UnavailableError
    tls          for https://: `nova.transport.tls.http_client` makes one; None: the authorities of the system

    Usable from one event loop. `close` ends the connections; may be called twice.
    """

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        connections: int = 1,
        timeout_s: float = 30.0,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        parts = urlsplit(url if "//" in url else f"http://{url}")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UsageError(f"node address {url!r} is not of the form http://HOST:PORT")
        try:
            port = parts.port or (443 if parts.scheme == "https" else 80)
        except ValueError:
            raise UsageError(f"node address {url!r} has no valid port; ports are 1 to 65535") from None
        self.url = f"{parts.scheme}://{parts.netloc}"
        self._host, self._port = parts.hostname, port
        self._tls = None
        if parts.scheme == "https":
            self._tls = tls or http_client()
        self._timeout_s = timeout_s
        secret = f"authorization: Bearer {token}\r\n" if token else ""
        if "\n" in secret.rstrip("\r\n") or "\r" in secret.rstrip("\r\n"):
            raise UsageError("the token holds a line break; give it without")
        self._fixed = f" HTTP/1.1\r\nhost: {parts.netloc}\r\n{secret}".encode("latin-1")
        self._lanes: list[_Connection | None] = [None] * max(1, connections)
        self._opening = [asyncio.Lock() for _ in self._lanes]
        self._next = 0

    async def request(self, method: str, target: str, body: bytes = b"", *, lane: int | None = None) -> Answer:
        """Send one request; requests that are made without waiting are pipelined. Raises UnavailableError.

        lane  which connection; None: the next in turn. Requests of one lane are taken by the node in their order
        """
        if lane is None:
            lane = self._next = (self._next + 1) % len(self._lanes)
        connection = self._lanes[lane]
        if connection is None or connection.closed:
            async with self._opening[lane]:
                connection = self._lanes[lane]
                if connection is None or connection.closed:
                    connection = self._lanes[lane] = await self._open()
        future = connection.send(self._request_bytes(method, target, body))
        try:
            async with asyncio.timeout(self._timeout_s):
                return await future
        except TimeoutError:
            reason = f"{self.url} did not answer {method} {target} within {self._timeout_s:g} s"
            connection.abort(reason)
            raise UnavailableError(reason) from None

    async def call(self, method: str, target: str, value: Any = None) -> Any:
        """Request with JSON in and out. Raises UnavailableError, UsageError (4xx) or KeyNotFoundError (404)."""
        answer = await self.request(method, target, b"" if value is None else encode(value))
        if answer.status >= 400:
            raise problem(self.url, method, target, answer)
        return answer.json()

    async def get(self, target: str, **query: Any) -> Any:
        """GET as JSON; query parameters that are None are left out."""
        given = {name: value for name, value in query.items() if value is not None}
        return await self.call("GET", f"{target}?{urlencode(given)}" if given else target)

    async def watch(self, prefix: str = "", since: int | None = None) -> AsyncIterator[bytes]:
        """The data of each change, on a connection of its own; ends when the node ends it. Raises UnavailableError."""
        query = urlencode({"prefix": prefix} | ({} if since is None else {"since": since}))
        reader, writer = await self._streams()
        try:
            head = self._request_bytes("GET", f"/v1/watch?{query}", b"")
            writer.write(head)
            status, chunked = await _read_head(reader)
            if status != 200:
                raise UnavailableError(f"{self.url} answered {status} to a watch of {prefix!r}")
            async for line in _lines(reader, chunked):
                if line.startswith(b"data:"):
                    yield line[5:].strip()
        finally:
            writer.close()

    async def close(self) -> None:
        for connection in self._lanes:
            if connection is not None:
                connection.abort("the client was closed")
        self._lanes = [None] * len(self._lanes)

    def _request_bytes(self, method: str, target: str, body: bytes) -> bytes:
        content = b"content-type: application/json\r\n" if body else b""
        return b"%s %s%s%scontent-length: %d\r\n\r\n%s" % (
            method.encode(), target.encode("ascii"), self._fixed, content, len(body), body
        )  # fmt: skip

    async def _open(self) -> _Connection:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._timeout_s):
                _, connection = await loop.create_connection(
                    lambda: _Connection(self.url), self._host, self._port, ssl=self._tls
                )
        except (OSError, TimeoutError) as error:
            raise self._unreachable(error) from None
        return connection

    async def _streams(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        try:
            async with asyncio.timeout(self._timeout_s):
                return await asyncio.open_connection(self._host, self._port, ssl=self._tls, limit=1 << 24)
        except (OSError, TimeoutError) as error:
            raise self._unreachable(error) from None

    def _unreachable(self, error: Exception) -> UnavailableError:
        reason = explain_http(error) or "no answer in time"
        return UnavailableError(f"cannot reach {self.url}: {reason}; is the node running there?")


def key_target(key: str) -> str:
    """The request target of a key."""
    return "/v1/keys/" + quote(key, safe="/~!$&'()*+,;=:@")


def problem(url: str, method: str, target: str, answer: Answer) -> NovaError:
    """The error that an answer of 400 or more says."""
    try:
        said = msgspec.json.decode(answer.body, type=Problem)
    except msgspec.DecodeError:
        said = Problem(error=answer.body[:200].decode("utf-8", "replace"))
    text = f"{url} answered {answer.status} to {method} {target.partition('?')[0]}: {said.error or said.code}"
    kind = KeyNotFoundError if answer.status == 404 else UsageError if answer.status < 500 else UnavailableError
    error = kind(text)
    error.code = said.code
    return error


class _Connection(asyncio.Protocol):
    """One connection: answers are matched to requests by their order."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._waiting: deque[asyncio.Future[Answer]] = deque()
        self._buffer = bytearray()
        self._transport: asyncio.Transport | None = None
        self._head: _Head | None = None
        self.closed = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one by its methods only

    def send(self, request: bytes) -> asyncio.Future[Answer]:
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        assert self._transport is not None
        self._waiting.append(future)
        self._transport.write(request)
        return future

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        try:
            while self._waiting and (answer := self._take()) is not None:
                future = self._waiting.popleft()
                if not future.done():
                    future.set_result(answer)
        except (ValueError, IndexError) as error:
            self.abort(f"{self._url} sent a malformed answer ({error}); is this a nova node?")

    def connection_lost(self, error: Exception | None) -> None:
        self._fail(f"{self._url} closed the connection" + (f": {explain_http(error)}" if error else ""))

    def abort(self, reason: str) -> None:
        self._fail(reason)
        if self._transport is not None:
            self._transport.abort()

    def _fail(self, reason: str) -> None:
        self.closed = True
        while self._waiting:
            future = self._waiting.popleft()
            if not future.done():
                future.set_exception(UnavailableError(reason))
                future.exception()  # whoever gave up waiting need not be told

    def _take(self) -> Answer | None:
        """The next whole answer in the buffer, or None."""
        buffer = self._buffer
        head = self._head
        if head is None:
            end = buffer.find(b"\r\n\r\n")
            if end < 0:
                if len(buffer) > HEAD_BYTES_MAX:
                    raise ValueError(f"headers over {HEAD_BYTES_MAX} bytes")
                return None
            head = self._head = _parse_head(bytes(buffer[:end]))
            del buffer[: end + 4]
            if 100 <= head.status < 200:
                self._head = None
                return self._take()
        if head.chunked:
            body = _dechunk(buffer)
            if body is None:
                return None
        else:
            if len(buffer) < head.body_bytes:
                return None
            body = bytes(buffer[: head.body_bytes])
            del buffer[: head.body_bytes]
        self._head = None
        if head.last:
            self.closed = True
        return Answer(head.status, body)


class _Head(NamedTuple):
    status: int
    body_bytes: int
    chunked: bool
    last: bool


def _parse_head(head: bytes) -> _Head:
    first, *fields = head.split(b"\r\n")
    if not first.startswith(b"HTTP/1."):
        raise ValueError(f"{first[:40]!r} instead of HTTP/1.1")
    size, chunked, last = 0, False, False
    for field in fields:
        name, _, value = field.partition(b":")
        name = name.lower()
        if name == b"content-length":
            size = int(value)
            if not 0 <= size <= ANSWER_BYTES_MAX:
                raise ValueError(f"a body of {size} bytes; the limit is {ANSWER_BYTES_MAX}")
        elif name == b"transfer-encoding":
            chunked = value.strip().lower() == b"chunked"
        elif name == b"connection":
            last = value.strip().lower() == b"close"
    return _Head(int(first.split(b" ", 2)[1]), size, chunked, last)


def _dechunk(buffer: bytearray) -> bytes | None:
    """Take one whole chunked body from the front of `buffer`, or None if it is not all there."""
    at, total = 0, 0
    parts: list[bytes] = []
    while True:
        end = buffer.find(b"\r\n", at)
        if end < 0:
            return None
        size = int(bytes(buffer[at:end]).partition(b";")[0], 16)
        total += size
        if total > ANSWER_BYTES_MAX:
            raise ValueError(f"a body over {ANSWER_BYTES_MAX} bytes")
        start = end + 2
        if len(buffer) < start + size + 2:
            return None
        if size == 0:
            del buffer[: start + 2]
            return b"".join(parts)
        parts.append(bytes(buffer[start : start + size]))
        at = start + size + 2


async def _read_head(reader: asyncio.StreamReader) -> tuple[int, bool]:
    try:
        head = _parse_head((await reader.readuntil(b"\r\n\r\n"))[:-4])
    except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError, ValueError, IndexError) as error:
        raise UnavailableError(f"the node ended the watch before it began: {error}") from None
    return head.status, head.chunked


async def _lines(reader: asyncio.StreamReader, chunked: bool) -> AsyncIterator[bytes]:
    """Lines of an event stream, without the framing of chunks."""
    rest = b""
    with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
        while True:
            if chunked:
                size = int((await reader.readuntil(b"\r\n")).partition(b";")[0], 16)
                data = (await reader.readexactly(size + 2))[:-2]
            else:
                data = await reader.read(1 << 16)
            if not data:
                return
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                yield line.rstrip(b"\r")
