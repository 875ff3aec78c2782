"""A node's place among the regions: the engine that orders the keys that its region owns, and how it stands."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from nova.consensus.engine import ConsensusEngine
from nova.consensus.options import EngineOptions
from nova.metrics import Registry
from nova.runtime import wall_ns
from nova.server.config import NodeConfig
from nova.server.group_config import STRONG_VALUE_BYTES_MAX
from nova.store.strong import RegionalKeys, RegionalMachine, StrongMachine
from nova.transport.tls import Tls

OVERHEAD_BYTES: Final = 64 * 1024
"""Of a command, beside its value; a transaction may have several small ones."""


class RegionGroup:
    """One member, in the directory `hybrid` of the node's data. Raises UsageError if it can't be.

    where  region -> where else to ask, for refusals; "": unknown
    """

    def __init__(
        self, config: NodeConfig, registry: Registry, where: Callable[[str], str], tls: Tls | None = None
    ) -> None:
        group, limits = config.hybrid, config.limits
        self.config = config
        self.machine = RegionalMachine(set(group.regions.values()))
        value_bytes_max = min(limits.value_bytes_max, STRONG_VALUE_BYTES_MAX)
        self.engine = ConsensusEngine(
            config.name,
            group.members,
            Path(config.data) / "hybrid",
            self.machine,
            protocol="hybrid",
            key=config.key.encode() if config.key else None,
            tls=tls,
            # Neither that of the store's own mesh nor of strong keys: a port that was mixed up is refused.
            cluster=f"{config.cluster}/hybrid",
            listen=group.listen or None,
            options=EngineOptions(
                tick_ms=group.tick_ms,
                timeout_ms=group.timeout_ms,
                entry_bytes_max=max(256 * 1024, value_bytes_max + limits.key_bytes_max + OVERHEAD_BYTES),
                segment_bytes=limits.segment_bytes,
                protocol={"regions": dict(sorted(group.regions.items()))},
            ),
            metrics=Registry(),  # the node's page has the names of the engine for that of strong keys
        )
        self.keys = RegionalKeys(
            self.engine,
            self.machine,
            node=config.name,
            region=config.region,
            now_ms=lambda: wall_ns() // 1_000_000,
            where=where,
            bytes_max=group.bytes_max,
        )
        for name, help, value in (
            ("keys", "Hybrid keys that hold a value here, by region that owns them", len),
            ("bytes", "Hybrid keys and their values", lambda machine: machine.bytes),
            ("revision", "Changes of a region that are applied here", lambda machine: machine.revision),
        ):
            registry.gauge(f"nova_hybrid_{name}", help, ("owner",), table=self._by_region(value))

    def _by_region(self, value: Callable[[StrongMachine], int]) -> Callable[[], Mapping[tuple[str, ...], float]]:
        return lambda: {(owner,): float(value(machine)) for owner, machine in self.machine.of.items()}

    @property
    def failure(self) -> str | None:
        """Why this member has stopped for good; None: it has not."""
        return self.engine.status().failure

    def status(self) -> dict[str, Any]:
        """How it stands, as this member sees it; `nova.server.models.HybridStatus`."""
        status = self.engine.status()
        return {
            "region": self.config.region,
            "leader": status.core.leader,
            "digest": self.machine.digest,
            "connected": list(status.peers),
            "regions": {
                owner: {
                    "members": sorted(node for node, there in self.config.hybrid.regions.items() if there == owner),
                    "revision": machine.revision,
                    "compacted": machine.compacted,
                    "keys": len(machine),
                    "bytes": machine.bytes,
                    "digest": machine.digest,
                }
                for owner, machine in self.machine.of.items()
            },
            "failure": status.failure,
        }


__all__ = ["RegionGroup"]
