"""Nodes in one process under one seed: virtual time, a network and disks that fail, and checks after every event.

The names below are loaded on first use. `faults` is the module of what can go wrong.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nova.sim import faults
    from nova.sim.group import Group
    from nova.sim.linearize import check_linearizable
    from nova.sim.network import Link
    from nova.sim.world import World

_HOMES = {"Group": "group", "Link": "network", "World": "world", "check_linearizable": "linearize"}

__all__ = ["Group", "Link", "World", "check_linearizable", "faults"]


def __getattr__(name: str) -> Any:
    if name == "faults":
        return import_module("nova.sim.faults")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(f"nova.sim.{_HOMES[name]}"), name)
