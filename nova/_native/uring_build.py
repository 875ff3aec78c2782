"""Describes nova._native.uring to cffi: csrc/uring.h, compiled against liburing where that is, else as a stub of it.

setup.py calls `describe`. liburing is linked statically, so that an installed nova needs none; what kernels newer than
its header can do is asked at run time.
"""

from __future__ import annotations

import contextlib
import sysconfig
from pathlib import Path
from typing import Any

from cffi import FFI  # type: ignore[import-untyped]

ROOT = Path(__file__).resolve().parents[2]
INCLUDES = ("/usr/include", "/usr/local/include")


def declarations() -> str:
    """What csrc/uring.h says between its two marks."""
    text = (ROOT / "csrc" / "uring.h").read_text()
    text = text.partition("/* cffi reads from here */")[2]
    return text.partition("/* cffi reads to here */")[0]


def liburing() -> Path | None:
    """liburing.a, if its header is here too."""
    multiarch = sysconfig.get_config_var("MULTIARCH") or ""
    libraries = [f"/usr/lib/{multiarch}", "/usr/lib64", "/usr/lib", "/usr/local/lib64", "/usr/local/lib"]
    if not any(Path(folder, "liburing.h").exists() for folder in INCLUDES):
        return None
    return next((path for folder in libraries if (path := Path(folder, "liburing.a")).exists()), None)


def describe(generated: Path, *, without: bool) -> dict[str, Any]:
    """Write the C of the module to `generated`; returns what its Extension needs beyond what every family has."""
    generated.parent.mkdir(parents=True, exist_ok=True)
    builder = FFI()
    builder.cdef(declarations())
    library = None if without else liburing()
    # Named in the text, so that all is compiled again when it comes or goes.
    builder.set_source("nova._native.uring", f'/* with {library} */\n#include "uring.h"')
    fresh = generated.with_suffix(".new")
    with contextlib.redirect_stdout(None):  # it tells what it generates
        builder.emit_c_code(str(fresh))
    # The same text keeps its old date, so that nothing is compiled for nothing.
    if not generated.exists() or generated.read_text() != fresh.read_text():
        fresh.replace(generated)
    else:
        fresh.unlink()
    return {
        "define_macros": [("NOVA_LIBURING", "1")] if library else [],
        "extra_objects": [str(library)] if library else [],
        "libraries": ["pthread"],
    }
