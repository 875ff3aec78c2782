"""A member of a cluster as one state machine: the replica, who else is alive, and how news travels between them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from nova.crdt.keyspace import batch_head
from nova.errors import PeerError, UnavailableError
from nova.store.core import Durable, Replica, StoreConfig
from nova.store.decisions import ESCALATION_MESSAGES, escalate, escalated, levels
from nova.store.healing import Healer, Healing
from nova.store.votes import VOTE_MESSAGES, Votes
from nova.store.witness import WITNESS_MESSAGES, Witness
from nova.sync.antientropy import ANTIENTROPY_MESSAGES, AntiEntropy, AntiEntropyConfig, Diverged, Joined
from nova.sync.gossip import GOSSIP_MESSAGES, Behind, Gossip, GossipConfig, Refused
from nova.sync.membership import (
    MEMBERSHIP_MESSAGES,
    Member,
    MemberDown,
    MemberLeft,
    Membership,
    MembershipConfig,
    MemberSuspected,
    MemberUp,
    MemberUpdated,
)
from nova.sync.retire import RetireConfig, Retirement
from nova.types import NodeId, Outputs, Random
from nova.wire import Codec

CODEC = Codec(
    *MEMBERSHIP_MESSAGES,
    *GOSSIP_MESSAGES,
    *ANTIENTROPY_MESSAGES,
    *VOTE_MESSAGES,
    *WITNESS_MESSAGES,
    *ESCALATION_MESSAGES,
)
"""Every message that members of a cluster send each other."""

ALONE_TICKS = 50
"""A node that just started hears first whom others have told of what waits."""

MemberEvent = MemberUp | MemberSuspected | MemberDown | MemberLeft | MemberUpdated


class Peers(msgspec.Struct, frozen=True):
    """Event: keep sessions with these nodes, node -> address. The dead are among them: they may come back."""

    addresses: dict[NodeId, str]


class Notice(msgspec.Struct, frozen=True):
    """Event: something that an operator should read. `bad` if it needs one."""

    text: str
    bad: bool = False


Event = Durable | Peers | Notice | Healing
"""What comes out of `ClusterCore` in `Outputs.apply`."""


class ClusterCore:
    """Replica, membership, gossip and anti-entropy, composed; see `nova.runtime.Core` for how it is driven.

    replica  the state; from now on its batches are published by this core
    member   this node as others shall know it
    witness  what keeps heads of audit trails; None: none are kept
    tick_ms  how much time a tick is
    """

    def __init__(
        self,
        replica: Replica,
        member: Member,
        *,
        random: Random,
        membership: MembershipConfig | None = None,
        gossip: GossipConfig | None = None,
        antientropy: AntiEntropyConfig | None = None,
        retire: RetireConfig | None = None,
        witness: Witness | None = None,
    ) -> None:
        self.replica = replica
        self.witness = witness
        self.membership = Membership(member, config=membership, random=random)
        self.gossip = Gossip(member.node, replica, head=batch_head, region=member.region, config=gossip, random=random)
        self.antientropy = AntiEntropy(member.node, replica, config=antientropy, random=random)
        self.retirement = Retirement(
            member.node, replica.incarnation, replica, clock_of=self.gossip.peer_clock, config=retire
        )
        tick_ms = membership.tick_ms if membership else 100
        self.votes = Votes(member.node, replica, tick_ms=tick_ms)
        self.healer = Healer(self.antientropy, tick_ms=tick_ms)
        self._connected: set[NodeId] = set()
        self._ticks = 0
        replica.published = self.gossip.published

    # -- driven by the runtime --

    def turn(self) -> Outputs:
        """What was written here since the last turn."""
        return self.replica.turn()

    def tick(self) -> Outputs:
        """Let one tick pass."""
        out = self._digested(self.membership.tick())
        out.extend(self._digested(self.gossip.tick()))
        out.extend(self._digested(self.antientropy.tick()))
        out.extend(self._digested(self.healer.tick()))
        out.extend(self._digested(self.retirement.tick()))
        live = self.membership.peers()
        told = self._ticks % 10 == 9 and self._ticks >= ALONE_TICKS
        told = told and self.replica.node <= min(live, default=self.replica.node)
        self._ticks += 1
        due = escalate(self.replica) if told else []
        escalations = [(peer, message) for _, message in due for peer in sorted(live)]
        notices = [Notice(text, bad=True) for text, _ in due]
        if self.witness is not None:
            out.extend(self.witness.tick(live))
            notices += [Notice(text, bad=True) for text in self.witness.news()]
        return self._voted(out, Outputs(send=escalations, apply=[*notices]), self.votes.tick(live))

    def step(self, sender: NodeId, message: Any) -> Outputs:
        """Take a message of an authenticated peer. Raises PeerError."""
        if isinstance(message, GOSSIP_MESSAGES):
            return self._digested(self.gossip.step(sender, message))
        if isinstance(message, MEMBERSHIP_MESSAGES):
            return self._digested(self.membership.step(sender, message))
        if isinstance(message, ANTIENTROPY_MESSAGES):
            out = self._digested(self.antientropy.step(sender, message))
            out.extend(self._digested(self.healer.took(sender, message)))
            return out
        if isinstance(message, VOTE_MESSAGES):
            try:
                return self._voted(Outputs(), self.votes.step(sender, message))
            except PeerError as error:  # while voters are being renamed node by node: no reason to hang up
                return Outputs(apply=[Notice(str(error), bad=True)])
        if isinstance(message, ESCALATION_MESSAGES):
            escalated(self.replica, message)
            return self._voted(Outputs())
        if isinstance(message, WITNESS_MESSAGES):
            return self.witness.step(sender, message) if self.witness is not None else Outputs()
        raise PeerError(f"{sender} sent a {type(message).__name__}, which no part of this node takes")

    def met(self, member: Member) -> Outputs:
        """There is a session with this node now."""
        self._connected.add(member.node)
        out = self._digested(self.membership.met(member))
        out.extend(self.gossip.peer_up(member.node))
        out.send += [(member.node, each) for each in levels(self.replica)]
        if self.witness is not None:
            out.extend(self.witness.met(member.node))
        return out

    def lost(self, node: NodeId) -> Outputs:
        """The session with this node is gone."""
        self._connected.discard(node)
        out = self._digested(self.membership.lost(node))
        out.extend(self.healer.failed(node, "the session with the peer broke off; look at the link, and ask again"))
        return out

    def heal(self, node: NodeId, timeout_ms: int) -> Outputs:
        """Exchange with this peer now until both hold the same; the event `Healing` says how it ended.

        raises  UnavailableError if there is no session with it, or it is being healed already
        """
        if node not in self._connected:
            known = ", ".join(sorted(self._connected)) or "nobody"
            raise UnavailableError(
                f"there is no session with {node!r}, only with {known}; bring the link up, or name one of these", 10**9
            )
        return self._digested(self.healer.start(node, timeout_ms))

    def leave(self) -> Outputs:
        """This node goes on purpose: its peers need not wonder."""
        return self._digested(self.membership.leave())

    def lag(self, node: NodeId) -> int:
        """Operations durable here that this peer is not known to have."""
        return self.gossip.lag(node)

    def _voted(self, out: Outputs, *more: Outputs) -> Outputs:
        """What a vote wrote goes to the disk with what it sends: the outcome is told when it is there."""
        out.extend(self._digested(self.replica.turn()))
        for each in more:
            out.extend(each)
        return out

    # -- what the parts tell each other --

    def _digested(self, outputs: Outputs) -> Outputs:
        """Hand events of one part to the others; what is left is for the driver."""
        self.healer.sends(outputs)
        if not outputs.apply:
            return outputs
        events, outputs.apply = outputs.apply, []
        changed = False
        for event in events:
            match event:
                case Durable():
                    outputs.apply.append(event)
                case MemberUp(member):
                    self.votes.joined(member.node)
                    outputs.apply.append(Notice(f"{member.node} ({member.region}) is alive"))
                    self._follow_members(outputs)
                    changed = True
                    if member.node in self._connected:
                        outputs.extend(self.gossip.peer_up(member.node))
                case MemberSuspected(member):
                    outputs.apply.append(Notice(f"{member.node} does not answer", bad=True))
                case MemberDown(member):
                    outputs.apply.append(
                        Notice(f"{member.node} is declared dead; its data is safe on its disk", bad=True)
                    )
                    changed = True
                case MemberLeft(member):
                    self.votes.left(member.node)
                    outputs.apply.append(Notice(f"{member.node} left"))
                    changed = True
                case MemberUpdated():
                    changed = True
                case Behind(node):
                    outputs.extend(self._digested(self.antientropy.sync(node)))
                case Joined(node, size):
                    outputs.apply.append(Notice(f"took over {size} bytes of state from {node}"))
                case Refused(node, reason):
                    outputs.apply.append(Notice(f"refused what {node} sent: {reason}", bad=True))
                case Diverged(node, mine, theirs, _):
                    outputs.extend(self.healer.failed(node, "both know the same events but hold different states"))
                    outputs.apply.append(
                        Notice(
                            f"this node and {node} know the same events but hold different states ({mine.hex()} and "
                            f"{theirs.hex()}): memory, disk or program failed on one of them; compare with a third "
                            "node and restore the odd one from its peers",
                            bad=True,
                        )
                    )
                case _:
                    outputs.apply.append(event)
        if changed:
            self._follow_members(outputs)
            outputs.apply.append(
                Peers(
                    {
                        node: member.address
                        for node, member in self.membership.members.items()
                        if member.state != "left" and member.address and node != self.membership.self_member.node
                    }
                )
            )
        return outputs

    def _follow_members(self, outputs: Outputs) -> None:
        live = {node: member.region for node, member in self.membership.peers().items()}
        self.gossip.set_peers(live)
        self.antientropy.set_peers(live)
        self.retirement.set_members(
            {node: member.live for node, member in self.membership.members.items() if member.state != "left"}
        )


def member_core(
    node: NodeId,
    *,
    region: str,
    incarnation: int,
    address: str,
    random: Random,
    wall_ns: Callable[[], int],
    config: StoreConfig | None = None,
) -> ClusterCore:
    """A member with an empty replica, for simulations and tests."""
    replica = Replica(node, region=region, incarnation=incarnation, wall_ns=wall_ns, config=config)
    return ClusterCore(replica, Member(node, incarnation, region=region, address=address), random=random)


__all__ = ["CODEC", "ClusterCore", "Event", "Notice", "Peers", "member_core"]
