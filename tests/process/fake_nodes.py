"""Three regions that answer the public API like nodes, with numbers that a test sets."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

REGIONS = ("ap-southeast", "eu-west", "us-east")
RTT_MS = {("eu-west", "us-east"): 68.2, ("ap-southeast", "us-east"): 216.4, ("ap-southeast", "eu-west"): 174.1}


def conflict(number: int) -> dict[str, Any]:
    """A conflict as /v1/conflicts tells it."""
    path, near, far, said = [
        (
            "/power_state",
            "running",
            "stopped",
            '"running" by us-east ranks highest of running > paused > suspended > stopped',
        ),
        ("/cpu", 8, 24, "24 by ap-southeast is the maximum of 8, 24"),
        (
            "/disks/root",
            {"id": "root", "size_gb": 400},
            {"id": "root", "size_gb": 300},
            "the largest size; disks never shrink",
        ),
        ("/labels/tier", "<img src=x onerror=alert(1)>", "b", "the last write by ap-southeast"),
    ][number % 4]
    return {
        "id": f"c{number}",
        "key": f"vm/vm-{number:06d}",
        "kind": "vm",
        "types": ["concurrent_update"],
        "severity": "medium",
        "complexity": 0.2,
        "paths": [path],
        "versions": [
            {"origin": "us-east", "timestamp": 1, "time_ms": 1, "clock": {}, "values": {path: near}},
            {"origin": "ap-southeast", "timestamp": 2, "time_ms": 2, "clock": {}, "values": {path: far}},
        ],
        "resolution": {
            "strategy": "semantic",
            "values": {path: near},
            "explanation": [f"{path}: {said}"],
            "discarded": [{"path": path, "value": far, "origin": "ap-southeast", "reason": "ranks lower"}],
            "confidence": 0.9,
        },
        "detected_ms": int(time.time() * 1000),
        "status": "resolved" if number % 5 else "pending",
    }


class FakeCluster:
    """State that all fake nodes share. `cut`: names of nodes without links; `conflicts` as listed."""

    def __init__(self) -> None:
        self.cut: set[str] = set()
        self.conflicts = [conflict(number) for number in range(6)]
        self.digests = dict.fromkeys(REGIONS, "5f0c" * 8)
        self.urls: dict[str, str] = {}
        self.begun = time.monotonic()
        self.rate = 1_200
        self.token = "letmein"

    def answer(self, name: str, path: str) -> Any:
        route = path.partition("?")[0]
        if route == "/v1/status":
            up = time.monotonic() - self.begun
            return {
                "name": name,
                "region": name,
                "version": "0",
                "revision": 1,
                "digest": self.digests[name],
                "keys": 10_000,
                "peers": 2,
                "healthy": True,
                "cluster": "nova",
                "incarnation": 1,
                "clock": {},
                "uptime_s": up,
                "conflicts": len(self.conflicts),
                "pending": 1,
                "writes_total": int(up * self.rate * (1 + len(name) % 3)),
                "rss_bytes": 71_000_000,
                "log": {},
                "http": self.urls[name],
                "listen": "127.0.0.1:1",
            }
        if route == "/v1/peers":
            return {"peers": [self._peer(name, other) for other in REGIONS if other != name]}
        if route == "/v1/conflicts":
            return {
                "conflicts": self.conflicts[:12],
                "total": 123 + len(self.conflicts),
                "next": None,
                "by_type": {"concurrent_update": 110, "resource_contention": 13},
                "by_strategy": {"semantic": 116, "manual": 13},
            }
        if route == "/v1/decisions":
            return {"waiting": []}
        if route.startswith("/v1/points/"):
            return {"points": []}
        if route.startswith("/v1/why/"):
            key = route.removeprefix("/v1/why/")
            return {
                "key": key,
                "kind": "vm",
                "value": {},
                "writes": [],
                "conflicts": [],
                "text": f"{key} holds what us-east wrote.",
            }
        return None

    def _peer(self, name: str, other: str) -> dict[str, Any]:
        connected = not self.cut & {name, other}
        low, high = sorted((name, other))
        return {
            "node": other,
            "region": other,
            "address": "127.0.0.1:1",
            "http": self.urls[other],
            "state": "alive" if connected else "suspect",
            "incarnation": 1,
            "connected": connected,
            "rtt_ms": RTT_MS[low, high],
            "lag_ops": 3 if connected else 900,
            "sent_bytes": 12_345_678,
            "received_bytes": 1,
        }


@contextlib.contextmanager
def fake_cluster() -> Iterator[FakeCluster]:
    cluster = FakeCluster()

    def handler(name: str) -> type[BaseHTTPRequestHandler]:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                allowed = self.headers.get("Authorization") == f"Bearer {cluster.token}"
                found = cluster.answer(name, self.path) if allowed else None
                body = json.dumps(
                    found if found is not None else {"code": "no", "error": "no", "request_id": ""}
                ).encode()
                self.send_response(200 if found is not None else 404 if allowed else 401)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        return Handler

    servers = [ThreadingHTTPServer(("127.0.0.1", 0), handler(name)) for name in REGIONS]
    for name, server in zip(REGIONS, servers, strict=True):
        server.daemon_threads = True
        cluster.urls[name] = f"127.0.0.1:{server.server_address[1]}"
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    try:
        yield cluster
    finally:
        for server in servers:
            server.shutdown()
            server.server_close()
