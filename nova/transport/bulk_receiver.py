"""The receiving side of bulk transfers: a listener, and one receiver for each object that is expected."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypedDict, Unpack

from nova._native.bulk import CRC32C, Board, BulkStream
from nova.errors import (
    CorruptionError,
    LimitError,
    NovaError,
    PeerError,
    TransferCancelledError,
    UnavailableError,
    UsageError,
)
from nova.transport.base import Identity
from nova.transport.bulk_journal import Plan
from nova.transport.bulk_lane import ANSWER_SECONDS, error_of, is_local, with_suppressed
from nova.transport.bulk_place import Place, PlaceLike, place_of
from nova.transport.bulk_wire import (
    CHUNKS_MAX,
    BulkReceipt,
    Call,
    Finish,
    Finished,
    Go,
    Message,
    Missing,
    Once,
    Open,
    Progress,
    Ready,
    Wait,
    check_key,
    default_identity,
    host_and_port,
    refusal,
    tune,
)
from nova.transport.tcp import join_address

__all__ = ["BulkListener", "BulkReceiver", "ReceiveOptions", "bulk_recv"]

logger = logging.getLogger("nova.transport")

BACKLOG = 128
CONNECTIONS_MAX = 256
STREAMS_MAX = 64
TICK_SECONDS = 0.05
PATIENCE_SECONDS = 1.0
SYNC_SECONDS = 1.0
FINISHED_MAX = 64


class ReceiveOptions(TypedDict, total=False):
    """What `bulk_recv` and `BulkListener.receive` take by name; `bulk_recv` describes it."""

    transfer: int | None
    journal: str | os.PathLike[str] | None
    size_max: int
    memory_bytes_max: int
    streams_max: int
    sync_bytes: int
    deadline_s: float | None
    idle_s: float | None


class BulkListener:
    """Takes the streams of bulk transfers at one address and gives them to the receivers that expect them.

    address   host:port, port 0 picks one; `address` of the object is the one in use
    key       the cluster key, 32 bytes or more; without one only on loopback
    identity  who this is; both sides must be of one cluster
    raises    UsageError if the address cannot be had
    """

    def __init__(
        self, address: str = "127.0.0.1:0", *, key: bytes | None = None, identity: Identity | None = None
    ) -> None:
        host, port = host_and_port(address)
        check_key(address, key)
        self.key = key
        self.identity = identity or default_identity()
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            self._server = socket.create_server((host, port), family=family, backlog=BACKLOG)
        except OSError as error:
            text = "in use by another process" if error.errno == errno.EADDRINUSE else (error.strerror or "").lower()
            raise UsageError(f"cannot listen on {address}: {text}; choose an address of this machine") from None
        name = self._server.getsockname()
        self.address = join_address(name[0], name[1])
        self._changed = threading.Condition()
        self._expecting: list[BulkReceiver] = []
        self._finished: dict[int, bytes] = {}
        self._connections: set[socket.socket] = set()
        self._closed = False
        self._thread = threading.Thread(target=self._accept, name="nova-bulk-listener", daemon=True)
        self._thread.start()

    def __enter__(self) -> BulkListener:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def receive(self, into: PlaceLike = None, **options: Unpack[ReceiveOptions]) -> BulkReceiver:
        """Expect one object; `bulk_recv` describes the arguments. Nothing is taken before it is iterated."""
        return BulkReceiver(self, into, **options)

    def close(self) -> None:
        """Stop listening, break what is under way. May be called twice."""
        with self._changed:
            self._closed = True
            expecting, connections = list(self._expecting), list(self._connections)
            self._changed.notify_all()
        with_suppressed(lambda: self._server.shutdown(socket.SHUT_RDWR))
        self._server.close()
        for receiver in expecting:
            receiver.cancel()
        for sock in connections:
            with_suppressed(lambda sock=sock: sock.shutdown(socket.SHUT_RDWR))  # type: ignore[misc]
        self._thread.join()

    # -- what receivers call -------------------------------------------------------------------------------------

    def expect(self, receiver: BulkReceiver) -> None:
        with self._changed:
            if self._closed:
                raise UsageError("this listener is closed; make a new one")
            self._expecting.append(receiver)
            self._changed.notify_all()

    def forget(self, receiver: BulkReceiver, root: bytes | None) -> None:
        """It expects nothing any more; the digest of what it got is told to a sender that asks once more."""
        with self._changed:
            if receiver in self._expecting:
                self._expecting.remove(receiver)
            if root is not None:
                self._finished[receiver.transfer or 0] = root
                while len(self._finished) > FINISHED_MAX:
                    self._finished.pop(next(iter(self._finished)))

    # -- inside --------------------------------------------------------------------------------------------------

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._server.accept()
            except OSError:
                if self._closed:
                    return
                time.sleep(0.01)  # out of descriptors: whoever has them gives them back
                continue
            with self._changed:
                full = len(self._connections) >= CONNECTIONS_MAX
                if not full:
                    self._connections.add(sock)
            if full or self._closed:
                logger.warning("a connection is refused: %s are open", CONNECTIONS_MAX)
                sock.close()
                continue
            threading.Thread(target=self._serve, args=(sock,), name="nova-bulk-stream", daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        try:
            tune(sock)
            call = Call(sock, self.identity, key=self.key, initiator=False, seconds=ANSWER_SECONDS)
            try:
                self._answer(call, call.recv())
            except (NovaError, OSError) as error:
                if isinstance(error, PeerError):
                    raise
                call.send(refusal(error))
        except (NovaError, OSError) as error:
            logger.warning("a stream of a bulk transfer ended: %s", error)
        finally:
            with self._changed:
                self._connections.discard(sock)
            sock.close()

    def _answer(self, call: Call, message: Message) -> None:
        if not isinstance(message, Open | Finish):
            raise PeerError(f"node {call.peer.node!r} began with {type(message).__name__}; a stream begins with Open")
        receiver = self._receiver_of(call, message)
        if receiver is None:
            root = self._finished.get(message.transfer)
            if isinstance(message, Finish) and root == message.root:
                call.send(Finished(root))
                return
            if isinstance(message, Open) and root is not None and message.size <= message.chunk_bytes * CHUNKS_MAX:
                # A sender that was killed before it heard of the end asks again: it has only to tell its digest.
                chunks = -(-message.size // message.chunk_bytes)
                call.send(Ready(1, 1, b"\xff" * ((chunks + 7) // 8)))
                call.recv()
                return
            raise UnavailableError(f"nobody here expects transfer {message.transfer:016x}; call bulk_recv there")
        if isinstance(message, Open):
            receiver.serve(call, message)
        else:
            receiver.finish(call, message)

    def _receiver_of(self, call: Call, message: Open | Finish) -> BulkReceiver | None:
        """Whoever has this transfer already, else the first that would take it; waits a little for one to come."""
        until = time.monotonic() + PATIENCE_SECONDS
        with self._changed:
            while not self._closed:
                for receiver in self._expecting:
                    if receiver.transfer == message.transfer:
                        return receiver
                if isinstance(message, Open):
                    for receiver in self._expecting:
                        if receiver.transfer is None:
                            receiver.judge(call, message)
                            receiver.transfer = message.transfer
                            return receiver
                if message.transfer in self._finished:
                    break
                if not self._changed.wait(until - time.monotonic()) or time.monotonic() > until:
                    break
        return None


class BulkReceiver:
    """One object that is expected. Iterating receives it and tells how far it is; `receipt` is there after the loop.

    Leaving the loop early, or `cancel` in any thread, ends the transfer; what is on disk stays, to be gone on with.
    """

    def __init__(
        self,
        listener: BulkListener,
        into: PlaceLike = None,
        *,
        transfer: int | None = None,
        journal: str | os.PathLike[str] | None = None,
        size_max: int = 2**63 - 1,
        memory_bytes_max: int = 1 << 30,
        streams_max: int = STREAMS_MAX,
        sync_bytes: int = 64 * 1024 * 1024,
        deadline_s: float | None = None,
        idle_s: float | None = 60.0,
    ) -> None:
        if not 1 <= streams_max <= STREAMS_MAX:
            raise UsageError(f"{streams_max} streams; a receiver takes from 1 to {STREAMS_MAX}")
        self.transfer = transfer
        self._once = Once("BulkReceiver")
        self._listener = listener
        self._place: Place = place_of(
            into, journal=None if journal is None else Path(journal), memory_bytes_max=memory_bytes_max
        )
        self._size_max = size_max
        self._streams_max = streams_max
        self._sync_bytes = sync_bytes
        self._deadline_s, self._idle_s = deadline_s, idle_s
        self._incarnation = int.from_bytes(os.urandom(8), "big") >> 1 | 1
        self._changed = threading.Condition()
        self._opened: tuple[Plan, str] | None = None
        self._board: Board | None = None
        self._root: bytes | None = None
        self._answer: Finished | NovaError | None = None
        self._streams: set[BulkStream] = set()
        self._asking = 0
        self._heard_of = False
        self._error: Exception | None = None
        self._cancelled = self._discarded = False
        self._resumed_bytes = self._gone_bytes = self._peak = 0
        self._started_ns = self._heard_ns = time.monotonic_ns()
        self.receipt: BulkReceipt | None = None

    # -- what users call -----------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Progress]:
        """Raises CorruptionError, UnavailableError, LimitError, UsageError, TransferCancelledError, as `bulk_recv`."""
        self._once.begin()
        self._started_ns = self._heard_ns = time.monotonic_ns()
        self._listener.expect(self)
        try:
            yield from self._await_opening()
            board = self._prepare()
            yield from self._move(board)
            self._complete(board)
            yield self.progress
        except BaseException as error:
            self._fail(error if isinstance(error, NovaError) else TransferCancelledError("the receiver was cancelled"))
            raise
        finally:
            self._close()

    def cancel(self) -> None:
        """End it from any thread."""
        with self._changed:
            self._cancelled = True
            self._changed.notify_all()
        if self._board is not None:
            self._board.poke()

    @property
    def progress(self) -> Progress:
        board, seconds = self._board, (time.monotonic_ns() - self._started_ns) / 1e9
        if board is None:
            return Progress(self.transfer or 0, 0, self._opened[0].size if self._opened else 0, 0, seconds)
        return Progress(self.transfer or 0, board.done_bytes, board.size, len(self._streams), seconds)

    # -- what the listener calls, in the thread of a connection ---------------------------------------------------

    def judge(self, call: Call, message: Open) -> None:
        """Raises LimitError or UsageError for an object that this receiver would never take."""
        if message.size > self._size_max:
            raise LimitError(f"object of {message.size} bytes is over the limit of {self._size_max}; raise size_max")
        if message.size > message.chunk_bytes * CHUNKS_MAX:
            raise LimitError(f"{message.size} bytes in chunks of {message.chunk_bytes}: over {CHUNKS_MAX} chunks")
        if call.keyed and message.digest == CRC32C:
            raise UsageError("a transfer with a cluster key has the digest blake3")

    def serve(self, call: Call, message: Open) -> None:
        """One stream, from its Open to its end."""
        self.judge(call, message)
        board = self._join(call, message)
        stream = BulkStream(board)
        with self._changed:
            if len(self._streams) >= self._streams_max:
                raise UnavailableError(f"{self._streams_max} streams of this transfer are open; no more are taken")
            self._streams.add(stream)
            self._peak = max(self._peak, len(self._streams))
        try:
            known = message.known == self._incarnation
            call.send(Ready(self._incarnation, self._streams_max, None if known else board.map()))
            if not isinstance(call.recv(), Go):
                raise PeerError(f"node {call.peer.node!r} did not say Go")
            code = stream.run(call.release().fileno(), *call.keys(False))
            error = error_of(code, stream.cause, f"node {call.peer.node!r}")
            if error is not None:
                logger.warning("a stream of transfer %016x ended: %s", message.transfer, error)
                if is_local(code):
                    self._fail(error)
        finally:
            with self._changed:
                self._streams.discard(stream)
                self._gone_bytes += stream.moved_bytes
                self._changed.notify_all()
            board.poke()

    def finish(self, call: Call, message: Finish) -> None:
        """The sender has sent all: hear what the digest comes to."""
        board = self._board
        if board is None or not board.complete:
            call.send(Missing())
            return
        with self._changed:
            self._root = message.root
            self._asking += 1
        try:
            board.poke()
            self._patiently(call, lambda: self._answer is not None)
            assert self._answer is not None
            if isinstance(self._answer, NovaError):
                call.send(refusal(self._answer))
                return
            call.send(self._answer)
            with contextlib.suppress(NovaError):
                self._heard_of = isinstance(call.recv(), Go)
        finally:
            with self._changed:
                self._asking -= 1
                self._changed.notify_all()

    # -- inside --------------------------------------------------------------------------------------------------

    def _join(self, call: Call, message: Open) -> Board:
        """The board, once it is prepared; the first stream says what for."""
        plan = Plan(message.transfer, message.size, message.chunk_bytes, message.digest)
        with self._changed:
            if self._opened is None:
                self._opened = plan, message.name
                self._changed.notify_all()
            if self._opened[0] != plan:
                raise UsageError(
                    f"transfer {message.transfer:016x} is of {self._opened[0].size} bytes in chunks of "
                    f"{self._opened[0].chunk_bytes}; another one with the same number was begun"
                )
        self._patiently(call, lambda: self._board is not None or self._error is not None)
        if self._error is not None:
            raise self._error
        assert self._board is not None
        return self._board

    def _patiently(self, call: Call, ready: Callable[[], bool]) -> None:
        """Wait for the thread that iterates, and tell the other side so."""
        while True:
            with self._changed:
                if self._changed.wait_for(ready, PATIENCE_SECONDS):
                    return
            call.send(Wait())

    def _check(self, now_ns: int) -> None:
        if self._cancelled:
            raise TransferCancelledError(self._so_far("cancelled"))
        if self._error is not None:
            raise self._error
        if self._deadline_s is not None and now_ns - self._started_ns > self._deadline_s * 1e9:
            raise UnavailableError(self._so_far(f"not finished within {self._deadline_s:g} s"))
        if self._idle_s is not None and now_ns - self._heard_ns > self._idle_s * 1e9:
            raise UnavailableError(self._so_far(f"nothing came for {self._idle_s:g} s"))

    def _so_far(self, what: str) -> str:
        now = self.progress
        return f"bulk_recv {what}: {now.done_bytes} of {now.size_bytes} bytes are here; the same call goes on"

    def _await_opening(self) -> Iterator[Progress]:
        while self._opened is None:
            self._check(time.monotonic_ns())
            with self._changed:
                self._changed.wait_for(lambda: self._opened is not None or self._cancelled, TICK_SECONDS)
            yield self.progress

    def _prepare(self) -> Board:
        assert self._opened is not None
        plan, _ = self._opened
        try:
            board = self._place.prepare(plan)
        except OSError as error:
            raise UnavailableError(f"the destination cannot be made: {(error.strerror or '').lower()}") from error
        self._resumed_bytes = board.done_bytes
        self._heard_ns = time.monotonic_ns()
        with self._changed:
            self._board = board
            self._changed.notify_all()
        return board

    def _move(self, board: Board) -> Iterator[Progress]:
        """Until all is in place and the sender has told its digest; what came is made durable in between."""
        events, synced_bytes, synced_ns, seen_bytes = board.events, board.done_bytes, time.monotonic_ns(), 0
        while not (board.complete and self._root is not None):
            now_ns = time.monotonic_ns()
            done_bytes = board.done_bytes
            if done_bytes != seen_bytes:
                seen_bytes, self._heard_ns = done_bytes, now_ns
            self._check(now_ns)
            due = done_bytes - synced_bytes >= self._sync_bytes or now_ns - synced_ns > SYNC_SECONDS * 1e9
            if due and done_bytes != synced_bytes:
                self._checkpoint(board)
                synced_bytes, synced_ns = done_bytes, time.monotonic_ns()
            events = board.wait(events, TICK_SECONDS)
            yield self.progress

    def _checkpoint(self, board: Board) -> None:
        try:
            self._place.checkpoint(board)
        except OSError as error:
            raise UnavailableError(f"the destination cannot be synced: {(error.strerror or '').lower()}") from error

    def _complete(self, board: Board) -> None:
        """Compare the digests; only what is whole gets its name."""
        assert self._opened is not None
        plan, name = self._opened
        root = board.root()
        if root != self._root:
            # Nothing of it can be believed: the sender's chunks were not those of one object.
            self._discarded = True
            self._place.discard()
            raise CorruptionError(
                f"transfer {plan.transfer:016x} of {plan.size} bytes has digest {root.hex()[:16]} here and "
                f"{self._root.hex()[:16] if self._root else 'none'} at the sender: the source changed while it was "
                f"sent; send it again"
            )
        board.close()
        self._checkpoint(board)
        try:
            self._place.finish(board)
        except OSError as error:
            raise UnavailableError(f"the destination cannot be finished: {(error.strerror or '').lower()}") from error
        moved = board.done_bytes - self._resumed_bytes
        seconds = (time.monotonic_ns() - self._started_ns) / 1e9
        self.receipt = BulkReceipt(
            plan.transfer, name, plan.size, moved, self._resumed_bytes, self._peak, seconds, root,
            getattr(self._place, "data", None),
        )  # fmt: skip
        with self._changed:
            self._answer = Finished(root)
            self._changed.notify_all()

    def _fail(self, error: Exception) -> None:
        with self._changed:
            if self._error is None:
                self._error = error
            if self._answer is None:
                self._answer = error if isinstance(error, NovaError) else UnavailableError(str(error))
            self._changed.notify_all()
        if self._board is not None:
            self._board.close()

    def _close(self) -> None:
        """Wait until no stream touches the destination, then let go of it."""
        whole = self.receipt is not None
        if self._board is not None:
            self._board.close()
        with self._changed:
            self._changed.wait_for(lambda: not self._streams and not self._asking, ANSWER_SECONDS)
        if self._board is not None:
            if not whole and not self._discarded:
                with contextlib.suppress(NovaError):  # why it ended is what the caller is told
                    self._checkpoint(self._board)
            self._board.release()
        self._place.close(whole=whole)
        # A sender that does not know of the end will ask again.
        told = self.receipt is None or self._heard_of
        self._listener.forget(self, None if told or self.receipt is None else self.receipt.root)


def bulk_recv(
    source: BulkListener | str,
    into: PlaceLike = None,
    *,
    key: bytes | None = None,
    identity: Identity | None = None,
    progress: Callable[[Progress], None] | None = None,
    **options: Unpack[ReceiveOptions],
) -> BulkReceipt:
    """Receive one object that `bulk_send` sends, and return when it is whole, verified and in its place.

    source            a `BulkListener`, or host:port to listen at for this object alone, with `key` and `identity`
    into              a path: the file gets its name when it is whole, until then there are NAME.part and NAME.journal,
                      from which a later call goes on; (descriptor, offset, size), with a `journal` path to go on from;
                      a writable buffer; or None, for new memory of at most memory_bytes_max (1 GiB)
    transfer          take this transfer only; else the next one that comes
    size_max          bytes; larger objects are refused
    streams_max       more are refused
    sync_bytes        how much is at risk: a file and its journal are synced that often, and every second
    deadline_s        seconds until it is given up; idle_s seconds in which nothing comes
    progress          called about twenty times a second, in this thread

    raises  CorruptionError if the digests differ in the end; UnavailableError if nothing comes, the deadline is over or
            the destination fails; LimitError or UsageError if object or destination do not fit; TransferCancelledError
    """
    if isinstance(source, str):
        with BulkListener(source, key=key, identity=identity) as listener:
            return bulk_recv(listener, into, progress=progress, **options)
    if key is not None or identity is not None:
        raise UsageError("a listener has its key and identity already; pass them to BulkListener")
    receiver = source.receive(into, **options)
    for now in receiver:
        if progress is not None:
            progress(now)
    assert receiver.receipt is not None
    return receiver.receipt
