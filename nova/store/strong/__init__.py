"""Strong keys: one order of changes for all members of a group, compare-and-set, linearizable reads.

The names below are loaded on first use: a node without a group needs what is asked, and not what answers.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nova.store.strong.commands import Add, Change, Exists, Held, Read, Remove, Transact, ValueIs, VersionIs, Write
    from nova.store.strong.keys import StrongKeys, Transacted, WatchedMachine
    from nova.store.strong.machine import StrongMachine
    from nova.store.strong.member import GroupOptions, StrongMember
    from nova.store.strong.region_member import RegionMember
    from nova.store.strong.regional import RegionalKeys
    from nova.store.strong.regions import RegionalMachine

_HOMES = {
    "commands": ("Add", "Change", "Exists", "Held", "Read", "Remove", "Transact", "ValueIs", "VersionIs", "Write"),
    "keys": ("StrongKeys", "Transacted", "WatchedMachine"),
    "machine": ("StrongMachine",),
    "member": ("GroupOptions", "StrongMember"),
    "region_member": ("RegionMember",),
    "regional": ("RegionalKeys",),
    "regions": ("RegionalMachine",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "Add",
    "Change",
    "Exists",
    "GroupOptions",
    "Held",
    "Read",
    "RegionMember",
    "RegionalKeys",
    "RegionalMachine",
    "Remove",
    "StrongKeys",
    "StrongMachine",
    "StrongMember",
    "Transact",
    "Transacted",
    "ValueIs",
    "VersionIs",
    "WatchedMachine",
    "Write",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(f"nova.store.strong.{_HOME_OF[name]}"), name)
