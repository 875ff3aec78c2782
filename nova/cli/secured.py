"""--ca and --cert: how commands that ask a node speak TLS with it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from nova.errors import UsageError

if TYPE_CHECKING:
    import ssl

_given: dict[str, str] = {}
_VARIABLES = {"--ca": "NOVA_CA", "--cert": "NOVA_CERT"}


def take(arguments: list[str]) -> list[str]:
    """Remember the values of --ca and --cert, wherever they stand; the arguments without them. Raises UsageError."""
    _given.clear()
    left: list[str] = []
    words = iter(arguments)
    for word in words:
        name, equals, value = word.partition("=")
        if name not in _VARIABLES:
            left.append(word)
            continue
        if not equals:
            value = next(words, "")
        if not value:
            raise UsageError(f"{name} needs a PEM file, as nova certs makes them")
        _given[name] = value
    return left


def context() -> ssl.SSLContext:
    """TLS with a node whose certificate is of the authorities in --ca; of the system's, if it is not given.

    --cert names a certificate to show; its key lies beside it (NAME.key) or in the same file. Raises UsageError.
    """
    from nova.transport.tls import http_client  # commands that ask a plain node do without

    ca, certificate = (_given.get(name) or os.environ.get(variable, "") for name, variable in _VARIABLES.items())
    key = str(Path(certificate).with_suffix(".key")) if certificate else ""
    return http_client(ca, certificate, key if key and Path(key).exists() else certificate)


__all__ = ["context", "take"]
