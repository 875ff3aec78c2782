"""The audit trail told in sentences."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from nova.conflict.audit.chain import GENESIS, AuditEvent
from nova.conflict.words import show


def when(time_ms: int) -> str:
    """Unix milliseconds as ISO 8601 in UTC; numbers no calendar holds stay numbers."""
    try:
        moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=time_ms)
    except OverflowError:
        return f"{time_ms} ms"
    return moment.isoformat(sep=" ", timespec="milliseconds").replace("+00:00", "Z")


def describe(event: AuditEvent) -> str:
    """An event in one sentence."""
    body: Mapping[str, Any] = event.body
    about = event.resource_id
    match event.type:
        case "detect":
            writers = _listed(sorted({str(version.get("origin")) for version in _maps(body.get("versions"))}))
            claims = [str(claim.get("resource")) for claim in _maps(body.get("contentions"))]
            paths = [path for path in _texts(body.get("paths")) if path]
            text = f"conflict {event.conflict_id[:8]} on {about}: {_listed(_texts(body.get('types')))}"
            text += f", severity {body['severity']}" if "severity" in body else ""
            text += f", at {_listed(paths)}" if paths else ""
            text += f", over {_listed(claims)}" if claims else ""
            text += f", between {writers}" if writers else ""
        case "resolve":
            body = _resolution(body)
            lost = len(_maps(body.get("discarded")))
            text = f"conflict {event.conflict_id[:8]} on {about} was settled by {body.get('strategy', 'a strategy')}"
            text += f"; {lost} value{'s' if lost != 1 else ''} discarded"
            text += "; pending, somebody has to look" if body.get("pending") else ""
        case "fail":
            text = f"conflict {event.conflict_id[:8]} on {about} could not be settled: {body.get('error', 'no reason')}"
        case "escalate":
            text = f"conflict {event.conflict_id[:8]} on {about} was escalated: {body.get('reason', 'no reason given')}"
            text += f"; {str(body['action']).replace('_', ' ')}" if body.get("action") else ""
            text += f", to {body['to']}" if body.get("to") else ""
        case "vote" if "cast" in body:
            text = f"{body.get('voter', 'a voter')} cast its vote in conflict {event.conflict_id[:8]} on {about}"
        case "vote":
            ballots = [f"{name} {choice}" for name, choice in sorted(_map(body.get("ballots")).items())]
            text = f"a vote on {about}" + (f" asked {body['question']!r}" if "question" in body else "")
            text += f": {_listed(ballots) or 'nobody voted'}; "
            text += f"{body['outcome']} won" if body.get("outcome") is not None else "no majority"
            text += f" ({body['needed']} of {body['voters']} needed)" if "needed" in body and "voters" in body else ""
        case "decision":
            text = f"{body.get('by', 'somebody')} decided conflict {event.conflict_id[:8]} on {about}"
            text += f": {body['note']}" if body.get("note") else ""
        case "point":
            text = f"the state of {about} was kept as point {body.get('point', event.conflict_id)}"
            text += f" ({body['note']})" if body.get("note") else ""
        case "retain":
            text = f"{body.get('dropped', 'old')} events were dropped, the chain now begins behind {body.get('anchor')}"
        case "erase":
            text = f"key {body.get('key', '')} was destroyed: what it sealed cannot be read again"
        case _:
            text = f"{about} was rolled back to {body.get('to', 'an earlier state')}"
            text += f" by {body['by']}" if body.get("by") else ""
            kept = len(_maps(body.get("kept")))
            text += f"; {kept} writes that came meanwhile stay" if kept > 1 else ""
            text += "; 1 write that came meanwhile stays" if kept == 1 else ""
    return f"{when(event.time_ms)} {text}"


def explain(
    resource_id: str,
    value: Any,
    writes: Sequence[Mapping[str, Any]],
    events: Iterable[AuditEvent | Mapping[str, Any]],
) -> str:
    """Why a resource holds what it holds, in plain sentences: its writes, its conflicts, the rules, what was discarded.

    writes  the live rows: mappings with path, value, origin, timestamp or time_ms
    events  audit events, or conflict records as the API shows them, of other resources too: those are passed over
    """
    lines = [f"{resource_id} holds {show(value)}."]
    rows = sorted(writes, key=lambda row: (row.get("timestamp", 0), str(row.get("path", "")), str(row.get("origin"))))
    writers = Counter(row.get("path", "") for row in rows)
    if not rows:
        lines.append("No write of it is live.")
    for row in rows:
        path = row.get("path", "")
        beside = ", concurrently with another write of it" if writers[path] > 1 else ""
        at = when(row.get("time_ms", row.get("timestamp", 0) >> 16))
        lines.append(
            f"{path or 'The value'} was set to {show(row.get('value'))} by {row.get('origin')} at {at}{beside}."
        )
    told = False
    for item in events:
        for event in (item,) if isinstance(item, AuditEvent) else _as_events(item):
            if event.resource_id == resource_id or resource_id in _owners(event.body):
                told = True
                lines += [f"{describe(event)}.", *_details(event)]
    if not told:
        lines.append("No conflict of it is on record.")
    return "\n".join(lines)


def _as_events(record: Mapping[str, Any]) -> Iterator[AuditEvent]:
    """The two events that a conflict record of the API was put together from."""
    for type_ in ("detect", "resolve") if _map(record.get("resolution")) else ("detect",):
        yield AuditEvent(
            0, record.get("detected_ms", 0), type_, str(record.get("id", "")), str(record.get("key", "")),
            dict(record), GENESIS, GENESIS,
        )  # fmt: skip


def _owners(body: Mapping[str, Any]) -> set[str]:
    return {owner for claim in _maps(body.get("contentions")) for owner in _texts(claim.get("owners"))}


def _details(event: AuditEvent) -> Iterator[str]:
    if event.type == "detect":
        for version in _maps(event.body.get("versions")):
            for path, value in sorted(_map(version.get("values")).items()):
                yield f"  {version.get('origin')} wrote {path or 'the value'} = {show(value)}"
            for path in _texts(version.get("missing")):
                yield f"  {version.get('origin')} removed {path or 'it'}"
    elif event.type == "resolve":
        resolution = _resolution(event.body)
        for sentence in _texts(resolution.get("explanation")):
            yield f"  {sentence}"
        yield from _discarded(resolution)
    elif event.type == "decision":
        for path, value in sorted(_map(event.body.get("values")).items()):
            yield f"  {path or 'the value'} shall be {show(value)}"
        for path in _texts(event.body.get("removed")):
            yield f"  {path or 'the value'} shall be gone"
        yield from _discarded(event.body)
    elif event.type == "rollback":
        for path, value in sorted(_map(event.body.get("restored")).items()):
            yield f"  {path or 'the value'} is {show(value)} again"
        for path in _texts(event.body.get("removed")):
            yield f"  {path or 'the value'} is gone again"
        for write in _maps(event.body.get("kept")):
            yield f"  kept: {show(write.get('value'))} of {write.get('origin')} at {write.get('path') or 'the value'}"
        yield from _discarded(event.body)


def _discarded(body: Mapping[str, Any]) -> Iterator[str]:
    for lost in _maps(body.get("discarded")):
        where = lost.get("path") or "the value"
        yield f"  discarded: {show(lost.get('value'))} of {lost.get('origin')} at {where}: {lost.get('reason')}"


def _resolution(body: Mapping[str, Any]) -> Mapping[str, Any]:
    """The resolution in a body, which may be one or hold one."""
    return _map(body.get("resolution", body))


def _listed(words: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1]))) if words else ""


def _map(value: Any) -> Mapping[str, Any]:
    """A map with names for keys, whatever a foreign trail holds there."""
    return {str(name): item for name, item in value.items()} if isinstance(value, Mapping) else {}


def _maps(value: Any) -> list[Mapping[str, Any]]:
    return [item for item in value if isinstance(item, Mapping)] if isinstance(value, list | tuple) else []


def _texts(value: Any) -> list[str]:
    return [str(item) for item in value] if isinstance(value, list | tuple) else []
