"""A member of a group whose regions own keys, as its owner holds it; see `nova.store.strong.member`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from nova.consensus.engine import ConsensusEngine
from nova.errors import UsageError
from nova.metrics import Registry
from nova.store.strong.commands import Get, pack
from nova.store.strong.member import GroupOptions, now_ms
from nova.store.strong.regional import RegionalKeys
from nova.store.strong.regions import Addressed, RegionalMachine
from nova.types import NodeId, Region


class RegionMember:
    """A member of a region, in the directory `hybrid` of its owner's data.

    members  name -> HOST:PORT of every member that is known, this one included; see `StrongMember`
    regions  name -> its region, of every member
    where    region -> where else to ask, for refusals; "": unknown
    options  `protocol` and `lease_reads` are those of strong keys: here they say nothing
    raises   UsageError if it can't be. The caller starts and closes `engine`
    """

    def __init__(
        self,
        node: NodeId,
        members: Mapping[NodeId, str],
        regions: Mapping[NodeId, Region],
        data: Path,
        *,
        cluster: str,
        key: bytes | None,
        options: GroupOptions,
        key_bytes_max: int,
        value_bytes_max: int,
        where: Callable[[Region], str] = lambda region: "",
        metrics: Registry | None = None,
    ) -> None:
        if node not in regions:
            raise UsageError(f"{node!r} has no region among {dict(regions)}; name its own, too")
        self.options, self.region = options, regions[node]
        self.machine = RegionalMachine(set(regions.values()))
        founders = options.founders or tuple(regions)
        self.engine = ConsensusEngine(
            node,
            members,
            data / "hybrid",
            self.machine,
            protocol="hybrid",
            voters=options.founders or None,
            key=key,
            # Neither that of the store's own mesh nor of strong keys: a port that was mixed up is refused.
            cluster=f"{cluster}/hybrid",
            listen=options.listen or None,
            options=options.engine(
                key_bytes_max=key_bytes_max,
                value_bytes_max=value_bytes_max,
                protocol={"regions": {each: regions[each] for each in sorted(founders)}},
            ),
            metrics=metrics,
            group=f"hybrid/{self.region}",
        )
        self.keys = RegionalKeys(
            self.engine,
            self.machine,
            node=node,
            region=self.region,
            now_ms=now_ms,
            where=where,
            bytes_max=options.bytes_max,
        )

    async def caught_up(self) -> None:
        """Return when all is applied here that the own region acknowledged before. Raises as `ConsensusEngine.read`."""
        await self.engine.read(pack(Addressed(self.region, pack(Get("-")))))

    @property
    def failure(self) -> str | None:
        """Why this member has stopped for good; None: it has not."""
        return self.engine.status().failure

    @property
    def placed(self) -> dict[NodeId, Region]:
        """name -> its region, of the members of the present epoch."""
        regions: dict[NodeId, Region] = self.engine.status().epoch.options["regions"]
        return regions

    def status(self) -> dict[str, Any]:
        """How it stands, as this member sees it."""
        status = self.engine.status()
        placed = self.placed
        return {
            "region": self.region,
            "leader": status.core.leader,
            "digest": self.machine.digest,
            "connected": list(status.peers),
            "regions": {
                owner: {
                    "members": sorted(node for node, there in placed.items() if there == owner),
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


__all__ = ["RegionMember"]
