"""Multi-Paxos (Lamport 1998, 2001) with flexible quorums (Howard, Malkhi & Spiegelman 2016)."""

from nova.consensus.paxos.core import Paxos
from nova.consensus.paxos.options import PaxosOptions

__all__ = ["Paxos", "PaxosOptions"]
