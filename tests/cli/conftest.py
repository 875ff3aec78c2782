from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests" / "server"))  # the node in one dictionary, shared with the tests of the API

from memory_backend import Running, running  # noqa: E402

Nova = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def node() -> Iterator[Running]:
    with running(chaos=True, oldest=0) as node:
        yield node


def clean_environment(**more: str) -> dict[str, str]:
    mine = {name: value for name, value in os.environ.items() if not name.startswith("NOVA_")}
    return {**mine, "PYTHONPATH": str(ROOT), "COLUMNS": "120", "TERM": "dumb", **more}


@pytest.fixture
def nova(node: Running, tmp_path: Path) -> Nova:
    """Runs `nova ...` in a process of its own, against the node of the module."""

    def run(*arguments: str, stdin: str = "", **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "nova", *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=60,
            cwd=tmp_path,
            env=clean_environment(**{"NOVA_NODE": node.url, **env}),
        )

    return run
