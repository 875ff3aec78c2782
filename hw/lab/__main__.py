"""A guest with a stock Debian kernel, for what this kernel does not have: RDMA, tunnels, netem, kernel TLS.

usage: python hw/lab pytest [-t SECONDS] [-e NAME=VALUE] ARGUMENT ...     pytest in the guest, on this repository
       python hw/lab run [-t SECONDS] [-e NAME=VALUE] COMMAND ...         any command of the guest
       python hw/lab image                                                make the image only, print its folder

Ends with the status of the command; 77 if there can be no guest here (the reason is printed); 70 if it brought no
result. Images lie in $NOVA_LAB_CACHE or ~/.cache/novacron-lab. NOVA_LAB_ACCEL=tcg|kvm chooses, NOVA_LAB_MEMORY_MB=2048.
"""

from __future__ import annotations

import argparse
import compileall
import os
import sys

from guest import NO_RESULT, GuestError, run_guest
from image import REPOSITORY, LackError, image, require_tools

LACK = 77
SECONDS_MAX = 600.0


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="hw/lab", usage=__doc__.partition("usage: ")[2], formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("action", choices=("pytest", "run", "image"))
    parser.add_argument("-t", "--seconds", type=float, default=SECONDS_MAX)
    parser.add_argument("-e", "--environment", action="append", default=[], metavar="NAME=VALUE")
    # The command has options of its own, so what is ours ends where the first other word is.
    ours = 1
    while ours + 1 < len(arguments) and arguments[ours] in ("-t", "--seconds", "-e", "--environment"):
        ours += 2
    given, command = parser.parse_args(arguments[:ours]), arguments[ours:]
    try:
        require_tools()
        if given.action == "image":
            print(image())
            return 0
        environment = dict(pair.split("=", 1) for pair in given.environment)
        if given.action == "pytest":
            environment = {**_environment(), **environment}
            # An emulated processor on a busy machine has its own idea of how long a test may take.
            command = ["python3", "-m", "pytest", "-p", "no:cacheprovider", "-o", "timeout=400", *command]
        memory_mb = int(os.environ.get("NOVA_LAB_MEMORY_MB", "2048"))
        return run_guest(command, seconds_max=given.seconds, environment=environment, memory_mb=memory_mb)
    except LackError as error:
        print(f"lab: not here: {error}", file=sys.stderr)
        return LACK
    except GuestError as error:
        print(f"lab: {error}", file=sys.stderr)
        return NO_RESULT


def _environment() -> dict[str, str]:
    """What makes the guest's Python find this repository and the libraries of its virtual environment."""
    theirs, ours = (image() / "python").read_text(), "python{}.{}".format(*sys.version_info)
    if theirs != ours:
        raise LackError(
            f"the guest has {theirs}, the native modules here are {ours}'s; make .venv with PYTHON={theirs}"
        )
    libraries = next(path for path in sys.path if path.endswith("site-packages"))
    inside = os.path.relpath(libraries, REPOSITORY)
    if inside.startswith(".."):
        raise LackError(
            f"the libraries in {libraries} are not below {REPOSITORY}, which the guest shares; use .venv/bin/python"
        )
    # The guest may not write here, and an emulated processor compiles slowly.
    for folder in ("nova", "hw", "tests/conformance"):
        compileall.compile_dir(REPOSITORY / folder, quiet=2, legacy=False)
    return {
        "PYTHONPATH": f"/repository:/repository/{inside}",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONUNBUFFERED": "1",
        "HYPOTHESIS_STORAGE_DIRECTORY": "/tmp/hypothesis",
        "NOVA_LAB": "1",
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
