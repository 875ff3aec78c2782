"""Raft (Ongaro & Ousterhout 2014; Ongaro's dissertation 2014)."""

from nova.consensus.raft.core import Raft
from nova.consensus.raft.members import Members
from nova.consensus.raft.options import RaftOptions

__all__ = ["Members", "Raft", "RaftOptions"]
