"""Build the native modules. To add a kernel family, add a row to KERNELS; nothing else needs editing.

NOVA_SANITIZE=1   build with AddressSanitizer and UndefinedBehaviourSanitizer (-O1, frame pointers, asserts on)
NOVA_SANITIZE=fuzz  the same by clang, with libFuzzer's counters, for the programs of tests/fuzz/run.py
NOVA_KERNELS=a,b  build only these families (for quick work on one of them)
NOVA_WITHOUT=liburing  build as on a machine that lacks it
"""

import copy
import os
import runpy
import sys
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

# family -> its C sources; nova/_native/<family>.pyx owns them, or cffi does, as nova/_native/<family>_build.py says
KERNELS = {
    "vclock": ["csrc/vclock.c", "csrc/digest.c"],
    "clockbatch": ["csrc/clockbatch.c"],
    "crdt": [
        "csrc/crdt.c",
        "csrc/cell.c",
        "csrc/totals.c",
        "csrc/rows.c",
        "csrc/rows_log.c",
        "csrc/rows_join.c",
        "csrc/rows_wire.c",
        "csrc/vclock.c",
        "csrc/digest.c",
    ],
    "digest": ["csrc/digest.c"],
    "reconcile": ["csrc/sketch.c"],
    "sequence": [
        "csrc/sequence.c",
        "csrc/sequence_tree.c",
        "csrc/sequence_join.c",
        "csrc/runs.c",
        "csrc/marks.c",
        "csrc/pack.c",
        "csrc/digest.c",
    ],
    "keyspace": ["csrc/digest.c"],
    "log": ["csrc/log.c"],
    "frame": ["csrc/frame.c"],
    "channel": ["csrc/channel.c", "csrc/channel_out.c", "csrc/pool.c", "csrc/frame.c", "csrc/blake3.c"],
    "shm": ["csrc/shm.c"],
    "commands": [],
    "raft": [],
    "meter": ["csrc/meter.c"],
    "rdma": ["csrc/rdma.c"],
    "merge": ["csrc/digest.c", "csrc/text.c"],
    "ottext": ["csrc/ottext.c"],
    "conflict": ["csrc/vclock.c"],
    "audit": ["csrc/blake3.c"],
    "linearize": [],
    "delta": [
        "csrc/delta.c",
        "csrc/delta_write.c",
        "csrc/delta_pieces.c",
        "csrc/delta_read.c",
        "csrc/page.c",
        "csrc/entropy.c",
        "csrc/digest.c",
        "csrc/log.c",
    ],
    "bulk": ["csrc/bulk.c", "csrc/bulk_io.c", "csrc/frame.c", "csrc/blake3.c"],
    "uring": [
        "csrc/uring_face.c",
        "csrc/uring_batch.c",
        "csrc/uring_engine.c",
        "csrc/uring_queue.c",
        "csrc/uring.c",
        "csrc/uring_epoll.c",
    ],
}

SANITIZE = os.environ.get("NOVA_SANITIZE", "")
if SANITIZE not in ("", "1", "fuzz"):
    sys.exit(f"NOVA_SANITIZE is {SANITIZE!r}; it is 1, fuzz or not set")
ONLY = set(filter(None, os.environ.get("NOVA_KERNELS", "").split(",")))
if ONLY - KERNELS.keys():
    sys.exit(f"NOVA_KERNELS names {sorted(ONLY - KERNELS.keys())}; the families are {', '.join(KERNELS)}")

if SANITIZE:
    CFLAGS = ["-O1", "-g", "-fno-omit-frame-pointer", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    LDFLAGS = ["-fsanitize=address,undefined"]
    UNDEF = ["NDEBUG"]
    if SANITIZE == "fuzz":
        CFLAGS += ["-fsanitize=fuzzer-no-link", "-Wno-unknown-warning-option"]
else:
    CFLAGS = ["-O3", "-g0", "-fvisibility=hidden"]
    LDFLAGS = []
    UNDEF = []

COMMON = ["-std=c11", "-Wall", "-Wextra", "-Wno-unused-parameter", "-Wno-unused-function", "-Wno-sign-compare"]
# Cython's cleanup after an exception looks to gcc as if it could return a struct that was never set.
COMMON += ["-Wno-maybe-uninitialized"]
JOBS = os.cpu_count() or 1


WITHOUT = set(filter(None, os.environ.get("NOVA_WITHOUT", "").split(",")))


def extension(family: str, sources: list[str]) -> Extension:
    owner, more = f"nova/_native/{family}.pyx", {}
    described = Path(f"nova/_native/{family}_build.py")
    if described.exists():
        owner = f"build/cffi/{family}.c"
        more = runpy.run_path(str(described))["describe"](Path(owner), without="liburing" in WITHOUT)
    return Extension(
        f"nova._native.{family}",
        [owner, *sources],
        include_dirs=["csrc"],
        extra_compile_args=COMMON + CFLAGS,
        extra_link_args=LDFLAGS,
        undef_macros=UNDEF,
        depends=["setup.py", *sorted(f"csrc/{name}" for name in os.listdir("csrc") if name.endswith(".h"))],
        **more,
    )


class BuildEachApart(build_ext):
    """Objects of each family in a folder of their own: families share C sources and are built at the same time."""

    def build_extension(self, ext: Extension) -> None:
        own = copy.copy(self)
        own.build_temp = os.path.join(self.build_temp, ext.name.rpartition(".")[2])
        super(BuildEachApart, own).build_extension(ext)


setup(
    ext_modules=cythonize(
        [extension(family, sources) for family, sources in KERNELS.items() if not ONLY or family in ONLY],
        language_level=3,
        compiler_directives={
            "boundscheck": False,
            "wraparound": False,
            "cdivision": True,
            "initializedcheck": False,
            "binding": False,
            "embedsignature": True,
        },
        build_dir="build/cython",
        quiet=True,
        nthreads=JOBS if len(KERNELS) > 1 and not ONLY else 0,
    ),
    cmdclass={"build_ext": BuildEachApart},
    options={"build_ext": {"parallel": JOBS}},
)
