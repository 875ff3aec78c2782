"""Which engine carries the streams between nodes, by the name that a configuration gives it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from nova.errors import ConfigError
from nova.transport import TcpTransport, Transport

ENGINES: Final[dict[str, Callable[..., Transport]]] = {"tcp": TcpTransport}
"""Engines that are there. Each takes what TcpTransport takes."""

KNOWN: Final = ("auto", "tcp", "uring", "rdma")
AUTO: Final = "tcp"


def check_engine(name: str) -> None:
    """Raises ValueError if a node cannot use it."""
    if name not in KNOWN:
        raise ValueError(f"is no engine; use one of {', '.join(KNOWN)}")
    if name != "auto" and name not in ENGINES:
        there = ", ".join(("auto", *sorted(ENGINES)))
        raise ValueError(f"is not in this version of nova; use one of {there}, and see nova hw detect")


def make_transport(name: str, *arguments: Any, **options: Any) -> Transport:
    """A transport of the engine of that name. Raises ConfigError."""
    try:
        check_engine(name)
    except ValueError as error:
        raise ConfigError(f"transport {name} {error}") from None
    return ENGINES[AUTO if name == "auto" else name](*arguments, **options)


__all__ = ["ENGINES", "check_engine", "make_transport"]
