"""What no member can have sent."""

from __future__ import annotations

from collections.abc import Sequence

from nova.consensus.paxos.ballots import Ballots
from nova.consensus.paxos.messages import Accept, Heartbeat, Message, Prepare, Promise
from nova.errors import PeerError
from nova.types import NodeId


def check(node: NodeId, members: Sequence[NodeId], ballots: Ballots, sender: NodeId, message: Message) -> None:
    """Raises PeerError for a message of a stranger, or about ballots or slots that its sender can't speak for."""
    if sender == node or sender not in members:
        raise PeerError(f"{sender} is no other member than {node} of {list(members)}")
    if isinstance(message, Prepare | Accept | Heartbeat) and ballots.owner(message.ballot) != sender:
        raise PeerError(f"{sender} uses ballot {message.ballot}, which it can't make")
    if isinstance(message, Accept):
        first = message.entries[0].position if message.entries else message.first
        if first < message.first or any(
            entry.term != message.ballot or entry.position != first + number
            for number, entry in enumerate(message.entries)
        ):
            raise PeerError(f"{sender} wants slots accepted that are not its own, or not consecutive")


def check_promise(sender: NodeId, message: Promise, slot_max: int) -> None:
    """Raises PeerError for a promise that tells of slots before what was asked for, or behind `slot_max`."""
    if any(not message.first <= entry.position <= slot_max for entry in message.entries):
        raise PeerError(f"{sender} promises slots out of {message.first}..{slot_max}")
    if message.following and message.following <= message.first:
        raise PeerError(f"{sender} goes on at slot {message.following} behind slot {message.first}")
