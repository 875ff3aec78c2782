"""Who votes: one set of members, or two while a change is under way (joint consensus, Ongaro & Ousterhout 2014, 6)."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from functools import lru_cache

import msgspec

from nova.consensus.quorum import Majority
from nova.errors import CorruptionError, UsageError
from nova.types import NodeId


@lru_cache(256)
def _majority(members: tuple[NodeId, ...]) -> Majority:
    """Asked about for every message, made once."""
    return Majority(members)


class Members(msgspec.Struct, frozen=True, array_like=True):
    """A configuration. While `outgoing` is not empty every decision needs a majority of both sets of voters.

    learners  get the log and count nowhere
    """

    voters: tuple[NodeId, ...]
    outgoing: tuple[NodeId, ...] = ()
    learners: tuple[NodeId, ...] = ()

    @property
    def joint(self) -> bool:
        """A change is under way."""
        return bool(self.outgoing)

    @property
    def everybody(self) -> tuple[NodeId, ...]:
        """All who get the log, sorted."""
        return tuple(sorted({*self.voters, *self.outgoing, *self.learners}))

    def votes(self, node: NodeId) -> bool:
        """The node counts in some majority."""
        return node in self.voters or node in self.outgoing

    def quorum(self, who: Collection[NodeId]) -> bool:
        """A majority of the voters, and of the outgoing ones."""
        return _majority(self.voters).phase1(who) and (not self.outgoing or _majority(self.outgoing).phase1(who))

    def committed(self, stored: Mapping[NodeId, int]) -> int:
        """The highest position that these majorities stored."""
        position = _majority(self.voters).committed(stored)
        return min(position, _majority(self.outgoing).committed(stored)) if self.outgoing else position

    def changed(self, voters: Iterable[NodeId], learners: Iterable[NodeId]) -> Members:
        """The configuration that begins a change: joint if the voters differ, else only the learners change.

        Raises UsageError if that is none, or a change is under way.
        """
        new, others = tuple(sorted(set(voters))), tuple(sorted(set(learners)))
        if self.joint:
            raise UsageError(
                f"a change from {list(self.outgoing)} to {list(self.voters)} is under way; wait for its end"
            )
        if not new:
            raise UsageError("no voter would be left; keep at least 1")
        if both := sorted(set(new) & set(others)):
            raise UsageError(f"{both[0]} can't be voter and learner; name it once")
        if new == self.voters:
            return Members(new, (), others)
        # Who stops voting keeps the log until the change is done: it counts among the outgoing.
        return Members(new, self.voters, others)

    def left(self) -> Members:
        """The configuration that ends a joint one."""
        return Members(self.voters, (), self.learners)


_pack = msgspec.msgpack.Encoder().encode
_unpack = msgspec.msgpack.Decoder(Members).decode


def pack_members(members: Members) -> bytes:
    """The data of a MEMBERS entry."""
    return _pack(members)


def unpack_members(data: bytes) -> Members:
    """The configuration of a MEMBERS entry. Raises CorruptionError."""
    try:
        return _unpack(data)
    except (msgspec.MsgspecError, ValueError) as error:
        raise CorruptionError(f"an entry of {len(data)} bytes holds no members: {error}") from None
