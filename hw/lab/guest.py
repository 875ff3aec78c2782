"""Starts one guest, runs one command in it, and says with certainty how that went.

The command's exit status comes through a file in a shared folder: no file, no success. A guest is bounded twice, in the
time to come up and in all; its console is kept when anything went wrong.
"""

from __future__ import annotations

import hashlib
import os
import selectors
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from image import REPOSITORY, LackError, cache_root, find_tool, image

UP_SECONDS_MAX = {"kvm": 20, "tcg": 240}
"""A processor that is shared with others emulates slowly; KVM that works at all is up in seconds."""
CONSOLE_LINES = 60
NO_RESULT = 70
"""The exit status where the guest brought none; sysexits.h calls it EX_SOFTWARE."""


class GuestError(Exception):
    """The guest did not come up, or did not end by itself."""


def run_guest(
    command: Sequence[str], *, seconds_max: float, environment: Mapping[str, str] | None = None, memory_mb: int = 2048
) -> int:
    """The exit status of `command` in a fresh guest, whose working directory is the repository, read-only.

    What the command prints goes to standard output as it comes.

    raises  LackError if there can be no guest here; GuestError if it brought no result, after at most seconds_max and
            the time to come up
    """
    folder = image()
    kept = REPOSITORY / "build" / "lab"
    with tempfile.TemporaryDirectory(prefix="nova-lab-") as scratch:
        out = Path(scratch, "out")
        out.mkdir()
        lines = [f"export {name}={shlex.quote(value)}" for name, value in (environment or {}).items()]
        lines += ["cd /repository", "exec " + shlex.join(command)]
        (out / "command").write_text("\n".join(lines) + "\n")
        console = Path(scratch, "console")
        try:
            status = _try_accelerators(folder, out, console, seconds_max, memory_mb)
        except GuestError as error:
            said = console.read_text(errors="replace").splitlines() if console.exists() else []
            print(*said[-CONSOLE_LINES:], sep="\n", file=sys.stderr)
            raise GuestError(f"{error}; the whole console is in {_keep(console, kept)}") from None
        if status:
            print(f"lab: the console of the guest is in {_keep(console, kept)}", file=sys.stderr)
        return status


def _keep(console: Path, kept: Path) -> Path:
    kept.mkdir(parents=True, exist_ok=True)
    place = kept / f"console-{time.strftime('%H%M%S')}-{os.getpid()}.log"
    if console.exists():
        shutil.copy(console, place)
    return place


def _try_accelerators(folder: Path, out: Path, console: Path, seconds_max: float, memory_mb: int) -> int:
    for accelerator in _accelerators():
        try:
            return _boot(accelerator, folder, out, console, seconds_max, memory_mb)
        except _NotUpError as error:
            if accelerator != "kvm":
                raise GuestError(str(error)) from None
            # It will not be better the next time: neither this kernel nor this QEMU has changed by then.
            _verdict_file().write_text(f"{error}\n")
            print(f"lab: KVM is of no use here ({error}); emulating", file=sys.stderr)
    raise AssertionError("the last accelerator returns or raises")


class _NotUpError(Exception):
    pass


def _accelerators() -> list[str]:
    forced = os.environ.get("NOVA_LAB_ACCEL")
    if forced:
        if forced not in UP_SECONDS_MAX:
            raise LackError(f"NOVA_LAB_ACCEL is {forced!r}; it is one of {', '.join(UP_SECONDS_MAX)}")
        return [forced]
    usable = os.access("/dev/kvm", os.R_OK | os.W_OK) and not _verdict_file().exists()
    return ["kvm", "tcg"] if usable else ["tcg"]


def _verdict_file() -> Path:
    qemu = find_tool("qemu-system-x86_64") or ""
    text = f"{os.uname().release} {os.uname().version} {qemu} {os.stat(qemu).st_size if qemu else 0}"
    return cache_root() / f"no-kvm-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def _arguments(accelerator: str, folder: Path, out: Path, console: Path, memory_mb: int) -> list[str]:
    share = "security_model=none,multidevs=remap"
    # An older processor is emulated faster than the newest: its programs find fewer wide instructions to use.
    how = {"kvm": ["-accel", "kvm", "-cpu", "host"], "tcg": ["-accel", "tcg,thread=multi", "-cpu", "Nehalem"]}[
        accelerator
    ]
    # fmt: off
    return [
        find_tool("qemu-system-x86_64") or "qemu-system-x86_64", *how,
        "-smp", "2", "-m", str(memory_mb), "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
        "-kernel", str(folder / "kernel"), "-initrd", str(folder / "initramfs"),
        "-append", "console=ttyS0 panic=-1 quiet loglevel=4 random.trust_cpu=on mitigations=off nokaslr audit=0",
        # Written blocks go to a file without a name, so one image serves any number of guests.
        "-drive", f"file={folder / 'disk'},format=raw,if=virtio,snapshot=on,cache=unsafe",
        "-virtfs", f"local,path={REPOSITORY},mount_tag=repository,readonly=on,{share}",
        "-virtfs", f"local,path={out},mount_tag=out,{share}",
        "-device", "virtio-rng-pci",
        "-serial", f"file:{console}", "-serial", "stdio",
    ]
    # fmt: on


def _boot(accelerator: str, folder: Path, out: Path, console: Path, seconds_max: float, memory_mb: int) -> int:
    began = time.monotonic()
    errors = console.with_name("qemu-errors")
    with open(errors, "wb") as stderr:
        process = subprocess.Popen(
            _arguments(accelerator, folder, out, console, memory_mb),
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=stderr, start_new_session=True,
        )  # fmt: skip
    try:
        end = _follow(process, began, UP_SECONDS_MAX[accelerator], seconds_max)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    took = f"{time.monotonic() - began:.1f} s"
    said = errors.read_text(errors="replace").strip()
    because = f"; QEMU said: {said}" if said else ""
    if end == "not up":
        raise _NotUpError(f"the guest did not come up in {took} under {accelerator}{because}")
    try:
        return int((out / "status").read_text())
    except (OSError, ValueError):
        raise GuestError(f"the guest brought no result: {end} after {took}{because}") from None


def _follow(process: subprocess.Popen[bytes], began: float, up_seconds_max: float, seconds_max: float) -> str:
    """Pass the guest's words on until it is gone or its time is up; how it ended."""
    assert process.stdout is not None
    up, line = False, b""
    out = sys.stdout.buffer
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while True:
            end = began + (seconds_max if up else up_seconds_max)
            if (left := end - time.monotonic()) <= 0:
                return "stopped for want of time" if up else "not up"
            if not selector.select(left):
                continue
            data = os.read(process.stdout.fileno(), 65536)
            if not data:
                return "it went down" if up else "not up"
            if not up:
                # Before that there is nothing but the firmware.
                line += data
                at = line.find(b"lab: up")
                if at < 0:
                    continue
                up, data = True, line[at:]
                began = time.monotonic()
            out.write(data.replace(b"\r\n", b"\n"))
            out.flush()
