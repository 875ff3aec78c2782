"""The replicated store: typed keys, durable before acknowledged, every conflict settled and explained."""

from nova.store.directory import verify_audit
from nova.store.embedded import ReplicatedStore
from nova.store.model import Change, Entry, Put, Sibling
from nova.store.recovery import Healed, Restored, heal, list_checkpoints, owner_of, restore, take_checkpoint

__all__ = [
    "Change",
    "Entry",
    "Healed",
    "Put",
    "ReplicatedStore",
    "Restored",
    "Sibling",
    "heal",
    "list_checkpoints",
    "owner_of",
    "restore",
    "take_checkpoint",
    "verify_audit",
]
