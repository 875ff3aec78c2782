"""What a delta says, read in the plainest way: whole images as bytes, one page after the other, no digests kept."""

from __future__ import annotations

from nova.digest import digest128

PAGE = 4096
MASK = (1 << 64) - 1


class Reader:
    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, n: int) -> bytes:
        assert self.at + n <= len(self.data)
        self.at += n
        return self.data[self.at - n : self.at]

    def number(self) -> int:
        value = shift = 0
        while True:
            (byte,) = self.take(1)
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    def turn(self) -> int:
        value = self.number()
        return value >> 1 if value % 2 == 0 else -(value >> 1) - 1


def key() -> list[int]:
    words, state = [], 0x6A09E667F3BCC908
    for _ in range(PAGE // 8 + 8):
        state = z = state + 0x9E3779B97F4A7C15 & MASK
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & MASK
        z = (z ^ z >> 27) * 0x94D049BB133111EB & MASK
        words.append(z ^ z >> 31)
    return words


KEY = key()


def page_digest(page: bytes) -> int:
    """NH over 32-bit words in eight columns, twice, and the digest of the sixteen sums."""
    sums = [0] * 16
    for i in range(PAGE // 8):
        low, high = (int.from_bytes(page[8 * i + half : 8 * i + half + 4], "little") for half in (0, 4))
        for which in (0, 8):
            k = KEY[i + which]
            product = (low + k & 0xFFFFFFFF) * (high + (k >> 32) & 0xFFFFFFFF)
            sums[which + i % 8] = sums[which + i % 8] + product & MASK
    raw = b"".join(one.to_bytes(8, "little") for one in sums)
    return int.from_bytes(digest128(raw, PAGE), "little")


def identity(image: bytes) -> bytes:
    total = 0
    for i in range(-(-len(image) // PAGE)):
        total += page_digest(image[i * PAGE : (i + 1) * PAGE].ljust(PAGE, b"\0")) * (2 * i + 1)
    raw = (total % (1 << 128)).to_bytes(16, "little") + len(image).to_bytes(8, "little")
    return digest128(raw, PAGE + 1)


def decode(base: bytes, delta: bytes) -> bytes:
    """The image. Streams must be stored as they are (level 0); nothing is checked that the encoder promises."""
    reader, out, last = Reader(delta), b"", 0
    while not last:
        assert reader.take(4) == b"NVZ\1"
        (last,) = reader.take(1)
        reader.number()
        base_size, size, frames = reader.number(), reader.number(), reader.number()
        out += span(base[:base_size], size, Reader(reader.take(frames)))
        base = base[base_size:]
        reader.take(36)
    return out


def span(base: bytes, size: int, frames: Reader) -> bytes:
    count = -(-size // PAGE)
    old = base.ljust(max(count, -(-len(base) // PAGE)) * PAGE, b"\0")
    pages: list[bytes] = []
    copy_next: int | None = None
    shift = 0
    while frames.at < len(frames.data):
        (methods,) = frames.take(1)
        assert methods == 0
        frames.number()
        tokens_raw, tokens_stored, literals_raw, literals_stored = (frames.number() for _ in range(4))
        assert (tokens_raw, literals_raw) == (tokens_stored, literals_stored)
        tokens, literals = Reader(frames.take(tokens_raw)), Reader(frames.take(literals_raw))
        while tokens.at < tokens_raw:
            (head,) = tokens.take(1)
            kind, n = head & 7, (head >> 3) + 1
            if n == 32:
                n += tokens.number()
            if kind == 2:
                copy_next = (len(pages) if copy_next is None else copy_next) + tokens.turn()
            distance = tokens.number() if kind == 3 else 0
            for _ in range(n):
                i = len(pages)
                page = bytearray(old[i * PAGE : (i + 1) * PAGE])
                if kind == 1:
                    page = bytearray(PAGE)
                elif kind == 2:
                    assert copy_next is not None
                    page = bytearray(old[copy_next * PAGE : (copy_next + 1) * PAGE])
                    copy_next += 1
                elif kind == 3:
                    page = bytearray(pages[i - distance])
                elif kind == 4:
                    page = bytearray(literals.take(PAGE))
                elif kind == 5:
                    at = 0
                    for _ in range(tokens.number() + 1):
                        at += tokens.number()
                        length = tokens.number() + 1
                        page[at : at + length] = literals.take(length)
                        at += length
                elif kind == 6:
                    lines = int.from_bytes(tokens.take(8), "little")
                    for line in range(64):
                        mask = int.from_bytes(tokens.take(8), "little") if lines >> line & 1 else 0
                        for bit in range(64):
                            if mask >> bit & 1:
                                page[line * 64 + bit] = literals.take(1)[0]
                elif kind == 7:
                    page = bytearray()
                    for _ in range(tokens.number() + 1):
                        plain = tokens.number()
                        length = tokens.number() + 1
                        shift += tokens.turn()
                        page += literals.take(plain)
                        start = i * PAGE + len(page) + shift
                        page += base[start : start + length]
                    page += literals.take(PAGE - len(page))
                assert len(page) == PAGE
                pages.append(bytes(page))
        assert literals.at == literals_raw
    pages += [old[i * PAGE : (i + 1) * PAGE] for i in range(len(pages), count)]
    return b"".join(pages)[:size]
