"""Messages as bytes: a short versioned header, then one tagged struct in canonical MessagePack.

A codec is made from the closed set of messages that a protocol knows; every one is a frozen, array-like struct with
an explicit short tag. Equal messages have equal bytes (maps and sets are sorted), so encodings can be hashed.
"""

from __future__ import annotations

from typing import Generic, TypeVar, Union

import msgspec

from nova.errors import PeerError, UsageError

MAGIC = b"NVW"
VERSION = 1
HEADER = MAGIC + bytes([VERSION])

Message = TypeVar("Message", bound=msgspec.Struct)


class Codec(Generic[Message]):
    """Encodes and decodes the messages of one protocol.

    types   frozen structs, ``array_like=True``, each with a ``tag`` that no other one has
    raises  UsageError if the types do not fit together

    New fields go to the end and have a default: then either side may be the older one. Any other change needs a
    new tag or a new VERSION.
    """

    def __init__(self, *types: type[Message]) -> None:
        if not types:
            raise UsageError("a codec needs at least one message type")
        self._types: dict[object, type[Message]] = {}
        for kind in types:
            config = kind.__struct_config__
            if not (config.array_like and config.frozen and config.tag is not None):
                raise UsageError(f"{kind.__name__} is no wire message: declare it frozen, array_like and with a tag")
            if config.tag in self._types:
                raise UsageError(f"{kind.__name__} and {self._types[config.tag].__name__} share the tag {config.tag!r}")
            self._types[config.tag] = kind
        self._encoder = msgspec.msgpack.Encoder(order="deterministic")
        self._decoder: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(Union[types])  # noqa: UP007

    def encode(self, message: Message) -> bytes:
        return HEADER + self._encoder.encode(message)

    def decode(self, buffer: bytes | bytearray | memoryview) -> Message:
        """The message in `buffer`; its ``bytes`` fields are copied once, ``memoryview`` fields not at all.

        raises  PeerError for foreign magic, a newer version, an unknown tag or a malformed body
        """
        view = memoryview(buffer)
        if view[:3] != MAGIC or len(view) < len(HEADER):
            raise PeerError(
                f"message of {len(view)} bytes starts {bytes(view[:4])!r}, not {MAGIC!r}: not a nova message"
            )
        if view[3] != VERSION:
            raise PeerError(
                f"message has wire version {view[3]}, this node reads version {VERSION}: upgrade the older one"
            )
        try:
            return self._decoder.decode(view[4:])
        except (msgspec.MsgspecError, ValueError, OverflowError, RecursionError) as error:
            raise PeerError(self._complaint(view[4:], error)) from None

    def _complaint(self, body: memoryview, error: Exception) -> str:
        try:
            tag = msgspec.msgpack.decode(body, type=list)[0]
        except (msgspec.MsgspecError, ValueError, OverflowError, RecursionError, IndexError):
            return f"malformed message body of {len(body)} bytes: {error}"
        known = self._types.get(tag) if isinstance(tag, str | int) else None
        if known is None:
            names = ", ".join(sorted(map(repr, self._types)))
            return f"unknown message tag {str(tag)[:32]!r}; this protocol knows {names}"
        return f"malformed {known.__name__}: {error}"
