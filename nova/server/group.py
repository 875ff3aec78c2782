"""A node's place in its group: the engine that orders strong keys, how it stands, and what operators do to it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from nova.consensus.core import NotLeaderError
from nova.consensus.engine import ConsensusEngine
from nova.consensus.options import EngineOptions
from nova.errors import UnavailableError, UsageError
from nova.metrics import Registry
from nova.runtime import wall_ns
from nova.server.config import NodeConfig
from nova.server.group_config import STRONG_VALUE_BYTES_MAX
from nova.store.strong import StrongKeys, WatchedMachine
from nova.transport.tls import Tls

log = logging.getLogger("nova.node")

CATCH_UP_S: Final = 30.0
LOOK_S: Final = 0.02
OVERHEAD_BYTES: Final = 64 * 1024
"""Of a command, beside its value; a transaction may have several small ones."""


class Group:
    """One member, in the directory `consensus` of the node's data. Raises UsageError if it can't be."""

    def __init__(self, config: NodeConfig, registry: Registry, tls: Tls | None = None) -> None:
        group, limits = config.consensus, config.limits
        self.config = config
        self.machine = WatchedMachine()
        value_bytes_max = min(limits.value_bytes_max, STRONG_VALUE_BYTES_MAX)
        self.engine = ConsensusEngine(
            config.name,
            group.members,
            Path(config.data) / "consensus",
            self.machine,
            protocol=group.protocol,
            voters=group.founders or None,
            key=config.key.encode() if config.key else None,
            tls=tls,
            # Not that of the store's own mesh: a port that was mixed up is refused at the handshake.
            cluster=f"{config.cluster}/strong",
            listen=group.listen or None,
            options=EngineOptions(
                tick_ms=group.tick_ms,
                timeout_ms=group.timeout_ms,
                entry_bytes_max=max(256 * 1024, value_bytes_max + limits.key_bytes_max + OVERHEAD_BYTES),
                segment_bytes=limits.segment_bytes,
                protocol=self.options(group.protocol),
            ),
            metrics=registry,
        )
        self.keys = StrongKeys(
            self.engine,
            self.machine,
            node=config.name,
            now_ms=lambda: wall_ns() // 1_000_000,
            bytes_max=group.bytes_max,
        )
        for name, help, function in (
            ("keys", "Strong keys that hold a value", lambda: len(self.machine)),
            ("bytes", "Strong keys and their values", lambda: self.machine.bytes),
            ("revision", "Changes of strong keys that are applied here", lambda: self.machine.revision),
        ):
            registry.gauge(f"nova_strong_{name}", help, function=function)

    def options(self, protocol: str) -> dict[str, Any]:
        """Of a protocol, for an epoch that begins."""
        return {"lease_reads": True} if protocol == "raft" and self.config.consensus.lease_reads else {}

    @property
    def failure(self) -> str | None:
        """Why this member has stopped for good; None: it has not."""
        return self.engine.status().failure

    def status(self) -> dict[str, Any]:
        """How the group stands, as this member sees it; `nova.server.models.GroupStatus`."""
        status = self.engine.status()
        core, epoch = status.core, status.epoch
        addresses = self.engine.addresses
        known = {*core.members, *core.peers}
        leads = core.leader == self.engine.node
        leader = None if epoch.protocol == "epaxos" else core.leader  # where every member takes all by itself
        positions = {**core.peers, self.engine.node: core.last if leads else core.committed}
        members = [
            {
                "node": node,
                "address": addresses.get(node, ""),
                "role": "voter" if node in core.members else "learner",
                "leads": node == leader,
                "connected": node == self.engine.node or node in status.peers,
                "position": positions.get(node),
                # What this member holds as newest; only a leader knows how far the others are.
                "lag": max(0, core.last - positions[node]) if node in positions else None,
            }
            for node in sorted({*known, self.engine.node} if core.role == "learner" else known)
        ]
        return {
            "node": self.engine.node,
            "protocol": epoch.protocol,
            "role": core.role,
            "leader": leader,
            "term": core.term,
            "epoch": epoch.number,
            "epochs": [
                {
                    "number": each.number,
                    "protocol": each.protocol,
                    "members": list(each.members),
                    "start": each.start,
                    "former": each.former_protocol or None,
                }
                for each in self.engine.epochs
            ],
            "settled": status.settled,
            "members": members,
            "committed": core.committed,
            "applied": status.applied,
            "revision": self.machine.revision,
            "compacted": self.machine.compacted,
            "keys": len(self.machine),
            "bytes": self.machine.bytes,
            "bytes_max": self.config.consensus.bytes_max,
            "digest": self.machine.digest,
            "classes": dict(sorted(self.config.classes.items())),
            "failure": status.failure,
        }

    # -- operators --

    async def add(self, node: str, address: str | None, *, learner: bool = False) -> None:
        """Let a node learn, and vote once it holds what is committed now. Ask the leader.

        May be asked again where it stopped. Raises what `ConsensusEngine.change` raises; UsageError for a voter;
        UnavailableError if the node does not catch up: it goes on learning.
        """
        core = self._leading()
        learners = set(core.peers) - set(core.members)
        if node in core.members:
            raise UsageError(f"{node} votes already; the members are {', '.join(core.members)}")
        if node not in learners:
            if not address:
                raise UsageError(f"{node} is not known here; give the HOST:PORT of its consensus.listen")
            await self.engine.change(core.members, {*learners, node}, addresses={node: address})
            learners.add(node)
        if learner:
            return
        await self._caught_up(node, core.committed)
        core = self._leading()
        await self.engine.change({*core.members, node}, learners - {node})

    async def _caught_up(self, node: str, position: int) -> None:
        deadline = asyncio.get_running_loop().time() + CATCH_UP_S
        while self._leading().peers.get(node, 0) < position:
            if asyncio.get_running_loop().time() > deadline:
                raise UnavailableError(
                    f"{node} has not caught up within {CATCH_UP_S:g} s and goes on learning; is it up, with this "
                    "group's founders and key? then ask again"
                )
            await asyncio.sleep(LOOK_S)

    async def remove(self, node: str) -> None:
        """Take a voter or learner out. Ask the leader; it may be the leader itself."""
        core = self._leading()
        learners = set(core.peers) - set(core.members)
        if node not in core.members and node not in learners:
            raise UsageError(f"{node} is no member; they are {', '.join(sorted({*core.members, *learners}))}")
        voters = set(core.members) - {node}
        if not voters:
            raise UsageError(f"{node} is the last voter; a group has at least one")
        await self.engine.change(voters, learners - {node})

    async def transfer(self, node: str) -> None:
        """Hand leadership to a voter. Ask the leader."""
        await self.engine.transfer(node)

    async def switch(
        self, protocol: str, members: Sequence[str] = (), addresses: Mapping[str, str] | None = None
    ) -> None:
        """Go on with another protocol, or among other members."""
        known = {*self.engine.addresses, *(addresses or {})}
        if strangers := sorted(set(members) - known):
            raise UsageError(f"{strangers[0]} is not known here; give its address, too: {strangers[0]}=HOST:PORT")
        await self.engine.switch(protocol, members, self.options(protocol), addresses=addresses)

    def _leading(self) -> Any:
        core = self.engine.status().core
        if core.leader != self.engine.node:
            raise NotLeaderError(self.engine.node, core.leader)
        return core


__all__ = ["Group"]
