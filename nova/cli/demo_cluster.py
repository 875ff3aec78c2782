"""A cluster of real processes on loopback, one node a region, that is gone when its owner is gone."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import secrets
import signal
import socket
import ssl
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

from nova.client import Client
from nova.errors import NovaError, UnavailableError
from nova.transport.tls import http_client

REGIONS: Final = ("us-east", "eu-west", "ap-southeast")

# One way, milliseconds, chosen by hand in the range of real ones between N. Virginia, Ireland and Singapore. For
# comparison, half of the least round trips in Skyplane's latency profile of April 2022 (AWS) is 42, 118 and 89 ms.
LINK_DELAY_MS: Final = {
    frozenset(("us-east", "eu-west")): 34.0,
    frozenset(("us-east", "ap-southeast")): 108.0,
    frozenset(("eu-west", "ap-southeast")): 87.0,
}
START_S: Final = 30.0
STOP_S: Final = 10.0
_PR_SET_PDEATHSIG: Final = 1
POLICY: Final = """\
# How the regions settle writes that did not see each other; the same file everywhere. Try it on a conflict of your own:
# nova policy explain policy.toml --case conflict.json
name = "fleet"
default = "semantic"

[fields]
"labels.*" = "lww"

[[escalations]]
name = "one machine at two places"
when = { severity_at_least = "critical" }
action = "notify"
to = "on-call"
"""


class Member:
    """One node: where it listens, its process, and a client for its API."""

    def __init__(
        self,
        region: str,
        folder: Path,
        peer_port: int,
        http_port: int,
        token: str,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.region = self.name = region
        self.folder = folder
        self.listen = f"127.0.0.1:{peer_port}"
        self.http = f"127.0.0.1:{http_port}"
        self.url = f"{'http' if tls is None else 'https'}://{self.http}"
        self.data = folder / "data"
        self.process: subprocess.Popen[bytes] | None = None
        self.token = token
        self.tls = tls
        self.client = self.new_client(connections=4)
        self.actor = ""

    def new_client(self, connections: int) -> Client:
        """One that knows the token and, with TLS, whom to trust."""
        return Client(self.url, token=self.token, connections=connections, tls=self.tls)

    @property
    def log_file(self) -> Path:
        return self.folder / "node.log"

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def last_words(self) -> str:
        """The end of what the node wrote about itself."""
        try:
            lines = self.log_file.read_text("utf-8", "replace").strip().splitlines()
        except OSError:
            return ""
        return "\n".join(lines[-12:])


class Cluster:
    """Starts, kills, restarts and ends the nodes. Use `async with`: on leaving, every process has ended.

    folder  where nodes keep their data, configuration and logs
    delay   emulate the distance between the regions
    tls     encrypt all links and the API, with certificates of an authority in `folder`
    raises  NovaError if certificates are asked for and cannot be made
    """

    def __init__(self, folder: Path, *, delay: bool = True, tls: bool = False) -> None:
        self.folder = folder
        self.token = secrets.token_urlsafe(24)
        self._key = secrets.token_hex(32)
        self._processes: list[subprocess.Popen[bytes]] = []
        self.certs = _certificates(folder / "certs") if tls else None
        trusting = http_client(str(self.certs / "ca.pem")) if self.certs is not None else None
        ports = free_ports(2 * len(REGIONS))
        self.members = [
            Member(region, folder / region, ports[2 * at], ports[2 * at + 1], self.token, trusting)
            for at, region in enumerate(REGIONS)
        ]
        for member in self.members:
            member.folder.mkdir(parents=True, exist_ok=True)
            delays = {
                other.region: LINK_DELAY_MS[frozenset((member.region, other.region))]
                for other in self.members
                if other is not member
            }
            (member.folder / "policy.toml").write_text(POLICY)
            text = f'policy = "{member.folder / "policy.toml"}"\n\n[kinds]\n"vm/" = "vm"\n'
            text += "\n[limits]\nbody_bytes_max = 8388608\n"
            if delay:
                text += "\n[link_delay_ms]\n" + "".join(f'"{region}" = {ms}\n' for region, ms in delays.items())
            (member.folder / "nova.toml").write_text(text)

    async def __aenter__(self) -> Cluster:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """Start all nodes; returns when each is ready and sees the others."""
        for member in self.members:
            self.launch(member)
        await asyncio.gather(*(self.ready(member) for member in self.members))
        await self.meet()

    def launch(self, member: Member) -> None:
        """Start the process of one node."""
        command = [
            sys.executable, "-m", "nova", "serve",
            "--name", member.name, "--region", member.region, "--listen", member.listen, "--http", member.http,
            "--data", str(member.data), "--config", str(member.folder / "nova.toml"), "--chaos",
        ]  # fmt: skip
        if self.certs is not None:
            command += ["--tls", str(self.certs)]
        for other in self.members:
            if other is not member:
                command += ["--join", other.listen]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("NOVA_")}
        environment |= {"NOVA_KEY": self._key, "NOVA_TOKEN": self.token, "PYTHONUNBUFFERED": "1"}
        member.process = self.spawn(command, environment, member.log_file)

    def spawn(self, command: list[str], environment: dict[str, str], log_file: Path) -> subprocess.Popen[bytes]:
        """A child that ends with this cluster."""
        with open(log_file, "ab") as log:
            process = subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, preexec_fn=_end_with_parent
            )
        self._processes.append(process)
        return process

    async def ready(self, member: Member, seconds: float = START_S) -> None:
        """Wait until a node says that it is ready. Raises UnavailableError with its last words if it ends instead."""
        deadline = asyncio.get_running_loop().time() + seconds
        while True:
            if not member.alive:
                raise UnavailableError(f"node {member.name} ended while it started; it said:\n{member.last_words()}")
            with contextlib.suppress(NovaError):
                if (await member.client.request("GET", "/readyz")).status == 200:
                    status = await member.client.get("/v1/status")
                    member.actor = f"{status['name']}~{status['incarnation']}"
                    return
            if asyncio.get_running_loop().time() > deadline:
                raise UnavailableError(f"node {member.name} was not ready in {seconds:g} s:\n{member.last_words()}")
            await asyncio.sleep(0.02)

    async def meet(self, seconds: float = START_S) -> None:
        """Wait until every node has a session with every other."""

        async def complete() -> bool:
            states = await self.status()
            return all(state["peers"] == len(self.members) - 1 for state in states)

        if not await eventually(complete, seconds):
            raise UnavailableError(f"the nodes did not find each other in {seconds:g} s; see {self.folder}/*/node.log")

    async def status(self) -> list[dict[str, Any]]:
        """/v1/status of every node."""
        return list(await asyncio.gather(*(member.client.get("/v1/status") for member in self.members)))

    async def cut(self, member: Member) -> None:
        """Cut one node off from the others, on both sides of every link."""
        others = [other for other in self.members if other is not member]
        await asyncio.gather(
            member.client.call("POST", "/v1/chaos/cut", {"peers": [other.name for other in others]}),
            *(other.client.call("POST", "/v1/chaos/cut", {"peers": [member.name]}) for other in others),
        )

    async def heal(self) -> None:
        await asyncio.gather(*(member.client.call("POST", "/v1/chaos/heal") for member in self.members))

    def kill(self, member: Member) -> None:
        """SIGKILL, and wait until the kernel has buried it."""
        assert member.process is not None
        member.process.kill()
        member.process.wait()

    async def stop(self) -> None:
        """End every process: ask, wait, then kill."""
        for member in self.members:
            await member.client.close()
        running = [process for process in self._processes if process.poll() is None]
        for process in running:
            process.terminate()
        try:
            await eventually(lambda: all(process.poll() is not None for process in running), STOP_S)
        finally:
            self.end()

    def end(self) -> None:
        """Kill what is left, at once."""
        for process in self._processes:
            if process.poll() is None:
                process.kill()
            process.wait()


def _certificates(folder: Path) -> Path:
    """An authority and a certificate for each node."""
    from nova.transport.authority import Authority

    authority = Authority.create(folder)
    for region in REGIONS:
        authority.issue(region, region)
    return folder


def cut_power(member: Member) -> tuple[int | None, str]:
    """Take from a dead node's files what was not synced: (bytes that changed, "") or (None, why it cannot be told)."""
    from nova.storage.unsynced import cut_power as cut

    total = 0
    try:
        for part in ("log", "snapshots"):
            for file in sorted((member.data / part).glob("*")):
                if file.is_file():
                    total += cut(file)
    except (NovaError, OSError) as error:
        return None, str(error)
    return total, ""


async def eventually(condition: Any, seconds: float, every: float = 0.02) -> bool:
    """Whether a condition, a function or coroutine function, came true in time."""
    deadline = asyncio.get_running_loop().time() + seconds
    while True:
        value = condition()
        if asyncio.iscoroutine(value):
            value = await value
        if value:
            return True
        if asyncio.get_running_loop().time() > deadline:
            return False
        await asyncio.sleep(every)


def free_ports(count: int) -> list[int]:
    """Ports of loopback that nobody listens on now."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for sock in sockets:
            sock.bind(("127.0.0.1", 0))
        return [sock.getsockname()[1] for sock in sockets]
    finally:
        for sock in sockets:
            sock.close()


def _prctl() -> Any:
    try:
        return ctypes.CDLL(None).prctl
    except (OSError, AttributeError):  # no Linux: the owner's own clean-up must do
        return None


_PRCTL: Final = _prctl()


def _end_with_parent() -> None:
    """In the child: an owner that is killed takes it along."""
    if _PRCTL is not None:
        _PRCTL(_PR_SET_PDEATHSIG, signal.SIGTERM)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the owner ends its nodes in order
