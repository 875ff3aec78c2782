"""Values that converge by themselves: write on any replica, merge in any order, end equal."""

from nova.crdt.base import Crdt
from nova.crdt.counters import BoundedCounter, GCounter, PNCounter
from nova.crdt.maps import LWWMap, ORMap
from nova.crdt.registers import EnableWinsFlag, LWWRegister, MVRegister
from nova.crdt.sequence import RGA, RGAList
from nova.crdt.sets import GSet, ORSet, TwoPSet

__all__ = [
    "RGA",
    "BoundedCounter",
    "Crdt",
    "EnableWinsFlag",
    "GCounter",
    "GSet",
    "LWWMap",
    "LWWRegister",
    "MVRegister",
    "ORMap",
    "ORSet",
    "PNCounter",
    "RGAList",
    "TwoPSet",
]
