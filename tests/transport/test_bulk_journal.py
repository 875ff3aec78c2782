"""The journal of a destination: what it names is there, what is torn does not count, nor another object's."""

import os
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nova._native.bulk import BLAKE3, RECORD_BYTES, Board
from nova.errors import UnavailableError, UsageError
from nova.transport import bulk_journal
from nova.transport.bulk_journal import Journal, Plan, read
from nova.transport.bulk_place import FilePlace

CHUNK = 4096
DATA = bytes(range(256)) * 100
PLAN = Plan(7, len(DATA), CHUNK, BLAKE3)


def records(*chunks):
    source = Board(*PLAN, receiving=False, memory=DATA)
    source.fill()
    return b"".join(struct.pack("<I", n) + source.sum(n) for n in chunks)


@pytest.fixture
def written(tmp_path):
    """The bytes of a journal of three batches."""
    journal = Journal(tmp_path / "j")
    assert journal.recover(PLAN) is None
    journal.begin(PLAN)
    for batch in ((0, 1), (2,), (3, 4, 5)):
        journal.append(records(*batch))
    journal.close()
    return (tmp_path / "j").read_bytes()


def test_what_was_appended_is_recovered(tmp_path, written):
    assert Journal(tmp_path / "j").recover(PLAN) == records(0, 1, 2, 3, 4, 5)


def test_of_a_torn_journal_the_whole_batches_count(tmp_path, written):
    ends = {48: 0, 48 + 8 + 72: 2, 48 + 16 + 108: 3, len(written): 6}
    for cut in range(len(written) + 1):
        plan, found, whole = read(written[:cut])
        count = max((n for end, n in ends.items() if end <= cut), default=None)
        assert (plan is None) == (count is None)
        assert found == records(*range(count or 0))
        assert whole <= cut
    (tmp_path / "j").write_bytes(written[:-1])
    journal = Journal(tmp_path / "j")
    assert journal.recover(PLAN) == records(0, 1, 2)
    journal.append(records(6))  # in the place of what was torn
    journal.close()
    assert Journal(tmp_path / "j").recover(PLAN) == records(0, 1, 2, 6)


@given(st.data())
def test_a_flipped_bit_ends_the_journal_before_it(data):
    body = b"".join(
        struct.pack("<II", len(batch) // RECORD_BYTES, bulk_journal.crc32c(batch)) + batch
        for batch in (records(0, 1), records(2))
    )
    packed = bulk_journal.PLAN.pack(*PLAN)
    whole = bulk_journal.HEAD.pack(bulk_journal.MAGIC, bulk_journal.crc32c(packed)) + packed + body
    assert read(whole) == (PLAN, records(0, 1, 2), len(whole))
    at = data.draw(st.integers(16, len(whole) - 1))
    broken = bytearray(whole)
    broken[at] ^= 1 << data.draw(st.integers(0, 7))
    plan, found, _ = read(bytes(broken))
    assert plan in (None, PLAN)
    assert found in (b"", records(0, 1))


def test_a_journal_of_another_object_is_begun_anew(tmp_path, written):
    for other in (PLAN._replace(transfer=8), PLAN._replace(size=1), PLAN._replace(chunk_bytes=8192)):
        journal = Journal(tmp_path / "j")
        assert journal.recover(other) is None
        journal.close()
    journal = Journal(tmp_path / "j")
    journal.begin(PLAN)
    assert journal.recover(PLAN) == b""


def test_two_transfers_do_not_write_to_one_destination(tmp_path):
    first = FilePlace(tmp_path / "x")
    with pytest.raises(UsageError, match="in use"):
        FilePlace(tmp_path / "x")
    first.close(whole=False)
    FilePlace(tmp_path / "x").close(whole=False)


def test_data_is_synced_before_the_journal_tells_of_it(tmp_path, monkeypatch):
    """The order is what makes a journal true after a power failure."""
    place = FilePlace(tmp_path / "x")
    board = place.prepare(PLAN)
    order = []
    sync = os.fdatasync
    part, journal = os.stat(tmp_path / "x.part").st_ino, os.stat(tmp_path / "x.journal").st_ino

    def noted(fd):
        order.append({part: "data", journal: "journal"}[os.fstat(fd).st_ino])
        if order[-1] == "data":
            assert read((tmp_path / "x.journal").read_bytes())[1] == b""
        sync(fd)

    monkeypatch.setattr(os, "fdatasync", noted)
    monkeypatch.setattr(bulk_journal.os, "fdatasync", noted)

    class Placed:
        chunks = board.chunks

        def fresh(self):
            return records(0)

    place.checkpoint(Placed())
    assert order == ["data", "journal"]
    place.close(whole=False)


def test_what_the_disk_lost_is_not_believed(tmp_path):
    """The journal names three chunks; one of them is not there, one has other bytes."""
    place = FilePlace(tmp_path / "x")
    place.prepare(PLAN)
    place._journal.append(records(0, 1, 2))
    place.close(whole=False)
    part = bytearray(DATA)
    part[CHUNK : 2 * CHUNK] = bytes(CHUNK)
    part[2 * CHUNK] ^= 1
    (tmp_path / "x.part").write_bytes(part)
    place = FilePlace(tmp_path / "x")
    assert place.prepare(PLAN).map()[0] == 0b001
    place.close(whole=False)


def test_an_object_larger_than_the_disk_is_refused_before_it_begins(tmp_path):
    place = FilePlace(tmp_path / "x")
    with pytest.raises(UnavailableError, match="make room"):
        place.prepare(Plan(1, 1 << 60, 1 << 24, BLAKE3))
    place.close(whole=True)
