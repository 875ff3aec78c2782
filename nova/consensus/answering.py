"""A member's side of its clients, without its sockets: what it takes from whom, and who is told what became of it.

All that waits has a bound. Beyond it commands are refused at once, and told when to come again; and no later command of
the session is taken from that stream before the refused one came again, so that none overtakes another.

What a stream asked for that has ended is forgotten here: its client asks elsewhere, and if not, then nobody waits.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Final

import msgspec

from nova.consensus.core import Command, OverloadedError
from nova.consensus.dialogue import (
    MESSAGE_BYTES_MIN,
    OVERLOADED,
    TOO_LARGE,
    Answers,
    Open,
    Opened,
    Propose,
    Refused,
    Reply,
)
from nova.consensus.sessions import OPEN, Code, Outcome
from nova.errors import LimitError, PeerError, UnavailableError, UsageError

STALLED_MAX: Final = 64
"""Sessions of one stream of which a command was refused."""
RETRY_NS_MIN: Final = 5_000_000
RETRY_NS_MAX: Final = 5_000_000_000

Connection = Any
"""Names a stream from a client; hashable."""
Name = tuple[int, int, bytes]


class ServingOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What an operator may set of a member's port for clients.

    connections_max      clients at a time; more are refused
    calls_max            commands of all clients that wait for an answer here, which bounds how long one waits under
                         overload; and as many reads
    connection_calls_max of one of them, and as many reads
    message_bytes_max    of one message from a client
    queue_bytes_max      of answers that a client has not taken; a client that has more is dropped
    """

    connections_max: int = 1_024
    calls_max: int = 16_384
    connection_calls_max: int = 4_096
    message_bytes_max: int = 4 * 1024 * 1024
    queue_bytes_max: int = 32 * 1024 * 1024

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            value = getattr(self, name)
            least = MESSAGE_BYTES_MIN if name == "message_bytes_max" else 1
            if value < least:
                raise UsageError(f"{name} is {value}; give {least} or more")


class _Client:
    __slots__ = ("answers", "calls", "out", "position", "reads", "stalled")

    def __init__(self) -> None:
        self.calls = self.reads = 0
        self.stalled: OrderedDict[int, int] = OrderedDict()  # session -> the command that has to come first
        self.out: list[Reply] = []
        self.answers: dict[int, list[tuple[int, Outcome]]] = {}
        self.position = 0


class Answering:
    """All clients of one member.

    submit             takes a command (`ReplicatedMachine.submit`); raises OverloadedError: not now; UnavailableError:
                       not here
    forget             nobody waits for this one any more
    command_bytes_max  of data and key
    """

    def __init__(
        self,
        submit: Callable[[Command], None],
        forget: Callable[[Command], None],
        *,
        command_bytes_max: int,
        options: ServingOptions | None = None,
    ) -> None:
        self._submit, self._forget = submit, forget
        self._command_bytes_max = command_bytes_max
        self.options = options or ServingOptions()
        self._clients: dict[Connection, _Client] = {}
        self._waiting: dict[Name, Connection] = {}
        self._ready: dict[Connection, None] = {}
        self.reads = 0
        self.refused = 0
        """Commands and reads that were refused, so far."""
        self.answers = 0
        """Commands that were answered, so far."""
        self._answers_before = 0
        self._per_tick, self._tick_ns = 0.0, 0

    def __len__(self) -> int:
        return len(self._clients)

    @property
    def calls(self) -> int:
        """Commands of clients that wait for an answer."""
        return len(self._waiting)

    @property
    def connections(self) -> list[Connection]:
        """All of them."""
        return list(self._clients)

    # -- streams --

    def connected(self, connection: Connection) -> None:
        """A client is there. Raises UnavailableError if there are too many."""
        limit = self.options.connections_max
        if len(self._clients) >= limit:
            raise UnavailableError(f"{len(self._clients)} clients are connected, the limit; ask another member")
        self._clients[connection] = _Client()

    def disconnected(self, connection: Connection) -> None:
        """It is gone; what it waits for is not waited for any more."""
        client = self._clients.pop(connection, None)
        self._ready.pop(connection, None)
        if client is None:
            return
        self.reads -= client.reads
        if client.calls:
            for name in [name for name, waits in self._waiting.items() if waits == connection]:
                del self._waiting[name]
                self._forget(Command(name[0], name[1], name[2]))

    def say(self, connection: Connection, reply: Reply) -> None:
        """Tell a client something that is not about its commands."""
        client = self._clients.get(connection)
        if client is not None:
            client.out.append(reply)
            self._ready[connection] = None

    def take(self) -> list[tuple[Connection, Reply]]:
        """What is to be sent now."""
        out: list[tuple[Connection, Reply]] = []
        for connection in self._ready:
            client = self._clients[connection]
            for session, outcomes in client.answers.items():
                out.append((connection, Answers(session, outcomes, client.position)))
            client.answers = {}
            if client.out:
                out += [(connection, reply) for reply in client.out]
                client.out = []
        self._ready = {}
        return out

    @property
    def ready(self) -> bool:
        """`take` has something."""
        return bool(self._ready)

    # -- commands --

    def open(self, connection: Connection, message: Open) -> None:
        """A client wants a session. Raises PeerError, UnavailableError: it should ask elsewhere."""
        if not 1 <= len(message.nonce) <= 64:
            raise PeerError(f"a session is to be opened with a nonce of {len(message.nonce)} bytes; give 16")
        client = self._clients[connection]
        try:
            self._take(connection, client, Command(0, OPEN, message.nonce))
        except OverloadedError as error:
            self._refuse(connection, client, 0, 0, error)

    def propose(self, connection: Connection, message: Propose) -> None:
        """A client wants commands applied. Raises PeerError, UnavailableError: it should ask elsewhere."""
        session, number = message.session, message.first
        if session < 1 or number < 1 or number + len(message.commands) >= OPEN:
            raise PeerError(f"command {number} of session {session}; both are numbers from 1")
        client = self._clients[connection]
        if client.stalled:
            awaited = client.stalled.get(session)
            if awaited is not None:
                if number > awaited:  # sent before the client knew that an earlier one was refused
                    return
                del client.stalled[session]
        limit = self._command_bytes_max
        for data, key in message.commands:
            try:
                if len(data) + len(key) > limit:
                    raise LimitError(f"a command of {len(data) + len(key)} bytes; the limit is {limit}: split it")
                self._take(connection, client, Command(session, number, data, key))
            except (OverloadedError, LimitError) as error:
                client.stalled[session] = number
                if len(client.stalled) > STALLED_MAX:
                    raise PeerError(
                        f"commands of {len(client.stalled)} sessions were refused; the limit is {STALLED_MAX}"
                    ) from None
                self._refuse(connection, client, session, number, error)
                return
            number += 1

    def _take(self, connection: Connection, client: _Client, command: Command) -> None:
        name = (command.session, command.sequence, b"" if command.session else command.data)
        waiting = self._waiting
        before = waiting.get(name)
        if before is None:
            self._room(len(waiting), client.calls, "commands")
            self._submit(command)
            client.calls += 1
        elif before != connection:  # the same client, by a newer stream
            self._clients[before].calls -= 1
            client.calls += 1
        waiting[name] = connection

    def _room(self, all_count: int, count: int, what: str) -> None:
        options = self.options
        if all_count >= options.calls_max:
            raise OverloadedError(
                f"{all_count} {what} of clients wait for an answer, the limit: try again when some are answered",
                self.retry_after_ns,
            )
        if count >= options.connection_calls_max:
            raise OverloadedError(
                f"{count} {what} of this client wait for an answer, the limit: try again when some are answered",
                self.retry_after_ns,
            )

    def _refuse(
        self, connection: Connection, client: _Client, session: int, number: int, error: OverloadedError | LimitError
    ) -> None:
        self.refused += 1
        code, retry_ns = TOO_LARGE, 0
        if isinstance(error, OverloadedError):
            code, retry_ns = OVERLOADED, min(error.retry_after_ns, self.retry_after_ns)
        client.out.append(Refused(session, number, code, str(error), retry_ns))
        self._ready[connection] = None

    def answered(self, command: Command, outcome: Outcome, position: int) -> None:
        """A command that was submitted here was applied, or refused by its session."""
        name = (command.session, command.sequence, b"" if command.session else command.data)
        connection = self._waiting.pop(name, None)
        if connection is None:
            return
        self.answers += 1
        client = self._clients[connection]
        client.calls -= 1
        client.position = position
        self._ready[connection] = None
        if command.session:
            answers = client.answers.get(command.session)
            if answers is None:
                client.answers[command.session] = [(command.sequence, outcome)]
            else:
                answers.append((command.sequence, outcome))
        elif outcome.code is Code.OK:
            client.out.append(Opened(command.data, int.from_bytes(outcome.data, "big")))

    # -- reads --

    def reading(self, connection: Connection) -> None:
        """A client asks a query: `read_done` follows. Raises OverloadedError."""
        client = self._clients[connection]
        try:
            self._room(self.reads, client.reads, "reads")
        except OverloadedError:
            self.refused += 1
            raise
        client.reads += 1
        self.reads += 1

    def read_done(self, connection: Connection) -> None:
        """It has its answer."""
        client = self._clients.get(connection)
        if client is not None:
            client.reads -= 1
            self.reads -= 1

    # -- pace --

    def tick(self, tick_ns: int) -> None:
        """A tick has passed: how fast answers come."""
        self._tick_ns = tick_ns
        self._per_tick += (self.answers - self._answers_before - self._per_tick) / 16
        self._answers_before = self.answers

    @property
    def retry_after_ns(self) -> int:
        """When half of what waits should have its answer, at the pace of late."""
        if self._per_tick < 0.01:
            return 200_000_000
        return min(RETRY_NS_MAX, max(RETRY_NS_MIN, int(len(self._waiting) / 2 / self._per_tick * self._tick_ns)))
