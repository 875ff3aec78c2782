import contextlib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nova.errors import PeerError, UsageError
from nova.wire import HEADER, MAGIC, VERSION, Codec


class Put(msgspec.Struct, frozen=True, array_like=True, tag="p"):
    key: str
    batch: bytes
    clock: dict[str, int] = {}


class Ask(msgspec.Struct, frozen=True, array_like=True, tag="a"):
    number: int


codec: Codec[Put | Ask] = Codec(Put, Ask)
messages = st.one_of(
    st.builds(Put, st.text(), st.binary(), st.dictionaries(st.text(), st.integers(0, 2**63))),
    st.builds(Ask, st.integers(-(2**63), 2**63)),
)


@given(messages)
def test_what_was_encoded_is_decoded(message):
    for buffer in (codec.encode(message), bytearray(codec.encode(message)), memoryview(codec.encode(message))):
        assert codec.decode(buffer) == message


@given(st.permutations(["a", "b", "c", "d"]))
def test_equal_messages_have_equal_bytes(keys):
    assert codec.encode(Put("k", b"", dict.fromkeys(keys, 1))) == codec.encode(Put("k", b"", dict.fromkeys("abcd", 1)))


@given(messages, st.data())
def test_no_mutation_raises_anything_but_a_peer_error(message, data):
    raw = bytearray(codec.encode(message))
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(PeerError):
        codec.decode(raw[: data.draw(st.integers(0, len(raw)))])


@given(st.binary(max_size=200))
def test_no_body_raises_anything_but_a_peer_error(body):
    with contextlib.suppress(PeerError):
        codec.decode(HEADER + body)


def test_a_deeply_nested_body_is_a_peer_error():
    with pytest.raises(PeerError):
        codec.decode(HEADER + b"\x91" * 1_000_000)


def test_a_newer_version_names_both_versions():
    raw = MAGIC + bytes([VERSION + 1]) + codec.encode(Ask(1))[4:]
    with pytest.raises(PeerError, match=f"version {VERSION + 1}, this node reads version {VERSION}"):
        codec.decode(raw)


def test_foreign_magic_is_named():
    with pytest.raises(PeerError, match="GET "):
        codec.decode(b"GET / HTTP/1.1\r\n")


def test_an_unknown_tag_is_named_beside_the_known_ones():
    with pytest.raises(PeerError, match="'zz'; this protocol knows 'a', 'p'"):
        codec.decode(HEADER + msgspec.msgpack.encode(["zz", 1]))


def test_a_malformed_body_names_the_message():
    with pytest.raises(PeerError, match="malformed Ask"):
        codec.decode(HEADER + msgspec.msgpack.encode(["a", "x"]))


def test_trailing_bytes_are_malformed():
    with pytest.raises(PeerError, match="malformed"):
        codec.decode(codec.encode(Ask(1)) + b"\x00")


def test_types_that_are_no_wire_messages_are_refused():
    class Loose(msgspec.Struct):
        x: int

    class Other(msgspec.Struct, frozen=True, array_like=True, tag="a"):
        x: int

    with pytest.raises(UsageError, match="Loose"):
        Codec(Loose)
    with pytest.raises(UsageError, match="share the tag"):
        Codec(Ask, Other)
    with pytest.raises(UsageError):
        Codec()
