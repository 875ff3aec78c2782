"""nova checkpoint, restore."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from nova.cli.output import Json, print_facts, print_json, print_table
from nova.conflict.audit import when
from nova.errors import UsageError
from nova.runtime import wall_ns

Data = Annotated[Path, typer.Argument(metavar="DIR", help="Data directory of a node that is stopped.")]


def checkpoint(
    data: Data,
    list_only: Annotated[bool, typer.Option("--list", help="Only show those that there are.")] = False,
    kept: Annotated[int, typer.Option(min=1, max=1000, help="How many are kept; the oldest go.")] = 8,
    as_json: Json = False,
) -> None:
    """Store the whole state of a stopped node as a point to come back to.

    Example: nova checkpoint ./nova-data
    """
    from nova.store import list_checkpoints, take_checkpoint

    if not list_only:
        take_checkpoint(data, wall_ns() // 1_000_000, kept=kept)
    known = list_checkpoints(data)
    if as_json:
        print_json([msgspec.to_builtins(each) for each in known])
        return
    rows = [(when(each.time_ms), str(each.position), str(each.keys), each.digest) for each in known]
    print_table(("TAKEN", "RECORD", "KEYS", "DIGEST"), rows, "no checkpoints")


def restore(
    source: Annotated[Path, typer.Argument(help="Data directory of a node that is stopped.", show_default=False)],
    into: Annotated[Path, typer.Argument(help="Data directory to make.", show_default=False)],
    name: Annotated[str, typer.Option("--name", help="Name of the new node, which never wrote there.")],
    at: Annotated[
        str | None, typer.Option(metavar="TIME", help="As of when: Unix milliseconds, or 2026-01-31T12:00:00Z.")
    ] = None,
    cluster: Annotated[str | None, typer.Option(help="Name of its cluster, if not that of the source.")] = None,
    digest: Annotated[str, typer.Option(help="Fail unless the state has this digest.")] = "",
    as_json: Json = False,
) -> None:
    """Make a data directory for a new node out of another one's log and checkpoints, as of now or as of a time.

    The source stays as it is. A node of the same cluster hears of all that happened since: to look at the past, give
    another cluster.

    Example: nova restore ./nova-data ./copy --name copy --cluster past --at 2026-01-31T12:00:00Z
    """
    from nova.store import restore as make

    done = make(source, into, node=name, cluster=cluster, at_ms=_time(at), digest=digest)
    if as_json:
        print_json(msgspec.to_builtins(done))
        return
    print_facts(
        {
            "made": str(into),
            "node": done.node,
            "cluster": done.cluster,
            "source": done.source,
            "keys": done.keys,
            "records": f"{done.rebuilt.taken} taken behind record {done.rebuilt.start}, "
            f"{done.rebuilt.passed_over} newer passed over",
            "torn bytes": done.torn_bytes,
            "digest": done.rebuilt.digest,
        }
    )


def _time(text: str | None) -> int | None:
    if text is None:
        return None
    if text.isdecimal():
        return int(text)
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        at = None
    if at is None or at.tzinfo is None:
        raise UsageError(f"--at is {text!r}; give Unix milliseconds, or a time with its zone: 2026-01-31T12:00:00Z")
    return round(at.timestamp() * 1000)
