"""Votes about conflicts: named nodes are asked, a majority of all of them decides, and the outcome is a write.

Who votes for what is settled when a voter finds the conflict: for the value that it had first. That ballot is an event
of its audit trail before anybody hears of it, so it is the same however often it is asked for, also after a crash. One
node counts: of the voters that are alive the one with the least name; if it comes to no end, after some seconds the
next one, too, and so on. Two may count at once, also when they are cut off from each other: both see the same ballots,
so they can't find different majorities. The outcome is written over exactly the versions that were voted on (see
`nova.store.decisions`): if there is a newer one by then, there is a new conflict and vote.

Without a majority (a tie, voters that left, a time-out) the values that the strategy's fallback gave are written
instead; if that is a person, the conflict waits for one. How it ended is told to every member, and who missed that asks
for it: so each trail can tell who voted for what.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, Final

import msgspec

from nova.conflict.strategies.vote import Cast, Tally
from nova.errors import NovaError, PeerError, StaleContextError
from nova.store.decisions import decide
from nova.types import NodeId, Outputs

if TYPE_CHECKING:
    from nova.store.core import Replica

ROUND_MS: Final = 500
TAKEOVER_MS: Final = 5_000
NEVER_MS: Final = 1 << 62
POLLS_MAX: Final = 500
"""A node counts so many votes at once; their order is that in which it found them."""
ROUNDS_MAX: Final = 40
"""How often a node asks how a vote ended."""
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
    ballots: Mapping[str, Mapping[NodeId, str]]
    winners: Mapping[str, str]


VOTE_MESSAGES: Final = (VoteAsk, VoteCast, VoteEnded)


class _Poll:
    """A vote that is being counted."""

    def __init__(self, questions: list[dict[str, Any]]) -> None:
        self.tallies = {question["path"]: Tally(question["voters"]) for question in questions}
        self.candidates = {question["path"]: frozenset(question["candidates"]) for question in questions}
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
        self._since_ms: dict[str, int] = {}
        self._rounds: dict[str, int] = {}
        self._age_ms = 0
        self._live: set[NodeId] = set()
        self._left: set[NodeId] = set()

    def step(self, sender: NodeId, message: Any) -> Outputs:
        """Take a message. Raises PeerError for an end that no vote can have, as one of other voters."""
        ballots = self._replica.conflicts.ballots
        match message:
            case VoteAsk(conflict, key):
                if (ended := ballots.ended(conflict)) is not None:
                    return Outputs(send=[(sender, VoteEnded(conflict, key, *ended))])
                if (choices := ballots.ballot(conflict)) is not None:
                    return Outputs(send=[(sender, VoteCast(conflict, choices))])
            case VoteCast(conflict, choices):
                poll = self._polls.get(conflict)
                if poll is not None:
                    self._cast(conflict, poll, sender, choices)
                    return self._finish(conflict, poll)
            case VoteEnded(conflict, key, cast, winners):
                if not ballots.end(conflict, key, cast, winners):
                    raise PeerError(
                        f"{sender} says that {dict(winners)} won the vote {conflict} about {key!r} by {cast}, which "
                        "is no majority of its voters for one of its candidates; configure the same voters on both"
                    )
        return Outputs()

    def tick(self, live: Collection[NodeId]) -> Outputs:
        """Let a tick pass; `live` are the other members that are alive."""
        out = Outputs()
        if not self._age_ms:  # what the trail does not tell any more, the rows do
            for key in self._replica.conflicts.unrecorded():
                self._replica.examine_again(key)
        self._live = {node for node in live if node != self.node}
        self._age_ms += self._tick_ms
        open_ = self._replica.conflicts.ballots.open()
        for conflict in self._polls.keys() - open_.keys():
            del self._polls[conflict]
        self._since_ms = {id: self._since_ms.get(id, self._age_ms) for id in open_}
        turns: dict[tuple[NodeId, ...], int] = {}
        for conflict, record in open_.items():
            questions = record["resolution"]["vote"]
            voters = tuple(voter for question in questions for voter in question["voters"])
            if voters not in turns:
                turns[voters] = self._turn(voters)
            if self._age_ms - self._since_ms[conflict] < turns[voters]:
                self._polls.pop(conflict, None)
                continue
            poll = self._polls.get(conflict)
            if poll is None:
                if len(self._polls) >= POLLS_MAX:
                    continue
                poll = self._polls[conflict] = _Poll(questions)
                for node in self._left:
                    self._remove(poll, node)
            self._ask(conflict, record["key"], poll, out)
            out.extend(self._finish(conflict, poll))
            poll.age_ms += self._tick_ms
        if self._age_ms % ROUND_MS < self._tick_ms:
            self._ask_how_it_ended(out)
        return out

    def _turn(self, voters: Collection[NodeId]) -> int:
        """After how many milliseconds it is on this node to count: those before it have some time each."""
        if self.node not in voters:
            return NEVER_MS
        return TAKEOVER_MS * sum(voter < self.node for voter in self._live.intersection(voters))

    def _ask_how_it_ended(self, out: Outputs) -> None:
        over, peers = self._replica.conflicts.ballots.unheard(), sorted(self._live)
        self._rounds = {conflict: self._rounds.get(conflict, 0) + 1 for conflict in over}
        for conflict, rounds in self._rounds.items():
            if rounds > ROUNDS_MAX:
                del over[conflict]  # nobody knows: an ordinary write ended it
            elif peers:
                out.send.append((peers[rounds % len(peers)], VoteAsk(conflict, over[conflict])))

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
        own = self._replica.conflicts.ballots.ballot(conflict)
        if own is not None and self.node in poll.voters:
            self._cast(conflict, poll, self.node, own)
        if poll.age_ms >= poll.next_ms:
            poll.next_ms = poll.age_ms + ROUND_MS
            for voter in sorted(poll.voters - {self.node}):
                if any(voter not in ballots for ballots in poll.ballots.values()):
                    out.send.append((voter, VoteAsk(conflict, key)))

    def _cast(self, conflict: str, poll: _Poll, voter: NodeId, choices: Mapping[str, str]) -> None:
        for path, tally in poll.tallies.items():
            choice = choices.get(path, "")
            if choice in poll.candidates[path] and tally.cast(voter, choice) is Cast.COUNTED:
                poll.ballots[path][voter] = choice
        self._replica.conflicts.ballots.heard(conflict, poll.ballots)

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
        key, asked = record["key"], record["resolution"]["vote"]
        if conflicts.shown(key) != conflict:
            return Outputs()  # newer versions came: their own vote follows
        winners = {path: tally.winner for path, tally in poll.tallies.items() if tally.winner is not None}
        conflicts.ballots.end(conflict, key, poll.ballots, winners)
        ended = VoteEnded(conflict, key, poll.ballots, winners)
        told = Outputs(send=[(peer, ended) for peer in sorted(self._live)])
        if not conflicts.ballots.waits(record):
            return told  # somebody has to decide: they did not agree, or not about all of it
        values = dict(record["resolution"]["values"])
        for question in asked:
            if (winner := winners.get(question["path"])) is not None:
                values[question["path"]] = question["values"][question["candidates"].index(winner)]
        by = "a vote" if len(winners) == len(poll.tallies) else "no majority, so the fallback"
        try:
            decide(self._replica, key, conflict, values, by)
        except StaleContextError:
            return Outputs()
        except NovaError as error:  # a value that the key may not take any more
            conflicts.ballots.fail(conflict, key, str(error))
            return Outputs()
        return told


__all__ = ["VOTE_MESSAGES", "VoteAsk", "VoteCast", "VoteEnded", "Votes"]
