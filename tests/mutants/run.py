"""Breaks the code on purpose, one line at a time, and requires a test to notice.

usage: python tests/mutants/run.py [--passed] [PART OF A NAME ...]

Each mutant of the .toml files beside this is `old` text, found once in `file`, replaced by `new`; `test` are the
arguments of a pytest that must fail then and pass without it; a mutant that shows only where threads meet gets several
`tries`, one that only a machine with io_uring can show says so in `needs`. Works on copies of the tree, one a core; a
mutant of native code is built in its copy, without optimization.
server.py starts the pytests. The group of a mutant is what stands before the colon in its name; at the end the CPU
seconds of each are told.

--passed: all tests have just passed in this tree, so they are not run once more without any mutant.
Exit status 1 if a mutant survives, does not build, or names text that is no longer there.
"""

from __future__ import annotations

import ast
import contextlib
import json
import os
import py_compile
import queue
import re
import runpy
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
import tomllib
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

ROOT = Path(__file__).resolve().parent.parent.parent
DIRECTIVES = "boundscheck=False,wraparound=False,cdivision=True,initializedcheck=False,binding=False"
SECONDS_MAX = 120
SLOW_SECONDS = 3
T = TypeVar("T")


def kernels() -> dict[str, list[str]]:
    """family -> C sources, from setup.py."""
    for node in ast.parse((ROOT / "setup.py").read_text()).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "KERNELS":
            found: dict[str, list[str]] = ast.literal_eval(node.value)
            return found
    raise SystemExit("setup.py has no table KERNELS")


def cffi_builder(family: str) -> str | None:
    """The file that describes the family to cffi; None: Cython has it."""
    path = f"nova/_native/{family}_build.py"
    return path if (ROOT / path).exists() else None


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


class Ran(NamedTuple):
    """What was run: its exit code, the CPU seconds of it, and the end of what it said."""

    code: int
    seconds: float
    said: str


def command(tree: Path, *arguments: str) -> Ran:
    """Run a step of a build."""
    with tempfile.TemporaryFile() as said:
        step = subprocess.Popen(arguments, cwd=tree, stdout=said, stderr=said)
        _, status, usage = os.wait4(step.pid, 0)
        step.returncode = os.waitstatus_to_exitcode(status)
        said.seek(0)
        return Ran(step.returncode, usage.ru_utime + usage.ru_stime, said.read().decode(errors="replace"))


class Tree:
    """A copy of the package and its tests, and a server of pytests in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.seconds = 0.0
        """CPU time that was spent here."""
        # One order of sets of texts everywhere: else a mutant that only some schedules notice survives now and then.
        fixed = {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONHASHSEED": "0", "OPENBLAS_NUM_THREADS": "1"}
        self.server = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("server.py"))],
            cwd=path,
            env={**os.environ, "PYTHONPATH": str(path), **fixed},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def close(self) -> None:
        """Let the server end, and wait until it has."""
        assert self.server.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.server.stdin.close()
        self.server.wait()

    def pytest(self, test: str) -> Ran:
        """Run the tests that these arguments name, up to the first that fails."""
        options = ["-x", "-q", "--tb=line", "-p", "no:cacheprovider", f"--basetemp={self.path / 'tmp'}"]
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        self.server.stdin.write(json.dumps([[*options, "--hypothesis-seed=0", *test.split()], SECONDS_MAX]) + "\n")
        self.server.stdin.flush()
        answer = self.server.stdout.readline()
        if not answer:
            raise SystemExit(f"the server of pytests in {self.path} ended at {test}")
        ran = Ran(*json.loads(answer))
        self.seconds += ran.seconds
        return ran

    def verdict(self, test: str) -> str:
        """ "" if the test passes, else what failed."""
        ran = self.pytest(test)
        if ran.code not in (0, 1, 124) and ran.code > 0:  # below 0: it crashed, which is noticed
            raise SystemExit(f"pytest {test} did not run:\n{ran.said}")
        found = re.search(r"^(?:FAILED|ERROR) \S*?(\w+)(?:\[|\s|$)", ran.said, re.MULTILINE)
        return "" if ran.code == 0 else found[1] if found else f"an end with {ran.code}"


def build(tree: Path, families: set[str], changed: str | None) -> Ran:
    """Compile what a change of `changed` (None: everything) touches, up to what goes wrong. `restore` takes it back."""
    took = 0.0
    everything = changed is None or changed.endswith((".h", ".pxd"))
    sound = tree / "objects"
    fresh = sound if changed is None else sound / "changed"
    fresh.mkdir(parents=True, exist_ok=True)
    include = [f"-I{sysconfig.get_path('include')}", f"-I{tree / 'csrc'}"]
    for family in sorted(families):
        objects: list[Path] = []
        defines: list[str] = []
        owner, libraries = f"nova/_native/{family}.pyx", list[str]()
        if described := cffi_builder(family):
            owner = str(sound / f"{family}_cffi.c")
            more = runpy.run_path(str(ROOT / described))["describe"](Path(owner), without=False)
            defines = [f"-D{name}={value}" for name, value in more["define_macros"]]
            libraries = more["extra_objects"]
        for source in (owner, *kernels()[family]):
            touched = cython_sources(family) if source.endswith(".pyx") else {source}
            stale = everything or changed in touched
            objects.append((fresh if stale else sound) / f"{family}-{Path(source).name}.o")
            if not stale:
                continue
            steps = [
                ["gcc", "-std=c11", "-O0", "-w", "-fPIC", *defines, *include, "-c", source, "-o", str(objects[-1])]
            ]
            if source.endswith(".pyx"):
                made = str(objects[-1].with_suffix(".c"))
                steps[0][-3] = made
                steps.insert(0, [sys.executable, "-m", "cython", "-3", "-X", DIRECTIVES, source, "-o", made])
            for step in steps:
                done = command(tree, *step)
                took += done.seconds
                if done.code:
                    return done
        library = fresh / f"{family}.so"
        done = command(tree, "gcc", "-shared", "-o", str(library), *map(str, objects), *libraries)
        took += done.seconds
        if done.code:
            return done
        put(tree, family, library)
    return Ran(0, took, "")


def put(tree: Path, family: str, library: Path) -> None:
    """Let the tree import this library: under a new inode, since a running test may still have the old one."""
    target = tree / f"nova/_native/{family}{sysconfig.get_config_var('EXT_SUFFIX')}"
    target.unlink(missing_ok=True)
    shutil.copy2(library, target)


def restore(tree: Path, families: set[str]) -> None:
    """Let the tree import what the first build made."""
    for family in families:
        put(tree, family, tree / "objects" / f"{family}.so")


def try_one(tree: Tree, mutant: dict[str, Any], families: set[str]) -> str:
    """What became of a mutant; the tree is as before then."""
    path = tree.path / mutant["file"]
    text = path.read_text()
    if text.count(mutant["old"]) != 1:
        return f"STALE: its old text is there {text.count(mutant['old'])} times"
    replace(path, text.replace(mutant["old"], mutant["new"]))
    built = build(tree.path, families, mutant["file"])
    tree.seconds += built.seconds
    if built.code:
        verdict = f"DOES NOT BUILD: {built.said[:500]}"
    else:
        tries = int(mutant.get("tries", 1))
        by = next(filter(None, (tree.verdict(mutant["test"]) for _ in range(tries))), "")
        verdict = f"killed by {by}" if by else "SURVIVED"
    replace(path, text)
    restore(tree.path, families)
    return verdict


def replace(path: Path, text: str) -> None:
    """A new file under the same name: the copies of the tree share their files."""
    path.unlink()
    path.write_text(text)


def link(source: str, target: str) -> str:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one that has no links
        shutil.copy2(source, target)
    return target


@contextlib.contextmanager
def copies(
    count: int, families: set[str], workers: ThreadPoolExecutor, took: dict[str, float]
) -> Iterator[queue.SimpleQueue[Tree]]:
    """Copies of the tree, with these families built; they are gone at the end, however that comes."""
    with tempfile.TemporaryDirectory(prefix="nova-mutants-", ignore_cleanup_errors=True) as folder:
        first = Path(folder, "0")
        for name in ("nova", "csrc", "tests"):
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, first / name, ignore=ignored)
        shutil.copy2(ROOT / "pyproject.toml", first)
        # By the hash of the source: a mutant may have the size and the second of what it replaces.
        checked = py_compile.PycInvalidationMode.CHECKED_HASH
        for source in (first / "nova").rglob("*.py"):
            py_compile.compile(str(source), invalidation_mode=checked, quiet=1)
        for built in workers.map(lambda family: build(first, {family}, None), sorted(families)):
            took["building"] += built.seconds
            if built.code:
                raise SystemExit(built.said)
        for number in range(1, count):
            shutil.copytree(first, Path(folder, str(number)), copy_function=link)
        trees: queue.SimpleQueue[Tree] = queue.SimpleQueue()
        opened: list[Tree] = []
        try:
            for number in range(count):
                opened.append(Tree(Path(folder, str(number))))
                trees.put(opened[-1])
            yield trees
        except BaseException:
            workers.shutdown(wait=False, cancel_futures=True)
            for tree in opened:
                tree.server.terminate()
            raise
        finally:
            for tree in opened:
                tree.close()


def main(arguments: list[str]) -> int:
    wanted = [part for part in arguments if part != "--passed"]
    passed = len(wanted) < len(arguments)
    began = time.monotonic()
    files = sorted(Path(__file__).parent.glob("*.toml"))
    table = [mutant for file in files for mutant in tomllib.loads(file.read_text())["mutant"]]
    chosen = [m for m in table if not wanted or any(part in m["name"] for part in wanted)]
    for mutant in [m for m in chosen if m.get("needs") and (why := lacking(m["needs"]))]:
        print(f"{mutant['name']}: left out: {why}", flush=True)
        chosen.remove(mutant)
    families = {file: users(file) for file in {m["file"] for m in chosen}}
    jobs = os.cpu_count() or 1
    took: dict[str, float] = defaultdict(float)

    with ThreadPoolExecutor(jobs) as workers, copies(jobs, set().union(*families.values()), workers, took) as trees:

        def timed(group: str, work: Callable[[Tree], T]) -> tuple[T, float]:
            """What that gives in some tree, and the CPU seconds of it."""
            tree = trees.get()
            before = tree.seconds
            try:
                return work(tree), tree.seconds - before
            finally:
                took[group] += tree.seconds - before
                trees.put(tree)

        def sound(test: str) -> bool:
            wrong, seconds = timed("the tests without mutants", lambda tree: tree.verdict(test))
            if seconds > SLOW_SECONDS:
                print(f"slow: {test} ({seconds:.1f} s)", flush=True)
            return not wrong

        def fate(mutant: dict[str, Any]) -> bool:
            group = mutant["name"].partition(":")[0]
            verdict, seconds = timed(group, lambda tree: try_one(tree, mutant, families[mutant["file"]]))
            print(f"{mutant['name']}: {verdict} ({seconds:.1f} s)", flush=True)
            return verdict.startswith("killed")

        tests = [] if passed else sorted({m["test"] for m in chosen})
        for test, passes in zip(tests, workers.map(sound, tests), strict=True):
            if not passes:
                raise SystemExit(f"pytest {test} fails without any mutant")
        killed = sum(workers.map(fate, chosen))
    print("\nCPU seconds of each group:")
    for group, seconds in sorted(took.items(), key=lambda item: -item[1]):
        count = sum(mutant["name"].partition(":")[0] == group for mutant in chosen)
        print(f"{seconds:8.1f}  {group}" + (f" ({count})" if count else ""))
    print(f"{sum(took.values()):8.1f}  in all, and {time.monotonic() - began:.1f} s by the clock")
    print(f"{killed} of {len(chosen)} mutants were killed")
    return 1 if killed < len(chosen) or not chosen else 0


def lacking(need: str) -> str:
    """Why this machine cannot show what a mutant breaks; "" if it can."""
    if need != "io_uring":
        raise SystemExit(f"a mutant needs {need!r}; only io_uring is known")
    from nova.transport.engine import Kind, probe

    return probe(Kind.URING)


def stop(*_: object) -> None:
    raise SystemExit(143)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, stop)  # so that the copies go
    sys.exit(main(sys.argv[1:]))
