"""nova conflicts, why."""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer

from nova.cli.client import Client, key_path
from nova.cli.keys import parse_value
from nova.cli.output import DEFAULT_NODE, Json, Node, Token, print_facts, print_json, print_table, words
from nova.errors import KeyNotFoundError, UsageError

conflicts = typer.Typer(
    help="Show conflicts and how they were settled.", add_completion=False, rich_markup_mode=None, no_args_is_help=True
)

Limit = Annotated[int, typer.Option(min=1, max=1000, help="At most so many.")]
After = Annotated[str | None, typer.Option(help="Go on behind this one (`next` of the page before).")]


@conflicts.command("list")
def conflicts_list(
    limit: Limit = 20,
    after: After = None,
    type_: Annotated[str | None, typer.Option("--type", help="Only this type.")] = None,
    strategy: Annotated[str | None, typer.Option(help="Only those settled by this strategy.")] = None,
    key: Annotated[str | None, typer.Option(help="Only those of this key.")] = None,
    node: Node = DEFAULT_NODE,
    token: Token = None,
    as_json: Json = False,
) -> None:
    """List conflicts, newest first.

    Example: nova conflicts list --type concurrent_update
    """
    with Client(node, token) as client:
        page = client.get("/v1/conflicts", limit=limit, after=after, type=type_, strategy=strategy, key=key)
    if as_json:
        print_json(page)
        return
    rows = [
        (
            conflict["id"],
            _time(conflict["detected_ms"]),
            conflict["key"],
            ", ".join(conflict["types"]),
            (conflict.get("resolution") or {}).get("strategy"),
            conflict["status"],
        )
        for conflict in page["conflicts"]
    ]
    print_table(("ID", "TIME", "KEY", "TYPES", "STRATEGY", "STATUS"), rows, "no conflicts")


@conflicts.command("show")
def conflicts_show(
    id_: Annotated[str, typer.Argument(metavar="ID", help="Id of a conflict.", show_default=False)],
    node: Node = DEFAULT_NODE,
    token: Token = None,
    as_json: Json = False,
) -> None:
    """Show the versions of one conflict, and why it was settled as it was.

    Example: nova conflicts show 3f2a91
    """
    with Client(node, token) as client:
        conflict = _find(client, id_)
    print_json(conflict) if as_json else _print_conflict(conflict)


@conflicts.command("waiting")
def conflicts_waiting(
    limit: Limit = 20,
    node: Node = DEFAULT_NODE,
    token: Token = None,
    as_json: Json = False,
) -> None:
    """List what waits for somebody to decide, or for a vote, oldest first, with the values to choose from.

    Example: nova conflicts waiting
    """
    with Client(node, token) as client:
        page = client.get("/v1/decisions", limit=limit)
    if as_json:
        print_json(page)
        return
    rows = [
        (each["key"], each["shown"], one["path"] or "value", words(one["value"]), one["origin"], _votes(each, one))
        for each in page["waiting"]
        for one in each["candidates"] or [{"path": each["reason"], "value": None, "origin": ""}]
    ]
    print_table(("KEY", "SHOWN", "PATH", "VALUE", "WRITTEN BY", "VOTES"), rows, "nothing waits")


@conflicts.command("decide")
def conflicts_decide(
    key: Annotated[str, typer.Argument(help="Name of the key.", show_default=False)],
    values: Annotated[
        list[str],
        typer.Argument(metavar="PATH=VALUE...", help="A value, in JSON, for each path; =VALUE is the whole value."),
    ],
    shown: Annotated[str, typer.Option(help="What `nova conflicts waiting` showed; refused if it changed since.")],
    by: Annotated[str, typer.Option(help="Who decides; told by `nova why`.")] = "",
    node: Node = DEFAULT_NODE,
    token: Token = None,
    as_json: Json = False,
) -> None:
    """Decide a conflict that waits for somebody. Exits with 4 if its candidates are others by now.

    Example: nova conflicts decide vm/7 /cpus=8 --shown 3f2a91 --by ann
    """
    given = {}
    for text in values:
        path, equals, value = text.partition("=")
        if not equals:
            raise UsageError(f"{text!r} is no PATH=VALUE; write =VALUE for the whole value")
        given[path] = parse_value(value)
    with Client(node, token) as client:
        done = client.post(key_path("/v1/decisions", key), {"shown": shown, "values": given, "by": by})
    if as_json:
        print_json(done)
        return
    print(f"{key}: decided")
    print_facts({f"  {path or 'value'}": value for path, value in done["values"].items()})
    for gone in done["discarded"]:
        print(f"  {gone['path'] or 'value'} {words(gone['value'])} of {gone['origin']} lost: {gone['reason']}")


def why(
    key: Annotated[str, typer.Argument(help="Name of the key.", show_default=False)],
    node: Node = DEFAULT_NODE,
    token: Token = None,
    as_json: Json = False,
) -> None:
    """Explain how the value of a key came to be.

    Example: nova why vm/7
    """
    with Client(node, token) as client:
        answer = client.get(key_path("/v1/why", key))
    print_json(answer) if as_json else print(answer["text"])


def _votes(waiting: dict[str, Any], candidate: dict[str, Any]) -> str:
    """Who is known to have voted for a candidate, of how many; "" where nobody is asked."""
    vote = waiting["vote"].get(candidate["path"])
    if vote is None:
        return ""
    names = [voter for voter, value in vote["ballots"].items() if value == candidate["value"]]
    return f"{len(names)} of {len(vote['voters'])}" + (f": {', '.join(names)}" if names else "")


def _find(client: Client, id_: str) -> dict[str, Any]:
    after = None
    while True:
        page = client.get("/v1/conflicts", limit=1000, after=after)
        for conflict in page["conflicts"]:
            if conflict["id"] == id_:
                return dict(conflict)
        after = page["next"]
        if after is None:
            raise KeyNotFoundError(f"there is no conflict {id_!r}; nova conflicts list shows them")


def _print_conflict(conflict: dict[str, Any]) -> None:
    print_facts(
        {
            "conflict": conflict["id"],
            "key": f"{conflict['key']} ({conflict['kind']})",
            "types": ", ".join(conflict["types"]),
            "severity": conflict["severity"],
            "detected": _time(conflict["detected_ms"]),
            "status": conflict["status"],
        }
    )
    for version in conflict["versions"]:
        print(f"\n{version['origin']} at {_time(version['time_ms'])} wrote")
        print_facts({f"  {path or 'value'}": value for path, value in version["values"].items()})
    if (resolution := conflict.get("resolution")) is None:
        return
    print(f"\nsettled by {resolution['strategy']}, confidence {resolution['confidence']:g}")
    print_facts({f"  {path or 'value'}": value for path, value in resolution["values"].items()})
    for line in resolution["explanation"]:
        print(f"  because {line}")
    for gone in resolution["discarded"]:
        print(f"  {gone['path'] or 'value'} {words(gone['value'])} of {gone['origin']} lost: {gone['reason']}")


def _time(ms: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(ms / 1000))
