"""Lets a controller choose the protocol of a running group."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from nova.consensus.adaptive import AdaptiveConsensus, Decision, Observation
from nova.consensus.engine import ConsensusEngine
from nova.errors import UnavailableError, UsageError

log = logging.getLogger("nova.consensus")

EVERY_S: Final = 1.0


async def steer(
    engine: ConsensusEngine,
    controller: AdaptiveConsensus,
    observe: Callable[[], Observation],
    *,
    every_s: float = EVERY_S,
    decided: Callable[[Decision], None] | None = None,
    convergent: bool = False,
    options: Callable[[str], Mapping[str, Any]] | None = None,
) -> None:
    """Look every `every_s` seconds, and switch the group when the controller says so; until cancelled.

    Run it at every member: each observes, and only the one that leads acts, so that what is known does not go with it.
    (EPaxos and eventual: the first member. PBFT ends when f + 1 ask for it, so there each one asks.) A switch that
    can't be made now is logged, and may be decided again after the controller's dwell time.

    observe  what this member measures now; what it does not know is left out
    decided  told of every decision that is acted upon, before it is
    convergent  this group has keys whose values converge, and a machine that does: what is decided for those counts
    options  of a protocol, for the epoch that it begins (`hybrid` needs the regions of its members); None: its defaults
    """
    if not every_s > 0:
        raise UsageError(f"every_s is {every_s}; give a number above 0")
    while True:
        await asyncio.sleep(every_s)
        epoch = engine.status().epoch
        if controller.present[convergent] != epoch.protocol:
            controller.present = (epoch.protocol, epoch.protocol)
        decision = controller.observe(time.monotonic_ns(), observe())
        if decision is None:
            continue
        chosen = decision.convergent if convergent else decision.strong
        if chosen == epoch.protocol or not _acts(engine):
            continue
        log.info("%s: %s", engine.node, decision.reason)
        if decided is not None:
            decided(decision)
        try:
            await engine.switch(chosen, options=options(chosen) if options is not None else None)
        except (UsageError, UnavailableError) as error:
            log.warning("%s stays with %s: %s", engine.node, epoch.protocol, error)


def _acts(engine: ConsensusEngine) -> bool:
    status = engine.status()
    if status.epoch.protocol in ("epaxos", "eventual"):
        return engine.node == status.epoch.members[0]
    return status.epoch.protocol == "pbft" or status.core.leader == engine.node


__all__ = ["steer"]
