"""nova certs: a certificate authority in a folder, and what it issues."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nova.cli.output import Json, print_json, print_table

if TYPE_CHECKING:
    from nova.transport.authority import Shown

certs = typer.Typer(
    help="Make and check certificates for TLS.", add_completion=False, rich_markup_mode=None, no_args_is_help=True
)

Folder = Annotated[
    Path, typer.Option("--dir", envvar="NOVA_CERTS", metavar="DIR", help="The folder with ca.pem and the rest.")
]
Days = Annotated[float | None, typer.Option(min=0.001, help="How long it is valid. Default: as long as the old one.")]
Algorithm = Annotated[str, typer.Option(help="p256 or ed25519, which browsers do not take.")]
FOLDER = Path("certs")


@certs.callback()
def _certs() -> None:
    """Make and check certificates for TLS.

    The authority is meant for development, or where there is no other. A node needs ca.pem, NODE.pem and NODE.key,
    never ca.key.
    """


@certs.command()
def init(
    cluster: Annotated[str, typer.Option(help="Whose certificates it issues.")] = "nova",
    algorithm: Algorithm = "p256",
    days: Annotated[float, typer.Option(min=0.001, help="How long it is valid.")] = 3650,
    folder: Folder = FOLDER,
    as_json: Json = False,
) -> None:
    """Make the authority of a cluster.

    Example: nova certs init --cluster prod
    """
    from nova.transport.authority import Authority

    Authority.create(folder, cluster, algorithm=algorithm, days=days)
    _made(folder, ["ca"], as_json, "an authority for cluster " + cluster)


@certs.command()
def issue(
    node: Annotated[str, typer.Argument(help="Name of the node, as in nova serve --name.", show_default=False)],
    region: Annotated[str, typer.Option(help="Region of the node, as in nova serve --region.")] = "local",
    host: Annotated[
        list[str] | None,
        typer.Option(help="Name or address under which its API is reached; may be given again. Loopback always is."),
    ] = None,
    client: Annotated[bool, typer.Option("--client", help="For somebody who is no node.")] = False,
    days: Annotated[float, typer.Option(min=0.001, help="How long it is valid.")] = 90,
    algorithm: Annotated[str, typer.Option(help="p256 or ed25519. Default: that of the authority.")] = "",
    folder: Folder = FOLDER,
    as_json: Json = False,
) -> None:
    """Make key and certificate of a node or, with --client, of a client.

    Example: nova certs issue a --region eu-west --host a.example.org
    """
    from nova.transport.authority import HOSTS, Authority

    hosts = [*dict.fromkeys((*HOSTS, *(host or ())))]
    Authority(folder).issue(node, region, hosts=hosts, client=client, days=days, algorithm=algorithm)
    _made(folder, [node], as_json, f"a certificate for {'client' if client else 'node'} {node}")


@certs.command()
def renew(
    node: Annotated[list[str] | None, typer.Argument(help="Names; default: all in the folder.")] = None,
    days: Days = None,
    folder: Folder = FOLDER,
    as_json: Json = False,
) -> None:
    """Replace keys and certificates by new ones for the same names; nodes that run take them up by themselves.

    Example: nova certs renew a
    """
    from nova.transport.authority import Authority, names

    authority = Authority(folder)
    renewed = node or names(folder)
    for name in renewed:
        authority.renew(name, days=days)
    _made(folder, renewed, as_json, f"new certificates for {', '.join(renewed) or 'nobody'}")


@certs.command()
def roll(
    finish: Annotated[bool, typer.Option("--finish", help="Trust the old authority no longer.")] = False,
    days: Annotated[float, typer.Option(min=0.001, help="How long the new one is valid.")] = 3650,
    folder: Folder = FOLDER,
    as_json: Json = False,
) -> None:
    """Change the authority: a new one beside the old one, which --finish takes away.

    Hand ca.pem to all nodes after each step, and between the two renewed certificates.

    Example: nova certs roll
    """
    from nova.transport.authority import Authority

    Authority(folder).roll(finish=finish, days=days)
    what = "the old authority is gone from ca.pem" if finish else "a new authority, beside the old one in ca.pem"
    _made(folder, ["ca"], as_json, what)


@certs.command()
def show(
    node: Annotated[list[str] | None, typer.Argument(help="Names; default: all in the folder.")] = None,
    folder: Folder = FOLDER,
    as_json: Json = False,
) -> None:
    """List certificates: for whom, by whom, until when.

    Example: nova certs show --json
    """
    from nova.transport.authority import names, read_all

    found = [each for name in node or ["ca", *names(folder)] for each in read_all(folder / f"{name}.pem")]
    if as_json:
        print_json({"certificates": found})
        return
    rows = [
        (each.name, each.role, each.region, each.algorithm, _left(each), _day(each.expires_s), ", ".join(each.hosts))
        for each in found
    ]
    print_table(("NAME", "ROLE", "REGION", "KEY", "LEFT", "EXPIRES", "HOSTS"), rows, f"no certificates in {folder}")


@certs.command()
def verify(
    node: Annotated[list[str] | None, typer.Argument(help="Names; default: all in the folder.")] = None,
    folder: Folder = FOLDER,
    as_json: Json = False,
) -> int:
    """Check certificates, keys and authority against each other and the clock. The exit code is 1 if one is bad.

    Example: nova certs verify
    """
    from nova.transport.authority import names, problems

    found = {name: problems(folder, name, time.time()) for name in node or names(folder)}
    if as_json:
        print_json({"verified": {name: {"good": not wrong, "problems": wrong} for name, wrong in found.items()}})
    else:
        rows: list[tuple[Any, ...]] = []
        for name, wrong in found.items():
            rows += [(name, "bad", line) for line in wrong] or [(name, "good", "")]
        for name, state, line in rows:
            print(f"{name}  {state}  {line}".rstrip())
        if not rows:
            print(f"no certificates in {folder}")
    return 1 if any(found.values()) else 0


def _made(folder: Path, names: list[str], as_json: bool, what: str) -> None:
    from nova.transport.authority import read

    if as_json:
        print_json({"certificates": [read(folder / f"{name}.pem") for name in names]})
    else:
        print(f"{what} in {folder}")


def _left(shown: Shown) -> str:
    days = (shown.expires_s - time.time()) / 86_400
    return "expired" if days <= 0 else f"{days:.1f} d"


def _day(seconds: float) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(seconds))
