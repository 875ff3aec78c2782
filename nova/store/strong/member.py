"""A member of a group, as its owner holds it: engine, machine and keys that fit together, and what operators do to it.

A node (`nova serve`) and a store inside a program (`nova.store.ReplicatedStore`) are such owners. Both keep a member in
the same place below their data directory, under the same name of a cluster, so one may go on where the other ended.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from nova.consensus.core import NotLeaderError, Status
from nova.consensus.engine import ConsensusEngine
from nova.consensus.options import EngineOptions
from nova.errors import UnavailableError, UsageError
from nova.metrics import Registry
from nova.runtime import wall_ns
from nova.store.strong.commands import Get, pack
from nova.store.strong.keys import BYTES_MAX, StrongKeys, WatchedMachine
from nova.transport.tls import Tls
from nova.types import NodeId

VALUE_BYTES_MAX: Final = 4 << 20
"""Of a value, however much the store takes of others: each goes as one entry in one frame."""
OVERHEAD_BYTES: Final = 64 * 1024
"""Of a command, beside its value; a transaction may have several small ones."""
CATCH_UP_S: Final = 30.0
LOOK_S: Final = 0.02


class GroupOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a member may be told of its group; the same at all members, but for `listen` and the limits.

    founders       who began the group; none: all members. A member that is added later names those, not itself
    listen         where this member listens; "": at its address among the members
    protocol       what a group of strong keys began with: raft, paxos or epaxos
    lease_reads    reads of consistency `lease` trust clocks (raft); strict ones go through the log then
    tick_ms        an election takes some tens of ticks
    timeout_ms     a call without an answer for so long fails
    bytes_max      of all strong keys and values, or of the hybrid ones of one region; more is refused
    segment_bytes  of a file of the log, laid out ahead
    """

    founders: tuple[str, ...] = ()
    listen: str = ""
    protocol: str = "raft"
    lease_reads: bool = False
    tick_ms: int = 20
    timeout_ms: int = 10_000
    bytes_max: int = BYTES_MAX
    segment_bytes: int = 64 << 20

    def engine(self, *, key_bytes_max: int, value_bytes_max: int, protocol: Mapping[str, Any]) -> EngineOptions:
        """For an engine whose commands carry such keys and values."""
        value_bytes_max = min(value_bytes_max, VALUE_BYTES_MAX)
        return EngineOptions(
            tick_ms=self.tick_ms,
            timeout_ms=self.timeout_ms,
            entry_bytes_max=max(256 * 1024, value_bytes_max + key_bytes_max + OVERHEAD_BYTES),
            segment_bytes=self.segment_bytes,
            protocol=dict(protocol),
        )


def now_ms() -> int:
    """Unix time, for people to read."""
    return wall_ns() // 1_000_000


class StrongMember:
    """A member of a group of strong keys, in the directory `consensus` of its owner's data.

    members  name -> HOST:PORT of every member that is known, this one included. One alone may have the address "":
             nobody can reach it, and it needs no port
    cluster  of the owner
    key      the cluster key; None only on loopback, or with tls
    tls      what the engine encrypts with; None: plain
    raises   UsageError if it can't be. The caller starts and closes `engine`
    """

    def __init__(
        self,
        node: NodeId,
        members: Mapping[NodeId, str],
        data: Path,
        *,
        cluster: str,
        key: bytes | None,
        options: GroupOptions,
        key_bytes_max: int,
        value_bytes_max: int,
        metrics: Registry | None = None,
        tls: Tls | None = None,
    ) -> None:
        self.options = options
        self.machine = WatchedMachine()
        self.engine = ConsensusEngine(
            node,
            members,
            data / "consensus",
            self.machine,
            protocol=options.protocol,
            voters=options.founders or None,
            key=key,
            tls=tls,
            # Not that of the store's own mesh: a port that was mixed up is refused at the handshake.
            cluster=f"{cluster}/strong",
            listen=options.listen or None,
            options=options.engine(
                key_bytes_max=key_bytes_max,
                value_bytes_max=value_bytes_max,
                protocol=self.protocol_options(options.protocol),
            ),
            metrics=metrics,
            group="strong",
        )
        self.keys = StrongKeys(self.engine, self.machine, node=node, now_ms=now_ms, bytes_max=options.bytes_max)

    def protocol_options(self, protocol: str) -> dict[str, Any]:
        """Of a protocol, for an epoch that begins."""
        return {"lease_reads": True} if protocol == "raft" and self.options.lease_reads else {}

    async def caught_up(self) -> None:
        """Return when all is applied here that was acknowledged before. Raises as `ConsensusEngine.read`."""
        await self.engine.read(pack(Get("-")))

    @property
    def failure(self) -> str | None:
        """Why this member has stopped for good; None: it has not."""
        return self.engine.status().failure

    def status(self) -> dict[str, Any]:
        """How the group stands, as this member sees it."""
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
            "bytes_max": self.options.bytes_max,
            "digest": self.machine.digest,
            "failure": status.failure,
        }

    # -- operators --

    async def add(self, node: NodeId, address: str | None, *, learner: bool = False) -> None:
        """Let a node learn, and vote once it holds what is committed now. Ask the leader.

        May be asked again where it stopped. Raises what `ConsensusEngine.change` raises; UsageError for a voter;
        UnavailableError if the node does not catch up: it goes on learning.
        """
        core = self._leading()
        if not self.engine.address:
            raise UsageError(
                f"{self.engine.node} listens nowhere, so nobody can join it; give it an address among its members, and "
                f"founders that are {self.engine.node} alone"
            )
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

    async def _caught_up(self, node: NodeId, position: int) -> None:
        deadline = asyncio.get_running_loop().time() + CATCH_UP_S
        while self._leading().peers.get(node, 0) < position:
            if asyncio.get_running_loop().time() > deadline:
                raise UnavailableError(
                    f"{node} has not caught up within {CATCH_UP_S:g} s and goes on learning; is it up, with this "
                    "group's founders and key? then ask again"
                )
            await asyncio.sleep(LOOK_S)

    async def remove(self, node: NodeId) -> None:
        """Take a voter or learner out. Ask the leader; it may be the leader itself."""
        core = self._leading()
        learners = set(core.peers) - set(core.members)
        if node not in core.members and node not in learners:
            raise UsageError(f"{node} is no member; they are {', '.join(sorted({*core.members, *learners}))}")
        voters = set(core.members) - {node}
        if not voters:
            raise UsageError(f"{node} is the last voter; a group has at least one")
        await self.engine.change(voters, learners - {node})

    async def transfer(self, node: NodeId) -> None:
        """Hand leadership to a voter. Ask the leader."""
        await self.engine.transfer(node)

    async def switch(
        self, protocol: str, members: Sequence[NodeId] = (), addresses: Mapping[NodeId, str] | None = None
    ) -> None:
        """Go on with another protocol, or among other members."""
        known = {*self.engine.addresses, *(addresses or {})}
        if strangers := sorted(set(members) - known):
            raise UsageError(f"{strangers[0]} is not known here; give its address, too: {strangers[0]}=HOST:PORT")
        await self.engine.switch(protocol, members, self.protocol_options(protocol), addresses=addresses)

    def _leading(self) -> Status:
        core = self.engine.status().core
        if core.leader != self.engine.node:
            raise NotLeaderError(self.engine.node, core.leader)
        return core


__all__ = ["CATCH_UP_S", "LOOK_S", "VALUE_BYTES_MAX", "GroupOptions", "StrongMember"]
