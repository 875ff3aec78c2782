"""PBFT (Castro & Liskov 1999, 2002)."""

from nova.consensus.pbft.auth import Authenticator, Ed25519Keys, SessionKeys
from nova.consensus.pbft.core import PBFT, maker
from nova.consensus.pbft.options import PBFTOptions
from nova.consensus.pbft.replies import Replies

__all__ = ["PBFT", "Authenticator", "Ed25519Keys", "PBFTOptions", "Replies", "SessionKeys", "maker"]
