"""Versions of shared state, as agents of a swarm pass them around, and one resolver for all of them.

A resolution is a function of the *set* of writes behind what it is given: a result carries the writes it was made of
(`sources`) and is taken apart again when it comes back. So the order of arrival makes no difference, nor does how
the writes were grouped, nor that a write comes twice, alone or inside of a result; no counter counts it twice, and
the metadata of every write is still there in a result of results.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from datetime import datetime
from hashlib import blake2b
from itertools import combinations
from typing import Any, Final, cast

import msgspec
from msgspec.msgpack import Ext

from nova.clock import VectorClock
from nova.conflict.detect import MISSING, Version, canonical, exact, newest, ordered, prune, same
from nova.conflict.strategies import show
from nova.errors import LimitError, PeerError, UsageError
from nova.types import Order

MAGIC: Final = b"NSV\x01"
"""What an encoded version begins with: name and number of the format."""
SOURCES_MAX: Final = 10_000
"""Writes behind one result."""
ENCODED_BYTES_MAX: Final = 64 << 20
CRDT_TYPES: Final = ("counter", "set", "map", "register")

_DIGEST_BYTES: Final = 16
_SET_EXT, _MISSING_EXT = 1, 2


class StateVersion(msgspec.Struct, frozen=True):
    """What one agent says `state_key` holds, or what a resolver made of what several say.

    version    what the agent knew, its own write included: a VectorClock, a map agent -> count, or a number n, which
               is {agent_id: n}
    timestamp  when it was written: a finite number (all agents in one unit), or a datetime with a zone, taken as
               Unix seconds
    metadata   free. `crdt_type` says how the strategy `crdt` merges: counter, set, map or register.
               A result has that of all its sources, the newest write's where they differ
    sources    of a result: the writes behind it, each with its own value and metadata; else empty
    raises     UsageError, also a ValueError, for anything else
    """

    state_key: str
    value: Any
    version: VectorClock
    timestamp: float
    agent_id: str
    metadata: dict[str, Any] = {}
    sources: tuple[Version, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.state_key, str) or not isinstance(self.agent_id, str) or not self.agent_id:
            raise UsageError(f"state_key {self.state_key!r} and agent_id {self.agent_id!r} are texts; name the agent")
        version: object = self.version
        if not isinstance(version, VectorClock):
            msgspec.structs.force_setattr(self, "version", _clock(version, self.agent_id))
        stamp: object = self.timestamp
        if isinstance(stamp, datetime) and stamp.tzinfo is not None:
            msgspec.structs.force_setattr(self, "timestamp", stamp.timestamp())
        elif not _finite(stamp):
            raise UsageError(f"timestamp is {stamp!r}; give a finite number, or a datetime with a zone")
        if not isinstance(self.metadata, Mapping):
            raise UsageError(f"metadata is {show(self.metadata)}; give a map")

    def encode(self) -> bytes:
        """Bytes for `decode`; equal versions give equal ones. Raises UsageError for values that are no data.

        Data are JSON values, bytes, datetimes with a zone, and sets; integers have at most 64 bits. A tuple comes back
        as a list.
        """
        sources = [
            [_plain(s.value), s.clock.to_dict(), s.timestamp, s.origin, _plain(s.metadata)] for s in self.sources
        ]
        parts = [self.state_key, _plain(self.value), self.version.to_dict(), self.timestamp, self.agent_id]
        try:
            payload = _ENCODE([*parts, _plain(self.metadata), sources])
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            raise UsageError(
                f"the version of {self.state_key!r} by {self.agent_id} cannot be encoded: {error}; values are JSON, "
                "bytes, datetimes and sets, integers have at most 64 bits"
            ) from None
        return MAGIC + blake2b(payload, digest_size=_DIGEST_BYTES).digest() + payload

    @classmethod
    def decode(cls, data: bytes) -> StateVersion:
        """What `encode` was called on. Raises PeerError if these bytes are none of it, or damaged."""
        head = len(MAGIC) + _DIGEST_BYTES
        if len(data) > ENCODED_BYTES_MAX:
            raise PeerError(f"a version of {len(data)} bytes; the limit is {ENCODED_BYTES_MAX}: pass fewer sources on")
        if data[: len(MAGIC)] != MAGIC:
            raise PeerError(f"a version begins {bytes(data[:4]).hex()}, not {MAGIC.hex()}: it is none, or a newer one")
        if blake2b(data[head:], digest_size=_DIGEST_BYTES).digest() != data[len(MAGIC) : head]:
            raise PeerError(f"a version of {len(data)} bytes does not match its checksum; ask for it again")
        try:
            key, value, clock, stamp, agent, metadata, sources = _DECODE(data[head:])
            made = tuple(Version(v, VectorClock(c), t, _text(o), _map(m)) for v, c, t, o, m in sources)
            for source in made:
                if not _finite(source.timestamp):
                    raise ValueError(f"timestamp is {source.timestamp!r}")
            return cls(key, value, VectorClock(clock), stamp, agent, metadata, made)
        except (msgspec.DecodeError, TypeError, ValueError, OverflowError, RecursionError) as error:
            raise PeerError(f"a version of {len(data)} bytes cannot be read: {error}") from None


class ConflictResolver:
    """Settles what agents say about one key.

    strategy  `lww`: the newest timestamp, then the greater agent, then the greater canonical bytes.
              `vector`: what another version supersedes is out, whatever its wall clock says; of the rest as `lww`.
              `crdt`: merged by `metadata["crdt_type"]`:
                counter   the sum over agents of the greatest contribution that each was seen with. The value of a
                          write is what its agent contributed so far, or a map agent -> contribution
                set       the union: grow-only, sorted if written as lists
                map       key by key as `vector`, among the writes that hold the key
                register  as `vector`
    raises    UsageError for another strategy

    All of them are idempotent, commutative and associative: resolve any results with each other, with their inputs or
    twice. The result's version covers those of all inputs.
    """

    def __init__(self, strategy: str = "vector", *, sources_max: int = SOURCES_MAX) -> None:
        if strategy not in _SETTLES:
            raise UsageError(f"strategy is {strategy!r}; it is one of {', '.join(_SETTLES)}")
        if sources_max < 1:
            raise UsageError(f"sources_max is {sources_max}; give 1 or more")
        self.strategy = strategy
        self.sources_max = sources_max

    def detect_conflicts(self, versions: Iterable[StateVersion]) -> list[tuple[StateVersion, StateVersion]]:
        """Pairs of one key that did not know of each other, of those that no third supersedes; in a fixed order.

        Equal clocks are a pair only if the values differ, which a correct agent does not do.
        """
        by_key: dict[str, dict[bytes, StateVersion]] = {}
        for version in versions:
            by_key.setdefault(version.state_key, {})[_identity(_write(version))] = version
        found = []
        for _, known in sorted(by_key.items()):
            open_ = [
                one
                for one in known.values()
                if not any(one.version.compare(o.version) is Order.BEFORE for o in known.values())
            ]
            open_.sort(key=lambda v: (v.timestamp, v.agent_id, _identity(_write(v))))
            for a, b in combinations(open_, 2):
                order = a.version.compare(b.version)
                if order is Order.CONCURRENT or (order is Order.EQUAL and not same(a.value, b.value)):
                    found.append((a, b))
        return found

    def resolve(self, key: str, versions: Iterable[StateVersion]) -> StateVersion:
        """What `key` holds, given these versions and results.

        raises  UsageError if there are none, if one is of another key, if `crdt` finds no crdt_type or two different
                ones or a value that is none of its type, or if the value of a crdt's result was changed by hand;
                LimitError if more than sources_max writes are behind them
        cost    one clock compare per pair of writes; `lww` and counters none
        """
        sources: dict[bytes, Version] = {}
        for version in versions:
            if version.state_key != key:
                raise UsageError(f"a version of {version.state_key!r} among those of {key!r}; resolve each key alone")
            for source in self._sources(version):
                sources[_identity(source)] = source
        if not sources:
            raise UsageError(f"0 versions of {key!r}; give at least 1")
        if len(sources) > self.sources_max:
            raise LimitError(
                f"{len(sources)} writes are behind {key!r}; the limit is {self.sources_max}: begin again from the "
                "value of a result, as a new version"
            )
        return _settled(key, [sources[identity] for identity in sorted(sources)], self.strategy)

    def _sources(self, version: StateVersion) -> list[Version]:
        if not version.sources:
            return [_write(version)]
        names = (self.strategy, *(name for name in _SETTLES if name != self.strategy))
        for name in names:
            try:
                made = _settled(version.state_key, version.sources, name)
            except UsageError:
                continue
            if (
                same(made.value, version.value)
                and made.version == version.version
                and (made.timestamp, made.agent_id) == (version.timestamp, version.agent_id)
            ):
                said = made.metadata
                noted = {k: v for k, v in version.metadata.items() if k not in said or not same(v, said[k])}
                notes = [msgspec.structs.replace(_write(version), value=MISSING, metadata=noted)] if noted else []
                return [*version.sources, *notes]
        if self.strategy == "crdt":
            raise UsageError(
                f"the value {show(version.value)} of {version.state_key!r} is not what its sources make: a result was "
                "changed; write a version of your own, without sources"
            )
        return [*version.sources, _write(version)]  # somebody wrote over a result: one more write


def _clock(version: Any, agent: str) -> VectorClock:
    if isinstance(version, int) and not isinstance(version, bool):
        version = {agent: version} if version else {}
    try:
        return VectorClock(version)
    except (TypeError, ValueError, OverflowError) as error:
        raise UsageError(
            f"version is {version!r} ({error}); give a VectorClock, a map agent -> count, or a count"
        ) from None


def _finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _write(version: StateVersion) -> Version:
    """A version as one write. Its timestamp may be a float: only its order counts."""
    return Version(
        version.value, version.version, cast(int, version.timestamp), version.agent_id, dict(version.metadata)
    )


def _identity(write: Version) -> bytes:
    """Equal for equal writes of one form only: 1 and 1.0 are two, so that all replicas keep the same form."""
    said = (write.origin, tuple(write.clock.items()), write.timestamp, write.value, write.metadata)
    return blake2b(exact(said), digest_size=16).digest()


# ------------------------------------------------------------------------------------------------ settling


def _settled(key: str, sources: Sequence[Version], strategy: str) -> StateVersion:
    """The one version that these writes make. MISSING as a value: this one only has metadata to add."""
    writes = [source for source in sources if source.value is not MISSING]
    if not writes:
        raise UsageError(f"0 values behind the version of {key!r}; a result without a write is none")
    winner, value = _SETTLES[strategy](key, writes)
    clock = sources[0].clock
    for source in sources[1:]:
        clock = clock.merge(source.clock)
    metadata: dict[str, Any] = {}
    for source in ordered(writes):
        metadata |= source.metadata
    metadata |= winner.metadata
    for source in ordered([source for source in sources if source.value is MISSING]):
        metadata |= source.metadata
    alone = len(sources) == 1 and value is winner.value
    return StateVersion(key, value, clock, winner.timestamp, winner.origin, metadata, () if alone else tuple(sources))


def _lww(key: str, writes: list[Version]) -> tuple[Version, Any]:
    winner = newest(writes)
    return winner, winner.value


def _vector(key: str, writes: list[Version]) -> tuple[Version, Any]:
    return _lww(key, prune(writes))


def _crdt(key: str, writes: list[Version]) -> tuple[Version, Any]:
    said = {write.metadata.get("crdt_type") for write in writes}
    if len(said) != 1 or not said <= {*CRDT_TYPES}:
        words = " and ".join(sorted(show(each) for each in said))
        raise UsageError(f"crdt_type of {key!r} is {words}; all writes say the same one of {', '.join(CRDT_TYPES)}")
    return _MERGES[said.pop()](key, writes)


def contributions(writes: Iterable[Version]) -> dict[str, float]:
    """agent -> its greatest contribution to a counter, by agent. Raises UsageError for what is no contribution."""
    most: dict[str, float] = {}
    for write in writes:
        parts = write.value if isinstance(write.value, Mapping) else {write.origin: write.value}
        for agent, amount in parts.items():
            if not isinstance(agent, str) or not _finite(amount) or amount < 0:
                raise UsageError(
                    f"the contribution of {agent!r} is {show(amount)}; a counter only grows: give a finite number "
                    "from 0, what the agent added up so far"
                )
            if amount > most.get(agent, -1):
                most[agent] = amount
            elif amount == most[agent] and isinstance(amount, int):
                most[agent] = amount  # 1 and 1.0 are one amount: the same form on every replica
    return {agent: most[agent] for agent in sorted(most)}


def _counter(key: str, writes: list[Version]) -> tuple[Version, Any]:
    amounts = contributions(writes).values()
    # Rounded once, of the exact sum: a sum of floats one by one would depend on the order of the agents.
    total = sum(amounts) if all(isinstance(amount, int) for amount in amounts) else math.fsum(amounts)
    winner = newest(writes)
    return winner, winner.value if len(writes) == 1 and same(total, winner.value) else total


def _set(key: str, writes: list[Version]) -> tuple[Version, Any]:
    elements: dict[bytes, Any] = {}
    for write in ordered(writes):
        if not isinstance(write.value, list | tuple | Set):
            raise UsageError(f"the value of {key!r} by {write.origin} is {show(write.value)}; a set is a set or a list")
        elements |= {canonical(item): item for item in write.value}
    union = [elements[each] for each in sorted(elements)]
    if all(isinstance(write.value, Set) for write in writes):
        found = frozenset(union)
        if len(found) == len(union):  # Python takes True for 1: a union that would drop one of them stays a list
            return newest(writes), found
    return newest(writes), union


def _map(value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise UsageError(f"{show(value)} stands where a map does")
    return cast(dict[str, Any], value)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise UsageError(f"{show(value)} stands where a text does")
    return value


def _merged_map(key: str, writes: list[Version]) -> tuple[Version, Any]:
    holders: dict[str, list[Version]] = {}
    for write in writes:
        if not isinstance(write.value, Mapping) or not all(isinstance(field, str) for field in write.value):
            raise UsageError(f"the value of {key!r} by {write.origin} is {show(write.value)}; a map has texts as keys")
        for field, item in write.value.items():
            holders.setdefault(field, []).append(msgspec.structs.replace(write, value=item))
    return newest(writes), {field: newest(prune(holders[field])).value for field in sorted(holders)}


_Settle = Callable[[str, list[Version]], tuple[Version, Any]]
_SETTLES: Final[dict[str, _Settle]] = {"lww": _lww, "vector": _vector, "crdt": _crdt}
_MERGES: Final[dict[Any, _Settle]] = {"counter": _counter, "set": _set, "map": _merged_map, "register": _vector}


# ------------------------------------------------------------------------------------------------ bytes


def _plain(value: Any) -> Any:
    """A value in words of MessagePack, sets in the order of their canonical bytes."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Set):
        return Ext(_SET_EXT, _ENCODE([_plain(item) for item in sorted(value, key=canonical)]))
    return Ext(_MISSING_EXT, b"") if value is MISSING else value


def _hashable(item: Any) -> Any:
    return tuple(_hashable(part) for part in item) if isinstance(item, list) else item


def _ext(code: int, data: memoryview) -> Any:
    if code == _SET_EXT:
        return frozenset(_hashable(item) for item in _DECODE(data))
    if code == _MISSING_EXT and not data:
        return MISSING
    raise ValueError(f"extension {code} is unknown")


_ENCODE: Final = msgspec.msgpack.Encoder(order="deterministic").encode
_DECODE: Final = msgspec.msgpack.Decoder(ext_hook=_ext).decode

__all__ = ["CRDT_TYPES", "SOURCES_MAX", "ConflictResolver", "StateVersion", "contributions"]
