"""Breaks the native code on purpose, one line at a time, and requires a test to notice.

usage: python tests/mutants/run.py [PART OF A NAME ...]

Each mutant of the .toml files beside this is `old` text, found once in `file`, replaced by `new`; `test` are the
arguments of a pytest that must fail then and pass without it. Works on copies of the tree, one a core, without
optimization, so a mutant costs seconds.
Exit status 1 if a mutant survives, does not build, or names text that is no longer there.
"""

from __future__ import annotations

import ast
import os
import queue
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
import tomllib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

ROOT = Path(__file__).resolve().parent.parent.parent
DIRECTIVES = "boundscheck=False,wraparound=False,cdivision=True,initializedcheck=False,binding=False"
SECONDS_MAX = 120
T = TypeVar("T")


def kernels() -> dict[str, list[str]]:
    """family -> C sources, from setup.py."""
    for node in ast.parse((ROOT / "setup.py").read_text()).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "KERNELS":
            found: dict[str, list[str]] = ast.literal_eval(node.value)
            return found
    raise SystemExit("setup.py has no table KERNELS")


def cython_sources(family: str) -> set[str]:
    """A module and the parts that it includes."""
    parts = (ROOT / "nova/_native").glob(f"{family}_*.pxi")
    return {f"nova/_native/{family}.pyx", *(str(part.relative_to(ROOT)) for part in parts)}


def users(file: str) -> set[str]:
    """The families that are built of a file, or of a source that includes it."""
    name = f'"{Path(file).name}"'
    if file.endswith(".h"):
        return {f for f, sources in kernels().items() if any(name in (ROOT / source).read_text() for source in sources)}
    if file.endswith(".pxd"):
        return {Path(file).stem}
    return {f for f, sources in kernels().items() if file in {*sources, *cython_sources(f)}}


def command(tree: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    # One order of sets of texts everywhere: else a mutant that only some schedules notice survives now and then.
    fixed = {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONHASHSEED": "0"}
    environment = {**os.environ, "PYTHONPATH": str(tree), **fixed}
    try:
        return subprocess.run(arguments, cwd=tree, env=environment, capture_output=True, text=True, timeout=SECONDS_MAX)
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(arguments, 124, "", f"not done in {SECONDS_MAX} s")


def build(tree: Path, families: set[str], changed: str | None) -> str:
    """Compile what a change of `changed` (None: everything) touches; "" or what went wrong. `restore` takes it back."""
    everything = changed is None or changed.endswith((".h", ".pxd"))
    sound = tree / "objects"
    fresh = sound if changed is None else sound / "changed"
    fresh.mkdir(parents=True, exist_ok=True)
    include = [f"-I{sysconfig.get_path('include')}", f"-I{tree / 'csrc'}"]
    for family in sorted(families):
        objects: list[Path] = []
        for source in (f"nova/_native/{family}.pyx", *kernels()[family]):
            touched = cython_sources(family) if source.endswith(".pyx") else {source}
            stale = everything or changed in touched
            objects.append((fresh if stale else sound) / f"{family}-{Path(source).name}.o")
            if not stale:
                continue
            steps = [["gcc", "-std=c11", "-O0", "-w", "-fPIC", *include, "-c", source, "-o", str(objects[-1])]]
            if source.endswith(".pyx"):
                made = str(objects[-1].with_suffix(".c"))
                steps[0][-3] = made
                steps.insert(0, [sys.executable, "-m", "cython", "-3", "-X", DIRECTIVES, source, "-o", made])
            for step in steps:
                done = command(tree, *step)
                if done.returncode:
                    return done.stderr
        library = fresh / f"{family}.so"
        done = command(tree, "gcc", "-shared", "-o", str(library), *map(str, objects))
        if done.returncode:
            return done.stderr
        put(tree, family, library)
    return ""


def put(tree: Path, family: str, library: Path) -> None:
    """Let the tree import this library: under a new inode, since a running test may still have the old one."""
    target = tree / f"nova/_native/{family}{sysconfig.get_config_var('EXT_SUFFIX')}"
    target.unlink(missing_ok=True)
    shutil.copy2(library, target)


def restore(tree: Path, families: set[str]) -> None:
    """Let the tree import what the first build made."""
    for family in families:
        put(tree, family, tree / "objects" / f"{family}.so")


def tested(tree: Path, test: str) -> bool:
    """Does the test pass?"""
    done = command(
        tree, sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--hypothesis-seed=0", *test.split()
    )
    if done.returncode not in (0, 1, 124) and done.returncode > 0:  # below 0: it crashed, which is noticed
        raise SystemExit(f"pytest {test} did not run:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.returncode == 0


def try_one(tree: Path, mutant: dict[str, str], families: set[str]) -> str:
    """What became of a mutant; the tree is as before then."""
    path = tree / mutant["file"]
    text = path.read_text()
    if text.count(mutant["old"]) != 1:
        return f"STALE: its old text is there {text.count(mutant['old'])} times"
    path.write_text(text.replace(mutant["old"], mutant["new"]))
    wrong = build(tree, families, mutant["file"])
    verdict = f"DOES NOT BUILD: {wrong[:500]}" if wrong else ""
    if not verdict:
        verdict = "SURVIVED" if tested(tree, mutant["test"]) else "killed"
    path.write_text(text)
    restore(tree, families)
    return verdict


def main(wanted: list[str]) -> int:
    files = sorted(Path(__file__).parent.glob("*.toml"))
    table = [mutant for file in files for mutant in tomllib.loads(file.read_text())["mutant"]]
    chosen = [m for m in table if not wanted or any(part in m["name"] for part in wanted)]
    families = {file: users(file) for file in {m["file"] for m in chosen}}
    jobs = os.cpu_count() or 1
    trees: queue.SimpleQueue[Path] = queue.SimpleQueue()

    def with_tree(work: Callable[[Path], T]) -> T:
        tree = trees.get()
        try:
            return work(tree)
        finally:
            trees.put(tree)

    def fate(mutant: dict[str, str]) -> bool:
        started = time.monotonic()
        verdict = with_tree(lambda tree: try_one(tree, mutant, families[mutant["file"]]))
        print(f"{mutant['name']}: {verdict} ({time.monotonic() - started:.1f} s)", flush=True)
        return verdict == "killed"

    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(jobs) as workers:
        first = Path(folder, "0")
        for name in ("nova", "csrc", "tests"):
            shutil.copytree(ROOT / name, first / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy2(ROOT / "pyproject.toml", first)
        wrong = build(first, set().union(*families.values()), None)
        if wrong:
            raise SystemExit(wrong)
        trees.put(first)
        for i in range(1, jobs):
            trees.put(Path(shutil.copytree(first, Path(folder, str(i)))))
        tests = sorted({m["test"] for m in chosen})
        for test, sound in zip(
            tests, workers.map(lambda test: with_tree(lambda tree: tested(tree, test)), tests), strict=True
        ):
            if not sound:
                raise SystemExit(f"pytest {test} fails without any mutant")
        killed = sum(workers.map(fate, chosen))
    print(f"{killed} of {len(chosen)} mutants were killed")
    return 1 if killed < len(chosen) or not chosen else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
