"""What this machine offers beyond a processor and a disk: instruction sets, io_uring, RDMA, KVM, kernel modules.

Probes only look: nothing is loaded, created or changed.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import sysconfig
from pathlib import Path

from nova import hardware_network
from nova.hardware_network import Finding, State

__all__ = ["Finding", "State", "detect"]

# Numbers of system calls that came after the numbering was unified: the same on x86-64 and aarch64.
_IO_URING_SETUP = 425
_CACHESTAT = 451
_IO_URING_PARAMS_BYTES = 120
_IO_URING_REGISTER = 427
_IO_URING_PROBE = 8
_IO_URING_OPS = {26: "send", 27: "recv", 47: "send_zc", 48: "sendmsg_zc", 53: "futex_wait"}
"""Operations that came one by one; the later ones tell the age of the kernel's io_uring."""


def detect() -> list[Finding]:
    """Everything that nova may use, in a fixed order. Takes a few milliseconds."""
    return [
        _simd(),
        _kernels(),
        _io_uring(),
        _liburing(),
        *hardware_network.findings(),
        _openssl(),
        _kvm(),
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
        try:
            operations = _io_uring_operations(result)
        finally:
            os.close(result)
        features = int.from_bytes(params.raw[20:24], "little")
        detail = f"kernel {platform.release()}, features {features:#x}, operations {', '.join(operations) or 'unknown'}"
        return Finding("io_uring", "present", detail)
    if -result == errno.ENOSYS:
        return Finding("io_uring", "absent", f"kernel {platform.release()}", "use Linux 5.11 or newer")
    mend = "sysctl kernel.io_uring_disabled=0, or allow io_uring in the container's seccomp profile"
    return Finding("io_uring", "broken", os.strerror(-result), mend if -result == errno.EPERM else "")


def _io_uring_operations(ring: int) -> list[str]:
    """Which of _IO_URING_OPS the kernel has."""
    probe = ctypes.create_string_buffer(16 + 8 * 256)
    if _syscall(_IO_URING_REGISTER, ctypes.c_uint(ring), ctypes.c_uint(_IO_URING_PROBE), probe, ctypes.c_uint(256)) < 0:
        return []
    flags = {probe.raw[at]: probe.raw[at + 2] for at in range(16, len(probe.raw), 8)}
    return [name for number, name in _IO_URING_OPS.items() if flags.get(number, 0) & 1]


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


def _openssl() -> Finding:
    mend = "use a Python that is built with OpenSSL 3.0 or newer"
    try:
        import ssl
    except ImportError:
        return Finding("OpenSSL", "absent", "this Python has no module ssl: no TLS", mend)
    if not ssl.HAS_TLSv1_3:
        return Finding("OpenSSL", "broken", f"{ssl.OPENSSL_VERSION} has no TLS 1.3", mend)
    kernel = "hands keys to the kernel (kTLS) where it can" if ssl.OPENSSL_VERSION_INFO >= (3, 0) else "without kTLS"
    return Finding("OpenSSL", "present", f"{ssl.OPENSSL_VERSION}, TLS 1.3, {kernel}")


def _kvm() -> Finding:
    try:
        os.close(os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC))
    except FileNotFoundError:
        return Finding("KVM", "absent", "no /dev/kvm", "turn on virtualisation in the firmware, then: modprobe kvm")
    except OSError as error:
        return Finding("KVM", "broken", f"/dev/kvm: {error.strerror}", "add the user to the group kvm")
    return Finding("KVM", "present", "/dev/kvm")


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
