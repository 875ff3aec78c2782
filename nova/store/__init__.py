"""The replicated store: typed keys, durable before acknowledged, every conflict settled and explained."""

from nova.store.directory import verify_audit
from nova.store.embedded import ReplicatedStore
from nova.store.model import Change, Entry, Put, Sibling

__all__ = ["Change", "Entry", "Put", "ReplicatedStore", "Sibling", "verify_audit"]
