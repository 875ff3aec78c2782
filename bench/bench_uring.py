"""Echo over many connections: our Hub on io_uring and on epoll against a server in C on epoll, and against uvloop.

Each connection has one message of 64 bytes under way, so nothing is gathered but what many connections bring at once.
The load is one process in C for all servers. Beside the time stand the processor time and the system calls that the
server needed for a message.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from nova._native.uring_build import liburing
from nova.transport.engine import Kind, probe

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
MESSAGES = 10_000
BYTES = 64


@pytest.fixture(scope="session")
def echo(tmp_path_factory):
    """The program of echo.c."""
    if not shutil.which("cc"):
        pytest.skip("no C compiler for bench/echo.c")
    program = tmp_path_factory.mktemp("echo") / "echo"
    library = liburing()
    ring = ["-DNOVA_LIBURING=1", str(library)] if library else []
    sources = [str(HERE / "echo.c"), *map(str, sorted((ROOT / "csrc").glob("uring*.c")))]
    subprocess.run(
        ["cc", "-std=c11", "-O2", f"-I{ROOT / 'csrc'}", *sources, *ring, "-lpthread", "-o", str(program)], check=True
    )
    return program


@contextlib.contextmanager
def serving(peer, echo):
    """A server of one kind: the process, which has printed its port."""
    script = [sys.executable, str(HERE / "echo_servers.py")]
    commands = {
        "nova": [*script, "io_uring"],
        "nova-epoll": [*script, "epoll"],
        "c-epoll": [str(echo), "serve"],
        "uvloop": [*script, "uvloop"],
    }
    process = subprocess.Popen(commands[peer], stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("connections", [16, 256])
@pytest.mark.parametrize("peer", ["nova", "nova-epoll", "c-epoll", "uvloop"])
@pytest.mark.benchmark(group="transport.echo of 64 B, one under way on each connection")
def test_echo(benchmark, peer, connections, echo):
    if peer == "nova" and (missing := probe(Kind.URING)):
        pytest.skip(missing)
    with serving(peer, echo) as server:
        port = server.stdout.readline().strip()
        load = subprocess.Popen(
            [str(echo), "load", port, str(connections), str(MESSAGES), str(BYTES)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

        def one_round():
            load.stdin.write("\n")
            load.stdin.flush()
            return int(load.stdout.readline())

        assert benchmark.pedantic(one_round, rounds=5, warmup_rounds=1) > 0
        load.stdin.close()
        said = json.loads(server.stdout.readline())
        assert load.wait() == server.wait() == 0
    assert said["messages"] >= MESSAGES
    benchmark.extra_info["operations"] = MESSAGES
    benchmark.extra_info["cpu_ns_a_message"] = said["cpu_s"] / said["messages"] * 1e9
    if "syscalls" in said:
        benchmark.extra_info["syscalls_a_message"] = said["syscalls"] / said["messages"]
        if peer == "nova" and connections >= 256 and not benchmark.disabled:
            assert benchmark.extra_info["syscalls_a_message"] <= 0.05
