"""The seam that every CRDT fills, and the one door to the compiled types.

The laws (tests/conformance/test_crdt_laws.py holds every type to them): `merge` is commutative, associative, idempotent
and only adds knowledge; merging deltas is merging states; bytes round trip, and replicas that know the same events
give the same bytes.
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from nova._native.crdt import (
    BoundedCounter,
    EnableWinsFlag,
    GCounter,
    GSet,
    LWWMap,
    LWWRegister,
    MVRegister,
    ORMap,
    ORSet,
    PNCounter,
    Replica,
    TwoPSet,
)
from nova.clock import CausalContext

__all__ = [
    "BoundedCounter",
    "Crdt",
    "EnableWinsFlag",
    "GCounter",
    "GSet",
    "LWWMap",
    "LWWRegister",
    "MVRegister",
    "ORMap",
    "ORSet",
    "PNCounter",
    "Replica",
    "TwoPSet",
]


@runtime_checkable
class Crdt(Protocol):
    """A replicated value: write here, merge there, in any order and as often as you like."""

    @property
    def value(self) -> Any:
        """What the state means to a reader."""

    @property
    def context(self) -> CausalContext:
        """Which events are known here."""

    def merge(self, other: Any, /) -> Any:
        """Learn all that another replica of this type knows."""

    def delta_since(self, context: CausalContext | None = None, /) -> bytes:
        """What somebody who knows `context` lacks."""

    def apply_delta(self, data: bytes, /) -> Any:
        """Learn what a delta holds: the same as merging with its sender."""

    def to_bytes(self) -> bytes:
        """The state in canonical bytes (`from_bytes` of the class reads them)."""

    def digest(self) -> bytes:
        """16 bytes, equal exactly if the states are."""
