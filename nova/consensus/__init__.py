"""Agreement on one order of commands: protocols as state machines, and what drives, replays and switches them.

The names below are loaded on first use. A protocol is a core (`nova.consensus.core.Core`); `ConsensusEngine` runs one
on real time, disk and network.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nova.consensus.adaptive import AdaptiveConsensus, Decision, Observation
    from nova.consensus.answering import ServingOptions
    from nova.consensus.balloting import BallotBox, GroupAsker, Voter
    from nova.consensus.client import ClientOptions, ConsensusClient
    from nova.consensus.core import Command, Epoch
    from nova.consensus.dialogue import MemberStatus
    from nova.consensus.engine import ConsensusEngine
    from nova.consensus.epaxos import EPaxos
    from nova.consensus.eventual import Eventual
    from nova.consensus.frontier import Frontier
    from nova.consensus.hybrid import Hybrid
    from nova.consensus.options import EngineOptions, EngineStatus
    from nova.consensus.paxos import Paxos
    from nova.consensus.pbft import PBFT
    from nova.consensus.quorum import All, Flexible, Grid, Majority, One, Weighted
    from nova.consensus.raft import Raft
    from nova.consensus.serving import ClientServer
    from nova.consensus.steering import steer

_HOMES = {
    "adaptive": ("AdaptiveConsensus", "Decision", "Observation"),
    "answering": ("ServingOptions",),
    "balloting": ("BallotBox", "GroupAsker", "Voter"),
    "client": ("ClientOptions", "ConsensusClient"),
    "core": ("Command", "Epoch"),
    "dialogue": ("MemberStatus",),
    "engine": ("ConsensusEngine",),
    "epaxos": ("EPaxos",),
    "eventual": ("Eventual",),
    "frontier": ("Frontier",),
    "hybrid": ("Hybrid",),
    "options": ("EngineOptions", "EngineStatus"),
    "paxos": ("Paxos",),
    "pbft": ("PBFT",),
    "quorum": ("All", "Flexible", "Grid", "Majority", "One", "Weighted"),
    "raft": ("Raft",),
    "serving": ("ClientServer",),
    "steering": ("steer",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "PBFT",
    "AdaptiveConsensus",
    "All",
    "BallotBox",
    "ClientOptions",
    "ClientServer",
    "Command",
    "ConsensusClient",
    "ConsensusEngine",
    "Decision",
    "EPaxos",
    "EngineOptions",
    "EngineStatus",
    "Epoch",
    "Eventual",
    "Flexible",
    "Frontier",
    "Grid",
    "GroupAsker",
    "Hybrid",
    "Majority",
    "MemberStatus",
    "Observation",
    "One",
    "Paxos",
    "Raft",
    "ServingOptions",
    "Voter",
    "Weighted",
    "steer",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(f"nova.consensus.{_HOME_OF[name]}"), name)
