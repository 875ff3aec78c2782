"""Real `nova serve` processes on loopback, and how a test talks to them, breaks them and takes their power away."""

from __future__ import annotations

import contextlib
import ctypes
import http.client
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import pytest

from nova.errors import UnavailableError
from nova.storage.unsynced import cut_power

ROOT = Path(__file__).parents[2]
KEY = "the cluster key of the tests, never used elsewhere"
TOKEN = "the-token-of-the-tests"
START_S = 30.0

# Peers notice and repair within a second, so that tests need not wait for the defaults of a wide network.
GOSSIP = {
    "round_ms": 100,
    "push_pull_ms": 500,
    "probe_ms": 500,
    "probe_timeout_ms": 300,
    "suspicion_ms": 1_500,
    "anti_entropy_ms": 1_000,
}

_prctl = ctypes.CDLL(None).prctl
_PR_SET_PDEATHSIG = 1


def _die_with_the_tests() -> None:
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def eventually(condition: Callable[[], Any], seconds: float = 20.0, what: object = "") -> Any:
    """The first true value of `condition`; fails the test after `seconds`. `what` may be a function that explains."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > deadline:
            pytest.fail(f"not true within {seconds:g} s: {what() if callable(what) else what}")
        time.sleep(0.02)
    return value


def free_ports(count: int) -> list[int]:
    """Ports of loopback that nobody listens on now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for sock in sockets:
            sock.bind(("127.0.0.1", 0))
        return [sock.getsockname()[1] for sock in sockets]


def key_path(key: str) -> str:
    return "/v1/keys/" + quote(key)


def with_change(folder: Path, source: str) -> dict[str, str]:
    """An environment in which every Python process changes nova by `source` as it starts."""
    (folder / "sitecustomize.py").write_text(source)
    # That runs before the current directory is on the path, so the code under test is named, too.
    return {"PYTHONPATH": os.pathsep.join([str(folder), str(ROOT), os.environ.get("PYTHONPATH", "")])}


class Answer(Exception):
    """An answer of 400 or more."""

    def __init__(self, status: int, body: dict[str, Any]) -> None:
        super().__init__(f"{status} {body}")
        self.status, self.body = status, body


class Node:
    """One node: its process, its files, its API.

    limits   the [limits] table of its configuration
    flags    further arguments of `nova serve`
    tls      how to ask its API, if that is HTTPS
    """

    def __init__(
        self,
        name: str,
        region: str,
        folder: Path,
        *,
        ports: tuple[int, int],
        join: list[str] | None = None,
        limits: dict[str, int] | None = None,
        flags: tuple[str, ...] = (),
        key: str | None = KEY,
        environment: dict[str, str] | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.tls = tls
        self.name, self.region, self.folder = name, region, folder
        self.listen, self.http = (f"127.0.0.1:{port}" for port in ports)
        self.http_port = ports[1]
        self.data = folder / "data"
        self.log_file = folder / "stderr.log"
        self.process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True, exist_ok=True)
        lines = ["[gossip]", *(f"{name} = {value}" for name, value in GOSSIP.items())]
        lines += ["[limits]", *(f"{name} = {value}" for name, value in (limits or {}).items())]
        (folder / "nova.toml").write_text("\n".join(lines) + "\n")
        self.command = [
            sys.executable, "-m", "nova", "serve", "--name", name, "--region", region, "--listen", self.listen,
            "--http", self.http, "--data", str(self.data), "--config", str(folder / "nova.toml"), "--chaos", *flags,
            *(argument for address in join or () for argument in ("--join", address)),
        ]  # fmt: skip
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith("NOVA_")}
        self.environment |= {"NOVA_TOKEN": TOKEN, **({"NOVA_KEY": key} if key else {}), **(environment or {})}

    # -- the process --

    def launch(self) -> None:
        """Start the process; its standard error is appended to the log file."""
        with open(self.log_file, "ab") as log:
            self.process = subprocess.Popen(
                self.command, env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=ROOT,
                preexec_fn=_die_with_the_tests,
            )  # fmt: skip

    def start(self) -> Node:
        """Start the process and wait until it is ready."""
        self.launch()
        self.ready()
        return self

    def ready(self) -> None:
        def is_ready() -> bool:
            assert self.process is not None
            assert self.process.poll() is None, f"{self.name} ended with {self.process.returncode}:\n{self.words()}"
            with contextlib.suppress(OSError, http.client.HTTPException, Answer):
                return bool(self.call("GET", "/readyz")["ready"])
            return False

        eventually(is_ready, START_S, self.words)

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def send_signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL, and wait until the kernel has buried it."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self, seconds: float = 20.0) -> int:
        """SIGTERM; the exit code."""
        self.send_signal(signal.SIGTERM)
        return self.wait(seconds)

    def wait(self, seconds: float = START_S) -> int:
        assert self.process is not None
        return self.process.wait(seconds)

    def end(self) -> None:
        """Leave nothing behind."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
        if self.process is not None:
            self.process.wait()

    def cut_power(self) -> int:
        """Take every page that was not synced from the files of the dead node; how many bytes that were.

        raises  UnavailableError where that cannot be told
        """
        assert not self.running
        files = [file for part in ("log", "snapshots", "audit") for file in sorted((self.data / part).glob("*"))]
        return sum(cut_power(file) for file in files)

    def words(self) -> str:
        """What it wrote on standard error."""
        return self.log_file.read_text("utf-8", "replace") if self.log_file.exists() else ""

    def segments(self) -> list[Path]:
        """The files of its log, oldest first."""
        return sorted((self.data / "log").glob("*.log"))

    # -- its API --

    def connect(self, seconds: float = 30.0) -> http.client.HTTPConnection:
        if self.tls is not None:
            return http.client.HTTPSConnection("127.0.0.1", self.http_port, timeout=seconds, context=self.tls)
        return http.client.HTTPConnection("127.0.0.1", self.http_port, timeout=seconds)

    def ask(
        self, method: str, path: str, body: bytes | None = None, connection: http.client.HTTPConnection | None = None
    ) -> tuple[int, bytes]:
        """Status and body of one request, on a connection of its own unless one is given."""
        headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
        with contextlib.closing(self.connect()) if connection is None else contextlib.nullcontext(connection) as link:
            link.request(method, path, body, headers)
            answer = link.getresponse()
            return answer.status, answer.read()

    def call(
        self, method: str, path: str, value: Any = None, connection: http.client.HTTPConnection | None = None
    ) -> Any:
        """JSON in, JSON out. Raises Answer for 400 and more."""
        status, body = self.ask(method, path, None if value is None else json.dumps(value).encode(), connection)
        if status >= 400:
            raise Answer(status, json.loads(body))
        return json.loads(body)

    def put(self, key: str, value: Any, **options: Any) -> dict[str, Any]:
        return self.call("PUT", key_path(key), {"value": value, **options})  # type: ignore[no-any-return]

    def get(self, key: str) -> dict[str, Any] | None:
        """What the key holds, None if nothing."""
        try:
            return self.call("GET", key_path(key))  # type: ignore[no-any-return]
        except Answer as answer:
            if answer.status != 404:
                raise
            return None

    def delete(self, key: str) -> dict[str, Any]:
        return self.call("DELETE", key_path(key))  # type: ignore[no-any-return]

    def status(self) -> dict[str, Any]:
        return self.call("GET", "/v1/status")  # type: ignore[no-any-return]

    def held(self, prefix: str = "") -> dict[str, Any]:
        """Every key below a prefix, key -> value."""
        return {entry["key"]: entry["value"] for entry in self.pages("/v1/keys", "keys", prefix=prefix)}

    def conflicts(self) -> dict[str, dict[str, Any]]:
        """Every conflict that it lists, id -> conflict."""
        return {conflict["id"]: conflict for conflict in self.pages("/v1/conflicts", "conflicts")}

    def pages(self, path: str, field: str, **query: Any) -> Iterator[dict[str, Any]]:
        after = None
        while True:
            given = {"limit": 1000, **query, **({"after": after} if after else {})}
            page = self.call("GET", f"{path}?{urlencode(given)}")
            yield from page[field]
            after = page["next"]
            if after is None:
                return

    def sees(self) -> dict[str, str]:
        """Its peers, name -> state."""
        return {peer["node"]: peer["state"] for peer in self.call("GET", "/v1/peers")["peers"]}

    def cut(self, *others: Node) -> None:
        """Cut the links to these nodes, on both sides."""
        self.call("POST", "/v1/chaos/cut", {"peers": [other.name for other in others]})
        for other in others:
            other.call("POST", "/v1/chaos/cut", {"peers": [self.name]})

    def heal(self) -> None:
        self.call("POST", "/v1/chaos/heal")


class Nodes:
    """Makes nodes in a folder, and ends them all. Nodes made together know each other's addresses."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.all: list[Node] = []

    def make(self, *names: str, **options: Any) -> list[Node]:
        """Nodes that are not started, one region each, joined to each other and to those made before."""
        ports = free_ports(2 * len(names))
        addresses = [f"127.0.0.1:{port}" for port in ports[::2]]
        before = [node.listen for node in self.all]
        made = []
        for at, name in enumerate(names):
            join = options.get("join", before + [address for address in addresses if address != addresses[at]])
            made.append(
                Node(
                    name,
                    f"region-{name}",
                    self._folder / name,
                    ports=(ports[2 * at], ports[2 * at + 1]),
                    **(options | {"join": join}),
                )
            )
        self.all += made
        return made

    def start(self, *names: str, **options: Any) -> list[Node]:
        """Nodes that are ready and connected to each other."""
        made = self.make(*names, **options)
        for node in made:
            node.launch()
        for node in made:
            node.ready()
        meet(*self.all)
        return made

    def end(self) -> None:
        for node in self.all:
            node.end()

    def words(self) -> str:
        """What all of them wrote, for a failure's report."""
        return "\n".join(f"--- {node.name} ---\n{node.words()[-4000:]}" for node in self.all)


def meet(*nodes: Node) -> None:
    """Wait until each node has a session with every other."""
    eventually(lambda: all(node.status()["peers"] >= len(nodes) - 1 for node in nodes), 20, "the nodes did not meet")


def converge(*nodes: Node, seconds: float = 20.0) -> float:
    """Wait until all hold the same and have heard the same; how long it took."""
    begin = time.monotonic()
    states: list[dict[str, Any]] = []

    def equal() -> bool:
        states[:] = [node.status() for node in nodes]
        return all(state["digest"] == states[0]["digest"] and state["clock"] == states[0]["clock"] for state in states)

    eventually(equal, seconds, lambda: [(state["name"], state["digest"], state["clock"]) for state in states])
    return time.monotonic() - begin


class Load:
    """Puts from several connections, each to keys of its own, until the node is gone or `stop` is called.

    Every key holds a growing number, so that what is held can be told from what was acknowledged: not less than the
    last acknowledged one, not more than the last one that was sent.
    """

    def __init__(self, node: Node, name: str, *, connections: int = 6, keys: int = 40, padding: int = 0) -> None:
        self.acked: dict[str, int] = {}
        self.sent: dict[str, int] = {}
        self.refused: list[Answer] = []
        self.broken = 0
        self._node = node
        self._stop = threading.Event()
        self._padding = "x" * padding
        self._threads = [
            threading.Thread(target=self._run, args=(f"load/{name}/{worker}", keys), daemon=True)
            for worker in range(connections)
        ]
        self.count = 0
        for thread in self._threads:
            thread.start()

    def _run(self, prefix: str, keys: int) -> None:
        link = self._node.connect()
        number = 0
        try:
            while not self._stop.is_set():
                number += 1
                key = f"{prefix}/{number % keys}"
                self.sent[key] = number
                self._node.call("PUT", key_path(key), {"value": [number, self._padding]}, link)
                self.acked[key] = number
                self.count += 1  # a few may be missed between threads; it is a measure of progress only
        except Answer as answer:
            self.refused.append(answer)
        except (OSError, http.client.HTTPException, json.JSONDecodeError):
            self.broken += 1
        finally:
            link.close()

    def wait_for(self, count: int) -> None:
        """Until so many puts are acknowledged."""
        eventually(lambda: self.count >= count, 30, lambda: f"{self.count} acknowledged, {self.refused}")

    def stop(self) -> None:
        """No further puts; returns when the last one is answered."""
        self._stop.set()
        self.join()

    def join(self) -> None:
        for thread in self._threads:
            thread.join(40)
            assert not thread.is_alive(), "a put was never answered"

    def check(self, node: Node) -> None:
        """Every acknowledged put is there, and nothing that was not sent."""
        held = node.held("load/")
        lost = {
            key: (number, held.get(key))
            for key, number in self.acked.items()
            if key not in held or not number <= held[key][0] <= self.sent[key]
        }
        assert not lost, f"{node.name}: {len(lost)} of {len(self.acked)} acknowledged keys are wrong: {_some(lost)}"


def _some(items: dict[str, Any]) -> str:
    return ", ".join(f"{key} {str(value)[:60]}" for key, value in list(items.items())[:5])


def cut_power_or_skip(*nodes: Node) -> int:
    """Take the power of dead nodes; skips the test where the kernel cannot tell what is synced."""
    try:
        return sum(node.cut_power() for node in nodes)
    except UnavailableError as error:
        pytest.skip(f"killed and restarted, but without a power cut: {error}")
