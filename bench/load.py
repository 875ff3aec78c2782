"""HTTP load from a process of its own: N keep-alive clients, each with one request out at a time.

`python bench/load.py URL --clients 64 --seconds 3 --op put` prints one line of JSON: requests per second, latencies,
and the cores that this process and the one of `--pid` kept busy, so that one can tell which of them is at its limit.
With `--rate` requests leave on a schedule, whether or not answers came back, and latency counts from the schedule: a
stalled server is charged for all that it delayed ("coordinated omission").

It knows nothing of nova: no client library, answers are only looked at for their status and length, and it drives any
server of PUT-like requests (`--op etcd` speaks the JSON gateway of etcd).
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import os
import time
from pathlib import Path
from urllib.parse import urlsplit

KEYS = 10_000


def request_bytes(host: str, method: str, path: str, body: bytes) -> bytes:
    return b"%s %s HTTP/1.1\r\nhost: %s\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (
        method.encode(), path.encode(), host.encode(), len(body), body
    )  # fmt: skip


def requests(op: str, host: str, value_bytes: int, batch: int) -> list[bytes]:
    """The requests of one run, made before the clock starts."""
    value = "v" * value_bytes
    body = json.dumps({"value": value}).encode()
    match op:
        case "put":
            return [request_bytes(host, "PUT", f"/v1/keys/load/{n}", body) for n in range(KEYS)]
        case "get":
            return [request_bytes(host, "GET", f"/v1/keys/load/{n}", b"") for n in range(KEYS)]
        case "batch":
            bodies = [
                {"puts": [{"key": f"load/{(n * batch + i) % KEYS}", "value": value} for i in range(batch)]}
                for n in range(max(1, KEYS // batch))
            ]
            return [request_bytes(host, "POST", "/v1/batch", json.dumps(body).encode()) for body in bodies]
        case "etcd":
            text = base64.b64encode(value.encode()).decode()
            return [
                request_bytes(
                    host, "POST", "/v3/kv/put",
                    json.dumps({"key": base64.b64encode(f"load/{n}".encode()).decode(), "value": text}).encode(),
                )
                for n in range(KEYS)
            ]  # fmt: skip
    raise ValueError(f"op {op!r} is none of put, get, batch, etcd")


class Run:
    """What the clients of one run share."""

    def __init__(self, wire: list[bytes]) -> None:
        self.wire = wire
        self.next = 0
        self.measuring = False
        self.stopping = False
        self.latencies: list[float] = []
        self.errors = 0

    def take(self) -> bytes:
        self.next += 1
        return self.wire[self.next % len(self.wire)]


class Client(asyncio.Protocol):
    """One connection; the answer to a request sends the next one."""

    def __init__(self, run: Run, paced: bool) -> None:
        self.run, self.paced = run, paced
        self.buffer = b""
        self.sent_at = 0.0
        self.busy = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def send(self, due: float) -> None:
        self.sent_at, self.busy = due, True
        self.transport.write(self.run.take())

    def data_received(self, data: bytes) -> None:
        self.buffer = data = self.buffer + data if self.buffer else data
        end = data.find(b"\r\n\r\n")
        if end < 0:
            return
        head = data[:end].lower()
        at = head.find(b"content-length:")
        size = int(head[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
        if len(data) < end + 4 + size:
            return
        self.buffer, self.busy = b"", False
        now = time.perf_counter()
        if self.run.measuring:
            self.run.latencies.append(now - self.sent_at)
            if data[9:10] != b"2":
                self.run.errors += 1
        if not self.paced and not self.run.stopping:
            self.send(now)


def cpu_s(pid: str = "self") -> float:
    """CPU time of a process so far, all its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def pace(run: Run, clients: list[Client], rate: float) -> None:
    started, count = time.perf_counter(), 0
    while not run.stopping:
        due = started + count / rate
        now = time.perf_counter()
        if due > now:
            await asyncio.sleep(max(0.0005, due - now))
            continue
        free = next((client for client in clients if not client.busy), None)
        if free is None:
            await asyncio.sleep(0.0005)
            continue
        free.send(due)
        count += 1


async def drive(arguments: argparse.Namespace) -> dict[str, float]:
    parts = urlsplit(arguments.url)
    run = Run(requests(arguments.op, parts.netloc, arguments.value_bytes, arguments.batch))
    loop = asyncio.get_running_loop()
    clients = []
    for _ in range(arguments.clients):
        _, client = await loop.create_connection(lambda: Client(run, arguments.rate > 0), parts.hostname, parts.port)
        clients.append(client)
    pacing = None
    if arguments.rate > 0:
        pacing = asyncio.create_task(pace(run, clients, arguments.rate))
    else:
        for client in clients:
            client.send(time.perf_counter())
    await asyncio.sleep(arguments.warmup)
    before, server_before = cpu_s(), cpu_s(arguments.pid)
    run.measuring, started = True, time.perf_counter()
    await asyncio.sleep(arguments.seconds)
    run.measuring, wall = False, time.perf_counter() - started
    after, server_after = cpu_s(), cpu_s(arguments.pid)
    run.stopping = True
    if pacing is not None:
        await pacing
    for client in clients:
        client.transport.close()
    latencies = sorted(run.latencies) or [0.0]
    count = len(run.latencies) * (arguments.batch if arguments.op == "batch" else 1)
    return {
        "count": count,
        "errors": run.errors,
        "per_s": count / wall,
        "p50_ms": latencies[len(latencies) // 2] * 1e3,
        "p99_ms": latencies[int(len(latencies) * 0.99)] * 1e3,
        "wall_s": wall,
        "load_cpu_cores": (after - before) / wall,
        "node_cpu_cores": (server_after - server_before) / wall,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("url")
    parser.add_argument("--op", default="put")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--warmup", type=float, default=0.5)
    parser.add_argument("--value-bytes", type=int, default=100)
    parser.add_argument("--batch", type=int, default=100)
    parser.add_argument("--pid", default="self")
    parser.add_argument("--rate", type=float, default=0.0)
    arguments = parser.parse_args()
    try:
        import uvloop

        found = uvloop.run(drive(arguments))
    except ImportError:
        found = asyncio.run(drive(arguments))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
