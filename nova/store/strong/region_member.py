"""A member of a group whose regions own keys, as its owner holds it; see `nova.store.strong.member`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from nova.consensus.core import UnknownOutcomeError
from nova.consensus.engine import ConsensusEngine
from nova.errors import UnavailableError, UsageError
from nova.metrics import Registry
from nova.store.strong.commands import Get, pack
from nova.store.strong.member import CATCH_UP_S, LOOK_S, GroupOptions, now_ms
from nova.store.strong.regional import RegionalKeys
from nova.store.strong.regions import Addressed, RegionalMachine
from nova.transport.tls import Tls
from nova.types import NodeId, Region

ASK_S: Final = 2.0
REFUSED_S: Final = 2.0
"""How long a change of members that is refused is asked for again."""


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
        tls: Tls | None = None,
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
            tls=tls,
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

    # -- operators --

    async def add(self, node: NodeId, address: str | None, region: Region) -> None:
        """Let a node keep the keys of all regions and vote in one of them; a majority of every region has to be up.

        It ends the present epoch for one with the same regions, so keys are read and written meanwhile. Any member may
        be asked, again where it stopped; start the new one first. Raises what `ConsensusEngine.switch` raises;
        UsageError for a member, or a region that the group did not begin with.
        """
        placed = self.placed
        if node in placed:
            raise UsageError(f"{node} is a member in {placed[node]} already; a member is in one region")
        if region not in self.machine.of:
            raise UsageError(
                f"{region!r} is no region of the group; they are {', '.join(self.machine.of)}, and stay as it began"
            )
        if not address and node not in self.engine.addresses:
            raise UsageError(f"{node} is not known here; give the HOST:PORT of its hybrid.listen")
        await self._go_on({**placed, node: region}, {node: address} if address else {})

    async def remove(self, node: NodeId, region: Region) -> None:
        """Take a member of a region out; as `add`. Its region keeps one at least."""
        placed = self.placed
        there = sorted(name for name, place in placed.items() if place == region)
        if node not in there:
            raise UsageError(f"{node} is no member in {region}; there are {', '.join(there) or 'none'}")
        if there == [node]:
            raise UsageError(f"{node} is the last member in {region}; a region has at least one")
        await self._go_on({name: place for name, place in placed.items() if name != node}, {})

    async def _go_on(self, placed: dict[NodeId, Region], addresses: dict[NodeId, str]) -> None:
        """Let an epoch of these members begin. It is asked for again while nobody heard: the word to the first region,
        which decides, may be lost, and a member that has just started refuses for a moment."""
        clock = asyncio.get_running_loop().time
        before, began = self.engine.status().epoch.number, clock()
        while self.placed != placed:
            status = self.engine.status()
            if status.epoch.number > before:
                raise UnavailableError(
                    f"another change was first: epoch {status.epoch.number} has {', '.join(self.placed)}; look, and "
                    "ask again"
                )
            options = {**status.epoch.options, "regions": dict(sorted(placed.items()))}
            try:
                await self.engine.switch("hybrid", sorted(placed), options, addresses=addresses, timeout_s=ASK_S)
            except UnknownOutcomeError:
                if clock() - began > CATCH_UP_S:
                    raise
            except UnavailableError:
                if self.engine.status().epoch.number == before and clock() - began > REFUSED_S:
                    raise
            await asyncio.sleep(LOOK_S)

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
