"""Strong keys: one order of changes for all members of a group, compare-and-set, linearizable reads."""

from nova.store.strong.commands import Add, Change, Exists, Held, Read, Remove, Transact, ValueIs, VersionIs, Write
from nova.store.strong.keys import StrongKeys, Transacted, WatchedMachine
from nova.store.strong.machine import StrongMachine
from nova.store.strong.regional import RegionalKeys
from nova.store.strong.regions import RegionalMachine

__all__ = [
    "Add",
    "Change",
    "Exists",
    "Held",
    "Read",
    "RegionalKeys",
    "RegionalMachine",
    "Remove",
    "StrongKeys",
    "StrongMachine",
    "Transact",
    "Transacted",
    "ValueIs",
    "VersionIs",
    "WatchedMachine",
    "Write",
]
