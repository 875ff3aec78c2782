"""The `nova` command. Each command is a function in a module of this package, imported when it is asked for.

Exit codes: 0 done; 1 what was asked failed or is not there; 2 the command line is wrong; 3 the node cannot be reached
or cannot answer now; 4 a conditional write met a newer version; 130 interrupted.
"""

from __future__ import annotations

import sys

EXTRA_LINE = "nova: the command line needs typer; install it with: pip install 'novacron[node]'"


def main() -> int:
    """Entry point of the `nova` script; returns the exit code."""
    if sys.argv[1:] == ["version"]:  # scripts ask this often; Typer alone would take ten times as long
        from nova._version import __version__

        print(f"nova {__version__}")
        return 0
    try:
        from nova.cli.app import run
    except ModuleNotFoundError as error:
        if error.name != "typer":
            raise
        print(EXTRA_LINE, file=sys.stderr)
        return 1
    return run(sys.argv[1:])
