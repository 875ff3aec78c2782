"""Merging: two descendants of a value become one, and nothing is lost in silence.

patches    what turned one value into another; JSON Patch and JSON Merge Patch
text       three texts, by line or by character
sequences  the algorithms below them
"""

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
from nova.conflict.merge.text import TextConflict, TextMerge, merge_text
from nova.conflict.merge.values import equal, same

__all__ = [
    "Edit",
    "Patch",
    "TextConflict",
    "TextMerge",
    "apply_json_patch",
    "apply_merge_patch",
    "diff",
    "equal",
    "merge_text",
    "patch",
    "same",
    "to_json_patch",
    "to_merge_patch",
]
