"""A node's place among the regions: the member that orders the keys of its region, made as the node is configured."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from nova.metrics import Registry
from nova.server.config import NodeConfig
from nova.store.strong import StrongMachine
from nova.store.strong.member import GroupOptions
from nova.store.strong.region_member import RegionMember
from nova.transport.tls import Tls


class RegionGroup(RegionMember):
    """One member, in the directory `hybrid` of the node's data. Raises UsageError if it can't be.

    where  region -> where else to ask, for refusals; "": unknown
    """

    def __init__(
        self, config: NodeConfig, registry: Registry, where: Callable[[str], str], tls: Tls | None = None
    ) -> None:
        group, limits = config.hybrid, config.limits
        super().__init__(
            config.name,
            group.members,
            group.regions,
            Path(config.data),
            cluster=config.cluster,
            key=config.key.encode() if config.key else None,
            tls=tls,
            options=GroupOptions(
                founders=tuple(group.founders),
                listen=group.listen,
                tick_ms=group.tick_ms,
                timeout_ms=group.timeout_ms,
                bytes_max=group.bytes_max,
                segment_bytes=limits.segment_bytes,
            ),
            key_bytes_max=limits.key_bytes_max,
            value_bytes_max=limits.value_bytes_max,
            where=where,
            metrics=registry,
        )
        for name, help, value in (
            ("keys", "Hybrid keys that hold a value here, by region that owns them", len),
            ("bytes", "Hybrid keys and their values", lambda machine: machine.bytes),
            ("revision", "Changes of a region that are applied here", lambda machine: machine.revision),
        ):
            registry.gauge(f"nova_hybrid_{name}", help, ("owner",), table=self._by_region(value))

    def _by_region(self, value: Callable[[StrongMachine], int]) -> Callable[[], Mapping[tuple[str, ...], float]]:
        return lambda: {(owner,): float(value(machine)) for owner, machine in self.machine.of.items()}


__all__ = ["RegionGroup"]
