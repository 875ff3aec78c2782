# nova/_native/raft.pyx - Raft while nothing happens: a leader that everybody follows, entries, acknowledgements, commits
#
# nova.consensus.raft.core is Raft, all of it. What comes over and over between a leader and followers that keep up is
# done here once more, compiled. Each method first looks whether what came is of that kind, and if not returns None and
# has changed nothing; so the rules for all that is rare stand in one place, in Python.
from cpython.bytes cimport PyBytes_GET_SIZE
from cpython.dict cimport PyDict_GetItemWithError
from cpython.object cimport PyObject

cdef extern from "Python.h":
    long long PyLong_AsLongLongAndOverflow(object number, int *overflow) except? -1

cdef enum:
    VOTERS_MAX = 15     # more are counted in Python
    COMMANDS = 0        # nova.consensus.core.Kind
    NOOP = 1

cdef long long POSITION_MAX = 1 << 62   # what is beyond is no position, and is left to Python


cdef inline long long number(object value) except? -1:
    """A position, token or size that a peer may have sent; -1 for what can be none."""
    cdef int overflow = 0
    cdef long long found = PyLong_AsLongLongAndOverflow(value, &overflow)
    return found if overflow == 0 and 0 <= found <= POSITION_MAX else -1


cdef class LogState:
    """What `EntryLog` holds."""

    cdef long long last_position(self) except? -1:
        cdef long long offset = self.offset
        if not 0 <= offset <= POSITION_MAX:
            raise OverflowError(f"position {offset} is none; the highest is {POSITION_MAX}")
        return offset + len(self.entries)

    cdef object newest_term(self):
        """The term of the last entry, or of what is compacted before it."""
        cdef Py_ssize_t count = len(self.entries)
        return self.entries[count - 1].term if count else self.offset_term

    cdef object term_at(self, long long position):
        """The term of an entry that is in memory, or of the one before these; None of any other."""
        cdef long long place = position - <long long>self.offset - 1
        if place == -1:
            return self.offset_term
        return self.entries[place].term if 0 <= place < len(self.entries) else None

    cdef long long durable_at(self, long long token) except? -1:
        """Up to where all is durable when this token is. Forgets what that settles."""
        cdef long long durable = self.durable
        cdef tuple sync
        while self._syncing:
            sync = <tuple?>self._syncing[0]
            if <long long>sync[0] > token:
                break
            durable = max(durable, <long long>sync[1])
            self._syncing.popleft()
        return durable


cdef class ProgressState:
    """What `Progress` holds."""


cdef class RaftState:
    """What `Raft` holds, as far as it is looked at here."""


cdef class Steady:
    """Takes what is of the usual kind.

    append .. outputs       the types of messages, entries, events and outputs
    pack                    entries as the bytes of a record
    follower .. replicate   what `role` and the mode of a progress are compared to
    """

    def __init__(self, append, reply, entry, committed, persisted, outputs, pack, follower, leader, replicate):
        self.append, self.reply, self.entry, self.committed = append, reply, entry, committed
        self.persisted, self.outputs, self.pack = persisted, outputs, pack
        self.follower, self.leader, self.replicate = follower, leader, replicate

    cdef object made(self, list persist, list send, list apply, list early):
        out = self.outputs.__new__(self.outputs)    # half the price of a dataclass's own __init__
        out.persist, out.send, out.apply, out.early = persist, send, apply, early
        return out

    def step(self, RaftState core not None, sender, message):
        """An append of the leader that is followed, or an acknowledgement of it."""
        kind = type(message)
        try:
            if kind is self.append:
                return self.follow(core, sender, message)
            if kind is self.reply:
                return self.lead(core, sender, message)
        except OverflowError:   # a position of ours that is none: so far nothing has changed
            pass
        return None

    cdef object commit(self, RaftState core, long long position):
        """Commit up to there: the event."""
        cdef LogState log = core.log
        cdef long long offset = log.offset, first = max(<long long>core._told, offset) - offset
        cdef tuple entries = tuple(log.entries[first:position - offset])
        core.committed = core._told = position
        return self.committed(entries)

    cdef object follow(self, RaftState core, object sender, object message):
        cdef LogState log = core.log
        cdef long long last = log.last_position(), position = last, committed
        cdef tuple entries
        if core.role is not self.follower or core._leader != sender or core._sealed_at is not None:
            return None
        if message.term != core.term or number(message.previous) != last or <long long>core.committed > last:
            return None
        if message.previous_term != log.newest_term():
            return None
        entries = <tuple?>message.entries
        if not entries:
            return None
        for entry in entries:
            position += 1
            if number(entry.position) != position or not COMMANDS <= <int>entry.kind <= NOOP:
                return None
        committed = number(message.committed)
        if committed < 0:
            return None
        core._elapsed = core._heard = 0
        log.entries += entries
        core._token = token = core._token + 1
        log._syncing.append((token, position))
        cdef list events = [self.persisted(token)]
        committed = min(committed, position)
        if committed > <long long>core.committed:
            events.append(self.commit(core, committed))
        reply = self.reply(core.term, position)
        return self.made([b"E" + self.pack(entries)], [(sender, reply)], events, [])

    def propose(self, RaftState core not None, entries not None):
        """Commands for followers that have all that is in the log, or are on the way to."""
        try:
            return self.replicate_all(core, entries)
        except OverflowError:
            return None

    cdef object replicate_all(self, RaftState core, object entries):
        cdef LogState log = core.log
        cdef ProgressState progress
        cdef long long last = log.last_position(), size = 0, position = last, count = 0
        cdef tuple made
        cdef list fresh = [], early = []
        options = core.options
        if core.role is not self.leader or core._sealed_at is not None or core._transferee is not None:
            return None
        for kind, data in entries:
            if kind != COMMANDS or type(data) is not bytes:
                return None
            size += PyBytes_GET_SIZE(data)
            count += 1
        if not 0 < count <= <long long>options.append_entries_max:
            return None
        if size + 16 * count > <long long>options.append_bytes_max:
            return None
        if <long long>core._uncommitted_bytes + size > <long long>options.uncommitted_bytes_max:
            return None
        for progress in core._progress.values():
            if progress.mode is not self.replicate or <long long>progress.next != last + 1:
                return None
            if (len(progress.flying) >= <long long>options.flying_count_max
                    or <long long>progress.flying_bytes >= <long long>options.flying_bytes_max):
                return None
        term = core.term
        for kind, data in entries:
            position += 1
            fresh.append(self.entry(position, term, kind, data))
        made = tuple(fresh)
        before = log.newest_term()
        log.entries += fresh
        core._uncommitted_bytes += size
        message = self.append(term, last, before, core.committed, made)     # one for all: it is encoded once
        for peer, progress in core._progress.items():
            early.append((peer, message))
            progress.next = position + 1
            progress.flying.append((position, size))
            progress.flying_bytes += size
        core._token = token = core._token + 1
        log._syncing.append((token, position))
        return self.made([b"E" + self.pack(made)], [], [self.persisted(token)], early)

    cdef long long stored(self, RaftState core, object peer, long long matched, long long durable) except -2:
        """What a majority has when `peer` has `matched` and we `durable`; -1 if that is not for us to count."""
        cdef long long found[VOTERS_MAX]
        cdef long long each
        cdef Py_ssize_t count = 0, place
        cdef bint votes = False
        cdef PyObject *known
        if not core._configurations:
            return -1
        cdef tuple newest = <tuple?>core._configurations[len(core._configurations) - 1]
        members = newest[1]
        cdef tuple voters = <tuple?>members.voters
        if len(voters) > VOTERS_MAX or members.outgoing or <long long>newest[0] > <long long>core.committed:
            return -1
        for voter in voters:
            if voter == core.node:
                each, votes = durable, True
            elif peer is not None and voter == peer:
                each = matched
            else:
                known = PyDict_GetItemWithError(core._progress, voter)
                each = (<ProgressState?><object>known).matched if known != NULL else 0
            place = count
            while place and found[place - 1] < each:    # the greatest first
                found[place] = found[place - 1]
                place -= 1
            found[place] = each
            count += 1
        return found[count // 2] if votes else -1

    cdef object lead(self, RaftState core, object sender, object message):
        cdef LogState log = core.log
        cdef ProgressState progress
        cdef PyObject *known
        cdef long long last = log.last_position(), matched = number(message.matched), position, before
        cdef list events = []
        if core.role is not self.leader or message.term != core.term or message.rejected:
            return None
        known = PyDict_GetItemWithError(core._progress, sender)
        if known == NULL or not 0 < matched <= last or core._transferee is not None:
            return None
        progress = <ProgressState?><object>known
        if progress.mode is not self.replicate or <long long>progress.next != last + 1:
            return None
        before = progress.matched
        position = self.stored(core, sender, max(matched, before), log.durable)
        if not self.counts(core, position):
            return None
        progress.active, progress.paused = True, False
        while progress.flying and <long long>progress.flying[0][0] <= matched:
            progress.flying_bytes -= progress.flying.popleft()[1]
        if matched > before:
            progress.matched, progress.quiet = matched, 0
        if position > <long long>core.committed:
            events.append(self.commit(core, position))
            self.lighter(core, <tuple?>events[0].entries)
        return self.made([], [], events, [])

    cdef bint counts(self, RaftState core, long long position) except *:
        """A majority up to there means what it usually means: nothing new, or a commit of entries of this term, and
        nothing else waits for that."""
        if position < 0:
            return False
        if position <= <long long>core.committed:
            return True
        # Replicas of an entry of an earlier term prove nothing (5.4.2): but behind a commit of this term there are only
        # entries of it. It also has let go on the reads that waited for such a commit.
        return core.log.term_at(core.committed) == core.term and core._sealed_at is None

    cdef int lighter(self, RaftState core, tuple entries) except -1:
        """These are committed: they count no more as proposed and not committed."""
        cdef long long size = 0
        for entry in entries:
            size += len(entry.data)
        core._uncommitted_bytes -= size
        return 0

    def advance(self, RaftState core not None, token):
        """Records of a leader, or of a follower, are durable."""
        try:
            return self.synced(core, token)
        except OverflowError:
            return None

    cdef object synced(self, RaftState core, object token):
        cdef LogState log = core.log
        cdef long long upto, durable, position, waits
        cdef list send = [], events = []
        cdef bint leads = core.role is self.leader
        cdef tuple held
        if not leads and core.role is not self.follower:
            return None
        log.last_position()     # it is one
        upto = max(<long long>token, <long long>core._durable_token)
        if leads:
            durable = log.durable
            for sync in log._syncing:
                if <long long>sync[0] > <long long>token:
                    break
                durable = max(durable, <long long>sync[1])
            position = self.stored(core, None, 0, durable)
            if not self.counts(core, position):
                return None
        core._durable_token = upto
        log.durable = log.durable_at(token)
        while core._held:
            held = <tuple?>core._held[0]
            if <long long>held[0] > upto:
                break
            core._held.popleft()
            if held[2].term == core.term:   # an older promise would say less than what was promised since
                send.append((held[1], held[2]))
        if leads and position > <long long>core.committed:
            events.append(self.commit(core, position))
            self.lighter(core, <tuple?>events[0].entries)
        return self.made([], send, events, [])
