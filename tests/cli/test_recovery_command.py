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


def test_two_stopped_nodes_are_brought_together(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nova.toml").write_text('[strategies]\n"x/" = "manual"\n')
    for name in "ab":
        with ReplicatedStore(tmp_path / name, node=name) as store:
            store.put(f"only/{name}", name)
            store.put("x/both", name)
    assert run(["heal", "a", "b", "--config", "nova.toml"]) == 0
    told = capsys.readouterr().out
    assert "a and b" in told
    assert "1 and 1 recorded" in told
    assert run(["heal", "b", "a", "--json"]) == 0
    done = msgspec.json.decode(capsys.readouterr().out)
    assert (done["exchanged"], done["messages"], done["conflicts"]) == (False, 0, [0, 0])
    with ReplicatedStore(tmp_path / "a", node="a") as one, ReplicatedStore(tmp_path / "b", node="b") as other:
        assert one.digest == other.digest == done["digest"]
        assert one.conflicts()[0]["resolution"]["strategy"] == "manual"  # as the nodes are configured


def test_nodes_of_two_clusters_are_not_brought_together(tmp_path, capsys):
    for name in "ab":
        ReplicatedStore(tmp_path / name, node=name, cluster=f"cluster-{name}").close()
    assert run(["heal", str(tmp_path / "a"), str(tmp_path / "b")]) == 2
    assert "only one heals" in capsys.readouterr().err


def test_what_only_a_directory_takes_is_refused_for_a_node(capsys):
    assert run(["checkpoint", "--kept", "3"]) == 2
    assert "limits.checkpoints_kept" in capsys.readouterr().err
