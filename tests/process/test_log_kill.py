"""SIGKILL and then the loss of all that the kernel had not written: what was acknowledged is there."""

import os
import random
import subprocess
import sys

import pytest
from killed import said_before_kill

from nova.errors import UnavailableError
from nova.storage.log import FileLog
from nova.storage.unsynced import cut_power, unsynced_ranges

pytestmark = pytest.mark.process

WRITER = """
import os, sys
from nova.storage.log import FileLog

log = FileLog(sys.argv[1], segment_bytes=256 << 10)
while True:
    first = log.last + 1
    log.append([b"%d:" % position + b"x" * (position * 37 % 4000) for position in range(first, first + 5)])
    os.write(1, b"%d\\n" % log.commit())
"""


def test_no_acknowledged_record_is_lost_by_kill_and_power_cut(tmp_path):
    chance = random.Random(7)
    acknowledged = 0
    for _ in range(20):
        acknowledged = max(acknowledged, int(said_before_kill(WRITER, [str(tmp_path)], chance.randrange(1, 25))[-1]))
        try:
            for path in tmp_path.glob("*.log"):
                cut_power(path)
        except UnavailableError as error:
            pytest.skip(str(error))
        with FileLog(tmp_path, segment_bytes=256 << 10) as log:
            found = list(log.replay())
            assert log.last >= acknowledged
            assert all(record.startswith(b"%d:" % position) for position, record in found)
            assert [position for position, _ in found] == list(range(1, log.last + 1))


def test_a_second_process_is_told_who_holds_the_directory(tmp_path):
    with FileLog(tmp_path):
        script = "import sys; from nova.storage.log import FileLog; FileLog(sys.argv[1])"
        second = subprocess.run(
            [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, timeout=30
        )
    assert second.returncode == 1
    assert f"is in use by process {os.getpid()}" in second.stderr


def test_unsynced_pages_are_seen_and_a_power_cut_takes_them(tmp_path):
    path = tmp_path / "file"
    with open(path, "wb", buffering=0) as file:
        os.posix_fallocate(file.fileno(), 0, 1 << 20)
        file.write(b"a" * 8192)
        os.fsync(file.fileno())
        try:
            assert unsynced_ranges(path) == []
        except UnavailableError as error:
            pytest.skip(str(error))
        file.write(b"b" * 100_000)
        assert sum(length for _, length in unsynced_ranges(path)) >= 100_000
        assert cut_power(path) == 100_000
        assert unsynced_ranges(path) == []
    assert path.read_bytes() == b"a" * 8192 + bytes((1 << 20) - 8192)
