"""Nodes for the tests of real processes; whatever a test does, none outlives it, and a failure shows their words."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from real_nodes import Nodes


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    report = yield
    if report.when == "call" and report.failed:
        for name in ("nodes", "cluster"):
            nodes = getattr(item, "funcargs", {}).get(name)
            if isinstance(nodes, Nodes):
                report.sections.append((f"what the {name} wrote", nodes.words()))
    return report


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Nodes]:
    """Makes nodes for one test."""
    made = Nodes(tmp_path)
    yield made
    made.end()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    """Three connected nodes a, b, c, shared by the tests of a module that leave them whole."""
    made = Nodes(tmp_path_factory.mktemp("cluster"))
    try:
        made.start("a", "b", "c")
        yield made
    finally:
        made.end()
