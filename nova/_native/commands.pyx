# nova/_native/commands.pyx - what each command of a group passes on its way: who waits for it, the queue, its session
#
# What is done once for each command, and the loops over a batch; all that is rare is Python, in nova/consensus. Nothing
# here knows a type of that package: commands, outcomes and events come in, or are made by types that were handed in.
cimport cython
from cpython.bytes cimport PyBytes_CheckExact
from cpython.dict cimport PyDict_GetItemWithError
from cpython.object cimport PyObject

from nova.errors import CorruptionError

cdef extern from "Python.h":
    long long PyLong_AsLongLongAndOverflow(object number, int *overflow) except? -1

cdef Py_ssize_t OVERHEAD_BYTES = 24     # of a command in an entry, at most
cdef long long FLOOR_MAX = 1 << 62      # no client counts so far, and what counts on from there does not overflow


# --- sessions ---------------------------------------------------------------------------------------------------------


cdef class Session:
    """What one client was told. `floor`: every sequence up to it was applied. Above it `answers` may hold some, where
    order is per key."""

    def __init__(self, long long floor=0, dict answers=None):
        if not 0 <= floor <= FLOOR_MAX:
            raise ValueError(f"the floor of a session is {floor}; it lies between 0 and {FLOOR_MAX}")
        self.floor = floor
        self.answers = {} if answers is None else answers

    def reserve(self, long long sequence, told, long long window):
        """Note the answer to a command; those that are `window` older than the floor are forgotten."""
        self.answers[sequence] = told
        absorb(self, window)


cdef int absorb(Session session, long long window) except -1:
    while session.floor + 1 in session.answers:
        session.floor += 1
        session.answers.pop(session.floor - window, None)
    return 0


cdef unsigned long long rounds = 0      # of apply_fresh: tells which batch the `seen` of a session is of


def apply_fresh(sessions not None, commands not None, apply, outcome, ok, bint ordered, long long window):
    """Apply a batch of the usual kind: each command is the next one of a session that is known. An outcome for each;
    None, and nothing has changed, if the batch is of another kind.

    sessions  an OrderedDict, id -> Session; where its order counts (`ordered`), those that are used go to its end
    apply     the machine's
    outcome   makes the outcome of `ok` and what the machine said
    raises    CorruptionError if the machine gave more or fewer answers than it got commands
    """
    global rounds
    cdef list found = [], numbers = [], runs = [], out
    cdef Session session = None
    cdef PyObject *known
    cdef object id, last = None, command, sequence, told
    cdef tuple answers
    cdef long long number
    cdef int overflow = 0
    cdef Py_ssize_t count, i, run = 0
    rounds += 1
    for command in commands:
        id = command.session
        if last is None or id != last:
            known = PyDict_GetItemWithError(sessions, id) if id else NULL
            if known == NULL:
                return None
            session = <Session?><object>known
            last = id
            runs.append(id)
            if session.round != rounds:
                session.round = rounds
                session.seen = session.floor
        sequence = command.sequence
        number = PyLong_AsLongLongAndOverflow(sequence, &overflow)
        if overflow or number != session.seen + 1 or PyDict_GetItemWithError(session.answers, sequence) != NULL:
            return None
        session.seen = number
        found.append(session)
        numbers.append(sequence)
    count = len(found)
    if count == 0:
        return []
    answers = tuple(apply(list(commands)))
    if len(answers) != count:
        raise CorruptionError(f"the machine gave {len(answers)} answers to {count} commands")
    out = [None] * count
    session = None
    for i in range(count):
        if found[i] is not session:
            if session is not None:
                absorb(session, window)
            session = <Session>found[i]
            if ordered:
                sessions.move_to_end(runs[run])
                run += 1
        told = outcome(ok, answers[i])
        out[i] = told
        session.answers[numbers[i]] = told
        session.floor += 1
        if session.floor > window:
            session.answers.pop(session.floor - window, None)
    if session is not None:
        absorb(session, window)
    return out


# --- what was submitted here ------------------------------------------------------------------------------------------


@cython.no_gc     # a command holds no more than bytes
cdef class Pending:
    """A command that waits here for its answer. `retries`: it takes effect once, however often it is proposed."""

    def __init__(self, command, bint retries):
        self.command = command
        self.retries = retries
        self.queued = True


cdef inline tuple name(object command):
    session = command.session
    return (session, command.sequence, b"") if session else (session, command.sequence, command.data)


def name_of(command):
    """What tells a command from all others that fly."""
    return name(command)


def submit(dict pending not None, queue not None, command, opening, limits):
    """Queue a command, unless it waits for its answer already. Whether it was taken: not beyond `limits`, which has
    queue_max, pending_max and entry_bytes_max. `opening`: sequence of those that open a session."""
    cdef tuple named
    if (len(queue) >= <Py_ssize_t>limits.queue_max or len(pending) >= <Py_ssize_t>limits.pending_max
            or len(command.data) > <Py_ssize_t>limits.entry_bytes_max):
        return False
    named = name(command)
    if PyDict_GetItemWithError(pending, named) == NULL:
        pending[named] = Pending(command, command.session != 0 or command.sequence == opening)
        queue.append(command)
    return True


def take(queue not None, Py_ssize_t count_max, Py_ssize_t bytes_max):
    """The commands that come next, at most so many, and bytes, but one at least, out of the queue (a deque)."""
    cdef list batch = []
    cdef Py_ssize_t size = 0, count = 0
    pop = queue.popleft
    while queue and count < count_max:
        command = queue[0]
        size += len(command.data) + len(command.key) + OVERHEAD_BYTES
        if count and size > bytes_max:
            break
        batch.append(pop())
        count += 1
    return batch


def proposed(dict pending not None, list batch not None):
    """These are on their way: they wait for no turn any more."""
    cdef PyObject *found
    if not pending:
        return
    for command in batch:
        found = PyDict_GetItemWithError(pending, name(command))
        if found != NULL:
            (<Pending?><object>found).queued = False


def aged(dict pending not None, long long retry_ticks):
    """A tick has passed. Whether there are some to propose again: so long after they were proposed last."""
    cdef Pending each
    cdef bint late = False
    for each in pending.values():
        each.age += 1
        late = late or (not each.queued and each.age >= retry_ticks and each.retries)
    return late


def answer(dict pending not None, commands not None, list outcomes not None, position, event, gap,
           long long retry_ticks):
    """An `event` (command, outcome, position) for each of these commands of an entry that waited here, which it does no
    more; but for those behind a gap, which are not applied: they are due to be proposed again."""
    cdef list out = []
    cdef tuple named, told
    cdef PyObject *found
    cdef Py_ssize_t i
    if not pending:
        return out
    if len(commands) != len(outcomes):
        raise CorruptionError(f"{len(outcomes)} outcomes of {len(commands)} commands")
    told = tuple(outcomes)
    for i, command in enumerate(tuple(commands)):
        named = name(command)
        found = PyDict_GetItemWithError(pending, named)
        if found == NULL:
            continue
        outcome = told[i]
        if outcome.code is gap:
            # What is missing before it is proposed again when its time has come, and it soon after.
            (<Pending?><object>found).age = retry_ticks
            continue
        del pending[named]
        out.append(event(command, outcome, position))
    return out


# --- who waits --------------------------------------------------------------------------------------------------------


@cython.no_gc     # nobody who waits knows of it
cdef class Call:
    """A command that is waited for.

    waiter   a future, or who waits for several; then `place` is 0 or more, among them
    began_s  on the caller's clock
    timed    it fails when the time of all calls is over; else its caller sees to that
    """

    def __init__(self, waiter, Py_ssize_t place, double began_s, data, key, bint timed=False):
        self.waiter, self.place, self.began_s, self.data, self.key = waiter, place, began_s, data, key
        self.timed = timed

    cdef int tell(self, object answer) except -1:
        if self.place >= 0:
            self.waiter.settle(self.place, answer)
        elif not self.waiter.done():
            if PyBytes_CheckExact(answer):
                self.waiter.set_result(answer)
            else:
                self.waiter.set_exception(answer)
        return 0

    def settle(self, answer not None):
        """Tell who waits: bytes, or an error."""
        self.tell(answer)


cdef class CallTable:
    """What flies, by its number in the session, and behind it what waits to. `nova.consensus.callers.Callers` is one.

    submit     takes a command
    command    makes one, of (session, sequence, data, key)
    later      the errors of `submit` after which the command may be taken later
    ok         code of an outcome that is an answer
    """

    def __init__(self, submit, command, tuple later not None, ok, backlog, Py_ssize_t window, Py_ssize_t calls_max):
        self.submit, self.command, self.later, self.ok = submit, command, later, ok
        self.window, self.calls_max = window, calls_max
        self.session = 0
        self._flying = {}
        self.backlog = backlog

    def __len__(self):
        return len(self._flying) + len(self.backlog)

    cpdef admit(self, Py_ssize_t count):
        """Raise what `_overloaded` gives if so many more are too many."""
        if len(self._flying) + len(self.backlog) + count > self.calls_max:
            raise self._overloaded(count)

    def ask_one(self, data, key, waiter, double now_s, bint timed=False):
        """Take a command. Raises as `admit`; then it was not taken."""
        cdef Call call
        self.admit(1)
        call = Call(waiter, -1, now_s, data, key, timed)
        if self.session and not self.backlog and len(self._flying) < self.window:  # the usual case, without the queue
            if self.fly(call):
                return
            self.backlog.append(call)
            return
        self.backlog.append(call)
        self.pump()

    cpdef bint fly(self, Call call) except *:
        """Submit a command as the next one of the session; whether it was taken."""
        try:
            self.submit(self.command(self.session, self._sequence + 1, call.data, call.key))
        except self.later:
            return False
        self._sequence += 1
        self._flying[self._sequence] = call
        return True

    cdef Call answer(self, object command, object outcome):
        cdef Call call
        if not command.session or command.session != self.session:
            self._opened(command, outcome)
            return None
        call = self._flying.pop(command.sequence, None)
        if call is None:
            return None
        if outcome.code is self.ok:
            self._answered += 1
            call.tell(outcome.data)
        else:
            self._refused(command, outcome, call)
        return call

    def answered(self, command, outcome):
        """A command was applied, or refused; who waited for it, if anybody did."""
        return self.answer(command, outcome)

    def overdue(self, double before_s):
        """Who began before that and still waits, oldest first: of those whose time is that of all."""
        cdef list late = []
        cdef Call call
        for waiting in (self._flying.values(), self.backlog):
            for call in waiting:
                if call.timed and not call.waiter.done():
                    if call.began_s >= before_s:
                        break
                    late.append(call.waiter)
        return late


cdef class Answers:
    """Takes the events of a member: those of `kind` that answer calls are settled here; all others go on to `other`.

    observe  told of each answer how long it took, in seconds of `clock`
    pump     called when there is room for what waits behind what flies
    fatal    called with an error that the settling of an answer should never raise
    """

    def __init__(self, CallTable calls not None, kind, *, observe, clock, pump, other, fatal):
        self.calls, self.kind, self.observe, self.clock = calls, kind, observe, clock
        self.pump, self.other, self.fatal = pump, other, fatal

    def __call__(self, event):
        cdef Call call
        if type(event) is not self.kind:
            self.other(event)
            return
        try:
            call = self.calls.answer(event.command, event.outcome)
            if call is None:
                self.other(event)
            else:
                self.observe(self.clock() - call.began_s)
            if self.calls.backlog:
                self.pump()
        except Exception as error:
            self.fatal(error)


# --- reads ------------------------------------------------------------------------------------------------------------


def found(read, queries not None, outcome, ok, refused):
    """The outcome of each query: what the machine reads. A query changes nothing, so one that the machine can't answer
    is the asker's trouble, not the member's: `refused`, with the error."""
    cdef list out = []
    for query in queries:
        try:
            out.append(outcome(ok, read(query)))
        except Exception as error:
            out.append(outcome(refused, f"{type(error).__name__}: {error}".encode()))
    return out


def settle_reads(list asked not None, outcomes not None, ok, refuse):
    """Tell who asked, each a tuple that begins (query, future); `refuse` makes the error of an outcome that is not `ok`.

    raises  CorruptionError if there are more, or fewer, outcomes than were asked for: then nobody was told
    """
    cdef tuple told = tuple(outcomes)
    cdef Py_ssize_t i = 0
    if len(told) != len(asked):
        raise CorruptionError(f"{len(told)} outcomes of {len(asked)} queries")
    for each in tuple(asked):
        future, outcome, i = each[1], told[i], i + 1
        if future.done():
            continue
        if outcome.code is ok:
            future.set_result(outcome.data)
        else:
            future.set_exception(refuse(outcome))
