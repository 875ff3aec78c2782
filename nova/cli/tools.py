"""nova config, hw, version."""

from __future__ import annotations

import os
import platform
import sys
from typing import Annotated

import typer

from nova._version import __version__
from nova.cli.output import Json, print_json, print_table

config = typer.Typer(
    help="Check configuration files.", add_completion=False, rich_markup_mode=None, no_args_is_help=True
)
hw = typer.Typer(help="Say what this machine has.", add_completion=False, rich_markup_mode=None, no_args_is_help=True)


def version(as_json: Json = False) -> None:
    """Print the version.

    Example: nova version --json
    """
    if as_json:
        print_json({"version": __version__, "python": platform.python_version(), "platform": sys.platform})
    else:
        print(f"nova {__version__}")


@config.callback()
def _config() -> None:
    """Check configuration files."""


@config.command("check")
def config_check(
    file: Annotated[str, typer.Argument(help="A TOML file, as for nova serve --config.", show_default=False)],
    as_json: Json = False,
) -> None:
    """Check a file together with the NOVA_* variables; --json prints what a node would run with, secrets hidden.

    Example: nova config check nova.toml
    """
    import msgspec

    from nova.server.config import SECRETS, load

    settings = load(file, os.environ)
    if as_json:
        print_json(msgspec.to_builtins(settings) | {name: "***" for name in SECRETS if getattr(settings, name)})
    else:
        print(
            f"{file} is good: node {settings.name} in {settings.region}, peers {settings.listen}, HTTP {settings.http}"
        )


@hw.callback()
def _hw() -> None:
    """Say what this machine has."""


@hw.command("detect")
def hw_detect(as_json: Json = False) -> None:
    """List what nova can use here, how to get what is missing, and which transport is chosen by that.

    Example: nova hw detect
    """
    from nova.hardware import detect
    from nova.transport.choose import explain

    findings, choice = detect(), explain()
    if as_json:
        print_json({"findings": findings, "transport": choice})
        return
    rows = [(finding.name, finding.state, finding.detail, finding.mend) for finding in findings]
    print_table(("WHAT", "STATE", "DETAIL", "MEND"), rows, "nothing")
    print(f"\ntransport: {choice.reason}")
