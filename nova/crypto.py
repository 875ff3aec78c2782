"""The one door to `cryptography`, which not every install has."""

from __future__ import annotations

from types import ModuleType, SimpleNamespace
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


def certificates(what: str) -> SimpleNamespace:
    """X.509 and the keys of certificates: x509, hashes, serialization, ec, ed25519, ExtendedKeyUsageOID, NameOID.

    Raises NovaError that says what (`what`) needs them and how to get them.
    """
    try:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec, ed25519
        from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
    except ImportError:
        raise NovaError(f"{what} {_MEND.replace('audit', 'tls')}") from None
    return SimpleNamespace(
        x509=x509, hashes=hashes, serialization=serialization, ec=ec, ed25519=ed25519,
        ExtendedKeyUsageOID=ExtendedKeyUsageOID, NameOID=NameOID,
    )  # fmt: skip
