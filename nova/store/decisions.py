"""Conflicts that wait for a person, and decisions about them.

A decision is a compare-and-set: it names the conflict that was shown, and is refused if its siblings changed since.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

import msgspec

from nova.conflict.audit import decision_body, escalate_body
from nova.conflict.detect import MISSING, same
from nova.errors import KeyNotFoundError, LimitError, StaleContextError, UsageError
from nova.store.kinds import BY_CODE

APART = ("resource", "invariant", "semantic")
"""Kinds of conflicts between keys or between parts of one: no value is contended."""

if TYPE_CHECKING:
    from nova.store.core import Replica

_pack = msgspec.msgpack.Encoder(order="deterministic").encode


class Candidate(msgspec.Struct, frozen=True):
    """One of the values that somebody may decide for."""

    path: str
    value: Any
    origin: str
    timestamp: int


class Waiting(msgspec.Struct, frozen=True):
    """A conflict that waits for a decision.

    id          of the record; `shown` is what a decision has to name: it changes with the candidates
    candidates  none where keys contend for one exclusive thing: that is decided by changing one of them
    settled     path -> what stands there until somebody decides
    vote        for what voters are asked about: path -> {"voters": names, "ballots": voter -> candidate value}
    """

    id: str
    shown: str
    key: str
    kind: str
    detected_ms: int
    reason: str
    candidates: list[Candidate]
    settled: dict[str, Any]
    actions: list[dict[str, Any]]
    vote: dict[str, dict[str, Any]] = {}


class Decided(msgspec.Struct, frozen=True):
    """What a decision wrote and dropped."""

    id: str
    key: str
    values: dict[str, Any]
    discarded: list[dict[str, Any]]


def waiting(replica: Replica, limit: int = 100) -> list[Waiting]:
    """What waits for a decision on this node, oldest first."""
    out: list[Waiting] = []
    for record in replica.conflicts.waiting():
        if len(out) == limit:
            break
        out.append(_waiting(replica, record))
    return out


def _waiting(replica: Replica, record: Mapping[str, Any]) -> Waiting:
    rows = replica.space.get(record["key"])
    _, contended = replica.parts(rows) if rows is not None else ({}, {})
    shown, candidates, settled = record["id"], [], {}
    if rows is not None and contended and record["kind"] not in APART:
        conflict, resolution = replica.conflicts.settle(rows, contended)
        shown = conflict.id
        settled = {path: value for path, value in resolution.settled.items() if value is not MISSING}
        candidates = [
            Candidate(path, version.value, version.origin, version.timestamp)
            for path, versions in conflict.siblings.items()
            for version in versions
        ]
    return Waiting(
        id=record["id"],
        shown=shown,
        key=record["key"],
        kind=record["kind"],
        detected_ms=record["detected_ms"],
        reason=record["reason"],
        candidates=candidates,
        settled=settled,
        actions=record["resolution"].get("actions", []),
        vote=replica.conflicts.ballots.progress(record),
    )


class Escalated(msgspec.Struct, frozen=True, array_like=True, tag="es"):
    """Of this conflict this level was told. Whoever comes after me need not tell it again."""

    conflict: str
    level: int


ESCALATION_MESSAGES: Final = (Escalated,)
TOLD_MAX: Final = 1_000


def escalate(replica: Replica) -> list[tuple[str, Escalated]]:
    """Who is told by now of what waits for too long, in words; each level of each conflict once, also over restarts.

    A vote waits for its voters, not for somebody.
    """
    config, now = replica.config, replica.now_ms()
    out: list[tuple[str, Escalated]] = []
    for record in replica.conflicts.waiting() if config.escalate else ():
        waited = now - record["detected_ms"]
        reached = min(waited // config.escalate_ms, len(config.escalate))
        if reached <= record.get("level", 0) or replica.conflicts.ballots.waits(record):
            continue
        for level in range(record.get("level", 0) + 1, reached + 1):
            to = config.escalate[level - 1]
            text = f"conflict {record['id']} of {record['key']!r} is undecided for {waited // 1000} s: tell {to}"
            message = Escalated(record["id"], level)
            escalated(replica, message)
            out.append((text, message))
    return out


def escalated(replica: Replica, message: Escalated) -> None:
    """Note in the chain that a level was told, here or by another node; nothing, if it or a later one is noted."""
    level, record = message.level, replica.conflicts.held(message.conflict)
    if record is None or record.get("level", 0) >= level:
        return
    record["level"] = level
    now, to = replica.now_ms(), replica.config.escalate[level - 1 : level]
    waited = max(now - record["detected_ms"], 0)
    body = escalate_body("notify", f"undecided for {waited // 1000} s, level {level}", to[0] if to else None)
    replica.note("escalate", record["id"], record["key"], {**body, "level": level}, now)


def levels(replica: Replica) -> list[Escalated]:
    """What was told of what waits, for a node that was away."""
    told = (Escalated(record["id"], record["level"]) for record in replica.conflicts.waiting() if record.get("level"))
    return list(islice(told, TOLD_MAX))


def decide(replica: Replica, key: str, shown: str, values: Mapping[str, Any], by: str = "") -> tuple[int, Decided]:
    """Write what somebody decided about a key; (token, what it did). It supersedes the candidates that were shown.

    shown   `Waiting.shown`, as it was when the decision was made
    values  path -> value for every path that has candidates, {"": value} for a whole value
    raises  StaleContextError if the candidates are others by now, or nothing is contended any more; its `current` is
            what waits now. KeyNotFoundError; UsageError if the values do not fit; LimitError if they are too large
    """
    rows = replica.space.get(key)
    if rows is None:
        raise KeyNotFoundError(f"key {key!r} holds nothing; there is nothing to decide")
    leaves, contended = replica.parts(rows)
    if not contended:
        raise StaleContextError(f"stale decision: nothing about {key!r} is contended any more; read it again")
    conflict, _ = replica.conflicts.settle(rows, contended)
    if conflict.id != shown:
        present = next((each for each in waiting(replica, 10_000) if each.key == key), None)
        raise StaleContextError(
            f"stale decision: siblings changed; {key!r} is now {conflict.id}, not {shown}: look at its candidates and "
            "decide again",
            present,
        )
    if wrong := sorted(values.keys() ^ contended.keys()):
        raise UsageError(
            f"the decision about {key!r} and its candidates differ at {wrong[0] or 'the value'}; give a value for each "
            f"of {', '.join(path or 'the value' for path in sorted(contended))}, and for nothing else"
        )
    kind = BY_CODE[rows.kind]
    kind.split(kind.join({**leaves, **values}))  # raises for what the kind does not take
    puts = [(path, _pack(values[path])) for path in sorted(values)]
    if (size := sum(len(value) for _, value in puts)) > replica.config.value_bytes_max:
        raise LimitError(f"the decision takes {size} bytes; the limit is {replica.config.value_bytes_max}")
    reason = f"{by or 'somebody'} decided otherwise"
    discarded = [
        {"path": path, "value": version.value, "origin": version.origin, "reason": reason}
        for path, versions in conflict.siblings.items()
        for version in versions
        if not same(version.value, values[path])
    ]
    replica.write_back(key, rows.kind, puts, [], rows.clock)
    body = decision_body(by or "somebody", values, discarded)
    token = replica.note("decision", conflict.id, key, body, replica.now_ms())
    return token, Decided(conflict.id, key, dict(values), discarded)


__all__ = ["Candidate", "Decided", "Waiting", "decide", "waiting"]
