"""What goes into the replicated store and what comes out."""

from __future__ import annotations

from typing import Any

import msgspec


class Put(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One write.

    key          1..1024 bytes of UTF-8
    value        any JSON value; for kind `vm` an object with the fields of VMState
    kind         `register` | `vm` | `map` | `set` | `counter`; None: what the key holds, else what its prefix is
                 configured for, else `register`
    merge        True: `value` is an object whose fields are written (null deletes one) and the others are left alone
    context      the clock that was read; the write supersedes what that clock knows. None: what this node knows now
    conditional  refuse (StaleContextError, HTTP 409) unless `context` is the present clock of the key
    expect       of a strong key: the version that it has to have, 0: it holds nothing
    """

    key: str
    value: Any
    kind: str | None = None
    merge: bool = False
    context: dict[str, int] | None = None
    conditional: bool = False
    expect: int | None = None


class Sibling(msgspec.Struct, frozen=True):
    """One of several concurrent values, none of which saw the others."""

    path: str
    value: Any
    clock: dict[str, int]
    timestamp: int
    origin: str


class Entry(msgspec.Struct, frozen=True):
    """What a key holds now.

    value      settled by the key's strategy where writers were concurrent; None in the answer to a delete
    clock      what the value knows; hand it back as `context`
    timestamp  hybrid logical clock of the newest write, 48 bits of milliseconds above 16 bits of counter
    origin     node of the newest write
    dot        [actor, count] of the newest write
    revision   position in this node's change feed when last changed
    siblings   the concurrent values behind `value`, empty where there is no conflict
    conflict   id of the open conflict, None where there is none
    strategy   which strategy settled it, None where there was nothing to settle
    """

    key: str
    kind: str
    value: Any
    clock: dict[str, int]
    timestamp: int
    origin: str
    dot: tuple[str, int]
    revision: int
    siblings: list[Sibling] = []
    conflict: str | None = None
    strategy: str | None = None


class StrongEntry(Entry, frozen=True, kw_only=True):
    """What a strong key holds: no clock and no siblings, since its changes have one order.

    version  number of the change that made it, in that order; hand it back as `expect`. `revision` is the same number,
             `dot` the writer with it
    """

    version: int


class Change(msgspec.Struct, frozen=True):
    """One item of the change feed. `deleted` changes carry no value."""

    revision: int
    key: str
    kind: str
    deleted: bool
    value: Any
    clock: dict[str, int]
    timestamp: int
    origin: str
