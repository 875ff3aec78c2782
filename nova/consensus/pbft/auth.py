"""How members know each other's words: MACs for one receiver, signatures for all.

A MAC convinces only the one who shares the key, and costs a microsecond; a signature convinces whoever it is passed on
to, and costs a hundred (Castro & Liskov 2002, 3). Keys are made and handed out by whoever runs the members: the core
never sees one.
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b
from hmac import compare_digest
from typing import Any, Final, Protocol

from nova.crypto import ed25519
from nova.errors import UsageError
from nova.types import NodeId

MAC_BYTES: Final = 16
KEY_BYTES_MIN: Final = 16
KEY_BYTES_MAX: Final = 64


class Authenticator(Protocol):
    """One member's keys. What is not authentic gives False, never an error: it comes from outside."""

    def mac(self, peer: NodeId, data: bytes) -> bytes:
        """For what this member tells `peer`."""

    def check(self, peer: NodeId, data: bytes, mac: bytes) -> bool:
        """Whether `peer` (or this member) said so."""

    def sign(self, data: bytes) -> bytes:
        """For what this member tells everybody."""

    def verify(self, signer: NodeId, data: bytes, signature: bytes) -> bool:
        """Whether `signer` said so."""


class SessionKeys:
    """The MACs of a member: keyed BLAKE2b, a key for each peer.

    keys    peer -> the key that this member shares with it, 16 to 64 random bytes that no third member knows
    raises  UsageError for a key that is too short or too long
    """

    def __init__(self, keys: Mapping[NodeId, bytes]) -> None:
        for peer, key in keys.items():
            if not KEY_BYTES_MIN <= len(key) <= KEY_BYTES_MAX:
                raise UsageError(
                    f"the key for {peer} has {len(key)} bytes; give {KEY_BYTES_MIN} to {KEY_BYTES_MAX} random ones"
                )
        self._keys = dict(keys)

    def mac(self, peer: NodeId, data: bytes) -> bytes:
        """Raises UsageError for a peer without a key."""
        key = self._keys.get(peer)
        if key is None:
            raise UsageError(f"there is no key for {peer}; there are keys for {sorted(self._keys)}")
        return blake2b(data, key=key, digest_size=MAC_BYTES).digest()

    def check(self, peer: NodeId, data: bytes, mac: bytes) -> bool:
        key = self._keys.get(peer)
        return key is not None and compare_digest(blake2b(data, key=key, digest_size=MAC_BYTES).digest(), mac)


class Ed25519Keys(SessionKeys):
    """An `Authenticator` of session keys and Ed25519 (RFC 8032), by `cryptography`.

    private  this member's private key, 32 bytes (RFC 8032, 5.1.5)
    publics  member -> its public key, 32 bytes; this member's own among them
    raises   NovaError if `cryptography` is not installed; UsageError for a key that is none
    """

    def __init__(self, private: bytes, publics: Mapping[NodeId, bytes], keys: Mapping[NodeId, bytes]) -> None:
        super().__init__(keys)
        library = ed25519("PBFT's signing of view changes and checkpoints")
        try:
            self._private = library.Ed25519PrivateKey.from_private_bytes(private)
        except ValueError:
            raise UsageError(f"a private key has 32 bytes; this one has {len(private)}") from None
        self._publics: dict[NodeId, Any] = {}
        for member, public in publics.items():
            try:
                self._publics[member] = library.Ed25519PublicKey.from_public_bytes(public)
            except ValueError:
                raise UsageError(f"the public key of {member} has {len(public)} bytes; one has 32") from None

    def sign(self, data: bytes) -> bytes:
        signature: bytes = self._private.sign(data)
        return signature

    def verify(self, signer: NodeId, data: bytes, signature: bytes) -> bool:
        public = self._publics.get(signer)
        if public is None:
            return False
        try:
            public.verify(signature, data)
        except Exception:  # InvalidSignature, and whatever else the library thinks of hostile bytes
            return False
        return True
