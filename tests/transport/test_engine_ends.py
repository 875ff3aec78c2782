"""Where a native engine ends: in a child process, at limits, by failure, by being closed or forgotten."""

import errno
import os
import signal
import subprocess
import sys

import pytest

from nova.errors import UsageError
from nova.transport.engine import Engine, EngineError, EngineOptions, Kind
from tests.transport.engine_log import (
    KINDS,
    SECONDS_MAX,
    Log,
    dialled,
    opening,
    read,
    uring_only,
)


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(params=[False, True], ids=["by its thread", "driven"])
def driven(request):
    return request.param


@pytest.fixture
def opened():
    with opening() as open_one:
        yield open_one


def test_a_child_process_is_refused_by_pid(kind, driven, opened):
    log = opened(kind, driven=driven)
    connection, peer = dialled(log)
    out, into = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(int(SECONDS_MAX))  # whatever waits here for the thread that is not there
        said = []
        for work in (
            lambda: log.engine.send(connection, b"from the child", copy=True),
            lambda: log.engine.poll(log),
            lambda: log.engine.connect("127.0.0.1", 1),
            lambda: log.engine.close(),
        ):
            try:
                work()
                said.append("allowed")
            except UsageError as error:
                said.append(str(error))
        os.write(into, "\n".join(said).encode())
        os._exit(0)
    os.close(into)
    with open(out) as file:
        said = file.read().split("\n")
    os.waitpid(child, 0)
    assert said == [f"this engine belongs to process {os.getpid()}, and this is its child {child}: open one here"] * 4
    log.engine.send(connection, b"from the parent", copy=True)
    log.look(0.01)
    assert read(peer, 15) == b"from the parent"
    peer.close()


MEMLOCK = """
import os, resource
from nova.transport.engine import *
resource.setrlimit(resource.RLIMIT_MEMLOCK, (65536, 65536))
if os.geteuid() == 0:
    os.setgid(65534); os.setuid(65534)  # root may lock without limit
engine = Engine(Kind.URING, EngineOptions(submissions=8, completions=16, buffers=8, connections_max=8))
try:
    engine.register(bytearray(1 << 20))
except EngineError as error:
    print(error)
engine.close()
"""


@uring_only
def test_a_limit_of_locked_memory_is_named():
    done = subprocess.run([sys.executable, "-c", MEMLOCK], capture_output=True, text=True, timeout=60, check=False)
    assert (
        "cannot lock 1048576 bytes: the limit of locked memory is 65536 bytes; raise it with ulimit -l" in done.stdout
    ), done.stderr


# -- ends ------------------------------------------------------------------------------------------------------------


def test_an_engine_that_fails_tells_every_connection_and_then_refuses(kind, driven, opened):
    log = opened(kind, driven=driven)
    one, peer = dialled(log)
    two, other = dialled(log, receive_bytes=4096)
    log.engine.send(two, bytes(8 << 20), copy=False)
    log.engine.fail(errno.EIO)
    if driven:
        with pytest.raises(EngineError, match="has ended"):
            log.engine.turn(0)
        log.engine.poll(log)
    else:
        log.until(lambda: log.failures)
    assert log.failures == [errno.EIO]
    assert log.ends == {one: errno.EIO, two: errno.EIO}
    assert log.engine.held == 0
    with pytest.raises(EngineError, match="has ended"):
        log.engine.connect("127.0.0.1", 1)
    for each in (peer, other):
        each.close()


def test_an_engine_closes_twice_and_takes_nothing_afterwards(kind, driven):
    engine = Engine(kind, driven=driven)
    engine.close()
    engine.close()
    with pytest.raises(EngineError, match="engine is closed"):
        engine.connect("127.0.0.1", 1)


def test_an_engine_that_nobody_closes_goes_with_its_last_reference(kind, driven):
    before = len(os.listdir("/proc/self/fd"))
    log = Log(Engine(kind, driven=driven))
    _, peer = dialled(log)
    del log
    with pytest.raises(ConnectionResetError):
        peer.recv(1)
    peer.close()
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ({"buffers": 3}, "buffers is a power of two"),
        ({"buffers": 1 << 16}, "at most 32768"),
        ({"buffer_bytes": 1}, "buffer_bytes is from 64 to 4194304"),
        ({"connections_max": 0}, "connections_max is from 1 to 65536"),
        ({"submissions": 3}, "powers of two"),
        ({"completions": 1 << 20}, "at most 65536 completions"),
        ({"queue_bytes_low": -1}, "sizes are from 0"),
    ],
)
def test_sizes_that_cannot_be_are_refused_with_the_limit(sizes, words):
    with pytest.raises(UsageError, match=words):
        Engine(Kind.EPOLL, EngineOptions(**sizes))


def test_a_name_is_not_an_address(kind, opened):
    with pytest.raises(UsageError, match="'localhost' is no numeric address"):
        opened(kind).engine.connect("localhost", 1)
