"""Values that converge by themselves: write on any replica, merge in any order, end equal."""

from nova.crdt.base import Crdt
from nova.crdt.counters import GCounter, PNCounter
from nova.crdt.maps import LWWMap, ORMap
from nova.crdt.registers import LWWRegister, MVRegister
from nova.crdt.sequence import RGA
from nova.crdt.sets import GSet, ORSet

__all__ = ["RGA", "Crdt", "GCounter", "GSet", "LWWMap", "LWWRegister", "MVRegister", "ORMap", "ORSet", "PNCounter"]
