"""Two that both believe to be the one: found, decided by token order or quorum, and fenced before one is promoted.

Wall clocks and names never decide: an older token loses to a newer one, because whatever both write to refuses it
(Kleppmann 2016), and where tokens give no order a majority of all voters says who stays. What has to give way is
fenced, and confirmed to be, before the other side is promoted: two primaries otherwise.

Nothing here talks to anybody: whoever drives this is asked through `Quorum`, and does what a decision says.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final, Literal, Protocol

import msgspec

from nova.clock import VectorClock
from nova.conflict.detect import Version, canonical, conflict_id
from nova.errors import FenceRequiredError, StaleContextError, UsageError
from nova.types import NodeId, Order


class Observation(msgspec.Struct, frozen=True):
    """What one node says about a resource that may run at one place only.

    clock  what the node knew when it said so: a VectorClock, or a map actor -> count
    epoch  the fencing token that it runs under; every promotion has a greater one
    """

    node: NodeId
    host: str
    power_state: str
    clock: VectorClock
    epoch: int = 0

    def __post_init__(self) -> None:
        clock: object = self.clock
        if not isinstance(clock, VectorClock):
            msgspec.structs.force_setattr(self, "clock", VectorClock(self.clock))
        if self.epoch < 0 or not self.host:
            raise UsageError(f"{self.node} saw epoch {self.epoch} at host {self.host!r}; give 0 or more, and a host")


class SplitBrain(msgspec.Struct, frozen=True):
    """A resource that runs at several hosts for nodes that did not know of each other.

    id            the same wherever it is found from the same observations
    observations  those that no other supersedes and that say it runs, by host and node
    """

    id: str
    resource_id: str
    observations: tuple[Observation, ...]

    @property
    def hosts(self) -> tuple[str, ...]:
        return tuple(sorted({seen.host for seen in self.observations}))

    @property
    def epoch_max(self) -> int:
        return max(seen.epoch for seen in self.observations)

    @property
    def leader(self) -> str | None:
        """The host that alone has the newest token; None if tokens give no order."""
        newest = {seen.host for seen in self.observations if seen.epoch == self.epoch_max}
        return newest.pop() if len(newest) == 1 else None


def find_split_brain(resource_id: str, observations: Iterable[Observation]) -> SplitBrain | None:
    """The split brain that these observations show, in any order; None if the resource runs at one place at most.

    An observation that a later one supersedes says nothing: its node, or one that heard of it, knows better by now.
    """
    known = list({canonical(_plain(seen)): seen for seen in observations}.values())
    running = [
        seen
        for seen in known
        if seen.power_state == "running" and not any(seen.clock.compare(o.clock) is Order.BEFORE for o in known)
    ]
    if len({seen.host for seen in running}) < 2:
        return None
    running.sort(key=lambda seen: (seen.host, seen.node, seen.epoch))
    versions = [Version(None, seen.clock, seen.epoch, f"{seen.node}@{seen.host}") for seen in running]
    return SplitBrain(conflict_id(resource_id, versions), resource_id, tuple(running))


def _plain(seen: Observation) -> Any:
    return seen.node, seen.host, seen.power_state, seen.clock.to_dict(), seen.epoch


# ------------------------------------------------------------------------------------------------ deciding


class Question(msgspec.Struct, frozen=True):
    """What a quorum is asked. `proposal` is what tokens say, None if they say nothing."""

    id: str
    subject: str
    options: tuple[str, ...]
    proposal: str | None = None


class Quorum(Protocol):
    """A majority of all voters, whatever engine counts them."""

    def ask(self, question: Question) -> str | None:
        """The option that a majority chose; None for a tie, a minority or a time-out."""

    def token(self) -> int:
        """A fencing token, greater than every one given before."""


class Decision(msgspec.Struct, frozen=True):
    """What is to be done about a split brain.

    action  `fence`: fence the hosts in `fence` under `token`, then promote `keep`. `escalate`: nothing may be
            destroyed; somebody has to decide
    token   the new epoch of `keep`; 0 if it goes on under its own, which is the newest
    """

    action: Literal["fence", "escalate"]
    keep: str | None
    fence: tuple[str, ...]
    token: int
    reason: str


MODES: Final = ("quorum", "newest", "manual")


def resolve_split_brain(
    split: SplitBrain, mode: str = "quorum", quorum: Quorum | None = None, *, keep: str | None = None, shown: str = ""
) -> Decision:
    """Decide who stays.

    mode    `quorum`: the option that a majority chose, under a new token. `newest`: the host with the newest token,
            which needs no vote. `manual`: `keep`, said by somebody who was shown the split brain with id `shown`
    quorum  needed for `quorum`; for `manual`, where the new token comes from
    raises  UsageError for another mode, a lacking quorum or a host that is none of it; StaleContextError if what was
            shown is no longer what there is
    """
    if mode == "newest":
        return _fence(split, split.leader, 0, "it has the newest token") if split.leader else _escalate(split, TIED)
    if mode not in MODES:
        raise UsageError(f"mode is {mode!r}; it is one of {', '.join(MODES)}")
    if quorum is None:
        raise UsageError(f"mode {mode!r} needs a quorum: it gives the token that keeps the other side out")
    if mode == "manual":
        if keep not in split.hosts:
            raise UsageError(
                f"keep is {keep!r}; {split.resource_id} runs at {', '.join(split.hosts)}: name one of them"
            )
        if shown != split.id:
            raise StaleContextError(
                f"the split brain of {split.resource_id} is {split.id} now, {shown!r} was decided about; look again",
                split,
            )
        chosen, why = keep, "somebody decided so"
    else:
        answer = quorum.ask(Question(split.id, split.resource_id, split.hosts, split.leader))
        if answer not in split.hosts:
            return _escalate(split, "no majority of all voters chose one of its hosts")
        chosen, why = answer, "a majority chose it"
    token = quorum.token()
    if token <= split.epoch_max:
        return _escalate(split, f"token {token} is not newer than epoch {split.epoch_max}: it would keep nobody out")
    return _fence(split, chosen, token, why)


TIED: Final = "tokens give no order, so no side may be destroyed"


def _fence(split: SplitBrain, keep: str | None, token: int, why: str) -> Decision:
    others = tuple(host for host in split.hosts if host != keep)
    reason = f"{split.resource_id} runs at {' and '.join(split.hosts)}; {keep} stays: {why}"
    return Decision("fence", keep, others, token, reason)


def _escalate(split: SplitBrain, why: str) -> Decision:
    reason = f"{split.resource_id} runs at {' and '.join(split.hosts)}; nothing is fenced: {why}"
    return Decision("escalate", None, (), 0, reason)


# ------------------------------------------------------------------------------------------------ doing

FailoverState = Literal["healthy", "suspected", "degraded", "agreed", "fencing", "fenced", "promoted"]

_NEXT: Final[Mapping[tuple[str, str], FailoverState]] = {
    ("healthy", "detect"): "suspected",
    ("suspected", "quorum"): "agreed",
    ("degraded", "quorum"): "agreed",
    ("agreed", "fence"): "fencing",
    ("fencing", "confirm"): "fenced",
    ("fenced", "promote"): "promoted",
}
"""The only way there is: detect, quorum, fence, confirm, promote."""


class Failover:
    """One failover, step by step; a step that is not next changes nothing and raises.

    voters  how many voters there are, those that cannot be seen included
    """

    __slots__ = ("_unconfirmed", "state", "token", "voters")

    def __init__(self, voters: int) -> None:
        if voters < 1:
            raise UsageError(f"voters is {voters}; give 1 or more")
        self.voters = voters
        self.state: FailoverState = "healthy"
        self.token = 0
        self._unconfirmed: set[str] = set()

    @property
    def takes_writes(self) -> bool:
        """Whether this side may go on writing: not while it sees only a minority, nor before the other is fenced."""
        return self.state in ("healthy", "promoted")

    def detect(self) -> None:
        """The primary does not answer."""
        self._step("detect")

    def quorum(self, visible: int) -> bool:
        """So many voters, this side's own included, see it the same way. False: a minority, which is `degraded`."""
        if not 0 <= visible <= self.voters:
            raise UsageError(f"{visible} of {self.voters} voters are visible; give 0 to {self.voters}")
        self._next("quorum")
        if 2 * visible <= self.voters:
            self.state = "degraded"
            return False
        self._step("quorum")
        return True

    def fence(self, hosts: Iterable[str], token: int) -> None:
        """Keep `hosts` out with a token newer than any before."""
        unconfirmed = set(hosts)
        self._next("fence")
        if not unconfirmed or token <= self.token:
            raise UsageError(f"fence {sorted(unconfirmed)} with token {token}; name hosts, and one above {self.token}")
        self._step("fence")
        self._unconfirmed, self.token = unconfirmed, token

    def confirm(self, host: str, token: int) -> bool:
        """`host` is fenced under `token`; True when all are. A confirmation of an older token is none."""
        self._next("confirm")
        if token == self.token:
            self._unconfirmed.discard(host)
        if not self._unconfirmed:
            self._step("confirm")
        return self.state == "fenced"

    def promote(self) -> int:
        """Who stays may run, under the token that this returns. Raises FenceRequiredError before the rest is fenced."""
        self._step("promote")
        return self.token

    def _step(self, action: str) -> None:
        self.state = self._next(action)

    def _next(self, action: str) -> FailoverState:
        following = _NEXT.get((self.state, action))
        if following is not None:
            return following
        if action == "promote":
            waiting = f"{', '.join(sorted(self._unconfirmed))} not confirmed" if self._unconfirmed else "nobody fenced"
            raise FenceRequiredError(f"promote while {self.state}, {waiting}; fence the other side, confirm it first")
        allowed = ", ".join(name for state, name in _NEXT if state == self.state) or "none"
        raise UsageError(f"{action} while {self.state}; what can follow is {allowed}")
