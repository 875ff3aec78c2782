"""A program that says what it did, line by line, until it is killed in the middle."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Sequence


def said_before_kill(program: str, arguments: Sequence[str], lines_min: int, delay_s: float = 0) -> list[bytes]:
    """Run Python code until it said so many lines and a moment more, kill it; all whole lines that it said."""
    child = subprocess.Popen([sys.executable, "-c", program, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdout is not None
    assert child.stdin is not None
    told = b""
    try:
        while told.count(b"\n") < lines_min:
            assert select.select([child.stdout], [], [], 30)[0], "the program is silent"
            more = os.read(child.stdout.fileno(), 65536)
            assert more, "the program died"
            told += more
        select.select([], [], [], delay_s)  # so that the kill comes at any step, not behind an answer
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    told += child.stdout.read()
    child.stdout.close()
    child.stdin.close()
    return told[: told.rindex(b"\n")].split(b"\n")
