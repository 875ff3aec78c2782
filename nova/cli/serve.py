"""nova serve."""

from __future__ import annotations

import os
from typing import Annotated, Any

import typer


def serve(
    config: Annotated[
        str | None, typer.Option("--config", envvar="NOVA_CONFIG", metavar="FILE", help="TOML file with any of these.")
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Name of the node, unique in the cluster. Default: the host's.")
    ] = None,
    region: Annotated[str | None, typer.Option(help="Region of the node. Default: local.")] = None,
    listen: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Where peers connect. Default: 127.0.0.1:7420.")
    ] = None,
    http: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Where the HTTP API is. Default: 127.0.0.1:8420.")
    ] = None,
    data: Annotated[str | None, typer.Option(metavar="DIR", help="Data directory. Default: nova-data.")] = None,
    join: Annotated[
        list[str] | None, typer.Option(metavar="HOST:PORT", help="A peer to ask first; may be given again.")
    ] = None,
    cluster: Annotated[str | None, typer.Option(help="Name of the cluster. Default: nova.")] = None,
    key: Annotated[str | None, typer.Option(help="Cluster key that peers must prove (better: --key-file).")] = None,
    key_file: Annotated[str | None, typer.Option(metavar="FILE", help="File with the cluster key.")] = None,
    token: Annotated[str | None, typer.Option(help="Bearer token of the HTTP API (better: --token-file).")] = None,
    token_file: Annotated[str | None, typer.Option(metavar="FILE", help="File with the bearer token.")] = None,
    audit_key_file: Annotated[
        str | None, typer.Option(metavar="FILE", help="File with the key under which audit events are chained.")
    ] = None,
    insecure: Annotated[
        bool | None, typer.Option("--insecure", help="Listen beyond loopback without key and token.")
    ] = None,
    chaos: Annotated[bool | None, typer.Option("--chaos", help="Allow nova chaos to cut links.")] = None,
    kinds: Annotated[
        str | None, typer.Option(metavar="PREFIX=KIND,...", help="Kinds of the keys below prefixes.")
    ] = None,
    strategies: Annotated[
        str | None, typer.Option(metavar="PREFIX=NAME,...", help="How conflicts below prefixes are settled.")
    ] = None,
    voters: Annotated[
        list[str] | None,
        typer.Option("--voter", metavar="NODE", help="A node that consensus_vote asks; may be given again."),
    ] = None,
    tls: Annotated[
        str | None, typer.Option(metavar="DIR", help="TLS, with ca.pem, NAME.pem and NAME.key of this folder.")
    ] = None,
    client_ca: Annotated[
        str | None, typer.Option(metavar="FILE", help="With --tls: whose certificates clients of the API must show.")
    ] = None,
    transport: Annotated[str | None, typer.Option(help="auto, tcp, uring or rdma. Default: auto.")] = None,
    link_delay_ms: Annotated[
        str | None, typer.Option(metavar="REGION=MS,...", help="Add one-way delays to regions (emulation).")
    ] = None,
) -> Any:
    """Run one node until SIGTERM or Ctrl-C.

    Flags win over NOVA_* variables, those over the file, that over the defaults.

    Example: nova serve --name a --region eu-west --data ./a --join 127.0.0.1:7421
    """
    from nova.server.config import load

    flags = {
        "name": name,
        "region": region,
        "listen": listen,
        "http": http,
        "data": data,
        "join": join,
        "cluster": cluster,
        "key": key,
        "key_file": key_file,
        "token": token,
        "token_file": token_file,
        "audit_key_file": audit_key_file,
        "insecure": insecure,
        "chaos": chaos,
        "kinds": kinds,
        "strategies": strategies,
        "voters": voters,
        "tls.dir": tls,
        "tls.client_ca": client_ca,
        "transport": transport,
        "link_delay_ms": link_delay_ms,
    }
    settings = load(config, os.environ, flags)

    from nova.server.process import run

    return run(settings)
