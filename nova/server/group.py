"""A node's place in its group: the member that orders strong keys, made as the node is configured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nova.metrics import Registry
from nova.server.config import NodeConfig
from nova.store.strong.member import GroupOptions, StrongMember
from nova.transport.tls import Tls


class Group(StrongMember):
    """One member, in the directory `consensus` of the node's data. Raises UsageError if it can't be."""

    def __init__(self, config: NodeConfig, registry: Registry, tls: Tls | None = None) -> None:
        group, limits = config.consensus, config.limits
        self.config = config
        super().__init__(
            config.name,
            group.members,
            Path(config.data),
            cluster=config.cluster,
            key=config.key.encode() if config.key else None,
            tls=tls,
            options=GroupOptions(
                founders=tuple(group.founders),
                listen=group.listen,
                protocol=group.protocol,
                lease_reads=group.lease_reads,
                tick_ms=group.tick_ms,
                timeout_ms=group.timeout_ms,
                bytes_max=group.bytes_max,
                segment_bytes=limits.segment_bytes,
            ),
            key_bytes_max=limits.key_bytes_max,
            value_bytes_max=limits.value_bytes_max,
            metrics=registry,
        )
        for name, help, function in (
            ("keys", "Strong keys that hold a value", lambda: len(self.machine)),
            ("bytes", "Strong keys and their values", lambda: self.machine.bytes),
            ("revision", "Changes of strong keys that are applied here", lambda: self.machine.revision),
        ):
            registry.gauge(f"nova_strong_{name}", help, function=function)

    def status(self) -> dict[str, Any]:
        """As `StrongMember.status`, with the classes of this node; `nova.server.models.GroupStatus`."""
        return {**super().status(), "classes": dict(sorted(self.config.classes.items()))}


__all__ = ["Group"]
