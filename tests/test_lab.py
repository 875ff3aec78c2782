"""The guest lab never passes in silence. A script stands in the emulator's place; `make test-hw` runs the real one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "hw" / "lab"))

import guest  # noqa: E402
import image  # noqa: E402


@pytest.fixture
def lab(tmp_path, monkeypatch):
    """Puts a script where QEMU is looked for; $out is the folder for results."""

    def put(script):
        (tmp_path / "bin").mkdir(exist_ok=True)
        program = tmp_path / "bin" / "qemu-system-x86_64"
        find_out = (
            "for word; do case $word in local,path=*tag=out*) out=${word#local,path=}; out=${out%%,*};; esac; done\n"
        )
        program.write_text("#!/bin/sh\n" + find_out + script)
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")

    monkeypatch.setenv("NOVA_LAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NOVA_LAB_ACCEL", "tcg")
    monkeypatch.setattr(guest, "image", lambda: tmp_path)
    monkeypatch.setattr(guest, "REPOSITORY", tmp_path)
    (tmp_path / "cache").mkdir()
    return put


@pytest.mark.parametrize("status", [0, 1, 5])
def test_the_status_of_the_command_comes_back(lab, status, capfdbinary):
    lab(f"echo lab: up; cat $out/command; echo {status} >$out/status")
    assert guest.run_guest(["echo", "a b"], seconds_max=20, environment={"A": "x y"}) == status
    out = capfdbinary.readouterr().out
    assert b"exec echo 'a b'" in out
    assert b"export A='x y'" in out


@pytest.mark.parametrize("written", ["", "echo >$out/status", "echo fine >$out/status"])
def test_a_guest_without_a_result_is_a_failure(lab, written):
    lab(f"echo lab: up; echo all passed; {written}")
    with pytest.raises(guest.GuestError, match="brought no result: it went down"):
        guest.run_guest(["true"], seconds_max=20)


def test_a_guest_that_does_not_end_is_ended(lab, tmp_path):
    lab("echo lab: up; echo $$ >$out/../../pid; exec sleep 1000")
    with pytest.raises(guest.GuestError, match="stopped for want of time after"):
        guest.run_guest(["true"], seconds_max=0.5)


def test_a_guest_that_does_not_come_up_is_a_failure_and_says_what_the_emulator_said(lab, monkeypatch):
    monkeypatch.setitem(guest.UP_SECONDS_MAX, "tcg", 0.5)
    lab("echo no such machine >&2; echo not yet; exec sleep 1000")
    with pytest.raises(
        guest.GuestError,
        match=r"not come up in 0.[5-9] s under tcg; QEMU said: no such machine; the whole console is in",
    ):
        guest.run_guest(["true"], seconds_max=20)


def test_useless_kvm_is_tried_once_and_then_left_alone(lab, monkeypatch, tmp_path):
    lab(r'case "$*" in *accel\ kvm*) echo tried >>$0.kvm; exit 1;; esac; echo lab: up; echo 0 >$out/status')
    monkeypatch.delenv("NOVA_LAB_ACCEL")
    monkeypatch.setattr(os, "access", lambda *_: True)
    for _ in range(2):
        assert guest.run_guest(["true"], seconds_max=20) == 0
    assert (tmp_path / "bin" / "qemu-system-x86_64.kvm").read_text() == "tried\n"


def test_another_recipe_is_another_image(tmp_path, monkeypatch):
    before = image.key()
    for name in ("first-init", "image.py"):
        (tmp_path / name).write_bytes((image.HERE / name).read_bytes())
    monkeypatch.setattr(image, "HERE", tmp_path)
    assert image.key() == before
    (tmp_path / "first-init").write_bytes(b"#!/bin/busybox sh\n")
    assert image.key() != before


def test_the_first_file_system_is_an_archive_that_cpio_would_read():
    data = image._cpio({"init": b"hello"}, folders=("bin",))
    names = []
    at = 0
    while at < len(data):
        assert data[at : at + 6] == b"070701"
        size, name_size = int(data[at + 54 : at + 62], 16), int(data[at + 94 : at + 102], 16)
        names.append(data[at + 110 : at + 110 + name_size - 1].decode())
        at += 110 + name_size + -(110 + name_size) % 4
        if names[-1] == "init":
            assert data[at : at + size] == b"hello"
        at += size + -size % 4
    assert names == ["bin", "init", "TRAILER!!!"]


def run(*command, **environment):
    return subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_no_lab_is_a_skip_with_a_reason_and_a_failure_where_it_is_required(tmp_path):
    environment = {"PATH": str(tmp_path), "NO_SYSTEM": "1", "NOVA_LAB_CACHE": str(tmp_path)}
    # No program at all is found there; mke2fs is also looked for in /usr/sbin.
    (tmp_path / "bash").symlink_to("/bin/bash")
    (tmp_path / "env").symlink_to("/usr/bin/env")
    lab = run("hw/lab", "run", "true", **environment)
    assert lab.returncode == 77
    assert "lab: not here: missing packages:" in lab.stderr
    assert "qemu-system-x86" in lab.stderr
    without = run("hw/run.py", **environment)
    if "test-hw: on" in without.stdout:
        pytest.skip("this machine has RDMA of its own")
    assert without.returncode == 0
    assert "skipped: hardware tests: no RDMA NIC" in without.stdout
    assert "no guest lab (missing packages:" in without.stdout
    required = run("hw/run.py", NOVA_REQUIRE_RDMA="rxe", **environment)
    assert required.returncode == 1
    assert "NOVA_REQUIRE_RDMA=rxe, and there is none" in required.stderr
    wrong = run("hw/run.py", NOVA_REQUIRE_RDMA="yes", **environment)
    assert wrong.returncode == 2
    assert "'yes'" in wrong.stderr
