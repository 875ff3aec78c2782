"""What `nova bench conflict` times: finding, settling and merging, and what one would write or take instead."""

from __future__ import annotations

import copy
import hashlib
import importlib
import json
import random
from collections.abc import Callable
from functools import partial
from typing import Any

from nova.clock import ClockBatch, VectorClock
from nova.conflict.audit import AuditChain, verify
from nova.conflict.batch import VersionBatch, settle_many
from nova.conflict.detect import ConflictDetector, Version, prune
from nova.conflict.merge import Document, apply_json_patch, diff, merge, to_json_patch
from nova.conflict.strategies import LastWriteWins

Work = Callable[[], object]

EVENT = ("detect", 1_700_000_000_000, "c" * 32, "vm/7", {"types": ["concurrent_update"], "paths": ["/cpu"], "a": 1})

ACTORS = [f"node-{i}" for i in range(8)]
MISSING = object()


def plain_merge(base: Any, local: Any, remote: Any) -> Any:
    """A three-way merge as one writes it in a hurry: no rules, no explanation, nothing recorded."""
    if isinstance(local, dict) and isinstance(remote, dict):
        known = base if isinstance(base, dict) else {}
        out = {}
        for key in {*local, *remote}:
            value = plain_merge(known.get(key, MISSING), local.get(key, MISSING), remote.get(key, MISSING))
            if value is not MISSING:
                out[key] = value
        return out
    if local == remote or remote == base:
        return local
    if local == base:
        return remote
    return remote


def dictdiffer_merge(base: Any, local: Any, remote: Any) -> Any:
    """The same by dictdiffer."""
    library = importlib.import_module("dictdiffer")
    merger = importlib.import_module("dictdiffer.merge").Merger(base, local, remote, {})
    merger.run()
    return library.patch(merger.unified_patches, base)


def nova_merge(base: Any, local: Any, remote: Any) -> Any:
    """The same by us."""
    return merge(base, local, remote).value


def nbdime_merge(base: Any, local: Any, remote: Any) -> Any:
    """The same by nbdime."""
    decide = importlib.import_module("nbdime.merging.generic").decide_merge
    apply = importlib.import_module("nbdime.merging.decisions").apply_decisions
    return apply(base, decide(base, local, remote))


def record(fields: int, seed: int = 7) -> dict[str, Any]:
    """A flat record of a VM."""
    chance = random.Random(seed)
    value: dict[str, Any] = {"id": "vm-1", "power_state": "running", "cpu": 4, "memory_mb": 8192}
    for i in range(fields - len(value)):
        value[f"label-{i}"] = str(chance.randrange(1000)) if i % 2 else chance.randrange(1000)
    return value


def three_versions(fields: int) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """A record and two that were made of it: copies that share no container, two edits a side."""
    base = record(fields)
    local, remote = copy.deepcopy(base), copy.deepcopy(base)
    local["cpu"], local["label-3"] = 8, "local"
    remote["power_state"], remote["label-5"] = "stopped", "remote"
    return base, local, remote


def clock(**more: int) -> VectorClock:
    """A clock of 8 nodes."""
    return VectorClock({**dict.fromkeys(ACTORS, 5), **more})


def version(value: Any, origin: str, count: int, stamp: int) -> Version:
    """A version whose writer is `count` events along, all others five."""
    return Version(value, clock(**{origin: count}), stamp << 16, origin)


def concurrent_pair(value: Any = 1, other: Any = 2) -> tuple[Version, Version]:
    """Two versions that did not see each other."""
    return version(value, "node-0", 6, 1), version(other, "node-1", 6, 2)


def clean_pair() -> tuple[Version, Version]:
    """Two versions of which the second saw the first."""
    a, b = concurrent_pair()
    return a, Version(2, a.clock.merge(b.clock), 2, "node-1")


def detects(pair: tuple[Version, Version]) -> Work:
    """Detection of one pair, boxed: a clean one gives nothing."""
    detect, (a, b) = ConflictDetector().detect, pair
    return lambda: (detect("vm/1", a, b),)


def plain_detect(pair: tuple[Version, Version]) -> Work:
    """Do two clocks that are dicts conflict?"""
    a, b = (side.clock.to_dict() for side in pair)

    def detect() -> tuple[bool]:
        actors = a.keys() | b.keys()
        ahead = any(a.get(actor, 0) > b.get(actor, 0) for actor in actors)
        return (ahead and any(a.get(actor, 0) < b.get(actor, 0) for actor in actors),)

    return detect


def settles() -> Work:
    """The last writer of two stays, and the loser is recorded."""
    found = ConflictDetector().detect("vm/1", *concurrent_pair())
    assert found is not None
    return partial(LastWriteWins().resolve, found)


def plain_last_writer(pair: list[dict[str, Any]]) -> dict[str, Any]:
    """The same with dicts and a list."""
    *losers, winner = sorted(pair, key=lambda side: (side["timestamp"], side["origin"]))
    clock: dict[str, int] = {}
    for side in pair:
        for actor, count in side["clock"].items():
            clock[actor] = max(clock.get(actor, 0), count)
    reason = f"a later write by {winner['origin']}"
    return {"value": winner["value"], "clock": clock, "discarded": [(side["value"], reason) for side in losers]}


def plain_settles() -> Work:
    """One pair of versions that are dicts."""
    return partial(
        plain_last_writer,
        [
            {"value": side.value, "clock": side.clock.to_dict(), "timestamp": side.timestamp, "origin": side.origin}
            for side in concurrent_pair()
        ],
    )


def prunes() -> Work:
    """What of three siblings nothing supersedes: all."""
    versions = [version(i, f"node-{i}", 6, i) for i in range(3)]
    return partial(prune, versions)


def plain_prune() -> Work:
    """The same with clocks that are dicts."""
    clocks = [version(i, f"node-{i}", 6, i).clock.to_dict() for i in range(3)]

    def covered(a: dict[str, int], b: dict[str, int]) -> bool:
        return a is not b and all(b.get(actor, 0) >= count for actor, count in a.items())

    return lambda: [a for a in clocks if not any(covered(a, b) for b in clocks)]


def version_batches(rows: int) -> tuple[VersionBatch, VersionBatch]:
    """Two columns of versions, with clocks of 8 nodes of which nearly all pairs are concurrent."""
    import numpy

    chance = numpy.random.default_rng(7)
    names = tuple(ACTORS)

    def side(least: int) -> VersionBatch:
        counts = chance.integers(least, 110, (rows, len(names))).astype(numpy.uint64)
        stamps = chance.integers(0, 1 << 60, rows).astype(numpy.uint64)
        return VersionBatch(
            ClockBatch.from_array(names, counts), stamps, chance.integers(0, 8, rows).astype(numpy.uint32), names
        )

    return side(100), side(101)  # bases differ, as those of two replicas do


def settles_many(rows: int) -> Work:
    """Compare and settle so many pairs."""
    pair = version_batches(rows)
    return lambda: settle_many(*pair)


def plain_settles_many(rows: int) -> Work:
    """The same with a dict for each clock."""
    pairs = []
    for batch in version_batches(rows):
        clocks = [dict(zip(ACTORS, counts, strict=True)) for counts in batch.clocks.counts.tolist()]
        pairs.append(list(zip(clocks, batch.timestamps.tolist(), batch.origins.tolist(), strict=True)))

    def settle() -> list[tuple[int, dict[str, int]]]:
        out = []
        for (a, *mine), (b, *yours) in zip(*pairs, strict=True):
            ahead = any(count > b.get(actor, 0) for actor, count in a.items())
            behind = any(count > a.get(actor, 0) for actor, count in b.items())
            clock = {actor: max(a.get(actor, 0), b.get(actor, 0)) for actor in a.keys() | b.keys()}
            out.append((int(yours > mine) if ahead and behind else int(behind), clock))
        return out

    return settle


def merges_plainly(call: Callable[..., Any], fields: int) -> Work:
    """A merge of three records."""
    return partial(call, *three_versions(fields))


def merges_documents(fields: int, edits: int) -> Work:
    """A merge of documents that share all but the edits."""
    base = Document({f"field-{i}": i for i in range(fields)})
    local = remote = base
    for i in range(edits):
        local = local.set((f"field-{i}",), -1)
        remote = remote.set((f"field-{fields - 1 - i}",), -2)
    return partial(merge, base, local, remote)


def makes_patch(fields: int) -> Work:
    """JSON Patch from what differs."""
    base, local, _ = three_versions(fields)
    return lambda: to_json_patch(diff(base, local))


def plain_makes(fields: int) -> Work:
    """The same for flat records."""
    base, local, _ = three_versions(fields)

    def make() -> list[dict[str, Any]]:
        gone = [{"op": "remove", "path": "/" + key} for key in base if key not in local]
        come = [{"op": "add", "path": "/" + key, "value": local[key]} for key in local if key not in base]
        changed = [key for key, value in local.items() if key in base and base[key] != value]
        return gone + come + [{"op": "replace", "path": "/" + key, "value": local[key]} for key in changed]

    return make


def jsonpatch_makes(fields: int) -> Work:
    """The same by jsonpatch."""
    base, local, _ = three_versions(fields)
    make = importlib.import_module("jsonpatch").make_patch
    return lambda: make(base, local).patch


def deepdiff_finds(fields: int) -> Work:
    """What differs, by deepdiff."""
    base, local, _ = three_versions(fields)
    return partial(importlib.import_module("deepdiff").DeepDiff, base, local)


def applies_patch(fields: int) -> Work:
    """JSON Patch applied."""
    base, local, _ = three_versions(fields)
    return partial(apply_json_patch, base, to_json_patch(diff(base, local)))


def plain_applies(fields: int) -> Work:
    """The same by ten lines that know flat records only: a deep copy, and what is new set in it."""
    base, local, _ = three_versions(fields)
    operations: list[Any] = to_json_patch(diff(base, local))

    def apply() -> dict[str, Any]:
        out = copy.deepcopy(base)
        for operation in operations:
            out[operation["path"][1:]] = operation["value"]
        return out

    return apply


def jsonpatch_applies(fields: int) -> Work:
    """The same by jsonpatch."""
    base, local, _ = three_versions(fields)
    return partial(importlib.import_module("jsonpatch").apply_patch, base, to_json_patch(diff(base, local)))


# ------------------------------------------------------------------------------------------------ audit


def appends(events: int) -> Work:
    """Events chained one by one."""
    append = AuditChain().append
    return lambda: [append(*EVENT) for _ in range(events)]


def verifies(events: int) -> Work:
    """Events whose chain is checked."""
    chain = AuditChain()
    records = chain.append_many([EVENT] * events)
    return lambda: verify(records, chain.mark)


def _plain_records(events: int) -> list[tuple[bytes, bytes]]:
    previous, out = bytes(32), []
    for number in range(events):
        content = json.dumps([number, *EVENT], sort_keys=True).encode()
        previous = hashlib.blake2b(previous + content, digest_size=32).digest()
        out.append((previous, content))
    return out


def plain_appends(events: int) -> Work:
    """The same by json and hashlib."""
    return lambda: _plain_records(events)


def plain_verifies(events: int) -> Work:
    """The same by json and hashlib."""
    records = _plain_records(events)

    def check() -> bool:
        previous = bytes(32)
        for number, (digest, content) in enumerate(records):
            previous = hashlib.blake2b(previous + content, digest_size=32).digest()
            if previous != digest or json.loads(content)[0] != number:
                return False
        return True

    return check
