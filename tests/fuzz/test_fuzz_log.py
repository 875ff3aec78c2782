"""Hostile bytes in a segment: opening either works or says what is wrong; it never crashes and never invents."""

from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from nova.errors import CorruptionError, UsageError
from nova.storage.log import FileLog, SegmentImage

RECORDS = [b"%d" % n * (n * 13 % 200) for n in range(30)]


@given(
    st.lists(st.tuples(st.integers(0, 6000), st.binary(min_size=1, max_size=40)), min_size=1, max_size=6),
    st.integers(0, 6000),
)
@settings(max_examples=150, deadline=None)
def test_a_log_with_overwritten_bytes_opens_with_a_prefix_or_is_refused(tmp_path_factory, writes, cut):
    directory: Path = tmp_path_factory.mktemp("log")
    with FileLog(directory, segment_bytes=4096) as log:
        for at in range(0, len(RECORDS), 7):
            log.append(RECORDS[at : at + 7])
            log.commit()
    path = sorted(directory.glob("*.log"))[-1]
    data = bytearray(path.read_bytes())
    for at, some in writes:
        data[at : at + len(some)] = some
    path.write_bytes(data[: max(cut, 64)])
    try:
        with FileLog(directory, segment_bytes=4096) as log:
            found = [record for _, record in log.replay()]
    except (CorruptionError, UsageError):
        return
    assert found == RECORDS[: len(found)]


@given(st.binary(max_size=3000))
@settings(max_examples=300, deadline=None)
def test_bytes_that_nobody_wrote_hold_no_record(data):
    assert SegmentImage(12345).unpack(data) == ([], 0)


def test_bytes_crafted_to_make_the_search_slow_are_given_up_quickly():
    head = b"\1\2\3\4" + (5).to_bytes(4, "little") + (1 << 20).to_bytes(4, "little") + b"\1"
    try:
        found = SegmentImage(1).unpack(head * 200_000)
    except CorruptionError:
        found = [], 0
    assert found == ([], 0)
