"""nova status, peers, chaos."""

from __future__ import annotations

from typing import Annotated

import typer

from nova.cli.client import Client
from nova.cli.output import DEFAULT_NODE, Json, Node, Token, print_facts, print_json, print_table

chaos = typer.Typer(
    help="Cut a node off from its peers, and heal it (the node must run with --chaos).",
    add_completion=False,
    rich_markup_mode=None,
    no_args_is_help=True,
)


def status(node: Node = DEFAULT_NODE, token: Token = None, as_json: Json = False) -> int:
    """Show how a node is; the exit code is 1 if it is not healthy.

    Example: nova status --node http://10.0.0.1:8420
    """
    with Client(node, token) as client:
        facts = client.get("/v1/status")
    if as_json:
        print_json(facts)
    else:
        facts.pop("clock", None)
        print_facts(facts)
    return 0 if facts["healthy"] else 1


def peers(node: Node = DEFAULT_NODE, token: Token = None, as_json: Json = False) -> None:
    """List the nodes that a node knows.

    Example: nova peers
    """
    with Client(node, token) as client:
        answer = client.get("/v1/peers")
    if as_json:
        print_json(answer)
        return
    rows = [
        (
            peer["node"],
            peer["region"],
            peer["address"],
            peer["state"],
            peer["connected"],
            None if peer["rtt_ms"] is None else f"{peer['rtt_ms']:.1f} ms",
            peer["lag_ops"],
        )
        for peer in answer["peers"]
    ]
    print_table(("NODE", "REGION", "ADDRESS", "STATE", "CONNECTED", "ROUND TRIP", "LAG"), rows, "no peers")


@chaos.command("cut")
def cut(
    peers: Annotated[list[str], typer.Argument(help="Names of peers.", show_default=False)],
    node: Node = DEFAULT_NODE,
    token: Token = None,
    as_json: Json = False,
) -> None:
    """Stop a node from talking to peers.

    Example: nova chaos cut eu-west-1 us-east-1
    """
    with Client(node, token) as client:
        answer = client.post("/v1/chaos/cut", {"peers": peers})
    print_json(answer) if as_json else print(f"cut off from: {', '.join(answer['cut']) or 'nobody'}")


@chaos.command("heal")
def heal(node: Node = DEFAULT_NODE, token: Token = None, as_json: Json = False) -> None:
    """Let a node talk to all its peers again.

    Example: nova chaos heal
    """
    with Client(node, token) as client:
        answer = client.post("/v1/chaos/heal")
    print_json(answer) if as_json else print(f"cut off from: {', '.join(answer['cut']) or 'nobody'}")
