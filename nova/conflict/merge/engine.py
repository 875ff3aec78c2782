"""Three-way merge of values.

What a side did not change yields to what the other did, deletions included. Where both changed something, differently,
maps and records merge field by field and declared rules apply (`schema`); anything else is a conflict, and the base
stays. The outcome does not depend on which side is called local, except in a union or an operational transform that a
policy asked for, where local stands first.

In lattices (max, precedence) both sides must have changed the value: else a machine could never be stopped. Counters
add even equal changes, and monotone fields hold even against a side that the other did not contradict, so no subtree
above one is skipped because it is equal.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence, Set
from typing import Any, Final, TypeAlias

from nova._native.merge import Document, MapMerge, merge_plain
from nova.conflict.detect import MISSING, canonical, escape, matches
from nova.conflict.merge import schema as rules
from nova.conflict.merge.invariants import check, item_name
from nova.conflict.merge.model import (
    CONCURRENT_UPDATE,
    RESOURCE_CONTENTION,
    SEMANTIC,
    Lost,
    MergeConflict,
    MergeResult,
    Path,
    plain,
    pointer,
)
from nova.conflict.merge.moves import in_common_terms
from nova.conflict.merge.patches import pointer_of
from nova.conflict.merge.schema import NOTHING, Node, Schema, compiled, of_type
from nova.conflict.merge.sequences import Side, hunks, numbered, regions
from nova.conflict.merge.text import merge_text
from nova.conflict.merge.values import (
    DEPTH_MAX,
    DIFFERENT,
    IDENTICAL,
    equal,
    fields_of,
    is_record,
    kind_of,
    prefer,
    rebuilt,
    same,
    too_deep,
)
from nova.conflict.words import show
from nova.errors import UsageError

POLICIES: Final = ("manual", "base", "local", "remote", "union", "operational_transform")

Policy: TypeAlias = str | Mapping[str, str] | Callable[[MergeConflict], Any]


def merge(
    base: Any,
    local: Any,
    remote: Any,
    schema: Schema | None = None,
    policy: Policy | None = None,
    *,
    invariants: Sequence[Any] = (),
) -> MergeResult:
    """What two descendants of `base` make together. Arguments are not changed; the result shares parts with them.

    base        MISSING if there is no common ancestor: what both have is then merged as added by both. Three Documents
                make one, at a cost that follows the edits and not the size
    schema      a dataclass or Struct, {JSON pointer: declaration}, or None: the type of the value says
    policy      what becomes of conflicts: a word of POLICIES, {path pattern: word}, or a function of the conflict that
                returns a value (MISSING removes) or the conflict itself to leave it open. One that raises leaves it
                open, as `manual` does. `union` and `operational_transform` are for sequences and texts
    invariants  see `invariants`; if the outcome breaks one, the base stays and `committed` is False
    raises      UsageError for a bad schema, policy or map key; LimitError below DEPTH_MAX levels
    cost        O(size); lists and texts that are declared to merge cost what `sequences` says
    """
    plain_maps = schema is None and type(base) is type(local) is type(remote) is dict
    if plain_maps and policy is None and not invariants:
        return merge_plain(_Merge, NOTHING, MISSING, base, local, remote, MergeResult, _told)
    work = _Merge(NOTHING, MISSING, None if policy is None else _checked(policy))
    if plain_maps:
        node = NOTHING
        merged: Any = work.maps(base, local, remote, {}, (), 0)
    elif type(base) is type(local) is type(remote) is Document:
        node = NOTHING if schema is None else compiled(schema, None)
        if node is NOTHING or node.plain:
            merged = work.documents(base, local, remote, node.children, (), 0)
        else:
            merged = Document(work.value(base.value, local.value, remote.value, node, (), 0))
    else:
        node = compiled(schema, local)
        merged = work.value(base, local, remote, node, (), 0)
    preexisting: tuple[str, ...] = ()
    if invariants:
        broken, preexisting = check(invariants, plain(base), plain(merged), node)
        work.conflicts.extend(broken)
    return _told(work, merged, base, preexisting)


def _told(work: _Merge, merged: Any, base: Any, preexisting: tuple[str, ...] = ()) -> MergeResult:
    result = MergeResult(merged, tuple(work.conflicts), tuple(work.lost), work.changes, preexisting, merged)
    if result.conflicts and not result.committed:
        result.value = base
    return result


def _checked(policy: Any) -> Policy | None:
    words = policy.values() if isinstance(policy, Mapping) else [policy] if isinstance(policy, str) else []
    for word in words:
        if word not in POLICIES:
            raise UsageError(f"policy is {show(word)}; it is one of {', '.join(POLICIES)}, or a function")
    if policy is None or isinstance(policy, str | Mapping) or callable(policy):
        return policy  # type: ignore[no-any-return]
    raise UsageError(f"policy is {show(policy)}; it is one of {', '.join(POLICIES)}, a map of them, or a function")


class _Merge(MapMerge):
    """One merge under way. `conflicts`, `lost` and `changes` are what it has to tell so far."""

    __slots__ = ()

    # -------------------------------------------------------------------------------------------- one value

    def value(self, base: Any, local: Any, remote: Any, node: Node, path: Path, depth: int) -> Any:
        """The merged value of one place; MISSING if there is none."""
        if local is base and remote is base:
            return base
        if depth > DEPTH_MAX:
            raise too_deep()
        if type(local) is type(remote) is type(base) is dict and node.plain:
            return self.maps(base, local, remote, node.children, path, depth)
        if node is NOTHING and is_record(local):
            node = of_type(type(local))
        kept, stayed = unchanged(base, local, node), unchanged(base, remote, node)
        if not node.monotone or local is MISSING or remote is MISSING:
            if kept and stayed:
                return self._form(base, local, remote)
            if kept:
                return self._took(path, "remote", base, remote)
            if stayed:
                return self._took(path, "local", base, local)
        if local is MISSING and remote is MISSING:
            return self._took(path, "both", base, MISSING)
        agreed = equal(local, remote)
        if agreed != DIFFERENT and not node.monotone and not (node.adds or hides_counter(local)):
            return self._took(path, "both", base, local if agreed == IDENTICAL else prefer(local, remote))
        if local is MISSING or remote is MISSING:
            return self.conflict(path, CONCURRENT_UPDATE, "delete/update", base, local, remote)
        return self._both(base, local, remote, node, path, depth, (kept, stayed))

    def _both(
        self, base: Any, local: Any, remote: Any, node: Node, path: Path, depth: int, still: tuple[bool, bool]
    ) -> Any:
        """Both sides have a value, and changed it differently, or what is declared here wants to see equal ones too."""
        kind = kind_of(local)
        rule = node.rule
        if kind != kind_of(remote):
            if True not in still:
                return self.conflict(path, SEMANTIC, "type_change", base, local, remote)
        elif isinstance(rule, rules.Custom):
            return self._custom(rule, base, local, remote, path)
        elif kind == "map" or is_record(local):
            if not isinstance(rule, rules.Atomic):
                if isinstance(rule, rules.Moves):
                    return self._moves(base, local, remote, node, path, depth)
                return self._maps(base, local, remote, node, path, depth)
        elif kind == "list":
            if isinstance(rule, rules.Keyed) and (found := self._keyed(rule, base, local, remote, node, path, depth)):
                return found[0]
            if isinstance(rule, rules.SetOf):
                return self._set(base, local, remote, path)
            if isinstance(rule, rules.Sequence):
                return self._sequence(base, local, remote, path)
        elif kind == "set":
            return self._set(base, local, remote, path)
        elif isinstance(rule, rules.Text) and kind == "string":
            return self._text(rule, base, local, remote, path)
        elif isinstance(rule, rules.Counter | rules.Max | rules.Min | rules.Precedence):
            found = self._lattice(rule, base, local, remote, path, still)
            if found is not NOTHING:
                return found
        if True in still:  # what is declared here does not fit the value, and only one side changed it
            return self._took(path, "local" if still[1] else "remote", base, local if still[1] else remote)
        if equal(local, remote) != DIFFERENT:
            return self._took(path, "both", base, prefer(local, remote))
        return self._clash(rule, base, local, remote, path)

    def _form(self, base: Any, local: Any, remote: Any) -> Any:
        """Nobody changed it, at most its form: 1 for 1.0."""
        return base if base is not MISSING else local

    def _took(self, path: Path, side: str, base: Any, value: Any, note: str = "") -> Any:
        self.changes.append((path, side, base, value, note))
        return value

    # -------------------------------------------------------------------------------------------- conflicts

    def _clash(self, rule: Any, base: Any, local: Any, remote: Any, path: Path) -> Any:
        """Both changed something that does not merge."""
        kind = "add/add" if base is MISSING else "update/update"
        if isinstance(rule, rules.Atomic) and isinstance(local, Mapping):
            mine, yours = local.get(rule.exclusive), remote.get(rule.exclusive)
            if rule.exclusive and mine is not None and yours is not None and not same(mine, yours):
                note = f"{rule.exclusive} can only be one of {show(mine)} and {show(yours)}"
                return self.conflict(path, RESOURCE_CONTENTION, "exclusive", base, local, remote, note)
            if rule.state and {local.get(rule.state), remote.get(rule.state)} <= {*rule.ended}:
                note = f"{show(local.get(rule.state))} and {show(remote.get(rule.state))} exclude each other"
                return self.conflict(path, SEMANTIC, "state_machine", base, local, remote, note)
        return self.conflict(path, CONCURRENT_UPDATE, kind, base, local, remote)

    def conflict(self, path: Path, type_: str, kind: str, base: Any, local: Any, remote: Any, note: str = "") -> Any:
        """Report a conflict; returns what stands there now: the base, or what the policy decided."""
        at = pointer(path)
        found = MergeConflict(at, type_, kind, base, local, remote, note=note)
        value, decided, why = self._decided(found)
        if decided or why:
            found = MergeConflict(at, type_, kind, base, local, remote, decided, why or note)
        self.conflicts.append(found)
        reason = f"the policy decided the {kind} conflict" if decided else f"a {kind} conflict keeps the base"
        if decided and not same(value, base):
            self.changes.append((at, "rule", base, value, f"{kind} conflict"))
        for side, lost in (("local", local), ("remote", remote)):
            if lost is not MISSING and not same(lost, value) and not same(lost, base):
                self.lost.append(Lost(at, lost, side, reason))
        return value

    def _decided(self, conflict: MergeConflict) -> tuple[Any, bool, str]:
        """(value, whether the policy decided, a note)."""
        word = self._word(conflict.path)
        if word in ("base", "local", "remote"):
            return getattr(conflict, word), True, ""
        if callable(self.policy):
            try:
                value = self.policy(conflict)
            except Exception as error:
                return conflict.base, False, f"the policy failed with {type(error).__name__}: {error}"
            if value is not conflict:
                return value, True, ""
        return conflict.base, False, ""

    def _side(self, conflict: MergeConflict) -> tuple[str, str]:
        """(for whom the policy decides a conflict of moves: local, remote, base, or "", a note).

        A thing is in one place, so a function can only say whose way it goes, with that value of the conflict.
        """
        word = self._word(conflict.path)
        if word in ("base", "local", "remote"):
            return word, ""
        value, decided, why = self._decided(conflict)
        if not decided:
            return "", why
        ways = [(word, getattr(conflict, word)) for word in ("base", "local", "remote")]
        ways = [(word, way) for word, way in ways if way is not MISSING or conflict.kind != "cycle"]
        found = [word for word, way in ways if way is value] or [word for word, way in ways if same(way, value)]
        return (found[0], "") if found else ("", f"{conflict.note}; {show(value)} is of neither side nor the base")

    def _word(self, path: str) -> str | None:
        if isinstance(self.policy, str):
            return self.policy
        if isinstance(self.policy, Mapping):
            found = [pattern for pattern in self.policy if matches(pattern, path)]
            return self.policy[max(found, key=_weight)] if found else None
        return None

    # -------------------------------------------------------------------------------------------- rules for scalars

    def _lattice(self, rule: Any, base: Any, local: Any, remote: Any, path: Path, still: tuple[bool, bool]) -> Any:
        """What a counter, max, min or precedence makes of two values of one kind; NOTHING if they are not for it."""
        if isinstance(rule, rules.Counter):
            return self._counter(base, local, remote, path)
        if isinstance(rule, rules.Precedence):
            ranks = [_rank(rule.order, value) for value in (local, remote)]
            if -1 in ranks:
                return NOTHING
            wins = ranks[0] >= ranks[1]
            reason = f"ranks before it where both sides changed the value: {' < '.join(map(show, rule.order))}"
            return self._won(path, base, local, remote, local if wins else remote, reason)
        candidates = [local, remote]
        if rule.monotone and base is not MISSING and kind_of(base) == kind_of(local):
            candidates.append(base)
        best = candidates[0]
        word = "max" if isinstance(rule, rules.Max) else "min"
        try:
            for value in candidates:
                if value != value:
                    return NOTHING  # NaN has no order
                if equal(value, best) != DIFFERENT:
                    best = prefer(value, best)
                elif value > best if word == "max" else value < best:
                    best = value
        except TypeError:
            return NOTHING
        return self._won(path, base, local, remote, best, f"is the {word} of the values, as declared")

    def _won(self, path: Path, base: Any, local: Any, remote: Any, best: Any, reason: str) -> Any:
        if base is MISSING or not same(base, best):
            side = "both" if same(local, remote) else "local" if same(best, local) else "remote"
            self.changes.append((path, side, base, best, ""))
        for side, value in (("local", local), ("remote", remote)):
            if not same(value, best) and (base is MISSING or not same(value, base)):
                self.lost.append(Lost(pointer(path), value, side, f"{show(best)} {reason}"))
        return best

    def _counter(self, base: Any, local: Any, remote: Any, path: Path) -> Any:
        start = 0 if base is MISSING else base
        try:
            if not all(type(value) in (int, float) and math.isfinite(value) for value in (start, local, remote)):
                return NOTHING
            total = local + remote - start
        except OverflowError:  # an integer that no float holds
            return NOTHING
        return self._took(path, "rule", base, total, f"changes {show(local - start)} and {show(remote - start)} add up")

    def _custom(self, rule: rules.Custom, base: Any, local: Any, remote: Any, path: Path) -> Any:
        try:
            value = rule.function(base, local, remote)
        except Exception as error:
            note = f"the declared function failed with {type(error).__name__}: {error}"
            return self.conflict(path, CONCURRENT_UPDATE, "update/update", base, local, remote, note)
        return self._won(path, base, local, remote, value, "is what the declared function made of it")

    # -------------------------------------------------------------------------------------------- maps and records

    def _maps(self, base: Any, local: Any, remote: Any, node: Node, path: Path, depth: int) -> Any:
        record = None
        if type(local) is type(remote) is dict and node.every is None and not node.groups:
            return self.maps(base if type(base) is dict else {}, local, remote, node.children, path, depth)
        if is_record(local):
            record = local
            base = fields_of(base) if type(base) is type(local) else {}
            local, remote = fields_of(local), fields_of(remote)
        elif not isinstance(base, Mapping):
            base = {}
        out: dict[str, Any] = {}
        grouped: dict[str, Any] = {}
        for names in node.groups:
            grouped |= self._group(names, base, local, remote, path)
        for key in _all_keys(base, local, remote):
            if key in grouped:
                value = grouped[key]
            else:
                values = base.get(key, MISSING), local.get(key, MISSING), remote.get(key, MISSING)
                value = values[0]
                if values[1] is not value or values[2] is not value:
                    if not isinstance(key, str):
                        raise UsageError(f"map key {key!r} is of type {type(key).__name__}; keys are text")
                    value = self.value(*values, node.child(key), (path, escape(key)), depth + 1)
            if value is not MISSING:
                out[key] = value
        return out if record is None else rebuilt(record, out)

    def _group(self, names: Sequence[str], base: Any, local: Any, remote: Any, path: Path) -> dict[str, Any]:
        """The fields of an atomic group, all from one side."""
        mine, yours, before = ({name: side[name] for name in names if name in side} for side in (local, remote, base))
        if same(mine, before):
            taken, side = yours, "remote"
        elif same(yours, before) or same(mine, yours):
            taken, side = mine, "local"
        else:
            note = f"{', '.join(names)} are one group"
            at = (path, escape(names[0]))
            kind = "update/update" if before else "add/add"
            decided = self.conflict(at, CONCURRENT_UPDATE, kind, before or MISSING, mine, yours, note)
            # What both added alike is agreed, and may be what identifies the item.
            agreed = {name: mine[name] for name in mine if name in yours and same(mine[name], yours[name])}
            taken, side = dict(decided) if isinstance(decided, Mapping) else agreed, ""
        for name in names:
            was, now = before.get(name, MISSING), taken.get(name, MISSING)
            if side and not same(was, now):
                self._took((path, escape(name)), side, was, now)
        return {name: taken.get(name, MISSING) for name in names}

    def _moves(self, base: Any, local: Any, remote: Any, node: Node, path: Path, depth: int) -> Any:
        if not all(isinstance(side, Mapping) for side in (base, local, remote)):
            return self._maps(base, local, remote, node, path, depth)
        above = pointer(path)
        moved = in_common_terms(base, local, remote, self._side, above)
        self.conflicts.extend(moved.conflicts)
        self.lost.extend(moved.lost)
        for origin, to, side in moved.made:
            note = f"moved to {above}{pointer_of(to)}"
            self.changes.append((above + pointer_of(origin), side, MISSING, MISSING, note))
        return self._maps(moved.base, moved.local, moved.remote, node, path, depth)

    # -------------------------------------------------------------------------------------------- lists, sets, texts

    def _keyed(
        self, rule: rules.Keyed, base: Any, local: Any, remote: Any, node: Node, path: Path, depth: int
    ) -> tuple[list[Any]] | None:
        """The merged list, boxed; None if the items of a side have no identity of their own."""
        sides = [_by_key(rule.keys, side) for side in (base if kind_of(base) == "list" else (), local, remote)]
        if None in sides:
            return None
        before, mine, yours = (side or {} for side in sides)
        items = node.every or NOTHING
        out: dict[Hashable, Any] = {}
        for key in _all_keys(before, mine, yours):
            base, local, remote = before.get(key, MISSING), mine.get(key, MISSING), yours.get(key, MISSING)
            if equal(base, local) == IDENTICAL and equal(base, remote) == IDENTICAL:
                out[key] = base
                continue
            shown = next(value for value in (local, remote, base) if value is not MISSING)
            merged = self.value(base, local, remote, items, (path, item_name(shown, rule.keys)), depth + 1)
            if merged is not MISSING:
                out[key] = merged
        orders = [list(side) for side in (before, mine, yours)]
        if orders[0] == orders[1] == orders[2]:
            return (list(out.values()),)
        return ([out[key] for key in self._order(orders[0], orders[1], orders[2], out, rule.keys, path)],)

    def _order(
        self,
        before: list[Hashable],
        mine: list[Hashable],
        yours: list[Hashable],
        out: Mapping[Hashable, Any],
        keys: Sequence[str],
        path: Path,
    ) -> list[Hashable]:
        """The order of a keyed list: that of the side which changed it; additions stay behind what they followed."""
        skeleton = [key for key in before if key in out]
        ways = [_in_order(side, before) for side in (mine, yours)]
        moved = [way != _in_order(before, side) for way, side in zip(ways, (mine, yours), strict=True)]
        if all(moved):
            ways = [_in_order(ways[0], ways[1]), _in_order(ways[1], ways[0])]
            if ways[0] != ways[1]:
                names = {key: item_name(item, keys) for key, item in out.items()}
                skeleton = self._two_orders([skeleton, *ways], names, path)
            else:
                skeleton = [key for key in ways[0] if key in out]
        elif any(moved):
            skeleton = [key for key in ways[0 if moved[0] else 1] if key in out]
        ranks = {key: _rank_of(item, keys) for key, item in out.items()}
        added = set(out) - set(before)
        sources = [[key for key in side if key in out] for side in (mine, yours)]
        for batch in (added & set(mine) & set(yours), added):
            skeleton = _placed(skeleton, sources, batch, ranks)
        return _placed(skeleton, [[key for key in before if key in out]], set(out), ranks)

    def _two_orders(self, orders: list[list[Hashable]], names: Mapping[Hashable, str], path: Path) -> list[Hashable]:
        said = [[names[key] for key in order if key in names] for order in orders]
        note = "both sides changed the order"
        decided = self.conflict(path, CONCURRENT_UPDATE, "move/move", said[0], said[1], said[2], note)
        keys = {name: key for key, name in names.items()}
        return [keys[name] for name in decided if name in keys] if isinstance(decided, list) else orders[0]

    def _set(self, base: Any, local: Any, remote: Any, path: Path) -> Any:
        """Base's elements that nobody removed, then what either added, sorted."""
        start = base if kind_of(base) == kind_of(local) else ()
        before, mine, yours = ({canonical(item): item for item in side} for side in (start, local, remote))
        out = {key: item for key, item in before.items() if key in mine and key in yours}
        added = {
            **{k: v for k, v in yours.items() if k not in before},
            **{k: v for k, v in mine.items() if k not in before},
        }
        for key in added.keys() & mine.keys() & yours.keys():
            added[key] = prefer(mine[key], yours[key])
        for key in sorted(added, key=lambda key: _sort_key(key, added[key])):
            out[key] = added[key]
        value = list(out.values()) if kind_of(local) == "list" else type(local)(out.values())
        note = f"{len(before) - len(before.keys() & out.keys())} removed, {len(added)} added"
        return self._took(path, "both", base, value, note)

    def _sequence(self, base: Any, local: Any, remote: Any, path: Path) -> Any:
        start = list(base) if kind_of(base) == "list" else []
        out: list[Any] = []
        at = 0
        for region in regions(*numbered(canonical, start, local, remote)):
            out += local[at : region.local[0]]
            at = region.local[0] + region.local[1]
            parts = [_part(items, span) for items, span in zip((start, local, remote), region[1:], strict=True)]
            if region.side == Side.CONFLICT:
                out += self._contended(parts, path)
            else:
                out += parts[2 if region.side == Side.REMOTE else 1]
        out += local[at:]
        if equal(out, start) == DIFFERENT:
            self._took(path, "both", base, out)
        return out

    def _contended(self, parts: list[list[Any]], path: Path) -> list[Any]:
        before, mine, yours = parts
        kind = "insert/insert" if not before else "update/update" if mine and yours else "delete/update"
        word = self._word(pointer(path))
        if word in ("union", "operational_transform"):
            value = mine + yours if word == "union" else _transformed(before, mine, yours)
            self.conflicts.append(
                MergeConflict(pointer(path), CONCURRENT_UPDATE, kind, before, mine, yours, True, f"settled by {word}")
            )
            self.changes.append((path, "rule", before, value, word))
            return value
        found = self.conflict(path, CONCURRENT_UPDATE, kind, before, mine, yours)
        return list(found) if isinstance(found, list | tuple) else before

    def _text(self, rule: rules.Text, base: Any, local: str, remote: str, path: Path) -> Any:
        start = base if isinstance(base, str) else ""
        word = self._word(pointer(path))
        favor = {"operational_transform": "union"}.get(word or "", word)
        plain = merge_text(start, local, remote, unit=rule.unit)
        found = plain
        if not plain.clean and favor in ("local", "remote", "union"):
            found = merge_text(start, local, remote, unit=rule.unit, favor=favor)
        text = found.text
        if not plain.clean and callable(self.policy):  # a function decides about the whole text
            return self.conflict(path, CONCURRENT_UPDATE, "update/update", base, local, remote)
        for part in found.conflicts:
            kind = (
                "insert/insert" if not part.base else "update/update" if part.local and part.remote else "delete/update"
            )
            settled = found is not plain
            sides = part.base, part.local, part.remote
            self.conflicts.append(MergeConflict(pointer(path), CONCURRENT_UPDATE, kind, *sides, settled))
            for side, lost in (("local", part.local), ("remote", part.remote)):
                if lost and favor != "union" and not (settled and favor == side):
                    self.lost.append(Lost(pointer(path), lost, side, f"a {kind} conflict in a text"))
        if text != base:
            self._took(path, "both", base, text)
        return text


# ------------------------------------------------------------------------------------------------ helpers


def unchanged(base: Any, side: Any, node: Node) -> bool:
    """Whether a side left a value as it was, in the sense of the schema: the order of a set is no change."""
    if side is base:
        return True
    if equal(base, side) != DIFFERENT:
        return True
    if not node.unordered:
        return False
    if isinstance(node.rule, rules.SetOf):
        if kind_of(base) != "list" or kind_of(side) != "list":
            return False
        return {canonical(item) for item in base} == {canonical(item) for item in side}
    if is_record(base) and type(base) is type(side):
        base, side = fields_of(base), fields_of(side)
    if isinstance(base, Mapping) and isinstance(side, Mapping):
        return base.keys() == side.keys() and all(unchanged(base[key], side[key], node.child(key)) for key in base)
    if isinstance(base, list | tuple) and isinstance(side, list | tuple) and isinstance(node.rule, rules.Keyed):
        items = node.every or NOTHING
        return len(base) == len(side) and all(map(lambda a, b: unchanged(a, b, items), base, side))
    return False


def hides_counter(value: Any) -> bool:
    """Whether a record with a counter is somewhere in a value that no schema declares."""
    stack = [value]
    while stack:
        item = stack.pop()
        if is_record(item):
            if of_type(type(item)).adds:
                return True
            stack.extend(fields_of(item).values())
        elif isinstance(item, Mapping):
            stack.extend(item.values())
        elif isinstance(item, list | tuple):
            stack.extend(item)
    return False


def _all_keys(base: Mapping[Any, Any], local: Mapping[Any, Any], remote: Mapping[Any, Any]) -> Iterable[Any]:
    yield from base
    for key in local:
        if key not in base:
            yield key
    for key in remote:
        if key not in base and key not in local:
            yield key


def _weight(pattern: str) -> tuple[int, int]:
    """How exactly a pattern names a path: the most parts that are no wildcard, then the fewest that are."""
    parts = pattern.split("/")
    wild = sum(part in ("*", "**") for part in parts)
    return len(parts) - wild, -wild


def _rank(order: Sequence[Any], value: Any) -> int:
    for rank, word in enumerate(order):
        if same(word, value):
            return rank
    return -1


def _by_key(keys: Sequence[str], side: Sequence[Any]) -> dict[Hashable, Any] | None:
    """Items by identity; None if one has none, or two have the same."""
    found: dict[Hashable, Any] = {}
    for item in side:
        fields = item if type(item) is dict else fields_of(item) if is_record(item) else item
        if not isinstance(fields, Mapping):
            return None
        parts = []
        for key in keys:
            if key not in fields:
                return None
            parts.append(_identity(fields[key]))
        identity = parts[0] if len(parts) == 1 else tuple(parts)
        if identity in found:
            return None
        found[identity] = item
    return found


def _identity(value: Any) -> Hashable:
    """Equal for equal values only: an int for a whole number, canonical bytes for what Python takes for one."""
    kind = type(value)
    if kind is str or kind is int:
        return value  # type: ignore[no-any-return]
    if kind is float and value.is_integer():
        return int(value)
    return canonical(value)


def _in_order(side: Iterable[Hashable], others: Iterable[Hashable]) -> list[Hashable]:
    known = set(others)
    return [key for key in side if key in known]


def _placed(
    skeleton: list[Hashable], sources: Sequence[Sequence[Hashable]], batch: Set[Hashable], ranks: Mapping[Hashable, Any]
) -> list[Hashable]:
    """The skeleton with the keys of a batch put in, each behind what it follows in its source.

    Runs that follow the same key stand in the order of their first keys, so that swapped sources give the same list.
    """
    placed = set(skeleton)
    runs: dict[Hashable | None, list[list[Hashable]]] = {}
    for source in sources:
        anchor: Hashable | None = None
        run: list[Hashable] | None = None
        for key in source:
            if key in placed:
                anchor, run = key, None
            elif key in batch:
                if run is None:
                    run = []
                    runs.setdefault(anchor, []).append(run)
                run.append(key)
    out: list[Hashable] = []
    for here in (None, *skeleton):
        if here is not None:
            out.append(here)
        for run in sorted(runs.get(here, ()), key=lambda run: ranks[run[0]]):
            for key in run:
                if key not in placed:
                    placed.add(key)
                    out.append(key)
    return out


def _rank_of(item: Any, keys: Sequence[str]) -> Any:
    fields = fields_of(item) if is_record(item) else item
    return [_sort_key(canonical(fields[key]), fields[key]) for key in keys]


def _sort_key(key: bytes, value: Any) -> tuple[int, Any, bytes]:
    """Numbers by size, then texts by code point, then the rest by canonical bytes."""
    if isinstance(value, str):
        return 1, value, key
    if type(value) in (int, float) and value == value:
        return 0, value, key
    return 2, "", key


def _part(items: Sequence[Any], span: tuple[int, int]) -> list[Any]:
    return list(items[span[0] : span[0] + span[1]])


def _transformed(before: list[Any], mine: list[Any], yours: list[Any]) -> list[Any]:
    """Both sides' insertions, local's first where they meet, and both sides' deletions."""
    start, left, right = numbered(canonical, before, mine, yours)
    gone = bytearray(len(start))
    inserted: list[list[Any]] = [[] for _ in range(len(start) + 1)]
    for changed, values in ((left, mine), (right, yours)):
        for hunk in hunks(start, changed):
            gone[hunk.a_start : hunk.a_start + hunk.a_count] = b"\x01" * hunk.a_count
            inserted[hunk.a_start] += values[hunk.b_start : hunk.b_start + hunk.b_count]
    out = list(inserted[0])
    for i, item in enumerate(before):
        if not gone[i]:
            out.append(item)
        out += inserted[i + 1]
    return out
