"""Which commands there are, and what becomes of their errors."""

from __future__ import annotations

import importlib
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from nova.cli import secured
from nova.errors import KeyNotFoundError, NovaError, StaleContextError, UnavailableError, UsageError

FAILED, USAGE, UNREACHABLE, CONFLICT, INTERRUPTED = 1, 2, 3, 4, 130

# command -> (module, its function or Typer application, the extra that it needs), in the order of `nova --help`
COMMANDS = {
    "demo": ("nova.cli.demo", "demo", "node"),
    "serve": ("nova.cli.serve", "serve", "node"),
    "put": ("nova.cli.keys", "put", "node"),
    "get": ("nova.cli.keys", "get", "node"),
    "delete": ("nova.cli.keys", "delete", "node"),
    "list": ("nova.cli.keys", "list_keys", "node"),
    "watch": ("nova.cli.keys", "watch", "node"),
    "status": ("nova.cli.cluster", "status", "node"),
    "peers": ("nova.cli.cluster", "peers", "node"),
    "consensus": ("nova.cli.consensus", "consensus", "node"),
    "conflicts": ("nova.cli.explain", "conflicts", "node"),
    "why": ("nova.cli.explain", "why", "node"),
    "audit": ("nova.cli.audit", "audit", "node"),
    "points": ("nova.cli.audit", "points", "node"),
    "rollback": ("nova.cli.audit", "rollback", "node"),
    "checkpoint": ("nova.cli.recovery", "checkpoint", "node"),
    "restore": ("nova.cli.recovery", "restore", "node"),
    "heal": ("nova.cli.recovery", "heal", "node"),
    "policy": ("nova.cli.policy", "policy", "node"),
    "delta": ("nova.cli.delta", "delta", "node"),
    "chaos": ("nova.cli.cluster", "chaos", "node"),
    "certs": ("nova.cli.certs", "certs", "tls"),
    "dashboard": ("nova.cli.dashboard", "dashboard", "ui"),
    "simulate": ("nova.cli.simulate", "simulate", "node"),
    "bench": ("nova.cli.benchmarks", "bench", "node"),
    "hw": ("nova.cli.tools", "hw", "node"),
    "config": ("nova.cli.tools", "config", "node"),
    "version": ("nova.cli.tools", "version", "node"),
}


class Commands(TyperGroup):
    """The table above as a command group."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in COMMANDS:
            return super().get_command(ctx, cmd_name)
        module, attribute, extra = COMMANDS[cmd_name]
        try:
            found = getattr(importlib.import_module(module), attribute)
        except ModuleNotFoundError as error:
            found = _lacking(cmd_name, error.name, extra)
        if not isinstance(found, typer.Typer):
            app = typer.Typer(add_completion=False, rich_markup_mode=None)
            app.command(cmd_name, no_args_is_help=False)(found)
            found = app
        command = typer.main.get_command(found)
        command.name = cmd_name
        return command


def _lacking(command: str, module: str | None, extra: str) -> Any:
    def lacking() -> None:
        raise NovaError(
            f"nova {command} needs the Python module {module}; install it with: pip install 'novacron[{extra}]'"
        )

    lacking.__doc__ = f"Not installed; needs the extra `{extra}`."
    return lacking


app = typer.Typer(cls=Commands, rich_markup_mode=None, pretty_exceptions_enable=False, no_args_is_help=True)


@app.callback()
def nova(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
    ca: Annotated[str | None, typer.Option(metavar="FILE", help="PEM: whom to trust with https:// (NOVA_CA).")] = None,
    cert: Annotated[
        str | None, typer.Option(metavar="FILE", help="PEM: a certificate to show, FILE.key beside it (NOVA_CERT).")
    ] = None,
) -> None:
    """Keeps the state of a fleet that lives in many regions consistent, and explains every conflict it settled.

    Example: nova demo
    """


def run(arguments: list[str]) -> int:
    """Run one command line; returns the exit code. Errors become one line on stderr, with --debug a traceback."""
    end = _end(arguments)
    debug = "--debug" in arguments[:end]
    arguments = [argument for argument in arguments[:end] if argument != "--debug"] + arguments[end:]
    try:
        arguments = [*secured.take(arguments[: (end := _end(arguments))]), *arguments[end:]]
        result = app(arguments, prog_name="nova", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has seen enough; keep Python from failing again when it flushes.
        sys.stdout = open("/dev/null", "w")  # noqa: SIM115
        return FAILED
    except Exception as error:
        if debug:
            raise
        message, code = _explained(error)
        print(f"nova: {message}", file=sys.stderr)
        return code


def _end(arguments: list[str]) -> int:
    """Where options end."""
    return arguments.index("--") if "--" in arguments else len(arguments)


def _explained(error: Exception) -> tuple[str, int]:
    match error:
        case KeyNotFoundError():
            return _line(error), FAILED
        case StaleContextError():
            return _line(error), CONFLICT
        case UsageError():
            return _line(error), USAGE
        case UnavailableError():
            return _line(error), UNREACHABLE
        case NovaError():
            return _line(error), FAILED
    if (words := getattr(error, "format_message", None)) is not None:  # a wrong command line, found by Typer
        context = getattr(error, "ctx", None)
        command = context.command_path if context is not None else "nova"
        if "\n" in words():  # no command was given: the words are the help
            print(words(), file=sys.stderr)
            return f"{command} needs a command", USAGE
        return f"{_line(words())}; see {command} --help", USAGE
    return f"{type(error).__name__}: {_line(error)}; --debug shows where", FAILED


def _line(words: object) -> str:
    return " ".join(str(words).split()).rstrip(".")
