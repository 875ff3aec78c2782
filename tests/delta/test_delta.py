"""Deltas: what comes out is what went in, or an error; and every page is told in the token that suits it."""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import sys
import threading

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nova.delta import (
    PAGE_BYTES,
    DeltaDecoder,
    DeltaEncoder,
    decode,
    decode_into,
    encode,
    encode_span,
    identity,
    level_for,
    stat,
    zstd_version,
)
from nova.digest import digest128
from nova.errors import CorruptionError, LimitError, NovaError, UsageError
from nova.storage.log import crc32c
from tests.models import delta as model

MANY = 1 << 40


def image(seed: int, size: int) -> bytes:
    return random.Random(seed).randbytes(size)


def edited(rng: random.Random, old: bytes) -> bytes:
    """An image after some of everything that happens to memory and files."""
    new = bytearray(old)
    for _ in range(rng.randrange(12)):
        at = rng.randrange(len(new)) if new else 0
        n = rng.choice((1, 3, 8, 100, 1500, 4096, 9000))
        part = new[at : at + n]
        match rng.randrange(9):
            case 0:
                new[at : at + n] = rng.randbytes(len(part))
            case 1:
                new[at : at + n] = bytes(len(part))
            case 2:
                del new[at:]
            case 3:
                new += rng.randbytes(n)
            case 4:
                new += bytes(n)
            case 5 if new:
                page, other = (rng.randrange(len(new)) // 4096 * 4096 for _ in range(2))
                count = min(4 * n // 4096 * 4096, len(new) - page, len(new) - other)
                new[page : page + count] = new[other : other + count]
            case 6:
                for place in range(at, min(len(new), at + n), rng.choice((2, 3, 7))):
                    new[place] ^= 1
            case 7:
                new[at:at] = rng.randbytes(n % 50)
            case 8:
                new[at:at] = bytes(new[: n // 2])
    return bytes(new)


seeds = st.integers(0, 1 << 32)
sizes = st.sampled_from((0, 1, 4095, 4096, 4097, 20_000, 70_000))


@settings(max_examples=150)
@given(seeds, sizes, st.sampled_from((0, 1, 3)))
def test_decode_gives_what_was_encoded(seed, size, level):
    rng = random.Random(seed)
    base = edited(rng, rng.randbytes(size))
    new = edited(rng, base)
    delta = encode(base, new, level=level)
    assert decode(base, delta) == new
    room = bytearray(max(len(base), len(new)))
    room[: len(base)] = base
    assert decode_into(room, delta, base_bytes=len(base)) == len(new)
    assert room[: len(new)] == new
    assert stat(delta).identities == [identity(new).hex()]


@settings(max_examples=40)
@given(seeds, st.sampled_from((0, 1, 4097, 20_000)))
def test_a_plain_reader_of_the_format_finds_the_same(seed, size):
    rng = random.Random(seed)
    base = edited(rng, rng.randbytes(size))
    new = edited(rng, base)
    delta = encode(base, new, level=0)
    assert model.decode(base, delta) == new
    assert identity(new) == model.identity(new)


def pages_of(base: bytes, new: bytes) -> dict[str, int]:
    return {kind: n for kind, n in stat(encode(base, new)).pages.items() if n}


def test_each_page_is_told_in_the_token_that_suits_it():
    base = image(1, 64 * PAGE_BYTES)
    new = bytearray(base)
    new[4096:8192] = bytes(4096)
    new[2 * 4096 : 4 * 4096] = base[40 * 4096 : 42 * 4096]
    new[5 * 4096 : 6 * 4096] = new[7 * 4096 : 8 * 4096] = image(2, 4096)
    new[9 * 4096 + 5] ^= 1
    for at in range(10 * 4096, 11 * 4096, 9):
        new[at] ^= 1
    new[12 * 4096 : 13 * 4096] = base[30 * 4096 + 77 : 31 * 4096 + 77]
    new[13 * 4096 : 13 * 4096 + 300] = image(3, 300)
    assert pages_of(base, bytes(new)) == {
        "same": 55,
        "zero": 1,
        "copy": 2,
        "again": 1,
        "raw": 1,
        "runs": 2,
        "bitmap": 1,
        "pieces": 1,
    }
    assert decode(base, encode(base, new)) == new
    assert model.decode(base, encode(base, new, level=0)) == new


def test_what_was_only_moved_costs_next_to_nothing():
    base = image(1, 200 * PAGE_BYTES)
    by_pages = base[50 * 4096 :] + base[: 50 * 4096]
    by_bytes = b"a few bytes more" + base
    for new in (by_pages, by_bytes, base[1000:], base[:70_000] + base[70_100:]):
        delta = encode(base, new)
        assert decode(base, delta) == new
        assert len(delta) < 1000, len(delta)


def test_images_of_unlike_sizes():
    for old in (0, 1, 4095, 4096, 4097, 10_000):
        for now in (0, 1, 4095, 4096, 4097, 10_000):
            base, new = image(1, old), image(1, now)
            delta = encode(base, new)
            assert decode(base, delta) == new
            assert len(delta) < 90 + max(0, now - old) + PAGE_BYTES * (now > old)


def test_zeros_behind_the_end_are_told_apart_from_the_end():
    base = image(1, 5000)
    assert decode(base, encode(base, base + bytes(9000))) == base + bytes(9000)
    assert decode(base + bytes(9000), encode(base + bytes(9000), base)) == base
    assert identity(base) != identity(base + b"\0")


def test_more_than_a_frame_holds():
    base, new = image(1, 9 << 20), image(2, 9 << 20)
    delta = encode(base, new)
    assert stat(delta).frames == 3
    assert decode(base, delta) == new
    assert len(delta) <= len(new) * 1.001
    room = bytearray(base)
    decode_into(room, delta)
    assert room == new


@pytest.mark.parametrize("level", [0, 1])
def test_another_base_is_refused(level):
    base = image(1, 100_000)
    new = bytearray(base)
    new[50_000] ^= 1
    delta = encode(base, new, level=level)
    other = bytearray(base)
    other[99_999] ^= 1  # in a page that the delta does not touch
    swapped = base[4096:8192] + base[:4096] + base[8192:]
    for wrong in (bytes(other), swapped):
        with pytest.raises(UsageError, match=r"this delta is for the base [0-9a-f]{32}, this one is"):
            decode(wrong, delta)
        room = bytearray(wrong)
        with pytest.raises(UsageError, match="fetch the base"):
            decode_into(room, delta)
        assert room == wrong
    for wrong in (base[:-1], base + b"\0"):
        with pytest.raises(UsageError, match="for a base of 100000 bytes"):
            decode(wrong, delta)


@pytest.fixture(scope="module")
def mixed() -> tuple[bytes, bytes, bytes]:
    rng = random.Random(5)
    base = rng.randbytes(60_000)
    new = bytearray(base)
    new[100:110] = b"0123456789"
    new[8192:12288] = bytes(4096)
    new[20_000:24_000] = rng.randbytes(4000)
    new[40_000:45_000] = base[3:5003]
    return base, bytes(new), encode(base, new, level=1)


@settings(max_examples=300)
@given(st.integers(0, MANY), st.integers(1, 255))
def test_a_flipped_byte_is_found(mixed, place, flip):
    base, _, delta = mixed
    bad = bytearray(delta)
    bad[place % len(bad)] ^= flip
    with pytest.raises((CorruptionError, UsageError)):
        decode(base, bad)


def test_a_delta_that_is_cut_is_found(mixed):
    base, _, delta = mixed
    for n in (*range(60), *range(60, len(delta), 97)):
        with pytest.raises(CorruptionError):
            decode(base, delta[:n])
    with pytest.raises(CorruptionError, match="3 bytes stand behind the end"):
        decode(base, delta + b"abc")
    with pytest.raises(CorruptionError, match="no delta"):
        decode(base, b"something else")


def test_the_checksum_is_looked_at_before_the_frames_are(mixed):
    base, _, delta = mixed
    bad = bytearray(delta)
    bad[len(bad) // 2] ^= 1
    with pytest.raises(CorruptionError, match="checksum"):
        decode(base, bad)


def sealed(delta: bytes | bytearray) -> bytes:
    return bytes(delta[:-4]) + crc32c(bytes(delta[:-4])).to_bytes(4, "little")


@settings(max_examples=300)
@given(st.integers(0, MANY), st.integers(1, 255), st.booleans())
@example(4, 1, False)
def test_no_forged_delta_gives_other_bytes(mixed, place, flip, plain):
    """Whoever makes the checksum right has to make the identity right, too."""
    base, new, delta = mixed
    bad = bytearray(encode(base, new, level=0) if plain else delta)
    bad[place % (len(bad) - 4)] ^= flip
    room = bytearray(base)
    with pytest.raises(NovaError):
        decode_into(room, sealed(bad))
    assert room == base
    with contextlib.suppress(NovaError):
        assert decode(base, sealed(bad)) == new


def test_an_image_over_the_limit_is_not_made():
    huge = bytearray(encode(b"", bytes(1 << 20)))
    assert len(huge) < 100
    with pytest.raises(LimitError, match="makes an image of 1048576 bytes; the limit is 1000"):
        decode(b"", huge, size_max=1000)
    assert decode(b"", huge) == bytes(1 << 20)
    with pytest.raises(LimitError, match="the limit is 4096"):
        decode_into(bytearray(4096), huge, base_bytes=0)


# --- encoders and decoders that stay ----------------------------------------------------------------------------------


@settings(max_examples=60)
@given(seeds, sizes, st.sampled_from(("compare", "hash")), st.sampled_from(("base", "digests")))
def test_a_following_encoder_and_a_decoder_stay_together(seed, size, how, hold):
    rng = random.Random(seed)
    now = edited(rng, rng.randbytes(size))
    encoder = DeltaEncoder(now, follow=True, hold=hold)
    room = bytearray(now.ljust(400_000, b"\0"))
    decoder = DeltaDecoder(room, base_bytes=len(now))
    for _ in range(5):
        now = edited(rng, now)[:400_000]
        delta = encoder.encode(now, how="hash" if hold == "digests" else how)
        assert decoder.apply(delta) == len(now)
        assert room[: len(now)] == now
        assert decoder.identity == encoder.identity == identity(now)


@settings(max_examples=60)
@given(seeds, sizes)
def test_it_does_not_matter_how_changes_are_found(seed, size):
    rng = random.Random(seed)
    base = rng.randbytes(size)
    new = edited(rng, base)
    encoder = DeltaEncoder(base)
    compared = encoder.encode(new, how="compare")
    assert encoder.how == "compare"
    assert encoder.encode(new, how="hash") == compared == encode(base, new)
    assert encoder.encode(new, dirty=[(0, len(new))]) == compared


def test_only_dirty_pages_are_looked_at():
    base = image(1, 100 * PAGE_BYTES)
    new = bytearray(base)
    for page in (3, 4, 50, 99):
        new[page * 4096 + 7] ^= 1
    encoder = DeltaEncoder(base)
    delta = encoder.encode(new, dirty=[(3 * 4096 + 7, 4097), (50 * 4096, 1), (99 * 4096, 4096)])
    assert delta == encode(base, new)
    partly = encoder.encode(new, dirty=[(50 * 4096, 4096)])
    assert encoder.pages_by_kind["runs"] == 1
    assert decode(base, partly) == base[: 50 * 4096] + new[50 * 4096 : 51 * 4096] + base[51 * 4096 :]
    assert decode(base, encoder.encode(base, dirty=[])) == base
    longer = encoder.encode(bytes(new) + b"end", dirty=[(3 * 4096, 8192), (50 * 4096, 1), (99 * 4096, 9)])
    assert decode(base, longer) == new + b"end"


def test_dirty_ranges_that_cannot_be_are_refused():
    encoder = DeltaEncoder(bytes(100_000))
    for dirty, words in (
        ([(50_000, 10), (10, 10)], "before the one before it ends"),
        ([(99_999, 2)], "not within the 100000 bytes"),
        ([(1 << 63, 1 << 63)], "not within"),
        ([(1,)], "pairs"),
    ):
        with pytest.raises(UsageError, match=words):
            encoder.encode(bytes(100_000), dirty=dirty)


def test_a_base_that_changed_is_noticed_where_it_matters():
    base = bytearray(image(1, 100_000))
    encoder = DeltaEncoder(base)
    new = bytes(base)
    base[5000] ^= 1
    with pytest.raises(UsageError, match="has changed since"):
        encoder.encode(new, how="compare")
    room = bytearray(new)
    decoder = DeltaDecoder(room)
    delta = encode(new, b"x" + new[1:])
    room[10] ^= 1
    with pytest.raises(UsageError, match="has changed since"):
        decoder.apply(delta)
    room[10] ^= 1
    decoder.apply(delta)
    assert room == b"x" + new[1:]


def test_a_decoder_keeps_its_image_when_it_refuses():
    base = image(1, 50_000)
    room = bytearray(base)
    decoder = DeltaDecoder(room)
    forged = bytearray(encode(base, b"y" + base[1:]))
    forged[-20] ^= 1
    with pytest.raises(CorruptionError, match="promises"):
        decoder.apply(sealed(forged))
    with pytest.raises(UsageError, match="for the base"):
        decoder.apply(encode(b"z" + base[1:], base))
    assert room == base
    assert decoder.apply(encode(base, b"y" + base[1:])) == 50_000
    with pytest.raises(BufferError):
        room.append(0)
    decoder.close()
    decoder.close()
    room.append(0)
    with pytest.raises(UsageError, match="closed"):
        decoder.apply(b"")


def test_a_span_out_of_its_place_is_found():
    base, new = image(1, 8192), image(2, 8192)
    one = encode_span(base[:4096], new[:4096], number=0, last=False)
    two = encode_span(base[4096:], new[4096:], number=1, last=True)
    assert decode(base, one + two) == new
    assert stat(one + two).spans == 2
    room = bytearray(base)
    assert decode_into(room, one + two) == 8192
    assert room == new
    for wrong in (one, two, one + one + two, two + one):
        with pytest.raises(CorruptionError):
            decode(base, wrong)
    bad = bytearray(two)
    bad[-10] ^= 1
    room = bytearray(base)
    with pytest.raises(CorruptionError):
        decode_into(room, one + sealed(bad))
    assert room == base  # the first span waits for the second one
    with pytest.raises(UsageError, match="DeltaDecoder takes those"):
        DeltaDecoder(room).apply(one + two)


def test_two_threads_may_not_share_an_encoder():
    base = bytes(64 << 20)
    encoder = DeltaEncoder(base)
    refused, done = [], threading.Event()

    def other() -> None:
        while not done.is_set():
            try:
                encoder.encode(base)
            except UsageError as error:
                refused.append(str(error))
                done.set()

    threads = [threading.Thread(target=other) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert "at work in another thread" in refused[0]


def test_wrong_arguments_are_named():
    for wrong, words in (
        (lambda: encode(b"", b"", level=20), "level is 20"),
        (lambda: DeltaEncoder(b"", hold="pages"), "hold is 'pages'"),
        (lambda: DeltaEncoder(b"").encode(b"", how="guess"), "how is 'guess'"),
        (lambda: DeltaEncoder(b"").encode(b"", how="hash", dirty=[]), "dirty ranges go with"),
        (lambda: DeltaEncoder(b"", hold="digests").encode(b"", how="compare"), "holds digests"),
        (lambda: DeltaDecoder(bytearray(3), base_bytes=4), "base_bytes is 4"),
        (lambda: level_for(0), "link_bps is 0"),
    ):
        with pytest.raises(UsageError, match=words):
            wrong()


def test_the_level_goes_with_the_link():
    assert [level_for(bps) for bps in (1e6, 5e6, 1e8, 1e9, 40e9)] == [9, 3, 1, 1, 0]


def test_numpy_arrays_and_memoryviews_are_read_in_place():
    numpy = pytest.importorskip("numpy")
    base = numpy.arange(10_000, dtype=numpy.int64)
    new = base.copy()
    new[77] = -1
    delta = DeltaEncoder(base).encode(new, dirty=numpy.array([77 * 8, 8], numpy.uint64))
    assert decode(memoryview(base), memoryview(delta)) == new.tobytes()
    decode_into(base, delta)
    assert (base == new).all()


def test_without_libzstd_streams_are_stored(tmp_path):
    if zstd_version() is None:
        pytest.skip("libzstd.so.1 is not here; apt install libzstd1")
    base, new = bytes(9000), b" ".join(b"%d" % n for n in range(1900))
    (tmp_path / "delta").write_bytes(encode(base, new))
    work = (
        "from nova.delta import *\n"
        "from nova.errors import UsageError\n"
        "base, new = bytes(9000), b' '.join(b'%d' % n for n in range(1900))\n"
        "assert zstd_version() is None\n"
        "own = encode(base, new)\n"
        "assert decode(base, own) == new and len(own) > 8000\n"
        "try:\n"
        "    decode(base, open('delta', 'rb').read())\n"
        "except UsageError as error:\n"
        "    print(error)\n"
    )
    environment = {**os.environ, "NOVA_ZSTD": "off", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", work], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert "apt install libzstd1" in done.stdout


def test_a_page_that_the_image_ends_in_is_not_the_same_if_the_base_goes_on():
    """Found by fuzzing: the digest of the whole page was taken for that of its first part."""
    base, size = image(1, 8192), 5000
    total = sum(model.page_digest(base[at : at + 4096]) * (2 * (at // 4096) + 1) for at in (0, 4096))
    promised = digest128((total % (1 << 128)).to_bytes(16, "little") + size.to_bytes(8, "little"), 4097)
    head = b"NVZ\1\1\0" + b"\x80\x40" + b"\x88\x27" + b"\0"
    delta = sealed(head + identity(base) + promised + bytes(4))
    assert stat(delta).image_bytes == size
    with pytest.raises(CorruptionError):
        decode(base, delta)
    with pytest.raises(CorruptionError):
        decode_into(bytearray(base), delta)
    ends_in_zeros = base[:size] + bytes(8192 - size)
    assert decode(ends_in_zeros, encode(ends_in_zeros, base[:size])) == base[:size]


def test_at_high_levels_literals_are_looked_up_in_the_whole_base():
    """What is too scattered for pieces: short parts of the base in another order, between bytes that are new."""
    rng = random.Random(9)
    base = rng.randbytes(400_000)
    parts = [base[at : at + 24] + rng.randbytes(1) for at in rng.sample(range(0, 399_000, 25), 8000)]
    new = b"".join(parts)
    quick, thorough = (encode(base, new, level=level) for level in (1, 9))
    assert decode(base, quick) == decode(base, thorough) == new
    assert len(thorough) < 0.4 * len(quick)


def test_how_changes_are_found_goes_with_the_size():
    small, large = DeltaEncoder(bytes(1 << 20)), DeltaEncoder(bytes(16 << 20))
    small.encode(bytes(1 << 20))
    large.encode(bytes(16 << 20))
    assert (small.how, large.how) == ("compare", "hash")
