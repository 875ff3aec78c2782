"""SIGKILL of either side of a bulk transfer over 8 streams, and the loss of all that the kernel had not written.

NOVA_BULK_BYTES sets the size, for example 4294967296.
"""

import filecmp
import json
import os
import select
import signal
import socket
import subprocess
import sys

import pytest

from nova._native.bulk import RECORD_BYTES
from nova.errors import UnavailableError
from nova.storage.unsynced import cut_power
from nova.transport.bulk_journal import read

pytestmark = pytest.mark.process

SIZE = int(os.environ.get("NOVA_BULK_BYTES", 48 << 20))
PACE_BPS = max(200_000_000, SIZE)  # so that kills meet the transfer in its middle, whatever the machine
BLOCK = 1 << 20

RECEIVER = """
import json, sys
from nova.transport.bulk import BulkListener
with BulkListener(sys.argv[1]) as listener:
    receiver = listener.receive(sys.argv[2], sync_bytes=1 << 20)
    for now in receiver:
        print(now.done_bytes, flush=True)
    one = receiver.receipt
    print(json.dumps({"moved": one.moved_bytes, "resumed": one.resumed_bytes, "root": one.root.hex()}), flush=True)
"""

SENDER = """
import json, sys
from nova.transport.bulk import BulkSender
sender = BulkSender(sys.argv[1], sys.argv[2], streams=8, pace_bps=int(sys.argv[3]), retry_s=60)
for now in sender:
    print(now.done_bytes, flush=True)
one = sender.receipt
print(json.dumps({"moved": one.moved_bytes, "resumed": one.resumed_bytes, "root": one.root.hex(),
                  "streams": one.streams}), flush=True)
"""


class Side:
    """A process that tells how far it is."""

    def __init__(self, program, *arguments):
        command = [sys.executable, "-c", program, *map(str, arguments)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE)
        self.rest = b""

    def lines(self):
        while True:
            assert select.select([self.process.stdout], [], [], 60)[0], "the program is silent"
            more = os.read(self.process.stdout.fileno(), 65536)
            if not more:
                return
            *whole, self.rest = (self.rest + more).split(b"\n")
            yield from whole

    def reach(self, done_bytes):
        """Go on until so much is done; False if the process was done before."""
        return any(line.isdigit() and int(line) >= done_bytes for line in self.lines())

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self.process.stdout.close()

    def end(self):
        """Its receipt."""
        last = None
        for line in self.lines():
            last = line
        assert self.process.wait(30) == 0
        self.process.stdout.close()
        return json.loads(last)


@pytest.fixture
def files(tmp_path):
    """(source, destination); removed at once, since they are large."""
    source, into = tmp_path / "source", tmp_path / "into"
    block = os.urandom(BLOCK - 8)
    with source.open("wb") as out:
        for number in range(SIZE // BLOCK):
            out.write(number.to_bytes(8, "big") + block)
        out.write(b"and a tail")
    yield source, into
    for path in tmp_path.iterdir():
        path.unlink()


def free_address():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"127.0.0.1:{server.getsockname()[1]}"


def check(source, into):
    assert filecmp.cmp(source, into, shallow=False)
    assert sorted(path.name for path in into.parent.iterdir()) == ["into", "source"]


def test_a_receiver_that_is_killed_again_and_again_keeps_what_its_journal_names(files):
    source, into = files
    address = free_address()
    size = source.stat().st_size
    sender = Side(SENDER, source, address, PACE_BPS)
    journalled = 0
    try:
        for kill in (1, 2, 3):
            receiver = Side(RECEIVER, address, into)
            assert receiver.reach(size * kill * 0.22), "it was done before it was killed"
            receiver.kill()
            part, journal = into.with_name("into.part"), into.with_name("into.journal")
            try:
                for path in (part, journal):
                    cut_power(path)
            except UnavailableError as error:
                pytest.skip(str(error))
            assert not into.exists()
            _, records, _ = read(journal.read_bytes())
            assert len(records) // RECORD_BYTES >= journalled
            journalled = len({records[at : at + 4] for at in range(0, len(records), RECORD_BYTES)})
            assert journalled
        got = Side(RECEIVER, address, into).end()
        sent = sender.end()
    finally:
        sender.process.kill()
    # All that the journal named had outlived the power cut: not one chunk of it was asked for again.
    assert -(-got["resumed"] // (256 * 1024)) == journalled
    assert got["resumed"] + got["moved"] == size
    assert got["root"] == sent["root"]
    assert sent["streams"] == 8
    check(source, into)


def test_a_sender_that_is_killed_again_and_again_goes_on(files):
    source, into = files
    address = free_address()
    size = source.stat().st_size
    receiver = Side(RECEIVER, address, into)
    try:
        for kill in (1, 2, 3):
            sender = Side(SENDER, source, address, PACE_BPS)
            assert sender.reach(size * kill * 0.22), "it was done before it was killed"
            sender.kill()
        sent = Side(SENDER, source, address, PACE_BPS).end()
        got = receiver.end()
    finally:
        receiver.process.kill()
    assert sent["resumed"] >= size * 0.6
    assert sent["resumed"] + sent["moved"] == size
    assert got["moved"] == size
    assert got["root"] == sent["root"]
    check(source, into)
