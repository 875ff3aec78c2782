"""nova checkpoint and restore."""

from __future__ import annotations

import msgspec
import pytest

from nova.cli.app import run
from nova.store import ReplicatedStore


@pytest.fixture
def stopped(tmp_path):
    with ReplicatedStore(tmp_path / "a", node="a") as store:
        store.put("k", 1)
    return tmp_path / "a"


def test_checkpoints_are_taken_and_listed(stopped, capsys):
    assert run(["checkpoint", str(stopped), "--list"]) == 0
    assert capsys.readouterr().out == "no checkpoints\n"
    assert run(["checkpoint", str(stopped), "--json"]) == 0
    (made,) = msgspec.json.decode(capsys.readouterr().out)
    assert (made["node"], made["position"], made["keys"]) == ("a", 1, 1)
    with ReplicatedStore(stopped, node="a") as store:
        assert store.digest == made["digest"]
        store.put("k", 2)
    assert run(["checkpoint", str(stopped), "--kept", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["TAKEN", "RECORD", "KEYS", "DIGEST"]
    assert len(lines) == 2


def test_a_copy_is_made_under_a_name_of_its_own(stopped, tmp_path, capsys):
    copy = ["restore", str(stopped), str(tmp_path / "b")]
    assert run([*copy, "--name", "a"]) == 2
    assert "give the copy a name of its own" in capsys.readouterr().err
    assert run([*copy, "--name", "b", "--at", "yesterday"]) == 2
    assert "give Unix milliseconds, or a time with its zone" in capsys.readouterr().err
    assert run([*copy, "--name", "b", "--digest", "00"]) == 1
    assert "not 00" in capsys.readouterr().err
    assert run([*copy, "--name", "b"]) == 0
    assert "1 taken behind record 0" in capsys.readouterr().out
    with ReplicatedStore(tmp_path / "b", node="b") as store:
        assert store.get("k").value == 1
    past = ["restore", str(stopped), str(tmp_path / "c"), "--name", "c", "--cluster", "past", "--json"]
    assert run([*past, "--at", "2001-01-31T12:00:00Z"]) == 0
    told = msgspec.json.decode(capsys.readouterr().out)
    assert (told["keys"], told["cluster"], told["rebuilt"]["passed_over"]) == (0, "past", 1)
