"""The package as its users meet it: names, documentation, versions, and what an import costs."""

from __future__ import annotations

import ast
import importlib.metadata
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import nova
import nova.consensus

PROMISED = {
    "VectorClock",
    "HybridLogicalClock",
    "LWWRegister",
    "MVRegister",
    "PNCounter",
    "ORSet",
    "LWWMap",
    "ConflictDetector",
    "ReplicatedStore",
    "VMState",
}
IMPORT_MS_MAX = 30


def python(*lines: str) -> str:
    program = [sys.executable, "-c", "\n".join(lines)]
    return subprocess.run(program, capture_output=True, text=True, check=True, timeout=60).stdout.strip()


def test_the_promised_names_are_public():
    assert set(nova.__all__) >= PROMISED


@pytest.mark.parametrize("name", [n for n in nova.__all__ if n != "__version__"])
def test_a_public_name_loads_and_is_documented(name):
    value = getattr(nova, name)
    assert inspect.getdoc(value), f"nova.{name} has no docstring"
    assert value.__doc__, f"nova.{name} only inherits its docstring"


def test_every_lazy_name_is_listed_for_type_checkers_and_for_readers():
    tree = ast.parse(inspect.getsource(nova))
    typed = {
        node.module: {alias.name for alias in node.names} for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)
    }
    assert {"__version__", *nova._HOME_OF} == set(nova.__all__)
    for home, names in nova._HOMES.items():
        assert typed[home] == set(names)


@pytest.mark.parametrize("name", nova.consensus.__all__)
def test_a_public_name_of_consensus_loads_and_is_documented(name):
    assert inspect.getdoc(getattr(nova.consensus, name)), f"nova.consensus.{name} has no docstring"


def test_consensus_costs_nothing_before_it_is_used():
    loaded = python("import sys, nova.consensus", "print([name for name in sys.modules if 'consensus.' in name])")
    assert loaded == "[]"
    with pytest.raises(AttributeError, match="NoSuchThing"):
        nova.consensus.NoSuchThing  # noqa: B018


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="NoSuchThing"):
        nova.NoSuchThing  # noqa: B018


def test_dir_lists_what_is_not_loaded_yet():
    assert "ReplicatedStore" in python("import nova", "print(*dir(nova))").split()


def test_import_loads_nothing_but_the_version():
    show = "print(*(name for name in sys.modules if name.partition('.')[0] in ('nova', 'msgspec')))"
    assert set(python("import nova, sys", show).split()) == {"nova", "nova._version"}


def test_import_is_quick():
    # The best of five, because the machine may be busy with other tests.
    measure = "import time; t = time.perf_counter(); import nova; print((time.perf_counter() - t) * 1e3)"
    best = min(float(python(measure)) for _ in range(5))
    assert best < IMPORT_MS_MAX, f"import nova took {best:.1f} ms; the limit is {IMPORT_MS_MAX} ms"


def test_the_package_says_that_it_is_typed():
    assert (Path(nova.__file__).parent / "py.typed").is_file()


def test_the_installed_version_is_the_one_in_the_source():
    try:
        installed = importlib.metadata.version("novacron")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("novacron is not installed here; make test installs it")
    assert installed == nova.__version__
