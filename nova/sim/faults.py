"""What can go wrong, as data: one vocabulary for the simulator and for chaos on real processes.

A plan is a list of faults in order of time. It can be drawn (`random_plan`), written down and read again (`dump_plan`,
`load_plan`), and taken apart until only what matters is left (`nova.sim.shrink`). Drawn plans are swarms (Groce, Zhang,
Eide, Chen & Regehr 2012, "Swarm testing"): each leaves some kinds of faults out and is rough or gentle in its own way,
since a kind that is always there hides what only happens in its absence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from math import log
from typing import Annotated, Final

import msgspec

from nova.errors import UsageError
from nova.types import NodeId, Random

Instant = Annotated[int, msgspec.Meta(ge=0)]
"""Nanoseconds from the beginning of the plan."""
Delay = Annotated[int, msgspec.Meta(ge=0)]
"""Nanoseconds."""
Ratio = Annotated[float, msgspec.Meta(ge=0, le=1)]


class Partition(msgspec.Struct, frozen=True, tag="partition"):
    """No message passes between the groups."""

    at_ns: Instant
    groups: list[list[NodeId]]


class Cut(msgspec.Struct, frozen=True, tag="cut"):
    """No message passes from source to target; the other direction stays."""

    at_ns: Instant
    source: NodeId
    target: NodeId


class Heal(msgspec.Struct, frozen=True, tag="heal"):
    """All links work again, at their own speed, order and loss."""

    at_ns: Instant


class Crash(msgspec.Struct, frozen=True, tag="crash"):
    """The node stops; what it had not synced is lost or torn."""

    at_ns: Instant
    node: NodeId


class Restart(msgspec.Struct, frozen=True, tag="restart"):
    """The node starts again from its disk."""

    at_ns: Instant
    node: NodeId


class Pause(msgspec.Struct, frozen=True, tag="pause"):
    """The node's process stands still, as by SIGSTOP: it keeps its state, and sees neither time, messages nor disk."""

    at_ns: Instant
    node: NodeId


class Resume(msgspec.Struct, frozen=True, tag="resume"):
    """The paused process goes on: all that waited for it arrives at once, and it does not know that time has passed."""

    at_ns: Instant
    node: NodeId


class Loss(msgspec.Struct, frozen=True, tag="loss"):
    """Every link loses this share more."""

    at_ns: Instant
    ratio: Ratio


class Duplicate(msgspec.Struct, frozen=True, tag="duplicate"):
    """Every link delivers this share more twice."""

    at_ns: Instant
    ratio: Ratio


class Reorder(msgspec.Struct, frozen=True, tag="reorder"):
    """Every link lets this share more overtake, or be overtaken."""

    at_ns: Instant
    ratio: Ratio


class SlowNode(msgspec.Struct, frozen=True, tag="slow_node"):
    """The node takes this much longer to see each message."""

    at_ns: Instant
    node: NodeId
    delay_ns: Delay


class SlowDisk(msgspec.Struct, frozen=True, tag="slow_disk"):
    """Each sync of this node takes this much longer; 0 mends it."""

    at_ns: Instant
    node: NodeId
    delay_ns: Delay


class FullDisk(msgspec.Struct, frozen=True, tag="full_disk"):
    """No write of this node reaches its disk until `full` is False again; one that tries to write stops."""

    at_ns: Instant
    node: NodeId
    full: bool = True


class ClockSkew(msgspec.Struct, frozen=True, tag="clock_skew"):
    """The node's wall clock is off by this much."""

    at_ns: Instant
    node: NodeId
    skew_ns: int


class Change(msgspec.Struct, frozen=True, tag="change"):
    """An operator asks whoever believes to lead for these members. It may be refused."""

    at_ns: Instant
    voters: list[NodeId]
    learners: list[NodeId] = []


class Transfer(msgspec.Struct, frozen=True, tag="transfer"):
    """An operator asks whoever believes to lead to hand leadership over. It may be refused."""

    at_ns: Instant
    target: NodeId


Operation = Change | Transfer
"""What operators do; only a world that knows how takes it."""

Fault = (
    Partition | Cut | Heal | Crash | Restart | Pause | Resume | Loss | Duplicate | Reorder | SlowNode | SlowDisk
    | FullDisk | ClockSkew | Change | Transfer
)  # fmt: skip

SECOND = 1_000_000_000


# ------------------------------------------------------------------------------------------------ on paper

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(list[Fault]).decode


def dump_plan(plan: Iterable[Fault]) -> str:
    """A plan as a JSON array, one fault a line."""
    return "[\n" + ",\n".join("  " + _encode(fault).decode() for fault in plan) + "\n]\n"


def load_plan(text: str | bytes, where: str = "a plan") -> list[Fault]:
    """A plan of `dump_plan`, or written by hand, in any order. Raises UsageError that says where it is wrong."""
    try:
        plan = _decode(text)
    except (msgspec.MsgspecError, ValueError) as error:
        raise UsageError(f"{where} is no array of faults: {error}") from None
    return sorted(plan, key=lambda fault: fault.at_ns)


def check_plan(plan: Iterable[Fault], nodes: Iterable[NodeId]) -> None:
    """Raises UsageError if a fault names a node that is not there."""
    known = set(nodes)
    for fault in plan:
        unknown = sorted(_named(fault) - known)
        if unknown:
            raise UsageError(
                f"{type(fault).__name__} at {fault.at_ns} ns names {unknown[0]!r}; the nodes are {sorted(known)}"
            )


def _named(fault: Fault) -> set[NodeId]:
    match fault:
        case Partition(groups=groups):
            return {node for group in groups for node in group}
        case Cut(source=source, target=target):
            return {source, target}
        case Change(voters=voters, learners=learners):
            return {*voters, *learners}
        case Transfer(target=target):
            return {target}
        case Heal() | Loss() | Duplicate() | Reorder():
            return set()
    return {fault.node}


# ------------------------------------------------------------------------------------------------ by chance

KINDS: Final = (
    "partition", "cut", "loss", "duplicate", "reorder", "crash", "pause", "slow_node", "slow_disk", "full_disk",
    "clock_skew",
)  # fmt: skip
"""Kinds of faults that are drawn."""
OPERATIONS: Final = ("change", "transfer")
"""Kinds of operations, for those who can be operated."""


class Swarm(msgspec.Struct, frozen=True):
    """The kinds that one plan is made of, and how rough it is.

    length_ns_mean  how long a fault lasts, exponentially distributed
    ratio_max       of messages that are lost, doubled or out of order in a burst
    delay_ns_max    of slow nodes and disks
    """

    kinds: tuple[str, ...]
    length_ns_mean: int
    ratio_max: float
    delay_ns_max: int


def random_swarm(random: Random, duration_ns: int, kinds: Sequence[str] = KINDS) -> Swarm:
    """Each kind is in or out by a fair coin; at least one is in."""
    chosen = tuple(kind for kind in kinds if random.random() < 0.5)
    return Swarm(
        chosen or (kinds[random.randrange(len(kinds))],),
        duration_ns // (200, 40, 10, 4)[random.randrange(4)],
        (0.05, 0.2, 0.5)[random.randrange(3)],
        duration_ns // (400, 100, 20)[random.randrange(3)],
    )


def random_plan(
    random: Random,
    nodes: Sequence[NodeId],
    duration_ns: int,
    *,
    faults: int = 6,
    kinds: Sequence[str] = KINDS,
    skew_ns_max: int = SECOND,
    members: Sequence[NodeId] = (),
) -> list[Fault]:
    """`faults` faults of a random swarm, each with its end; when `duration_ns` is over everything is mended and runs.

    kinds    to choose from; clocks are left alone if `skew_ns_max` is 0
    members  who votes at the beginning, if `kinds` has operations
    """
    swarm = random_swarm(random, duration_ns, [kind for kind in kinds if kind != "clock_skew" or skew_ns_max])
    draw = _Draw(random, nodes, swarm, skew_ns_max, members or nodes)
    plan: list[Fault] = []
    for at in sorted(random.randrange(duration_ns) for _ in range(faults)):
        end = min(duration_ns, at + 1 + int(-log(1.0 - random.random()) * swarm.length_ns_mean))
        plan += getattr(draw, swarm.kinds[random.randrange(len(swarm.kinds))])(at, end)
    plan.sort(key=lambda fault: fault.at_ns)
    plan.append(Heal(duration_ns))
    return plan


class _Draw:
    """One method a kind: the faults from `at` to `end`."""

    def __init__(
        self, random: Random, nodes: Sequence[NodeId], swarm: Swarm, skew_ns_max: int, members: Sequence[NodeId]
    ) -> None:
        self._random, self._nodes, self._swarm, self._skew_ns_max = random, list(nodes), swarm, skew_ns_max
        self._voters, self._learners = sorted(members), list[NodeId]()

    def _node(self, among: Sequence[NodeId] = ()) -> NodeId:
        nodes = among or self._nodes
        return nodes[self._random.randrange(len(nodes))]

    def _burst(self, kind: Callable[[int, float], Fault], at: int, end: int) -> list[Fault]:
        return [kind(at, self._swarm.ratio_max * self._random.random()), kind(end, 0.0)]

    def _delay(self) -> int:
        return self._random.randrange(1 + self._swarm.delay_ns_max)

    def partition(self, at: int, end: int) -> list[Fault]:
        if len(self._nodes) < 2:
            return []
        shuffled = list(self._nodes)
        self._random.shuffle(shuffled)
        middle = self._random.randrange(1, len(shuffled))
        return [Partition(at, [shuffled[:middle], shuffled[middle:]]), Heal(end)]

    def cut(self, at: int, end: int) -> list[Fault]:
        """One link in one direction; or a node that nobody hears, or that hears nobody."""
        node, others = self._node(), list(self._nodes)
        others.remove(node)
        if not others:
            return []
        what = self._random.randrange(3)
        if what == 0:
            return [Cut(at, node, self._node(others)), Heal(end)]
        return [*(Cut(at, node, peer) if what == 1 else Cut(at, peer, node) for peer in others), Heal(end)]

    def loss(self, at: int, end: int) -> list[Fault]:
        return self._burst(Loss, at, end)

    def duplicate(self, at: int, end: int) -> list[Fault]:
        return self._burst(Duplicate, at, end)

    def reorder(self, at: int, end: int) -> list[Fault]:
        return self._burst(Reorder, at, end)

    def crash(self, at: int, end: int) -> list[Fault]:
        node = self._node()
        return [Crash(at, node), Restart(end, node)]

    def pause(self, at: int, end: int) -> list[Fault]:
        node = self._node()
        return [Pause(at, node), Resume(end, node)]

    def slow_node(self, at: int, end: int) -> list[Fault]:
        node = self._node()
        return [SlowNode(at, node, self._delay()), SlowNode(end, node, 0)]

    def slow_disk(self, at: int, end: int) -> list[Fault]:
        node = self._node()
        return [SlowDisk(at, node, self._delay()), SlowDisk(end, node, 0)]

    def full_disk(self, at: int, end: int) -> list[Fault]:
        """When there is room again somebody starts the node, should it have stopped."""
        node = self._node()
        return [FullDisk(at, node), FullDisk(end, node, False), Restart(end, node)]

    def clock_skew(self, at: int, end: int) -> list[Fault]:
        return [ClockSkew(at, self._node(), self._random.randrange(-self._skew_ns_max, self._skew_ns_max + 1))]

    def transfer(self, at: int, end: int) -> list[Fault]:
        return [Transfer(at, self._node())]

    def change(self, at: int, end: int) -> list[Fault]:
        """As if each had been granted: add a learner, promote one, remove somebody, or replace several at once."""
        voters, learners = self._voters, self._learners
        spares = [node for node in self._nodes if node not in voters and node not in learners]
        what = self._random.randrange(4)
        if what == 0 and spares:
            learners = sorted([*learners, self._node(spares)])
        elif what == 1 and learners:
            node = self._node(learners)
            voters, learners = sorted([*voters, node]), [other for other in learners if other != node]
        elif what == 2 and len(voters) + len(learners) > 1:
            node = self._node(voters + learners)
            if voters == [node]:
                return []
            voters = [other for other in voters if other != node]
            learners = [other for other in learners if other != node]
        else:
            voters = sorted(self._random.sample(self._nodes, self._random.randrange(1, len(self._nodes) + 1)))
            learners = [node for node in learners if node not in voters]
        self._voters, self._learners = voters, learners
        return [Change(at, list(voters), list(learners))]


__all__ = [
    "KINDS", "OPERATIONS", "SECOND", "Change", "ClockSkew", "Crash", "Cut", "Duplicate", "Fault", "FullDisk", "Heal",
    "Loss", "Operation", "Partition", "Pause", "Reorder", "Restart", "Resume", "SlowDisk", "SlowNode", "Swarm",
    "Transfer", "check_plan", "dump_plan", "load_plan", "random_plan", "random_swarm",
]  # fmt: skip
