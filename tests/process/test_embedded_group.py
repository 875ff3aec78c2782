"""Programs whose stores are one group: the one that leads is killed, and starts again, while all of them write."""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import time

import pytest
from real_nodes import free_ports

from nova.sim.linearize import Call, Register, check_linearizable
from nova.store import ReplicatedStore
from nova.store.strong import GroupOptions

pytestmark = pytest.mark.process

KEY = "a key of the tests, never used elsewhere"
PROGRAM = """
import json, os, random, sys, threading, time
from nova.errors import UnavailableError
from nova.store import ReplicatedStore
from nova.store.strong import GroupOptions

folder, name, peers, key = sys.argv[1], sys.argv[2], json.loads(sys.argv[3]), sys.argv[4].encode()
store = ReplicatedStore(
    folder, node=name, classes={"acc/": "strong"}, peers=peers, key=key,
    group=GroupOptions(segment_bytes=1 << 20, timeout_ms=2_000),
)

def say(*what):
    os.write(1, json.dumps(what).encode() + b"\\n")

def work(me):
    chance, at = random.Random(os.getpid() * 10 + me), 0
    while True:
        key, at = f"acc/{chance.randrange(3)}", at + 1
        begin, value = time.monotonic_ns(), (os.getpid() * 10 + me) * 1_000_000 + at
        writes = chance.random() < 0.5
        asked = ["write", value] if writes else ["read"]
        say("asked", me, key, begin, asked)
        try:
            if writes:
                store.put(key, value)
                say("told", me, time.monotonic_ns(), None)
            else:
                found = store.scan(key, 1)[0]
                say("told", me, time.monotonic_ns(), found[0].value if found else None)
        except UnavailableError:
            say("lost", me)

for me in range(2):
    threading.Thread(target=work, args=(me,), daemon=True).start()
while True:
    say("leader", store.consensus()["leader"])
    if sys.stdin.readline() != "again\\n":
        break
store.close()
"""


class Programs:
    """name -> process; what they said is a history."""

    def __init__(self, folder):
        self.folder = folder
        self.peers = {name: f"127.0.0.1:{port}" for name, port in zip("abc", free_ports(3), strict=True)}
        self.up, self.rest, self.asked, self.history, self.leader = {}, {}, {}, [], {}
        self.told = dict.fromkeys(self.peers, 0)
        self.selector = selectors.DefaultSelector()

    def start(self, name):
        child = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(self.folder / name), name, json.dumps(self.peers), KEY],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        self.up[name], self.rest[name] = child, b""
        self.selector.register(child.stdout, selectors.EVENT_READ, name)

    def kill(self, name):
        child = self.up.pop(name)
        child.send_signal(signal.SIGKILL)
        child.wait()
        self.selector.unregister(child.stdout)
        self.take(name, child.stdout.read())
        child.stdout.close()
        child.stdin.close()
        for of, me in list(self.asked):
            if of == name:
                self.lost((of, me))
        self.leader.pop(name, None)

    def lost(self, who):
        key, begin, asked = self.asked.pop(who)
        if asked[0] == "write":
            self.history.append(Call(begin, None, tuple(asked), None, key))

    def take(self, name, data):
        *lines, self.rest[name] = (self.rest[name] + data).split(b"\n")
        for what, *said in map(json.loads, lines):
            if what == "leader":
                self.leader[name] = said[0]
            elif what == "asked":
                self.asked[name, said[0]] = said[1:]
            elif what == "lost":
                self.lost((name, said[0]))
            else:
                me, end, value = said
                key, begin, asked = self.asked.pop((name, me))
                self.history.append(Call(begin, end, tuple(asked), value, key))
                self.told[name] += 1

    def until(self, condition, seconds=60):
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, (self.leader, self.told)
            for ready, _ in self.selector.select(0.1):
                data = os.read(ready.fd, 1 << 16)
                assert data, f"{ready.data} died"
                self.take(ready.data, data)

    def led(self):
        """Ask who leads until all that run say the same."""

        def agreed():
            if len(self.leader) < len(self.up):
                return False
            if len(leaders := set(self.leader.values())) == 1 and None not in leaders and leaders <= self.up.keys():
                return True
            self.leader.clear()
            for child in self.up.values():
                child.stdin.write(b"again\n")
                child.stdin.flush()
            return False

        self.until(agreed)
        return next(iter(self.leader.values()))

    def go_on(self, count=25):
        before = dict(self.told)
        self.until(lambda: all(self.told[name] >= before[name] + count for name in self.up))

    def close(self):
        for name in list(self.up):
            self.kill(name)
        self.selector.close()


def test_the_leader_is_killed_and_what_was_acknowledged_fits_one_order(tmp_path):
    programs = Programs(tmp_path)
    try:
        for name in programs.peers:
            programs.start(name)
        for _ in range(2):
            programs.go_on()
            leader = programs.led()
            programs.kill(leader)
            programs.go_on()
            programs.start(leader)
        programs.go_on()
    finally:
        programs.close()
    group = GroupOptions(segment_bytes=1 << 20)
    stores = [
        ReplicatedStore(
            tmp_path / name, node=name, classes={"acc/": "strong"}, peers=programs.peers, key=KEY.encode(), group=group
        )
        for name in programs.peers
    ]
    try:
        for store in stores:
            for entry in store.scan("acc/")[0]:
                now = time.monotonic_ns()
                programs.history.append(Call(now, now + 1, ("read",), entry.value, entry.key))
        assert len({store.consensus()["digest"] for store in stores}) == 1
    finally:
        for store in stores:
            store.close()
    verdict = check_linearizable(programs.history, Register())
    assert verdict.ok, f"{verdict.key}: behind {len(verdict.prefix)} calls none fits of {verdict.stuck[:5]}"
    assert sum(programs.told.values()) > 300
