"""What every part of a PBFT member stands on: who is who, what is said how, and what leaves when."""

from __future__ import annotations

from collections import deque

import msgspec

from nova.consensus.core import Epoch, Fatal, Persisted, checked_members
from nova.consensus.pbft.auth import Authenticator
from nova.consensus.pbft.evidence import Evidence, Wrong
from nova.consensus.pbft.messages import (
    Authentic,
    Body,
    Stable,
    checkpoint_content,
    decode_body,
    encode,
    mac_content,
)
from nova.consensus.pbft.options import PBFTOptions
from nova.consensus.pbft.requests import Requests
from nova.consensus.pbft.slots import Slot
from nova.errors import UsageError
from nova.types import NodeId, Outputs, Random

VIEW, ACCEPT, PREPARED, DECIDED, STABLE, STATE = b"V", b"A", b"P", b"D", b"S", b"I"
"""First byte of a record: view, entry accepted, prepared, decided, checkpoint stable, a piece of an installed state."""


class Base:
    """The state of a member, and its mouth.

    view      the newest that it takes part in; `active` False while that has not begun
    executed  told by Committed up to here
    low       the newest checkpoint that is stable and held here; slots up to it are gone
    mark      the newest one known to be stable; above `low` only while this member is behind
    """

    def __init__(self, node: NodeId, epoch: Epoch, random: Random, authenticator: Authenticator) -> None:
        self.members = checked_members(node, epoch, 4)
        if node not in self.members:
            raise UsageError(f"{node} is no member of epoch {epoch.number}, {list(self.members)}; PBFT has no learners")
        try:
            self.options = msgspec.convert(epoch.options, PBFTOptions)
        except msgspec.ValidationError as error:
            raise UsageError(f"the options of epoch {epoch.number} do not fit pbft: {error}") from None
        self.node, self.epoch = node, epoch
        self.others = tuple(member for member in self.members if member != node)
        self.f = (len(self.members) - 1) // 3
        self.quorum = quorum_of(len(self.members))
        self.evidence = Evidence(self.members)
        self._random, self._authenticator = random, authenticator
        self.view = 0
        self.active = True
        self.executed = epoch.start - 1
        self.low = self.mark = Stable(epoch.start - 1)
        self.slots: dict[int, Slot] = {}
        self.requests = Requests(self.options.requests_max, self.options.requests_bytes_max)
        self.sealed_at: int | None = None
        self.seal_data = b""
        self._token = self._durable_token = 0
        self._promises: list[tuple[NodeId, Authentic]] = []
        self._held: deque[tuple[int, NodeId, Authentic]] = deque()
        self._early: list[tuple[NodeId, Authentic]] = []
        self._fresh: list[tuple[int, int, bytes]] = []  # (position, view, digest) of commits of this call
        self._unsynced: deque[tuple[int, int, int, bytes]] = deque()  # with the token that makes them count

    def primary_of(self, view: int) -> NodeId:
        """Who leads a view: they take turns."""
        return self.members[view % len(self.members)]

    @property
    def primary(self) -> NodeId:
        return self.primary_of(self.view)

    @property
    def leads(self) -> bool:
        return self.active and self.primary == self.node

    def _slot(self, position: int) -> Slot:
        slot = self.slots.get(position)
        if slot is None:
            slot = self.slots[position] = Slot(position)
        return slot

    def _within(self, position: int) -> bool:
        """Between the marks: above what is held, or, while behind, above what is known to be stable."""
        low, mark, window = self.low.position, self.mark.position, self.options.window
        return low < position <= low + window or mark < position <= mark + window

    # -- words --

    def _wrap(self, peer: NodeId, body: bytes) -> Authentic:
        return Authentic(body, self._authenticator.mac(peer, mac_content(self.epoch.number, self.node, peer, body)))

    def _promise(self, peer: NodeId, message: Body) -> None:
        """Say what must not be known before all that it rests on is durable."""
        self._promises.append((peer, self._wrap(peer, encode(message))))

    def _promise_all(self, message: Body) -> None:
        body = encode(message)
        self._promises += [(peer, self._wrap(peer, body)) for peer in self.others]

    def _say(self, peer: NodeId, message: Body) -> None:
        """Say what promises nothing."""
        self._early.append((peer, self._wrap(peer, encode(message))))

    def _say_all(self, message: Body) -> None:
        body = encode(message)
        self._early += [(peer, self._wrap(peer, body)) for peer in self.others]

    def opened(self, sender: NodeId, message: Authentic) -> Body | None:
        """What `sender` said to this member; None (and counted) if it did not, or if it says nothing."""
        if sender not in self.members or sender == self.node:
            self.evidence.count(sender, Wrong.OUTSIDER)
            return None
        content = mac_content(self.epoch.number, sender, self.node, message.body)
        if not self._authenticator.check(sender, content, message.mac):
            self.evidence.count(sender, Wrong.AUTHENTICATOR)
            return None
        try:
            return decode_body(message.body)
        except (msgspec.MsgspecError, ValueError, OverflowError, RecursionError):
            self.evidence.count(sender, Wrong.MALFORMED)
            return None

    def _proved(self, stable: Stable) -> bool:
        """A quorum signed that checkpoint (the beginning needs nobody)."""
        if stable.position == self.epoch.start - 1:
            return stable == Stable(self.epoch.start - 1)
        if stable.position < self.epoch.start or stable.size > self.options.state_bytes_max:
            return False
        if stable == self.mark or stable == self.low:
            return True
        signers = {signer for signer, _ in stable.proof}
        if len(stable.proof) > len(self.members) or not signers <= set(self.members) or len(signers) < self.quorum:
            return False
        content = checkpoint_content(self.epoch.number, stable.position, stable.digest, stable.size)
        return all(self._authenticator.verify(signer, content, signature) for signer, signature in stable.proof)

    # -- outputs --

    def _fatal(self, out: Outputs, reason: str) -> None:
        out.apply.append(Fatal(reason))

    def _done(self, out: Outputs) -> Outputs:
        if out.persist:
            self._token += 1
            out.apply.insert(0, Persisted(self._token))
            self._unsynced += [(self._token, *commit) for commit in self._fresh]
            out.send += self._promises
        elif self._token > self._durable_token:
            self._held += [(self._token, peer, message) for peer, message in self._promises]
        else:
            out.send += self._promises
        out.early += self._early
        self._fresh.clear()
        self._promises.clear()
        self._early.clear()
        return out


def quorum_of(members: int) -> int:
    """The least number of which any two groups share a correct member: ceil((n + f + 1) / 2); 2 f + 1 of 3 f + 1."""
    f = (members - 1) // 3
    return (members + f + 2) // 2
