"""nova put, get, delete, list, watch."""

from __future__ import annotations

import re
import sys
import time
from typing import Annotated, Any

import msgspec
import typer

from nova.cli.client import Client, key_path
from nova.cli.output import (
    DEFAULT_NODE,
    Clock,
    Conditional,
    Consistency,
    Expect,
    Json,
    Node,
    Token,
    parse_clock,
    print_json,
    print_pretty,
    print_table,
    words,
)
from nova.errors import StaleContextError, UsageError

Key = Annotated[str, typer.Argument(help="Name of the key, slashes included.", show_default=False)]


def put(
    key: Key,
    value: Annotated[str, typer.Argument(help="JSON; a bare word is a string; - reads JSON from standard input.")],
    kind: Annotated[str | None, typer.Option(help="register, vm, map, set or counter.")] = None,
    merge: Annotated[bool, typer.Option("--merge", help="Write the fields of VALUE, leave the others alone.")] = False,
    context: Clock = None,
    conditional: Conditional = False,
    expect: Expect = None,
    node: Node = DEFAULT_NODE,
    token: Token = None,
    as_json: Json = False,
) -> None:
    """Write a key; returns when it is on disk.

    Example: nova put vm/7 '{"cpus": 4, "memory_mb": 8192}' --kind vm
    """
    body: dict[str, Any] = {"value": parse_value(value)}
    body |= {
        name: given
        for name, given in (
            ("kind", kind),
            ("merge", merge),
            ("context", parse_clock(context)),
            ("conditional", conditional),
        )
        if given
    }
    if expect is not None:
        body["expect"] = expect
    with Client(node, token) as client:
        entry = _telling_conflicts(lambda: client.put(key_path("/v1/keys", key), body), as_json)
    if as_json:
        print_json(entry)
    elif "version" in entry:
        print(f"{key} written, version {entry['version']}")
    else:
        print(f"{key} written at revision {entry['revision']}")


def get(
    key: Key,
    at: Annotated[
        str | None, typer.Option(metavar="TIME", help="What it held then: Unix milliseconds, or 2026-01-31T12:00:00Z.")
    ] = None,
    consistency: Consistency = None,
    node: Node = DEFAULT_NODE,
    token: Token = None,
    as_json: Json = False,
) -> None:
    """Print what a key holds, or held at a time; --json adds its clock and any concurrent values, or the version of a
    strong key.

    The past reaches back to the oldest checkpoint. For one key, too, the node builds the whole state of that time.

    Example: nova get vm/7
    """
    with Client(node, token) as client:
        entry = client.get(key_path("/v1/keys", key), at=at, consistency=consistency)
    if as_json:
        print_json(entry)
        return
    print_pretty(entry["value"])
    if entry.get("siblings"):
        count = len(entry["siblings"])
        print(f"settled from {count} concurrent values by {entry['strategy']}; see: nova why {key}", file=sys.stderr)


def delete(
    key: Key,
    context: Clock = None,
    conditional: Conditional = False,
    expect: Expect = None,
    node: Node = DEFAULT_NODE,
    token: Token = None,
    as_json: Json = False,
) -> None:
    """Delete a key; returns when that is on disk.

    Example: nova delete vm/7
    """
    parse_clock(context)
    query = {"context": context, "conditional": "true" if conditional else None, "expect": expect}
    with Client(node, token) as client:
        entry = _telling_conflicts(lambda: client.delete(key_path("/v1/keys", key), **query), as_json)
    print_json(entry) if as_json else print(f"{key} deleted at revision {entry['revision']}")


def list_keys(
    prefix: Annotated[str, typer.Argument(help="Only keys that start so.")] = "",
    limit: Annotated[int, typer.Option(min=1, help="At most so many keys.")] = 100,
    after: Annotated[str | None, typer.Option(help="Only keys behind this one.")] = None,
    consistency: Consistency = None,
    node: Node = DEFAULT_NODE,
    token: Token = None,
    as_json: Json = False,
) -> None:
    """List keys in order.

    Example: nova list vm/ --limit 20
    """
    entries: list[dict[str, Any]] = []
    with Client(node, token) as client:
        while len(entries) < limit:
            page = client.get(
                "/v1/keys", prefix=prefix, limit=min(1000, limit - len(entries)), after=after, consistency=consistency
            )
            entries += page["keys"]
            after = page["next"]
            if after is None:
                break
    if as_json:
        print_json({"keys": entries, "next": after})
        return
    rows = [
        (
            entry["key"],
            entry["kind"],
            f"{len(entry['siblings'])} concurrent" if entry["siblings"] else "",
            entry["value"],
        )
        for entry in entries
    ]
    print_table(("KEY", "KIND", "CONFLICT", "VALUE"), rows, f"no keys start with {prefix!r}" if prefix else "no keys")
    if after is not None:
        print(f"more: nova list {prefix} --after {after}", file=sys.stderr)


def watch(
    prefix: Annotated[str, typer.Argument(help="Only keys that start so.")] = "",
    since: Annotated[int | None, typer.Option(min=0, help="Changes after this revision; default: from now on.")] = None,
    count: Annotated[int | None, typer.Option(min=1, help="Stop after so many changes.")] = None,
    kind: Annotated[
        str | None, typer.Option("--class", help="Only keys of this class: eventual, strong or hybrid.")
    ] = None,
    node: Node = DEFAULT_NODE,
    token: Token = None,
    as_json: Json = False,
) -> None:
    """Print changes as they happen; --json prints one object a line.

    Example: nova watch vm/ --since 0
    """
    with Client(node, token) as client:
        for number, change in enumerate(client.watch(prefix, since, kind), 1):
            if as_json:
                print_json(change)
            else:
                clock = time.strftime("%H:%M:%S", time.localtime((change["timestamp"] >> 16) / 1000))
                what = "deleted" if change["deleted"] else words(change["value"], 100)
                print(f"{change['revision']:>8}  {clock}  {change['origin']}  {change['key']}  {what}")
            sys.stdout.flush()
            if number == count:
                return


def parse_value(text: str) -> Any:
    """The value that a user typed: JSON, or a bare word as a string."""
    if text == "-":
        text = sys.stdin.read()
    elif not re.match(r'\s*([\[{"\d-]|(true|false|null)\s*$)', text):
        return text
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeEncodeError) as error:
        raise UsageError(f"VALUE {words(text)!r} is not JSON ({error}); quote strings like '\"-5 percent\"'") from None


def _telling_conflicts(write: Any, as_json: bool) -> Any:
    """The answer of a write; where it was refused for a stale clock, both versions are printed first."""
    try:
        return write()
    except StaleContextError as error:
        if isinstance(error.current, dict):
            if as_json:
                print_json(error.current)
            else:
                current = error.current.get("current") or {}
                known = "version" if "version" in current else "clock"
                print_pretty({"current": current.get("value"), known: current.get(known), **error.current["yours"]})
        raise
