"""Deltas by spans: threads and files give what one call gives, in bounded memory, whole or not at all."""

from __future__ import annotations

import os
import random
import subprocess
import sys

import pytest

from nova.cli.app import run
from nova.delta import decode, decode_into, stat
from nova.delta.files import decode_file, decode_spans, encode_file, encode_spans, stat_file
from nova.errors import CorruptionError, LimitError, UnavailableError, UsageError

SPAN = 1 << 16


def pair(old: int, now: int) -> tuple[bytes, bytes]:
    rng = random.Random(old * 7 + now)
    base = rng.randbytes(old)
    new = bytearray(base[:now] + rng.randbytes(max(0, now - old)))
    for _ in range(now // 5000):
        new[rng.randrange(now)] ^= 1
    return base, bytes(new)


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize(
    ("old", "now"), [(0, 0), (5, 0), (0, 5), (500_000, 500_001), (500_000, 70_000), (70_000, 500_000)]
)
def test_spans_joined_are_a_delta(old, now, workers):
    base, new = pair(old, now)
    delta = b"".join(encode_spans(base, new, span_bytes=SPAN, workers=workers))
    assert stat(delta).spans == max(1, -(-now // SPAN))
    assert decode(base, delta) == new
    assert b"".join(decode_spans(base, delta, workers=workers)) == new
    room = bytearray(max(old, now))
    room[:old] = base
    assert decode_into(room, delta, base_bytes=old) == now
    assert room[:now] == new


def test_the_number_of_workers_changes_no_byte():
    base, new = pair(900_000, 900_000)
    one, many = (b"".join(encode_spans(base, new, span_bytes=SPAN, workers=n)) for n in (1, 4))
    assert one == many


def test_what_is_wrong_is_told_whichever_span_it_is_in():
    base, new = pair(300_000, 300_000)
    delta = bytearray(b"".join(encode_spans(base, new, span_bytes=SPAN)))
    with pytest.raises(UsageError, match="for a base of 300000 bytes"):
        decode_spans(base[1:], delta)
    with pytest.raises(LimitError, match="the limit is 1000"):
        decode_spans(base, delta, size_max=1000)
    wrong = bytearray(base)
    wrong[-1] ^= 1
    parts = decode_spans(wrong, delta, workers=2)
    assert next(parts) == new[:SPAN]
    with pytest.raises(UsageError, match="fetch the base"):
        list(parts)
    delta[-1] ^= 1
    with pytest.raises(CorruptionError, match="checksum"):
        decode_spans(base, delta)
    with pytest.raises(UsageError, match="span_bytes is 5000"):
        encode_spans(base, new, span_bytes=5000)
    with pytest.raises(UsageError, match="workers is 0"):
        encode_spans(base, new, workers=0)


def test_files_come_back(tmp_path):
    base, new = pair(300_000, 310_000)
    (tmp_path / "base").write_bytes(base)
    (tmp_path / "new").write_bytes(new)
    size = encode_file(tmp_path / "base", tmp_path / "new", tmp_path / "delta")
    assert size == (tmp_path / "delta").stat().st_size < 12_000
    assert stat_file(tmp_path / "delta").image_bytes == 310_000
    assert decode_file(tmp_path / "base", tmp_path / "delta", tmp_path / "again") == 310_000
    assert (tmp_path / "again").read_bytes() == new


def test_a_file_is_there_whole_or_not_at_all(tmp_path):
    base, new = pair(300_000, 310_000)
    (tmp_path / "base").write_bytes(base)
    (tmp_path / "new").write_bytes(new)
    encode_file(tmp_path / "base", tmp_path / "new", tmp_path / "delta")
    (tmp_path / "other").write_bytes(base[:-1] + b"x")
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(UsageError, match="fetch the base"):
        decode_file(tmp_path / "other", tmp_path / "delta", tmp_path / "again")
    with pytest.raises(UsageError, match="missing: No such file"):
        decode_file(tmp_path / "missing", tmp_path / "delta", tmp_path / "again")
    with pytest.raises(UnavailableError, match="nowhere/again could not be written"):
        decode_file(tmp_path / "base", tmp_path / "delta", tmp_path / "nowhere" / "again")
    assert sorted(path.name for path in tmp_path.iterdir()) == before


@pytest.mark.skipif(os.environ.get("NOVA_SANITIZE") == "1", reason="the sanitizers' own memory would be limited, too")
def test_memory_is_bounded_by_spans_and_not_by_files(tmp_path):
    """Files of 320 MiB, most of it a hole, under a limit that they do not fit twice; the map itself is not counted."""
    for name, mark in (("base", b"old"), ("new", b"new")):
        with open(tmp_path / name, "wb") as file:
            file.truncate(320 << 20)
            for at in range(0, 320 << 20, 50 << 20):
                file.seek(at)
                file.write(mark * 3)
    work = (
        "import resource, sys\n"
        "from nova.delta.files import encode_file, decode_file\n"
        "resource.setrlimit(resource.RLIMIT_DATA, (250 << 20, 250 << 20))\n"
        "encode_file('base', 'new', 'delta', workers=1)\n"
        "decode_file('base', 'delta', 'again', workers=1)\n"
    )
    subprocess.run([sys.executable, "-c", work], cwd=tmp_path, check=True, env={"PYTHONPATH": ":".join(sys.path)})
    with open(tmp_path / "new", "rb") as new, open(tmp_path / "again", "rb") as again:
        while part := new.read(1 << 24):
            assert part == again.read(1 << 24)
        assert not again.read(1)


def test_the_command_encodes_decodes_and_tells(tmp_path, capsys, monkeypatch):
    base, new = pair(200_000, 200_000)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").write_bytes(base)
    (tmp_path / "b").write_bytes(new)
    assert run(["delta", "encode", "a", "b", "d", "--link-bps", "1e9"]) == 0
    assert "bytes for 200,000" in capsys.readouterr().out
    assert run(["delta", "decode", "a", "d", "c", "--json"]) == 0
    assert capsys.readouterr().out == '{"image_bytes":200000}\n'
    assert (tmp_path / "c").read_bytes() == new
    assert run(["delta", "stat", "d"]) == 0
    assert "runs pages" in capsys.readouterr().out
    assert run(["delta", "stat", "d", "--json"]) == 0
    assert '"image_bytes":200000' in capsys.readouterr().out
    assert run(["delta", "decode", "b", "d", "e"]) == 2
    assert "fetch the base it was made from" in capsys.readouterr().err
    (tmp_path / "d").write_bytes(b"nothing")
    assert run(["delta", "stat", "d"]) == 1
    assert "no delta" in capsys.readouterr().err
