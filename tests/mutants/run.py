"""Breaks the native code on purpose, one line at a time, and requires a test to notice.

usage: python tests/mutants/run.py [PART OF A NAME ...]

Each mutant of mutants.toml is `old` text, found once in `file`, replaced by `new`; `test` are the arguments of a pytest
that must fail then and pass without it. Works on a copy of the tree, without optimization, so a mutant costs seconds.
Exit status 1 if a mutant survives, does not build, or names text that is no longer there.
"""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
DIRECTIVES = "boundscheck=False,wraparound=False,cdivision=True,initializedcheck=False,binding=False"
SECONDS_MAX = 120


def kernels() -> dict[str, list[str]]:
    """family -> C sources, from setup.py."""
    for node in ast.parse((ROOT / "setup.py").read_text()).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "KERNELS":
            found: dict[str, list[str]] = ast.literal_eval(node.value)
            return found
    raise SystemExit("setup.py has no table KERNELS")


def command(tree: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        return subprocess.run(arguments, cwd=tree, env=environment, capture_output=True, text=True, timeout=SECONDS_MAX)
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(arguments, 124, "", f"not done in {SECONDS_MAX} s")


def build(tree: Path, families: set[str], changed: str | None) -> str:
    """Compile what a change of `changed` (None: everything) touches; "" or what went wrong."""
    objects = tree / "objects"
    objects.mkdir(exist_ok=True)
    include = [f"-I{sysconfig.get_path('include')}", f"-I{tree / 'csrc'}"]
    for family in sorted(families):
        pyx = f"nova/_native/{family}.pyx"
        parts = [(objects / f"{family}.o", objects / f"{family}.c", changed in (None, pyx))]
        if parts[0][2]:
            done = command(tree, sys.executable, "-m", "cython", "-3", "-X", DIRECTIVES, pyx, "-o", str(parts[0][1]))
            if done.returncode:
                return done.stderr
        for source in kernels()[family]:
            parts.append((objects / f"{family}-{Path(source).stem}.o", tree / source, changed in (None, source)))
        for out, source_path, stale in parts:
            if stale:
                done = command(
                    tree, "gcc", "-std=c11", "-O0", "-w", "-fPIC", *include, "-c", str(source_path), "-o", str(out)
                )
                if done.returncode:
                    return done.stderr
        library = tree / f"nova/_native/{family}{sysconfig.get_config_var('EXT_SUFFIX')}"
        library.unlink(missing_ok=True)
        done = command(tree, "gcc", "-shared", "-o", str(library), *(str(out) for out, _, _ in parts))
        if done.returncode:
            return done.stderr
    return ""


def tested(tree: Path, test: str) -> bool:
    """Does the test pass?"""
    done = command(
        tree, sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--hypothesis-seed=0", *test.split()
    )
    if done.returncode not in (0, 1, 124) and done.returncode > 0:  # below 0: it crashed, which is noticed
        raise SystemExit(f"pytest {test} did not run:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.returncode == 0


def main(wanted: list[str]) -> int:
    table = tomllib.loads((Path(__file__).parent / "mutants.toml").read_text())["mutant"]
    chosen = [m for m in table if not wanted or any(part in m["name"] for part in wanted)]
    users = {file: {f for f, sources in kernels().items() if file in (*sources, f"nova/_native/{f}.pyx")}
             for file in {m["file"] for m in chosen}}  # fmt: skip
    failures = 0
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder)
        for name in ("nova", "csrc", "tests"):
            shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy2(ROOT / "pyproject.toml", tree)
        wrong = build(tree, set().union(*users.values()), None)
        if wrong:
            raise SystemExit(wrong)
        for test in sorted({m["test"] for m in chosen}):
            if not tested(tree, test):
                raise SystemExit(f"pytest {test} fails without any mutant")
        for mutant in chosen:
            started = time.monotonic()
            path = tree / mutant["file"]
            text = path.read_text()
            if text.count(mutant["old"]) != 1:
                verdict = f"STALE: its old text is there {text.count(mutant['old'])} times"
            else:
                path.write_text(text.replace(mutant["old"], mutant["new"]))
                wrong = build(tree, users[mutant["file"]], mutant["file"])
                verdict = f"DOES NOT BUILD: {wrong[:500]}" if wrong else ""
                if not verdict:
                    verdict = "SURVIVED" if tested(tree, mutant["test"]) else "killed"
                path.write_text(text)
                build(tree, users[mutant["file"]], mutant["file"])
            failures += verdict != "killed"
            print(f"{mutant['name']}: {verdict} ({time.monotonic() - started:.1f} s)", flush=True)
    print(f"{len(chosen) - failures} of {len(chosen)} mutants were killed")
    return 1 if failures or not chosen else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
