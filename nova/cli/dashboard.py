"""nova dashboard: the cluster as a web page."""

from __future__ import annotations

import os
import socket
from typing import Annotated

import typer

from nova.cli.output import DEFAULT_NODE, Token
from nova.errors import ConfigError, UsageError

Nodes = Annotated[
    list[str] | None,
    typer.Option("--node", envvar="NOVA_NODE", help="URL of a node; give several, or let it find them."),
]


def dashboard(
    node: Nodes = None,
    listen: Annotated[str, typer.Option(help="HOST:PORT of the page.")] = "127.0.0.1:8421",
    token: Token = None,
    insecure: Annotated[bool, typer.Option(help="Listen beyond loopback: anybody who reaches it can read.")] = False,
) -> None:
    """Show a cluster as a web page: map, links, throughput, and every conflict with both of its sides.

    Example: nova dashboard --node http://127.0.0.1:8420
    """
    from nova.cli import secured
    from nova.client import Client
    from nova.server.addresses import is_loopback, split_address

    host, port = split_address(listen)
    if not is_loopback(listen) and not insecure:
        raise ConfigError(
            f"--listen {listen} is beyond loopback, and the page asks nobody who they are; put a proxy with a login "
            "before it, or say --insecure"
        )
    given = node or [DEFAULT_NODE]
    tls = secured.context() if any(url.startswith("https:") for url in given) else None
    urls = [Client(url, tls=tls).url for url in given]
    if port:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                sock.bind((host, port))
            except OSError as error:
                raise UsageError(f"--listen {listen}: {os.strerror(error.errno or 0)}; give another port") from None
    from nova.server.dashboard.app import serve

    serve(urls, host=host, port=port, token=token, tls=tls)
