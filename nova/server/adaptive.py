"""Lets what a node measures choose the protocol of its group."""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Callable, Mapping
from typing import Any, Final

from nova.consensus.adaptive import POLICIES, AdaptiveConsensus, Decision, Observation, Policy
from nova.consensus.steering import steer
from nova.server.group import Group

AVAILABLE: Final = ("raft", "paxos")
"""EPaxos is not among them: strong keys are one order, so it would find no commands that commute. PBFT needs keys."""


class Adaptive:
    """Steers one member's group; `start` it when its engine runs.

    measured  what the node knows of its links: peer -> (round trip in milliseconds, region); only those it is
              connected with. Of the members of the group those that count are picked
    region    of the node itself
    """

    def __init__(self, group: Group, measured: Callable[[], Mapping[str, tuple[float, str]]], region: str) -> None:
        self.group, self._measured, self._region = group, measured, region
        self.decision: Decision | None = None
        """The last one that was acted upon here."""
        status = group.engine.status()
        self.controller = AdaptiveConsensus(
            self._policy(),
            available=AVAILABLE,
            members=len(status.core.members),
            present=(status.epoch.protocol, status.epoch.protocol),
        )
        self._asked = self._stale = 0
        self._task: asyncio.Task[None] | None = None

    def _policy(self) -> Policy:
        """The configured one. Where nothing is measured yet all stays as it is: to know nothing is no reason."""
        name = self.group.config.consensus.policy
        chosen, version = POLICIES[name]

        def policy(seen: Observation) -> tuple[str, str, str]:
            if seen.rtt_ms is None or seen.regions is None:
                protocol = self.group.engine.status().epoch.protocol
                return protocol, protocol, "nothing is measured yet"
            return chosen(seen)

        policy.__name__ = f"{name} v{version}"
        return policy

    def start(self) -> None:
        """Begin to look, once a second."""
        self._task = asyncio.get_running_loop().create_task(
            steer(
                self.group.engine,
                self.controller,
                self.observe,
                decided=self._decided,
                options=self.group.protocol_options,
            )
        )

    async def stop(self) -> None:
        """Look no more. May be called twice."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    def observe(self) -> Observation:
        """What is known now: the median round trip to the other members, their regions, how many changes of late met
        another one on their key."""
        members = {*self.group.engine.status().core.members} - {self.group.engine.node}
        links = [link for peer, link in self._measured().items() if peer in members]
        rtts = [rtt for rtt, _ in links if rtt > 0]
        machine = self.group.machine
        asked, stale = machine.asked - self._asked, machine.stale - self._stale
        self._asked, self._stale = machine.asked, machine.stale
        return Observation(
            rtt_ms=statistics.median(rtts) if rtts else None,
            regions=len({self._region, *(region for _, region in links)}) if links else None,
            conflict_rate=stale / asked if asked else None,
        )

    def _decided(self, decision: Decision) -> None:
        self.decision = decision

    def status(self) -> dict[str, Any]:
        """What it goes by and did, for operators."""
        return {
            "policy": self.controller.name,
            "decision": None if self.decision is None else self.decision.reason,
        }


__all__ = ["Adaptive"]
