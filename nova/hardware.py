"""What this machine offers beyond a processor and a disk: instruction sets, io_uring, RDMA, KVM, kernel modules.

Probes only look: nothing is loaded, created or changed.
"""

from __future__ import annotations

import ctypes
import errno
import importlib
import os
import platform
import sysconfig
from pathlib import Path
from typing import Literal

import msgspec

State = Literal["present", "absent", "broken"]


class Finding(msgspec.Struct, frozen=True):
    """One thing: there, not there (`mend` says how to get it) or there but unusable (`detail` says why)."""

    name: str
    state: State
    detail: str = ""
    mend: str = ""


# Numbers of system calls that came after the numbering was unified: the same on x86-64 and aarch64.
_IO_URING_SETUP = 425
_CACHESTAT = 451
_IO_URING_PARAMS_BYTES = 120

_MODULES = {
    "tls": ("kernel TLS", "modprobe tls"),
    "wireguard": ("WireGuard", "modprobe wireguard"),
    "rdma_rxe": ("soft RDMA (rxe)", "modprobe rdma_rxe, then: rdma link add rxe0 type rxe netdev eth0"),
}


def detect() -> list[Finding]:
    """Everything that nova may use, in a fixed order. Takes a few milliseconds."""
    return [
        _simd(),
        _kernels(),
        _io_uring(),
        _liburing(),
        _rdma(),
        _pyverbs(),
        _kvm(),
        *(_module(module, title, mend) for module, (title, mend) in _MODULES.items()),
        _cachestat(),
        _zstd(),
        _dirty_pages(),
    ]


def _simd() -> Finding:
    flags = _cpu_flags()
    for level, needed in (
        ("AVX-512", {"avx512f", "avx512bw", "avx512vl"}),
        ("AVX2", {"avx2"}),
        ("SSE4.2", {"sse4_2"}),
        ("NEON", {"asimd"}),
    ):
        if needed <= flags:
            return Finding("SIMD", "present", f"{level} on {platform.machine()}, {os.cpu_count()} processors")
    return Finding("SIMD", "absent", platform.machine(), "nothing to do: scalar code is used")


def _cpu_flags() -> set[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return set(value.split())
    return set()


def _kernels() -> Finding:
    folder = Path(__file__).parent / "_native"
    suffix = sysconfig.get_config_var("EXT_SUFFIX") or ".so"
    built = sorted(path.name.removesuffix(suffix) for path in folder.glob(f"*{suffix}"))
    wanted = sorted(path.stem for path in folder.glob("*.pyi") if path.stem != "__init__")
    if missing := [name for name in wanted if name not in built]:
        return Finding(
            "compiled kernels",
            "broken",
            f"not built: {', '.join(missing)}",
            "install a C compiler, then: pip install .",
        )
    return Finding("compiled kernels", "present", ", ".join(built))


def _syscall(number: int, *arguments: object) -> int:
    """Result of a system call, or minus its errno."""
    call = ctypes.CDLL(None, use_errno=True).syscall
    call.restype = ctypes.c_long
    result = int(call(ctypes.c_long(number), *arguments))
    return -ctypes.get_errno() if result == -1 else result


def _io_uring() -> Finding:
    params = ctypes.create_string_buffer(_IO_URING_PARAMS_BYTES)
    result = _syscall(_IO_URING_SETUP, ctypes.c_uint(2), ctypes.byref(params))
    if result >= 0:
        os.close(result)
        return Finding("io_uring", "present", f"kernel {platform.release()}")
    if -result == errno.ENOSYS:
        return Finding("io_uring", "absent", f"kernel {platform.release()}", "use Linux 5.11 or newer")
    mend = "sysctl kernel.io_uring_disabled=0, or allow io_uring in the container's seccomp profile"
    return Finding("io_uring", "broken", os.strerror(-result), mend if -result == errno.EPERM else "")


def _liburing() -> Finding:
    mend = "apt install liburing-dev, then build nova again"
    header = next((path for path in _include_paths("liburing.h")), None)
    if header is None:
        return Finding("liburing", "absent", "no liburing.h", mend)
    static = next((path for path in _library_paths("liburing.a")), None)
    if static is None:
        return Finding("liburing", "broken", f"{header} but no liburing.a", mend)
    return Finding("liburing", "present", f"{header}, {static}")


def _include_paths(name: str) -> list[Path]:
    return [path for path in (Path(root, name) for root in ("/usr/include", "/usr/local/include")) if path.exists()]


def _library_paths(name: str) -> list[Path]:
    multiarch = sysconfig.get_config_var("MULTIARCH") or f"{platform.machine()}-linux-gnu"
    roots = [f"/usr/lib/{multiarch}", f"/lib/{multiarch}", "/usr/lib64", "/usr/lib", "/usr/local/lib"]
    return [path for path in (Path(root, name) for root in roots) if path.exists()]


def _rdma() -> Finding:
    try:
        devices = sorted(path.name for path in Path("/sys/class/infiniband").iterdir())
    except OSError:
        devices = []
    if not devices:
        return Finding("RDMA device", "absent", "", "install a device, or make a soft one (see soft RDMA below)")
    active = [device for device in devices if _has_active_port(device)]
    if not active:
        return Finding(
            "RDMA device", "broken", f"{', '.join(devices)}: no active port", "bring the link up: ip link set up"
        )
    nodes = list(Path("/dev/infiniband").glob("uverbs*"))
    if not any(os.access(node, os.R_OK | os.W_OK) for node in nodes):
        return Finding(
            "RDMA device",
            "broken",
            f"{', '.join(active)}: no /dev/infiniband/uverbs* for this user",
            "give the user or the container access to /dev/infiniband",
        )
    return Finding("RDMA device", "present", ", ".join(active))


def _has_active_port(device: str) -> bool:
    for state in Path("/sys/class/infiniband", device, "ports").glob("*/state"):
        try:
            if "ACTIVE" in state.read_text():
                return True
        except OSError:
            continue
    return False


def _pyverbs() -> Finding:
    mend = "apt install python3-pyverbs (for the system's Python)"
    try:
        importlib.import_module("pyverbs.device")
    except ModuleNotFoundError:
        return Finding("pyverbs", "absent", "", mend)
    except Exception as error:  # a build for another Python or another libibverbs fails in many ways
        return Finding("pyverbs", "broken", f"{type(error).__name__}: {error}", mend)
    return Finding("pyverbs", "present")


def _kvm() -> Finding:
    try:
        os.close(os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC))
    except FileNotFoundError:
        return Finding("KVM", "absent", "no /dev/kvm", "turn on virtualisation in the firmware, then: modprobe kvm")
    except OSError as error:
        return Finding("KVM", "broken", f"/dev/kvm: {error.strerror}", "add the user to the group kvm")
    return Finding("KVM", "present", "/dev/kvm")


def _module(module: str, title: str, mend: str) -> Finding:
    if Path("/sys/module", module).exists():
        return Finding(title, "present", "loaded")
    folder = Path("/lib/modules", platform.release())
    if _lists(folder / "modules.builtin", module):
        return Finding(title, "present", "built into the kernel")
    if _lists(folder / "modules.dep", module):
        return Finding(title, "absent", "not loaded", mend)
    return Finding(
        title, "absent", f"no module {module} for kernel {platform.release()}", f"use a kernel with it; {mend}"
    )


def _lists(index: Path, module: str) -> bool:
    """Whether a module index names `module`; dashes and underscores are the same to the kernel."""
    try:
        lines = index.read_text().splitlines()
    except OSError:
        return False
    names = (line.partition(":")[0].rpartition("/")[2].partition(".ko")[0] for line in lines)
    return any(name.replace("-", "_") == module for name in names)


def _cachestat() -> Finding:
    span = (ctypes.c_uint64 * 2)(0, 0)
    counts = (ctypes.c_uint64 * 5)()
    with open(__file__, "rb") as file:
        result = _syscall(
            _CACHESTAT, ctypes.c_uint(file.fileno()), ctypes.byref(span), ctypes.byref(counts), ctypes.c_uint(0)
        )
    if result == 0:
        return Finding("cachestat", "present")
    if -result == errno.ENOSYS:
        return Finding("cachestat", "absent", f"kernel {platform.release()}", "use Linux 6.5 or newer")
    return Finding("cachestat", "broken", os.strerror(-result))


def _zstd() -> Finding:
    from nova.delta import zstd_version

    version = zstd_version()
    if version is None:
        return Finding("libzstd", "absent", "deltas are not compressed", "apt install libzstd1")
    return Finding("libzstd", "present", version)


def _dirty_pages() -> Finding:
    import mmap

    from nova.delta.tracking import DirtyTracker

    with DirtyTracker(mmap.mmap(-1, mmap.PAGESIZE)) as tracker:
        if tracker.by == "none":
            return Finding("dirty pages", "absent", tracker.why, "use Linux 6.7 or newer, and allow userfaultfd")
        return Finding("dirty pages", "present", f"by {tracker.by}{tracker.why and f'; not by {tracker.why}'}")
