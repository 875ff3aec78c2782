"""Taking over an instance whose coordinator is silent: the recovery of EPaxos* (Ryabinin, Gotsman & Sutra 2025).

Let n be the members, f = floor((n - 1) / 2) of them may fail, and e = min(f, floor((n - f + 1) / 2)) a fast quorum
spares: it has n - e members, the coordinator included (3 -> 2, 5 -> 3, 7 -> 5). All other quorums have n - f. "x has y"
means that the dependencies of x reach y; I(x) are the dependencies that the coordinator of x proposed. Two things must
hold of committed instances:

  agreement   x has one value (command, dependencies, seq) everywhere;
  visibility  if x and y interfere and neither is void, x has y or y has x.

What everything rests on:

  P1  A member that pre-accepts x gives it everything interfering that it knows. It knows a command from a pre-accept,
      a validation, an accept or a commit, and never unlearns it (conflicts.py: where it forgets, it depends on all).
  P2  A coordinator pre-accepts its own x, durably, before anybody hears of x. Dependencies of x only grow from I(x).
  P3  A coordinator tells nobody of a fast commit, and lets nothing come of it, before that commit is durable. So if it
      answers a recovery and does not say "committed", x was not committed on the fast path, and never will be: having
      promised a ballot it takes no more pre-accepts. Neither does it after a restart, nor decide at ballot 0 again.
  P4  The ballot under which a value was accepted is kept apart from the one that is promised. A later promise says
      nothing about the value: the original text confused the two and could lose a chosen one (Sutra 2020).

The recoverer takes a ballot b of its own, and a quorum Q promises it. In this order:

  1. Somebody committed: done. Somebody accepted: propose the value of the *highest accepted ballot*, as in Paxos.
  2. The coordinator is in Q: by P3 there was no fast commit: propose void.
  3. Now x may have been committed by a fast quorum F, all of whom pre-accepted exactly I(x). At least |Q| - e members
      of F are in Q. So if fewer of Q (call them R) pre-accepted exactly I(x), propose void.
  4. Otherwise I(x) may be proposed if it is valid, and must be if it was committed. Every member of Q is asked to
      *validate* it: it notes the command and I(x) down as known (P1), and names every interfering y that is not in
      I(x) and may lack x: y is committed without x, or not committed and x is not in I(y). If none is named, I(x).
  5. A committed y without x: void. For had F committed x, a member of F that pre-accepted y or was asked to validate it
      would have seen x and y, in one order or the other, and one of them would have the other.
  6. |R| = |Q| - e, and the coordinator of some named y is outside Q: void. For had F committed x, then F would be all
      but the e members of Q that are not in R, so that coordinator would be in F: having pre-accepted x without y, it
      did so before it proposed y (P2), and I(y) would have x (P1).
  7. Otherwise wait until all that were named are committed: void if one lacks x, and I(x) if none does.
      Two recoveries may wait for each other. So each tells the others how many besides its coordinator pre-accepted
      it exactly as proposed: k. If k > n - f - e for a y that x waits for, then x is void: those k pre-accepted y
      without x (x is not in I(y)), so by P1 none of them is in an F that pre-accepted x without y, and |F| + k <= n
      leaves k = e and F all the others, the coordinator of y among them; which 6 excludes. Nor do both have
      k = n - f - e for ever: the coordinator of y is alive then, or 6 decides; its own recovery of y ends by 2.

Visibility for a value from 4 or 7, against any committed y that is not void: if y has its dependencies from pre-accepts
(fast or slow path), its quorum meets Q in a member that saw both. Had it validated x first, y has x; else y was named,
unless x has y or y has x. If y has them from a validation too, the two quorums meet, and whichever validated second
named the other one. What is named is waited for, and void if neither has the other. Nothing in the arguments depends on
the reasons to choose void, so any of them may be applied early; only agreement limits them.

An executed y may be forgotten. But everything y has, and that interferes, was executed before y or with it. So at a
member where y is executed and x is not, y lacks x: the newest executed number of each key is enough for 5
(`Conflicts.against`). What all members have executed can be dropped altogether: x, not committed before that, is
executed behind it everywhere, dependency or not. To keep such a y from being named against an x that was committed fast
without it, coordinators depend on all that they executed, and a member that dropped more than x reaches adds it to x.

Dependencies are numbers "all interfering ones up to m": they may reach instances that nobody knew then. That only makes
"x has y" true more often, in every argument alike; the order of execution is made from the same numbers everywhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import Enum

from nova.consensus.epaxos.instances import Id, Instance, Status, Value, interfere, is_void
from nova.consensus.epaxos.messages import (
    Accept,
    AcceptReply,
    Commit,
    Gone,
    Recover,
    RecoverReply,
    Refused,
    Validate,
    ValidateReply,
    Waiting,
)
from nova.consensus.epaxos.replica import Replica
from nova.errors import PeerError
from nova.types import NodeId, Outputs


class Phase(Enum):
    """What a coordinator, or who took over, waits for."""

    PREACCEPT = "preaccept"
    ACCEPT = "accept"
    RECOVER = "recover"
    VALIDATE = "validate"
    WAIT = "wait"


class Lead:
    """An instance that this member drives, under one ballot.

    replies    of this phase
    quorum     Q, once it is chosen
    count      members of R; the coordinator is not among them (step 2)
    conflicts  what was named in a validation
    """

    __slots__ = ("ballot", "conflicts", "count", "phase", "quorum", "replies", "tries", "value")

    def __init__(self, ballot: int, phase: Phase, value: Value | None = None) -> None:
        self.ballot, self.phase, self.value = ballot, phase, value
        self.replies: dict[NodeId, object] = {}
        self.quorum: tuple[NodeId, ...] = ()
        self.count = self.tries = 0
        self.conflicts: dict[Id, bool] = {}

    def turn(self, phase: Phase) -> None:
        """Go on to a phase."""
        self.phase, self.tries = phase, 0
        self.replies = {}


class Choice(Enum):
    """What the promises of a quorum leave to do."""

    COMMIT = 0
    ACCEPT = 1
    VALIDATE = 2


def choose(
    replies: Mapping[NodeId, RecoverReply], coordinator: NodeId, spared: int, void: Value
) -> tuple[Choice, Value, list[NodeId]]:
    """Steps 1 to 3: what to do with which value; for VALIDATE the members of R, too."""
    for reply in replies.values():
        if reply.status >= Status.COMMITTED and reply.value is not None:
            return Choice.COMMIT, reply.value, []
    accepted = [reply for reply in replies.values() if reply.status == Status.ACCEPTED and reply.value is not None]
    if accepted:
        newest = max(accepted, key=lambda reply: reply.accepted)
        assert newest.value is not None
        return Choice.ACCEPT, newest.value, []
    if coordinator in replies:
        return Choice.ACCEPT, void, []
    exact = [
        member
        for member, reply in replies.items()
        if reply.status == Status.PREACCEPTED and reply.value is not None and reply.value == reply.init
    ]
    if not exact or len(exact) < len(replies) - spared:
        return Choice.ACCEPT, void, []
    value = replies[exact[0]].init
    assert value is not None
    return Choice.VALIDATE, value, exact


class Recovery(Replica):
    """The part of a member that accepts, recovers and validates."""

    # -- the slow path, for coordinators and who took over --

    def _propose_accept(self, instance: Instance, value: Value, out: Outputs) -> None:
        lead = instance.lead
        ballot = lead.ballot
        self._accept_here(instance, ballot, value, out)
        lead.turn(Phase.ACCEPT)
        lead.value = value
        self._waits.discard(instance.id)
        self._vote(instance, ballot, Phase.ACCEPT.value)
        message = Accept(instance.id, ballot, value)
        # Early: nobody counts our own acceptance before it is durable, and we never use this ballot again.
        out.early += [(peer, message) for peer in self._peers]
        self._arm(instance, self.options.resend_ticks)

    def _accept_here(self, instance: Instance, ballot: int, value: Value, out: Outputs) -> None:
        instance.ballot = instance.accepted = ballot
        instance.value, instance.status = value, Status.ACCEPTED
        instance.token = self._token + 1
        self._write(instance, out)
        self._learn(instance, value, out)

    def _learn(self, instance: Instance, value: Value, out: Outputs) -> None:
        if self._know(instance, value):
            self._execute([instance], out)  # what waited to know whether it interferes

    def _leader_of(self, id: Id, ballot: int) -> int:
        return id[0] if ballot == 0 else ballot % self.count

    def _open(self, sender: NodeId, id: Id, ballot: int) -> Instance | None:
        """The instance, if it is undecided here and its ballot may be heard; else whoever asks is told."""
        if ballot < 0 or self._index[sender] != self._leader_of(id, ballot):
            raise PeerError(f"{sender} uses ballot {ballot} of instance {id}, which is not its own")
        if not self._known(id):
            return None
        if (instance := self.instances.get(id)) is None:
            if id in self.executed:
                self._promise(sender, Gone(id))
                return None
            instance = self._instance(id)
        if instance.status >= Status.COMMITTED:
            self._answer_commit(sender, instance)
            return None
        if ballot < instance.ballot:
            self._promise(sender, Refused(id, instance.ballot))
            return None
        return instance

    def _on_accept(self, sender: NodeId, message: Accept, out: Outputs) -> None:
        value = self._checked(message.value)
        instance = self._open(sender, message.id, message.ballot)
        if instance is None:
            return
        if instance.status != Status.ACCEPTED or instance.accepted != message.ballot:
            if instance.lead is not None and instance.lead.ballot != message.ballot:
                self._pass(instance)
            self._accept_here(instance, message.ballot, value, out)
            self._arm_recovery(instance)
        self._promise(sender, AcceptReply(message.id, message.ballot))

    def _on_accept_reply(self, sender: NodeId, message: AcceptReply, out: Outputs) -> None:
        instance = self._led(message.id, message.ballot, Phase.ACCEPT)
        if instance is not None:
            self._accepted(sender, instance, out)

    def _accepted(self, sender: NodeId, instance: Instance, out: Outputs) -> None:
        lead = instance.lead
        lead.replies[sender] = True
        if len(lead.replies) >= self.slow:
            value = lead.value
            commit = Commit(instance.id, value)
            out.early += [(peer, commit) for peer in self._peers]
            self._commit(instance, value, out)

    def _led(self, id: Id, ballot: int, phase: Phase) -> Instance | None:
        """The instance, if we drive it under this ballot and are in this phase."""
        instance = self.instances.get(id)
        if instance is None or instance.lead is None or instance.status >= Status.COMMITTED:
            return None
        lead = instance.lead
        return instance if lead.ballot == ballot == instance.ballot and lead.phase is phase else None

    def _pass(self, instance: Instance) -> None:
        """Somebody else drives it now."""
        instance.lead = None
        self._waits.discard(instance.id)

    def _on_refused(self, sender: NodeId, message: Refused, out: Outputs) -> None:
        instance = self.instances.get(message.id)
        if instance is None or instance.status >= Status.COMMITTED:
            return
        instance.hint = max(instance.hint, message.ballot)
        if instance.lead is not None and message.ballot > instance.lead.ballot:
            self._pass(instance)
            self._arm_recovery(instance)

    # -- recovery --

    def _recover(self, instance: Instance, out: Outputs) -> None:
        instance.attempt += 1
        ballot = (max(instance.ballot, instance.hint) // self.count + 1) * self.count + self._me
        instance.ballot = ballot
        instance.lead = Lead(ballot, Phase.RECOVER)
        self._waits.discard(instance.id)
        self._proposed.discard(instance.id)
        self._write(instance, out)
        self._vote(instance, ballot, Phase.RECOVER.value)
        # Not early: after a restart we must not use this ballot a second time.
        out.send += [(peer, Recover(instance.id, ballot)) for peer in self._peers]
        self._arm(instance, self.options.resend_ticks)

    def _on_recover(self, sender: NodeId, message: Recover, out: Outputs) -> None:
        if message.ballot < self.count:
            raise PeerError(f"{sender} recovers instance {message.id} at ballot {message.ballot}")
        instance = self._open(sender, message.id, message.ballot)
        if instance is None:
            return
        self.graph.heard(*message.id)
        if message.ballot > instance.ballot:
            instance.ballot = message.ballot
            self._pass(instance)
            self._write(instance, out)
            self._arm_recovery(instance)
        if instance.status == Status.ACCEPTED and instance.accepted == message.ballot:
            return  # it is further than that
        self._promise(sender, self._state(instance))

    def _state(self, instance: Instance) -> RecoverReply:
        return RecoverReply(
            instance.id, instance.ballot, instance.accepted, instance.status, instance.value, instance.init
        )

    def _on_recover_reply(self, sender: NodeId, message: RecoverReply, out: Outputs) -> None:
        for value in (message.value, message.init):
            if value is not None:
                self._checked(value)
        if (instance := self._led(message.id, message.ballot, Phase.RECOVER)) is not None:
            self._promised(sender, instance, message, out)
        elif (instance := self._led(message.id, message.ballot, Phase.WAIT)) is not None:
            self._promised_late(sender, instance, message, out)

    def _promised(self, sender: NodeId, instance: Instance, reply: RecoverReply, out: Outputs) -> None:
        lead = instance.lead
        lead.replies[sender] = reply
        if len(lead.replies) < self.slow:
            return
        choice, value, exact = choose(lead.replies, self.members[instance.owner], self.spared, self._void())
        if choice is Choice.COMMIT:
            self._commit(instance, value, out)
        elif choice is Choice.ACCEPT:
            self._propose_accept(instance, value, out)
        else:
            lead.quorum = tuple(sorted(lead.replies))
            lead.value, lead.count = value, len(exact)
            lead.turn(Phase.VALIDATE)
            self._send_validate(instance, out)
            if self.node in lead.quorum:
                self._validate_here(instance, value, out)
                self._vote(instance, lead.ballot, Phase.VALIDATE.value)
            self._arm(instance, self.options.resend_ticks)

    def _promised_late(self, sender: NodeId, instance: Instance, reply: RecoverReply, out: Outputs) -> None:
        """An answer from outside Q, while we wait: it may end that."""
        if sender in instance.lead.quorum:
            return
        if reply.status == Status.ACCEPTED and reply.value is not None:
            self._propose_accept(instance, reply.value, out)
        elif sender == self.members[instance.owner]:
            self._propose_accept(instance, self._void(), out)

    # -- validation --

    def _send_validate(self, instance: Instance, out: Outputs) -> None:
        lead = instance.lead
        message = Validate(instance.id, lead.ballot, lead.value)
        silent = [peer for peer in lead.quorum if peer != self.node and peer not in lead.replies]
        out.early += [(peer, message) for peer in silent]

    def _validate_here(self, instance: Instance, value: Value, out: Outputs) -> None:
        """Note down what was proposed, so that whatever is pre-accepted from now on depends on it."""
        if instance.init is None:
            instance.init = value
            self._learn(instance, value, out)
        self._write(instance, out)

    def _on_validate(self, sender: NodeId, message: Validate, out: Outputs) -> None:
        value = self._checked(message.value)
        instance = self._open(sender, message.id, message.ballot)
        if instance is None or instance.ballot != message.ballot or instance.accepted == message.ballot:
            return
        self._validate_here(instance, value, out)
        conflicts = self._standing_against(instance, value)
        if conflicts is not None:
            plain = tuple((*id, committed) for id, committed in conflicts.items())
            self._promise(sender, ValidateReply(message.id, message.ballot, plain))

    def _standing_against(self, instance: Instance, value: Value) -> dict[Id, bool] | None:
        """Step 4 at one member: id -> committed. None if too much was folded to tell."""
        if not self.conflicts.certain(value.deps):
            return None
        executed = self.conflicts.against(instance.keys, value.deps)
        if executed is not None:
            return {executed: True}
        found: dict[Id, bool] = {}
        for other in self.graph.meeting(instance.keys):
            if other is instance or other.number <= value.deps[other.owner]:
                continue
            if other.status >= Status.COMMITTED:
                assert other.value is not None
                if other.value.deps[instance.owner] < instance.number:
                    found[other.id] = True
            elif other.init is not None and other.init.deps[instance.owner] < instance.number:
                found[other.id] = False
        return found

    def _on_validate_reply(self, sender: NodeId, message: ValidateReply, out: Outputs) -> None:
        instance = self._led(message.id, message.ballot, Phase.VALIDATE)
        if instance is not None and sender in instance.lead.quorum:
            found = {(owner, number): committed for owner, number, committed in message.conflicts}
            for id in found:
                self._known(id)
            self._validated(sender, instance, found, out)

    def _validated(self, sender: NodeId, instance: Instance, found: Mapping[Id, bool], out: Outputs) -> None:
        lead = instance.lead
        lead.replies[sender] = found
        if len(lead.replies) < len(lead.quorum):
            return
        named: dict[Id, bool] = {}
        for each in lead.replies.values():
            for id, committed in each.items():
                named[id] = named.get(id, False) or committed
        outside = any(self.members[owner] not in lead.quorum for owner, _ in named)
        if not named:
            self._propose_accept(instance, lead.value, out)
        elif any(named.values()) or (lead.count == len(lead.quorum) - self.spared and outside):
            self._propose_accept(instance, self._void(), out)
        else:
            lead.conflicts = named
            lead.turn(Phase.WAIT)
            self._waits.add(instance.id)
            self._news = True
            self._want(named)
            self._send_waiting(instance, out)
            self._arm(instance, self.options.resend_ticks)

    def _send_waiting(self, instance: Instance, out: Outputs) -> None:
        message = Waiting(instance.id, instance.lead.count)
        out.early += [(peer, message) for peer in self._peers]
        instance.waiting = max(instance.waiting, instance.lead.count)

    def _on_waiting(self, sender: NodeId, message: Waiting, out: Outputs) -> None:
        if not self._known(message.id) or message.id in self.executed:
            return
        instance = self._instance(message.id)
        if message.count > instance.waiting:
            instance.waiting = message.count
            self._news = True
        if not instance.due and instance.status < Status.COMMITTED:
            self._arm_recovery(instance)

    def _reconsider(self, out: Outputs) -> None:
        """Step 7, for all recoveries that wait, when something was decided."""
        while self._news:
            self._news = False
            for id in sorted(self._waits):
                if id in self._waits:
                    instance = self.instances[id]
                    verdict = self._verdict(instance)
                    if verdict is not None:
                        self._propose_accept(instance, instance.lead.value if verdict else self._void(), out)

    def _verdict(self, instance: Instance) -> bool | None:
        """Whether what was proposed may stand; None: not known yet."""
        lead = instance.lead
        if self.conflicts.against(instance.keys, lead.value.deps) is not None:
            return False
        open = False
        for id in lead.conflicts:
            other = self.instances.get(id)
            if id in self.executed and other is None:
                continue  # void, or it would stand against us
            if other is None or not other.decided:
                if other is not None and other.waiting > self.slow - self.spared:
                    return False
                open = True
            elif self._stands_against(other, instance):
                return False
        return None if open else True

    @staticmethod
    def _stands_against(other: Instance, instance: Instance) -> bool:
        value = other.value
        if value is None or is_void(value) or not interfere(other.keys, instance.keys):
            return False
        return value.deps[instance.owner] < instance.number

    # -- time --

    def _recovery_expired(self, instance: Instance, out: Outputs) -> None:
        """Nothing came for a while: say it again, or begin again with a higher ballot."""
        lead = instance.lead
        lead.tries += 1
        patience = self.options.recovery_ticks << min(instance.attempt, 4)
        if lead.tries * self.options.resend_ticks > patience:
            self._pass(instance)
            self._arm(instance, 1 + self._random.randrange(self.options.recovery_ticks))
            return
        silent: Iterable[NodeId] = [peer for peer in self._peers if peer not in lead.replies]
        if lead.phase is Phase.RECOVER:
            out.send += [(peer, Recover(instance.id, lead.ballot)) for peer in silent]
        elif lead.phase is Phase.VALIDATE:
            self._send_validate(instance, out)
        elif lead.phase is Phase.WAIT:
            self._send_waiting(instance, out)
        elif lead.phase is Phase.ACCEPT:
            out.early += [(peer, Accept(instance.id, lead.ballot, lead.value)) for peer in silent]
        self._arm(instance, self.options.resend_ticks)
