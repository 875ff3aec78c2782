"""Egalitarian Paxos (Moraru et al. 2013) with the recovery of EPaxos* (Ryabinin, Gotsman & Sutra 2025)."""

from nova.consensus.epaxos.core import EPaxos
from nova.consensus.epaxos.options import EPaxosOptions

__all__ = ["EPaxos", "EPaxosOptions"]
