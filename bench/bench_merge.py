"""Merges: three versions of a record, documents that share parts, JSON Patch and texts, each beside its peers.

Run with `pytest bench/bench_merge.py`. Peers do less: the plain merge has no rules and records nothing, dictdiffer and
nbdime do not say what was lost. Calls under a few microseconds are timed many at a time (`operations`).
"""

from __future__ import annotations

import random
import shutil
import subprocess
import time

import pytest

from nova.cli import conflict_works as works
from nova.conflict.merge import (
    Document,
    Keyed,
    Max,
    Precedence,
    apply_json_patch,
    compile_schema,
    diff,
    merge,
    merge_text,
    to_json_patch,
)


def library(name):
    reason = f"{name} is not installed; pip install {name} adds the peer"
    return pytest.importorskip(name, reason=reason)


def repeated(call, times, *arguments):
    def run():
        for _ in range(times):
            out = call(*arguments)
        return out

    return run


MERGES = {
    "nova": works.nova_merge,
    "plain Python": works.plain_merge,
    "dictdiffer": works.dictdiffer_merge,
    "nbdime": works.nbdime_merge,
}


@pytest.mark.benchmark(group="conflict.merge: three versions of a record")
@pytest.mark.parametrize("peer", MERGES)
@pytest.mark.parametrize("fields", [20, 500])
def test_merge_records(benchmark, peer, fields):
    if peer in ("dictdiffer", "nbdime"):
        library(peer)
    sides = works.three_versions(fields)
    times = 100 if peer in ("nova", "plain Python") else 1
    benchmark.extra_info["operations"] = times
    merged = benchmark(repeated(MERGES[peer], times, *sides))
    found = [merged[key] for key in ("cpu", "power_state", "label-3", "label-5")]
    assert found == [8, "stopped", "local", "remote"]


SCHEMA = compile_schema({"/cpu": Max, "/power_state": Precedence("stopped", "paused", "running"), "/nics": Keyed("id")})


@pytest.mark.benchmark(group="conflict.merge: by a schema, with conflicts")
@pytest.mark.parametrize("fields", [20, 500])
def test_merge_by_a_schema(benchmark, fields):
    base, local, remote = works.three_versions(fields)
    for side, mtu in ((base, 1500), (local, 9000), (remote, 4000)):
        side["nics"] = [{"id": "n0", "mtu": mtu}, {"id": "n1", "mtu": 1500}]
    local["power_state"] = "paused"
    result = benchmark(merge, base, local, remote, SCHEMA)
    assert [conflict.path for conflict in result.conflicts] == ["/nics/[id=n0]/mtu"]
    assert result.value["power_state"] == "paused"


@pytest.mark.benchmark(group="conflict.merge: documents that share parts")
@pytest.mark.parametrize(("fields", "edits"), [(500, 1), (50_000, 10)])
def test_merge_documents(benchmark, fields, edits):
    benchmark.extra_info["operations"] = 100
    base = Document({f"field-{i}": i for i in range(fields)})
    local = remote = base
    for i in range(edits):
        local = local.set((f"field-{i}",), -1)
        remote = remote.set((f"field-{fields - 1 - i}",), -2)
    result = benchmark(repeated(merge, 100, base, local, remote))
    assert result.clean
    assert len(result.changes) == 2 * edits


@pytest.mark.benchmark(group="conflict.merge: JSON Patch of 500 fields")
@pytest.mark.parametrize("peer", ["nova", "jsonpatch", "deepdiff"])
@pytest.mark.parametrize("what", ["make", "apply"])
def test_json_patch(benchmark, peer, what):
    base, local, _ = works.three_versions(500)
    operations = to_json_patch(diff(base, local))
    if peer == "deepdiff":
        if what == "apply":
            pytest.skip("deepdiff applies its own deltas, not JSON Patch")
        deepdiff = library(peer)
        assert benchmark(deepdiff.DeepDiff, base, local)
        return
    times = 100 if peer == "nova" else 1
    benchmark.extra_info["operations"] = times
    if what == "make":
        call = (lambda: to_json_patch(diff(base, local))) if peer == "nova" else None
        if call is None:
            jsonpatch = library(peer)
            assert len(benchmark(lambda: jsonpatch.make_patch(base, local).patch)) == 2
        else:
            assert len(benchmark(repeated(call, times))) == 2
        return
    if peer == "nova":
        found = benchmark(repeated(apply_json_patch, times, base, operations))
    else:
        found = benchmark(library(peer).apply_patch, base, operations)
    assert found == local


# git has its own process, whose time is not ours: by the clock on the wall.
@pytest.mark.benchmark(group="conflict.merge: texts of 2,000 lines, 20 edits a side", timer=time.perf_counter)
@pytest.mark.parametrize("peer", ["nova", "git merge-file, with its start"])
def test_merge_texts(benchmark, peer, tmp_path):
    chance = random.Random(7)
    base = [f"line {i} of the file\n" for i in range(2000)]
    local, remote = list(base), list(base)
    for i in range(20):
        local[i * 100 + chance.randrange(40)] = f"local {i}\n"
        remote[i * 100 + 50 + chance.randrange(40)] = f"remote {i}\n"
    texts = ["".join(side) for side in (base, local, remote)]
    if peer == "nova":
        found = benchmark(merge_text, *texts).text
    else:
        if shutil.which("git") is None:
            pytest.skip("git is not installed")
        names = ["base", "local", "remote"]
        for name, text in zip(names, texts, strict=True):
            (tmp_path / name).write_text(text)
        command = ["git", "merge-file", "-p", "local", "base", "remote"]
        found = benchmark(lambda: subprocess.run(command, cwd=tmp_path, capture_output=True, text=True).stdout)
    assert found.count("local") == found.count("remote") == 20
