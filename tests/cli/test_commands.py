"""The command line as users and scripts meet it: real processes against a node on a real port."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from memory_backend import Running, running

from nova._version import __version__
from nova.cli import EXTRA_LINE
from nova.cli.app import COMMANDS, run
from nova.cli.keys import parse_value
from nova.errors import UsageError

ROOT = Path(__file__).parents[2]


def failed(done: Any, code: int, *words: str) -> None:
    """Check an exit code and that the error is one line that holds `words`."""
    assert done.returncode == code, done
    line = done.stderr.rstrip("\n")
    assert line.startswith("nova: ")
    assert "\n" not in line
    for word in words:
        assert word in line


def test_a_value_goes_in_and_comes_out(nova: Any) -> None:
    put = nova("put", "vm/1", '{"cpus": 4}', "--kind", "vm")
    assert (put.returncode, put.stdout) == (0, "vm/1 written at revision 1\n")
    assert json.loads(nova("get", "vm/1").stdout) == {"cpus": 4}
    entry = json.loads(nova("get", "vm/1", "--json").stdout)
    assert (entry["kind"], entry["clock"]) == ("vm", {"n1~1": 1})
    assert json.loads(nova("put", "in", "-", "--json", stdin="[1, 2]").stdout)["value"] == [1, 2]
    listed = nova("list", "vm/")
    assert listed.stdout.splitlines()[1].split() == ["vm/1", "vm", '{"cpus":4}']
    assert [entry["key"] for entry in json.loads(nova("list", "--json").stdout)["keys"]] == ["in", "vm/1"]
    assert "more:" in nova("list", "--limit", "1").stderr
    watched = nova("watch", "vm/", "--since", "0", "--count", "1", "--json")
    assert json.loads(watched.stdout)["key"] == "vm/1"
    assert "vm/1" in nova("watch", "--since", "0", "--count", "1").stdout
    assert "written once" in nova("why", "vm/1").stdout
    assert json.loads(nova("why", "vm/1", "--json").stdout)["writes"]
    assert nova("delete", "vm/1").stdout.startswith("vm/1 deleted")
    failed(nova("get", "vm/1"), 1, "vm/1", "nova list")
    failed(nova("why", "vm/1"), 1, "vm/1")


def test_a_stale_write_exits_with_four_and_shows_both_versions(nova: Any) -> None:
    nova("put", "stale", "old")
    clock = json.dumps(json.loads(nova("get", "stale", "--json").stdout)["clock"])
    nova("put", "stale", "theirs")
    stale = nova("put", "stale", "mine", "--context", clock, "--conditional")
    failed(stale, 4, "moved on")
    assert json.loads(stale.stdout)["current"] == "theirs"
    stale = nova("put", "stale", "mine", "--context", clock, "--conditional", "--json")
    assert json.loads(stale.stdout)["current"]["value"] == "theirs"
    failed(nova("delete", "stale", "--context", clock, "--conditional"), 4, "moved on")


def test_what_a_node_says_of_itself_is_printed(nova: Any) -> None:
    assert "digest" in nova("status").stdout
    assert json.loads(nova("status", "--json").stdout)["name"] == "n1"
    assert nova("peers").stdout.splitlines()[1].split()[:5] == ["n2", "there", "127.0.0.1:1", "alive", "yes"]
    assert json.loads(nova("peers", "--json").stdout)["peers"]
    assert "concurrent_update" in nova("conflicts", "list").stdout
    assert json.loads(nova("conflicts", "list", "--json", "--type", "concurrent_update").stdout)["conflicts"]
    assert nova("conflicts", "list", "--key", "other").stdout == "no conflicts\n"
    shown = nova("conflicts", "show", "c1").stdout
    assert "because the larger one fits" in shown
    assert "cpus 4 of n1 lost: smaller" in shown
    failed(nova("conflicts", "show", "c2"), 1, "c2", "conflicts list")
    assert "resource=vm/1" in nova("audit", "list").stdout
    assert "whole: 1 events" in nova("audit", "verify").stdout
    assert json.loads(nova("audit", "verify", "--json").stdout)["ok"] is True
    broken = nova("audit", "verify", "--head", "9:00")
    assert (broken.returncode, "broken" in broken.stdout) == (1, True)
    assert nova("audit", "head").stdout == "1:00ff\n"
    assert "HOTSPOT" in nova("audit", "stats").stdout
    assert nova("audit", "retain", "--events", "4").stdout == "4 events dropped\n"
    failed(nova("audit", "retain"), 2, "--days")
    assert nova("audit", "export", "-").stdout == '{"seq":1}\n{"seq":2}\n'


def test_a_key_goes_back_to_a_point(nova: Any) -> None:
    nova("put", "vm/9", "1")
    assert nova("points", "save", "vm/9").stdout == "p2\n"
    assert nova("points", "list", "vm/9").stdout.splitlines()[1].split()[0] == "p1"
    done = nova("rollback", "vm/9", "--to", "p1", "--context", '{"n~1": 1}', "--by", "ann").stdout
    assert done.startswith("vm/9 is at p1 again: 1 path changed")
    assert "kept 1 of n2 at /x" in done
    assert "undo with: nova rollback vm/9 --to p3" in done
    failed(nova("rollback", "vm/9", "--to", "none"), 1, "none")
    failed(nova("rollback", "vm/9"), 2, "--to")


def test_what_waits_is_shown_and_decided(nova: Any) -> None:
    rows = [line.split() for line in nova("conflicts", "waiting").stdout.splitlines()]
    assert rows[1:] == [["vm/1", "s1", "/cpus", "4", "n1"], ["vm/1", "s1", "/cpus", "8", "n2"]]
    done = nova("conflicts", "decide", "vm/1", "/cpus=8", "--shown", "s1", "--by", "ann").stdout
    assert done.startswith("vm/1: decided")
    assert "/cpus 4 of n1 lost: ann decided otherwise" in done
    failed(nova("conflicts", "decide", "vm/1", "/cpus=8", "--shown", "s0"), 4, "siblings changed")
    failed(nova("conflicts", "decide", "vm/1", "8", "--shown", "s1"), 2, "PATH=VALUE")


def test_links_are_cut_and_healed(nova: Any) -> None:
    assert nova("chaos", "cut", "n2", "n3").stdout == "cut off from: n2, n3\n"
    assert json.loads(nova("chaos", "heal", "--json").stdout) == {"cut": []}


def test_a_node_that_is_not_there_exits_with_three(nova: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
    for command in (["status"], ["put", "a", "1"], ["watch"], ["audit", "verify"]):
        failed(nova(*command, "--node", f"http://127.0.0.1:{port}"), 3, str(port), "nova serve", "NOVA_NODE")
    failed(nova("put", "busy", "1"), 3, "try again")


def test_something_else_than_a_node_is_named(nova: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        child = subprocess.Popen(
            [sys.executable, "-c", "import socket,sys; s=socket.socket(fileno=int(sys.argv[1])); c,_=s.accept(); "
             "c.recv(9999); c.sendall(b'HTTP/1.1 200 OK\\r\\nContent-Length: 5\\r\\n\\r\\nhello'); c.recv(1)",
             str(sock.fileno())],
            pass_fds=[sock.fileno()],
        )  # fmt: skip
        try:
            failed(nova("status", "--node", f"127.0.0.1:{sock.getsockname()[1]}"), 1, "does not answer like a node")
        finally:
            child.wait(10)


def test_a_token_is_given_by_flag_or_environment(nova: Any) -> None:
    with running(token="sesame-sesame") as locked:
        failed(nova("status", "--node", locked.url), 1, "NOVA_TOKEN")
        assert nova("status", "--node", locked.url, "--token", "sesame-sesame").returncode == 0
        assert nova("status", NOVA_NODE=locked.url, NOVA_TOKEN="sesame-sesame").returncode == 0


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (["frobnicate"], ["frobnicate", "nova --help"]),
        (["get"], ["key", "nova get --help"]),
        (["get", "a", "--jsn"], ["--jsn"]),
        (["list", "--limit", "0"], ["limit"]),
        (["put", "a", "{"], ["not JSON"]),
        (["put", "a", "1", "--kind", "nonsense"], ["nonsense"]),
        (["put", "a", "1", "--context", "x"], ["--context", "clock"]),
        (["get", "x" * 1025], ["1024"]),
        (["status", "--node", "ftp://x"], ["ftp://x", "http://127.0.0.1:8420"]),
        (["status", "--node", "http://x:99999"], ["99999"]),
        (["serve", "--http", "nonsense"], ["--http nonsense", "HOST:PORT"]),
        (["serve", "--listen", "0.0.0.0:7420"], ["key and token", "--insecure"]),
        (["serve", "--config", "none.toml"], ["none.toml", "no such file"]),
        (["serve", "--kinds", "a=b"], ["--kinds", "use one of"]),
    ],
)
def test_a_wrong_command_line_exits_with_two(nova: Any, line: list[str], words: list[str]) -> None:
    failed(nova(*line), 2, *words)


def test_a_traceback_shows_only_when_asked(nova: Any) -> None:
    assert "Traceback" not in nova("get", "none").stderr
    for line in (["--debug", "get", "none"], ["get", "none", "--debug"]):
        done = nova(*line)
        assert "Traceback" in done.stderr
        assert done.returncode == 1


def test_a_configuration_is_checked_without_a_node(nova: Any, tmp_path: Path) -> None:
    (tmp_path / "good.toml").write_text("name = 'a'\ntoken = 'very-secret'\n")
    (tmp_path / "bad.toml").write_text("nam = 'a'\n")
    good = nova("config", "check", "good.toml")
    assert (good.returncode, good.stdout.split(":")[0]) == (0, "good.toml is good")
    shown = nova("config", "check", "good.toml", "--json", NOVA_REGION="eu").stdout
    assert "very-secret" not in shown
    assert (json.loads(shown)["region"], json.loads(shown)["token"]) == ("eu", "***")
    failed(nova("config", "check", "bad.toml"), 2, "bad.toml line 1", "did you mean name?")


def test_the_machine_is_described(nova: Any) -> None:
    described = json.loads(nova("hw", "detect", "--json").stdout)
    findings = described["findings"]
    names = [finding["name"] for finding in findings]
    for name in (
        "SIMD",
        "io_uring",
        "liburing",
        "RDMA device",
        "pyverbs",
        "KVM",
        "kernel TLS",
        "WireGuard",
        "cachestat",
    ):
        assert name in names
    for finding in findings:
        assert finding["state"] in ("present", "absent", "broken")
        assert finding["mend"] or finding["state"] != "absent"
    transport = described["transport"]
    options = {option["scheme"]: option for option in transport["options"]}
    assert options[transport["chosen"]]["usable"]
    assert all(option["usable"] or option["cause"] in transport["reason"] for option in options.values())
    shown = nova("hw", "detect").stdout
    assert shown.startswith("WHAT")
    assert shown.endswith(f"transport: {transport['reason']}\n")


def test_every_command_has_help_with_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    pending = [[name] for name in COMMANDS]
    run(["--help"])
    top = capsys.readouterr().out
    while pending:
        command = pending.pop()
        assert run([*command, "--help"]) == 0
        help_ = capsys.readouterr().out
        if "Commands:" in help_:
            listed = help_.partition("Commands:\n")[2]
            pending += [[*command, line.split()[0]] for line in listed.splitlines() if line[2:3].strip()]
        elif "Not installed" not in help_:
            assert f"Example: nova {' '.join(command)}" in " ".join(help_.split()), command
        assert command[0] in top


def test_a_group_without_a_command_shows_its_help(nova: Any) -> None:
    done = nova("conflicts")
    assert done.returncode == 2
    assert "show" in done.stderr
    assert nova().returncode == 2


def test_the_shell_completes_commands(nova: Any) -> None:
    env = {"_NOVA_COMPLETE": "complete_bash", "COMP_WORDS": "nova con", "COMP_CWORD": "1"}
    assert nova(**env).stdout.split() == ["consensus", "conflicts", "config"]


def test_the_version_comes_at_once(nova: Any) -> None:
    assert nova("version").stdout == f"nova {__version__}\n"
    assert json.loads(nova("version", "--json").stdout)["version"] == __version__
    times = []
    for _ in range(3):
        start = time.perf_counter()
        nova("version")
        times.append(time.perf_counter() - start)
    assert min(times) < 0.15


def test_without_the_extra_the_command_says_how_to_get_it(tmp_path: Path) -> None:
    hidden = (
        "import sys; sys.modules['typer'] = None; sys.argv = ['nova', 'status']; import nova.cli; "
        "sys.exit(nova.cli.main())"
    )
    done = subprocess.run(
        [sys.executable, "-c", hidden], capture_output=True, text=True, timeout=30, env={"PYTHONPATH": str(ROOT)}
    )
    assert (done.returncode, done.stderr) == (1, EXTRA_LINE + "\n")


def test_a_reader_that_leaves_early_is_no_error(nova: Any, node: Running) -> None:
    shell = f'"{sys.executable}" -m nova watch --since 0 --node {node.url} | head -1; exit "${{PIPESTATUS[0]}}"'
    with subprocess.Popen(
        ["bash", "-c", shell], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
    ) as watching:  # fmt: skip
        try:
            deadline = time.monotonic() + 30
            number = 0
            # A watch finds out that nobody reads any more when it has something to write.
            while watching.poll() is None and time.monotonic() < deadline:
                assert nova("put", f"many/{number}", "1").returncode == 0
                number += 1
        finally:
            watching.kill()
        said, error = watching.communicate()
    assert watching.returncode == 1
    assert said
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("hello", "hello"), ('"hello"', "hello"), ("5", 5), ("-1.5", -1.5), ("true", True), ("truest", "truest"),
        ("null", None), ("[1]", [1]), ('{"a": {}}', {"a": {}}), ("", ""), ("a b", "a b"),
    ],
)  # fmt: skip
def test_a_typed_value_is_json_or_a_bare_word(text: str, value: Any) -> None:
    assert parse_value(text) == value


@pytest.mark.parametrize("text", ["{", "[1,", '"open', "1x", "-", "01"])
def test_a_value_that_looks_like_json_must_be_json(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import io

    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    with pytest.raises(UsageError, match="not JSON"):
        parse_value(text)
