"""A client of a group, without its sockets: what it has asked for, of whom, and what it may tell those who wait.

Commands are numbered in a session of the group's (`nova.consensus.sessions`), so each may be sent as often as it takes,
to any member: it takes effect once. What a command's caller is told follows from where it got:

  it was never sent, or the only member that it was sent to refused it    not applied, and will not be
  it was sent                                                             sent again, elsewhere if need be, until it has
                                                                          its answer; who gives up before may not know

A member that refuses a command takes no later one of the session from the same stream, until it gets this one. So the
numbers of what it refused are free, unless an earlier stream had carried them: these have to go on.

With `faults` above 0 no single member is believed: all are asked, and an answer counts when faults + 1 gave it (Castro
& Liskov 1999, 4.1). A member may lie that it refused, so then nothing that was sent is ever told to be refused.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Final

from nova.consensus.callers import Callers, Many, Waiter
from nova.consensus.core import Command, OverloadedError, UnknownOutcomeError
from nova.consensus.dialogue import (
    BATCH_BYTES,
    CONSISTENCIES,
    LINEARIZABLE,
    LOCAL,
    OVERLOADED,
    TOO_LARGE,
    Answers,
    AskStatus,
    Found,
    MemberStatus,
    Open,
    Opened,
    Propose,
    Query,
    Question,
    Refused,
    Reply,
    Standing,
)
from nova.consensus.pbft.replies import Replies
from nova.consensus.sessions import OPEN, Code, Outcome
from nova.errors import LimitError, NovaError, PeerError, UnavailableError, UsageError

OPENING_TICKS: Final = 100
"""With faults: members that cannot agree which session was opened are asked anew after so many."""

Link = Hashable
"""Names a stream to a member."""


class _Link:
    """sent_to: number of the newest command that it carried."""

    __slots__ = ("opened", "queries", "quiet", "reads_quiet", "sent_to", "stalled_ns")

    def __init__(self) -> None:
        self.sent_to = 0
        self.opened: bytes | None = None
        self.queries: list[Question] = []
        self.stalled_ns = 0
        self.quiet = self.reads_quiet = 0  # ticks without an answer, while one is owed


class _Read:
    __slots__ = ("heard", "question", "replies", "waiter")

    def __init__(self, question: Query | AskStatus, waiter: Waiter, faults: int) -> None:
        self.question, self.waiter = question, waiter
        self.replies = Replies(faults)
        self.heard: set[Link] = set()


class Asking:
    """The client.

    fresh      makes 16 bytes that nobody made before
    calls_max  commands, and as many reads, that wait for an answer
    faults     members that may lie; 0: whoever is asked is believed
    patience   ticks after which a member that owes answers and says nothing is given up
    raises     UsageError for what cannot be
    """

    def __init__(
        self, fresh: Callable[[], bytes], *, calls_max: int = 65_536, faults: int = 0, patience: int = 50
    ) -> None:
        if calls_max < 1 or faults < 0 or patience < 1:
            raise UsageError(
                f"calls_max is {calls_max}, faults {faults}, patience {patience}; give 1 or more, 0 or more, 1 or more"
            )
        self._faults, self._calls_max, self._patience = faults, calls_max, patience
        self.callers = Callers(self._submit, fresh, calls_max=calls_max)
        self._links: dict[Link, _Link] = {}
        self._doubt_to = 0  # commands up to here were carried by streams of before
        self._votes: dict[int, Replies] = {}
        self._opening_votes: tuple[bytes, Replies, int] | None = None
        self._reads: dict[int, _Read] = {}
        self._again: list[Question] = []
        self._read_id = 0
        self._now_ns = 0
        self._stall: Refused | None = None
        self.position = 0
        """Everything up to here was seen by this client: a local read shows no less."""
        self.command_bytes_max = 0
        """As the members say; 0: not known yet."""

    # -- callers --

    def ask(self, commands: Sequence[tuple[bytes, bytes]], waiter: Waiter, now_s: float) -> Waiter | Many:
        """Have (data, key) pairs applied in order. Raises OverloadedError, LimitError: then none will be."""
        if self._stall is not None:
            raise self._error_of(self._stall)
        if limit := self.command_bytes_max:
            for data, key in commands:
                if len(data) + len(key) > limit:
                    raise LimitError(f"a command of {len(data) + len(key)} bytes; the limit is {limit}: split it")
        return self.callers.ask(commands, waiter, now_s)

    def read(self, data: bytes, waiter: Waiter, consistency: str = LINEARIZABLE) -> None:
        """Have a query answered with bytes. Raises OverloadedError, UsageError."""
        if consistency not in CONSISTENCIES:
            raise UsageError(f"consistency is {consistency!r}; it is one of {', '.join(CONSISTENCIES)}")
        if consistency == LOCAL and self._faults:
            raise UsageError(
                "members need not have applied equally much, so local reads do not agree; read linearizably"
            )
        self._read_id += 1
        position = self.position if consistency == LOCAL else 0
        self._enquire(Query(self._read_id, data, consistency, position), waiter, self._faults)

    def status(self, waiter: Waiter) -> None:
        """Have a member tell how it stands (MemberStatus): its own word, faults or not. Raises OverloadedError."""
        self._read_id += 1
        self._enquire(AskStatus(self._read_id), waiter, 0)

    def _enquire(self, question: Query | AskStatus, waiter: Waiter, faults: int) -> None:
        if len(self._reads) >= self._calls_max:
            raise OverloadedError(
                f"{len(self._reads)} reads wait for an answer; the limit is {self._calls_max}: try again when some are "
                "answered",
                self.callers.retry_after_ns,
            )
        self._reads[question.id] = _Read(question, waiter, faults)
        for link in self._links.values():
            link.queries.append(question)

    @property
    def waiting(self) -> int:
        """Commands and reads that somebody waits for."""
        return len(self.callers) + len(self._reads)

    def forget_reads(self) -> None:
        """Drop the reads that nobody waits for any more."""
        self._reads = {id: read for id, read in self._reads.items() if not read.waiter.done()}

    def fail(self, error: UnavailableError) -> None:
        """The end: nothing will be answered."""
        self.callers.fail(error)
        for read in self._reads.values():
            if not read.waiter.done():
                read.waiter.set_exception(error)
        self._reads.clear()

    # -- streams --

    def linked(self, name: Link) -> None:
        """A stream to a member is there; without faults, it takes the place of the one before."""
        if not self._faults:
            for other in list(self._links):
                self.unlinked(other)
        link = self._links[name] = _Link()
        link.queries = [read.question for read in self._reads.values()]
        self.callers.pump()

    def unlinked(self, name: Link) -> None:
        """A stream has ended, or is given up."""
        link = self._links.pop(name, None)
        if link is not None:
            self._doubt_to = max(self._doubt_to, link.sent_to)
            if not self._links:
                self._stall = None

    @property
    def links(self) -> list[Link]:
        """The streams that are in use."""
        return list(self._links)

    def take(self) -> list[tuple[Link, Question]]:
        """What is to be sent now, in order."""
        out: list[tuple[Link, Question]] = []
        callers = self.callers
        for name, link in self._links.items():
            if link.queries:
                out += [(name, question) for question in link.queries]
                link.queries = []
            if link.stalled_ns > self._now_ns:
                continue
            opening = callers.opening
            if opening is not None and link.opened != opening:
                link.opened = opening
                out.append((name, Open(opening)))
            session = callers.session
            if not session:
                continue
            first, size = 0, 0
            batch: list[tuple[bytes, bytes]] = []
            for number, call in callers.flown(link.sent_to):
                weight = len(call.data) + len(call.key) + 8
                if batch and (number != first + len(batch) or size + weight > BATCH_BYTES):
                    out.append((name, Propose(session, first, batch)))
                    batch = []
                if not batch:
                    first, batch, size = number, [], 0
                batch.append((call.data, call.key))
                size += weight
                link.sent_to = number
            if batch:
                out.append((name, Propose(session, first, batch)))
        return out

    def _began(self) -> None:
        """Another session: its numbers begin at 1."""
        self._doubt_to = 0
        self._votes.clear()
        for link in self._links.values():
            link.sent_to = 0

    def tick(self, now_ns: int, tick_ns: int) -> list[Link]:
        """A tick has passed; the streams to give up, for the member behind them says nothing."""
        self._now_ns = now_ns
        self.callers.ticked(tick_ns)
        if self._stall is not None and all(link.stalled_ns <= now_ns for link in self._links.values()):
            self._stall = None
        self.callers.pump()
        if self._opening_votes is not None:
            nonce, votes, ticks = self._opening_votes
            self._opening_votes = nonce, votes, ticks + 1
            if ticks >= OPENING_TICKS and nonce == self.callers.opening:
                self._opening_votes = None
                self.callers.reopen()
        for link in self._links.values():
            link.queries += self._again
        self._again = []
        owed = self.callers.flying or self.callers.opening is not None
        silent = []
        for name, link in self._links.items():
            link.quiet = link.quiet + 1 if owed and link.stalled_ns <= now_ns else 0
            link.reads_quiet = link.reads_quiet + 1 if self._reads else 0
            if max(link.quiet, link.reads_quiet) >= self._patience:
                link.quiet = link.reads_quiet = 0
                silent.append(name)
        return silent

    def _submit(self, command: Command) -> None:
        """What `Callers` lets fly: to be taken by `take`. Without a stream it stays behind, and is known to."""
        if not self._links or self._stall is not None:
            raise OverloadedError("no member takes commands now")

    def unsendable(self, name: Link, question: Question, error: LimitError) -> None:
        """The stream takes no message as large as this. What was to follow it on this stream must not be sent."""
        if isinstance(question, Propose):
            self.step(name, Refused(question.session, question.first, TOO_LARGE, str(error), 0))
        elif isinstance(question, Query):
            read = self._reads.pop(question.id, None)
            if read is not None and not read.waiter.done():
                read.waiter.set_exception(error)

    # -- replies --

    def step(self, name: Link, message: Reply) -> None:
        """A member said this. Raises PeerError for what no member says."""
        link = self._links.get(name)
        if link is None:
            return
        if isinstance(message, Found | MemberStatus):
            link.reads_quiet = 0
        elif not isinstance(message, Standing):
            link.quiet = 0
        match message:
            case Answers(session, outcomes, position):
                if session == self.callers.session:
                    self._answers(name, session, outcomes)
                    self._see(position)
            case Opened(nonce, session):
                self._opened(name, nonce, session)
            case Refused():
                self._refused(link, message)
            case Found():
                self._found(name, message)
            case MemberStatus():
                read = self._reads.pop(message.id, None)
                if read is not None and not read.waiter.done():
                    read.waiter.set_result(message)
            case Standing():
                self.command_bytes_max = message.command_bytes_max

    def _see(self, position: int) -> None:
        if not self._faults:  # one liar could have us wait for ever
            self.position = max(self.position, position)

    def _answers(self, name: Link, session: int, outcomes: list[tuple[int, Outcome]]) -> None:
        callers = self.callers
        for number, outcome in outcomes:
            if self._faults:
                if not callers.flies(number):
                    continue
                votes = self._votes.setdefault(number, Replies(self._faults))
                if votes.add(str(name), bytes([outcome.code]) + outcome.data) is None:
                    continue
                del self._votes[number]
                outcome = _outcome_of(votes)
            if outcome.code in (Code.EXPIRED, Code.ELSEWHERE) and callers.session == session:
                callers.answered(Command(session, number, b""), outcome)
                text = "an earlier command's session has expired; this one was not sent, and will not be: ask again"
                callers.refused(1, UnavailableError(text, 0))
                return
            callers.answered(Command(session, number, b""), outcome)
        if callers.backlog:
            callers.pump()

    def _opened(self, name: Link, nonce: bytes, session: int) -> None:
        if nonce != self.callers.opening:
            return
        if not 0 < session < 1 << 64:
            raise PeerError(f"session {session} was opened; ids are from 1 to 2**64 - 1")
        data = session.to_bytes(8, "big")
        if self._faults:
            if self._opening_votes is None or self._opening_votes[0] != nonce:
                self._opening_votes = nonce, Replies(self._faults), 0
            if self._opening_votes[1].add(str(name), data) is None:
                return
            self._opening_votes = None
        self.callers.answered(Command(0, OPEN, nonce), Outcome(Code.OK, data))
        self._began()
        self.callers.pump()

    def _refused(self, link: _Link, message: Refused) -> None:
        if message.session != self.callers.session:
            return
        link.stalled_ns = self._now_ns + max(0, message.retry_after_ns)
        if message.session == 0:
            link.opened = None
        else:
            link.sent_to = min(link.sent_to, max(0, message.sequence - 1))
        if self._faults:
            return  # it may lie, or others have taken it
        error = self._error_of(message)
        free = max(message.sequence, self._doubt_to + 1) if message.session else 1
        if message.code == TOO_LARGE and free == message.sequence:
            link.stalled_ns = 0
            rest = UnavailableError(
                f"the command before this one was refused, and this one not taken: {message.text}", 0
            )
            self.callers.refused(free, error, rest)
            return
        self.callers.refused(free, error)
        self._stall = message

    def _error_of(self, message: Refused) -> NovaError:
        if message.code == TOO_LARGE:
            return LimitError(message.text)
        if message.code == OVERLOADED:
            return OverloadedError(message.text, message.retry_after_ns)
        return UnavailableError(message.text, message.retry_after_ns)

    def _found(self, name: Link, message: Found) -> None:
        read = self._reads.get(message.id)
        if read is None or not isinstance(read.question, Query):
            return
        if not self._faults:
            del self._reads[message.id]
            self._see(message.position)
            self._tell(read.waiter, message.code, message.data, message)
            return
        read.heard.add(name)
        counts = message.code in ("", UsageError.code)  # all else is said of the member, and not by the machine
        reply = message.code.encode() + b"\0" + (message.text.encode() if message.code else message.data)
        if counts and read.replies.add(str(name), reply) is not None:
            del self._reads[message.id]
            self._tell(read.waiter, message.code, message.data, message)
        elif read.heard >= self._links.keys():
            # They answered at different moments, and the state changed between: all anew, with the next tick.
            read.heard.clear()
            read.replies = Replies(self._faults)
            self._again.append(read.question)

    def _tell(self, waiter: Waiter, code: str, data: bytes, message: Found) -> None:
        if waiter.done():
            return
        if not code:
            waiter.set_result(data)
        elif code == UsageError.code:
            waiter.set_exception(UsageError(message.text))
        elif code == OVERLOADED:
            waiter.set_exception(OverloadedError(message.text, message.retry_after_ns))
        else:
            waiter.set_exception(UnavailableError(message.text, message.retry_after_ns))


def _outcome_of(votes: Replies) -> Outcome:
    accepted = votes.accepted
    assert accepted is not None
    return Outcome(Code(accepted[0]), accepted[1:])


__all__ = ["Asking", "Link", "UnknownOutcomeError"]
