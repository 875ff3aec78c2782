"""Raft (Ongaro & Ousterhout 2014; Ongaro's dissertation 2014)."""

from nova.consensus.raft.core import Raft, RaftOptions
from nova.consensus.raft.members import Members

__all__ = ["Members", "Raft", "RaftOptions"]
