"""The HTTP API: JSON over one Litestar application, with the key routes on a short way of their own.

Litestar routes, validates and describes every route. Its routing and argument binding cost a put some 180 us, several
times the put itself, so requests for one key and batches are parsed right here and reach Litestar's handlers only when
`shortcut` is off; both ways call the same functions and a test compares their answers. The short way is also exact
where a router is not: `/v1/keys/a//b/` names the key `a//b/`, and a key that is not UTF-8 is refused, not replaced.

Every answer carries X-Request-Id. Errors are {"code", "error", "request_id"}.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import itertools
import logging
import os
import re
import socket
from collections.abc import AsyncIterator, Iterator
from functools import cached_property
from typing import Annotated, Any, Protocol
from urllib.parse import parse_qs, unquote_to_bytes

import msgspec
import uvicorn
from litestar import Litestar, Request, Response, delete, get, post, put
from litestar.enums import MediaType
from litestar.exceptions import HTTPException
from litestar.openapi.config import OpenAPIConfig
from litestar.openapi.datastructures import ResponseSpec
from litestar.openapi.plugins import JsonRenderPlugin
from litestar.params import FromPath, FromQuery, JSONBody, QueryParameter
from litestar.response import Stream
from litestar.types import Receive, Scope, Send

from nova._version import __version__
from nova.conflict.audit import AuditStatistics, Retention
from nova.conflict.healing.checkpoints import Checkpoint
from nova.errors import (
    CompactedError,
    ConfigError,
    KeyNotFoundError,
    LimitError,
    NovaError,
    StaleContextError,
    UnavailableError,
    UsageError,
)
from nova.server.config import NodeConfig, is_loopback, split_address
from nova.server.page import PAGE, PAGE_POLICY
from nova.store.decisions import Decided, Waiting
from nova.store.model import Change, Entry, Put
from nova.store.points import Point, Rollback

log = logging.getLogger("nova.server")

BATCH_PUTS_MAX = 10_000
VALUE_DEPTH_MAX = 64
BODY_SECONDS_MAX = 30.0
DROPPED_BYTES_MAX = 16 * 1024 * 1024
FIRST_ITEM_SECONDS_MAX = 0.05


# Named here because inside Backend the word `list` is a method.
Puts = list[Put]
Results = list[Entry | Exception]
Page = tuple[list[Entry], str | None]
Rows = list[dict[str, Any]]
Names = list[str]
Points = list[Point]
Waits = list[Waiting]
Checkpoints = list[Checkpoint]
Values = dict[str, Any]


class Backend(Protocol):
    """What the API needs of a node. Writes return when they are durable."""

    async def put(self, put: Put) -> Entry: ...
    async def put_many(self, puts: Puts) -> Results: ...
    async def get(self, key: str) -> Entry: ...
    async def delete(self, key: str, context: dict[str, int] | None, conditional: bool) -> Entry: ...
    async def list(self, prefix: str, limit: int, after: str | None) -> Page: ...
    def watch(self, since: int | None, prefix: str) -> AsyncIterator[Change | None]:
        """Changes after revision `since`, None: from now on. A None item says that nothing happened for a while.

        Raises CompactedError before the first item if that is too long ago.
        """

    def status(self) -> dict[str, Any]: ...
    def peers(self) -> Rows: ...
    async def conflicts(
        self, *, limit: int, after: str | None, type: str | None, strategy: str | None, key: str | None
    ) -> dict[str, Any]: ...
    async def why(self, key: str) -> dict[str, Any]: ...
    def audit(
        self,
        *,
        resource: str | None,
        conflict: str | None,
        type: str | None,
        since_ms: int | None,
        until_ms: int | None,
        limit: int,
        after: str | None,
    ) -> dict[str, Any]: ...
    async def audit_verify(self, head: str | None) -> dict[str, Any]: ...
    def audit_witnesses(self) -> dict[str, Any]: ...
    def audit_statistics(self, top: int) -> Any: ...
    def audit_export(self) -> AsyncIterator[bytes]:
        """The audit trail as JSON Lines, some lines at a time."""

    async def audit_retain(self, policy: Retention) -> int: ...
    def points(self, key: str) -> Points: ...
    async def make_point(self, key: str, note: str) -> str: ...
    async def rollback(self, key: str, to: str, context: dict[str, int] | None, by: str) -> Rollback: ...
    def checkpoints(self) -> Checkpoints: ...
    async def checkpoint(self) -> Checkpoint: ...
    def waiting(self, limit: int) -> Waits: ...
    async def decide(self, key: str, shown: str, values: Values, by: str) -> Decided: ...
    def metrics(self) -> bytes: ...
    def ready(self) -> tuple[bool, str]: ...
    def chaos_cut(self, peers: Names) -> Names: ...
    def chaos_heal(self) -> Names: ...


# --- what goes over the wire ------------------------------------------------------------------------------------------


class KeyWrite(msgspec.Struct, forbid_unknown_fields=True):
    """Body of PUT /v1/keys/{key}; the fields are those of Put."""

    value: Any
    kind: str | None = None
    merge: bool = False
    context: dict[str, int] | None = None
    conditional: bool = False


class KeyEntry(Entry, frozen=True, kw_only=True):
    """An entry, with the milliseconds of its timestamp since 1970 for readers whose integers end at 2^53."""

    time_ms: int


class KeyPage(msgspec.Struct):
    """Entries in key order; hand `next` back as `after`, null: that was all."""

    keys: list[KeyEntry]
    next: str | None


class Batch(msgspec.Struct, forbid_unknown_fields=True):
    """Up to 10,000 writes that share one durable commit."""

    puts: list[Put]


class Written(msgspec.Struct):
    key: str
    clock: dict[str, int]
    timestamp: int
    dot: tuple[str, int]


class NotWritten(msgspec.Struct):
    key: str
    code: str
    error: str


class BatchResults(msgspec.Struct):
    """One result for each write, in order. A refused write does not hold the others back."""

    results: list[dict[str, Any]]


class Status(msgspec.Struct):
    """The node in numbers; `digest` is equal on nodes that hold equal states."""

    name: str
    region: str
    version: str
    revision: int
    digest: str
    keys: int
    peers: int
    healthy: bool
    cluster: str
    incarnation: int
    clock: dict[str, int]
    uptime_s: float
    conflicts: int
    pending: int
    writes_total: int
    rss_bytes: int
    log: dict[str, int]
    http: str
    listen: str


class Peer(msgspec.Struct):
    node: str
    region: str
    address: str
    http: str
    state: str
    incarnation: int
    connected: bool
    rtt_ms: float | None
    lag_ops: int
    sent_bytes: int
    received_bytes: int


class PeerPage(msgspec.Struct):
    peers: list[Peer]


class ConflictPage(msgspec.Struct):
    """Conflicts, newest first."""

    conflicts: list[dict[str, Any]]
    total: int
    by_type: dict[str, int]
    by_strategy: dict[str, int]
    next: str | None


class Why(msgspec.Struct):
    """How a value came to be: the writes behind it, the conflicts among them, and the same in words."""

    key: str
    kind: str
    value: Any
    writes: list[dict[str, Any]]
    conflicts: list[dict[str, Any]]
    text: str


class AuditPage(msgspec.Struct):
    events: list[dict[str, Any]]
    next: str | None


class AuditCheck(msgspec.Struct):
    """Whether the hash chain of the audit trail is whole."""

    ok: bool
    events: int
    head: str
    error: str | None = None


class Witnesses(msgspec.Struct):
    """Heads of audit trails, COUNT:HASH, that are kept where the trail's own node cannot change them.

    held_by     peer -> head of this node's trail that it was heard to hold
    accused_by  peer -> why the head that it holds does not fit this trail
    holds       peer -> heads of its trails that this node holds, the present one and those of data directories before
    """

    trail: str
    held_by: dict[str, str]
    accused_by: dict[str, str]
    holds: dict[str, list[str]]


class CheckpointPage(msgspec.Struct):
    """The checkpoints of this node, oldest first."""

    checkpoints: list[Checkpoint]


class PointPage(msgspec.Struct):
    """The newest rollback points of a key that this node made, at most 100, oldest first."""

    points: list[Point]


class NewPoint(msgspec.Struct, forbid_unknown_fields=True):
    note: str = ""


class MadePoint(msgspec.Struct):
    point: str


class RollbackTo(msgspec.Struct, forbid_unknown_fields=True):
    """Where to, and the clock that the decision was made on (null: the present one): what it does not know stays."""

    to: str
    context: dict[str, int] | None = None
    by: str = ""


class WaitingPage(msgspec.Struct):
    """What waits for somebody to decide, oldest first."""

    waiting: list[Waiting]


class Decide(msgspec.Struct, forbid_unknown_fields=True):
    """A decision about what was `shown`: path -> value for each path that has candidates, "" is the whole value."""

    shown: str
    values: dict[str, Any]
    by: str = ""


class Keep(msgspec.Struct, forbid_unknown_fields=True):
    """What the audit trail shall keep; null: no such limit."""

    age_ms_max: int | None = None
    events_max: int | None = None


class Dropped(msgspec.Struct):
    dropped: int


class Cut(msgspec.Struct, forbid_unknown_fields=True):
    """Peers to stop talking to."""

    peers: list[str]


class CutPeers(msgspec.Struct):
    cut: list[str]


class Ready(msgspec.Struct):
    ready: bool
    reason: str


class Problem(msgspec.Struct):
    """Every error. 409 adds `current` (an Entry and `yours`, or what waits now), 410 adds `oldest`."""

    code: str
    error: str
    request_id: str


_encode = msgspec.json.Encoder().encode
_decode_write = msgspec.json.Decoder(KeyWrite).decode
_decode_batch = msgspec.json.Decoder(Batch).decode
_decode_clock = msgspec.json.Decoder(dict[str, int]).decode

Headers = list[tuple[bytes, bytes]]
JSON_TYPE = (b"content-type", b"application/json")


class Refusal(Exception):
    """A request that the HTTP face turns down by itself."""

    def __init__(self, status: int, code: str, message: str, *, headers: Headers | None = None, **extra: Any) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.headers = headers or []
        self.extra = extra


# --- the application --------------------------------------------------------------------------------------------------


def make_app(backend: Backend, config: NodeConfig, *, shortcut: bool = True) -> Litestar:
    """The ASGI application over `backend`. Without `shortcut` every request takes Litestar's way."""
    return Api(backend, config, shortcut=shortcut)


class Api(Litestar):
    """Checks who asks and how much, then answers key requests itself and leaves the rest to Litestar's routes."""

    def __init__(self, backend: Backend, config: NodeConfig, *, shortcut: bool = True) -> None:
        self.backend = backend
        self.config = config
        self._shortcut = shortcut
        self._token = config.token.encode() if config.token else None
        self._own_hosts = _own_hosts(config)
        self._body_bytes_max = config.limits.body_bytes_max
        self._value_bytes_max = config.limits.value_bytes_max
        self._key_bytes_max = config.limits.key_bytes_max
        self._request_ids = _request_ids()
        super().__init__(
            route_handlers=_routes(self),
            exception_handlers={Exception: _litestar_problem},
            request_max_body_size=config.limits.body_bytes_max,
            openapi_config=OpenAPIConfig(
                title="Nova",
                version=__version__,
                description="One node of a replicated store that explains how it settled every conflict.",
                path="/openapi",
                render_plugins=[JsonRenderPlugin()],
            ),
            logging_config=None,
        )

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await super().__call__(scope, receive, send)
            return
        headers = dict(scope["headers"])
        request_id = headers.get(b"x-request-id", b"")
        if not _is_request_id(request_id):
            request_id = next(self._request_ids)
        status = 200
        extra: Headers = []
        try:
            self._admit(scope, headers)
            path: str = scope["path"]
            if self._shortcut and path.startswith("/v1/keys/"):
                body = await self._answer_key(scope, headers, receive)
            elif self._shortcut and path == "/v1/batch" and scope["method"] == "POST":
                body = await self.put_many(_parse(_decode_batch, await self._body(headers, receive)))
            else:
                scope.setdefault("state", {})["request_id"] = request_id
                await super().__call__(scope, receive, _stamped(send, request_id))
                return
        except Exception as error:
            status, body, extra = problem(error, request_id)
        await send(
            {
                "type": "http.response.start",
                "status": status,
                "headers": [
                    JSON_TYPE,
                    (b"content-length", b"%d" % len(body)),
                    (b"x-request-id", request_id),
                    *extra,
                ],
            }
        )
        await send({"type": "http.response.body", "body": body})

    # what the key routes do, on either way; all answers are JSON

    async def put(self, key: str, write: KeyWrite, body_bytes: int) -> bytes:
        self._check_key(key)
        self._check_value(write.value, body_bytes)
        try:
            return _entry_json(
                await self.backend.put(Put(key, write.value, write.kind, write.merge, write.context, write.conditional))
            )
        except StaleContextError as error:
            raise _conflict(error, write.value, write.context) from None

    async def get(self, key: str) -> bytes:
        self._check_key(key)
        return _entry_json(await self.backend.get(key))

    async def delete(self, key: str, context: str | None, conditional: bool) -> bytes:
        self._check_key(key)
        clock = None if context is None else _parse(_decode_clock, context.encode())
        try:
            return _entry_json(await self.backend.delete(key, clock, conditional))
        except StaleContextError as error:
            raise _conflict(error, None, clock) from None

    async def put_many(self, batch: Batch) -> bytes:
        if len(batch.puts) > BATCH_PUTS_MAX:
            raise LimitError(
                f"{len(batch.puts)} puts are over the limit of {BATCH_PUTS_MAX} puts a batch; send several batches"
            )
        results: list[Entry | Exception | None] = []
        good: list[Put] = []
        for put_ in batch.puts:
            try:
                self._check_key(put_.key)
                self._check_value(put_.value, self._body_bytes_max)
            except UsageError as error:
                results.append(error)
            else:
                results.append(None)
                good.append(put_)
        written = iter(await self.backend.put_many(good))
        return _encode(
            {
                "results": [
                    _batch_result(put_.key, next(written) if result is None else result)
                    for put_, result in zip(batch.puts, results, strict=True)
                ]
            }
        )

    @cached_property
    def openapi_json(self) -> bytes:
        return _encode(self.openapi_schema.to_schema())

    # the short way

    async def _answer_key(self, scope: Any, headers: dict[bytes, bytes], receive: Receive) -> bytes:
        key = key_in(scope, "/v1/keys/")
        match scope["method"]:
            case "PUT":
                body = await self._body(headers, receive)
                return await self.put(key, _parse(_decode_write, body), len(body))
            case "GET":
                return await self.get(key)
            case "DELETE":
                query = parse_qs(scope["query_string"].decode("ascii", "replace"))
                return await self.delete(key, query.get("context", [None])[-1], _flag(query, "conditional"))
            case method:
                raise Refusal(
                    405,
                    "method_not_allowed",
                    f"{method} is not a method of a key; use GET, PUT or DELETE",
                    headers=[(b"allow", b"GET, PUT, DELETE")],
                )

    async def _body(self, headers: dict[bytes, bytes], receive: Receive) -> bytes:
        """The request's body. What is over the limit is read and dropped, within bounds: a client that still sends
        when the connection closes sees a broken pipe instead of the answer."""
        message: Any = await receive()
        body: bytes = message.get("body", b"")
        if not message.get("more_body"):  # nearly always: one piece
            if len(body) > self._body_bytes_max:
                raise _body_over(self._body_bytes_max)
            return body
        declared = headers.get(b"content-length")
        over = declared is not None and int(declared) > self._body_bytes_max  # digits: the server has checked
        kept, total = bytearray(), 0
        try:
            async with asyncio.timeout(BODY_SECONDS_MAX):
                while True:
                    total += len(body)
                    over = over or total > self._body_bytes_max
                    if not over:
                        kept += body
                    elif total > self._body_bytes_max + DROPPED_BYTES_MAX:
                        break
                    if not message.get("more_body"):
                        break
                    message = await receive()
                    body = message.get("body", b"")
        except TimeoutError:
            raise Refusal(
                408, "timeout", f"the body did not arrive in {BODY_SECONDS_MAX:g} s; send it at once", headers=_CLOSE
            ) from None
        if over:
            raise _body_over(self._body_bytes_max)
        if message["type"] == "http.disconnect":
            raise Refusal(400, "bad_request", "the connection ended before the body did; send all of it")
        return bytes(kept)

    # checks

    def _admit(self, scope: Any, headers: dict[bytes, bytes]) -> None:
        """Nobody without the token; and no web page of somebody else through a browser on this machine."""
        path: str = scope["path"]
        if self._token is not None:
            if path.startswith("/v1/") or path == "/metrics":
                given = headers.get(b"authorization", b"")
                if given[:7].lower() != b"bearer " or not hmac.compare_digest(given[7:], self._token):
                    raise Refusal(
                        401,
                        "unauthorized",
                        "the bearer token is missing or wrong; give the token of the node (--token or NOVA_TOKEN)",
                        headers=[(b"www-authenticate", b"Bearer")],
                    )
        elif self._own_hosts is not None:
            # A page whose name was rebound to 127.0.0.1 sends its own name as Host.
            host = headers.get(b"host", b"")
            if _PORT.sub(b"", host).strip(b"[]").lower() not in self._own_hosts:
                raise Refusal(
                    403,
                    "forbidden",
                    f"Host {host.decode('latin-1')[:80]!r} is not this node; use 127.0.0.1 or localhost, "
                    "or start the node with a token",
                )
        origin = headers.get(b"origin")
        if origin is None or scope["method"] in ("GET", "HEAD"):
            return
        # Browsers send some cross-site requests without asking first; a program sends no Origin.
        if origin.partition(b"://")[2] != headers.get(b"host"):
            raise Refusal(403, "forbidden", "writes from web pages of another origin are refused; use a program")

    def _check_key(self, key: str) -> None:
        # Only a key of more than a quarter of the limit's characters can be over its bytes.
        if not key:
            raise UsageError("the key is empty; a key has at least 1 byte")
        if len(key) * 4 > self._key_bytes_max and (size := len(key.encode())) > self._key_bytes_max:
            raise LimitError(f"the key has {size} bytes; the limit is {self._key_bytes_max}: shorten it")

    def _check_value(self, value: Any, bytes_max: int) -> None:
        """`bytes_max` is what the value cannot be longer than, known from where it stood."""
        if isinstance(value, dict | list):
            _check_depth(value)
        elif not isinstance(value, str):
            return
        if bytes_max > self._value_bytes_max and (size := len(_encode(value))) > self._value_bytes_max:
            raise LimitError(
                f"the value has {size} bytes of JSON; the limit is {self._value_bytes_max}: "
                "split it over several keys or raise limits.value_bytes_max"
            )


# --- routes -----------------------------------------------------------------------------------------------------------


def _described(summary: str, model: Any, *errors: int, status: int = 200) -> dict[str, Any]:
    """Keyword arguments that describe a route in OpenAPI."""
    known = {
        400: "The request is wrong; the error says what to mend.",
        404: "There is nothing under this name.",
        409: "The context is stale; both versions are in the answer.",
        410: "The changes since then are forgotten; read the keys again.",
        413: "Over a limit.",
        503: "Not now; see Retry-After.",
    }
    responses = {status: ResponseSpec(model, description=summary, generate_examples=False)} if model else {}
    responses |= {error: ResponseSpec(Problem, description=known[error], generate_examples=False) for error in errors}
    return {"summary": summary, "responses": responses, "status_code": status, "raises": []}


Limit = Annotated[int, QueryParameter(ge=1, le=1000, description="At most so many items.")]


def _routes(api: Api) -> list[Any]:
    backend = api.backend

    @put(
        "/v1/keys/{key:path}",
        operation_id="putKey",
        **_described("Write a key, durably.", KeyEntry, 400, 409, 413, 503),
    )
    async def put_key(key: FromPath[str], data: JSONBody[KeyWrite], request: Request[Any, Any, Any]) -> Response[bytes]:
        return _json(await api.put(key_in(request.scope, "/v1/keys/"), data, len(await request.body())))

    @get("/v1/keys/{key:path}", operation_id="getKey", **_described("What a key holds now.", KeyEntry, 400, 404))
    async def get_key(key: FromPath[str], request: Request[Any, Any, Any]) -> Response[bytes]:
        return _json(await api.get(key_in(request.scope, "/v1/keys/")))

    @delete(
        "/v1/keys/{key:path}",
        operation_id="deleteKey",
        **_described("Delete a key, durably; the value in the answer is null.", KeyEntry, 400, 404, 409, 503),
    )
    async def delete_key(
        key: FromPath[str],
        request: Request[Any, Any, Any],
        context: FromQuery[str | None] = None,
        conditional: FromQuery[bool] = False,
    ) -> Response[bytes]:
        return _json(await api.delete(key_in(request.scope, "/v1/keys/"), context, conditional))

    @post(
        "/v1/batch",
        operation_id="putBatch",
        **_described("Write many keys in one commit.", BatchResults, 400, 413, 503),
    )
    async def put_batch(data: JSONBody[Batch]) -> Response[bytes]:
        return _json(await api.put_many(data))

    @get("/v1/keys", operation_id="listKeys", **_described("Keys in order.", KeyPage, 400))
    async def list_keys(
        prefix: FromQuery[str] = "", limit: Limit = 100, after: FromQuery[str | None] = None
    ) -> Response[bytes]:
        entries, next_ = await backend.list(prefix, limit, after)
        rows = b",".join([_entry_json(entry) for entry in entries])
        return _json(b'{"keys":[%b],"next":%b}' % (rows, _encode(next_)))

    @get(
        "/v1/watch",
        operation_id="watch",
        **_described("Changes as server-sent events; `id` is the revision, `data` a Change.", Change, 400, 410),
    )
    async def watch(
        request: Request[Any, Any, Any],
        since: Annotated[int | None, QueryParameter(ge=0)] = None,
        prefix: FromQuery[str] = "",
    ) -> Stream:
        if since is None and (seen := request.headers.get("last-event-id", "")).isdecimal():
            since = int(seen)
        return Stream(
            await _events(backend.watch(since, prefix)),
            media_type="text/event-stream",
            headers={"cache-control": "no-store"},
        )

    @get("/v1/status", operation_id="status", **_described("The node in numbers.", Status))
    async def status() -> Response[bytes]:
        return _json(_encode(backend.status()))

    @get("/v1/peers", operation_id="peers", **_described("The nodes that this node knows.", PeerPage))
    async def peers() -> Response[bytes]:
        return _json(_encode({"peers": backend.peers()}))

    @get("/v1/conflicts", operation_id="conflicts", **_described("Conflicts, newest first.", ConflictPage, 400))
    async def conflicts(
        limit: Limit = 100,
        after: FromQuery[str | None] = None,
        type_: Annotated[str | None, QueryParameter(name="type")] = None,
        strategy: FromQuery[str | None] = None,
        key: FromQuery[str | None] = None,
    ) -> Response[bytes]:
        page = await backend.conflicts(limit=limit, after=after, type=type_, strategy=strategy, key=key)
        return _json(_encode(page))

    @get("/v1/why/{key:path}", operation_id="why", **_described("How a value came to be.", Why, 400, 404))
    async def why(key: FromPath[str], request: Request[Any, Any, Any]) -> Response[bytes]:
        return _json(_encode(await backend.why(key_in(request.scope, "/v1/why/"))))

    @get("/v1/audit", operation_id="audit", **_described("The audit trail, oldest first.", AuditPage, 400))
    async def audit(
        resource: FromQuery[str | None] = None,
        conflict: FromQuery[str | None] = None,
        type_: Annotated[str | None, QueryParameter(name="type")] = None,
        since_ms: FromQuery[int | None] = None,
        until_ms: FromQuery[int | None] = None,
        limit: Limit = 100,
        after: FromQuery[str | None] = None,
    ) -> Response[bytes]:
        page = backend.audit(
            resource=resource, conflict=conflict, type=type_, since_ms=since_ms, until_ms=until_ms, limit=limit,
            after=after,
        )  # fmt: skip
        return _json(_encode(page))

    @get(
        "/v1/audit/verify",
        operation_id="verifyAudit",
        **_described("Check the audit trail, and that it goes through `head` (COUNT:HASH).", AuditCheck, 400),
    )
    async def audit_verify(head: FromQuery[str | None] = None) -> Response[bytes]:
        return _json(_encode(await backend.audit_verify(head)))

    @get(
        "/v1/audit/witnesses",
        operation_id="auditWitnesses",
        **_described("Which peers hold heads of this node's audit trail, and which it holds of theirs.", Witnesses),
    )
    async def audit_witnesses() -> Response[bytes]:
        return _json(_encode(backend.audit_witnesses()))

    @get(
        "/v1/audit/statistics",
        operation_id="auditStatistics",
        **_described("The audit trail in numbers, and what recurs.", AuditStatistics, 400),
    )
    async def audit_statistics(top: Limit = 10) -> Response[bytes]:
        return _json(_encode(backend.audit_statistics(top)))

    @get("/v1/audit/export", operation_id="exportAudit", summary="The audit trail as JSON Lines.")
    async def audit_export() -> Stream:
        return Stream(backend.audit_export(), media_type="application/jsonl", headers={"cache-control": "no-store"})

    @post(
        "/v1/audit/retain",
        operation_id="retainAudit",
        **_described("Drop old audit events; the anchor of the chain moves.", Dropped, 400, 503),
    )
    async def audit_retain(data: JSONBody[Keep]) -> Response[bytes]:
        return _json(_encode({"dropped": await backend.audit_retain(Retention(data.age_ms_max, data.events_max))}))

    @get("/v1/points/{key:path}", operation_id="points", **_described("Rollback points of a key.", PointPage, 400))
    async def points(key: FromPath[str], request: Request[Any, Any, Any]) -> Response[bytes]:
        return _json(_encode({"points": backend.points(key_in(request.scope, "/v1/points/"))}))

    @post(
        "/v1/points/{key:path}",
        operation_id="makePoint",
        **_described("Keep what a key holds as a rollback point.", MadePoint, 400, 404, 503),
    )
    async def make_point(
        key: FromPath[str], data: JSONBody[NewPoint], request: Request[Any, Any, Any]
    ) -> Response[bytes]:
        point = await backend.make_point(key_in(request.scope, "/v1/points/"), data.note)
        return _json(_encode({"point": point}))

    @post(
        "/v1/rollback/{key:path}",
        operation_id="rollback",
        **_described("Bring a key back to a point, by a new write.", Rollback, 400, 404, 503),
    )
    async def rollback(
        key: FromPath[str], data: JSONBody[RollbackTo], request: Request[Any, Any, Any]
    ) -> Response[bytes]:
        done = await backend.rollback(key_in(request.scope, "/v1/rollback/"), data.to, data.context, data.by)
        return _json(_encode(done))

    @get("/v1/checkpoints", operation_id="checkpoints", **_described("The checkpoints of this node.", CheckpointPage))
    async def checkpoints() -> Response[bytes]:
        return _json(_encode(CheckpointPage(backend.checkpoints())))

    @post(
        "/v1/checkpoints",
        operation_id="takeCheckpoint",
        **_described("Store the whole state of this node as a point to come back to.", Checkpoint, 503),
    )
    async def checkpoint() -> Response[bytes]:
        return _json(_encode(await backend.checkpoint()))

    @get("/v1/decisions", operation_id="waiting", **_described("Conflicts that wait for somebody.", WaitingPage, 400))
    async def waiting(limit: Limit = 100) -> Response[bytes]:
        return _json(_encode(WaitingPage(backend.waiting(limit))))

    @post(
        "/v1/decisions/{key:path}",
        operation_id="decide",
        **_described("Decide a conflict, if its candidates are those that were shown.", Decided, 400, 404, 409, 503),
    )
    async def decide(key: FromPath[str], data: JSONBody[Decide], request: Request[Any, Any, Any]) -> Response[bytes]:
        key = key_in(request.scope, "/v1/decisions/")
        _check_depth(data.values)
        return _json(_encode(await backend.decide(key, data.shown, data.values, data.by)))

    @post("/v1/chaos/cut", operation_id="cut", **_described("Stop talking to peers (--chaos).", CutPeers, 400, 404))
    async def cut(data: JSONBody[Cut]) -> Response[bytes]:
        return _json(_encode({"cut": backend.chaos_cut(data.peers)}))

    @post("/v1/chaos/heal", operation_id="heal", **_described("Talk to all peers again (--chaos).", CutPeers, 404))
    async def heal() -> Response[bytes]:
        return _json(_encode({"cut": backend.chaos_heal()}))

    @get("/metrics", operation_id="metrics", summary="Metrics in the text format of Prometheus.")
    async def metrics() -> Response[bytes]:
        return Response(backend.metrics(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @get("/healthz", operation_id="healthz", **_described("The process answers.", dict[str, bool]))
    async def healthz() -> Response[bytes]:
        return _json(b'{"ok":true}')

    @get("/readyz", operation_id="readyz", **_described("Whether the node serves; 503 while it does not.", Ready))
    async def readyz() -> Response[bytes]:
        ready, reason = backend.ready()
        return _json(_encode(Ready(ready, reason)), 200 if ready else 503)

    @get("/openapi.json", operation_id="openapi", summary="This description.")
    async def openapi() -> Response[bytes]:
        return _json(api.openapi_json)

    @get("/", operation_id="page", summary="A small status page.", media_type=MediaType.HTML)
    async def page() -> Response[bytes]:
        return Response(
            PAGE,
            media_type=MediaType.HTML,
            headers={
                "content-security-policy": PAGE_POLICY,
                "x-content-type-options": "nosniff",
                "referrer-policy": "no-referrer",
            },
        )

    routes: list[Any] = [put_key, get_key, delete_key, put_batch, list_keys, watch, status, peers, conflicts, why]
    routes += [
        audit,
        audit_verify,
        audit_witnesses,
        audit_statistics,
        audit_export,
        audit_retain,
        points,
        make_point,
        rollback,
    ]
    routes += [waiting, decide, checkpoints, checkpoint]
    routes += [metrics, healthz, readyz, openapi, page]
    return [*routes, cut, heal] if api.config.chaos else routes


async def _events(changes: AsyncIterator[Change | None]) -> AsyncIterator[bytes]:
    """The feed as server-sent events. What goes wrong at its start is raised here, as an answer with a status.

    Where nothing happens at all, the first item is awaited a moment only: the answer's head must not wait for it.
    """
    first = asyncio.ensure_future(anext(changes, None))
    await asyncio.wait({first}, timeout=FIRST_ITEM_SECONDS_MAX)
    if first.done() and (error := first.exception()) is not None:
        raise error

    async def events() -> AsyncIterator[bytes]:
        try:
            yield b": keep-alive\n\n"
            yield _event(await first)
            async for change in changes:
                yield _event(change)
        except NovaError as error:
            yield b"event: error\ndata: %b\n\n" % _encode({"code": error.code, "error": str(error)})
        finally:
            first.cancel()
            if (close := getattr(changes, "aclose", None)) is not None:
                await close()

    return events()


def _event(change: Change | None) -> bytes:
    if change is None:
        return b": keep-alive\n\n"
    return b"id: %d\nevent: change\ndata: %b\n\n" % (change.revision, _encode(change))


# --- answers ----------------------------------------------------------------------------------------------------------


def problem(error: Exception, request_id: bytes) -> tuple[int, bytes, Headers]:
    """Status, JSON body and headers for an error. What is nobody's fault outside is logged, and not told."""
    headers: Headers = []
    extra: dict[str, Any] = {}
    code = getattr(error, "code", "error")
    match error:
        case Refusal():
            status, headers, extra = error.status, error.headers, error.extra
        case KeyNotFoundError():
            status = 404
        case StaleContextError():
            status, extra = 409, {"current": error.current}
        case LimitError():
            status = 413
        case UsageError():
            status = 400
        case CompactedError(oldest=oldest):
            status, extra = 410, {"oldest": oldest}
        case UnavailableError():
            status = 503
            headers = [(b"retry-after", b"%d" % max(1, -(-error.retry_after_ns // 1_000_000_000)))]
        case HTTPException(status_code=status) if status < 500:
            code, message = _litestar_words(error)
            return status, _problem_json(code, message, request_id, {}), _CLOSE if status == 413 else []
        case _:
            log.error("request %s failed", request_id.decode(), exc_info=error)
            message = f"the node failed; its log has the reason under request {request_id.decode()}"
            return 500, _problem_json("internal", message, request_id, {}), []
    return status, _problem_json(code, str(error), request_id, extra), headers


def _problem_json(code: str, message: str, request_id: bytes, extra: dict[str, Any]) -> bytes:
    return _encode({"code": code, "error": message, "request_id": request_id.decode(), **extra})


def _litestar_problem(request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    status, body, headers = problem(error, request.scope["state"]["request_id"])
    return _json(body, status, {name.decode(): value.decode() for name, value in headers})


def _litestar_words(error: HTTPException) -> tuple[str, str]:
    """(code, message) for what Litestar refused by itself."""
    match error.status_code:
        case 404:
            return "not_found", "there is no such route; /openapi.json lists them"
        case 405:
            return "method_not_allowed", "this route has no such method; /openapi.json lists them"
        case 413:
            return "limit", "the body is over limits.body_bytes_max; send less at once"
    details = error.extra if isinstance(error.extra, list) else []
    words = [f"{detail.get('key', 'request')}: {detail.get('message')}" for detail in details]
    return "bad_request", "; ".join(words) or error.detail


def _json(body: bytes, status: int = 200, headers: dict[str, str] | None = None) -> Response[bytes]:
    return Response(body, status_code=status, media_type=MediaType.JSON, headers=headers)


def _entry_json(entry: Entry) -> bytes:
    return b'%b,"time_ms":%d}' % (_encode(entry)[:-1], entry.timestamp >> 16)


def _batch_result(key: str, result: Entry | Exception) -> Written | NotWritten:
    match result:
        case Entry():
            return Written(key, result.clock, result.timestamp, result.dot)
        case UsageError() | UnavailableError():
            return NotWritten(key, result.code, str(result))
        case _:
            log.error("put of %r in a batch failed", key, exc_info=result)
            return NotWritten(key, "internal", "the node failed; its log has the reason")


def _conflict(error: StaleContextError, value: Any, context: dict[str, int] | None) -> Refusal:
    return Refusal(409, error.code, str(error), current=error.current, yours={"value": value, "context": context})


def _body_over(limit: int) -> Refusal:
    # The rest of the body may not be read, so the connection cannot go on.
    return Refusal(413, "limit", f"the body is over the limit of {limit} bytes; send less at once", headers=_CLOSE)


_CLOSE: Headers = [(b"connection", b"close")]


def _stamped(send: Send, request_id: bytes) -> Send:
    async def stamped(message: Any) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message["headers"], (b"x-request-id", request_id)]
        await send(message)

    return stamped


# --- parsing ----------------------------------------------------------------------------------------------------------


def key_in(scope: Scope | Any, before: str) -> str:
    """The key behind `before` in the path, percent-decoded by the byte."""
    raw: bytes = scope.get("raw_path") or scope["path"].encode()
    raw = raw[len(before) :]
    try:
        return (unquote_to_bytes(raw) if b"%" in raw else raw).decode()
    except UnicodeDecodeError:
        raise UsageError(f"the key {raw[:80]!r} is not UTF-8; percent-encode the bytes of its UTF-8 form") from None


def _parse(decode: Any, body: bytes) -> Any:
    try:
        return decode(body)
    except msgspec.ValidationError as error:
        raise UsageError(f"the body does not fit: {error}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"not valid JSON: {error}") from None
    except RecursionError:
        raise _too_deep() from None


def _check_depth(value: Any) -> None:
    """Values are walked by recursion in many places, so their depth is bounded once, here."""
    level = [value]
    for _ in range(VALUE_DEPTH_MAX):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return
    raise _too_deep()


def _too_deep() -> LimitError:
    return LimitError(f"the value is nested deeper than {VALUE_DEPTH_MAX} levels; flatten it")


def _flag(query: dict[str, list[str]], name: str) -> bool:
    text = query.get(name, ["false"])[-1].lower()
    if text not in ("true", "1", "false", "0"):
        raise UsageError(f"{name}={text!r} is neither true nor false")
    return text in ("true", "1")


_PORT = re.compile(rb":[0-9]*$")
_is_request_id = re.compile(rb"[A-Za-z0-9._-]{1,64}").fullmatch


def _request_ids() -> Iterator[bytes]:
    """Names for requests that come without one: a prefix for this process, then a number."""
    prefix = os.urandom(4).hex().encode()
    return (b"%b-%d" % (prefix, number) for number in itertools.count(1))


def _own_hosts(config: NodeConfig) -> set[bytes] | None:
    """Names that a local client may call this node, None: any."""
    if config.token or not is_loopback(config.http):
        return None
    return {b"127.0.0.1", b"localhost", b"::1", split_address(config.http)[0].lower().encode()}


# --- the server -------------------------------------------------------------------------------------------------------


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
