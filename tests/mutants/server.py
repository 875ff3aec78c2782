"""Runs pytests for run.py: what every test needs is imported once, and each run is a fork of that.

usage: python tests/mutants/server.py, in the tree that is tested. One JSON list on a line of standard input is a run:
pytest's arguments, and the seconds it may take. The answer is a line of its own: [exit code (negative: the signal that
ended it; 124: time is up), CPU seconds of it and what it started, the end of what it said].

Nothing of the tree is imported here, so that a run sees what is in the files now.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import signal
import sys
import tempfile
import time
from importlib.metadata import entry_points
from typing import Any, NoReturn

TOLD_BYTES = 3000
COMMON = ["numpy", "msgspec", "hypothesis", "hypothesis.strategies", "asyncio", "unittest.mock", "decimal", "sqlite3"]
LOCAL = ("nova", "tests", "bench")


def warm() -> None:
    """Import what tests import again and again."""
    import importlib

    for name in COMMON:
        importlib.import_module(name)
    for plugin in entry_points(group="pytest11"):
        if plugin.name != "faker":  # which pyproject.toml turns off
            plugin.load()
    found = [name for name in sys.modules if name.partition(".")[0] in LOCAL]
    assert not found, f"a run would not see the files of {found}"


def run(arguments: list[str], before: dict[int, Any]) -> int:
    """The child: one pytest."""
    import pytest

    os.setpgid(0, 0)
    for number, handler in before.items():
        signal.signal(number, handler)
    return int(pytest.main(arguments))


def end(child: int) -> None:
    """Kill a run with all that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)


def ended(child: int, seconds: float) -> tuple[int, float]:
    """(exit code, CPU seconds) of a child, which gets so much time."""
    until = time.monotonic() + seconds
    wait = 0.001
    late = False
    while True:
        done, status, usage = os.wait4(child, os.WNOHANG)
        if done:
            code = 124 if late else os.waitstatus_to_exitcode(status)
            return code, usage.ru_utime + usage.ru_stime
        if time.monotonic() > until:
            late = True
            end(child)
        time.sleep(wait)
        wait = min(wait * 1.5, 0.02)


def serve() -> None:
    sys.path[0] = os.getcwd()  # as `python -m pytest` has it
    warm()
    gc.collect()
    gc.freeze()
    answers = os.fdopen(os.dup(1), "w")
    null = os.open(os.devnull, os.O_RDONLY)
    requests = os.fdopen(os.dup(0), "r")
    os.dup2(null, 0)
    running: list[int] = []

    def stop(*_: object) -> NoReturn:
        for child in running:
            end(child)
        os._exit(1)

    before: dict[int, Any] = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    for line in requests:
        arguments, seconds = json.loads(line)
        with tempfile.TemporaryFile() as said:
            child = os.fork()
            if child:
                running[:] = [child]
            else:
                code = 3
                try:
                    os.dup2(said.fileno(), 1)
                    os.dup2(said.fileno(), 2)
                    code = run(arguments, before)
                    sys.stdout.flush()
                    sys.stderr.flush()
                finally:
                    os._exit(code)
            code, cpu = ended(child, seconds)
            running.clear()
            end(child)  # and what it left running
            said.seek(max(0, said.seek(0, os.SEEK_END) - TOLD_BYTES))
            answers.write(json.dumps([code, cpu, said.read().decode(errors="replace")]) + "\n")
            answers.flush()


if __name__ == "__main__":
    serve()
