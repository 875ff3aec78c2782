"""The house rule: calls go down. Walks the syntax trees of the package and holds every import against one table."""

from __future__ import annotations

import ast
import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# The longest matching prefix gives the layer of a module. "nova" itself names parts of every layer, on first use.
LAYERS = {
    "nova": 8,
    "nova.__main__": 8,
    "nova.cli": 7,
    "nova.client": 7,
    "nova.kube": 7,
    "nova.server": 7,
    "nova.broker": 6,
    "nova.observe": 6,
    "nova.recovery": 6,
    "nova.store": 6,
    "nova.swarm": 6,
    "nova.balancing.proxy": 5,
    "nova.consensus.balloting": 5,
    "nova.consensus.client": 5,
    "nova.consensus.directory": 5,
    "nova.consensus.engine": 5,
    "nova.consensus.serving": 5,
    "nova.consensus.steering": 5,
    "nova.routing.tunnels": 5,
    "nova.runtime": 5,
    "nova.delta.files": 4,
    "nova.delta.tracking": 4,
    "nova.hardware": 4,
    "nova.hardware_network": 4,
    "nova.sim": 4,
    "nova.storage": 4,
    "nova.transport": 4,
    "nova.balancing": 3,
    "nova.conflict": 3,
    "nova.consensus": 3,
    "nova.fleet": 3,
    "nova.routing": 3,
    "nova.sync": 3,
    "nova.clock": 2,
    "nova.crypto": 2,
    "nova.crdt": 2,
    "nova.delta": 2,
    "nova.digest": 2,
    "nova.metrics": 2,
    "nova.wire": 2,
    "nova._native": 1,
    "nova._version": 0,
    "nova.errors": 0,
    "nova.types": 0,
}
DRIVERS = 4
SURFACES = 7

# Within a layer, parts stand beside each other and do not meet, but for these: the left may import the right.
BESIDE = {
    ("nova.crdt", "nova.clock"),
    ("nova.consensus", "nova.sync"),
    ("nova.server", "nova.client"),
    ("nova.consensus.engine", "nova.runtime"),
    ("nova.cli", "nova.client"),
    ("nova.cli", "nova.server"),
    ("nova.cli", "nova.kube"),
    ("nova.__main__", "nova"),
    ("nova.hardware", "nova.hardware_network"),
    ("nova.hardware_network", "nova.transport"),
    ("nova.hardware", "nova.delta.tracking"),
    # The simulator stands in the drivers' place, so it speaks their seams.
    ("nova.sim", "nova.storage"),
    ("nova.sim", "nova.transport"),
}

# What the parts below the drivers may not know: clocks, sockets, files, threads and chance are handed to them.
IMPURE = {
    "asyncio",
    "logging",
    "multiprocessing",
    "os",
    "random",
    "secrets",
    "select",
    "selectors",
    "signal",
    "socket",
    "sqlite3",
    "subprocess",
    "threading",
    "time",
}
BASE = {"msgspec", "cffi", "numpy"}  # what every install has


@dataclass(frozen=True)
class Import:
    module: str  # who imports
    target: str  # what
    line: int


def layer_name(module: str) -> str:
    """The row of LAYERS that a module belongs to."""
    parts = module.split(".")
    # Only the package itself belongs to the row "nova"; a new part has to be given a place.
    rows = (".".join(parts[:n]) for n in range(len(parts), min(len(parts), 2) - 1, -1))
    for row in rows:
        if row in LAYERS:
            return row
    raise LookupError(f"{module} has no layer; give it one in LAYERS, as DESIGN has it")


def layer(module: str) -> int:
    return LAYERS[layer_name(module)]


def python_imports(module: str, source: str, modules: set[str], *, package: bool) -> Iterator[Import]:
    for node in ast.walk(ast.parse(source)):  # functions and `if TYPE_CHECKING` count as well
        match node:
            case ast.Import(names):
                for name in names:
                    yield Import(module, name.name, node.lineno)
            case ast.ImportFrom(stem, names, level):
                if level:
                    parts = module.split(".")
                    base = parts[: len(parts) - level + package]
                    stem = ".".join([*base, *([stem] if stem else [])])
                for name in names:
                    full = f"{stem}.{name.name}"
                    yield Import(module, full if full in modules else str(stem), node.lineno)


def cython_imports(module: str, source: str, modules: set[str]) -> Iterator[Import]:
    for number, line in enumerate(source.splitlines(), 1):
        if found := re.match(r"\s*from\s+([\w.]+)\s+c?import\s+(.*)", line):
            names = re.findall(r"\w+", found[2].partition("#")[0])
            full = {f"{found[1]}.{name}" for name in names} & modules
            for target in full or {found[1]}:
                yield Import(module, target, number)
        elif found := re.match(r"\s*c?import\s+([\w., ]+)", line):
            for target in re.findall(r"[\w.]+", found[1]):
                yield Import(module, target, number)


def faults_of(imports: list[Import]) -> list[str]:
    """Every import that the house rule forbids, in words."""
    faults = []
    faces: dict[str, set[str]] = defaultdict(set)
    homes: dict[str, set[str]] = defaultdict(set)
    for each in imports:
        part = ".".join(each.module.split(".")[:2])
        if each.target.startswith("nova._native.") and part != "nova._native":
            faces[each.target].add(part)
    for each in imports:
        where = f"{each.module}:{each.line} imports {each.target}"
        mine = layer_name(each.module)
        height = LAYERS[mine]
        if mine == "nova._native":  # what a native module may do is what its face may do
            height = max((layer(face) for face in faces[each.module]), default=height)
        if each.target.partition(".")[0] != "nova":
            top = each.target.partition(".")[0]
            if top in IMPURE and height < DRIVERS:
                faults.append(f"{where}, which only layer {DRIVERS} and above may know; {mine} stands on {height}")
            if top not in sys.stdlib_module_names | BASE | {"libc", "cpython", "cython", "posix"}:
                homes[top].add(".".join(each.module.split(".")[:2]))
            continue
        theirs = layer_name(each.target)
        same = mine == theirs or each.module.split(".")[:2] == each.target.split(".")[:2] != ["nova"]
        if theirs == "nova.sim" and not same and LAYERS[mine] < SURFACES:
            faults.append(f"{where}; the simulator is for surfaces and tests, {mine} stands on {LAYERS[mine]}")
        elif LAYERS[theirs] > LAYERS[mine] and not each.target.startswith(f"{each.module}."):  # a face names its parts
            faults.append(f"{where}, upward from layer {LAYERS[mine]} to {LAYERS[theirs]}")
        elif LAYERS[theirs] == LAYERS[mine] > 0 and not same and (mine, theirs) not in BESIDE:
            faults.append(f"{where}, beside it on layer {LAYERS[mine]}")
    faults += [
        f"{native} has {len(parts)} importers, {', '.join(sorted(parts))}; it has one face"
        for native, parts in faces.items()
        if len(parts) > 1
    ]
    faults += [
        f"{library} is imported by {', '.join(sorted(parts))}; an optional library has one importer"
        for library, parts in homes.items()
        if len(parts) > 1
    ]
    return faults


def name_of(path: Path) -> str:
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def package_imports() -> list[Import]:
    sources = [path for end in ("*.py", "*.pyx", "*.pxi", "*.pxd") for path in sorted((ROOT / "nova").rglob(end))]
    modules = {name_of(path) for path in sources}
    found: list[Import] = []
    for path in sources:
        if path.suffix == ".py":
            package = path.stem == "__init__"
            found += python_imports(name_of(path), path.read_text(), modules, package=package)
        else:
            found += cython_imports(name_of(path), path.read_text(), modules)
    return found


def test_calls_go_down():
    imports = package_imports()
    assert len(imports) > 100
    faults = faults_of(imports)
    assert not faults, "\n".join(sorted(faults))


def test_every_native_module_has_a_face():
    natives = {name_of(path) for path in (ROOT / "nova/_native").glob("*.pyx")}
    faced = {each.target for each in package_imports() if not each.module.startswith("nova._native")}
    assert natives <= faced


MODULES = {"nova.clock", "nova.sim.world", "nova.store", "nova.types", "nova._native.log", "nova.sync.gossip"}


@pytest.mark.parametrize(
    ("module", "source", "word"),
    [
        ("nova.clock", "from nova.store import ReplicatedStore", "upward"),
        ("nova.clock", "from nova import store", "upward"),
        ("nova.clock", "if TYPE_CHECKING:\n    from nova.store import ReplicatedStore", "upward"),
        ("nova.conflict.vm", "def late():\n    import nova.transport.tcp", "upward"),
        ("nova.conflict.vm", "from ..sync.gossip import Gossip", "beside it"),
        ("nova.sync.gossip", "import time", "may know"),
        ("nova.conflict.detect", "from random import Random", "may know"),
        ("nova.clock", "from nova.crdt import ORSet", "beside it"),
        ("nova.sync.gossip", "from nova.consensus.raft import Raft", "beside it"),
        ("nova.storage.log", "from nova.sim.world import World", "simulator"),
        ("nova.store.core", "from nova.sim.world import World", "simulator"),
        ("nova.store.core", "import nova", "upward"),
    ],
)
def test_a_forbidden_import_is_found(module, source, word):
    (fault,) = faults_of(list(python_imports(module, source, MODULES, package=False)))
    assert word in fault


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("nova.crdt.sets", "from nova.clock import VectorClock"),
        ("nova.store.core", "from nova.conflict.detect import ConflictDetector\nfrom nova.store.model import Entry"),
        ("nova.cli.simulate", "from nova.sim.world import World\nimport asyncio, time"),
        ("nova.transport.tcp", "import asyncio, socket\nfrom nova import types\nfrom . import base"),
        ("nova.consensus.raft", "from nova.sync.gossip import Gossip"),
    ],
)
def test_what_points_down_is_allowed(module, source):
    assert not faults_of(list(python_imports(module, source, MODULES, package=False)))


def test_a_second_face_and_a_second_importer_are_found():
    second = [Import("nova.storage.log", "nova._native.log", 1), Import("nova.wire", "nova._native.log", 1)]
    assert "it has one face" in "".join(faults_of(second))
    libraries = [Import("nova.cli.root", "blake3", 1), Import("nova.conflict.audit", "blake3", 1)]
    assert "one importer" in "".join(faults_of(libraries))


def test_a_native_module_may_do_what_its_face_may_do():
    source = "import os\nfrom libc.stdint cimport uint64_t\n"
    native = list(cython_imports("nova._native.log", source, MODULES))
    assert not faults_of([*native, Import("nova.storage.log", "nova._native.log", 1)])
    assert "may know" in "".join(faults_of([*native, Import("nova.wire", "nova._native.log", 1)]))


def test_a_module_without_a_layer_is_found():
    with pytest.raises(LookupError, match="give it one in LAYERS"):
        layer_name("nova.novelty")
