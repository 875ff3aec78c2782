"""Operations on a tree of dicts, lists and scalars with moves, in the json1 format.

An operation is None, or a list that descends: keys and indices lead down, a dict changes what is there, and two or more
lists at the end are branches. A change has up to three parts:

    {"r": value or True}  remove       {"i": value}  insert      {"es": op}             edit text, as ot.text has it
    {"p": slot}           pick up      {"d": slot}   drop        {"ena": number}        add to a number
                                                                 {"et": name, "e": op}  edit by a registered type

All picks and removes happen first and name places in the document as it was; all drops, inserts and edits then name
places in the document as it will be. A slot is a number that joins a pick with its drop.

Transformation here is not a table of cases. Both operations are read into one picture of the document, in which every
value that they name is a thing with an identity: a value of the document, or one that an operation inserts. In that
picture each thing gets one fate, by rules that know only a left and a right side:

 1. What either side removes is gone, wherever the other has moved it. What was in it goes too, unless its remover picks
    it up first.
 2. What both move goes where the left side puts it.
 3. What is put into something that is gone, is gone (a conflict: REMOVED_UNDER).
 4. Different things on one key of a dict: the left one stays (COLLISION). Equal inserts are one thing.
 5. Things that were moved into each other hang nowhere and are gone (BLACK_HOLE).
 6. In a list, what was put between the same two items that stay comes in the order left, right.

The transformed operation is then read off: its picks are places in the document after the other operation, its drops
places in the picture. As both sides read one picture, TP1 holds by construction.
"""

from nova.conflict.ot.json1.chain import compose, invert, make_invertible, transform_position
from nova.conflict.ot.json1.picture import same, transform, transform_no_conflict, try_transform
from nova.conflict.ot.json1.steps import (
    BLACK_HOLE,
    CHANGES_MAX,
    COLLISION,
    DEPTH_MAX,
    REMOVED_UNDER,
    SUBTYPES,
    ConflictError,
    Key,
    Op,
    apply,
    check,
    normalize,
    register,
)

__all__ = [
    "BLACK_HOLE",
    "CHANGES_MAX",
    "COLLISION",
    "DEPTH_MAX",
    "REMOVED_UNDER",
    "SUBTYPES",
    "ConflictError",
    "Key",
    "Op",
    "apply",
    "check",
    "compose",
    "invert",
    "make_invertible",
    "normalize",
    "register",
    "same",
    "transform",
    "transform_no_conflict",
    "transform_position",
    "try_transform",
]
