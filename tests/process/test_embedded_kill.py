"""SIGKILL of a program whose threads write strong and hybrid keys, then the loss of all that no sync had reached."""

from __future__ import annotations

import json
import random

import pytest
from killed import said_before_kill

from nova.errors import UnavailableError
from nova.sim.linearize import Call, Register, check_linearizable
from nova.storage.unsynced import cut_power
from nova.store import ReplicatedStore
from nova.store.strong import GroupOptions

pytestmark = pytest.mark.process

THREADS = 4
OPEN = """
from nova.store import ReplicatedStore
from nova.store.strong import Add, GroupOptions

small = GroupOptions(segment_bytes=1 << 20)
store = ReplicatedStore(
    sys.argv[1], node="a", region="eu", classes={"acc/": "strong", "vm/": "hybrid"}, group=small, region_group=small
)
"""
COUNTING = (
    "import json, os, sys, threading"
    + OPEN
    + """
PAD = "x" * 6_000  # a record is larger than a page: of what was not synced a power cut takes whole pages only

def work(me):
    number = 0
    while True:
        number += 1
        for below in ("acc", "vm/eu"):
            made = store.put(f"{below}/{os.getpid()}/{me}/{number}", PAD, expect=0)
            os.write(1, json.dumps([made.key, made.version]).encode() + b"\\n")  # no line is torn by another thread
            left = store.transact(f"{below}/n", [], [Add(1)])
            os.write(1, json.dumps([f"{below}/n", left.results[0]]).encode() + b"\\n")

for me in range(int(sys.argv[2])):
    threading.Thread(target=work, args=(me,), daemon=True).start()
sys.stdin.read()
"""
)
REGISTER = (
    "import json, os, random, sys, threading, time"
    + OPEN
    + """
def work(me):
    chance = random.Random(os.getpid() * 100 + me)
    for number in range(1_000_000):
        begin, value = time.monotonic_ns(), (os.getpid() * 100 + me) * 1_000_000 + number
        os.write(1, json.dumps([me, begin, value]).encode() + b"\\n")  # asked for; without an answer it may be made
        if chance.random() < 0.5:
            store.put("acc/x", value)
            said = [me, begin, time.monotonic_ns(), "write", value]
        else:
            found = store.get("acc/x").value
            said = [me, begin, time.monotonic_ns(), "read", found]
        os.write(1, json.dumps(said).encode() + b"\\n")

if "acc/x" not in store:
    store.put("acc/x", 0)
for me in range(int(sys.argv[2])):
    threading.Thread(target=work, args=(me,), daemon=True).start()
sys.stdin.read()
"""
)


def opened(folder):
    small = GroupOptions(segment_bytes=1 << 20)
    return ReplicatedStore(
        folder, node="a", region="eu", classes={"acc/": "strong", "vm/": "hybrid"}, group=small, region_group=small
    )


def power_is_cut(folder):
    try:
        for path in [*folder.glob("*/log/*.log"), *folder.glob("log/*.log")]:
            cut_power(path)
    except UnavailableError as error:
        pytest.skip(str(error))


def test_no_acknowledged_change_is_lost_and_none_is_made_twice(tmp_path):
    chance = random.Random(11)
    counts, most = {"acc/n": 0, "vm/eu/n": 0}, {"acc/n": 0, "vm/eu/n": 0}
    made = {}
    for _ in range(6):
        lines = said_before_kill(COUNTING, [str(tmp_path), str(THREADS)], chance.randrange(1, 40), chance.random() / 50)
        for key, told in map(json.loads, lines):
            if key in counts:
                counts[key] = max(counts[key], told)
                most[key] += 1
            else:
                made[key] = told
        power_is_cut(tmp_path)
        with opened(tmp_path) as store:
            for key, count in counts.items():
                most[key] += THREADS  # those that flew may have been made
                now = store.get(key, consistency="local").value if key in store else 0
                assert count <= now <= most[key]
            found = {}
            for prefix in ("acc/", "vm/eu/"):
                after = prefix
                while after is not None:
                    page, after = store.scan(prefix, 1_000, after)
                    found |= {entry.key: entry.version for entry in page}
            assert {key: found.get(key) for key in made} == made
    assert len(made) > 50


def test_what_threads_saw_before_and_behind_kills_fits_one_order(tmp_path):
    history = [Call(0, 1, ("write", 0), None, "acc/x")]
    for round in range(3):
        lines = said_before_kill(REGISTER, [str(tmp_path), str(THREADS)], 150 + 50 * round, 0.01)
        power_is_cut(tmp_path)
        pending = {}
        for me, begin, *rest in map(json.loads, lines):
            if len(rest) == 1:
                pending[me] = Call(begin, None, ("write", rest[0]), None, "acc/x")
                continue
            del pending[me]
            end, kind, value = rest
            asked = ("write", value) if kind == "write" else ("read",)
            history.append(Call(begin, end, asked, value if kind == "read" else None, "acc/x"))
        history += (
            pending.values()
        )  # those that were reads wrote a value that nobody can have seen: they never happened
    assert len(history) > 200
    assert check_linearizable(history, Register()).ok is True
