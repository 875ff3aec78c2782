"""A disk that can lose power: unsynced records vanish, or leave a torn beginning of what was being written."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator

from nova.errors import CorruptionError, UnavailableError, UsageError
from nova.storage.log import SegmentImage
from nova.types import Random

Done = Callable[[int, BaseException | None], None]
Schedule = Callable[[int, Callable[[], None]], None]

_SECTOR_BYTES = 512


class SimDisk:
    """The disk of one simulated node. It outlives crashes; the logs and snapshots opened on it do not.

    random    where delays and the shape of torn tails come from: the same seed gives the same history
    schedule  schedule(delay_ns, action) runs `action` later, in virtual time
    """

    def __init__(
        self, random: Random, schedule: Schedule, *, sync_ns_min: int = 50_000, sync_ns_max: int = 500_000
    ) -> None:
        if not 0 <= sync_ns_min <= sync_ns_max:
            raise UsageError(f"sync takes {sync_ns_min} to {sync_ns_max} ns; give 0 <= sync_ns_min <= sync_ns_max")
        self._random = random
        self._schedule = schedule
        self._sync_ns = (sync_ns_min, sync_ns_max)
        self._files: dict[str, _Stored] = {}
        self._snapshots: dict[str, list[tuple[int, bytes, bool]]] = {}
        self._open: dict[str, SimLog] = {}
        self._power = 0  # counts crashes: actions scheduled before one do nothing after it
        self._failure: BaseException | None = None

    def log(self, name: str = "log") -> SimLog:
        """Open a log over the bytes that the disk holds; a torn tail is cut, as on real files."""
        if name in self._open and not self._open[name].closed:
            raise UsageError(f"the log {name!r} is in use; close it first")
        stored = self._files.setdefault(name, _Stored(self._random.randrange(1 << 63)))
        log = self._open[name] = SimLog(self, stored)
        return log

    def snapshots(self, name: str = "snapshots") -> SimSnapshots:
        """Open a snapshot store over what the disk holds."""
        return SimSnapshots(self, self._snapshots.setdefault(name, []))

    def crash(self) -> None:
        """Cut the power: what was not synced is lost, but for a random torn beginning of it. Logs must be reopened."""
        self._power += 1
        for log in self._open.values():
            log._lose_power()
        self._open.clear()

    def fail(self, error: BaseException | None) -> None:
        """From now on every sync fails with `error`; None mends the disk (for logs opened from then on)."""
        self._failure = error

    def _later(self, action: Callable[[], None]) -> None:
        power = self._power
        low, high = self._sync_ns
        self._schedule(self._random.randrange(low, high + 1), lambda: action() if power == self._power else None)


class _Stored:
    """What the platter holds of one log: the image of one segment that begins after position `base`."""

    __slots__ = ("base", "count", "format", "image")

    def __init__(self, id: int) -> None:
        self.format = SegmentImage(id)
        self.image = bytearray()
        self.base = 0
        self.count = 0  # whole group commits' records in image; meaningless between a crash and the next opening

    def commit(self, records: list[bytes]) -> None:
        self.image += self.format.pack(records, self.count)
        self.count += len(records)


class SimLog:
    """The `Log` seam of nova.storage.base on a simulated disk."""

    def __init__(self, disk: SimDisk, stored: _Stored) -> None:
        records, end = stored.format.unpack(bytes(stored.image))
        self.dropped_bytes = len(stored.image) - end
        del stored.image[end:]
        stored.count = len(records)
        self._disk = disk
        self._stored = stored
        self._records = records
        self._base = stored.base
        self._durable = self._base + len(records)
        self._syncs: deque[tuple[int, Done]] = deque()
        self._error: BaseException | None = None
        self.closed = False

    @property
    def first(self) -> int:
        return self._base + 1

    @property
    def last(self) -> int:
        return self._base + len(self._records)

    @property
    def durable(self) -> int:
        return self._durable

    def append(self, records: list[bytes]) -> int:
        """Append records, in volatile memory until a sync."""
        self._must_work()
        self._records += records
        return self.last

    def sync(self, done: Done) -> None:
        """Calls `done` when the virtual disk is ready; syncs end in the order in which they were begun."""
        self._must_work()
        self._syncs.append((self.last, done))
        self._disk._later(self._synced)

    def replay(self, start: int = 1) -> Iterator[tuple[int, bytes]]:
        """(position, record) pairs that are durable, from `start` on."""
        start = max(start, self.first)
        base = self._base
        return iter([(at, self._records[at - base - 1]) for at in range(start, self._durable + 1)])

    def truncate_before(self, position: int) -> None:
        """Forget durable records before `position`."""
        self._must_work()
        drop = min(position, self._durable + 1) - self.first
        if drop > 0:
            del self._records[:drop]
            self._base = self._stored.base = self._base + drop
            self._stored.image.clear()
            self._stored.count = 0
            kept = self._records[: self._durable - self._base]
            if kept:
                self._stored.commit(kept)

    def close(self) -> None:
        """Sync what is appended, at once, and close; may be called twice."""
        if not self.closed and self._error is None and self._disk._failure is None:
            self._write_up_to(self.last)
            while self._syncs:
                self._syncs.popleft()[1](self._durable, None)
        self.closed = True

    def _must_work(self) -> None:
        if self._error is not None:
            raise UnavailableError(f"the log stopped: {self._error}; open it again")
        if self.closed:
            raise UsageError("the log is closed")

    def _synced(self) -> None:
        if self.closed or not self._syncs:
            return
        position, done = self._syncs.popleft()
        if self._error is None and self._disk._failure is not None:
            self._error = self._disk._failure
        if self._error is None:
            self._write_up_to(position)
        done(self._durable, self._error)

    def _write_up_to(self, position: int) -> None:
        if position > self._durable:
            self._stored.commit(self._records[self._durable - self._base : position - self._base])
            self._durable = position

    def _lose_power(self) -> None:
        if self.closed:
            return
        self.closed = True
        unsynced = self._records[self._durable - self._base :]
        random = self._disk._random
        if not unsynced or random.random() < 0.5:
            return
        torn = bytearray(self._stored.format.pack(unsynced, self._stored.count))
        del torn[random.randrange(len(torn) + 1) :]
        if random.random() < 0.25:  # a drive may write sectors in any order
            at = len(self._stored.image)
            for start in range(-at % _SECTOR_BYTES, len(torn) - _SECTOR_BYTES, _SECTOR_BYTES):
                if random.random() < 0.5:
                    torn[start : start + _SECTOR_BYTES] = bytes(_SECTOR_BYTES)
        self._stored.image += torn


class SimSnapshots:
    """The `Snapshots` seam of nova.storage.base on a simulated disk: a save is whole when it returns."""

    def __init__(self, disk: SimDisk, stored: list[tuple[int, bytes, bool]]) -> None:
        self._disk = disk
        self._stored = stored

    def save(self, position: int, state: bytes) -> None:
        """Store `state` durably and drop all but the newest two."""
        if self._disk._failure is not None:
            raise UnavailableError(f"the snapshot could not be saved: {self._disk._failure}")
        self._stored[:] = sorted(
            [*(one for one in self._stored if one[0] != position), (position, state, True)], key=lambda one: one[0]
        )[-2:]

    def load(self) -> tuple[int, bytes] | None:
        """The newest whole snapshot."""
        for position, state, whole in reversed(self._stored):
            if whole:
                return position, state
        if self._stored:
            raise CorruptionError("no snapshot is whole; restore one from a replica")
        return None

    def damage_newest(self) -> None:
        """Let the newest snapshot rot, as a bad sector would."""
        position, state, _ = self._stored[-1]
        self._stored[-1] = (position, state, False)
