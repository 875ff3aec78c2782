"""A node as a process: its socket, its signals, its end."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys

from nova.runtime import new_loop
from nova.server.api import make_app
from nova.server.config import NodeConfig
from nova.server.node import Node
from nova.server.serving import bind, make_server, tls_layer

log = logging.getLogger("nova.node")


def _node(config: NodeConfig) -> Node:
    if not config.consensus.members and not config.hybrid.members:
        return Node(config)
    # Most nodes have no group, and the engine costs a start.
    from nova.server.region_node import RegionNode, RegionStrongNode
    from nova.server.strong_node import StrongNode

    if not config.hybrid.members:
        return StrongNode(config)
    return RegionStrongNode(config) if config.consensus.members else RegionNode(config)


async def _serve(config: NodeConfig) -> None:
    sock: socket.socket = bind(config.http)
    node = None
    try:
        node = _node(config)
        await node.start()
        layer = tls_layer(node.tls) if node.tls is not None else None
        server = make_server(make_app(node, config), layer)
        serving = asyncio.get_running_loop().create_task(server.serve(sockets=[sock]))
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        if layer is not None:
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, node.look_at_certificates)
        host, port = sock.getsockname()[:2]
        log.info(
            "%s (%s) serves %s://%s:%d, peers at %s",
            config.name, config.region, "http" if layer is None else "https", host, port, node.listen,
        )  # fmt: skip
        stopping = asyncio.ensure_future(stop.wait())
        await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
        node.stopping()
        if layer is not None:
            layer.close()
        server.should_exit = True
        await serving
    finally:
        sock.close()
        if node is not None:
            await node.stop()


def run(config: NodeConfig) -> None:
    """Run a node until SIGTERM or SIGINT. Raises NovaError if it cannot start."""
    logging.basicConfig(
        level=os.environ.get("NOVA_LOG", "INFO").upper(),
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
    )
    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(_serve(config))


__all__ = ["run"]
