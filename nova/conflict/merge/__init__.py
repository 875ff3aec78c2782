"""Merging: two descendants of a value become one, and nothing is lost in silence.

engine      the merge of values, by rule; `schema` says which rules there are, `model` what a merge tells
patches     what turned one value into another; JSON Patch and JSON Merge Patch
text        three texts, by line or by character; `sequences` has the algorithms
moves       what moved in a tree of maps
invariants  truths about the whole
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from nova._native.merge import Document
from nova.conflict.detect import MISSING
from nova.conflict.merge.engine import merge
from nova.conflict.merge.model import Change, Lost, MergeConflict, MergeResult
from nova.conflict.merge.patches import (
    Edit,
    Patch,
    apply_json_patch,
    apply_merge_patch,
    diff,
    patch,
    to_json_patch,
    to_merge_patch,
)
from nova.conflict.merge.schema import (
    Atomic,
    Counter,
    Custom,
    Group,
    Keyed,
    Max,
    Min,
    Moves,
    Precedence,
    Sequence,
    SetOf,
    Sum,
    Text,
    compile_schema,
)
from nova.conflict.merge.text import TextConflict, TextMerge, merge_text
from nova.conflict.merge.values import equal, same

if TYPE_CHECKING:
    from nova.conflict.merge.ownership import ObjectSchema, Owned, Owner
    from nova.conflict.merge.revisions import (
        Revisions,
        conflicting_revisions,
        merge_revisions,
        path_of,
        revision_leaves,
        winning_revision,
    )
    from nova.conflict.merge.trees import TreeConflict, TreeMerge, merge_trees

_LATER: Final = {
    "ObjectSchema": "ownership",
    "Owned": "ownership",
    "Owner": "ownership",
    "Revisions": "revisions",
    "TreeConflict": "trees",
    "TreeMerge": "trees",
    "conflicting_revisions": "revisions",
    "merge_revisions": "revisions",
    "merge_trees": "trees",
    "path_of": "revisions",
    "revision_leaves": "revisions",
    "winning_revision": "revisions",
}
"""What is loaded when it is first asked for: most processes merge values only."""


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__} has no {name}")
    found = getattr(import_module(f"{__name__}.{_LATER[name]}"), name)
    globals()[name] = found
    return found


__all__ = [
    "MISSING",
    "Atomic",
    "Change",
    "Counter",
    "Custom",
    "Document",
    "Edit",
    "Group",
    "Keyed",
    "Lost",
    "Max",
    "MergeConflict",
    "MergeResult",
    "Min",
    "Moves",
    "ObjectSchema",
    "Owned",
    "Owner",
    "Patch",
    "Precedence",
    "Revisions",
    "Sequence",
    "SetOf",
    "Sum",
    "Text",
    "TextConflict",
    "TextMerge",
    "TreeConflict",
    "TreeMerge",
    "apply_json_patch",
    "apply_merge_patch",
    "compile_schema",
    "conflicting_revisions",
    "diff",
    "equal",
    "merge",
    "merge_revisions",
    "merge_text",
    "merge_trees",
    "patch",
    "path_of",
    "revision_leaves",
    "same",
    "to_json_patch",
    "to_merge_patch",
    "winning_revision",
]
