"""What other nodes promise of keys, beside what this node is configured for.

All nodes of a cluster need the same classes. One that has others, or none, would take eventual writes of keys that a
group orders elsewhere, and would show nothing of what the group has. Members tell each other their classes; where they
differ, the side that promises less refuses the key, and says whose configuration to look at.
"""

from __future__ import annotations

from collections.abc import Mapping

from nova.errors import ConfigError
from nova.store.classes import KeyClass, KeyClasses
from nova.sync.membership import Member
from nova.types import NodeId


class Agreement:
    """The classes of this node, held against those that others told.

    node     this one
    classes  prefix -> class, as it is configured
    """

    def __init__(self, node: NodeId, classes: Mapping[str, str]) -> None:
        self._node, self._mine = node, KeyClasses(classes)
        self._others: dict[NodeId, KeyClasses] = {}
        self.differs = False
        """Some node has other classes, and an order for some keys: ask `check` before such a key is touched."""

    def __len__(self) -> int:
        """How many nodes have other classes."""
        return len(self._others)

    def heard(self, members: Mapping[NodeId, Member]) -> list[str]:
        """Take what the members say now; a line for each whose classes are found to differ.

        A node that is dead counts, for its keys are; one that left does not, nor one of a release that tells nothing.
        """
        told = {
            node: member.classes
            for node, member in members.items()
            if node != self._node and member.state != "left" and member.classes is not None
        }
        others: dict[NodeId, KeyClasses] = {}
        lines = []
        for node, classes in sorted(told.items()):
            plain = dict(classes)
            if plain == self._mine.plain():
                continue
            known = self._others.get(node)
            try:
                others[node] = known if known is not None and known.plain() == plain else KeyClasses(plain)
            except ConfigError as error:  # of a release that knows more of them
                lines.append(f"{node} tells classes that this release does not know: it {error}")
                continue
            if others[node] is not known:
                lines.append(
                    f"{node} has the classes {_shown(plain)}, and this node {_shown(self._mine.plain())}: what is "
                    "ordered at one is refused at the other; give all nodes the same [classes], and start those anew "
                    "that differ"
                )
        self._others = others
        self.differs = any(
            theirs.uses(kind) for theirs in others.values() for kind in (KeyClass.STRONG, KeyClass.HYBRID)
        )
        return lines

    def check(self, key: str) -> None:
        """Raises ConfigError for a key, or for the prefix of some, whose changes are ordered at another node, and are
        not, or otherwise, here."""
        mine = self._mine.of(key)
        for node, theirs in self._others.items():
            if (kind := theirs.of(key)) not in (KeyClass.EVENTUAL, mine):
                raise ConfigError(
                    f"{key!r} is {kind} at {node}, and {mine} at this node, {self._node}: it is refused here, for "
                    f"neither would see what the other one holds; give all nodes the same [classes], or ask {node}"
                )


def _shown(classes: Mapping[str, str]) -> str:
    return ", ".join(f'"{prefix}" = {kind}' for prefix, kind in sorted(classes.items())) or "none"


__all__ = ["Agreement"]
