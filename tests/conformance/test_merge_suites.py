"""Public suites and the project's own scenarios, for the merge engine. NOVA_TEST_DATA names their folder.

A file may be replaced by another of the same format: nothing here knows a case by its name.
"""

from __future__ import annotations

import copy
import functools
import itertools
import json
import os
import re
import tempfile
from pathlib import Path
from typing import Any

import pytest

from nova.clock import HybridLogicalClock, VectorClock
from nova.conflict import strategy_named
from nova.conflict.audit import AuditChain, AuditLog, decode_event, verify
from nova.conflict.detect import Conflict, ConflictDetector, Version, complexity_of, newest, prune
from nova.conflict.healing.fencing import Failover, Observation, find_split_brain, resolve_split_brain
from nova.conflict.merge import (
    MISSING,
    ObjectSchema,
    Owned,
    apply_json_patch,
    apply_merge_patch,
    conflicting_revisions,
    diff,
    merge,
    merge_revisions,
    merge_text,
    merge_trees,
    path_of,
    revision_leaves,
    same,
    to_json_patch,
    winning_revision,
)
from nova.conflict.policy import PolicyBuilder, PolicyManager
from nova.conflict.policy.conditions import condition
from nova.conflict.strategies import (
    Ballot,
    ConsensusVote,
    HighestPriority,
    ManualQueue,
    Question,
    ResolveContext,
    Tally,
)
from nova.errors import CorruptionError, FenceRequiredError, StaleContextError, UnavailableError, UsageError
from nova.storage.subjects import SubjectKeys
from nova.store import ReplicatedStore, heal, restore
from nova.types import Order

DATA = Path(os.environ.get("NOVA_TEST_DATA", "../shared/data")) / "merge"


def suite(name: str) -> list[Any]:
    """The cases of a file as parameters; one that skips, with the reason, where the file is not."""
    path = DATA / f"{name}.json"
    if not path.exists():
        reason = f"{path} is not here; NOVA_TEST_DATA names the folder of the public data"
        return [pytest.param(None, id="absent", marks=pytest.mark.skip(reason=reason))]
    cases = json.loads(path.read_text())["cases"]
    names = [str(case.get("id") or case.get("comment") or case.get("name") or "case") for case in cases]
    return [
        pytest.param(case, id=f"{name}-{i}-{named}") for i, (case, named) in enumerate(zip(cases, names, strict=True))
    ]


# ------------------------------------------------------------------------------------------------ patches


@pytest.mark.parametrize("case", suite("json_patch_rfc6902_spec") + suite("json_patch_rfc6902_tests"))
def test_json_patch_does_what_rfc_6902_says(case: dict[str, Any]) -> None:
    if case.get("disabled"):
        pytest.skip("the suite has this record disabled: JSON parsers do not agree about it")
    before = copy.deepcopy(case["doc"])
    if "error" in case:
        with pytest.raises(UsageError):
            apply_json_patch(case["doc"], case["patch"])
    else:
        found = apply_json_patch(case["doc"], case["patch"])
        assert same(found, case.get("expected", found))
        made = to_json_patch(diff(case["doc"], found))
        assert same(apply_json_patch(case["doc"], json.loads(json.dumps(made))), found)
    assert same(case["doc"], before)


@pytest.mark.parametrize("case", suite("json_merge_patch_rfc7396"))
def test_merge_patch_does_what_rfc_7396_says(case: dict[str, Any]) -> None:
    assert same(apply_merge_patch(case["original"], case["patch"]), case["result"])


# ------------------------------------------------------------------------------------------------ texts


def joined(lines: list[str]) -> str:
    return "".join(line + "\n" for line in lines)


@pytest.mark.parametrize("case", suite("text_merge_vectors"))
def test_texts_merge_as_git_merges_them(case: dict[str, Any]) -> None:
    texts = [joined(case[side]) for side in ("base", "local", "remote")]
    found = merge_text(*texts)
    assert found.clean == (case["git_conflicts"] == 0)
    if found.clean:
        assert found.text == joined(case["git_merged"])
    for favor, word in (("local", "git_ours"), ("remote", "git_theirs"), ("union", "git_union")):
        forced = merge_text(*texts, favor=favor)
        assert forced.text == joined(case[word])
        assert len(forced.conflicts) == case["git_conflicts"]


# ------------------------------------------------------------------------------------------------ scenarios


def scenarios(*kinds: str) -> list[Any]:
    return [each for each in suite("scenarios") if not each.values[0] or each.values[0]["kind"] in kinds]


def as_sets(value: Any) -> Any:
    """A value in which the order of lists counts for nothing."""
    if isinstance(value, dict):
        return {key: as_sets(item) for key, item in value.items()}
    if isinstance(value, list):
        return sorted((as_sets(item) for item in value), key=repr)
    return value


def told(conflicts: Any) -> list[tuple[str, str, str]]:
    return sorted((conflict.path, conflict.type, conflict.kind) for conflict in conflicts)


@pytest.mark.parametrize("case", scenarios("three_way"))
def test_a_scenario_merges_by_the_rules(case: dict[str, Any]) -> None:
    expected = case["expected"]

    def merged(local: Any, remote: Any) -> Any:
        return merge(
            case.get("base", MISSING),
            local,
            remote,
            case.get("schema"),
            case.get("strategy"),
            invariants=case.get("invariants", ()),
        )

    found = merged(case["local"], case["remote"])
    assert told(found.conflicts) == sorted((c["path"], c["type"], c["kind"]) for c in expected["conflicts"])
    assert found.committed == expected.get("committed", True)
    if found.committed:
        assert same(found.value, expected["merged"])
    else:
        assert same(found.value, case["base"])
        assert expected["merged"] is None
    assert list(found.preexisting) == expected.get("preexisting_violations", [])
    assert found.clean == (not expected["conflicts"])
    if expected.get("audited"):
        assert found.lost
    if expected.get("resolved"):
        assert not found.unresolved
    swapped = merged(case["remote"], case["local"])
    assert told(swapped.conflicts) == told(found.conflicts)
    if case.get("symmetric"):
        view = as_sets if case.get("symmetric_as") == "set" else lambda value: value
        assert same(view(swapped.value), view(found.value))
        assert same(view(swapped.proposal), view(found.proposal))


def moved(tree: Any, operation: str) -> Any:
    """A tree after "move A into B"."""
    _, name, _, target = operation.split()
    out = copy.deepcopy(tree)
    out[target][name] = out.pop(name)
    return out


@pytest.mark.parametrize("case", scenarios("three_way_tree"))
def test_concurrent_moves_leave_a_tree(case: dict[str, Any]) -> None:
    base = case["given"]["base"]
    sides = [moved(base, case["given"][f"{side}_op"]) for side in ("local", "remote")]
    schema = {"": {"track_moves": True}}
    found, swapped = merge(base, *sides, schema), merge(base, *sides[::-1], schema)
    assert [(c.type, c.kind) for c in found.conflicts] == [tuple(case["expected"]["conflict"].values())]
    assert same(found.value, swapped.value)
    nodes, stack = set(), [found.value]
    while stack:
        here = stack.pop()
        nodes |= here.keys()
        stack += here.values()
    assert nodes == base.keys()


MIGRATION = {
    "/migration": {
        "type": "atomic",
        "exclusive": "target",
        "state": "status",
        "ended": ["completed", "cancelled", "failed"],
    }
}


@pytest.mark.parametrize("case", scenarios("vm_migration"))
def test_a_migration_is_one_group_and_has_one_target(case: dict[str, Any]) -> None:
    given, expected = case["given"], case["expected"]
    found = merge(given["base"], given["local"], given["remote"], MIGRATION)
    assert told(found.conflicts) == [(c["path"], c["type"], c["kind"]) for c in expected["conflicts"]]
    assert found.committed == expected.get("committed", True)
    assert found.value in (given["base"], given["local"], given["remote"])


def version(given: dict[str, Any], name: str) -> Version:
    clock = VectorClock({actor: count for actor, count in given.get("clock", {name: 1}).items() if count})
    wall, logical, origin = given.get("hlc", [given.get("wall_ms", 0), 0, name])
    return Version(given["value"], clock, (wall << 16) + logical, origin)


@pytest.mark.parametrize("case", scenarios("detect"))
def test_causality_decides_what_a_conflict_is(case: dict[str, Any]) -> None:
    given, expected = case["given"], case["expected"]
    if "conflicts" in given:
        scores = [
            complexity_of(c["fields"], c["fields"] * (c["siblings"] - 2), c["depth"], 1, 0) for c in given["conflicts"]
        ]
        assert scores == sorted(set(scores))
        assert all(0 <= score <= 1 for score in scores)
        return
    if "local" not in given or expected.get("type") == "causal_violation":
        pytest.skip("a replica that reuses its event numbers is found by the store, which tracks what it has seen")
    local, remote = version(given["local"], "local"), version(given["remote"], "remote")
    found = ConflictDetector().detect("x", local, remote)
    if "winner" in expected:
        assert found is None
        winner = local if local.clock.compare(remote.clock) is Order.AFTER else remote
        assert winner.value == given[expected["winner"]]["value"]
    elif expected["conflict"]:
        assert found is not None
        assert found.types[0] == expected["type"]
    else:
        assert found is None or not found.paths
        assert local.clock.merge(remote.clock) == VectorClock(expected["merged_clock"])


def vote(given: dict[str, Any]) -> Tally:
    """The votes of a case, counted. What is asked of more voters than have voted: nobody heard of the others."""
    log = given.get("vote_log") or list(given["votes"].items())
    names = dict.fromkeys(voter for voter, _ in log)
    silent = [f"silent-{i}" for i in range(given["voters"] - len(names))]
    tally = Tally([*names, *silent])
    for voter, choice in log:
        tally.cast(voter, choice)
    return tally


def hybrid_events(events: list[dict[str, Any]]) -> list[Version]:
    """Writes by nodes with clocks that are off, stamped as a store stamps them."""
    clocks: dict[str, HybridLogicalClock] = {}
    stamps: dict[str, int] = {}
    out = []
    for event in events:
        node = event["node"]
        clock = clocks.setdefault(node, HybridLogicalClock())
        if "reads_from" in event:
            clock.receive(stamps[event["reads_from"]], event["wall_ms"] * 1_000_000)
        stamps[node] = clock.tick(event["wall_ms"] * 1_000_000)
        out.append(Version(event["write"], VectorClock({node: len(out) + 1}), stamps[node], node))
    return out


def rolled_back(given: dict[str, Any]) -> tuple[dict[str, Any], list[Any]]:
    """(state, what was undone): the conflicting writes go back to the checkpoint, field by field; the others stay."""
    state = dict(given["checkpoint"])
    for event in given["history"]:
        state |= event["set"]
    undone = []
    for event in given["history"]:
        if not event["conflicting"]:
            continue
        paths = {f"/{name}": name for name in event["set"]}
        siblings = {path: [Version(event["set"][name], VectorClock({"w": 1}), 2, "w")] for path, name in paths.items()}
        conflict = ConflictDetector().examine("x", "map", siblings)
        before = {path: given["checkpoint"].get(name, MISSING) for path, name in paths.items()}
        history = (Version(before, VectorClock({}), 1, "checkpoint"),)
        found = strategy_named("automatic_rollback").resolve(conflict, ResolveContext(history=history))
        for event_during in given["during_rollback"]:
            state |= event_during["set"]
        for path, value in found.settled.items():
            if value is MISSING:
                state.pop(paths[path])
            else:
                state[paths[path]] = value
        undone.append({"set": {paths[each.path]: each.value for each in found.discarded}})
    return state, undone


@pytest.mark.parametrize("case", scenarios("strategy"))
def test_a_strategy_settles_and_lists_what_it_dropped(case: dict[str, Any]) -> None:
    given, expected = case["given"], case["expected"]
    name = given["strategy"]
    if "siblings" in given:
        siblings = [version(each, str(i)) for i, each in enumerate(given["siblings"])]
        assert sorted(each.value for each in prune(siblings)) == expected["values"]
    elif name == "consensus_vote":
        tally = vote(given)
        assert (tally.winner is not None) == expected["decided"]
        assert tally.counted == expected.get("counted", tally.counted)
        if expected.get("action") == "fallback":
            assert tally.hopeless
    elif name == "rollback":
        assert rolled_back(given) == (expected["state"], expected["undone"])
    elif name == "manual":
        decided_by_hand(given, expected)
    elif "events" in given:
        first, last = hybrid_events(given["events"])
        assert last.timestamp > first.timestamp
        assert newest([first, last]).value == newest([last, first]).value == expected["value"]
    else:
        settled_alike(name, given, expected)


def decided_by_hand(given: dict[str, Any], expected: dict[str, Any]) -> None:
    base = Version(given["base"], VectorClock({}), 0, "base")
    sides = [Version(given[side], VectorClock({side: 1}), i, side) for i, side in enumerate(("local", "remote"), 1)]
    conflict = ConflictDetector().detect("x", *sides, base=base)
    assert conflict is not None
    assert strategy_named("manual").resolve(conflict).value == expected["after_open"]
    queue = ManualQueue()
    shown = queue.open(conflict, 0)
    for step in given["then"]:
        if "write" in step:
            sides.append(Version(step["write"], VectorClock({f"w{len(sides)}": 1}), 9, f"w{len(sides)}"))
            queue.open(ConflictDetector().examine("x", "register", {"": sides}), 1)
        elif expected["after_decide"]["accepted"]:
            assert queue.decide("x", shown.id, {"": step["decide"]}, by="me", now_ms=2).settled == {"": step["decide"]}
        else:
            with pytest.raises(StaleContextError, match=expected["after_decide"]["reason"]):
                queue.decide("x", shown.id, {"": step["decide"]}, by="me", now_ms=2)


def settled_alike(name: str, given: dict[str, Any], expected: dict[str, Any]) -> None:
    sides = version(given["local"], "a"), version(given["remote"], "b")
    chosen = (
        HighestPriority(given["priorities"], otherwise=given["fallback"])
        if name == "highest_priority"
        else strategy_named(name)
    )
    for pair in (sides, sides[::-1]):
        conflict = ConflictDetector().detect("x", *pair)
        assert conflict is not None
        found = chosen.resolve(conflict)
        assert found.value == expected["value"]
        if "lost" in expected:
            assert [{"value": each.value, "by": each.origin} for each in found.discarded] == expected["lost"]
        if "via" in expected:
            assert list(found.via) == expected["via"]


# ------------------------------------------------------------------------------------------------ policies


class Minute:
    """Time that only passes when somebody sleeps or is asked, and voters who take their time."""

    def __init__(self, attempt_ms: int = 0) -> None:
        self.ns, self.attempt_ms = 0, attempt_ms

    def now_ns(self) -> int:
        return self.ns

    def sleep_ns(self, ns: int) -> None:
        self.ns += ns

    def ask(self, question: Question) -> list[Ballot]:
        self.ns += min(self.attempt_ms, question.timeout_ms) * 1_000_000
        raise UnavailableError("no voter answered")


def conflict_at(paths: list[str], complexity: float | None = None) -> Conflict:
    rows = {
        path: [Version(i, VectorClock({origin: 1}), i, origin) for i, origin in enumerate("ab", 1)] for path in paths
    }
    found = ConflictDetector().examine("x", "map", rows)
    return found if complexity is None else found.replace(complexity=complexity)


@pytest.mark.parametrize("case", scenarios("policy"))
def test_a_policy_decides_by_its_rules(case: dict[str, Any]) -> None:
    given, expected = case["given"], case["expected"]
    builder = PolicyBuilder("case")
    if "rules" in given:
        for rule in given["rules"]:
            asked = [
                condition({"complexity_gt": "complexity_over"}.get(word, word), value)
                for word, value in rule["when"].items()
            ]
            builder.rule(str(rule["when"]), *asked, use=rule["use"])
        policy = builder.default(given["default"]).build()
        scores = given.get("complexity", {})
        found = {path: policy.choose(conflict_at([path], scores.get(path)), path).use for path in given["conflicts"]}
        assert found == expected
    elif "fields" in given:
        for pattern, use in given["fields"].items():
            builder.field(pattern, use)
        policy = builder.build()
        assert {path: policy.choose(conflict_at([path]), path).use for path in given["conflicts"]} == expected
    elif "timeout_s" in given:
        time = Minute(round(given["each_attempt_s"] * 1000))
        builder.strategy(given["strategy"], ConsensusVote("abc", time, otherwise=None)).default(given["strategy"])
        builder.retry(given["retries"], backoff_ms=0).timeout(round(given["timeout_s"] * 1000))
        policy = builder.fallback(given["strategy"], given["fallback"]).build()
        settled = PolicyManager([policy], timer=time).resolve(conflict_at([""]), "case")
        assert settled.attempts == expected["attempts"]
        assert time.ns <= expected["elapsed_le_s"] * 1e9
        assert list(settled.via) == expected["via"]
    else:
        time = Minute()
        limit = given["auto_limit"]
        policy = builder.auto_limit(limit["count"], window_ms=round(limit["window_s"] * 1000)).build()
        manager = PolicyManager([policy], timer=time)
        actions = []
        for moment in given["times_s"]:
            time.ns = round(moment * 1e9)
            settled = manager.resolve(conflict_at([given["conflicts_on"]]), "case")
            actions.append("escalate" if settled.actions else "auto")
        assert actions == expected["actions"]


@pytest.mark.parametrize("case", scenarios("property"))
def test_the_example_of_a_property_shows_its_conflict(case: dict[str, Any]) -> None:
    """The properties themselves are laws, which test_merge_laws.py and test_merge_patches.py hold for drawn values."""
    example = case["given"].get("example")
    if not example:
        pytest.skip("this property is a law for drawn values: see tests/conflict/test_merge_laws.py")
    base, *writers = example.values()
    for order in itertools.permutations(writers):
        value, contended = base, []
        for writer in order:
            found = merge(base, value, writer)
            contended += [c.path for c in found.conflicts]
            contended += [item.path for item in found.lost]
            value = found.value
        assert set(contended) == {"/x"}


@pytest.mark.parametrize("case", scenarios("audit"))
def test_the_audit_trail_shows_what_was_done_to_it(case: dict[str, Any]) -> None:
    given, expected = case["given"], case["expected"]
    log = AuditLog(key=b"kept elsewhere")
    if "attacks" in given:
        for n in range(given["records"]):
            log.append("detect", n, f"c{n}", "vm/1", {"n": n})
        records = [record for _, record in log.records.replay()]
        for attack in given["attacks"]:
            tampered = attacked(records, attack)
            assert verify(tampered, log.mark, key=b"kept elsewhere").ok is False
            alone = verify(tampered, key=b"kept elsewhere").ok
            assert alone == (attack not in expected["detected"]) == (attack in expected["detected_with_external_head"])
    elif "erase" in given:
        pytest.importorskip("cryptography")
        with tempfile.TemporaryDirectory() as folder, SubjectKeys(folder) as keys:
            log = AuditLog(vault=keys)
            log.append("decision", 1, "c", "vm/1", given["record"], personal={given["erase"]: "subject"})
            (event,) = log.events()
            assert log.reveal(event) == given["record"]
            assert log.erase("subject", 2)
            assert log.verify().ok == expected["verify"]
            assert (log.reveal(event) == given["record"]) == expected["value_readable"]
            path = given["erase"].split("/")[1:]
            secret = str(functools.reduce(lambda at, name: at[name], path, given["record"]))
            assert not any(f'"{secret}"' in line for line in log.export())
    else:
        bodies = [{"i": 2**63}, {"i": -(2**63)}, {"b": b"\x00\xff"}, {"é": "😀"}, {"z": {"b": 1.0, "a": [None, 1]}}, {}]
        for n, body in enumerate(bodies):
            log.append("fail", n, f"c{n}", "r/é", body)
        lines = list(log.export())
        copy = AuditLog(key=b"kept elsewhere")
        assert copy.take_export(lines) == len(bodies)
        assert list(copy.export()) == lines
        assert copy.verify(log.mark).ok


def attacked(records: list[bytes], attack: str) -> list[bytes]:
    """Records after "edit 2", "delete 3", "swap 2 and 3", "truncate after 3" or "append forged" (without the key)."""
    numbers = [int(word) - 1 for word in attack.split() if word.isdecimal()]
    out = list(records)
    match attack.split()[0]:
        case "edit":
            out[numbers[0]] = out[numbers[0]][:-1] + bytes([out[numbers[0]][-1] ^ 1])
        case "delete":
            del out[numbers[0]]
        case "swap":
            out[numbers[0]], out[numbers[1]] = out[numbers[1]], out[numbers[0]]
        case "truncate":
            del out[numbers[0] + 1 :]
        case "append":
            last = decode_event(out[-1])
            out.append(AuditChain(last.hash, last.seq).append("fail", 1, "c", "r", {}))
        case _:
            pytest.fail(f"no attack {attack!r} is known")
    return out


# ------------------------------------------------------------------------------------------------ healing


@pytest.mark.parametrize("case", scenarios("split_brain"))
def test_a_split_brain_is_found_and_nothing_is_destroyed_without_an_order(case: dict[str, Any]) -> None:
    expected = case["expected"]
    seen = [Observation(**each) for each in case["given"]["observations"]]
    for observations in itertools.permutations(seen):
        split = find_split_brain("vm/1", observations)
        assert (split is not None) == expected["split_brain"]
        if split is not None:
            decision = resolve_split_brain(split, "newest")
            assert (decision.action, decision.keep) == (expected["action"], expected["keep"])
            assert bool(decision.fence) == (expected["action"] == "fence")


@pytest.mark.parametrize("case", scenarios("recovery"))
def test_recovery_loses_nothing_and_skips_nothing(case: dict[str, Any], tmp_path: Path) -> None:
    given, expected = case["given"], case["expected"]
    if "log" in given:
        restored_from(given["log"], expected, tmp_path)
    elif "steps" in given:
        with pytest.raises(FenceRequiredError):
            failed_over(given["steps"])
        assert failed_over(expected["allowed"]).state == "promoted"
    elif "visible" in given:
        failover = Failover(given["nodes"])
        failover.detect()
        assert failover.quorum(given["visible"]) == expected["promote"]
        assert failover.state == expected["state"].lower()
        assert failover.takes_writes == (expected["writes"] != "refused")
        with pytest.raises(FenceRequiredError):
            failover.promote()
    else:
        for order in (1, -1):
            stores = [written(side, given[side]) for side in ("left", "right")][::order]
            done = heal(*stores)
            for store in stores:
                assert {entry.key: entry.value for entry in store.scan()[0]} == expected["state"]
                assert store.digest == done.digest
            assert not heal(*stores).exchanged


def restored_from(log: str, expected: dict[str, Any], folder: Path) -> None:
    """A log that is torn at its end, or has a flipped byte in a record, restored into another directory."""
    numbers = [int(word) for word in re.findall(r"\d+", log)] or [1, 5]
    texts = [f"{number:04}" * 8 for number in range(numbers[0], numbers[1] + 1)]
    with ReplicatedStore(folder / "a", node="a") as store:
        for number, text in enumerate(texts, numbers[0]):
            store.put(f"k{number}", text)
    (segment,) = (folder / "a" / "log").glob("*.log")
    data = bytearray(segment.read_bytes())
    if not expected["error"]:
        last = data.index(texts[-1].encode())
        data[last + 8 :] = bytes(len(data) - last - 8)  # what is behind never came to the disk
        segment.write_bytes(data)
        done = restore(folder / "a", folder / "b", node="b")
        assert (done.torn_bytes > 0) == expected["dropped_bytes_reported"]
        with ReplicatedStore(folder / "b", node="b") as copy:
            assert [entry.value for entry in copy.scan()[0]] == texts[:-1]
        return
    data[data.index(texts[expected["at"] - numbers[0]].encode())] ^= 1
    segment.write_bytes(data)
    with pytest.raises(CorruptionError) as found:
        restore(folder / "a", folder / "b", node="b")
    assert f"record {expected['at']} " in str(found.value)
    assert not (folder / "b").exists()


def failed_over(steps: list[str]) -> Failover:
    failover = Failover(3)
    for step in steps:
        match step.split():
            case ["detect"]:
                failover.detect()
            case ["quorum"]:
                assert failover.quorum(2)
            case ["fence", host]:
                failover.fence([host], 1)
            case ["confirm", "fenced"]:
                assert failover.confirm("a", 1)
            case ["promote", _]:
                failover.promote()
            case _:
                pytest.fail(f"no step {step!r} is known")
    return failover


def written(node: str, steps: list[dict[str, Any]]) -> ReplicatedStore:
    store = ReplicatedStore(node=node)
    for step in steps:
        ((key, value),) = step["set"].items()
        if isinstance(value, dict):
            store.put(key, {"add": [value["add"]]}, kind="set", merge=True)
        else:
            store.put(key, value)
    return store


# ------------------------------------------------------------------------------------------------ trees


@pytest.mark.parametrize("case", suite("couch_revtree_published"))
def test_revision_trees_merge_as_in_couchdb(case: dict[str, Any]) -> None:
    if case["fn"] == "winning_rev":
        assert winning_revision(case["tree"]) == case["result"]
        return
    before = copy.deepcopy(case["tree"])
    found = merge_revisions(case["tree"], case["path"], case["depth"])
    expected = case["result"]
    assert (found.tree, list(found.stemmed), found.kind) == (
        expected["tree"],
        expected["stemmedRevs"],
        expected["conflicts"],
    )
    assert case["tree"] == before


@pytest.mark.parametrize("case", suite("couch_revtree_vectors"))
def test_all_replicas_show_the_revision_that_couchdb_shows(case: dict[str, Any]) -> None:
    for branches in (case["branches"], case["branches"][::-1]):
        tree: list[Any] = []
        for branch in branches:
            tree = merge_revisions(tree, path_of(branch["revs"], deleted=branch["deleted"])).tree
        leaves = [{"rev": revision, "deleted": deleted} for revision, deleted in revision_leaves(tree)]
        assert leaves == sorted(case["leaves"], key=lambda leaf: (int(leaf["rev"].split("-")[0]), leaf["rev"]))
        assert winning_revision(tree) == case["winner"]
        assert sorted(conflicting_revisions(tree)) == sorted(case["conflicts"])


GIT_KINDS = {
    "content": {"content", "contents"},
    "add/add": {"add/add", "contents"},
    "file location": {"directory rename suggested", "file location"},
}


@pytest.mark.parametrize("case", suite("tree_merge_vectors"))
def test_trees_merge_as_git_merges_them(case: dict[str, Any]) -> None:
    for sides in ((case["local"], case["remote"]), (case["remote"], case["local"])):
        found = merge_trees(case["base"], *sides)
        kinds = set().union(*(GIT_KINDS.get(conflict.kind, {conflict.kind}) for conflict in found.conflicts))
        assert kinds == set(case["conflict_kinds"])
        assert found.clean == case["clean"]
        if found.clean:
            assert found.files == case["merged"]


# ------------------------------------------------------------------------------------------------ server-side apply


def ownership_cases() -> list[Any]:
    cases = suite("server_side_apply_cases")
    if cases[0].values[0] is None:
        return [pytest.param(None, None, id=each.id, marks=each.marks) for each in cases]
    schemas = json.loads((DATA / "server_side_apply_cases.json").read_text())["schemas"]
    return [pytest.param(each.values[0], schemas.get(each.values[0]["parser"]), id=each.id) for each in cases]


def repeated(value: Any, origin: str, version: str) -> Any:
    """The conversion of the suite's "real conversion" cases: at version v3 the field a is called aaa."""
    times = [int(each[1:]) for each in (origin, version)]
    if not isinstance(value, dict):
        return value
    return {field: renamed(item, *times) if isinstance(item, dict | list) else item for field, item in value.items()}


def renamed(value: Any, old: int, new: int) -> Any:
    if isinstance(value, dict):
        return {key[: len(key) // old] * new: renamed(item, old, new) for key, item in value.items()}
    return value


@pytest.mark.parametrize(("case", "types"), ownership_cases())
def test_managers_own_what_they_apply(case: dict[str, Any], types: Any) -> None:
    schema = ObjectSchema() if types is None else ObjectSchema(types["types"], types["root"])
    state = Owned(schema, convert=repeated) if "RealConversion" in case["name"] else Owned(schema)
    failed = False
    for step in case["ops"]:
        arguments = step["manager"], step["object"], step["version"]
        force = {"force": True} if step["op"].startswith("Force") else {}
        call = {"Update": state.update, "ExtractApply": state.extract_apply}.get(
            step["op"].removeprefix("Force"), state.apply
        )
        if step.get("conflicts"):
            with pytest.raises(StaleContextError) as caught:
                call(*arguments, **force)
            expected = {(each["manager"], tuple(each["path"])) for each in step["conflicts"]}
            assert set(caught.value.current) == expected
            continue
        try:
            state = call(*arguments, **force)
        except UsageError:
            failed = True
            break
    assert failed == bool(case.get("expect_error"))
    if "expect_object" in case:
        found = (
            state.value
            if state.version == case["expect_version"]
            else state.convert(state.value, state.version, case["expect_version"])
        )
        assert same(found, case["expect_object"])
    if "expect_managed" in case:
        found = {name: (owner.version, owner.fields) for name, owner in state.managers.items()}
        assert found == {
            name: (owner["version"], frozenset(map(tuple, owner["fields"])))
            for name, owner in case["expect_managed"].items()
        }
