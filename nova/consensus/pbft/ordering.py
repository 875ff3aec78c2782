"""The normal case: pre-prepare, prepare, commit, execute; and the checkpoints that let go of what was executed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import msgspec

from nova.consensus.core import Committed, Entry, Kind, StateWanted, checked_members, unpack, unpack_epoch
from nova.consensus.pbft.base import ACCEPT, DECIDED, PREPARED, STABLE, Base
from nova.consensus.pbft.evidence import Wrong
from nova.consensus.pbft.messages import (
    DIGEST_BYTES,
    Checkpoint,
    Commit,
    Prepare,
    PrePrepare,
    SealVote,
    Stable,
    checkpoint_content,
    decode_barriers,
    encode,
    entry_digest,
    seal_content,
    state_digest,
)
from nova.consensus.pbft.requests import Name, barrier_name, command_name
from nova.consensus.pbft.slots import Slot
from nova.consensus.sessions import BATCH_MAX
from nova.errors import NovaError
from nova.types import NodeId, Outputs


class Ordering(Base, ABC):
    """A member that orders, in the view it is in. What it leaves to others is abstract, so none is made without it."""

    _next = 0
    """The position that a primary gives next."""
    _covered = 0
    """The last position that the present new view decided upon: up to it only what it chose may stand."""

    def _begin_ordering(self) -> None:
        self._states: dict[int, tuple[bytes, bytes]] = {}  # position -> (digest, state) held for a checkpoint
        self._votes: dict[NodeId, dict[int, Checkpoint]] = {member: {} for member in self.members}
        self._seal_votes: dict[NodeId, SealVote] = {}
        self._flying: dict[Name, int] = {}  # what stands in slots that are not executed -> position
        self._stalled = 0  # ticks without an execution while something is accepted
        self._failed = 0  # views in a row that brought nothing
        self._next = self.executed + 1

    # -- pre-prepare --

    def _order(self, kind: Kind, data: bytes, out: Outputs, proof: tuple[tuple[NodeId, bytes], ...] = ()) -> None:
        """The primary gives the next position."""
        digest = entry_digest(kind, data)
        slot = self._slot(self._next)
        self._next += 1
        self._promise_all(PrePrepare(self.view, slot.position, digest, kind, data, proof))
        slot.contents[digest] = kind, data
        self._accept(slot, digest, out)

    def _pre_prepared(self, sender: NodeId, message: PrePrepare, out: Outputs) -> None:
        if not self._current(sender, message.view):
            return
        position, digest = message.position, message.digest
        if sender != self.primary:
            self.evidence.count(sender, Wrong.NOT_PRIMARY)
            return
        if self.sealed_at is not None and position > self.sealed_at:
            return
        if not self._within(position):
            if position > self.low.position:
                self.evidence.count(sender, Wrong.WINDOW)
            return
        if entry_digest(message.kind, message.data) != digest:
            self.evidence.count(sender, Wrong.DIGEST)
            return
        slot = self.slots.get(position)
        wanted = None if slot is None else slot.wanted
        if slot is not None:
            known = slot.digest if slot.view == self.view else wanted
            if (known or digest) != digest or (slot.decided or digest) != digest:
                self.evidence.count(sender, Wrong.EQUIVOCATION)
                return
            if slot.view == self.view:
                return  # told again
        if wanted is None:
            if position <= self._covered:
                return  # the new view decided upon it when it was out of reach here: others will tell
            if not self._fits(message):
                self.evidence.count(sender, Wrong.CONTENT)
                return
        slot = self._slot(position)
        slot.contents[digest] = message.kind, message.data
        self._accept(slot, digest, out)

    def _fits(self, message: PrePrepare) -> bool:
        """Every correct member can execute this."""
        if len(message.data) > self.options.entry_bytes_max:
            return False
        try:
            match message.kind:
                case Kind.COMMANDS:
                    commands = unpack(message.data)
                    return 0 < len(commands) <= BATCH_MAX
                case Kind.NOOP:
                    return not message.data or bool(decode_barriers(message.data))
                case Kind.SEAL:
                    successor = unpack_epoch(message.data)
                    checked_members(self.node, successor)
                    return successor.number == self.epoch.number + 1 and self._asked_for(message.data, message.proof)
                case _:
                    return False
        except (NovaError, msgspec.MsgspecError, ValueError, OverflowError, RecursionError):
            return False

    def _asked_for(self, successor: bytes, proof: Sequence[tuple[NodeId, bytes]]) -> bool:
        """Enough members signed that they want this seal."""
        signers = {signer for signer, _ in proof}
        content = seal_content(self.epoch.number, successor)
        return (
            len(proof) <= len(self.members)
            and signers <= set(self.members)
            and len(signers) >= (self.options.seal_votes or self.f + 1)
            and all(self._authenticator.verify(signer, content, signature) for signer, signature in proof)
        )

    def _current(self, sender: NodeId, view: int) -> bool:
        if view < self.view:
            self.evidence.count(sender, Wrong.STALE)
        return self.active and view == self.view

    def _accept(self, slot: Slot, digest: bytes, out: Outputs) -> None:
        """Pre-prepared: what the primary put here (or the new view), and its entry is here."""
        kind, data = slot.contents[digest]
        slot.accept(self.view, digest, self.options.digests_max)
        content = None if digest in slot.stored else (kind, data)
        slot.stored.add(digest)
        out.persist.append(ACCEPT + encode((slot.position, self.view, digest, content)))
        if slot.position > self.executed:
            for name in _names(kind, data):
                self._flying.setdefault(name, slot.position)
        if self.primary != self.node:
            self._promise_all(Prepare(self.view, slot.position, digest))
            slot.prepares[self.node] = digest
        self._count(slot, out)

    # -- prepare and commit --

    def _voted(self, sender: NodeId, message: Prepare | Commit, out: Outputs) -> None:
        if not self._current(sender, message.view):
            return
        if len(message.digest) != DIGEST_BYTES:
            self.evidence.count(sender, Wrong.MALFORMED)
            return
        if not self._within(message.position):
            if message.position > self.low.position:
                self.evidence.count(sender, Wrong.WINDOW)
            return
        slot = self._slot(message.position)
        if isinstance(message, Prepare):
            if sender == self.primary:  # its pre-prepare is its word
                self.evidence.count(sender, Wrong.NOT_PRIMARY)
                return
            votes = slot.prepares
        else:
            votes = slot.commits
        first = votes.setdefault(sender, message.digest)
        if first != message.digest:
            self.evidence.count(sender, Wrong.EQUIVOCATION)
            return
        self._count(slot, out)

    def _count(self, slot: Slot, out: Outputs) -> None:
        if slot.view != self.view or not self.active:
            return
        if not slot.prepared:
            # The pre-prepare stands for the prepare of the primary.
            count = 1 + sum(digest == slot.digest for digest in slot.prepares.values())
            if count < self.quorum:
                return
            slot.prepare()
            out.persist.append(PREPARED + encode((slot.position, self.view, slot.digest)))
            self._promise_all(Commit(self.view, slot.position, slot.digest))
            self._fresh.append((slot.position, self.view, slot.digest))
        if slot.decided is None and sum(digest == slot.digest for digest in slot.commits.values()) >= self.quorum:
            self._decide(slot, slot.digest, out)

    def _own_commits(self, out: Outputs) -> None:
        """Our own commits count when their records are durable."""
        while self._unsynced and self._unsynced[0][0] <= self._durable_token:
            _, position, view, digest = self._unsynced.popleft()
            slot = self.slots.get(position)
            if slot is not None and view == self.view and self.active:
                slot.commits[self.node] = digest
                self._count(slot, out)

    def _decide(self, slot: Slot, digest: bytes, out: Outputs) -> None:
        if slot.decided is not None:
            if slot.decided != digest:
                self._fatal(out, f"position {slot.position} is decided twice; more than {self.f} members lie")
            return
        slot.decided = digest
        content = None if digest in slot.stored else slot.contents[digest]
        slot.stored.add(digest)
        out.persist.append(DECIDED + encode((slot.position, max(slot.view, 0), digest, content)))
        slot.claims.clear()
        slot.prune()
        self._execute(out)

    # -- execution --

    def _execute(self, out: Outputs) -> None:
        """Tell what is decided, in order; a checkpoint every so often, and at the seal."""
        told: list[Entry] = []
        before = self.executed
        while self.sealed_at is None:
            slot = self.slots.get(self.executed + 1)
            if slot is None or slot.decided is None:
                break
            kind, data = slot.contents[slot.decided]
            self.executed += 1
            told.append(Entry(self.executed, max(slot.view, 0), kind, data))
            if kind == Kind.SEAL:
                self.sealed_at, self.seal_data = self.executed, data
            self._satisfied(kind, data, out)
            if self.executed % self.options.checkpoint_interval == 0 or self.sealed_at is not None:
                out.apply += [Committed(tuple(told)), *self._barriers_passed(), StateWanted(self.executed)]
                told = []
        if told:
            out.apply.append(Committed(tuple(told)))
        out.apply += self._barriers_passed()
        if self.executed > before:
            self._stalled = 0
            if self.active:
                self._failed = 0
            self._next = max(self._next, self.executed + 1)
            if self.sealed_at is not None:
                self.requests.clear()
                self._flying.clear()
            self._executed(out)

    def _satisfied(self, kind: Kind, data: bytes, out: Outputs) -> None:
        for name in _names(kind, data):
            self.requests.done(name)
            if self._flying.get(name, 0) <= self.executed:
                self._flying.pop(name, None)
            if name[0] == self.node:
                self._barrier_passed(name[1])

    @abstractmethod
    def _barrier_passed(self, number: int) -> None:
        """A barrier of this member is executed: reads up to it may be answered."""

    @abstractmethod
    def _executed(self, out: Outputs) -> None:
        """Something was executed: the next barrier can be asked for."""

    @abstractmethod
    def _barriers_passed(self) -> list[object]:
        """The reads that may be answered once what was just committed is applied."""

    # -- checkpoints --

    def checkpointed(self, position: int, state: bytes) -> Outputs:
        """The state at a position for which `StateWanted` asked."""
        out = Outputs()
        packed = encode((self.seal_data if position == self.sealed_at else b"", state))
        digest = state_digest(packed)
        if position < self.low.position or position > self.executed:
            return out
        self._states[position] = digest, packed
        if position == self.low.position:  # executed again after a restart
            if digest != self.low.digest:
                self._fatal(out, self._differs(self.low))
            return out
        content = checkpoint_content(self.epoch.number, position, digest, len(packed))
        mine = Checkpoint(position, digest, len(packed), self._authenticator.sign(content))
        self._votes[self.node][position] = mine
        self._promise_all(mine)
        self._look_for_stable(position, out)
        if self.mark.position == position:
            self._stable(self.mark, out)
        return self._done(out)

    def _checkpoint(self, sender: NodeId, message: Checkpoint, out: Outputs) -> None:
        position = message.position
        if position <= self.mark.position:
            return
        votes = self._votes[sender]
        known = votes.get(position)
        if known is not None:
            if (known.digest, known.size) != (message.digest, message.size):
                self.evidence.count(sender, Wrong.EQUIVOCATION)
            return
        if len(votes) >= self.options.checkpoints_max and position < min(votes):
            return
        if len(message.digest) != DIGEST_BYTES:
            self.evidence.count(sender, Wrong.MALFORMED)
            return
        content = checkpoint_content(self.epoch.number, position, message.digest, message.size)
        if not self._authenticator.verify(sender, content, message.signature):
            self.evidence.count(sender, Wrong.SIGNATURE)
            return
        votes[position] = message
        while len(votes) > self.options.checkpoints_max:
            del votes[min(votes)]
        self._look_for_stable(position, out)

    def _look_for_stable(self, position: int, out: Outputs) -> None:
        groups: dict[tuple[bytes, int], list[tuple[NodeId, bytes]]] = {}
        for member in self.members:
            vote = self._votes[member].get(position)
            if vote is not None:
                groups.setdefault((vote.digest, vote.size), []).append((member, vote.signature))
        for (digest, size), proof in groups.items():
            if len(proof) >= self.quorum:
                self._stable(Stable(position, digest, size, tuple(proof)), out)

    def _stable(self, stable: Stable, out: Outputs) -> None:
        """A checkpoint is proved. What it covers is let go if it is held here; else this member is behind."""
        if stable.position > self.mark.position:
            self.mark = stable
            self._next = max(self._next, stable.position + 1)
            for votes in self._votes.values():
                for position in [position for position in votes if position < stable.position]:
                    del votes[position]
        if stable.position <= self.low.position or self.executed < stable.position:
            return
        held = self._states.get(stable.position)
        if held is None:
            return  # the driver is about to hand it over
        if held[0] != stable.digest:
            self._fatal(out, self._differs(stable))
            return
        out.persist.append(STABLE + encode(stable))
        self._let_go(stable)

    def _let_go(self, stable: Stable) -> None:
        self.low = stable
        for position in [position for position in self.slots if position <= stable.position]:
            del self.slots[position]
        for position in [position for position in self._states if position < stable.position]:
            del self._states[position]
        for votes in self._votes.values():
            for position in [position for position in votes if position < stable.position]:
                del votes[position]
        for name in [name for name, position in self._flying.items() if position <= stable.position]:
            del self._flying[name]

    def _differs(self, stable: Stable) -> str:
        return (
            f"the state of {self.node} at position {stable.position} is not the one that {len(stable.proof)} of "
            f"{len(self.members)} members signed: its disk or its machine is at fault; give it an empty disk"
        )

    @property
    def seal_certificate(self) -> Stable | None:
        """The signatures of a quorum for the state at the seal, once there are as many."""
        if self.sealed_at is None or self.mark.position != self.sealed_at:
            return None
        return self.mark


def _names(kind: Kind, data: bytes) -> list[Name]:
    """What is asked for by an entry that passed `_fits`."""
    if kind == Kind.COMMANDS:
        return [command_name(command) for command in unpack(data)]
    if kind == Kind.NOOP and data:
        return [barrier_name(node, number) for node, number in decode_barriers(data)]
    return []
