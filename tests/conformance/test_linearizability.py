"""Public histories with known verdicts, from the directory NOVA_TEST_DATA/linearizability."""

from __future__ import annotations

import json
import os
import tarfile
from pathlib import Path

import pytest

from nova.sim.linearize import check_linearizable, read_history

DATA = Path(os.environ.get("NOVA_TEST_DATA", "../shared/data")) / "linearizability"
VERDICTS = json.loads((DATA / "verdicts.json").read_text()) if DATA.is_dir() else {}


def test_every_verdict_is_equal():
    if not VERDICTS:
        pytest.skip(f"no histories: {DATA} is absent; NOVA_TEST_DATA names the directory that has them")
    found = {}
    with tarfile.open(DATA / "histories.tar.gz") as archive:
        for member in archive.getmembers():
            name = Path(member.name).name
            if name in VERDICTS:
                history, model = read_history(archive.extractfile(member).read().decode(), name)
                found[name] = check_linearizable(history, model).ok
    assert found == VERDICTS
    assert len(found) > 50
