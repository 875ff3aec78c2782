"""How a member gets what it missed: commits from those who have them, or a snapshot from who has forgotten them.

Members tell each other now and then up to where they executed. One that is behind asks for the commits; whoever has
executed and forgotten an instance says that it is gone, and is asked for a snapshot then, chunk by chunk. A snapshot
replaces what was executed here; what it lacks and is in memory is executed once more on top of it.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from nova.consensus.core import Installed, Snapshot
from nova.consensus.epaxos.conflicts import Plain
from nova.consensus.epaxos.execution import Graph
from nova.consensus.epaxos.instances import Executed, Id, Instance, Status
from nova.consensus.epaxos.messages import Beat, Commit, Fetch, Gone, SnapshotAsk, SnapshotChunk
from nova.consensus.epaxos.recovery import Recovery
from nova.consensus.epaxos.replica import SNAPSHOT
from nova.consensus.raft.incoming import Incoming, Pieces, pack_snapshot, pieces, unpack_snapshot
from nova.errors import CorruptionError, PeerError
from nova.types import NodeId, Outputs

PULL_TICKS = 100
"""A peer that sends no chunk for so long is given up."""


class _Pull:
    __slots__ = ("incoming", "peer", "quiet")

    def __init__(self, peer: NodeId) -> None:
        self.peer = peer
        self.incoming = Incoming(0, 0, 0)
        self.quiet = 0


class CatchUp(Recovery):
    """The part of a member that helps others, and itself, to what was missed."""

    _published: tuple[int, ...] = ()
    _unpublished: tuple[int, tuple[int, ...]] | None = None
    _pull: _Pull | None = None
    _snapshot: Snapshot | None = None
    _snapshot_bytes = b""
    _snapshot_executed: Executed | None = None
    _installed: Snapshot | None = None

    snapshot_wanted = False
    """A peer needs a newer snapshot than there is: the driver may make one although little was applied since."""

    def _begin_catchup(self) -> None:
        self._published = (0,) * self.count
        self._frontiers = dict.fromkeys(self._peers, (0,) * self.count)
        self._forgotten = Executed(self.count)  # what we could not execute a second time
        self._pieces = Pieces()

    # -- commits --

    def _beat(self, out: Outputs) -> None:
        # What a crash could take back is not executed: others drop what all have executed.
        if self._unpublished is not None and self._unpublished[0] <= self._durable_token:
            self._published, self._unpublished = self._unpublished[1], None
        if self._unpublished is None:
            self._unpublished = (self._token, tuple(self.executed.frontier))
        known = tuple(self.graph.newest(owner) for owner in range(self.count))
        out.early += [(peer, Beat(self._published, known)) for peer in self._peers]
        for owner in range(self.count):
            self._want((owner, number) for number in self.graph.blanks(owner, self.options.fetch_max))

    def _on_beat(self, sender: NodeId, message: Beat, out: Outputs) -> None:
        if len(message.executed) != self.count or len(message.known) != self.count:
            raise PeerError(f"{sender} sent marks for {len(message.executed)} members; there are {self.count}")
        before = self._frontiers[sender]
        self._frontiers[sender] = tuple(max(pair) for pair in zip(before, message.executed, strict=True))
        missed: list[Id] = []
        for owner in range(self.count):
            frontier = self.executed.frontier[owner]
            last = min(max(message.known[owner], message.executed[owner]), frontier + self.options.window)
            self.graph.heard(owner, last)
            for number in range(frontier + 1, min(message.executed[owner], last) + 1):
                if len(missed) >= self.options.fetch_max:
                    break
                id = (owner, number)
                instance = self.instances.get(id)
                if id not in self.executed and (instance is None or instance.status < Status.COMMITTED):
                    missed.append(id)
        if missed:
            out.early.append((sender, Fetch(tuple(missed))))

    def _on_fetch(self, sender: NodeId, message: Fetch, out: Outputs) -> None:
        for id in message.ids[: self.options.fetch_max]:
            self._known(id)
            instance = self.instances.get(id)
            if instance is None:
                if id in self.executed:
                    out.early.append((sender, Gone(id)))
                    return
            elif instance.status >= Status.COMMITTED:
                self._answer_commit(sender, instance)

    def _on_commit(self, sender: NodeId, message: Commit, out: Outputs) -> None:
        value = self._checked(message.value)
        if not self._known(message.id):
            return
        instance = self.instances.get(message.id)
        if instance is None:
            if message.id in self.executed:
                return
            instance = self._instance(message.id)
        self._commit(instance, value, out)

    # -- snapshots --

    def _on_gone(self, sender: NodeId, message: Gone, out: Outputs) -> None:
        self._known(message.id)
        if message.id not in self.executed and self._pull is None:
            self._pull = _Pull(sender)
            self._ask(out)

    def _ask(self, out: Outputs) -> None:
        pull = self._pull
        assert pull is not None
        packed = _pack(self._forgotten.plain())
        out.early.append((pull.peer, SnapshotAsk(packed, pull.incoming.name[:2], len(pull.incoming.data))))

    def _tick_pull(self, out: Outputs) -> None:
        if (pull := self._pull) is None:
            return
        pull.quiet += 1
        if pull.quiet >= PULL_TICKS:
            self._pull = None
        elif pull.quiet % self.options.resend_ticks == 0:
            self._ask(out)

    def _on_ask(self, sender: NodeId, message: SnapshotAsk, out: Outputs) -> None:
        snapshot = self._snapshot
        if snapshot is None or self._snapshot_executed is None:
            self.snapshot_wanted = True
            return
        offset = message.offset
        if message.name != (snapshot.position, snapshot.term):
            try:
                executed = Executed.of(*_unpack_executed(message.executed))
            except (msgspec.MsgspecError, ValueError) as error:
                raise PeerError(f"{sender} asks for a snapshot behind nothing that can be: {error}") from None
            if len(executed.frontier) != self.count or not self._snapshot_executed.covers(executed):
                self.snapshot_wanted = True
                return
            offset = 0
        if not self._snapshot_bytes:
            self._snapshot_bytes = pack_snapshot(snapshot)
        total = len(self._snapshot_bytes)
        if 0 <= offset < total:
            data = self._snapshot_bytes[offset : offset + self.options.chunk_bytes]
            out.early.append((sender, SnapshotChunk((snapshot.position, snapshot.term), offset, total, data)))

    def _on_chunk(self, sender: NodeId, message: SnapshotChunk, out: Outputs) -> None:
        pull = self._pull
        if pull is None or pull.peer != sender:
            return
        name = (*message.name, message.total)
        if pull.incoming.name != name:
            if message.offset:
                return
            pull.incoming = Incoming(*name)
        before = len(pull.incoming.data)
        whole = pull.incoming.take(message.offset, message.data)
        if len(pull.incoming.data) == before:
            return
        pull.quiet = 0
        if not whole:
            self._ask(out)
            return
        packed = bytes(pull.incoming.data)
        self._pull = None
        try:
            snapshot = unpack_snapshot(packed)
            executed = _unpack_core(snapshot.core)[0]
        except (CorruptionError, msgspec.MsgspecError, ValueError):
            return
        if not Executed.of(*executed).covers(self._forgotten):
            return  # the next one will
        out.persist += [SNAPSHOT + piece for piece in pieces(packed)]
        out.apply.append(Installed(snapshot))
        again = self._adopt(snapshot)
        self._told(again, out)
        self._execute_all(out)

    def _adopt(self, snapshot: Snapshot) -> list[Instance]:
        """Be where the snapshot is, and execute again what was executed here beyond it: in the same order.

        By its dependencies alone it could come in another one: where others have dropped what everybody executed,
        some may depend on nothing but having been committed later (the end of the argument in recovery.py).
        """
        try:
            executed, conflicts, self.sealed = _unpack_core(snapshot.core)
        except (msgspec.MsgspecError, ValueError) as error:
            raise CorruptionError(f"a snapshot of {self.node} holds no executed instances: {error}") from None
        self.executed = Executed.of(*executed)
        self._forgotten = Executed.of(*executed)
        self.conflicts.merge(conflicts)
        newest = [self.graph.newest(owner) for owner in range(self.count)]
        self.graph = Graph(self.count, self.executed, self.conflicts)
        self._next = max(self._next, self.executed.last(self._me) + 1)
        again = [instance for instance in self._recent if instance.id not in self.executed]
        self._recent.clear()
        for instance in list(self.instances.values()):
            if instance.id in self.executed:
                self._drop(instance.id)
                continue
            instance.status = min(instance.status, Status.COMMITTED)
            if instance.known:
                self.graph.know(instance)
        for owner, number in enumerate(newest):
            self.graph.heard(owner, number)
        for instance in again:
            self.graph.repeat(instance)
        self._keep(snapshot)
        return again

    def _drop(self, id: Id) -> None:
        self.instances.pop(id, None)
        self._proposed.discard(id)
        self._waits.discard(id)
        if self._fence is not None and self._fence[0] == id:
            self._reads[:0] = self._fence[1]
            self._fence = None

    def _execute_all(self, out: Outputs) -> None:
        self._execute([each for each in self.instances.values() if each.status == Status.COMMITTED], out)

    def _keep(self, snapshot: Snapshot) -> None:
        """The snapshot that peers may have."""
        self._snapshot, self._snapshot_bytes = snapshot, b""
        self._snapshot_executed = Executed.of(*_unpack_core(snapshot.core)[0])
        self.snapshot_wanted = False

    def snapshot(self, position: int, state: bytes) -> Snapshot:
        """What to keep in place of everything that was executed; `position` says nothing here."""
        core = _pack((self.executed.plain(), self.conflicts.plain(), self.sealed))
        last = max((self._position((owner, self.executed.last(owner))) for owner in self._executing()), default=0)
        return Snapshot(max(last, self.epoch.start - 1), len(self.executed), core, state)

    def _executing(self) -> Iterable[int]:
        return (owner for owner in range(self.count) if self.executed.last(owner))

    def compact(self, snapshot: Snapshot) -> list[bytes]:
        """Forget what the snapshot covers, but for the trailing instances; the records that recovery begins with."""
        # What is not in the snapshot before this one is new, and may be under way to peers: keep that in any case.
        covered, recent = self._snapshot_executed, self._recent
        while covered is not None and len(recent) > self.options.trailing and recent[0].id in covered:
            id = recent.popleft().id
            self._forgotten.add(id)
            self.instances.pop(id, None)
        self._keep(snapshot)
        stable = [min(marks) for marks in zip(self._published, *self._frontiers.values(), strict=True)]
        self.conflicts.prune(stable, self.executed.frontier)
        return [b"I" + each.record() for each in self.instances.values() if each.status < Status.EXECUTED]


_pack = msgspec.msgpack.Encoder().encode
_Sets = tuple[list[int], list[list[int]]]
_unpack_executed = msgspec.msgpack.Decoder(_Sets).decode
_unpack_core = msgspec.msgpack.Decoder(tuple[_Sets, Plain, bool]).decode

__all__ = ["CatchUp"]
