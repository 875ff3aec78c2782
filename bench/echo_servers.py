"""Echo servers in Python for bench_uring.py: prints the port, serves until the last connection ends, prints a line of
JSON with the messages and system calls (where they are counted).

usage: echo_servers.py io_uring|epoll|uvloop
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


def by_hub(kind: str) -> None:
    from nova.transport.engine import Kind
    from nova.transport.hub import Hub

    hub = Hub(Kind.URING if kind == "io_uring" else Kind.EPOLL)
    print(hub.listen("127.0.0.1:0").rpartition(":")[2], flush=True)
    there = messages = 0
    began = time.process_time()
    while there or not messages:
        batch = hub.recv_batch()
        if len(batch):
            hub.send_batch(*batch)
            messages += len(batch)
        else:
            for change in hub.changes():
                there += 1 if change.what == "accepted" else -1
    cpu_s = time.process_time() - began
    print(json.dumps({"messages": messages, "syscalls": hub.stats.syscalls, "cpu_s": cpu_s}))
    hub.close()


def by_uvloop() -> None:
    import asyncio

    import uvloop

    class Echo(asyncio.Protocol):
        there = messages = 0
        ended: asyncio.Future[None]

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport = transport
            Echo.there += 1

        def data_received(self, data: bytes) -> None:
            Echo.messages += 1
            self.transport.write(data)  # type: ignore[attr-defined]

        def connection_lost(self, error: Exception | None) -> None:
            Echo.there -= 1
            if not Echo.there and Echo.messages:
                Echo.ended.set_result(None)

    async def serve() -> None:
        loop = asyncio.get_running_loop()
        Echo.ended = loop.create_future()
        began = time.process_time()
        server = await loop.create_server(Echo, "127.0.0.1", 0, backlog=1024)
        print(server.sockets[0].getsockname()[1], flush=True)
        await Echo.ended
        print(json.dumps({"messages": Echo.messages, "cpu_s": time.process_time() - began}))

    uvloop.run(serve())


if __name__ == "__main__":
    by_uvloop() if sys.argv[1] == "uvloop" else by_hub(sys.argv[1])
