"""Strong keys: one order of changes for all members of a group, compare-and-set, linearizable reads."""

from nova.store.strong.commands import Add, Change, Exists, Held, Read, Remove, Transact, ValueIs, VersionIs, Write
from nova.store.strong.keys import StrongKeys, Transacted, WatchedMachine
from nova.store.strong.machine import StrongMachine

__all__ = [
    "Add",
    "Change",
    "Exists",
    "Held",
    "Read",
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
