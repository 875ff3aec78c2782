"""Which protocol fits the network and the load: named policies, and a controller that does not follow every wave.

Nothing here orders anything. A decision says which rule made it, of which inputs, under which version of the policy;
whoever drives a group (`ConsensusEngine`) then switches by a seal, as an operator would, while a quorum lives. After
the loss of a quorum nothing can switch safely, and no decision pretends to.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Final

import msgspec

from nova.errors import UsageError
from nova.sync.modes import Mode, known, mode_of

RTT_NEAR_MS: Final = 50.0
RTT_FAR_MS: Final = 200.0
REGIONS_NEAR: Final = 3
CONFLICT_HIGH: Final = 0.2
CONFLICT_LOW: Final = 0.02
PBFT_MEMBERS_MIN: Final = 4
DWELL_NS: Final = 30 * 1_000_000_000
MARGIN: Final = 0.1
"""Share by which the inputs must be past a threshold before anything changes."""


class Observation(msgspec.Struct, frozen=True, kw_only=True):
    """What was measured. None, NaN, infinite or negative: not known; the last known value stands in.

    rtt_ms          median round trip between members
    loss            share of messages lost
    bandwidth_gbit  of the narrowest link
    jitter_ms       spread of the round trip
    conflict_rate   share of commands that meet another one on the same key
    regions         in which members are
    tiers           1, or more if regions hang below others
    untrusted       some member is suspected to lie
    """

    rtt_ms: float | None = None
    loss: float | None = None
    bandwidth_gbit: float | None = None
    jitter_ms: float | None = None
    conflict_rate: float | None = None
    regions: int | None = None
    tiers: int | None = None
    untrusted: bool | None = None


class Decision(msgspec.Struct, frozen=True):
    """What to use, and why.

    strong      for keys that need linearizability: never `eventual`
    convergent  for keys whose values converge by themselves
    rule        that decided
    policy      its name and version
    inputs      as they were used
    mode        of the network; None if unknown
    """

    strong: str
    convergent: str
    rule: str
    policy: str
    inputs: Observation
    mode: Mode | None = None

    @property
    def reason(self) -> str:
        """A line for operators."""
        inputs = ", ".join(
            f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}"
            for name in self.inputs.__struct_fields__
            if (value := getattr(self.inputs, name)) is not None
        )
        return f"{self.strong}, {self.convergent} for convergent keys: {self.rule} ({self.policy}; {inputs})"


Policy = Callable[[Observation], tuple[str, str, str]]
"""Observation -> (protocol of strong keys, of convergent keys, rule)."""


def classic(seen: Observation) -> tuple[str, str, str]:
    """Near and few regions: Raft. Far: eventual where it may be. Many conflicts: EPaxos. Several tiers: hybrid.

    Who may be lied to is asked first: no other rule holds then.
    """
    return _rules(seen, epaxos=lambda: (seen.conflict_rate or 0) > CONFLICT_HIGH, why="conflict rate > 0.2")


def measured(seen: Observation) -> tuple[str, str, str]:
    """As `classic`, but EPaxos only far apart and with few conflicts: under conflict its tail is worse than Paxos'."""

    def epaxos() -> bool:
        far = seen.rtt_ms is not None and seen.rtt_ms >= RTT_NEAR_MS
        return far and seen.conflict_rate is not None and seen.conflict_rate < CONFLICT_LOW

    return _rules(seen, epaxos=epaxos, why="rtt >= 50 ms and conflict rate < 0.02")


def _rules(seen: Observation, *, epaxos: Callable[[], bool], why: str) -> tuple[str, str, str]:
    if seen.untrusted:
        return "pbft", "pbft", "a member is suspected to lie"
    rtt = seen.rtt_ms
    if rtt is not None and rtt < RTT_NEAR_MS and seen.regions is not None and seen.regions <= REGIONS_NEAR:
        return "raft", "raft", "rtt < 50 ms and at most 3 regions"
    far = rtt is not None and rtt > RTT_FAR_MS
    convergent, more = ("eventual", "rtt > 200 ms; ") if far else (None, "")
    if epaxos():
        return "epaxos", convergent or "epaxos", more + why
    if (seen.tiers or 1) > 1:
        return "hybrid", convergent or "hybrid", more + "several tiers"
    return "paxos", convergent or "paxos", (more or "nothing else matches; ")[:-2]


POLICIES: Final[dict[str, tuple[Policy, int]]] = {"classic": (classic, 1), "measured": (measured, 1)}
"""name -> (policy, version)."""


class AdaptiveConsensus:
    """Observes, and says when another protocol should go on.

    policy     `measured`, `classic`, or a policy of your own
    available  protocols that can run here; for another one its nearest kin is taken (`FALLBACKS`)
    members    how many there are: PBFT needs 4
    dwell_ns   between two changes
    present    (protocol of strong keys, of convergent keys) now

    A change needs inputs that are past their thresholds by a margin, so an input that wavers around one changes
    nothing, and one that leaps to and fro changes once in `dwell_ns`.
    """

    def __init__(
        self,
        policy: str | Policy = "measured",
        *,
        available: Collection[str] = ("raft", "paxos", "epaxos", "pbft", "eventual", "hybrid"),
        members: int = 3,
        dwell_ns: int = DWELL_NS,
        margin: float = MARGIN,
        present: tuple[str, str] = ("raft", "raft"),
    ) -> None:
        if isinstance(policy, str):
            if policy not in POLICIES:
                raise UsageError(f"policy {policy!r} is unknown; there are {', '.join(sorted(POLICIES))}")
            self._policy, version = POLICIES[policy]
            self.name = f"{policy} v{version}"
        else:
            self._policy, self.name = policy, getattr(policy, "__name__", "custom")
        if not 0 <= margin < 1:
            raise UsageError(f"a margin of {margin}; it is a share from 0 to below 1")
        if dwell_ns < 0:
            raise UsageError(f"a dwell time of {dwell_ns} ns; it is 0 or more")
        self.available, self.members = frozenset(available), members
        self.dwell_ns, self.margin = dwell_ns, margin
        self.present = present
        self._seen = Observation()
        self._changed_ns: int | None = None
        self._override: str | None = None

    def override(self, protocol: str | None) -> None:
        """Use this protocol for strong and convergent keys, whatever is observed; None ends that.

        Raises UsageError for one that can't run here.
        """
        if protocol is not None and (why := self._hindrance(protocol)):
            raise UsageError(why)
        if protocol == "eventual":
            raise UsageError("strong keys can't be eventual; name raft, paxos, epaxos, pbft or hybrid")
        self._override = protocol

    def decide(self, seen: Observation) -> Decision:
        """What the policy says of these inputs alone, without memory."""
        if self._override is not None:
            return Decision(self._override, self._override, "the operator chose it", self.name, seen, _mode(seen))
        strong, convergent, rule = self._policy(seen)
        fitted = [self._fitted(strong), self._fitted(convergent)]
        for wanted, got in zip((strong, convergent), fitted, strict=True):
            if got != wanted and (why := self._hindrance(wanted)) not in rule:
                rule = f"{rule}; {why}, so {got}"
        return Decision(fitted[0], fitted[1], rule, self.name, seen, _mode(seen))

    def observe(self, now_ns: int, sample: Observation) -> Decision | None:
        """Take a sample at a monotonic time; a decision if something is to change now."""
        self._seen = merged(self._seen, sample)
        if self._changed_ns is not None and now_ns - self._changed_ns < self.dwell_ns and self._override is None:
            return None
        decision = self.decide(self._seen)
        wanted = (decision.strong, decision.convergent)
        if wanted == self.present:
            return None
        if self._override is None and any(
            (other.strong, other.convergent) != wanted for other in map(self.decide, nudged(self._seen, self.margin))
        ):
            return None
        self._changed_ns, self.present = now_ns, wanted
        return decision

    def _hindrance(self, protocol: str) -> str:
        if protocol not in self.available:
            return f"{protocol} is not available here ({', '.join(sorted(self.available))} are)"
        if protocol == "pbft" and self.members < PBFT_MEMBERS_MIN:
            return f"pbft needs {PBFT_MEMBERS_MIN} members and there are {self.members}"
        return ""

    def _fitted(self, protocol: str) -> str:
        for kin in (protocol, *FALLBACKS.get(protocol, ()), self.present[0]):
            if not self._hindrance(kin):
                return kin
        return self.present[0]


FALLBACKS: Final[dict[str, tuple[str, ...]]] = {
    "raft": ("paxos",),
    "paxos": ("raft",),
    "epaxos": ("paxos", "raft"),
    "hybrid": ("paxos", "raft"),
    "eventual": ("paxos", "raft"),
}
"""For a protocol that is not available. PBFT has none: nothing else bears members that lie, so all stays as it is."""


def _mode(seen: Observation) -> Mode | None:
    return mode_of(seen.rtt_ms, seen.bandwidth_gbit)


def merged(before: Observation, sample: Observation) -> Observation:
    """The newest known value of each input."""
    values = {}
    for name in sample.__struct_fields__:
        value = getattr(sample, name)
        if not isinstance(value, bool):
            value = known(value)
        values[name] = getattr(before, name) if value is None else value
    return Observation(**values)


def nudged(seen: Observation, margin: float) -> list[Observation]:
    """The inputs that are measured on a scale, one after the other a little less and a little more."""
    out = []
    for name in ("rtt_ms", "bandwidth_gbit", "conflict_rate"):
        value = getattr(seen, name)
        if value is not None:
            out += [msgspec.structs.replace(seen, **{name: value * factor}) for factor in (1 - margin, 1 + margin)]
    return out


def predict_ms(protocol: str, rtts_ms: Mapping[str, float], *, leader: str | None = None) -> float:
    """Milliseconds from a proposal at a member to its answer, if nobody is slow and nothing conflicts.

    rtts_ms  peer -> round trip from this member; it itself is not in it
    leader   where proposals go; None: this member leads (or the protocol needs no leader)
    raises   UsageError for an unknown protocol or leader

    Raft and Paxos: to the leader and back, and its own round trip to the nearest majority, for which this member's
    round trips stand in. EPaxos: a round trip to the fast quorum. PBFT: three half round trips to a quorum, and a
    fourth if the primary is another one.
    """
    near: Sequence[float] = sorted(rtts_ms.values())
    count = len(near) + 1
    way = 0.0
    if leader is not None:
        if leader not in rtts_ms:
            raise UsageError(f"the leader {leader!r} is none of {sorted(rtts_ms)}")
        way = rtts_ms[leader]

    def to(quorum: int) -> float:
        return near[quorum - 2] if quorum > 1 else 0.0

    match protocol:
        case "eventual":
            return 0.0
        case "raft" | "paxos" | "hybrid":
            return way + to(count // 2 + 1)
        case "epaxos":
            minority = (count - 1) // 2
            return to(max(minority + (minority + 1) // 2, 1))
        case "pbft":
            faulty = (count - 1) // 3
            return 1.5 * to((count + faulty + 2) // 2) + way / 2
    raise UsageError(f"protocol {protocol!r} is unknown; there are raft, paxos, epaxos, pbft, eventual and hybrid")


__all__ = ["POLICIES", "AdaptiveConsensus", "Decision", "Observation", "classic", "measured", "predict_ms"]
