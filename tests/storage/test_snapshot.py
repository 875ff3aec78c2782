import pytest

from nova.errors import CorruptionError, UsageError
from nova.storage.snapshot import FileSnapshots


def test_the_newest_two_are_kept_and_leftovers_swept(tmp_path):
    (tmp_path / "7.tmp").write_bytes(b"half")
    snapshots = FileSnapshots(tmp_path)
    for position in range(5):
        snapshots.save(position, bytes(position))
    assert [path.name for path in sorted(tmp_path.iterdir())] == [f"{n:020d}.snap" for n in (3, 4)]


def test_a_snapshot_cut_or_flipped_at_any_byte_is_passed_over(tmp_path):
    snapshots = FileSnapshots(tmp_path)
    snapshots.save(1, b"before")
    snapshots.save(2, b"newest")
    path = tmp_path / f"{2:020d}.snap"
    whole = path.read_bytes()
    for at in range(len(whole)):
        path.write_bytes(whole[:at])
        assert snapshots.load() == (1, b"before")
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x40]) + whole[at + 1 :])
        assert snapshots.load() == (1, b"before")
    path.write_bytes(whole)
    assert snapshots.load() == (2, b"newest")


def test_when_none_is_whole_nothing_is_guessed(tmp_path):
    snapshots = FileSnapshots(tmp_path)
    snapshots.save(1, b"only")
    next(tmp_path.iterdir()).write_bytes(b"rubbish")
    with pytest.raises(CorruptionError, match="offset 0"):
        snapshots.load()


def test_a_negative_position_is_refused(tmp_path):
    with pytest.raises(UsageError):
        FileSnapshots(tmp_path).save(-1, b"")
