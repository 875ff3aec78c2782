from __future__ import annotations

from collections.abc import Iterator

import pytest
from memory_backend import Running, running


@pytest.fixture(scope="module")
def node() -> Iterator[Running]:
    with running(chaos=True) as node:
        yield node
