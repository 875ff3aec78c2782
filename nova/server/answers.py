"""Answers and refusals of the HTTP API, and what is read out of a request."""

from __future__ import annotations

import itertools
import logging
import os
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote_to_bytes

import msgspec
from litestar import Request, Response
from litestar.enums import MediaType
from litestar.exceptions import HTTPException
from litestar.types import Scope, Send

from nova.consensus.core import NotLeaderError
from nova.errors import (
    CompactedError,
    KeyNotFoundError,
    LimitError,
    StaleContextError,
    UnavailableError,
    UsageError,
)
from nova.server.addresses import is_loopback, split_address
from nova.server.config import NodeConfig
from nova.server.models import Headers, NotWritten, Written, encode
from nova.store.model import Entry

log = logging.getLogger("nova.server")
VALUE_DEPTH_MAX = 64


JSON_TYPE = (b"content-type", b"application/json")


class Refusal(Exception):
    """A request that the HTTP face turns down by itself."""

    def __init__(self, status: int, code: str, message: str, *, headers: Headers | None = None, **extra: Any) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.headers = headers or []
        self.extra = extra


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
            extra = {"leader": error.leader} if isinstance(error, NotLeaderError) else {}
            headers = [(b"retry-after", b"%d" % max(1, -(-error.retry_after_ns // 1_000_000_000)))]
        case HTTPException(status_code=status) if status < 500:
            code, message = _litestar_words(error)
            return status, _problem_json(code, message, request_id, {}), CLOSE if status == 413 else []
        case _:
            log.error("request %s failed", request_id.decode(), exc_info=error)
            message = f"the node failed; its log has the reason under request {request_id.decode()}"
            return 500, _problem_json("internal", message, request_id, {}), []
    return status, _problem_json(code, str(error), request_id, extra), headers


def _problem_json(code: str, message: str, request_id: bytes, extra: dict[str, Any]) -> bytes:
    return encode({"code": code, "error": message, "request_id": request_id.decode(), **extra})


def litestar_problem(request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    status, body, headers = problem(error, request.scope["state"]["request_id"])
    return answer(body, status, {name.decode(): value.decode() for name, value in headers})


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


def answer(body: bytes, status: int = 200, headers: dict[str, str] | None = None) -> Response[bytes]:
    return Response(body, status_code=status, media_type=MediaType.JSON, headers=headers)


def entry_json(entry: Entry) -> bytes:
    return b'%b,"time_ms":%d}' % (encode(entry)[:-1], entry.timestamp >> 16)


def batch_result(key: str, result: Entry | Exception) -> Written | NotWritten:
    match result:
        case Entry():
            return Written(key, result.clock, result.timestamp, result.dot)
        case UsageError() | UnavailableError():
            return NotWritten(key, result.code, str(result))
        case _:
            log.error("put of %r in a batch failed", key, exc_info=result)
            return NotWritten(key, "internal", "the node failed; its log has the reason")


def conflict(error: StaleContextError, value: Any, context: dict[str, int] | None) -> Refusal:
    return Refusal(409, error.code, str(error), current=error.current, yours={"value": value, "context": context})


def body_over(limit: int) -> Refusal:
    # The rest of the body may not be read, so the connection cannot go on.
    return Refusal(413, "limit", f"the body is over the limit of {limit} bytes; send less at once", headers=CLOSE)


CLOSE: Headers = [(b"connection", b"close")]


def stamped(send: Send, request_id: bytes) -> Send:
    async def stamped(message: Any) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message["headers"], (b"x-request-id", request_id)]
        await send(message)

    return stamped


def key_in(scope: Scope | Any, before: str) -> str:
    """The key behind `before` in the path, percent-decoded by the byte."""
    raw: bytes = scope.get("raw_path") or scope["path"].encode()
    raw = raw[len(before) :]
    try:
        return (unquote_to_bytes(raw) if b"%" in raw else raw).decode()
    except UnicodeDecodeError:
        raise UsageError(f"the key {raw[:80]!r} is not UTF-8; percent-encode the bytes of its UTF-8 form") from None


def parse_body(decode: Any, body: bytes) -> Any:
    try:
        return decode(body)
    except msgspec.ValidationError as error:
        raise UsageError(f"the body does not fit: {error}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"not valid JSON: {error}") from None
    except RecursionError:
        raise _too_deep() from None


def check_depth(value: Any) -> None:
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


def flag(query: dict[str, list[str]], name: str) -> bool:
    text = query.get(name, ["false"])[-1].lower()
    if text not in ("true", "1", "false", "0"):
        raise UsageError(f"{name}={text!r} is neither true nor false")
    return text in ("true", "1")


def number(query: dict[str, list[str]], name: str) -> int | None:
    if (text := query.get(name, [None])[-1]) is None:
        return None
    if not re.fullmatch(r"[0-9]{1,19}", text):
        raise UsageError(f"{name}={text!r} is no whole number of 0 or more")
    return int(text)


def consistency_in(query: dict[str, list[str]]) -> str | None:
    return query.get("consistency", [None])[-1]


PORT = re.compile(rb":[0-9]*$")
is_request_id = re.compile(rb"[A-Za-z0-9._-]{1,64}").fullmatch


def request_ids() -> Iterator[bytes]:
    """Names for requests that come without one: a prefix for this process, then a number."""
    prefix = os.urandom(4).hex().encode()
    return (b"%b-%d" % (prefix, number) for number in itertools.count(1))


def own_hosts(config: NodeConfig) -> set[bytes] | None:
    """Names that a local client may call this node, None: any."""
    if config.token or not is_loopback(config.http):
        return None
    return {b"127.0.0.1", b"localhost", b"::1", split_address(config.http)[0].lower().encode()}


def number_of(after: str | None) -> int:
    """Where a page of audit events begins. Raises UsageError for what is no number of an event."""
    if not after:
        return 0
    if not after.isascii() or not after.isdecimal() or len(after) > 18:
        raise UsageError(f"after is {after[:80]!r}; give the number of an event, as `next` of the last page")
    return int(after)
