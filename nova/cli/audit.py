"""nova audit, points, rollback."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

import typer

from nova.cli.client import Client, key_path
from nova.cli.output import (
    DEFAULT_NODE,
    Clock,
    Json,
    Node,
    Token,
    parse_clock,
    print_facts,
    print_json,
    print_table,
    words,
)
from nova.conflict.audit import ChainMark, decode_event, import_lines, verify, when
from nova.errors import CorruptionError, UsageError

audit = typer.Typer(
    help="Read, check and keep the audit trail.", add_completion=False, rich_markup_mode=None, no_args_is_help=True
)
points = typer.Typer(
    help="Keep states of a key to return to.", add_completion=False, rich_markup_mode=None, no_args_is_help=True
)

Limit = Annotated[int, typer.Option(min=1, max=1000, help="At most so many.")]
After = Annotated[str | None, typer.Option(help="Go on behind this one (`next` of the page before).")]
Head = Annotated[
    str | None, typer.Option(metavar="COUNT:HASH", help="A head that was kept elsewhere: the chain must go through it.")
]
KeyFile = Annotated[Path | None, typer.Option("--key-file", help="File with the audit key, if the node has one.")]
Name = Annotated[str, typer.Argument(metavar="KEY", help="Name of the key.", show_default=False)]

DAY_MS = 86_400_000


@audit.command("list")
def audit_list(
    resource: Annotated[str | None, typer.Option(help="Only events about this key.")] = None,
    conflict: Annotated[str | None, typer.Option(help="Only events of this conflict.")] = None,
    type_: Annotated[str | None, typer.Option("--type", help="Only this type.")] = None,
    since_ms: Annotated[int | None, typer.Option(help="Only from this time on, milliseconds since 1970.")] = None,
    until_ms: Annotated[int | None, typer.Option(help="Only before this time.")] = None,
    limit: Limit = 20,
    after: After = None,
    node: Node = DEFAULT_NODE,
    token: Token = None,
    as_json: Json = False,
) -> None:
    """List events of the audit trail.

    Example: nova audit list --resource vm/7
    """
    with Client(node, token) as client:
        page = client.get(
            "/v1/audit", resource=resource, conflict=conflict, type=type_, since_ms=since_ms, until_ms=until_ms,
            limit=limit, after=after,
        )  # fmt: skip
    if as_json:
        print_json(page)
        return
    for event in page["events"]:
        print("  ".join(f"{name}={words(value)}" for name, value in event.items()))
    if not page["events"]:
        print("no events")


@audit.command("verify")
def audit_verify(
    data: Annotated[
        str | None, typer.Option(metavar="DIR", help="Check the data directory of a node, without the node.")
    ] = None,
    export: Annotated[Path | None, typer.Option(metavar="FILE", help="Check a file of `nova audit export`.")] = None,
    head: Head = None,
    key_file: KeyFile = None,
    node: Node = DEFAULT_NODE,
    token: Token = None,
    as_json: Json = False,
) -> int:
    """Check the hash chain of the audit trail; the exit code is 1 if it is broken.

    A chain does not see that its end was cut off: keep `nova audit head` elsewhere, and give it here as --head.

    Example: nova audit verify --data ./nova-data
    """
    if export is not None:
        check = _verify_file(export, head, _key(key_file))
    elif data is not None:
        from nova.store import verify_audit

        check = verify_audit(data, head, _key(key_file))
    else:
        with Client(node, token) as client:
            check = client.get("/v1/audit/verify", head=head)
    if as_json:
        print_json(check)
    elif check["ok"]:
        print(f"the audit trail is whole: {check['events']} events, head {check['head']}")
    else:
        print(f"the audit trail is broken behind {check['events']} events: {check.get('error')}")
    return 0 if check["ok"] else 1


def _verify_file(path: Path, head: str | None, key: bytes) -> dict[str, Any]:
    """An export is checked from its first event on, wherever retention had moved the beginning to."""
    with path.open("rb") as file:
        records = import_lines(file)
        try:
            first = next(records, None)
            if first is None:
                return {"ok": False, "events": 0, "head": "", "error": "the file holds no event"}
            event = decode_event(first)
            anchor = ChainMark(event.seq - 1, event.previous)
            verdict = verify(chain([first], records), ChainMark.parse(head) if head else None, anchor=anchor, key=key)
        except CorruptionError as error:
            return {"ok": False, "events": 0, "head": "", "error": str(error)}
    return {"ok": verdict.ok, "events": verdict.events, "head": verdict.head.hash.hex(), "error": verdict.error}


def _key(path: Path | None) -> bytes:
    if path is None:
        return b""
    try:
        return path.read_bytes().strip()
    except OSError as error:
        raise UsageError(f"--key-file {path}: {error.strerror}") from None


@audit.command("head")
def audit_head(node: Node = DEFAULT_NODE, token: Token = None, as_json: Json = False) -> None:
    """Print COUNT:HASH of the newest event, to keep where this node cannot write.

    Example: nova audit head
    """
    with Client(node, token) as client:
        head = client.get("/v1/audit/statistics", top=1)["head"]
    print_json({"head": head}) if as_json else print(head)


@audit.command("witnesses")
def audit_witnesses(node: Node = DEFAULT_NODE, token: Token = None, as_json: Json = False) -> None:
    """Show which peers hold heads of this node's trail, and which heads it holds of theirs.

    Example: nova audit witnesses
    """
    with Client(node, token) as client:
        found = client.get("/v1/audit/witnesses")
    if as_json:
        print_json(found)
        return
    rows = [("holds ours", peer, head, found["accused_by"].get(peer, "")) for peer, head in found["held_by"].items()]
    rows += [("held here", peer, head, "") for peer, heads in found["holds"].items() for head in heads]
    print_table(("", "PEER", "HEAD", "PROBLEM"), rows, "no peer holds a head yet, and none is held here")


@audit.command("stats")
def audit_stats(top: Limit = 10, node: Node = DEFAULT_NODE, token: Token = None, as_json: Json = False) -> None:
    """Show how many events there are, which conflicts recur, and where most are.

    Example: nova audit stats
    """
    with Client(node, token) as client:
        stats = client.get("/v1/audit/statistics", top=top)
    if as_json:
        print_json(stats)
        return
    print_facts(
        {
            "events": stats["events"],
            **{f"  {type_}": count for type_, count in sorted(stats["by_type"].items())},
            "oldest": when(stats["first_ms"]) if stats["first_ms"] is not None else None,
            "newest": when(stats["last_ms"]) if stats["last_ms"] is not None else None,
            "anchor": stats["anchor"].partition(":")[0],
            "head": stats["head"],
        }
    )
    for title, field in (("RECURS", "patterns"), ("HOTSPOT", "hotspots")):
        rows = [(found["kind"], found["subject"], found["count"], found["error"]) for found in stats[field]]
        if rows:
            print()
            print_table((title, "SUBJECT", "COUNT", "AT MOST TOO HIGH BY"), rows, "")


@audit.command("export")
def audit_export(
    file: Annotated[Path, typer.Argument(help="Where to; - for standard output.", show_default=False)],
    node: Node = DEFAULT_NODE,
    token: Token = None,
) -> None:
    """Write the audit trail to a file of JSON Lines, which `nova audit verify --export` checks.

    The file appears when it is complete, under its name or not at all.

    Example: nova audit export trail.jsonl
    """
    with Client(node, token) as client:
        lines = client.lines("/v1/audit/export")
        if str(file) == "-":
            for line in lines:
                sys.stdout.buffer.write(line)
            return
        count = write_whole(file, lines)
    print(f"{count} events written to {file}")


def write_whole(path: Path, lines: Iterable[bytes]) -> int:
    """Write lines to a file that has its name only when all of them are on disk; how many there were."""
    temporary = path.with_name(path.name + ".part")
    count = 0
    try:
        with temporary.open("wb") as out:
            for line in lines:
                out.write(line)
                count += 1
            out.flush()
            os.fsync(out.fileno())
        temporary.rename(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
    return count


@audit.command("retain")
def audit_retain(
    days: Annotated[float | None, typer.Option(min=0, help="Keep events of so many days.")] = None,
    events: Annotated[int | None, typer.Option(min=0, help="Keep at most so many events.")] = None,
    node: Node = DEFAULT_NODE,
    token: Token = None,
    as_json: Json = False,
) -> None:
    """Drop old events. The chain goes on to be verifiable: its anchor moves, and an event says so.

    Example: nova audit retain --days 365
    """
    if days is None and events is None:
        raise UsageError("nothing says what to keep; give --days or --events")
    with Client(node, token) as client:
        answer = client.post(
            "/v1/audit/retain",
            {"age_ms_max": None if days is None else int(days * DAY_MS), "events_max": events},
        )
    print_json(answer) if as_json else print(f"{answer['dropped']} events dropped")


@points.command("list")
def points_list(key: Name, node: Node = DEFAULT_NODE, token: Token = None, as_json: Json = False) -> None:
    """List the rollback points of a key that this node keeps, oldest first.

    Example: nova points list vm/7
    """
    with Client(node, token) as client:
        page = client.get(key_path("/v1/points", key))
    if as_json:
        print_json(page)
        return
    rows = [(point["id"], when(point["time_ms"]), point["note"], point["value"]) for point in page["points"]]
    print_table(("POINT", "TIME", "NOTE", "VALUE"), rows, "no points")


@points.command("save")
def points_save(
    key: Name,
    note: Annotated[str, typer.Option(help="What the point is for.")] = "",
    node: Node = DEFAULT_NODE,
    token: Token = None,
    as_json: Json = False,
) -> None:
    """Keep what a key holds now as a rollback point.

    Example: nova points save vm/7 --note 'before the upgrade'
    """
    with Client(node, token) as client:
        made = client.post(key_path("/v1/points", key), {"note": note})
    print_json(made) if as_json else print(made["point"])


def rollback(
    key: Name,
    to: Annotated[str, typer.Option("--to", metavar="POINT", help="Where to; `nova points list` shows them.")],
    context: Clock = None,
    by: Annotated[str, typer.Option(help="Who asks for it; told by `nova why`.")] = "",
    node: Node = DEFAULT_NODE,
    token: Token = None,
    as_json: Json = False,
) -> None:
    """Bring a key back to a rollback point, by a new write. Writes that --context does not know are left alone.

    Example: nova rollback vm/7 --to p23e5fadcb851e8d
    """
    with Client(node, token) as client:
        done = client.post(key_path("/v1/rollback", key), {"to": to, "context": parse_clock(context), "by": by})
    if as_json:
        print_json(done)
        return
    changed = len(done["restored"]) + len(done["removed"])
    print(f"{key} is at {done['point']} again: {changed} path{'s' if changed != 1 else ''} changed")
    for write in done["kept"]:
        print(f"  kept {words(write['value'])} of {write['origin']} at {write['path'] or 'the value'}")
    if done["undo"]:
        print(f"undo with: nova rollback {key} --to {done['undo']}")
