"""One member of a consensus group as a process of its own: JSON lines in, JSON lines out, until its input ends.

python consensus_member.py '{"node": "a", "members": {...}, "directory": "...", "options": {...}}'
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import resource
import signal
import sys
import time
from typing import Any

from nova.consensus.answering import ServingOptions
from nova.consensus.engine import ConsensusEngine, EngineOptions
from nova.consensus.serving import ClientServer
from nova.errors import NovaError
from nova.sim.machine import KeyValue, answer, append, get
from nova.storage.log import FileLog


async def obey(engine: ConsensusEngine, request: dict[str, Any]) -> Any:
    match request["op"]:
        case "append":
            return answer(await engine.propose(append(request["key"], request["value"]), timeout_s=request["timeout"]))
        case "get":
            return answer(await engine.read(get(request["key"]), timeout_s=request["timeout"])) or []
        case "status":
            status = engine.status()
            core = status.core
            return {
                "role": core.role, "leader": core.leader, "term": core.term, "applied": status.applied,
                "checkpoint": status.checkpoint, "peers": status.peers, "failure": status.failure,
                "digest": str(engine.machine.digest),
            }  # fmt: skip
        case "files_max":  # writes behind this offset of a file fail from now on
            resource.setrlimit(resource.RLIMIT_FSIZE, (request["bytes"], resource.RLIM_INFINITY))
            return True
    raise AssertionError(request)


def slow_down(seconds: float) -> None:
    """Every write waits before it reaches the disk, so that what does not wait for it is found out."""
    write_all = FileLog._write_all

    def slowly(self: FileLog, *, closing: bool) -> None:
        time.sleep(seconds)
        write_all(self, closing=closing)

    FileLog._write_all = slowly  # type: ignore[method-assign]


async def main(config: dict[str, Any]) -> None:
    loop = asyncio.get_running_loop()
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    if config["disk_ms"]:
        slow_down(config["disk_ms"] / 1000)
    reader = asyncio.StreamReader(limit=1 << 24)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    engine = ConsensusEngine(
        config["node"],
        config["members"],
        config["directory"],
        KeyValue(),
        voters=config["voters"],
        listen=config["listen"],
        options=EngineOptions(**config["options"]),
    )

    async def serve(request: dict[str, Any]) -> None:
        try:
            told = {"id": request["id"], "result": await obey(engine, request)}
        except NovaError as error:
            told = {"id": request["id"], "error": type(error).__name__, "text": str(error)}
        print(json.dumps(told), flush=True)

    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(engine)
        if ports := config.get("clients"):
            options = ServingOptions(**config["serving"])
            server = ClientServer(engine, ports[config["node"]], addresses=ports, options=options)
            await stack.enter_async_context(server)
        print(json.dumps({"id": 0, "result": "ready"}), flush=True)
        tasks = set()
        while line := await reader.readline():
            task = asyncio.ensure_future(serve(json.loads(line)))
            tasks.add(task)
            task.add_done_callback(tasks.discard)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        asyncio.run(main(json.loads(sys.argv[1])))
    except NovaError as error:
        sys.exit(f"{type(error).__name__}: {error}")
