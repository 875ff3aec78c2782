"""What members of a group send each other, as bytes: the number of the epoch, then the message."""

from __future__ import annotations

from typing import Any

import msgspec

from nova.consensus.chain import Frame
from nova.consensus.replicated import MESSAGES
from nova.wire import Codec


class FrameCodec:
    """Frames as bytes. messages: of the protocols that epochs may have."""

    def __init__(self, *messages: type[msgspec.Struct]) -> None:
        self._codec: Codec[Any] = Codec(*MESSAGES, *messages)

    def encode(self, frame: Frame) -> bytes:
        """The bytes of a frame."""
        return frame[0].to_bytes(4, "big") + self._codec.encode(frame[1])

    def decode(self, data: bytes | memoryview) -> Frame:
        """The frame in these bytes. Raises PeerError."""
        view = memoryview(data)
        return int.from_bytes(view[:4], "big"), self._codec.decode(view[4:])
