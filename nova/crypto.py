"""The one door to `cryptography`, which not every install has."""

from __future__ import annotations

from types import ModuleType
from typing import Final

from nova.errors import NovaError

_MEND: Final = "needs the Python module cryptography; install it with: pip install 'novacron[audit]'"


def aead(what: str) -> ModuleType:
    """Authenticated encryption. Raises NovaError that says what (`what`) needs it and how to get it."""
    try:
        from cryptography.hazmat.primitives.ciphers import aead
    except ImportError:
        raise NovaError(f"{what} {_MEND}") from None
    return aead


def ed25519(what: str) -> ModuleType:
    """Signatures. Raises NovaError that says what (`what`) needs them and how to get them."""
    try:
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError:
        raise NovaError(f"{what} {_MEND}") from None
    return ed25519
