"""nova checkpoint, restore, heal."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from nova.cli.client import SILENCE_SECONDS_MAX, Client
from nova.cli.output import DEFAULT_NODE, Json, Node, Token, print_facts, print_json, print_table
from nova.conflict.audit import when
from nova.errors import UsageError
from nova.runtime import wall_ns


def checkpoint(
    data: Annotated[
        Path | None, typer.Argument(metavar="[DIR]", help="Data directory of a node that is stopped; none: ask --node.")
    ] = None,
    list_only: Annotated[bool, typer.Option("--list", help="Only show those that there are.")] = False,
    kept: Annotated[
        int | None,
        typer.Option(min=1, max=1000, help="How many are kept (8); the oldest go. For a directory only."),
    ] = None,
    node: Node = DEFAULT_NODE,
    token: Token = None,
    as_json: Json = False,
) -> None:
    """Store the whole state of a node as a point to come back to, and show those that there are.

    Example: nova checkpoint ./nova-data
    """
    from nova.conflict.healing.checkpoints import Checkpoint

    if data is None:
        if kept is not None:
            raise UsageError("--kept is for a directory; a node keeps limits.checkpoints_kept of its configuration")
        with Client(node, token) as client:
            if not list_only:
                client.post("/v1/checkpoints")
            known = msgspec.convert(client.get("/v1/checkpoints")["checkpoints"], list[Checkpoint])
    else:
        from nova.store import list_checkpoints, take_checkpoint

        if not list_only:
            take_checkpoint(data, wall_ns() // 1_000_000, kept=kept or 8)
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
    from nova.conflict.healing.checkpoints import time_ms
    from nova.store import restore as make

    done = make(
        source, into, node=name, cluster=cluster, at_ms=None if at is None else time_ms(at, "--at"), digest=digest
    )
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


def heal(
    one: Annotated[
        str, typer.Argument(metavar="DIR|PEER", help="A stopped node's data directory; or a peer of --node.")
    ],
    other: Annotated[
        Path | None, typer.Argument(metavar="[DIR]", help="Data directory of another node that is stopped.")
    ] = None,
    config: Annotated[
        str | None,
        typer.Option("--config", metavar="FILE", help="What the stopped nodes run with: kinds, strategies, policy."),
    ] = None,
    seconds: Annotated[float, typer.Option(min=0.1, max=600, help="How long two running nodes may take.")] = 30.0,
    node: Node = DEFAULT_NODE,
    token: Token = None,
    as_json: Json = False,
) -> int:
    """Bring two nodes together after a partition: what either lacks, both hold then.

    Two directories: of nodes that are stopped. Conflicts that come to light are settled and recorded by each, as they
    would when the nodes meet; so give the configuration that they run with.

    One name: a peer of the running node --node. Running nodes heal by themselves as soon as they can reach each other;
    this begins at once, and ends when equal digests were seen. The exit code is 1 if they were not.

    Example: nova heal ./a ./b --config nova.toml
    """
    if other is None:
        if config is not None:
            raise UsageError("--config is for two directories; a node that runs has its own")
        with Client(node, token, timeout=seconds + SILENCE_SECONDS_MAX) as client:
            report = client.post("/v1/heal", {"peer": one, "timeout_ms": int(seconds * 1000)})
        return _healed(report, as_json)
    _heal_stopped(Path(one), other, config, as_json)
    return 0


def _healed(report: dict[str, Any], as_json: bool) -> int:
    if as_json:
        print_json(report)
    else:
        sent, received = report["sent_bytes"], report["received_bytes"]
        print_facts(
            {
                "peer": report["node"],
                "differed": report["exchanged"],
                "equal": "yes" if report["equal"] else f"no: {report['why']}",
                "exchanged": f"{report['messages']} messages, {sent} bytes sent, {received} received, "
                f"{report['state_bytes']} of them state",
                "conflicts": f"{report['conflicts']} recorded here",
                "before": " and ".join(digest or "-" for digest in report["before"]),
                "after": " and ".join(digest or "-" for digest in report["after"]),
                "took": f"{report['took_ms']} ms",
            }
        )
    return 0 if report["equal"] else 1


def _heal_stopped(one: Path, other: Path, config: str | None, as_json: bool) -> None:
    from nova.server.config import load, store_config
    from nova.store import ReplicatedStore, owner_of
    from nova.store import heal as bring_together

    settings = store_config(load(config, os.environ, {"name": "heal"}))
    owners = [owner_of(path) for path in (one, other)]
    if owners[0].cluster != owners[1].cluster:
        raise UsageError(f"{one} is of cluster {owners[0].cluster!r}, {other} of {owners[1].cluster!r}; only one heals")
    with ExitStack() as opened:
        left, right = stores = [
            opened.enter_context(ReplicatedStore(path, node=owner.node, cluster=owner.cluster, config=settings))
            for path, owner in zip((one, other), owners, strict=True)
        ]
        before = [store.replica.conflicts.total for store in stores]
        done = bring_together(left, right)
        found = [store.replica.conflicts.total - count for store, count in zip(stores, before, strict=True)]
    if as_json:
        print_json({**msgspec.to_builtins(done), "conflicts": found})
        return
    print_facts(
        {
            "nodes": " and ".join(owner.node for owner in owners),
            "differed": "yes" if done.exchanged else "no",
            "sent": f"{done.messages} messages, {done.sent_bytes} bytes, {done.state_bytes} of them state",
            "conflicts": f"{found[0]} and {found[1]} recorded",
            "digest": f"{done.digest}, both",
        }
    )
