"""PBFT as a state machine (Castro & Liskov 1999 and 2002).

Of n members up to f = floor((n - 1) / 3) may do whatever they like; any two quorums of ceil((n + f + 1) / 2) share a
correct one. The primary of a view gives positions (pre-prepare), backups agree that it gave each only once (prepare),
and all agree that this will be known in every later view (commit). Where this goes another way than the papers:

- Records are durable before what they promise leaves: an accepted entry before the prepare, a prepared one before the
  commit. So a member that crashes and comes back is a correct one that was slow, and counts against no f. The papers'
  replicas keep their log in memory, and count a crash as a fault.
- Normal messages have MACs only, so view changes claim instead of proving, by the sets P and Q of the paper of 2002
  (`views.py`); they and new views are signed, so that a new view carries what it rests on and anybody may pass it on.
  In place of the paper's exchange of acknowledgements that is one message; it is larger.
- A checkpoint is signed: its quorum of signatures convinces whoever is shown it, also of a state that comes from a
  liar. Entries that only a few miss are believed when f + 1 members say that they executed them.
- Reads are ordered: a barrier with an unguessable number goes through the protocol like a request, one for all reads
  that came meanwhile. Its cost is that of a write without its data.
- The epoch ends when f + 1 members ask for it, signed: a single one that lies could hand the group to whom it likes.
  The entry is followed by a checkpoint at once; its signatures are the certificate of the seal.
- A request reaches the primary from the member that was asked; if it is not executed in time, that member tells all,
  each tells the primary, and each starts a timer of its own.

What a command says is opaque here, and so is who asked: `admits` decides whether a backup accepts a command from a
primary, for those whose clients sign what they ask.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import ClassVar

import msgspec

from nova.consensus.core import (
    Command,
    Epoch,
    Installed,
    Kind,
    Make,
    NotLeaderError,
    OverloadedError,
    ReadReady,
    SealedError,
    Snapshot,
    Status,
    checked_members,
    pack,
    pack_epoch,
    unpack,
)
from nova.consensus.pbft.auth import Authenticator
from nova.consensus.pbft.base import ACCEPT, DECIDED, PREPARED, STABLE, STATE, VIEW
from nova.consensus.pbft.catching_up import CatchingUp
from nova.consensus.pbft.evidence import Wrong
from nova.consensus.pbft.messages import (
    MESSAGES,
    Authentic,
    Body,
    Checkpoint,
    Commit,
    Entries,
    EntryAsk,
    NewView,
    Ordered,
    Prepare,
    PrePrepare,
    Request,
    SealVote,
    Signed,
    Stable,
    StateAsk,
    StateChunk,
    decode_barriers,
    decode_content,
    encode,
    seal_content,
    state_digest,
)
from nova.consensus.pbft.messages import Status as StatusMessage
from nova.consensus.pbft.views import newest_stable
from nova.consensus.snapshots import Pieces
from nova.errors import CorruptionError, NovaError, UsageError
from nova.types import NodeId, Outputs, Random

BARRIER_MAX = 1 << 62
"""Barriers are numbered below this, by chance: a primary cannot order one before it is asked for."""


class PBFT(CatchingUp):
    """A member; see `nova.consensus.core.Core`.

    authenticator  the keys of this member
    admits         whether a command may have come from a client; every one by default
    raises         UsageError for fewer than four members, a node that is none of them, or options that do not fit
    """

    ordered: ClassVar[bool] = True
    messages: ClassVar[tuple[type[msgspec.Struct], ...]] = MESSAGES

    def __init__(
        self,
        node: NodeId,
        epoch: Epoch,
        random: Random,
        now_ns: Callable[[], int],
        *,
        authenticator: Authenticator,
        admits: Callable[[Command], bool] | None = None,
    ) -> None:
        super().__init__(node, epoch, random, authenticator)
        self._admits = admits
        self._begin_ordering()
        self._begin_viewing()
        self._begin_catching_up()
        self._barrier: tuple[int, list[int]] | None = None  # the one that is under way: (number, reads)
        self._reads: list[int] = []  # those that came since
        self._passed: list[ReadReady] = []
        self._pieces = Pieces()
        self._restored: Snapshot | None = None
        self._installed: Snapshot | None = None

    # -- what others see --

    @property
    def leader(self) -> NodeId | None:
        return self.primary if self.active else None

    @property
    def term(self) -> int:
        """The view, under the name that all protocols share."""
        return self.view

    @property
    def committed(self) -> int:
        return self.executed

    @property
    def role(self) -> str:
        if self.sealed_at is not None:
            return "sealed"
        if not self.active:
            return "candidate"
        return "leader" if self.leads else "follower"

    @property
    def status(self) -> Status:
        last = max(self.slots, default=self.executed)
        return Status(
            self.node, "pbft", self.role, self.view, self.leader, self.executed, max(last, self.executed), self.members
        )

    # -- inputs --

    def step(self, sender: NodeId, message: Authentic) -> Outputs:
        """Take a message. What is not authentic, or not possible, is counted as evidence and changes nothing."""
        out = Outputs()
        body = self.opened(sender, message)
        if body is not None:
            self._heed(sender, body, out)
        return self._done(out)

    def _heed(self, sender: NodeId, body: Body, out: Outputs) -> None:
        match body:
            case PrePrepare():
                self._pre_prepared(sender, body, out)
            case Prepare() | Commit():
                self._voted(sender, body, out)
            case Request():
                self._requested(sender, body, out)
            case Checkpoint():
                self._checkpoint(sender, body, out)
            case Signed():
                self._signed_came(sender, body, out)
            case StatusMessage():
                self._status(sender, body, out)
            case Ordered():
                self._ordered(sender, body, out)
            case Stable():
                self._stable_came(sender, body, out)
            case EntryAsk():
                self._entries_asked(sender, body)
            case Entries():
                self._entries_came(body, out)
            case StateAsk():
                self._state_asked(sender, body)
            case StateChunk():
                self._state_came(sender, body, out)
            case SealVote():
                self._seal_vote(sender, body, out)

    def tick(self) -> Outputs:
        """Let a tick pass."""
        out = Outputs()
        self._tick_view(out)
        for _, waiting in self.requests:
            if waiting.kind == Kind.SEAL or waiting.told < self.options.request_ticks:
                continue
            waiting.told = 0
            if waiting.origin == self.node:
                self._say_all(Request(waiting.kind, waiting.data))
            elif self.active and not self.leads:
                self._say(self.primary, Request(waiting.kind, waiting.data))
        if self.leads:
            self._order_waiting(out)
        self._tick_status(out)
        return self._done(out)

    def advance(self, token: int) -> Outputs:
        """Everything up to this token is durable."""
        out = Outputs()
        self._durable_token = max(self._durable_token, token)
        while self._held and self._held[0][0] <= self._durable_token:
            _, peer, message = self._held.popleft()
            out.send.append((peer, message))
        self._own_commits(out)
        return self._done(out)

    def lead(self) -> Outputs:
        """Nothing: who leads a view is known from the start."""
        return Outputs()

    # -- proposals --

    def propose(self, entries: Sequence[tuple[Kind, bytes]]) -> Outputs:
        """Propose entries, in order. A backup that refuses them keeps them in mind: they have to be executed in time,
        or it gives the primary up."""
        self._check(entries)
        if self.sealed_at is not None:
            raise SealedError(f"epoch {self.epoch.number} ended at position {self.sealed_at}; ask its successor")
        if not self.leads:
            for kind, data in entries:
                if kind == Kind.COMMANDS:
                    self.requests.add_commands(self.node, unpack(data))
            raise NotLeaderError(self.node, self.leader)
        if self._sealing():
            raise SealedError(f"epoch {self.epoch.number} is about to end; ask its successor")
        last = self.mark.position + self.options.window
        if self._next + len(entries) - 1 > last:
            raise OverloadedError(
                f"positions up to {self._next - 1} are given and {len(entries)} more are too many; the limit is {last} "
                f"until the next checkpoint is stable: try again when it is",
                50_000_000,
            )
        out = Outputs()
        for kind, data in entries:
            if kind == Kind.COMMANDS and self._admits is not None:
                # Some were forwarded by others: a backup would refuse the whole entry for one of these.
                if not (admitted := [command for command in unpack(data) if self._admits(command)]):
                    continue
                data = pack(admitted)
            self._order(kind, data, out)
        return self._done(out)

    def _check(self, entries: Sequence[tuple[Kind, bytes]]) -> None:
        for kind, data in entries:
            if kind not in (Kind.COMMANDS, Kind.NOOP):
                raise UsageError(
                    f"an entry of kind {Kind(kind).name} cannot be proposed; members change with the epoch, by seal"
                )
            if kind == Kind.NOOP and data:
                raise UsageError(f"a no-op with {len(data)} bytes cannot be proposed; it has none")
            if len(data) > self.options.entry_bytes_max:
                raise UsageError(
                    f"an entry of {len(data)} bytes; the limit is {self.options.entry_bytes_max}: split the batch"
                )

    def _fits(self, message: PrePrepare) -> bool:
        if not super()._fits(message):
            return False
        if message.kind != Kind.COMMANDS or self._admits is None:
            return True
        return all(map(self._admits, unpack(message.data)))

    def _requested(self, sender: NodeId, message: Request, out: Outputs) -> None:
        """Another member tells of a request: it has to be executed in time here as well."""
        if self.sealed_at is not None or len(message.data) > self.options.entry_bytes_max:
            return
        try:
            if message.kind == Kind.COMMANDS:
                commands = unpack(message.data)
                if self._admits is not None and not all(map(self._admits, commands)):
                    self.evidence.count(sender, Wrong.CONTENT)
                    return
                new = self.requests.add_commands(sender, commands)
                data = pack(new)
            elif message.kind == Kind.NOOP:
                barriers = [(node, number) for node, number in decode_barriers(message.data) if node == sender]
                if len(barriers) != 1:
                    # Somebody else's barrier was passed on by a backup: only the primary needs to hear of it.
                    barriers = decode_barriers(message.data)[:1] if self.leads else []
                if not barriers or not self.requests.add_barrier(sender, *barriers[0]):
                    return
                new, data = [], message.data
            else:
                self.evidence.count(sender, Wrong.CONTENT)
                return
        except (NovaError, msgspec.MsgspecError, ValueError, OverflowError, RecursionError):
            self.evidence.count(sender, Wrong.MALFORMED)
            return
        if message.kind == Kind.COMMANDS and not new:
            return
        if self.leads:
            self._order_waiting(out)
        elif self.active and sender != self.primary:
            self._say(self.primary, Request(message.kind, data))

    # -- reads --

    def read(self, id: int) -> Outputs:
        """Ask for a position for a linearizable read: that of a barrier that is ordered after now."""
        if self.sealed_at is not None:
            raise SealedError(f"epoch {self.epoch.number} ended at position {self.sealed_at}; ask its successor")
        if len(self._reads) >= self.options.reads_max:
            raise OverloadedError(
                f"{len(self._reads)} reads wait here; the limit is {self.options.reads_max}: try again when some are "
                "answered",
                50_000_000,
            )
        out = Outputs()
        self._reads.append(id)
        if self._barrier is None:
            self._ask_barrier(out)
        return self._done(out)

    def _ask_barrier(self, out: Outputs) -> None:
        number = self._random.randrange(BARRIER_MAX)
        self._barrier = number, self._reads
        self._reads = []
        self.requests.add_barrier(self.node, self.node, number)
        if self.leads:
            self._order_waiting(out)
        elif self.active:
            self._say(self.primary, Request(Kind.NOOP, encode([(self.node, number)])))

    def _barrier_passed(self, number: int) -> None:
        if self._barrier is not None and self._barrier[0] == number:
            self._passed.append(ReadReady(tuple(self._barrier[1]), self.executed))
            self._barrier = None

    def _barriers_passed(self) -> list[object]:
        passed, self._passed = list(self._passed), []
        return [*passed]

    def _executed(self, out: Outputs) -> None:
        if self._reads and self._barrier is None and self.sealed_at is None:
            self._ask_barrier(out)

    # -- the end of the epoch --

    def seal(self, successor: Epoch) -> Outputs:
        """Ask for the end of this epoch, at any member. It ends when f + 1 (`seal_votes`) asked for the same one."""
        if successor.number != self.epoch.number + 1:
            raise UsageError(f"epoch {successor.number} can't follow epoch {self.epoch.number}")
        checked_members(self.node, successor)
        if self.sealed_at is not None:
            raise SealedError(f"epoch {self.epoch.number} ended at position {self.sealed_at}; ask its successor")
        out = Outputs()
        packed = pack_epoch(successor)
        vote = SealVote(packed, self._authenticator.sign(seal_content(self.epoch.number, packed)))
        self._seal_votes[self.node] = vote
        self._say_all(vote)
        self._seal_asked(out)
        return self._done(out)

    def _seal_vote(self, sender: NodeId, message: SealVote, out: Outputs) -> None:
        if self.sealed_at is not None or self._seal_votes.get(sender) == message:
            return
        if len(message.successor) > self.options.entry_bytes_max or not self._authenticator.verify(
            sender, seal_content(self.epoch.number, message.successor), message.signature
        ):
            self.evidence.count(sender, Wrong.SIGNATURE)
            return
        self._seal_votes[sender] = message
        self._seal_asked(out)

    def _seal_asked(self, out: Outputs) -> None:
        found = self._seal_wanted()
        if found is None:
            return
        self.requests.add(self.node, ("", 0, 0, found[0]), Kind.SEAL, found[0])
        if self.leads:
            self._order_waiting(out)

    def _seal_wanted(self) -> tuple[bytes, tuple[tuple[NodeId, bytes], ...]] | None:
        """A successor that enough members asked for, and their signatures."""
        votes = sorted(self._seal_votes.items())
        for successor in sorted({vote.successor for _, vote in votes}):
            proof = tuple((who, vote.signature) for who, vote in votes if vote.successor == successor)
            if len(proof) >= (self.options.seal_votes or self.f + 1):
                return successor, proof
        return None

    def _order_seal(self, out: Outputs) -> None:
        found = self._seal_wanted()
        if found is not None and self._room() and not self._sealing():
            successor, proof = found
            if self._fits(PrePrepare(self.view, 0, b"", Kind.SEAL, successor, proof)):
                self._order(Kind.SEAL, successor, out, proof)

    # -- snapshots --

    def snapshot(self, position: int, state: bytes) -> Snapshot:
        """What to keep in place of the entries up to an applied position: the state at the low mark, if it is held,
        since that is what others can be sent, and `compact` keeps what is behind it; else the one that is given."""
        if position > self.executed:
            raise UsageError(f"position {position} is not executed; {self.executed} is the last that is")
        held = self._states.get(self.low.position)
        if held is not None:
            return self._snapshot_of(self.low, held[1])
        return Snapshot(position, 0, self.seal_data if position == self.sealed_at else b"", state)

    def compact(self, snapshot: Snapshot) -> list[bytes]:
        """The records that recovery behind this snapshot begins with. What is behind the low mark stays."""
        records = [VIEW + encode((self.view, self.active, self._new_view if self.active else None))]
        if self.low.proof:
            records.append(STABLE + encode(self.low))
        for position, slot in sorted(self.slots.items()):
            slot.prune()
            entries = [(position, view, digest) for digest, view in sorted(slot.accepted.items(), key=_second)]
            if slot.last_prepared is not None:
                prepared = (position, *slot.last_prepared)
                # First and last: nothing that was accepted since may push its entry out, nor hide that it is prepared.
                records.append(ACCEPT + encode((*prepared, slot.contents[prepared[2]])))
                records.append(PREPARED + encode(prepared))
            records += [ACCEPT + encode((*entry, slot.contents[entry[2]])) for entry in entries]
            if slot.last_prepared is not None:
                records.append(PREPARED + encode(prepared))
            if slot.decided is not None:
                content = slot.contents[slot.decided]
                records.append(DECIDED + encode((position, max(slot.view, 0), slot.decided, content)))
        return records

    # -- recovery --

    def restore(self, snapshot: Snapshot) -> None:
        """Start from a snapshot."""
        self._restored = snapshot
        self.executed = snapshot.position
        self._next = snapshot.position + 1
        if snapshot.core:
            self.sealed_at, self.seal_data = snapshot.position, snapshot.core

    def replay(self, record: bytes) -> None:
        """Take a record back."""
        tag, data = record[:1], record[1:]
        try:
            if tag == VIEW:
                self._replay_view(*_unpack_view(data))
            elif tag == STABLE:
                self.low = self.mark = _unpack_stable(data)
            elif tag == STATE:
                snapshot = self._pieces.take(data)
                if snapshot is not None and snapshot.position > self.executed:
                    self._installed = snapshot
                    self.restore(snapshot)
            elif tag == PREPARED:
                position, view, digest = _unpack_prepared(data)
                slot = self._slot(position)
                slot.last_prepared = view, digest
                slot.prepared = (slot.view, slot.digest) == (view, digest)
            elif tag in (ACCEPT, DECIDED):
                self._replay_entry(tag, *_unpack_entry(data))
            else:
                raise CorruptionError(f"the log of {self.node} holds a record {tag!r} that is not pbft's")
        except (msgspec.MsgspecError, ValueError, KeyError) as error:
            raise CorruptionError(
                f"a record of {len(record)} bytes in the log of {self.node} is none: {error}"
            ) from None

    def _replay_view(self, view: int, active: bool, signed: Signed | None) -> None:
        self.view, self.active = view, active
        for slot in self.slots.values():
            slot.enter()
        self._new_view, self._chosen, self._covered = signed, (), 0
        if signed is None:
            return
        new_view = decode_content(signed.content)
        if isinstance(new_view, NewView):
            self._chosen = new_view.chosen
            stable = newest_stable(self._changes_known(new_view))
            self._covered = max([stable.position, *(position for position, _ in new_view.chosen)])

    def _replay_entry(
        self, tag: bytes, position: int, view: int, digest: bytes, content: tuple[Kind, bytes] | None
    ) -> None:
        slot = self._slot(position)
        if content is not None:
            slot.contents[digest] = content
        if digest not in slot.contents:
            raise CorruptionError(
                f"the log of {self.node} names an entry at position {position} that it does not hold: a part is lost"
            )
        slot.stored.add(digest)
        if tag == ACCEPT:
            slot.accept(view, digest, self.options.digests_max)
        else:
            slot.decided = digest

    def recovered(self) -> Outputs:
        """The log is at its end. What is decided behind the snapshot is told again."""
        out = Outputs()
        if self._installed is not None:
            out.apply.append(Installed(self._installed))
        if self._restored is not None and self.low.position == self._restored.position:
            packed = encode((self._restored.core, self._restored.state))
            if self.low.proof and state_digest(packed) != self.low.digest:
                raise CorruptionError(self._differs(self.low))
            self._states[self.low.position] = state_digest(packed), packed
        self._restored = self._installed = None
        self._execute(out)
        if self.executed < self.low.position:
            raise CorruptionError(
                f"the log of {self.node} ends at position {self.executed}, below its checkpoint at {self.low.position}"
            )
        for position in [position for position in self.slots if position <= self.low.position]:
            del self.slots[position]
        if self.active:
            self._recover_votes()
        self._next = max([self._covered, self.executed, *self._positions_of_view()]) + 1
        return self._done(out)

    def _positions_of_view(self) -> list[int]:
        return [position for position, slot in self.slots.items() if slot.view == self.view]

    def _recover_votes(self) -> None:
        """What was promised in this view was: our own votes count, and what the new view chose is still wanted."""
        for position, digest in self._chosen:
            if self._within(position) and self._slot(position).view != self.view:
                self._slot(position).wanted = digest
        for slot in self.slots.values():
            if slot.view != self.view:
                slot.prepared = False
                continue
            if self.primary != self.node:
                slot.prepares[self.node] = slot.digest
            if slot.prepared:
                slot.commits[self.node] = slot.digest


def _second(pair: tuple[bytes, int]) -> int:
    return pair[1]


_unpack_view = msgspec.msgpack.Decoder(tuple[int, bool, Signed | None]).decode
_unpack_stable = msgspec.msgpack.Decoder(Stable).decode
_unpack_prepared = msgspec.msgpack.Decoder(tuple[int, int, bytes]).decode
_unpack_entry = msgspec.msgpack.Decoder(tuple[int, int, bytes, tuple[Kind, bytes] | None]).decode


def maker(
    authenticators: Callable[[NodeId, Epoch], Authenticator], admits: Callable[[Command], bool] | None = None
) -> Make:
    """How PBFT is registered: `authenticators` gives a member its keys for an epoch when it first needs them. A core is
    also made to see whether an epoch could be, perhaps of a member whose keys are elsewhere."""

    def make(node: NodeId, epoch: Epoch, random: Random, now_ns: Callable[[], int]) -> PBFT:
        late = _Late(lambda: authenticators(node, epoch))
        return PBFT(node, epoch, random, now_ns, authenticator=late, admits=admits)

    return make


class _Late:
    """Keys that are fetched when they are first needed."""

    def __init__(self, fetch: Callable[[], Authenticator]) -> None:
        self._fetch = fetch

    @cached_property
    def _keys(self) -> Authenticator:
        return self._fetch()

    def mac(self, peer: NodeId, data: bytes) -> bytes:
        return self._keys.mac(peer, data)

    def check(self, peer: NodeId, data: bytes, mac: bytes) -> bool:
        return self._keys.check(peer, data, mac)

    def sign(self, data: bytes) -> bytes:
        return self._keys.sign(data)

    def verify(self, signer: NodeId, data: bytes, signature: bytes) -> bool:
        return self._keys.verify(signer, data, signature)


__all__ = ["PBFT", "maker"]
