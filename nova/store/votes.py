"""Votes about conflicts: named nodes are asked, a majority of all of them decides, and the outcome is a write.

Who votes for what is settled when a voter finds the conflict: for the value that it had first. That ballot is an event
of its audit trail before anybody hears of it, so it is the same however often it is asked for, also after a crash. One
node counts: of the voters that are alive the one with the least name. Two may count at once, cut off from each other;
both see the same ballots, so they can't find different majorities. The outcome is written over exactly the versions
that were voted on (see `nova.store.decisions`): if there is a newer one by then, there is a new conflict and vote.

Without a majority (a tie, voters that left, a time-out) the values stand that the strategy's fallback gave, and that is
written instead.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final

import msgspec

from nova.conflict.audit import vote_body
from nova.conflict.strategies.vote import Ballot, Cast, Question, Tally
from nova.conflict.words import show
from nova.errors import NovaError, StaleContextError, UnavailableError
from nova.store.decisions import decide
from nova.types import NodeId, Outputs

if TYPE_CHECKING:
    from nova.store.core import Replica

ROUND_MS: Final = 500
NAMES_MAX: Final = 1_000


class VoteAsk(msgspec.Struct, frozen=True, array_like=True, tag="va"):
    """What do you vote for in this conflict of this key?"""

    conflict: str
    key: str


class VoteCast(msgspec.Struct, frozen=True, array_like=True, tag="vc"):
    """My ballot: path -> id of a candidate. It is on my disk."""

    conflict: str
    choices: dict[str, str]


class VoteEnded(msgspec.Struct, frozen=True, array_like=True, tag="ve"):
    """How a vote ended, for the audit trails of the others: path -> (voter -> candidate), path -> winner."""

    conflict: str
    key: str
    ballots: dict[str, dict[NodeId, str]]
    winners: dict[str, str]


VOTE_MESSAGES: Final = (VoteAsk, VoteCast, VoteEnded)


class _Poll:
    """A vote that is being counted."""

    def __init__(self, questions: list[dict[str, Any]]) -> None:
        self.tallies = {question["path"]: Tally(question["voters"]) for question in questions}
        self.ballots: dict[str, dict[NodeId, str]] = {path: {} for path in self.tallies}
        limits = [question["timeout_ms"] for question in questions if question["timeout_ms"]]
        self.timeout_ms = min(limits, default=0)
        self.age_ms = 0
        self.next_ms = 0

    @property
    def voters(self) -> set[NodeId]:
        return {voter for tally in self.tallies.values() for voter in tally.voters}

    @property
    def ended(self) -> bool:
        over = bool(self.timeout_ms) and self.age_ms >= self.timeout_ms
        return over or all(tally.winner is not None or tally.hopeless for tally in self.tallies.values())


class Votes:
    """A node's part in the votes of its cluster."""

    def __init__(self, node: NodeId, replica: Replica, *, tick_ms: int = 100) -> None:
        self.node, self._replica, self._tick_ms = node, replica, tick_ms
        self._polls: dict[str, _Poll] = {}
        self._left: set[NodeId] = set()

    def step(self, sender: NodeId, message: Any) -> Outputs:
        """Take a message."""
        match message:
            case VoteAsk(conflict, key):
                choices = self._replica.conflicts.ballot(conflict)
                if choices is not None:
                    return Outputs(send=[(sender, VoteCast(conflict, choices))])
            case VoteCast(conflict, choices):
                poll = self._polls.get(conflict)
                if poll is not None:
                    self._cast(conflict, poll, sender, choices)
                    return self._finish(conflict, poll)
            case VoteEnded(conflict, key, ballots, winners):
                self._replica.conflicts.vote_ended(conflict, key, ballots, winners)
        return Outputs()

    def tick(self, live: Collection[NodeId]) -> Outputs:
        """Let a tick pass; `live` are the other members that are alive."""
        out = Outputs()
        open_ = self._replica.conflicts.votes()
        for conflict in self._polls.keys() - open_.keys():
            del self._polls[conflict]
        for conflict, record in open_.items():
            questions = record["resolution"]["vote"]
            voters = {voter for question in questions for voter in question["voters"]}
            if self.node != min((voter for voter in voters if voter == self.node or voter in live), default=None):
                self._polls.pop(conflict, None)
                continue
            poll = self._polls.get(conflict)
            if poll is None:
                poll = self._polls[conflict] = _Poll(questions)
                for node in self._left:
                    self._remove(poll, node)
            self._ask(conflict, record["key"], poll, out)
            out.extend(self._finish(conflict, poll))
            poll.age_ms += self._tick_ms
        return out

    def left(self, node: NodeId) -> None:
        """A member left for good: its vote goes, the majority stays that of all who were named."""
        if len(self._left) < NAMES_MAX:
            self._left.add(node)
        for poll in self._polls.values():
            self._remove(poll, node)

    def joined(self, node: NodeId) -> None:
        """A member that had left is back."""
        self._left.discard(node)

    def _remove(self, poll: _Poll, node: NodeId) -> None:
        for path, tally in poll.tallies.items():
            tally.remove(node)
            if tally.winner is None:
                poll.ballots[path].pop(node, None)

    def _ask(self, conflict: str, key: str, poll: _Poll, out: Outputs) -> None:
        own = self._replica.conflicts.ballot(conflict)
        if own is not None and self.node in poll.voters:
            self._cast(conflict, poll, self.node, own)
        if poll.age_ms >= poll.next_ms:
            poll.next_ms = poll.age_ms + ROUND_MS
            for voter in sorted(poll.voters - {self.node}):
                if any(voter not in ballots for ballots in poll.ballots.values()):
                    out.send.append((voter, VoteAsk(conflict, key)))

    def _cast(self, conflict: str, poll: _Poll, voter: NodeId, choices: Mapping[str, str]) -> None:
        record = self._replica.conflicts.get(conflict)
        known = {q["path"]: q["candidates"] for q in record["resolution"]["vote"]} if record is not None else {}
        for path, tally in poll.tallies.items():
            choice = choices.get(path, "")
            if choice in known.get(path, ()) and tally.cast(voter, choice) is Cast.COUNTED:
                poll.ballots[path][voter] = choice
        self._replica.conflicts.heard(conflict, poll.ballots)

    def _finish(self, conflict: str, poll: _Poll) -> Outputs:
        if not poll.ended or conflict not in self._polls:
            return Outputs()
        for tally in poll.tallies.values():
            tally.close()
        del self._polls[conflict]
        conflicts = self._replica.conflicts
        record = conflicts.get(conflict)
        if record is None or record["status"] != "pending":
            return Outputs()
        winners = {path: tally.winner for path, tally in poll.tallies.items() if tally.winner is not None}
        key = record["key"]
        present = conflicts.candidates(key)
        if any(sorted(present.get(q["path"], ())) != sorted(q["candidates"]) for q in record["resolution"]["vote"]):
            return Outputs()  # newer versions came: their own vote follows
        values = {path: record["resolution"]["values"].get(path) for path in present}
        values |= {path: present[path][winner] for path, winner in winners.items()}
        conflicts.vote_ended(conflict, key, poll.ballots, winners)
        by = "a vote" if len(winners) == len(poll.tallies) else "no majority, so the fallback"
        try:
            decide(self._replica, key, conflicts.shown(key), values, by)
        except StaleContextError:
            return Outputs()
        except NovaError as error:  # a value that the key may not take any more
            conflicts.vote_failed(conflict, key, str(error))
            return Outputs()
        ended = VoteEnded(conflict, key, poll.ballots, winners)
        return Outputs(send=[(voter, ended) for voter in sorted(poll.voters - {self.node})])


class Asking:
    """The `Asker` of a store: it notes what is to be asked, and leaves the conflict pending until a vote has ended."""

    def ask(self, question: Question) -> Iterable[Ballot]:
        noted = _noted.get()
        if noted is not None and question not in noted:
            noted.append(question)
        raise UnavailableError(f"{', '.join(question.voters)} are asked; until they have decided")


ASKING: Final = Asking()
_noted: ContextVar[list[Question] | None] = ContextVar("nova.store.votes", default=None)


@contextmanager
def noting() -> Iterator[list[Question]]:
    """What strategies ask while this is open."""
    questions: list[Question] = []
    token = _noted.set(questions)
    try:
        yield questions
    finally:
        _noted.reset(token)


def counted(questions: list[dict[str, Any]], ballots: Mapping[str, Mapping[NodeId, str]],
            winners: Mapping[str, str], values: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:  # fmt: skip
    """The `vote` events of an ended vote, one for each path."""
    out = []
    for question in questions:
        path, named = question["path"], values.get(question["path"], {})
        words = {id: show(value) for id, value in named.items()}
        winner = winners.get(path)
        out.append(
            vote_body(
                f"{path or 'the value'}: {' or '.join(words.values())}?",
                {voter: words.get(choice, choice) for voter, choice in sorted(ballots.get(path, {}).items())},
                voters=len(question["voters"]),
                needed=len(question["voters"]) // 2 + 1,
                outcome=words.get(winner, winner) if winner is not None else None,
            )
        )
    return out


__all__ = ["VOTE_MESSAGES", "VoteAsk", "VoteCast", "VoteEnded", "Votes", "counted"]
