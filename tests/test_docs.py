"""Every example that the documentation marks as runnable runs, and prints what it says.

A line ``<!-- runnable -->`` above a fenced block marks it. A ``python`` block is run as a program of its own. In a
``console`` block, lines after ``$ `` are commands and the others what they print, with ``...`` for any text; a ``sh``
block is a script that must succeed. Each example runs in an empty folder.
"""

from __future__ import annotations

import ast
import doctest
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"^<!-- runnable -->\s*\n```(\w+)[^\n]*\n(.*?)^```\s*$", re.MULTILINE | re.DOTALL)
SECONDS_MAX = 60


@dataclass(frozen=True)
class Example:
    place: str
    language: str
    text: str


def examples_in(text: str, name: str) -> list[Example]:
    return [
        Example(f"{name}:{text.count(chr(10), 0, found.start(1)) + 1}", found[1], found[2])
        for found in BLOCK.finditer(text)
    ]


def documented() -> list[Example]:
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return [
        example
        for page in pages
        if page.is_file()
        for example in examples_in(page.read_text(), str(page.relative_to(ROOT)))
    ]


def run(arguments: list[str], folder: Path) -> str:
    # `nova` and `python` in an example are those under test.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        arguments,
        cwd=folder,
        env={**os.environ, "PATH": path, "NO_COLOR": "1", "COLUMNS": "120"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=SECONDS_MAX,
    )
    assert done.returncode == 0, f"{arguments[-1]}\nexit {done.returncode}\n{done.stdout}"
    return done.stdout


def steps(text: str) -> list[tuple[str, str]]:
    """Commands of a console block, each with the output it should have."""
    parts: list[tuple[str, str]] = []
    for line in text.splitlines(keepends=True):
        if line.startswith("$ "):
            parts.append((line[2:], ""))
        elif parts and parts[-1][0].endswith("\\\n"):
            parts[-1] = (parts[-1][0] + line, "")
        else:
            assert parts, f"a console block starts with a line after '$ ', not with {line!r}"
            parts[-1] = (parts[-1][0], parts[-1][1] + line)
    return parts


def check(example: Example, folder: Path) -> None:
    match example.language:
        case "python":
            program = folder / "example.py"
            program.write_text(example.text)
            run([sys.executable, "example.py"], folder)
        case "console":
            for command, expected in steps(example.text):
                printed = run(["bash", "-euc", command], folder)
                agrees = doctest.OutputChecker().check_output(
                    expected, printed, doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
                )
                assert not expected or agrees, f"$ {command}expected:\n{expected}printed:\n{printed}"
        case "sh" | "bash":
            run(["bash", "-euo", "pipefail", "-c", example.text], folder)
        case other:
            pytest.fail(f"{example.place} is marked runnable but is {other!r}; python, console and sh can be run")


@pytest.mark.parametrize("example", documented(), ids=lambda example: example.place)
def test_a_documented_example_runs(example, tmp_path):
    check(example, tmp_path)


def test_every_test_that_the_documentation_names_exists():
    """As `path::name`, or only `path`."""
    named = {
        (page.name, *found)
        for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
        for found in re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?", page.read_text())
    }
    assert any(name for _, _, name in named)
    for page, path, name in sorted(named):
        assert (ROOT / path).is_file(), f"{page} names {path}"
        if name:
            tree = ast.parse((ROOT / path).read_text())
            defined = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
            assert name in defined, f"{page} names {path}::{name}"


def test_the_readme_has_an_example_that_runs():
    assert any(e.language == "python" and e.place.startswith("README.md") for e in documented())


def test_an_example_that_fails_or_prints_something_else_is_noticed(tmp_path):
    for language, text in [
        ("python", "assert 1 == 2\n"),
        ("console", "$ echo one\ntwo\n"),
        ("console", "$ false\n"),
        ("sh", "false\ntrue\n"),
    ]:
        with pytest.raises(AssertionError):
            check(Example("here", language, text), tmp_path)
    check(Example("here", "console", "$ echo one two three\none ... three\n$ echo \\\n  more\nmore\n"), tmp_path)


def test_only_marked_blocks_are_examples():
    text = "```python\nnot me\n```\n\n<!-- runnable -->\n```python\nme\n```\n\n```sh\nnor me\n```\n"
    assert examples_in(text, "page") == [Example("page:6", "python", "me\n")]
