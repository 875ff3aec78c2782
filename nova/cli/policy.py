"""nova policy check, explain."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
import typer

from nova.cli.output import Json, print_json
from nova.conflict.policy import PolicyManager
from nova.conflict.policy.case import conflict_from_case
from nova.conflict.strategies import ResolveContext
from nova.conflict.words import show
from nova.errors import UsageError
from nova.server.config import read_policy, read_text

policy = typer.Typer(
    help="Check conflict policies and try them.", add_completion=False, rich_markup_mode=None, no_args_is_help=True
)

File = Annotated[str, typer.Argument(help="A policy in TOML.", show_default=False)]


@policy.callback()
def _policy() -> None:
    """Check conflict policies and try them."""


@policy.command("check")
def check(file: File, as_json: Json = False) -> None:
    """Check a policy: unknown keys, circles, rules that can never fire.

    Example: nova policy check production.toml
    """
    found = read_policy(file)
    if as_json:
        print_json(
            {
                "name": found.name,
                "fields": found.fields,
                "rules": [{"name": rule.name, "when": rule.when.words, "use": rule.use} for rule in found.rules],
                "default": found.default,
                "fallback": found.fallback,
                "escalations": [
                    {"name": each.name, "when": each.when.words, "action": each.action, "to": each.to}
                    for each in found.escalations
                ],
            }
        )
        return
    parts = (len(found.fields), "field"), (len(found.rules), "rule"), (len(found.escalations), "escalation")
    counts = ", ".join(f"{count} {word}{'' if count == 1 else 's'}" for count, word in parts)
    print(f"{file} is good: policy {found.name}, {counts}, default {found.default}")


@policy.command("explain")
def explain(
    file: File,
    case: Annotated[str, typer.Option("--case", help="A conflict in JSON; see docs.", show_default=False)],
    as_json: Json = False,
) -> None:
    """Say which rule fires for a conflict and why, and what it makes of it.

    Example: nova policy explain production.toml --case conflict.json
    """
    found = read_policy(file)
    try:
        conflict, facts = conflict_from_case(msgspec.json.decode(read_text(case)))
    except msgspec.DecodeError as error:
        raise UsageError(f"{case}: not valid JSON: {error}") from None
    except UsageError as error:
        raise UsageError(f"{case}: {error}") from None
    lines = found.explain(conflict, facts)
    context = ResolveContext(leaves=facts.leaves)
    resolution = PolicyManager([found]).resolve(conflict, found, context, facts)
    if as_json:
        print_json(
            {
                "rules": lines,
                "via": list(resolution.via),
                "settled": {path: _shown(value) for path, value in resolution.settled.items()},
                "explanation": list(resolution.explanation),
                "discarded": [
                    {"path": each.path, "value": _shown(each.value), "origin": each.origin, "reason": each.reason}
                    for each in resolution.discarded
                ],
                "pending": resolution.pending,
                "actions": [msgspec.structs.asdict(action) for action in resolution.actions],
            }
        )
        return
    print("\n".join(lines))
    print()
    print("\n".join(resolution.explanation))
    for lost in resolution.discarded:
        print(f"discarded: {show(lost.value)} of {lost.origin} at {lost.path or 'the value'}: {lost.reason}")
    for path, value in resolution.settled.items():
        print(f"{path or 'the value'} is {show(value)}{', pending' if resolution.pending else ''}")


def _shown(value: Any) -> Any:
    try:
        msgspec.json.encode(value)
    except (TypeError, ValueError):
        return show(value)
    return value
