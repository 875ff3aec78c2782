"""Pairs of memory images for the delta benchmarks: of real processes at two moments, and of known changes.

usage: python bench/images.py FOLDER     writes NAME.before and NAME.after for every pair

A real pair is what a process had in its writable private memory, read through /proc/PID/mem while it stood still,
before and after some work. Both images have the layout of the second moment, as a machine's memory has one: what was
not mapped at the first one is zeros there. The work has a fixed seed; addresses and times in memory are as the system
gave them.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))

PAGE = 4096
REGION = re.compile(rb"^([0-9a-f]+)-([0-9a-f]+) rw-p \S+ \S+ (\S+)\s*(.*)$")

OBJECTS = """
import random, sys
rng = random.Random(7)
fleet = {f"vm-{n:06}": {"cpu": rng.randrange(64), "memory": rng.random(), "host": f"host-{rng.randrange(500)}",
                        "tags": [rng.randrange(1000) for _ in range(4)]} for n in range(90_000)}
names = list(fleet)
print("ready", flush=True)
for line in sys.stdin:
    for _ in range(int(line)):
        vm = fleet[rng.choice(names)]
        vm["cpu"] += 1
        vm["memory"] = rng.random()
        vm["host"] = f"host-{rng.randrange(500)}"
    print("done", flush=True)
"""

TABLE = """
import random, sqlite3, sys
rng = random.Random(7)
db = sqlite3.connect(":memory:")
db.execute("CREATE TABLE vm (id INTEGER PRIMARY KEY, name TEXT, host TEXT, load REAL, note BLOB)")
db.executemany("INSERT INTO vm VALUES (?, ?, ?, ?, ?)",
               ((n, f"vm-{n:06}", f"host-{rng.randrange(500)}", rng.random(), rng.randbytes(100))
                for n in range(250_000)))
db.execute("CREATE INDEX by_host ON vm (host)")
db.commit()
print("ready", flush=True)
for line in sys.stdin:
    for _ in range(int(line)):
        db.execute("UPDATE vm SET load = ?, host = ? WHERE id = ?",
                   (rng.random(), f"host-{rng.randrange(500)}", rng.randrange(250_000)))
    db.commit()
    print("done", flush=True)
"""


def regions(pid: int) -> list[tuple[int, int]]:
    """Writable private memory of a process, without files' own pages."""
    found = []
    for line in Path(f"/proc/{pid}/maps").read_bytes().splitlines():
        match = REGION.match(line)
        if match and not match[4].startswith((b"/", b"[vvar", b"[vdso")):
            found.append((int(match[1], 16), int(match[2], 16)))
    return found


@contextlib.contextmanager
def still(pid: int) -> Iterator[None]:
    """The process does nothing meanwhile."""
    os.kill(pid, signal.SIGSTOP)
    try:
        while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "Tt":
            time.sleep(0.001)
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def snapshot(pid: int) -> dict[int, bytes]:
    """What lies in memory, by address of its page; pages that nobody has touched are left out."""
    pages: dict[int, bytes] = {}
    with still(pid), open(f"/proc/{pid}/mem", "rb", buffering=0) as memory, open(f"/proc/{pid}/pagemap", "rb") as map_:
        for start, stop in regions(pid):
            map_.seek(start // PAGE * 8)
            entries = np.frombuffer(map_.read((stop - start) // PAGE * 8), np.uint64)
            for i in np.flatnonzero(entries >> np.uint64(62)):  # present, or swapped
                memory.seek(start + int(i) * PAGE)
                page = memory.read(PAGE)
                if len(page) == PAGE:
                    pages[start + int(i) * PAGE] = page
    return pages


def paired(before: dict[int, bytes], after: dict[int, bytes]) -> tuple[bytes, bytes]:
    """Both in the layout of the second moment."""
    addresses = sorted(after)
    nothing = bytes(PAGE)
    return b"".join(before.get(a, nothing) for a in addresses), b"".join(after[a] for a in addresses)


def of_program(program: str, operations: int) -> tuple[bytes, bytes]:
    """A Python program that says when it is ready, and does so many operations when asked."""
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    )
    assert process.stdin
    assert process.stdout
    try:
        assert process.stdout.readline() == "ready\n"
        before = snapshot(process.pid)
        process.stdin.write(f"{operations}\n")
        assert process.stdout.readline() == "done\n"
        return paired(before, snapshot(process.pid))
    finally:
        process.kill()
        process.communicate()


def of_etcd(folder: Path) -> tuple[bytes, bytes] | None:
    """etcd with 4,000 keys, and after 400 more puts; None: it is not installed."""
    from base64 import b64encode

    from peers import etcd, running

    if shutil.which("etcd") is None:
        return None
    folder.mkdir(parents=True, exist_ok=True)
    server = etcd(folder)
    assert server

    def put(first: int, count: int) -> None:
        for n in range(first, first + count):
            key, value = (b64encode(text).decode() for text in (b"vm/%d" % (n % 4000), b"%d " % n * 40))
            server.ask("POST", "/v3/kv/put", {"key": key, "value": value})

    with running(server):
        put(0, 4000)
        before = snapshot(server.pid)
        put(4000, 400)
        return paired(before, snapshot(server.pid))


# --- known changes of a real image ------------------------------------------------------------------------------------

BYTES = 32 << 20


def some_bytes(rng: np.random.Generator, image: np.ndarray, share: float) -> None:
    """So much of all bytes, anywhere."""
    where = rng.choice(len(image), int(len(image) * share), replace=False)
    image[where] ^= rng.integers(1, 256, len(where), dtype=np.uint8)


def in_pages(rng: np.random.Generator, image: np.ndarray, share: float, bytes_each: int) -> None:
    """In so much of all pages, so many bytes at one place."""
    pages = len(image) // PAGE
    for page in rng.choice(pages, max(1, int(pages * share)), replace=False):
        at = page * PAGE + int(rng.integers(0, PAGE - bytes_each))
        image[at : at + bytes_each] = rng.integers(0, 256, bytes_each, dtype=np.uint8)


def moved(rng: np.random.Generator, image: np.ndarray) -> None:
    """One page of twenty has another one's content, as after compaction or defragmentation."""
    pages = image.reshape(-1, PAGE)
    where = rng.choice(len(pages), len(pages) // 20, replace=False)
    pages[where] = pages[rng.integers(0, len(pages), len(where))]


def released(rng: np.random.Generator, image: np.ndarray) -> None:
    """Three pages of ten are zeros now, in runs: memory that was given back."""
    pages = image.reshape(-1, PAGE)
    for at in rng.choice(len(pages) // 64, len(pages) // 64 * 3 // 10, replace=False):
        pages[at * 64 : at * 64 + 64] = 0


def changed(base: bytes, change: Callable[[np.random.Generator, np.ndarray], object]) -> tuple[bytes, bytes]:
    image = np.frombuffer(base, np.uint8).copy()
    change(np.random.default_rng(11), image)
    return base, image.tobytes()


def inserted(base: bytes) -> tuple[bytes, bytes]:
    """Some bytes more at 20 places: what a file has and memory has not."""
    rng = np.random.default_rng(11)
    places = sorted(rng.integers(0, len(base), 20).tolist())
    parts = [base[a:b] + rng.bytes(int(rng.integers(1, 200))) for a, b in zip([0, *places], places, strict=False)]
    return base, b"".join(parts) + base[places[-1] :]


def synthetic(base: bytes) -> Iterator[tuple[str, tuple[bytes, bytes]]]:
    """Known changes of one image of BYTES, by name."""
    base = (base * (BYTES // len(base) + 1))[:BYTES]
    yield "near-identical", changed(base, lambda rng, image: in_pages(rng, image, 10 / (BYTES // PAGE), 8))
    yield "0.4% of pages", changed(base, lambda rng, image: in_pages(rng, image, 0.004, 64))
    yield "10% of pages", changed(base, lambda rng, image: in_pages(rng, image, 0.1, 200))
    yield "1% of bytes", changed(base, lambda rng, image: some_bytes(rng, image, 0.01))
    yield "5% of bytes", changed(base, lambda rng, image: some_bytes(rng, image, 0.05))
    yield "25% of bytes", changed(base, lambda rng, image: some_bytes(rng, image, 0.25))
    yield "moved pages", changed(base, moved)
    yield "released pages", changed(base, released)
    yield "inserted bytes", inserted(base)
    yield "random", (base, np.random.default_rng(5).bytes(BYTES))


def real(folder: Path) -> Iterator[tuple[str, tuple[bytes, bytes]]]:
    """Pairs of real processes, by name."""
    yield "python objects", of_program(OBJECTS, 300)
    yield "sqlite in memory", of_program(TABLE, 300)
    pair = of_etcd(folder)
    if pair is not None:
        yield "etcd", pair


def main() -> None:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    base = b""
    for name, (before, after) in real(folder / "etcd"):
        base = base or before
        write(folder, name, before, after)
    for name, (before, after) in synthetic(base):
        write(folder, name, before, after)


def write(folder: Path, name: str, before: bytes, after: bytes) -> None:
    (folder / f"{name}.before").write_bytes(before)
    (folder / f"{name}.after").write_bytes(after)
    pages = np.frombuffer(before[: len(after) // PAGE * PAGE], np.uint8), np.frombuffer(after, np.uint8)
    count = min(len(each) for each in pages) // PAGE * PAGE
    differ = (pages[0][:count] != pages[1][:count]).reshape(-1, PAGE)
    print(
        f"{name:17} {len(before) / 2**20:6.1f} -> {len(after) / 2**20:6.1f} MiB, "
        f"{differ.any(axis=1).mean():8.3%} of pages and {differ.mean():8.4%} of bytes differ"
    )


if __name__ == "__main__":
    main()
