"""Deltas from a stranger who makes every checksum right: whatever the tokens say stays within the images."""

from __future__ import annotations

import pytest

from nova.delta import decode, decode_into, identity, stat
from nova.errors import CorruptionError, UsageError
from nova.storage.log import crc32c

BASE = bytes(range(256)) * 32  # two pages
SAME, ZERO, COPY, AGAIN, RAW, RUNS, BITMAP, PIECES = range(8)


def number(n: int) -> bytes:
    out = b""
    while n >= 128:
        out += bytes([n & 127 | 128])
        n >>= 7
    return out + bytes([n])


def delta(
    tokens: bytes, literals: bytes = b"", *, pages: int = 1, size: int = len(BASE), head: bytes | None = None
) -> bytes:
    frame = number(0) + b"".join(number(n) for n in (pages, len(tokens), len(tokens), len(literals), len(literals)))
    frames = (frame if head is None else head) + tokens + literals
    span = b"NVZ\1\1\0" + number(len(BASE)) + number(size) + number(len(frames)) + frames
    span += identity(BASE) + identity(b"nobody knows")
    return span + crc32c(span).to_bytes(4, "little")


BAD = {
    "a run that ends behind its page": (bytes([RUNS, 0]) + number(4000) + number(96), bytes(97)),
    "a run that begins behind its page": (bytes([RUNS, 0]) + number(4097) + number(0), b"x"),
    "a gap that wraps around": (bytes([RUNS, 0]) + number((1 << 64) - 1) + number(0), b"x"),
    "a length that wraps around": (bytes([RUNS, 0]) + number(0) + number((1 << 64) - 1), b"x"),
    "more runs than bytes": (bytes([RUNS]) + number(5000) + bytes(10_000), bytes(5000)),
    "a run without its literals": (bytes([RUNS, 0, 0, 9]), bytes(9)),
    "a copy from behind the base": (bytes([COPY]) + number(4), b""),
    "a copy from before the base": (bytes([COPY]) + number(1), b""),
    "a copy that ends behind the base": (bytes([COPY | 2 << 3]) + number(0), b""),
    "a page that is itself": (bytes([AGAIN, 0]), b""),
    "a page from before the image": (bytes([AGAIN, 1]), b""),
    "literals that are not there": (bytes([RAW]), bytes(4095)),
    "literals that nobody takes": (bytes([ZERO]), b"x"),
    "a bitmap that is cut": (bytes([BITMAP]) + b"\3" + bytes(7) + b"\1" * 8, b"x" * 16),
    "a line that says nothing": (bytes([BITMAP]) + b"\1" + bytes(15), b""),
    "a piece from behind the base": (bytes([PIECES, 0, 0]) + number(4095) + number(2 * 4097), b""),
    "a piece from before the base": (bytes([PIECES, 0, 0]) + number(0) + number(1), bytes(4095)),
    "a shift that wraps around": (bytes([PIECES, 0, 0]) + number(0) + number((1 << 64) - 1), bytes(4095)),
    "a piece that ends behind its page": (bytes([PIECES, 0, 1]) + number(4095) + number(0), b"x"),
    "more pages than the frame has": (bytes([ZERO | 1 << 3]), b""),
    "more pages than the image has": (bytes([ZERO | 31 << 3]) + number(1 << 63), b""),
    "fewer pages than the frame has": (b"", b""),
    "a token that is cut": (bytes([ZERO | 31 << 3]), b""),
}


@pytest.mark.parametrize("what", BAD)
def test_a_token_that_cannot_be_is_refused(what):
    tokens, literals = BAD[what]
    room = bytearray(BASE)
    for call in (lambda d: decode(BASE, d), lambda d: decode_into(room, d), stat):
        with pytest.raises(CorruptionError, match="a token of this delta cannot be"):
            call(delta(tokens, literals))
    assert room == BASE


@pytest.mark.parametrize("tokens", [bytes([ZERO]), bytes([AGAIN | 1 << 3, 1]), bytes([COPY | 1 << 3, 0])])
def test_what_can_be_gets_as_far_as_the_promise(tokens):
    """So that the cases above fail for what they are about."""
    if tokens[0] & 7 == AGAIN:
        tokens = bytes([ZERO]) + bytes([AGAIN, 1])
    pages = 1 if tokens == bytes([ZERO]) else 2
    with pytest.raises(CorruptionError, match="promises"):
        decode(BASE, delta(tokens, pages=pages))


@pytest.mark.parametrize(
    "head",
    [
        bytes([0, 0, 0, 0, 0, 0]),  # no pages
        bytes([2, 1, 1, 1, 0, 0]),  # tokens in no known way
        bytes([16, 1, 1, 1, 0, 0]),
        bytes([0, 1, 2, 1, 0, 0]),  # stored and of another size
        bytes([0, 1, 1, 1, 0, 1]),
        bytes([1, 1]) + number((1 << 20) + 1) + bytes([1, 0, 0]),  # more tokens than a frame may have
        bytes([4, 1, 1, 1]) + number((4 << 20) + 1) + bytes([0]),
        bytes([8, 1, 1, 1, 1, 0]) + number(len(BASE)) + number(1),  # a prefix behind the base
        bytes([8, 1, 1, 1, 1, 0]) + number(0) + number(len(BASE) + 1),
        bytes([0, 1, 1]) + number(1 << 62) + bytes([0, 0]),
        bytes([0, 1, 0x81, 0, 1, 0]),  # a number longer than need be
    ],
)
def test_a_frame_that_cannot_be_is_refused(head):
    for call in (lambda d: decode(BASE, d), stat):
        with pytest.raises(CorruptionError, match="a frame of this delta says sizes"):
            call(delta(bytes([ZERO]), head=head))


def test_a_stream_that_gives_other_bytes_than_it_should_is_refused():
    with pytest.raises(CorruptionError, match="does not give the bytes"):
        decode(BASE, delta(b"no zstd at all", head=bytes([1, 1, 1, 14, 0, 0])))


def test_a_version_that_is_not_known_is_refused():
    later = bytearray(delta(bytes([ZERO])))
    later[3] = 2
    with pytest.raises(UsageError, match="another format than version 1"):
        decode(BASE, later)
