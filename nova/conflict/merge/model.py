"""What a merge tells: conflicts, what was lost, what changed, and the value."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, TypeAlias

import msgspec

from nova._native.merge import Document
from nova.conflict.detect import MISSING
from nova.conflict.words import show

CONCURRENT_UPDATE: Final = "concurrent_update"
SEMANTIC: Final = "semantic"
INVARIANT_VIOLATION: Final = "invariant_violation"
RESOURCE_CONTENTION: Final = "resource_contention"


Path: TypeAlias = tuple[Any, ...]
"""() is the top, (parent, segment) a member of it: pointers are only made for what somebody looks at."""


def pointer(path: Path | str) -> str:
    """The pointer of a linked path; one that is a pointer already stays."""
    if isinstance(path, str):
        return path
    parts = []
    here: Any = path
    while here:
        here, part = here
        parts.append(part)
    return "".join(["/" + part for part in reversed(parts)])


def plain(value: Any) -> Any:
    """A document as maps and lists; anything else as it is."""
    return value.value if type(value) is Document else value


class MergeConflict(msgspec.Struct, frozen=True):
    """One place at which the sides cannot both have their way.

    path      RFC 6901 pointer; items of keyed lists are [key=value]
    type      concurrent_update, semantic, invariant_violation or resource_contention
    kind      what happened: update/update, add/add, delete/update, type_change, insert/insert, move/move, cycle, ...
    base, local, remote  the values there; MISSING where there is none. For a list or text the contended part of it
    resolved  a policy decided; without one the base's value stays
    """

    path: str
    type: str
    kind: str
    base: Any = MISSING
    local: Any = MISSING
    remote: Any = MISSING
    resolved: bool = False
    note: str = ""


class Lost(msgspec.Struct, frozen=True):
    """A value that a side wrote and the result does not hold, though nobody deleted it."""

    path: str
    value: Any
    side: str
    reason: str


class Change(msgspec.Struct, frozen=True):
    """A difference between base and result, and whose it is: local, remote, both, or rule."""

    path: str
    side: str
    before: Any
    after: Any
    note: str = ""


class MergeResult(msgspec.Struct, eq=False):
    """The outcome of a three-way merge.

    value        where there is a conflict that no policy settled, what the base has; the base itself if the merge must
                 not be committed
    conflicts    every place at which the sides could not both have their way, settled or not
    lost         every value that a side wrote and the result does not hold
    noted        `changes` as they were noted on the way
    preexisting  names of invariants that the base broke already
    proposal     the merged value, even if it must not be committed
    """

    value: Any
    conflicts: tuple[MergeConflict, ...] = ()
    lost: tuple[Lost, ...] = ()
    noted: Sequence[Any] = ()
    preexisting: tuple[str, ...] = ()
    proposal: Any = MISSING

    def __repr__(self) -> str:
        parts = f"value={self.value!r}, conflicts={self.conflicts!r}, lost={self.lost!r}"
        return f"MergeResult({parts}, changes={self.changes!r}, preexisting={self.preexisting!r})"

    @property
    def changes(self) -> tuple[Change, ...]:
        """What the result has otherwise than the base, and from whom; made each time it is asked for."""
        return tuple(
            [
                Change(pointer(path), side, plain(before), plain(after), note)
                for path, side, before, after, note in self.noted
            ]
        )

    @property
    def clean(self) -> bool:
        """Whether there was no conflict at all, not even a settled one."""
        return not self.conflicts

    @property
    def committed(self) -> bool:
        """False if `value` is the base because the merged value breaks an invariant or two sides took one thing."""
        return not any(c.type in (INVARIANT_VIOLATION, RESOURCE_CONTENTION) and not c.resolved for c in self.conflicts)

    @property
    def unresolved(self) -> tuple[MergeConflict, ...]:
        """The conflicts that somebody still has to decide."""
        return tuple(conflict for conflict in self.conflicts if not conflict.resolved)

    def explain(self) -> str:
        """One sentence per change, conflict and loss, for people."""
        said = [_change(change) for change in self.changes]
        said += [_conflict(conflict) for conflict in self.conflicts]
        said += [f"{_at(item.path)}: {show(item.value)} of {item.side} is lost: {item.reason}" for item in self.lost]
        said += [f"invariant {name} was broken before this merge" for name in self.preexisting]
        if not self.committed:
            said.append("the merge must not be committed: the base stays")
        return "\n".join(said) or "nothing changed"


def _at(path: str) -> str:
    return path or "the value"


def _change(change: Change) -> str:
    whose = {"both": "both sides", "rule": "the declared rule"}.get(change.side, change.side)
    note = f" ({change.note})" if change.note else ""
    if change.after is MISSING:
        return f"{_at(change.path)}: removed by {whose}{note}"
    if change.before is MISSING:
        return f"{_at(change.path)}: {show(change.after)} added by {whose}{note}"
    return f"{_at(change.path)}: {show(change.before)} became {show(change.after)} by {whose}{note}"


def _conflict(conflict: MergeConflict) -> str:
    end = "settled by the policy" if conflict.resolved else "the base's value stays"
    note = f"; {conflict.note}" if conflict.note else ""
    return (
        f"{_at(conflict.path)}: conflict {conflict.kind} ({conflict.type}): base {show(conflict.base)}, "
        f"local {show(conflict.local)}, remote {show(conflict.remote)}; {end}{note}"
    )
