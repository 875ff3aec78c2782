"""nova policy check and explain."""

from __future__ import annotations

import msgspec
import pytest

from nova.cli.app import run

POLICY = """name = "production"
default = "lww"

[fields]
cpu = "max"

[[rules]]
name = "billing"
when = { path = "/billing/**" }
use = "manual"
"""
CASE = {
    "resource_id": "doc",
    "base": {"cpu": 1, "billing": {"price": 1}},
    "versions": [
        {"origin": "a", "clock": {"a": 1}, "time_ms": 1, "value": {"cpu": 8, "billing": {"price": 2}}},
        {"origin": "b", "clock": {"b": 1}, "time_ms": 2, "value": {"cpu": 4, "billing": {"price": 3}}},
    ],
}


@pytest.fixture
def files(tmp_path):
    policy, case = tmp_path / "p.toml", tmp_path / "c.json"
    policy.write_text(POLICY)
    case.write_bytes(msgspec.json.encode(CASE))
    return policy, case


def test_a_good_policy_is_said_to_be_good(files, capsys):
    assert run(["policy", "check", str(files[0])]) == 0
    assert "is good: policy production, 1 field, 1 rule, 0 escalations" in capsys.readouterr().out
    assert run(["policy", "check", str(files[0]), "--json"]) == 0
    assert msgspec.json.decode(capsys.readouterr().out)["fields"] == {"cpu": "max"}


def test_what_is_wrong_is_one_line_with_file_and_line(files, capsys):
    files[0].write_text(POLICY.replace("default", "defualt"))
    assert run(["policy", "check", str(files[0])]) == 2
    assert capsys.readouterr().err == f"nova: {files[0]} line 2: defualt is no key of a policy; did you mean default?\n"
    assert run(["policy", "check", str(files[0]) + ".not"]) == 2
    assert "no such file" in capsys.readouterr().err


def test_an_explanation_says_which_rule_fired_and_why(files, capsys):
    assert run(["policy", "explain", str(files[0]), "--case", str(files[1])]) == 0
    said = capsys.readouterr().out
    assert "the conflict: rule 1, billing, fires: path matches /billing/**; manual settles it" in said
    assert "/cpu: max, by field cpu (/cpu)" in said
    assert 'the value is {"billing":{"price":1},"cpu":8}, pending' in said
    assert run(["policy", "explain", str(files[0]), "--case", str(files[1]), "--json"]) == 0
    assert msgspec.json.decode(capsys.readouterr().out)["settled"] == {"": {"billing": {"price": 1}, "cpu": 8}}


def test_a_case_that_is_none_is_refused(files, capsys):
    for text in ("{", "[]", '{"versions": [{"value": 1}]}'):
        files[1].write_text(text)
        assert run(["policy", "explain", str(files[0]), "--case", str(files[1])]) == 2
        assert str(files[1]) in capsys.readouterr().err
