"""`nova simulate`: seeded histories of a whole cluster, or of a consensus protocol, under faults."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import msgspec
import typer

from nova.cli.histories import History
from nova.cli.output import Json, print_json
from nova.errors import UsageError
from nova.sim.convergent import group_of
from nova.sim.faults import Fault, dump_plan, load_plan
from nova.sim.linearize import check_linearizable, read_history
from nova.sim.shrink import shrink
from nova.sim.subjects import SUBJECTS


class Run(NamedTuple):
    """What one history came to; `counts` are summed over all of them."""

    violations: list[str]
    events: int
    trace: str
    counts: dict[str, int]
    plan: list[Fault]


Runner = Callable[[int, "int | list[Fault]"], Run]
"""(seed, how many faults or which) -> what came of it."""


def _runner(protocol: str, nodes: int, spares: int) -> Runner:
    def store(seed: int, faults: int | list[Fault]) -> Run:
        history = History(seed, nodes, faults)
        violations = history.run()
        counts = {
            "writes_acknowledged": len(history.sessions.acknowledged),
            "conflicts": max((member.replica.conflicts.total for member in history.world), default=0),
        }
        return Run(violations, history.world.events, history.world.trace, counts, history.plan)

    def group(seed: int, faults: int | list[Fault]) -> Run:
        run = group_of(SUBJECTS[protocol], seed, nodes=nodes, spares=spares, faults=faults)
        violations = run.run()
        counts = {"commands_acknowledged": run.acknowledged, "reads": len(run.reads)}
        if run.operated:
            counts["changes_and_transfers"] = run.operated
        return Run(violations, run.world.events, run.world.trace, counts, run.plan)

    if protocol == "store":
        if spares:
            raise UsageError(f"--spares {spares}: the store has no spare nodes; leave it out, or name a --protocol")
        return store
    if protocol not in SUBJECTS:
        raise UsageError(f"protocol {protocol!r} cannot be simulated; use store or {', '.join(SUBJECTS)}")
    return group


def _faults(text: str) -> int | list[Fault]:
    """`--faults`: a number, or a file that holds a plan."""
    if text.lstrip("-").isdigit():
        if int(text) < 0:
            raise UsageError(f"--faults {text}: a history has 0 faults or more")
        return int(text)
    try:
        return load_plan(Path(text).read_bytes(), f"--faults {text}")
    except OSError as error:
        raise UsageError(f"--faults {text} is neither a number nor a file to be read: {error}") from None


def _shrunk(runner: Runner, seed: int, faults: int | list[Fault], json: bool) -> None:
    """Print the smallest plan found under which this seed fails."""
    first = runner(seed, faults)
    if not first.violations:
        typer.echo(f"seed {seed}: every promise held; there is nothing to shrink", err=True)
        return
    shrunk = shrink(first.plan, lambda plan: bool(runner(seed, plan).violations))
    if json:
        told = runner(seed, shrunk.plan).violations
        plan = msgspec.to_builtins(shrunk.plan)
        print_json({"seed": seed, "violations": told, "plan": plan, "tries": shrunk.tries, "minimal": shrunk.minimal})
    else:
        typer.echo(
            f"seed {seed}: {len(shrunk.plan)} of {len(first.plan)} faults are left after {shrunk.tries} tries", err=True
        )
        typer.echo(dump_plan(shrunk.plan), nl=False)
    raise typer.Exit(1)


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
    spares: Annotated[
        int, typer.Option(help="Nodes beside them, which become members and cease to be.", min=0, max=50)
    ] = 0,
    faults: Annotated[
        str, typer.Option(metavar="N|FILE", help="Faults in each history; or a JSON file that lists them.")
    ] = "20",
    shrink_plan: Annotated[
        bool, typer.Option("--shrink", help="Print the smallest list of faults under which --seed still fails.")
    ] = False,
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
    if nodes is None:
        nodes = SUBJECTS[protocol].nodes if protocol in SUBJECTS else 3
    runner = _runner(protocol, nodes, spares)
    planned = _faults(faults)
    if shrink_plan:
        if seed is None:
            raise UsageError("--shrink makes one failing history small; say which with --seed N")
        _shrunk(runner, seed, planned, json)
        return
    started = time.perf_counter()
    failing: dict[int, Run] = {}
    events = 0
    totals: dict[str, int] = {}
    trace = ""
    for number in [seed] if seed is not None else range(seeds):
        run = runner(number, planned)
        events += run.events
        trace = run.trace
        for name, count in run.counts.items():
            totals[name] = totals.get(name, 0) + count
        if run.violations:
            failing[number] = run
            if not json:
                typer.echo(f"seed {number}: {run.violations[0]}")
    wall = time.perf_counter() - started
    runs = 1 if seed is not None else seeds
    if json:
        told: dict[str, Any] = {"runs": runs, "events": events, "events_per_s": round(events / wall), **totals}
        told |= {"violations": sum(len(run.violations) for run in failing.values())}
        told |= {"failing_seeds": sorted(failing), "trace_hash": trace}
        if failing:
            number, run = min(failing.items())
            told["first"] = {"seed": number, "violations": run.violations, "plan": msgspec.to_builtins(run.plan)}
        print_json(told)
    else:
        verdict = f"{len(failing)} failed: {sorted(failing)}" if failing else "every promise held"
        counted = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in totals.items())
        typer.echo(f"{runs} histories of {nodes} nodes, {events} events, {counted} in {wall:.1f} s: {verdict}")
    if failing:
        raise typer.Exit(1)
