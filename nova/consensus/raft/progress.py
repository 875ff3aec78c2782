"""What a leader knows of one follower, and how much it may have under way to it."""

from __future__ import annotations

from collections import deque
from enum import Enum

from nova._native.raft import ProgressState


class Mode(Enum):
    """PROBE: one append at a time, to find where the logs meet. REPLICATE: many. SNAPSHOT: chunks, one at a time."""

    PROBE = 0
    REPLICATE = 1
    SNAPSHOT = 2


class Progress(ProgressState):
    """Where a follower is.

    matched   durable there up to this
    next      the next position to send
    active    heard of since the last look (check-quorum)
    quiet     heartbeats since the last sign of progress
    """

    __slots__ = ()

    def __init__(self, next: int) -> None:
        self.matched = 0
        self.next = next
        self.mode = Mode.PROBE
        self.active = False
        self.paused = False
        self.quiet = 0
        self.flying: deque[tuple[int, int]] = deque()  # (last position, bytes) of appends without an answer
        self.flying_bytes = 0
        self.snapshot_position = 0
        self.snapshot_offset = 0

    def probe(self) -> None:
        """Something was lost: go on from what is known to be there."""
        self.mode = Mode.PROBE
        self.next = self.matched + 1
        self.paused = False
        self.quiet = 0
        self._land()

    def sent(self, last: int, size: int) -> None:
        """An append up to `last` left."""
        if self.mode is Mode.PROBE:
            self.paused = True
            return
        self.next = last + 1
        self.flying.append((last, size))
        self.flying_bytes += size

    def full(self, count_max: int, bytes_max: int) -> bool:
        """No more may be sent now."""
        if self.mode is Mode.REPLICATE:
            return len(self.flying) >= count_max or self.flying_bytes >= bytes_max
        return self.paused or self.mode is Mode.SNAPSHOT

    def acknowledged(self, position: int) -> bool:
        """Durable there up to `position`; whether that is news."""
        while self.flying and self.flying[0][0] <= position:
            self.flying_bytes -= self.flying.popleft()[1]
        self.next = max(self.next, position + 1)
        news = position > self.matched
        if news:
            self.matched = position
            self.quiet = 0
        if self.mode is Mode.SNAPSHOT and position < self.snapshot_position:
            return news
        if self.mode is not Mode.REPLICATE and (news or position >= self.next - 1):
            self.mode = Mode.REPLICATE
            self.next = self.matched + 1
            self._land()
        self.paused = False
        return news

    def rejected(self, previous: int, hint: int, last: int) -> bool:
        """An append behind `previous` did not fit; whether that is news. They may meet at `hint` or before."""
        if self.mode is Mode.REPLICATE:
            if previous <= self.matched:
                return False
            self.probe()
            return True
        if self.mode is Mode.SNAPSHOT or previous != self.next - 1:
            return False  # an answer to an older probe
        self.next = max(min(previous, hint + 1, last + 1), self.matched + 1)
        self.paused = False
        return True

    def send_snapshot(self, position: int) -> None:
        """The log no longer reaches back to what it lacks."""
        self.mode = Mode.SNAPSHOT
        self.snapshot_position, self.snapshot_offset = position, 0
        self.paused = False
        self._land()

    def _land(self) -> None:
        self.flying.clear()
        self.flying_bytes = 0
