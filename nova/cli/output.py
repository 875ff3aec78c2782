"""Options that many commands share, and how they print."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
import typer

from nova.errors import UsageError

Node = Annotated[str, typer.Option("--node", envvar="NOVA_NODE", help="URL of the node to ask.")]
Token = Annotated[
    str | None, typer.Option("--token", envvar="NOVA_TOKEN", show_envvar=True, help="Bearer token of the node.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
Clock = Annotated[str | None, typer.Option("--context", metavar="JSON", help="The clock that was read.")]
Conditional = Annotated[
    bool, typer.Option("--conditional", help="Refuse (exit code 4) unless --context is the present clock.")
]

Expect = Annotated[
    int | None,
    typer.Option(
        "--expect", min=0, help="Of a strong key: refuse (exit code 4) unless it has this version; 0: nothing."
    ),
]
Consistency = Annotated[
    str | None,
    typer.Option("--consistency", help="Of strong and hybrid keys: linearizable (the default), lease or local."),
]

DEFAULT_NODE = "http://127.0.0.1:8420"


def print_json(value: Any) -> None:
    """One line of JSON."""
    sys.stdout.write(msgspec.json.encode(value).decode() + "\n")


def print_pretty(value: Any) -> None:
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(value), indent=2).decode() + "\n")


def print_table(titles: Sequence[str], rows: Sequence[Sequence[Any]], empty: str) -> None:
    """Columns as wide as their widest cell; `empty` when there are no rows."""
    if not rows:
        print(empty)
        return
    table = [list(titles), *([words(cell) for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in table) for column in range(len(titles))]
    for row in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def print_facts(facts: dict[str, Any]) -> None:
    """name  value, one a line."""
    width = max(map(len, facts), default=0)
    for name, value in facts.items():
        print(f"{name.ljust(width)}  {words(value, 200)}")


def words(value: Any, length: int = 60) -> str:
    """A value in a table cell: text as it is, the rest as JSON, cut at `length`."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
    text = text.replace("\n", " ")
    return text if len(text) <= length else text[: length - 3] + "..."


def parse_clock(text: str | None) -> dict[str, int] | None:
    if text is None:
        return None
    try:
        return msgspec.json.decode(text, type=dict[str, int])
    except (msgspec.DecodeError, msgspec.ValidationError):
        raise UsageError(f"--context {text!r} is no clock; hand back the clock that nova get --json shows") from None
