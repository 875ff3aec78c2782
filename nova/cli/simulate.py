"""`nova simulate`: seeded histories of a whole cluster, or of a consensus protocol, under faults."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from nova.cli.histories import History
from nova.cli.output import Json, print_json
from nova.errors import UsageError
from nova.sim.group import Group
from nova.sim.linearize import check_linearizable, read_history
from nova.sim.subjects import SUBJECTS


class Run(NamedTuple):
    """What one history came to; `counts` are summed over all of them."""

    violations: list[str]
    events: int
    trace: str
    counts: dict[str, int]


def _store(seed: int, nodes: int, faults: int) -> Run:
    history = History(seed, nodes, faults)
    violations = history.run()
    counts = {
        "writes_acknowledged": len(history.sessions.acknowledged),
        "conflicts": max((member.replica.conflicts.total for member in history.world), default=0),
    }
    return Run(violations, history.world.events, history.world.trace, counts)


def _group(protocol: str, seed: int, nodes: int, faults: int) -> Run:
    group = Group(SUBJECTS[protocol], seed, nodes=nodes, faults=faults)
    violations = group.run()
    counts = {"commands_acknowledged": group.acknowledged, "reads": len(group.reads)}
    return Run(violations, group.world.events, group.world.trace, counts)


def _checked(path: Path, json: bool) -> bool:
    """Whether a recorded history is linearizable, told."""
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--check-histories {path}: {error}") from None
    history, model = read_history(text, str(path))
    started = time.perf_counter()
    verdict = check_linearizable(history, model)
    seconds = time.perf_counter() - started
    if json:
        print_json(
            {
                "file": str(path), "calls": len(history), "linearizable": verdict.ok, "key": verdict.key,
                "looked": verdict.looked, "seconds": round(seconds, 6),
                "stuck": [list(call.input) for call in verdict.stuck],
            }
        )  # fmt: skip
        return verdict.ok is True
    word = {True: "linearizable", False: "not linearizable", None: "nobody knows: the limit of the search was reached"}
    typer.echo(f"{path}: {len(history)} calls, {word[verdict.ok]}, {seconds:.3f} s")
    if verdict.ok is False:
        where = f" of key {verdict.key!r}" if verdict.key is not None else ""
        typer.echo(f"  {len(verdict.prefix)} calls{where} fit one behind the other; then none of these does:")
        for call in verdict.stuck[:10]:
            typer.echo(f"  {call.begin}..{'' if call.end is None else call.end} {call.input} -> {call.output!r}")
    return verdict.ok is True


def simulate(
    seeds: Annotated[int, typer.Option(help="How many histories.", min=1)] = 100,
    seed: Annotated[int | None, typer.Option(help="Replay only this one.")] = None,
    nodes: Annotated[
        int | None,
        typer.Option(help="Members of the cluster: 3 if not given, or as many as the protocol needs.", min=1, max=50),
    ] = None,
    faults: Annotated[int, typer.Option(help="Faults in each history.", min=0)] = 12,
    check_histories: Annotated[
        list[Path] | None,
        typer.Option("--check-histories", metavar="FILE", help="Check recorded histories instead; may be given again."),
    ] = None,
    protocol: Annotated[str, typer.Option(help=f"What is simulated: store, {', '.join(SUBJECTS)}.")] = "store",
    json: Json = False,
) -> None:
    """Run seeded histories of a cluster under faults and check every one; exit status 1 if a promise was broken.

    Example: nova simulate --protocol raft --seeds 500 --nodes 5
    """
    if check_histories:
        verdicts = [_checked(path, json) for path in check_histories]
        if not all(verdicts):
            raise typer.Exit(1)
        return
    if protocol != "store" and protocol not in SUBJECTS:
        raise UsageError(f"protocol {protocol!r} cannot be simulated; use store or {', '.join(SUBJECTS)}")
    if nodes is None:
        nodes = 3 if protocol == "store" else SUBJECTS[protocol].nodes
    started = time.perf_counter()
    failing: dict[int, list[str]] = {}
    events = 0
    totals: dict[str, int] = {}
    trace = ""
    for number in [seed] if seed is not None else range(seeds):
        run = _store(number, nodes, faults) if protocol == "store" else _group(protocol, number, nodes, faults)
        events += run.events
        trace = run.trace
        for name, count in run.counts.items():
            totals[name] = totals.get(name, 0) + count
        if run.violations:
            failing[number] = run.violations
            if not json:
                typer.echo(f"seed {number}: {run.violations[0]}")
    wall = time.perf_counter() - started
    runs = 1 if seed is not None else seeds
    if json:
        told: dict[str, Any] = {"runs": runs, "events": events, "events_per_s": round(events / wall), **totals}
        told |= {"violations": sum(map(len, failing.values())), "failing_seeds": sorted(failing), "trace_hash": trace}
        print_json(told)
    else:
        verdict = f"{len(failing)} failed: {sorted(failing)}" if failing else "every promise held"
        counted = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in totals.items())
        typer.echo(f"{runs} histories of {nodes} nodes, {events} events, {counted} in {wall:.1f} s: {verdict}")
    if failing:
        raise typer.Exit(1)
