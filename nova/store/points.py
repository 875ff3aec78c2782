"""Rollback points: whole states of a key in its audit trail, and the way back to one.

A rollback writes; it never takes anything out of the history. What it writes knows, and so supersedes, exactly what the
one who asked for it had read: the clock he hands over. A write that came in the meantime, or comes later from a replica
that had not heard of the rollback, is not undone: the first stays and is told, the second is a conflict like any other.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import msgspec

from nova.conflict.audit import AuditEvent, AuditLog, point_body, rollback_body
from nova.conflict.detect import MISSING
from nova.crdt.keyspace import Entry as Rows
from nova.crdt.keyspace import Row
from nova.digest import digest128
from nova.errors import KeyNotFoundError, LimitError, UsageError
from nova.store.kinds import BY_CODE, KINDS, kind_named

if TYPE_CHECKING:
    from nova.store.core import Replica

_pack = msgspec.msgpack.Encoder(order="deterministic").encode
_unpack = msgspec.msgpack.Decoder().decode


POINTS_MAX: Final = 100
POINT_BYTES_MAX: Final = 16 * 1024 * 1024
NOTE_CHARACTERS_MAX: Final = 1000
"""Of the note of a point, and of the name of who rolls back."""


class Point(msgspec.Struct, frozen=True):
    """A state that a key can be brought back to: `value` is what it held at `time_ms`, when its clock was `clock`."""

    id: str
    key: str
    time_ms: int
    kind: str
    value: Any
    clock: dict[str, int]
    note: str


class Rollback(msgspec.Struct, frozen=True):
    """What a rollback did.

    point      where the key is again; `undo` is a point from just before, None if nothing had to change
    restored   path -> value that is there again; `removed` are the paths that are gone again
    kept       writes that it did not know of, and left: path, value, origin
    discarded  the values that it replaced: path, value, origin, reason
    """

    point: str
    undo: str | None
    restored: dict[str, Any]
    removed: list[str]
    kept: list[dict[str, Any]]
    discarded: list[dict[str, Any]]


def make_point(replica: Replica, key: str, note: str = "") -> tuple[int, str]:
    """Keep what a key holds now as a point; (token, id). Durable with the event Durable of that token.

    raises  KeyNotFoundError; LimitError for a state over POINT_BYTES_MAX or a note over NOTE_CHARACTERS_MAX
    """
    _check_words("note", note)
    rows = replica.space.get(key)
    if rows is None:
        raise KeyNotFoundError(f"key {key!r} holds nothing; there is no state to keep")
    kind = BY_CODE[rows.kind].name
    leaves, clock = _settled(replica, rows), dict(rows.clock)
    now = replica.now_ms()
    state = _pack([key, leaves, clock, now, note])
    if len(state) > POINT_BYTES_MAX:
        raise LimitError(
            f"the state of {key!r} takes {len(state)} bytes; a point holds at most {POINT_BYTES_MAX}: "
            "split the key over several"
        )
    point = "p" + digest128(state).hex()[:15]
    return replica.note("point", point, key, point_body(point, kind, leaves, clock, note), now), point


def point_of(event: AuditEvent) -> Point:
    """The point that a `point` event keeps."""
    body = event.body
    kind = kind_named(body["kind"])
    value = kind.join(body["leaves"])
    return Point(body["point"], event.resource_id, event.time_ms, kind.name, value, body["clock"], body["note"])


def points(audit: AuditLog, key: str) -> list[Point]:
    """The newest points of a key on this node, at most POINTS_MAX, oldest first."""
    return [point_of(event) for event in audit.latest(POINTS_MAX, resource=key, type="point")]


def chosen(audit: AuditLog, key: str, to: str) -> AuditEvent:
    """The point event that `to` names: an id, or the beginning of one that only one of the newest points has.

    raises  KeyNotFoundError
    """
    found = audit.latest(1, resource=key, conflict=to, type="point")
    if not found and to:
        newest = audit.latest(POINTS_MAX, resource=key, type="point")
        found = [event for event in newest if event.conflict_id.startswith(to)]
    if len(found) != 1:
        problem = f"{to!r} is the beginning of {len(found)} points" if found else f"there is no point {to!r}"
        raise KeyNotFoundError(f"{problem} of {key!r} on this node; nova points list shows those that there are")
    return found[0]


def roll_back(
    replica: Replica, key: str, point: AuditEvent, context: Mapping[str, int] | None = None, by: str = ""
) -> tuple[int, Rollback]:
    """Bring a key back to a point of it, by a write; (token, what it did).

    context  the clock that the decision was made on; rows that it does not know are left as they are. None: the clock
             that the key has now
    raises   UsageError if the point is of another key, or the key holds another kind by now; UnavailableError for a
             context that is ahead of this replica, or a key that is frozen; LimitError as for `make_point`
    """
    _check_words("by", by)
    replica.check_frozen(key)
    if point.type != "point" or point.resource_id != key:
        raise UsageError(f"event {point.seq} is no rollback point of {key!r}; nova points list shows those that are")
    to, wanted, kind = point.body["point"], dict(point.body["leaves"]), kind_named(point.body["kind"])
    rows = replica.space.get(key)
    if rows is not None and rows.kind != kind.code:
        raise UsageError(f"{key!r} holds a {BY_CODE[rows.kind].name} now, point {to} a {kind.name}; delete it first")
    present: dict[str, list[Row]] = {path: list(items) for path, items in rows.live()} if rows is not None else {}
    read = dict(rows.clock if rows is not None else {}) if context is None else dict(context)
    unseen = {
        path: late
        for path, items in present.items()
        if (late := [row for row in items if read.get(row.write.dot.actor, 0) < row.write.dot.count])
    }
    leaves = _settled(replica, rows) if rows is not None else {}
    if kind is KINDS["counter"]:
        puts, drops = _recount(kind, wanted, leaves, present, unseen, replica.space.actor)
        kept_paths: Mapping[str, list[Row]] = {}
    else:
        puts = {
            path: value
            for path, value in wanted.items()
            if path not in unseen and (path not in leaves or any(row.value != _pack(value) for row in present[path]))
        }
        drops = [path for path in present if path not in wanted and path not in unseen]
        kept_paths = unseen
    kept = [_told(path, row) for path, items in sorted(kept_paths.items()) for row in items]
    discarded = [
        {**_told(path, row), "reason": f"rolled back to {to}"}
        for path in sorted([*puts, *drops])
        for row in present.get(path, ())
        if path not in puts or row.value != _pack(puts[path])
    ]
    undo = None
    if puts or drops:
        if rows is not None:
            _, undo = make_point(replica, key, f"before the rollback to {to}")
        packed = [(path, _pack(value)) for path, value in puts.items()] or [("", _pack(None))]
        replica.write_back(key, kind.code, packed, drops, read)
    done = Rollback(to, undo, puts, sorted(drops), kept, discarded)
    after = replica.space.get(key)
    token = replica.note(
        "rollback",
        to,
        key,
        rollback_body(
            to, by=by, restored=puts, removed=drops, kept=kept, discarded=discarded,
            clock=dict(after.clock) if after is not None else {},
        ),
        replica.now_ms(),
    )  # fmt: skip
    return token, done


def _check_words(name: str, words: str) -> None:
    if len(words) > NOTE_CHARACTERS_MAX:
        raise LimitError(f"`{name}` has {len(words)} characters; the limit is {NOTE_CHARACTERS_MAX}: shorten it")


def _recount(
    kind: Any,
    wanted: Mapping[str, Any],
    leaves: Mapping[str, Any],
    present: Mapping[str, list[Row]],
    unseen: Mapping[str, list[Row]],
    actor: str,
) -> tuple[dict[str, Any], list[str]]:
    """A counter goes back by an addition of its own, so that what others add meanwhile still counts."""
    seen = {path: leaf for path, leaf in leaves.items() if path not in unseen}
    seen |= {path: wanted[path] for path in unseen if path in wanted}
    amount = kind.join(wanted) - kind.join(seen)
    if not amount and present:
        return {}, []
    puts, drops = kind.patch(amount, leaves, actor)
    return dict(puts), list(drops)


def _settled(replica: Replica, rows: Rows) -> dict[str, Any]:
    leaves, contended = replica.parts(rows)
    if contended:
        _, resolution = replica.conflicts.settle(rows, contended)
        leaves |= {path: value for path, value in resolution.settled.items() if value is not MISSING}
    return leaves


def _told(path: str, row: Row) -> dict[str, Any]:
    actor = row.write.dot.actor
    return {"path": path, "value": _unpack(row.value), "origin": actor.rpartition("~")[0] or actor}


__all__ = ["Point", "Rollback", "chosen", "make_point", "point_of", "points", "roll_back"]
