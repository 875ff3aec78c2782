"""nova consensus: the group that orders strong keys."""

from __future__ import annotations

from typing import Annotated, Any, Final
from urllib.parse import quote, urlsplit

import typer

from nova.cli.client import Client
from nova.cli.output import DEFAULT_NODE, Json, Node, Token, print_facts, print_json, print_table
from nova.errors import NovaError, UsageError

PATIENCE_S: Final = 100.0
"""A new member may need half a minute for what it lacks, and its two changes as much again."""

consensus = typer.Typer(
    help="Show and change the group that orders strong keys.", rich_markup_mode=None, no_args_is_help=True
)
Member = Annotated[str, typer.Argument(help="Name of a node.", show_default=False)]
Region = Annotated[
    str | None, typer.Option(help="Of the members that keep hybrid keys, those of this region.", show_default=False)
]


@consensus.command("status")
def status(node: Node = DEFAULT_NODE, token: Token = None, as_json: Json = False) -> int:
    """Show who leads, the chain of epochs and how far each member is; the exit code is 1 without a leader.

    Example: nova consensus status --node http://10.0.0.1:8420
    """
    with Client(node, token) as client:
        group = client.get("/v1/consensus")
    _with_lags_of_leader(group, node, token)
    if as_json:
        print_json(group)
    else:
        _print(group)
    led = group["leader"] is not None or group["protocol"] == "epaxos"
    return 0 if led and group["failure"] is None else 1


def _with_lags_of_leader(group: dict[str, Any], node: str, token: str | None) -> None:
    """Only the leader knows how far the others are; without its word the lags stay unknown."""
    if (url := _leader_url(group, node)) is None:
        return
    try:
        with Client(url, token) as client:
            told = {member["node"]: member for member in client.get("/v1/consensus")["members"]}
    except NovaError:
        return
    for member in group["members"]:
        if member["lag"] is None and member["node"] in told:
            member |= {name: told[member["node"]][name] for name in ("lag", "position")}
    group["members"] += [told[name] for name in sorted(told.keys() - {member["node"] for member in group["members"]})]


def _print(group: dict[str, Any]) -> None:
    adaptive = group["adaptive"]
    print_facts(
        {
            "node": f"{group['node']}, {group['role']}",
            "protocol": group["protocol"],
            "leader": group["leader"],
            "term": group["term"],
            "epoch": f"{group['epoch']}, {'settled' if group['settled'] else 'not settled yet'}",
            "strong keys": f"{group['keys']}, {group['bytes']} of {group['bytes_max']} bytes",
            "revision": group["revision"],
            "digest": group["digest"],
            "classes": ", ".join(f"{prefix or 'all'} {kind}" for prefix, kind in group["classes"].items()) or "none",
            **({"adaptive": f"{adaptive['policy']}; {adaptive['decision'] or 'no change so far'}"} if adaptive else {}),
            **({"failure": group["failure"]} if group["failure"] else {}),
        }
    )
    print()
    rows = [
        (member["node"], "leader" if member["leads"] else member["role"], member["address"], member["connected"],
         member["lag"])
        for member in group["members"]
    ]  # fmt: skip
    print_table(("MEMBER", "ROLE", "ADDRESS", "CONNECTED", "LAG"), rows, "no members")
    print()
    links = [(link["number"], link["protocol"], link["start"], ", ".join(link["members"])) for link in group["epochs"]]
    print_table(("EPOCH", "PROTOCOL", "FROM", "MEMBERS"), links, "no epochs")


@consensus.command("add")
def add(
    member: Member,
    address: Annotated[
        str | None, typer.Argument(metavar="[HOST:PORT]", help="Its consensus.listen (hybrid.listen), if it is new.")
    ] = None,
    learner: Annotated[bool, typer.Option("--learner", help="It learns, and has no vote.")] = False,
    region: Region = None,
    node: Node = DEFAULT_NODE,
    token: Token = None,
    as_json: Json = False,
) -> None:
    """Add a member: it learns what there is, then votes. Start it first, with consensus.founders (hybrid.founders) set.

    Example: nova consensus add d 10.0.0.4:7520
    """
    if region is not None:
        if learner:
            raise UsageError("--learner is for the group of strong keys; a member of a region votes there")
        asked = {"node": member, "address": address}
        _of_region(region, node, token, as_json, lambda client, path: client.post(path, asked))
        return
    body = {"node": member, "address": address, "learner": learner}
    group = _at_leader(node, token, lambda client: client.post("/v1/consensus/members", body))
    print_json(group) if as_json else print(f"{member} {'learns' if learner else 'votes'}; {_voters(group)}")


@consensus.command("remove")
def remove(
    member: Member, region: Region = None, node: Node = DEFAULT_NODE, token: Token = None, as_json: Json = False
) -> None:
    """Take a member out of the group; then stop it.

    Example: nova consensus remove d
    """
    if region is not None:
        name = quote(member, safe="")
        _of_region(region, node, token, as_json, lambda client, path: client.delete(f"{path}/{name}"))
        return
    path = f"/v1/consensus/members/{quote(member, safe='')}"
    group = _at_leader(node, token, lambda client: client.delete(path))
    print_json(group) if as_json else print(f"{member} is out; {_voters(group)}")


@consensus.command("transfer")
def transfer(member: Member, node: Node = DEFAULT_NODE, token: Token = None, as_json: Json = False) -> None:
    """Hand leadership to a member, before maintenance of the one that leads.

    Example: nova consensus transfer b
    """
    group = _at_leader(node, token, lambda client: client.post("/v1/consensus/transfer", {"node": member}))
    print_json(group) if as_json else print(f"{member} leads")


@consensus.command("switch")
def switch(
    protocol: Annotated[str, typer.Argument(help="raft, paxos or epaxos.", show_default=False)],
    members: Annotated[
        list[str] | None, typer.Argument(metavar="[MEMBER[=HOST:PORT]]...", help="Who goes on; none: all as now.")
    ] = None,
    node: Node = DEFAULT_NODE,
    token: Token = None,
    as_json: Json = False,
) -> None:
    """Go on with another protocol, or among other members, while keys are read and written.

    Example: nova consensus switch paxos a b d=10.0.0.4:7520
    """
    names, addresses = [], {}
    for member in members or []:
        name, given, address = member.partition("=")
        if not name or (given and not address):
            raise UsageError(f"{member!r} is no member; write NAME, or NAME=HOST:PORT for one that is new")
        names.append(name)
        if address:
            addresses[name] = address
    body = {"protocol": protocol, "members": names, "addresses": addresses}
    group = _at_leader(node, token, lambda client: client.post("/v1/consensus/switch", body))
    print_json(group) if as_json else print(f"epoch {group['epoch']}: {group['protocol']}; {_voters(group)}")


def _of_region(region: str, node: str, token: str | None, as_json: bool, ask: Any) -> None:
    """Any member of a group of regions may be asked."""
    with Client(node, token, timeout=PATIENCE_S) as client:
        told = ask(client, f"/v1/regions/{quote(region, safe='')}/members")
    print_json(told) if as_json else print(f"in {region}: {', '.join(told['regions'][region]['members'])}")


def _at_leader(node: str, token: str | None, ask: Any) -> dict[str, Any]:
    """Ask the node that leads, if it is known and another one."""
    with Client(node, token, timeout=PATIENCE_S) as client:
        if (url := _leader_url(client.get("/v1/consensus"), node)) is None:
            return ask(client)  # type: ignore[no-any-return]
    with Client(url, token, timeout=PATIENCE_S) as client:
        return ask(client)  # type: ignore[no-any-return]


def _leader_url(group: dict[str, Any], node: str) -> str | None:
    """Where the leader's API is; None if it is this node, or nobody knows."""
    address = group["leader_http"]
    if group["leader"] in (None, group["node"]) or not address or address.startswith(("0.0.0.0:", "[::]:")):
        return None
    scheme = urlsplit(node).scheme if "//" in node else "http"
    return f"{scheme}://{address}"


def _voters(group: dict[str, Any]) -> str:
    return "voters: " + ", ".join(member["node"] for member in group["members"] if member["role"] == "voter")
