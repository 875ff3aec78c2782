"""What must hold of a PBFT group after every event, asked of those members that do not lie.

By the numbers of docs/explanation/consensus.md: I4, I6, I7 and I9; and that no two of them prepare different entries
for one view and position (Castro & Liskov 1999, 4.2: the invariant on which all the rest stands).
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple

from nova.consensus.pbft.slots import Slot
from nova.sim.changes import Watched
from nova.types import NodeId

if TYPE_CHECKING:
    from nova.sim.group import Group, GroupMember


class _Life(NamedTuple):
    core: Any
    executed: int


class PBFTInvariants:
    """For groups of `nova.consensus.pbft.PBFT`."""

    def __init__(self) -> None:
        self._prepared: dict[tuple[int, int], tuple[bytes, NodeId]] = {}
        self._kept: dict[NodeId, tuple[int, int]] = {}  # node -> (view, low mark) that its disk has
        self._lives: dict[NodeId, _Life] = {}
        self._digests: dict[int, tuple[int, NodeId]] = {}
        self._seen: dict[NodeId, dict[int, tuple[int, bytes]]] = {}
        self._syncing: dict[NodeId, deque[tuple[int, int]]] = {}  # (token, position) that are not durable yet
        self._durable: dict[int, set[NodeId]] = {}  # position -> who has on its disk that it prepared it
        self._reported: set[int] = set()

    def __call__(self, group: Group) -> None:
        touched = group.world.touched
        for member in group.world if touched is None else group.world.running(touched):
            if member.replica.node not in group.liars:
                self._member(member)
        if len(group.decided) > len(self._reported):
            for position in group.decided.keys() - self._reported:
                self._stored(group, position)
            self._reported |= group.decided.keys()

    def _member(self, member: GroupMember) -> None:
        core, node = member.core, member.replica.node
        life = self._lives.get(node)
        if life is None or life.core is not core:
            life = None
        else:
            assert core.executed >= life.executed, f"I6: {node} went from {life.executed} to {core.executed}"
        view, low = self._kept.get(node, (0, 0))
        assert core.view >= view, f"I6: {node} went from view {view} to {core.view}"
        assert core.low.position >= low, f"I6: {node} went from the stable checkpoint {low} to {core.low.position}"
        if core._token == core._durable_token:
            self._kept[node] = core.view, core.low.position
        if life is None:
            self._syncing[node] = deque()
            self._seen[node] = {}
            core.slots = Watched(core.slots, Slot)
        for slot in core.slots.changed():
            self._slot(node, core, slot)
        syncing = self._syncing[node]
        while syncing and syncing[0][0] <= core._durable_token:
            self._durable.setdefault(syncing.popleft()[1], set()).add(node)
        self._lives[node] = _Life(core, core.executed)
        position, digest = member.replica.applied_position, member.values.digest
        state, other = self._digests.setdefault(position, (digest, node))
        assert digest == state, f"I7: {node} and {other} applied up to {position} and hold different states"
        options = core.options
        assert len(core.slots) <= 2 * options.window, f"I9: {node} keeps {len(core.slots)} positions"
        assert len(core._changes) <= len(core.members), f"I9: {node} keeps {len(core._changes)} view changes"
        kept = max(map(len, core._votes.values()))
        assert kept <= options.checkpoints_max, f"I9: {node} keeps {kept} checkpoints of one member"

    def _slot(self, node: NodeId, core: Any, slot: Any) -> None:
        if slot.last_prepared is None or self._seen[node].get(slot.position) == slot.last_prepared:
            return
        view, digest = self._seen[node][slot.position] = slot.last_prepared
        self._syncing[node].append((core._token, slot.position))
        first, other = self._prepared.setdefault((view, slot.position), (digest, node))
        assert first == digest, (
            f"{other} and {node} prepared different entries for view {view}, position {slot.position}"
        )

    def _stored(self, group: Group, position: int) -> None:
        """I4: what is reported for the first time is on the disks of a quorum; a liar may say so of its own."""
        core = group.members()[0].core
        have = self._durable.get(position, set())
        assert len(have) + len(group.liars) >= core.quorum, (
            f"I4: position {position} was reported committed and is durable at {sorted(have)}"
        )
