"""The routes of the HTTP API."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Annotated, Any

from litestar import Request, Response, delete, get, post, put
from litestar.enums import MediaType
from litestar.params import FromPath, FromQuery, JSONBody, QueryParameter
from litestar.response import Stream

from nova.conflict.audit import AuditQuery, AuditStatistics, Retention
from nova.conflict.healing.checkpoints import Checkpoint
from nova.errors import NovaError
from nova.server.answers import answer, check_depth, entry_json, key_in, number_of
from nova.server.described import described
from nova.server.models import (
    AuditCheck,
    AuditPage,
    Batch,
    BatchResults,
    CheckpointPage,
    ConflictPage,
    Cut,
    CutPeers,
    Decide,
    Dropped,
    HealReport,
    HealWith,
    Keep,
    KeyEntry,
    KeyPage,
    KeyWrite,
    MadePoint,
    NewPoint,
    PeerPage,
    PointPage,
    Ready,
    RollbackTo,
    Status,
    WaitingPage,
    Why,
    Witnesses,
    encode,
)
from nova.server.page import PAGE, PAGE_POLICY
from nova.server.strong_routes import strong_routes
from nova.store.decisions import Decided
from nova.store.model import Change
from nova.store.points import Rollback

if TYPE_CHECKING:
    from nova.server.api import Api

FIRST_ITEM_SECONDS_MAX = 0.05


Limit = Annotated[int, QueryParameter(ge=1, le=1000, description="At most so many items.")]
Consistency = Annotated[
    str | None, QueryParameter(description="Of strong and hybrid keys: linearizable (the default), lease or local.")
]


def routes(api: Api) -> list[Any]:
    backend = api.backend

    @put(
        "/v1/keys/{key:path}",
        operation_id="putKey",
        **described("Write a key, durably.", KeyEntry, 400, 409, 413, 503),
    )
    async def put_key(key: FromPath[str], data: JSONBody[KeyWrite], request: Request[Any, Any, Any]) -> Response[bytes]:
        return answer(await api.put(key_in(request.scope, "/v1/keys/"), data, len(await request.body())))

    @get(
        "/v1/keys/{key:path}",
        operation_id="getKey",
        **described(
            "What a key holds now, or held `at` a time (Unix milliseconds, or as in RFC 3339).", KeyEntry, 400, 404, 503
        ),
    )
    async def get_key(
        key: FromPath[str],
        request: Request[Any, Any, Any],
        consistency: Consistency = None,
        at: FromQuery[str | None] = None,
    ) -> Response[bytes]:
        return answer(await api.get(key_in(request.scope, "/v1/keys/"), consistency, at))

    @delete(
        "/v1/keys/{key:path}",
        operation_id="deleteKey",
        **described("Delete a key, durably; the value in the answer is null.", KeyEntry, 400, 404, 409, 503),
    )
    async def delete_key(
        key: FromPath[str],
        request: Request[Any, Any, Any],
        context: FromQuery[str | None] = None,
        conditional: FromQuery[bool] = False,
        expect: Annotated[int | None, QueryParameter(ge=0, description="The version that a strong key has.")] = None,
    ) -> Response[bytes]:
        return answer(await api.delete(key_in(request.scope, "/v1/keys/"), context, conditional, expect))

    @post(
        "/v1/batch",
        operation_id="putBatch",
        **described("Write many keys in one commit.", BatchResults, 400, 413, 503),
    )
    async def put_batch(data: JSONBody[Batch]) -> Response[bytes]:
        return answer(await api.put_many(data))

    @get("/v1/keys", operation_id="listKeys", **described("Keys in order.", KeyPage, 400, 503))
    async def list_keys(
        prefix: FromQuery[str] = "",
        limit: Limit = 100,
        after: FromQuery[str | None] = None,
        consistency: Consistency = None,
    ) -> Response[bytes]:
        entries, next_ = await backend.list(prefix, limit, after, consistency)
        rows = b",".join([entry_json(entry) for entry in entries])
        return answer(b'{"keys":[%b],"next":%b}' % (rows, encode(next_)))

    @get(
        "/v1/watch",
        operation_id="watch",
        **described("Changes as server-sent events; `id` is the revision, `data` a Change.", Change, 400, 410),
    )
    async def watch(
        request: Request[Any, Any, Any],
        since: Annotated[int | None, QueryParameter(ge=0)] = None,
        prefix: FromQuery[str] = "",
        class_: Annotated[
            str | None, QueryParameter(name="class", description="Only keys of this class: eventual, strong or hybrid.")
        ] = None,
    ) -> Stream:
        if since is None and (seen := request.headers.get("last-event-id", "")).isdecimal():
            since = int(seen)
        return Stream(
            await _events(backend.watch(since, prefix, class_)),
            media_type="text/event-stream",
            headers={"cache-control": "no-store"},
        )

    @get("/v1/status", operation_id="status", **described("The node in numbers.", Status))
    async def status() -> Response[bytes]:
        return answer(encode(backend.status()))

    @get("/v1/peers", operation_id="peers", **described("The nodes that this node knows.", PeerPage))
    async def peers() -> Response[bytes]:
        return answer(encode({"peers": backend.peers()}))

    @get("/v1/conflicts", operation_id="conflicts", **described("Conflicts, newest first.", ConflictPage, 400))
    async def conflicts(
        limit: Limit = 100,
        after: FromQuery[str | None] = None,
        type_: Annotated[str | None, QueryParameter(name="type")] = None,
        strategy: FromQuery[str | None] = None,
        key: FromQuery[str | None] = None,
    ) -> Response[bytes]:
        page = await backend.conflicts(limit=limit, after=after, type=type_, strategy=strategy, key=key)
        return answer(encode(page))

    @get("/v1/why/{key:path}", operation_id="why", **described("How a value came to be.", Why, 400, 404))
    async def why(key: FromPath[str], request: Request[Any, Any, Any]) -> Response[bytes]:
        return answer(encode(await backend.why(key_in(request.scope, "/v1/why/"))))

    @get("/v1/audit", operation_id="audit", **described("The audit trail, oldest first.", AuditPage, 400))
    async def audit(
        resource: FromQuery[str | None] = None,
        conflict: FromQuery[str | None] = None,
        type_: Annotated[str | None, QueryParameter(name="type")] = None,
        since_ms: FromQuery[int | None] = None,
        until_ms: FromQuery[int | None] = None,
        limit: Limit = 100,
        after: FromQuery[str | None] = None,
    ) -> Response[bytes]:
        start = number_of(after)
        return answer(encode(backend.audit(AuditQuery(resource, conflict, type_, since_ms, until_ms, start, limit))))

    @get(
        "/v1/audit/verify",
        operation_id="verifyAudit",
        **described("Check the audit trail, and that it goes through `head` (COUNT:HASH).", AuditCheck, 400),
    )
    async def audit_verify(head: FromQuery[str | None] = None) -> Response[bytes]:
        return answer(encode(await backend.audit_verify(head)))

    @get(
        "/v1/audit/witnesses",
        operation_id="auditWitnesses",
        **described("Which peers hold heads of this node's audit trail, and which it holds of theirs.", Witnesses),
    )
    async def audit_witnesses() -> Response[bytes]:
        return answer(encode(backend.audit_witnesses()))

    @get(
        "/v1/audit/statistics",
        operation_id="auditStatistics",
        **described("The audit trail in numbers, and what recurs.", AuditStatistics, 400),
    )
    async def audit_statistics(top: Limit = 10) -> Response[bytes]:
        return answer(encode(backend.audit_statistics(top)))

    @get("/v1/audit/export", operation_id="exportAudit", summary="The audit trail as JSON Lines.")
    async def audit_export() -> Stream:
        return Stream(backend.audit_export(), media_type="application/jsonl", headers={"cache-control": "no-store"})

    @post(
        "/v1/audit/retain",
        operation_id="retainAudit",
        **described("Drop old audit events; the anchor of the chain moves.", Dropped, 400, 503),
    )
    async def audit_retain(data: JSONBody[Keep]) -> Response[bytes]:
        return answer(encode({"dropped": await backend.audit_retain(Retention(data.age_ms_max, data.events_max))}))

    @get("/v1/points/{key:path}", operation_id="points", **described("Rollback points of a key.", PointPage, 400))
    async def points(key: FromPath[str], request: Request[Any, Any, Any]) -> Response[bytes]:
        return answer(encode({"points": backend.points(key_in(request.scope, "/v1/points/"))}))

    @post(
        "/v1/points/{key:path}",
        operation_id="makePoint",
        **described("Keep what a key holds as a rollback point.", MadePoint, 400, 404, 503),
    )
    async def make_point(
        key: FromPath[str], data: JSONBody[NewPoint], request: Request[Any, Any, Any]
    ) -> Response[bytes]:
        point = await backend.make_point(key_in(request.scope, "/v1/points/"), data.note)
        return answer(encode({"point": point}))

    @post(
        "/v1/rollback/{key:path}",
        operation_id="rollback",
        **described("Bring a key back to a point, by a new write.", Rollback, 400, 404, 503),
    )
    async def rollback(
        key: FromPath[str], data: JSONBody[RollbackTo], request: Request[Any, Any, Any]
    ) -> Response[bytes]:
        done = await backend.rollback(key_in(request.scope, "/v1/rollback/"), data.to, data.context, data.by)
        return answer(encode(done))

    @get("/v1/checkpoints", operation_id="checkpoints", **described("The checkpoints of this node.", CheckpointPage))
    async def checkpoints() -> Response[bytes]:
        return answer(encode(CheckpointPage(backend.checkpoints())))

    @post(
        "/v1/checkpoints",
        operation_id="takeCheckpoint",
        **described("Store the whole state of this node as a point to come back to.", Checkpoint, 503),
    )
    async def checkpoint() -> Response[bytes]:
        return answer(encode(await backend.checkpoint()))

    @post(
        "/v1/heal",
        operation_id="healWith",
        **described("Exchange with a peer now until both hold the same.", HealReport, 400, 503),
    )
    async def heal_with(data: JSONBody[HealWith]) -> Response[bytes]:
        return answer(encode(await backend.heal(data.peer, data.timeout_ms)))

    @get("/v1/decisions", operation_id="waiting", **described("Conflicts that wait for somebody.", WaitingPage, 400))
    async def waiting(limit: Limit = 100) -> Response[bytes]:
        return answer(encode(WaitingPage(backend.waiting(limit))))

    @post(
        "/v1/decisions/{key:path}",
        operation_id="decide",
        **described("Decide a conflict, if its candidates are those that were shown.", Decided, 400, 404, 409, 503),
    )
    async def decide(key: FromPath[str], data: JSONBody[Decide], request: Request[Any, Any, Any]) -> Response[bytes]:
        key = key_in(request.scope, "/v1/decisions/")
        check_depth(data.values)
        return answer(encode(await backend.decide(key, data.shown, data.values, data.by)))

    @post("/v1/chaos/cut", operation_id="cut", **described("Stop talking to peers (--chaos).", CutPeers, 400, 404))
    async def cut(data: JSONBody[Cut]) -> Response[bytes]:
        return answer(encode({"cut": backend.chaos_cut(data.peers)}))

    @post("/v1/chaos/heal", operation_id="heal", **described("Talk to all peers again (--chaos).", CutPeers, 404))
    async def heal() -> Response[bytes]:
        return answer(encode({"cut": backend.chaos_heal()}))

    @get("/metrics", operation_id="metrics", summary="Metrics in the text format of Prometheus.")
    async def metrics() -> Response[bytes]:
        return Response(backend.metrics(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @get("/healthz", operation_id="healthz", **described("The process answers.", dict[str, bool]))
    async def healthz() -> Response[bytes]:
        return answer(b'{"ok":true}')

    @get("/readyz", operation_id="readyz", **described("Whether the node serves; 503 while it does not.", Ready))
    async def readyz() -> Response[bytes]:
        ready, reason = backend.ready()
        return answer(encode(Ready(ready, reason)), 200 if ready else 503)

    @get("/openapi.json", operation_id="openapi", summary="This description.")
    async def openapi() -> Response[bytes]:
        return answer(api.openapi_json)

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
    routes += [waiting, decide, checkpoints, checkpoint, heal_with, *strong_routes(api)]
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
            yield b"event: error\ndata: %b\n\n" % encode({"code": error.code, "error": str(error)})
        finally:
            first.cancel()
            if (close := getattr(changes, "aclose", None)) is not None:
                await close()

    return events()


def _event(change: Change | None) -> bytes:
    if change is None:
        return b": keep-alive\n\n"
    return b"id: %d\nevent: change\ndata: %b\n\n" % (change.revision, encode(change))
