"""Three texts, merged line by line or character by character (diff3, as git does it)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from nova.conflict.merge.sequences import Region, Side, numbered, regions
from nova.errors import LimitError, UsageError

UNITS: Final = ("line", "character")
FAVORS: Final = ("local", "remote", "union")
TEXT_MAX: Final = 1 << 24
"""Characters in one text of a merge."""


class TextConflict(msgspec.Struct, frozen=True):
    """What the three texts hold where both sides changed the same place, and differently."""

    base: str
    local: str
    remote: str


class TextMerge(msgspec.Struct, frozen=True):
    """A merged text.

    text       where the sides conflict: the base's part, or what `favor` took
    conflicts  in the order of the text, also those that `favor` settled
    marked     the text with conflicts between the usual marks, for people
    """

    text: str
    conflicts: tuple[TextConflict, ...]
    marked: str

    @property
    def clean(self) -> bool:
        return not self.conflicts


def merge_text(base: str, local: str, remote: str, *, unit: str = "line", favor: str | None = None) -> TextMerge:
    """Merge two descendants of a text.

    unit    "line" or "character" (code points)
    favor   None keeps the base's part in a conflict; "local" or "remote" takes that side's, "union" local's and then
            remote's
    raises  UsageError for another word; LimitError for a text of more than TEXT_MAX characters
    cost    see `sequences`

    Changes that touch are a conflict, as in git; GNU diff3 agrees but for a change that both sides made next to one
    that only one of them made, which git and this function take as it is.
    """
    if unit not in UNITS:
        raise UsageError(f"unit is {unit!r}; it is one of {', '.join(UNITS)}")
    if favor is not None and favor not in FAVORS:
        raise UsageError(f"favor is {favor!r}; it is None or one of {', '.join(FAVORS)}")
    for text in (base, local, remote):
        if len(text) > TEXT_MAX:
            raise LimitError(f"text has {len(text)} characters; the limit is {TEXT_MAX}: merge it in parts")
    parts = [lines(text) if unit == "line" else text for text in (base, local, remote)]
    ids = numbered(_itself, *parts) if unit == "line" else [[ord(c) for c in text] for text in parts]
    found = regions(*ids, refine=favor is not None)
    conflicts = []
    chosen: list[str] = []
    marked: list[str] = []
    at = 0
    for region in found:
        kept = "".join(parts[1][at : region.local[0]])
        chosen.append(kept)
        marked.append(kept)
        at = region.local[0] + region.local[1]
        ours, theirs = _slice(parts[1], region.local), _slice(parts[2], region.remote)
        if region.side == Side.CONFLICT:
            before = _slice(parts[0], region.base)
            conflicts.append(TextConflict(before, ours, theirs))
            taken = {None: before, "local": ours, "remote": theirs}.get(favor)
            chosen.append(_ended(ours, unit) + theirs if taken is None else taken)
            marked.append(f"<<<<<<< local\n{_ended(ours)}=======\n{_ended(theirs)}>>>>>>> remote\n")
        else:
            text = theirs if region.side == Side.REMOTE else ours
            chosen.append(text)
            marked.append(text)
    rest = "".join(parts[1][at:])
    return TextMerge("".join(chosen) + rest, tuple(conflicts), "".join(marked) + rest)


def lines(text: str) -> list[str]:
    """The lines of a text with their ends. Only a line feed ends one, as in git."""
    found = text.split("\n")
    last = found.pop()
    return [line + "\n" for line in found] + ([last] if last else [])


def _itself(item: Any) -> Any:
    return item


def _slice(items: Sequence[str], span: tuple[int, int]) -> str:
    return "".join(items[span[0] : span[0] + span[1]])


def _ended(text: str, unit: str = "line") -> str:
    return text + "\n" if unit == "line" and text and not text.endswith("\n") else text


__all__ = ["FAVORS", "TEXT_MAX", "UNITS", "Region", "TextConflict", "TextMerge", "lines", "merge_text"]
