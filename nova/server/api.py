"""The HTTP API: JSON over one Litestar application, with the key routes on a short way of their own.

Litestar routes, validates and describes every route. Its routing and argument binding cost a put some 180 us, several
times the put itself, so requests for one key and batches are parsed right here and reach Litestar's handlers only when
`shortcut` is off; both ways call the same functions and a test compares their answers. The short way is also exact
where a router is not: `/v1/keys/a//b/` names the key `a//b/`, and a key that is not UTF-8 is refused, not replaced.

Every answer carries X-Request-Id. Errors are {"code", "error", "request_id"}.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
from collections.abc import AsyncIterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import parse_qs

from litestar import Litestar
from litestar.openapi.config import OpenAPIConfig
from litestar.openapi.plugins import JsonRenderPlugin
from litestar.types import Receive

from nova._version import __version__
from nova.conflict.audit import AuditQuery, Retention
from nova.conflict.healing.checkpoints import Checkpoint, time_ms
from nova.errors import (
    LimitError,
    StaleContextError,
    UsageError,
)
from nova.server.answers import (
    CLOSE,
    JSON_TYPE,
    PORT,
    Refusal,
    batch_result,
    body_over,
    check_depth,
    conflict,
    consistency_in,
    entry_json,
    flag,
    is_request_id,
    key_in,
    litestar_problem,
    number,
    own_hosts,
    parse_body,
    problem,
    request_ids,
    stamped,
)
from nova.server.config import NodeConfig
from nova.server.models import Batch, Headers, HealReport, KeyWrite, decode_batch, decode_clock, decode_write, encode
from nova.server.routes import routes
from nova.store.decisions import Decided, Waiting
from nova.store.model import Change, Entry, Put
from nova.store.points import Point, Rollback
from nova.store.strong.commands import Condition, Operation

if TYPE_CHECKING:
    from nova.store.strong import Transacted

log = logging.getLogger("nova.server")

BATCH_PUTS_MAX = 10_000
BODY_SECONDS_MAX = 30.0
DROPPED_BYTES_MAX = 16 * 1024 * 1024


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
Conditions = Sequence[Condition]
Operations = Sequence[Operation]


class Backend(Protocol):
    """What the API needs of a node. Writes return when they are durable."""

    async def put(self, put: Put) -> Entry: ...
    async def put_many(self, puts: Puts) -> Results: ...
    async def get(self, key: str, consistency: str | None = None) -> Entry: ...
    async def past(self, key: str, at_ms: int) -> Entry: ...
    async def delete(
        self, key: str, context: dict[str, int] | None, conditional: bool, expect: int | None = None
    ) -> Entry: ...
    async def list(self, prefix: str, limit: int, after: str | None, consistency: str | None = None) -> Page: ...
    async def transact(self, key: str, conditions: Conditions, operations: Operations) -> Transacted: ...
    def consensus(self) -> Values: ...
    async def consensus_add(self, node: str, address: str | None, learner: bool) -> Values: ...
    async def consensus_remove(self, node: str) -> Values: ...
    async def region_add(self, node: str, address: str | None, region: str) -> Values: ...
    async def region_remove(self, node: str, region: str) -> Values: ...
    async def consensus_transfer(self, node: str) -> Values: ...
    async def consensus_switch(self, protocol: str, members: Names, addresses: dict[str, str]) -> Values: ...
    def watch(self, since: int | None, prefix: str, kind: str | None = None) -> AsyncIterator[Change | None]:
        """Changes after revision `since`, None: from now on. A None item says that nothing happened for a while.
        `kind`: of keys of this class only.

        Raises CompactedError before the first item if that is too long ago.
        """

    def status(self) -> dict[str, Any]: ...
    def peers(self) -> Rows: ...
    async def conflicts(
        self, *, limit: int, after: str | None, type: str | None, strategy: str | None, key: str | None
    ) -> dict[str, Any]: ...
    async def why(self, key: str) -> dict[str, Any]: ...
    def audit(self, query: AuditQuery) -> dict[str, Any]: ...
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
    async def heal(self, peer: str, timeout_ms: int) -> HealReport: ...
    def waiting(self, limit: int) -> Waits: ...
    async def decide(self, key: str, shown: str, values: Values, by: str) -> Decided: ...
    def metrics(self) -> bytes: ...
    def ready(self) -> tuple[bool, str]: ...
    def chaos_cut(self, peers: Names) -> Names: ...
    def chaos_heal(self) -> Names: ...


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
        self._own_hosts = own_hosts(config)
        self._body_bytes_max = config.limits.body_bytes_max
        self._value_bytes_max = config.limits.value_bytes_max
        self._key_bytes_max = config.limits.key_bytes_max
        self._request_ids = request_ids()
        super().__init__(
            route_handlers=routes(self),
            exception_handlers={Exception: litestar_problem},
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
        if not is_request_id(request_id):
            request_id = next(self._request_ids)
        status = 200
        extra: Headers = []
        try:
            self._admit(scope, headers)
            path: str = scope["path"]
            if self._shortcut and path.startswith("/v1/keys/"):
                body = await self._answer_key(scope, headers, receive)
            elif self._shortcut and path == "/v1/batch" and scope["method"] == "POST":
                body = await self.put_many(parse_body(decode_batch, await self._body(headers, receive)))
            else:
                scope.setdefault("state", {})["request_id"] = request_id
                await super().__call__(scope, receive, stamped(send, request_id))
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
        self.check_key(key)
        self.check_value(write.value, body_bytes)
        try:
            return entry_json(
                await self.backend.put(
                    Put(key, write.value, write.kind, write.merge, write.context, write.conditional, write.expect)
                )
            )
        except StaleContextError as error:
            raise conflict(error, write.value, write.context) from None

    async def get(self, key: str, consistency: str | None = None, at: str | None = None) -> bytes:
        """What a key holds, or held `at` a time."""
        self.check_key(key)
        if at is None:
            return entry_json(await self.backend.get(key, consistency))
        if consistency is not None:
            raise UsageError(
                f"consistency is {consistency!r}, and at {at!r}; the past is the node's own: give one of both"
            )
        return entry_json(await self.backend.past(key, time_ms(at, "at")))

    async def delete(self, key: str, context: str | None, conditional: bool, expect: int | None) -> bytes:
        self.check_key(key)
        clock = None if context is None else parse_body(decode_clock, context.encode())
        try:
            return entry_json(await self.backend.delete(key, clock, conditional, expect))
        except StaleContextError as error:
            raise conflict(error, None, clock) from None

    async def put_many(self, batch: Batch) -> bytes:
        if len(batch.puts) > BATCH_PUTS_MAX:
            raise LimitError(
                f"{len(batch.puts)} puts are over the limit of {BATCH_PUTS_MAX} puts a batch; send several batches"
            )
        results: list[Entry | Exception | None] = []
        good: list[Put] = []
        for put_ in batch.puts:
            try:
                self.check_key(put_.key)
                self.check_value(put_.value, self._body_bytes_max)
            except UsageError as error:
                results.append(error)
            else:
                results.append(None)
                good.append(put_)
        written = iter(await self.backend.put_many(good))
        return encode(
            {
                "results": [
                    batch_result(put_.key, next(written) if result is None else result)
                    for put_, result in zip(batch.puts, results, strict=True)
                ]
            }
        )

    @cached_property
    def openapi_json(self) -> bytes:
        return encode(self.openapi_schema.to_schema())

    # the short way

    async def _answer_key(self, scope: Any, headers: dict[bytes, bytes], receive: Receive) -> bytes:
        key = key_in(scope, "/v1/keys/")
        match scope["method"]:
            case "PUT":
                body = await self._body(headers, receive)
                return await self.put(key, parse_body(decode_write, body), len(body))
            case "GET":
                if not scope["query_string"]:
                    return await self.get(key)
                query = parse_qs(scope["query_string"].decode("ascii", "replace"), keep_blank_values=True)
                return await self.get(key, consistency_in(query), query.get("at", [None])[-1])
            case "DELETE":
                query = parse_qs(scope["query_string"].decode("ascii", "replace"))
                context = query.get("context", [None])[-1]
                return await self.delete(key, context, flag(query, "conditional"), number(query, "expect"))
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
                raise body_over(self._body_bytes_max)
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
                408, "timeout", f"the body did not arrive in {BODY_SECONDS_MAX:g} s; send it at once", headers=CLOSE
            ) from None
        if over:
            raise body_over(self._body_bytes_max)
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
            if PORT.sub(b"", host).strip(b"[]").lower() not in self._own_hosts:
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

    def check_key(self, key: str) -> None:
        # Only a key of more than a quarter of the limit's characters can be over its bytes.
        if not key:
            raise UsageError("the key is empty; a key has at least 1 byte")
        if len(key) * 4 > self._key_bytes_max and (size := len(key.encode())) > self._key_bytes_max:
            raise LimitError(f"the key has {size} bytes; the limit is {self._key_bytes_max}: shorten it")

    def check_value(self, value: Any, bytes_max: int) -> None:
        """`bytes_max` is what the value cannot be longer than, known from where it stood."""
        if isinstance(value, dict | list):
            check_depth(value)
        elif not isinstance(value, str):
            return
        if bytes_max > self._value_bytes_max and (size := len(encode(value))) > self._value_bytes_max:
            raise LimitError(
                f"the value has {size} bytes of JSON; the limit is {self._value_bytes_max}: "
                "split it over several keys or raise limits.value_bytes_max"
            )
