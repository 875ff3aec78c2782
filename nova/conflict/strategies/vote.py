"""A vote among named voters. Counting is a pure core; asking is left to an object with one method."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from hashlib import blake2b
from typing import Any, Protocol

import msgspec

from nova.conflict.detect import Conflict, Version, canonical, ordered
from nova.conflict.strategies.base import (
    NO_CONTEXT,
    Resolution,
    ResolveContext,
    Settled,
    UndecidedError,
    admitted,
    agreed,
    combined,
    deferred,
    finish,
    part,
    place,
    strategy,
    without,
)
from nova.conflict.words import show
from nova.errors import UnavailableError, UsageError

# ------------------------------------------------------------------------------------------------ counting


class Cast(StrEnum):
    """What became of a vote."""

    COUNTED = "counted"
    REPEATED = "repeated"
    EQUIVOCATION = "equivocation"
    LATE = "late"
    STRANGER = "stranger"


class Tally:
    """Counts one vote. A choice wins when more than half of *all* voters named at the start chose it.

    One voter, one vote: the first counts, the same again changes nothing, another one is an equivocation and is noted.
    A vote after the end is late and counts for nothing. A voter that is removed loses its vote, and the majority stays
    that of all who were named: two shrinking electorates could otherwise each find one (of 5, {a, b} and {c, d, e}).
    """

    def __init__(self, voters: Iterable[str]) -> None:
        self.voters = tuple(voters)
        if not self.voters or len(set(self.voters)) < len(self.voters):
            raise UsageError(f"the voters are {list(self.voters)}; name at least 1, and each once")
        self.equivocations: list[tuple[str, str, str]] = []
        self._votes: dict[str, str] = {}
        self._removed: set[str] = set()
        self._closed = False
        self._winner: str | None = None

    @property
    def majority(self) -> int:
        """How many votes decide."""
        return len(self.voters) // 2 + 1

    @property
    def counted(self) -> dict[str, int]:
        """choice -> votes."""
        return dict(Counter(self._votes.values()))

    @property
    def winner(self) -> str | None:
        """The choice of a majority; once there is one it stays."""
        return self._winner

    @property
    def hopeless(self) -> bool:
        """Whether no choice can win any more: a tie, or too many removed."""
        if self._winner is not None:
            return False
        silent = len(self.voters) - len(self._votes) - len(self._removed - self._votes.keys())
        return self._closed or max(self.counted.values(), default=0) + silent < self.majority

    def cast(self, voter: str, choice: str) -> Cast:
        """Take one vote."""
        if voter not in self.voters or voter in self._removed:
            return Cast.STRANGER
        before = self._votes.get(voter)
        if before is not None and before != choice:
            self.equivocations.append((voter, before, choice))
            return Cast.EQUIVOCATION
        if before is not None:
            return Cast.REPEATED
        if self._closed or self._winner is not None:
            return Cast.LATE
        self._votes[voter] = choice
        if self.counted[choice] >= self.majority:
            self._winner = choice
        return Cast.COUNTED

    def remove(self, voter: str) -> None:
        """The voter is no member any more. A decision that stands, stands."""
        if voter in self.voters:
            self._removed.add(voter)
            if self._winner is None:
                self._votes.pop(voter, None)

    def close(self) -> None:
        """Time is up."""
        self._closed = True


# ------------------------------------------------------------------------------------------------ asking


class Candidate(msgspec.Struct, frozen=True):
    """A value to vote for. `id` is the same on every node, equal values have one."""

    id: str
    value: Any
    origins: tuple[str, ...]


class Question(msgspec.Struct, frozen=True):
    """What voters are asked. They choose the id of a candidate; `timeout_ms` 0: no limit."""

    conflict_id: str
    resource_id: str
    path: str
    candidates: tuple[Candidate, ...]
    voters: tuple[str, ...]
    timeout_ms: int


class Ballot(msgspec.Struct, frozen=True):
    """One vote, as it came."""

    voter: str
    choice: str


class Asker(Protocol):
    """Whoever can ask voters: a transport, a consensus engine, a test."""

    def ask(self, question: Question) -> Iterable[Ballot]:
        """Ballots in order of arrival, until they decide or `question.timeout_ms` is over.

        Raises UnavailableError or TimeoutError if nothing came of it.
        """


def candidates_of(versions: Sequence[Version]) -> tuple[Candidate, ...]:
    """The different values of versions, in canonical order."""
    found: dict[bytes, tuple[Any, list[str]]] = {}
    for version in ordered(versions):
        _, origins = found.setdefault(canonical(version.value), (version.value, []))
        origins.append(version.origin)
    return tuple(
        Candidate(blake2b(key, digest_size=8, person=b"nova.candidate").hexdigest(), value, tuple(sorted(set(origins))))
        for key, (value, origins) in sorted(found.items())
    )


@strategy
class ConsensusVote:
    """Asks the named voters; the value that a majority of all of them chose is settled.

    voters     their names; asker: the object that asks them
    A majority decides, too, what no rule may: it is pending no longer, but for what other resources or invariants say.

    otherwise  the strategy for a tie, a time-out, or where nobody is asked; None: UndecidedError, or what the asker
               raised, so that a policy can try again
    """

    name = "consensus_vote"
    asks = True

    def __init__(
        self,
        voters: Iterable[str] = (),
        asker: Asker | None = None,
        *,
        otherwise: str | None = "lww",
        timeout_ms: int = 0,
    ) -> None:
        self.voters, self.asker = tuple(voters), asker
        self.otherwise, self.timeout_ms = otherwise, timeout_ms
        if self.voters:
            Tally(self.voters)

    def resolve(self, conflict: Conflict, context: ResolveContext = NO_CONTEXT) -> Resolution:
        conflict, refused = admitted(conflict, context)
        outcomes: dict[str, tuple[Sequence[Version], Settled]] = {}
        open_: dict[str, Sequence[Version]] = {}
        reasons: list[str] = []
        alarms: list[str] = []
        voted = False
        for path in sorted(conflict.siblings):
            versions = ordered(conflict.siblings[path])
            if (unanimous := agreed(path, versions)) is not None:
                outcomes[path] = versions, unanimous
                continue
            try:
                outcomes[path] = versions, self._vote(conflict, path, versions, context, alarms)
                voted = True
            except (UnavailableError, TimeoutError) as error:
                if self.otherwise is None:
                    raise
                open_[path] = versions
                reasons.append(f"{place(path)}: {error or type(error).__name__}")
        chosen = part(conflict, {path: versions for path, (versions, _) in outcomes.items()})
        if voted and not conflict.contentions and not conflict.broken:  # a majority has looked
            chosen = chosen.replace(auto_resolvable=True)
        parts = [finish(chosen, self.name, outcomes)]
        if open_:
            found = deferred(part(conflict, open_), context, self.name, self.otherwise, "; ".join(reasons))
            parts = [*parts, found] if outcomes else [found]
        whole = combined(conflict, self.name, parts)
        if alarms:
            whole = whole.replace(alarms=whole.alarms + tuple(alarms))
        return without(whole, refused)

    def _vote(
        self, conflict: Conflict, path: str, versions: Sequence[Version], context: ResolveContext, alarms: list[str]
    ) -> Settled:
        if self.asker is None or not self.voters:
            raise UndecidedError("nobody can be asked: no voters or no asker is given")
        limits = [limit for limit in (self.timeout_ms, context.timeout_ms) if limit]
        candidates = candidates_of(versions)
        question = Question(conflict.id, conflict.resource_id, path, candidates, self.voters, min(limits, default=0))
        known: Mapping[str, Candidate] = {candidate.id: candidate for candidate in candidates}
        tally = Tally(self.voters)
        for ballot in self.asker.ask(question):
            if ballot.choice not in known:
                alarms.append(f"{place(path)}: {ballot.voter} voted for {ballot.choice!r}, which is no candidate")
                continue
            if tally.cast(ballot.voter, ballot.choice) is Cast.EQUIVOCATION:
                alarms.append(f"{place(path)}: {ballot.voter} voted twice, and differently; its first vote counts")
            if tally.winner is not None or tally.hopeless:
                break
        counted = ", ".join(
            f"{count} for {show(known[choice].value)}" for choice, count in sorted(tally.counted.items())
        )
        if tally.winner is None:
            raise UndecidedError(f"no majority of {len(self.voters)} voters: {counted or 'no votes'}")
        winner = known[tally.winner]
        chosen = f"{tally.majority} of {len(self.voters)} voters ({counted})"
        line = f"{place(path)}: {show(winner.value)} was chosen by {chosen}"
        return Settled(winner.value, line, f"a majority chose {show(winner.value)}")


__all__ = ["Asker", "Ballot", "Candidate", "Cast", "ConsensusVote", "Question", "Tally", "candidates_of"]
