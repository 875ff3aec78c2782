"""What can go wrong, as data: one vocabulary for the simulator and for chaos on real processes."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from nova.types import NodeId, Random


class Partition(msgspec.Struct, frozen=True, tag="partition"):
    """No message passes between the groups."""

    at_ns: int
    groups: list[list[NodeId]]


class Cut(msgspec.Struct, frozen=True, tag="cut"):
    """No message passes from source to target; the other direction stays."""

    at_ns: int
    source: NodeId
    target: NodeId


class Heal(msgspec.Struct, frozen=True, tag="heal"):
    """All links work again, at their own speed and loss."""

    at_ns: int


class Crash(msgspec.Struct, frozen=True, tag="crash"):
    """The node stops; what it had not synced is lost or torn."""

    at_ns: int
    node: NodeId


class Restart(msgspec.Struct, frozen=True, tag="restart"):
    """A stopped node starts from what its disk holds."""

    at_ns: int
    node: NodeId


class Loss(msgspec.Struct, frozen=True, tag="loss"):
    """Every link loses this share more."""

    at_ns: int
    ratio: float


class SlowNode(msgspec.Struct, frozen=True, tag="slow_node"):
    """The node takes this much longer to see each message."""

    at_ns: int
    node: NodeId
    delay_ns: int


class SlowDisk(msgspec.Struct, frozen=True, tag="slow_disk"):
    """Each sync of this node takes this much longer; 0 mends it."""

    at_ns: int
    node: NodeId
    delay_ns: int


class ClockSkew(msgspec.Struct, frozen=True, tag="clock_skew"):
    """The node's wall clock is off by this much."""

    at_ns: int
    node: NodeId
    skew_ns: int


Fault = Partition | Cut | Heal | Crash | Restart | Loss | SlowNode | SlowDisk | ClockSkew

SECOND = 1_000_000_000


def random_plan(
    random: Random,
    nodes: Sequence[NodeId],
    duration_ns: int,
    *,
    faults: int = 6,
    crashes: bool = True,
    skew_ns_max: int = SECOND,
) -> list[Fault]:
    """`faults` faults in order of time over `duration_ns`; at its end everything is mended and everybody runs."""
    plan: list[Fault] = []
    down: set[NodeId] = set()
    for at in sorted(random.randrange(duration_ns) for _ in range(faults)):
        node = nodes[random.randrange(len(nodes))]
        match random.randrange(8):
            case 0 | 1 if len(nodes) > 1:
                shuffled = list(nodes)
                random.shuffle(shuffled)
                middle = random.randrange(1, len(nodes))
                plan.append(Partition(at, [shuffled[:middle], shuffled[middle:]]))
            case 2 if len(nodes) > 1:
                source, target = random.sample(list(nodes), 2)
                plan.append(Cut(at, source, target))
            case 3:
                plan.append(Loss(at, 0.4 * random.random()))
            case 4 | 5 if crashes:
                if node in down:
                    down.discard(node)
                    plan.append(Restart(at, node))
                else:
                    down.add(node)
                    plan.append(Crash(at, node))
            case 6:
                plan.append(SlowDisk(at, node, random.randrange(SECOND // 5)))
            case 7:
                plan.append(ClockSkew(at, node, random.randrange(-skew_ns_max, skew_ns_max + 1)))
            case _:
                plan.append(Heal(at))
    plan += (Restart(duration_ns, node) for node in sorted(down))
    plan += (SlowDisk(duration_ns, fault.node, 0) for fault in list(plan) if isinstance(fault, SlowDisk))
    plan.append(Heal(duration_ns))
    return plan
