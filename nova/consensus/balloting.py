"""Votes of a consensus group: what `ConsensusVote` asks, and who answers it.

    box = BallotBox()                                        the machine of every member of the group
    voter = Voter("a", engine, choose); await voter.run()    at each voter
    ConsensusVote(("a", "b", "c"), GroupAsker(engine, loop)) at whoever resolves

A question, each ballot and the end of the vote are commands of the group, so there is one record of each vote, in one
order, and it ends once: when a majority has it, when none can, or when the first of those who ask has no more time.
Whoever asks the same question, then or later, is told that record, and resolves alike.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Sequence
from hashlib import blake2b
from typing import Any, Final, Protocol

import msgspec

from nova.conflict.strategies.vote import Ballot, Candidate, Cast, Question, Tally
from nova.consensus.core import Command, OverloadedError
from nova.errors import CorruptionError, UnavailableError, UsageError

QUESTIONS_MAX: Final = 10_000
CHOICE_CHARS_MAX: Final = 64
POLL_MS: Final = 20

_pack = msgspec.msgpack.Encoder(order="deterministic").encode


class Asked(msgspec.Struct, frozen=True, array_like=True, tag="a"):
    """Command: this is asked. Asked again, nothing changes."""

    id: bytes
    question: Question


class Voted(msgspec.Struct, frozen=True, array_like=True, tag="v"):
    """Command: a ballot."""

    id: bytes
    voter: str
    choice: str


class Closed(msgspec.Struct, frozen=True, array_like=True, tag="c"):
    """Command: time is up."""

    id: bytes


class Vote(msgspec.Struct, array_like=True):
    """Query and record: a question, the ballots in their order, and whether the vote has ended."""

    question: Question
    ballots: list[tuple[str, str]] = []
    ended: bool = False


class OpenTo(msgspec.Struct, frozen=True, array_like=True, tag="o"):
    """Query: what this voter has not answered yet."""

    voter: str


class RecordOf(msgspec.Struct, frozen=True, array_like=True, tag="r"):
    """Query: the record of a question."""

    id: bytes


_commands: Any = msgspec.msgpack.Decoder(Asked | Voted | Closed)
_queries: Any = msgspec.msgpack.Decoder(OpenTo | RecordOf)
_records: Any = msgspec.msgpack.Decoder(list[tuple[bytes, Vote]])
_record: Any = msgspec.msgpack.Decoder(Vote | None)

DONE, FULL, UNKNOWN, MALFORMED = b"done", b"full", b"unknown", b"malformed"


class BallotBox:
    """The machine: votes by question.

    questions_max  beyond, the oldest vote that has ended is forgotten; if none has, no more is asked
    """

    def __init__(self, questions_max: int = QUESTIONS_MAX) -> None:
        if questions_max < 1:
            raise UsageError(f"questions_max is {questions_max}; give 1 or more")
        self._questions_max = questions_max
        self._votes: dict[bytes, Vote] = {}

    def apply(self, commands: Sequence[Command]) -> list[bytes]:
        """An answer for each: `done`, `full`, `unknown` (question) or `malformed`."""
        return [self._one(command.data) for command in commands]

    def _one(self, data: bytes) -> bytes:
        try:
            command = _commands.decode(data)
        except (msgspec.MsgspecError, ValueError):
            return MALFORMED
        if isinstance(command, Asked):
            return self._ask(command)
        vote = self._votes.get(command.id)
        if vote is None:
            return UNKNOWN
        if isinstance(command, Closed):
            vote.ended = True
        elif not vote.ended:
            self._cast(vote, command)
        return DONE

    def _ask(self, asked: Asked) -> bytes:
        if asked.id in self._votes:
            return DONE
        try:
            Tally(asked.question.voters)
        except UsageError:
            return MALFORMED
        if len(self._votes) >= self._questions_max:
            over = next((id for id, vote in self._votes.items() if vote.ended), None)
            if over is None:
                return FULL
            del self._votes[over]
        self._votes[asked.id] = Vote(asked.question, [])
        return DONE

    def _cast(self, vote: Vote, ballot: Voted) -> None:
        """Keep what counts, and the first word of a voter that contradicts itself: whoever resolves tells of it."""
        choice = ballot.choice[:CHOICE_CHARS_MAX]
        tally = _counted(vote)
        known = any(candidate.id == choice for candidate in vote.question.candidates)
        said = [before for voter, before in vote.ballots if voter == ballot.voter]
        if ballot.voter not in tally.voters or choice in said or len(said) > 1:
            return
        vote.ballots.append((ballot.voter, choice))
        if known and tally.cast(ballot.voter, choice) is Cast.COUNTED:
            vote.ended = tally.winner is not None or tally.hopeless

    def read(self, query: bytes) -> bytes:
        """Raises UsageError for what is no query."""
        try:
            asked = _queries.decode(query)
        except (msgspec.MsgspecError, ValueError) as error:
            raise UsageError(f"no query of a ballot box: {error}") from None
        if isinstance(asked, RecordOf):
            return _pack(self._votes.get(asked.id))
        return _pack(
            [
                (id, vote)
                for id, vote in self._votes.items()
                if not vote.ended
                and asked.voter in vote.question.voters
                and all(voter != asked.voter for voter, _ in vote.ballots)
            ]
        )

    def snapshot(self) -> bytes:
        """All votes."""
        return _pack(list(self._votes.items()))

    def restore(self, data: bytes) -> None:
        """Replace them. Raises CorruptionError."""
        try:
            self._votes = dict(_records.decode(data))
        except (msgspec.MsgspecError, ValueError) as error:
            raise CorruptionError(f"a state of {len(data)} bytes holds no votes: {error}") from None


def _counted(vote: Vote) -> Tally:
    tally = Tally(vote.question.voters)
    known = {candidate.id for candidate in vote.question.candidates}
    for voter, choice in vote.ballots:
        if choice in known:
            tally.cast(voter, choice)
    return tally


def question_id(question: Question) -> bytes:
    """The same for all who ask the same, however long they have."""
    candidates = [candidate.id for candidate in question.candidates]
    named = (question.conflict_id, question.resource_id, question.path, candidates, question.voters)
    return blake2b(_pack(named), digest_size=16, person=b"nova.ballots").digest()


# ------------------------------------------------------------------------------------------------ asking and answering


class Group(Protocol):
    """A `ConsensusEngine` or a `ConsensusClient` of a group whose machine is a `BallotBox`."""

    async def propose(self, data: bytes, key: bytes = b"", *, timeout_s: float | None = None) -> bytes:
        """Have a command applied."""

    async def read(self, query: bytes, *, timeout_s: float | None = None) -> bytes:
        """Have a query answered, linearizably."""


class GroupAsker:
    """The `Asker` of a `ConsensusVote`. `ask` waits, so call `resolve` on another thread than that of the group's loop.

    loop     the one on which `group` lives
    poll_ms  how often it looks whether a vote has ended
    """

    def __init__(self, group: Group, loop: asyncio.AbstractEventLoop, *, poll_ms: int = POLL_MS) -> None:
        if poll_ms < 1:
            raise UsageError(f"poll_ms is {poll_ms}; give 1 or more")
        self._group, self._loop, self._poll_s = group, loop, poll_ms / 1000

    def ask(self, question: Question) -> Iterable[Ballot]:
        """The ballots that the group recorded, when the vote has ended.

        raises  UnavailableError if the group does not answer: the vote may go on without this asker, so where replicas
                must not differ, resolve again later (`otherwise=None`). UsageError on the loop's own thread
        """
        running: asyncio.AbstractEventLoop | None = None
        with contextlib.suppress(RuntimeError):
            running = asyncio.get_running_loop()
        if running is self._loop:
            raise UsageError("a vote waits for others, and would stop this loop: resolve in asyncio.to_thread")
        return asyncio.run_coroutine_threadsafe(self.asked(question), self._loop).result()

    async def asked(self, question: Question) -> list[Ballot]:
        """The same, for who is on the loop."""
        id = question_id(question)
        try:
            data = _pack(Asked(id, question))
        except (TypeError, ValueError, OverflowError) as error:
            raise UsageError(f"the candidates of {question.resource_id!r} cannot be sent: {error}") from None
        answer = await self._group.propose(data)
        if answer == FULL:
            raise OverloadedError("the group has too many votes that have not ended; try again later")
        if answer != DONE:
            raise UsageError(f"the group does not take a question of {question.resource_id!r}: {answer.decode()}")
        end = self._loop.time() + question.timeout_ms / 1000 if question.timeout_ms else None
        while True:
            vote: Vote | None = _record.decode(await self._group.read(_pack(RecordOf(id))))
            if vote is None:
                raise UnavailableError(f"the vote about {question.resource_id!r} was forgotten; ask again")
            if vote.ended:
                return [Ballot(voter, choice) for voter, choice in vote.ballots]
            if end is not None and self._loop.time() >= end:
                await self._group.propose(_pack(Closed(id)))  # for all: what was counted until then is what counts
                end = None
                continue
            await asyncio.sleep(self._poll_s)


class Voter:
    """One that is asked.

    choose   the id of a candidate of the question, or None: no vote
    """

    def __init__(
        self, name: str, group: Group, choose: Callable[[Question], str | None], *, poll_ms: int = POLL_MS
    ) -> None:
        if poll_ms < 1:
            raise UsageError(f"poll_ms is {poll_ms}; give 1 or more")
        self.name = name
        self._group, self._choose, self._poll_s = group, choose, poll_ms / 1000
        self._abstained: set[bytes] = set()

    async def run(self) -> None:
        """Vote when asked, until cancelled. A ballot that was recorded stays, whatever this voter forgets."""
        while True:
            with contextlib.suppress(UnavailableError):  # no leader, or no time: what is open stays so
                await self.vote()
            await asyncio.sleep(self._poll_s)

    async def vote(self) -> int:
        """Answer what is open now; how many ballots were cast. Raises what the group's calls raise."""
        open_ = _records.decode(await self._group.read(_pack(OpenTo(self.name))))
        self._abstained &= {id for id, _ in open_}
        count = 0
        for id, vote in open_:
            if id in self._abstained:
                continue
            choice = self._choose(vote.question)
            if choice is None:
                self._abstained.add(id)
                continue
            await self._group.propose(_pack(Voted(id, self.name, choice)))
            count += 1
        return count


__all__ = ["BallotBox", "Candidate", "Group", "GroupAsker", "Question", "Voter", "question_id"]
