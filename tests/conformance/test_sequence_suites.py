"""Histories that nobody here wrote: every one must end in the expected text. NOVA_TEST_DATA names their folder."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from typing import Any

import pytest

from nova.crdt import RGA

DATA = Path(os.environ.get("NOVA_TEST_DATA", "../shared/data"))


def load(name: str) -> str:
    path = DATA / name
    if not path.exists():
        pytest.skip(f"{path} is not here; NOVA_TEST_DATA names the folder of the public data")
    with gzip.open(path, "rt") as file:
        return file.read()


@pytest.mark.parametrize("trace", ["automerge-paper", "sveltecomponent"])
@pytest.mark.parametrize("batch", [False, True], ids=["one call an edit", "batched"])
def test_a_sequential_trace_ends_in_its_text(trace: str, batch: bool) -> None:
    found = json.loads(load(f"editing-traces/{trace}.json.gz"))
    text = RGA(actor="a")
    patches = [tuple(patch) for txn in found["txns"] for patch in txn["patches"]]
    if batch:
        text.apply_patches(patches)
    else:
        for patch in patches:
            text.splice(*patch)
    assert text.text == found["endContent"]
    assert text._check() == 0
    data = text.to_bytes()
    back = RGA.from_bytes(data)
    assert back.text == found["endContent"]
    assert back._check() == 0
    assert back.to_bytes() == data
    assert back.digest() == text.digest()


@pytest.mark.parametrize("trace", ["friendsforever", "clownschool"])
def test_a_concurrent_trace_ends_in_its_text_on_every_replica(trace: str) -> None:
    found = json.loads(load(f"editing-traces/{trace}.json.gz"))
    txns = found["txns"]
    replicas = [RGA(actor=f"agent-{i}") for i in range(found["numAgents"])]
    has: list[set[int]] = [set() for _ in replicas]
    deltas: list[bytes] = []

    def deliver(agent: int, wanted: list[int]) -> None:
        missing, stack = set(), list(wanted)
        while stack:
            i = stack.pop()
            if i not in has[agent] and i not in missing:
                missing.add(i)
                stack.extend(txns[i]["parents"])
        for i in sorted(missing):
            replicas[agent].apply_delta(deltas[i])
        has[agent] |= missing

    for i, txn in enumerate(txns):
        agent = txn["agent"]
        deliver(agent, txn["parents"])
        before = replicas[agent].context
        replicas[agent].apply_patches([tuple(patch) for patch in txn["patches"]])
        deltas.append(replicas[agent].delta_since(before))
        has[agent].add(i)
    for agent, replica in enumerate(replicas):
        deliver(agent, [len(txns) - 1])
        assert replica.text == found["endContent"]
        assert replica._check() == 0
        assert replica.to_bytes() == replicas[0].to_bytes()
        assert replica.digest() == replicas[0].digest()


def pieces_of(history: dict[str, Any]) -> list[tuple[str, list[int], list[tuple[int, int, str]]]]:
    """(name, indexes of parents, patches) such that no piece is entered in its middle.

    An agent of these histories may be concurrent with itself, so each piece writes under a name of its own; names sort
    by agent and number, as ties want it.
    """
    cuts = {parent + 1 for txn in history["txns"] for parent in txn["parents"]}
    out: list[tuple[str, list[int], list[tuple[int, int, str]]]] = []
    ends: dict[int, int] = {}  # the last operation of a piece -> its index
    for txn in history["txns"]:
        first, end = txn["span"]
        singles: list[tuple[int, int, str]] = []
        for pos, deleted, inserted in txn["ops"]:
            singles += [(pos, 1, "")] * deleted
            singles += [(pos + i, 0, char) for i, char in enumerate(inserted)]
        assert len(singles) == end - first
        parents = [ends[parent] for parent in txn["parents"]]
        start = first
        for stop in sorted({cut for cut in cuts if first < cut < end} | {end}):
            number = txn["seqStart"] + start - first
            out.append((f"{txn['agent']:04}.{number:08}", parents, singles[start - first : stop - first]))
            ends[stop - 1] = len(out) - 1
            parents, start = [len(out) - 1], stop
    return out


@pytest.mark.parametrize("part", range(6))
def test_concurrent_inserts_at_one_place_are_in_the_order_of_fuguemax(part: int) -> None:
    lines = load("sequence-conformance/histories.jsonl.gz").splitlines()
    assert len(lines) == 600
    for number in range(part, 600, 6):
        history = json.loads(lines[number])
        made: list[RGA] = []
        whole = RGA()
        for name, parents, patches in pieces_of(history):
            replica = RGA(actor=name)
            for parent in parents:
                replica.merge(made[parent])
            for patch in patches:
                replica.splice(*patch)
            made.append(replica)
        for replica in made:
            whole.merge(replica)
        assert whole.text == history["endContent"], f"history {number}"
        assert whole._check() == 0
        assert RGA.from_bytes(whole.to_bytes()).text == whole.text
