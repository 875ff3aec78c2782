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
        self._last: Frame = (0, None)
        self._last_bytes = b""

    def encode(self, frame: Frame) -> bytes:
        """The bytes of a frame. What goes to several peers, one behind the other, is encoded once."""
        number, message = frame
        if message is not self._last[1] or number != self._last[0]:
            self._last_bytes = number.to_bytes(4, "big") + self._codec.encode(message)
            self._last = frame  # held, so that no other message can have its identity
        return self._last_bytes

    def decode(self, data: bytes | memoryview) -> Frame:
        """The frame in these bytes. Raises PeerError."""
        view = memoryview(data)
        return int.from_bytes(view[:4], "big"), self._codec.decode(view[4:])
