"""Processes that benchmarks start, load and stop: nova nodes, etcd, the load generator."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from load import cpu_s

HERE = Path(__file__).parent
KEY = "a-key-for-benchmarks-of-32-characters-or-more"
START_SECONDS_MAX = 20.0


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]
        return port


class Process:
    """A server of this machine: `ready` names a path that answers 200 when it serves."""

    def __init__(self, arguments: list[str], port: int, ready: str, log: Path) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self._port, self._ready, self._log = port, ready, log
        started = time.perf_counter()
        environment = {name: value for name, value in os.environ.items() if not name.startswith("NOVA_")}
        with log.open("ab") as out:
            self._process = subprocess.Popen(
                arguments, stdout=out, stderr=out, cwd=log.parent, env={**environment, "PYTHONPATH": str(HERE.parent)}
            )
        try:
            while not self._answers():
                if self._process.poll() is not None or time.perf_counter() - started > START_SECONDS_MAX:
                    raise RuntimeError(f"{arguments[0]} did not start:\n{log.read_text()[-2000:]}")
                time.sleep(0.002)
        except BaseException:
            self.stop()
            raise
        self.start_s = time.perf_counter() - started

    def _answers(self) -> bool:
        try:
            self.ask("GET", self._ready)
        except (OSError, http.client.HTTPException, AssertionError):
            return False
        return True

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
        with contextlib.closing(connection):
            connection.request(method, path, None if body is None else json.dumps(body))
            answer = connection.getresponse()
            data = answer.read()
            assert answer.status == 200, (answer.status, data[:500])
            return json.loads(data)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def cpu_s(self) -> float:
        return cpu_s(str(self.pid))

    @property
    def rss_mb(self) -> float:
        pages = int(Path(f"/proc/{self._process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6

    def stop(self, number: int = signal.SIGTERM) -> None:
        if self._process.poll() is None:
            self._process.send_signal(number)
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                self._process.kill()
        self._process.wait()


@contextlib.contextmanager
def running(process: Process) -> Iterator[Process]:
    try:
        yield process
    finally:
        process.stop()


def nova_node(folder: Path, name: str, region: str = "local", join: str = "", listen: str = "") -> Process:
    port = free_port()
    arguments = [
        sys.executable, "-m", "nova", "serve", "--name", name, "--region", region, "--data", str(folder / name),
        "--listen", listen or f"127.0.0.1:{free_port()}", "--http", f"127.0.0.1:{port}", "--key", KEY,
    ]  # fmt: skip
    return Process(arguments + (["--join", join] if join else []), port, "/readyz", folder / f"{name}.log")


def etcd(folder: Path) -> Process | None:
    """One etcd with its JSON gateway, None: it is not installed."""
    program = shutil.which("etcd")
    if program is None:
        return None
    port, peers = free_port(), f"http://127.0.0.1:{free_port()}"
    url = f"http://127.0.0.1:{port}"
    arguments = [
        program, "--data-dir", str(folder / "etcd"), "--listen-client-urls", url, "--advertise-client-urls", url,
        "--listen-peer-urls", peers, "--initial-advertise-peer-urls", peers, "--initial-cluster", f"default={peers}",
        "--log-level", "error",
    ]  # fmt: skip
    return Process(arguments, port, "/health", folder / "etcd.log")


def etcd_group(folder: Path) -> list[Process] | None:
    """Three etcd of one group with their JSON gateways, the leader first; None: it is not installed."""
    program = shutil.which("etcd")
    if program is None:
        return None
    ports = [free_port() for _ in range(6)]
    cluster = ",".join(f"e{n}=http://127.0.0.1:{ports[3 + n]}" for n in range(3))

    def start(n: int) -> Process:
        url, peers = f"http://127.0.0.1:{ports[n]}", f"http://127.0.0.1:{ports[3 + n]}"
        arguments = [
            program, "--name", f"e{n}", "--data-dir", str(folder / f"e{n}"), "--listen-client-urls", url,
            "--advertise-client-urls", url, "--listen-peer-urls", peers, "--initial-advertise-peer-urls", peers,
            "--initial-cluster", cluster, "--log-level", "error",
        ]  # fmt: skip
        return Process(arguments, ports[n], "/health", folder / f"e{n}.log")

    with ThreadPoolExecutor(3) as pool:  # none is healthy before two are there
        nodes = list(pool.map(start, range(3)))

    def follows(node: Process) -> bool:
        status = node.ask("POST", "/v3/maintenance/status", {})
        return bool(status["leader"] != status["header"]["member_id"])

    return sorted(nodes, key=follows)


def generator(url: str, **options: object) -> list[str]:
    """The command line of `bench/load.py`."""
    flags = [part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    return [sys.executable, str(HERE / "load.py"), url, *flags]


def under_load(server: Process, **options: object) -> dict[str, float]:
    """Run the generator against a server to its end; its figures."""
    command = generator(server.url, pid=server.pid, **options)
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    if done.returncode:
        raise RuntimeError(done.stderr)
    found: dict[str, float] = json.loads(done.stdout)
    assert not found["errors"], found
    return found
