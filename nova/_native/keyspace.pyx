"""The state of a replica: one observed-remove map under one vector clock. `nova.crdt.keyspace` is its face."""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.unicode cimport PyUnicode_AsUTF8AndSize, PyUnicode_DecodeUTF8
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcpy, memset

from nova._native.digest cimport (
    nova_digest, nova_digest_add, nova_digest_bytes, nova_digest_row, nova_digest_sub,
)
from nova._native.reconcile cimport Reconciler

from types import MappingProxyType

from nova.errors import CorruptionError, LimitError, PeerError, UnavailableError, UsageError
from nova.types import Dot

DEF LEAVES = 1024
DEF ACTORS_MAX = 65535
DEF COUNT_BITS = 48
DEF NO_REF = 65535
DEF GRAVES_MAX = 65536
DEF DROPS_MAX = 64
DEF WRITERS_MAX = 4096
DEF CELLS_MAX = 16384                   # they reveal about 13,000 rows; beyond that key ranges serve
DEF CELLS_MIN = 64
DEF NOTES_MIN = 65536                   # changes that are noted for the table before it is given up

cdef uint64_t COUNT_MASK = (<uint64_t>1 << COUNT_BITS) - 1
cdef bytes BATCH_MAGIC = b"NVB\x01"
cdef bytes STATE_MAGIC = b"NVS\x01"
cdef bytes SUMMARY_MAGIC = b"NVQ\x01"     # asks by the digests of key ranges; a state answers
cdef bytes SKETCH_MAGIC = b"NVK\x01"      # asks by a summary of the set of rows; a difference answers
cdef bytes DIFFERENCE_MAGIC = b"NVD\x01"
cdef uint64_t TOP = <uint64_t>1 << 63
cdef uint8_t CLEAR = 1
cdef uint64_t RETIRED = COUNT_MASK  # the count of an actor whose node has said that it is complete: every dot is known
cdef int FLOOR = -1, TOTAL = -2

leaf_count = LEAVES
key_bytes_max = 1024
cells_max = CELLS_MAX


include "keyspace_bytes.pxi"
include "keyspace_entries.pxi"


cdef uint16_t leaf_of(str key) except *:
    cdef Py_ssize_t size
    cdef const char *data = PyUnicode_AsUTF8AndSize(key, &size)
    return <uint16_t>(nova_digest_bytes(data, size, 1).lo & (LEAVES - 1))


cdef inline uint64_t id_of(uint16_t leaf, nova_digest row) noexcept:
    """A row's id in the set of rows: never 0, and it tells the key range, in which the row is then looked for."""
    return (row.lo & ~<uint64_t>(LEAVES - 1)) | leaf | TOP


@cython.final
cdef class Keyspace:
    """Every key of a replica as one observed-remove map (after Bieniusa et al. 2012, ORSWOT) under one vector clock.

    A row is (key, path, dot, stamp, value). A write supersedes the rows at its paths that its context knows; rows that
    it does not know stay beside it as siblings. Batches are applied in causal order only, each actor's dots without
    gaps, so a row that one side lacks although its clock covers the dot was removed: there are no tombstones.

    Local writes gather in an open batch, which `close_batch` ends; its bytes are what the log and the wire carry.
    """

    def __cinit__(self, str actor not None):
        self.counts = NULL
        self.hashes = NULL
        self.refs = NULL
        self.actors = []
        self.lives = []
        self.floors = {}
        self.indexes = {}
        self.entries = {}
        self.graves = {}
        self.table = []
        memset(self.leaves, 0, sizeof(self.leaves))
        memset(self.heads, 0, sizeof(self.heads))
        self.notes = NULL
        self.total.lo = self.total.hi = 0
        self.actor = actor
        self.own = self.intern(actor)

    def __dealloc__(self):
        free(self.counts)
        free(self.hashes)
        free(self.refs)
        free(self.body.at)
        free(self.notes)

    # -- actors and clocks --

    cdef uint32_t intern(self, str actor) except *:
        cdef uint32_t index, room
        cdef void *grown
        cdef Py_ssize_t size
        cdef const char *data
        found = self.indexes.get(actor)
        if found is not None:
            return found
        index = <uint32_t>len(self.actors)
        if index >= ACTORS_MAX:
            raise LimitError(f"actor {actor!r} would be number {index + 1}; a replica knows {ACTORS_MAX}; "
                             "restart this node: it then forgets the retired that no row names")
        if index >= self.room:
            room = max(self.room * 2, <uint32_t>16)
            grown = realloc(self.counts, room * sizeof(uint64_t))
            if grown == NULL:
                raise MemoryError
            self.counts = <uint64_t *>grown
            grown = realloc(self.hashes, room * sizeof(uint64_t))
            if grown == NULL:
                raise MemoryError
            self.hashes = <uint64_t *>grown
            grown = realloc(self.refs, room * sizeof(uint16_t))
            if grown == NULL:
                raise MemoryError
            self.refs = <uint16_t *>grown
            self.room = room
        data = PyUnicode_AsUTF8AndSize(actor, &size)
        self.counts[index] = 0
        self.hashes[index] = nova_digest_bytes(data, size, 0).lo
        self.refs[index] = NO_REF
        if self.is_retired(actor):
            self.counts[index] = RETIRED
        self.actors.append(actor)
        self.lives.append(life_of(actor))
        self.indexes[actor] = index
        return index

    cdef int forget_from(self, size_t first) except -1:
        """Forget the actors from number `first` on, whom only refused bytes have named: strangers must not fill the table."""
        while <size_t>len(self.actors) > first:
            del self.indexes[self.actors.pop()]
            self.lives.pop()
        return 0

    cdef bint is_retired(self, str actor) except *:
        cdef tuple life
        if not self.floors:
            return False
        life = life_of(actor)
        return life is not None and 0 <= life[1] <= self.floors.get(life[0], -1)

    cdef bint told(self, uint32_t index) noexcept:
        """Does the clock name this actor?"""
        return self.counts[index] != 0 and self.counts[index] != RETIRED

    @property
    def clock(self):
        """The vector clock of the whole replica: actor -> number of its newest operation applied here.

        Retired actors are not named. In their place stand, for their node, "node~" -> k and "node~+" -> n: all that
        the incarnations up to k ever wrote, n operations, is applied here.
        """
        cdef uint32_t i
        return {self.actors[i]: self.counts[i] for i in range(len(self.actors)) if self.told(i)}

    def count(self, str actor not None):
        """The newest operation of one actor applied here, 0 if none; 2^48 - 1 if it is retired."""
        return self.known_of(actor)

    cdef uint64_t known_of(self, str actor) except? 0xDEADBEEF:
        found = self.indexes.get(actor)
        if found is None:
            return RETIRED if self.is_retired(actor) else 0
        return self.counts[<uint32_t>found]

    # -- retirement: see nova.sync.retire --

    def operations(self, str node not None, uint64_t upto):
        """How many operations of the incarnations of `node` up to `upto` are applied here."""
        cdef uint32_t i
        cdef uint64_t out = self.count(f"{node}~+")
        for i in range(len(self.actors)):
            life = self.lives[i]
            if life is not None and life[0] == node and 0 <= life[1] <= upto and self.counts[i] != RETIRED:
                out += self.counts[i]
        return out

    def retire(self, str node not None, uint64_t upto, uint64_t total):
        """Take the actors of a node up to an incarnation out of the clock, if all that they ever wrote is here.

        total    how many operations that is
        returns  whether they are retired now and were not before; False if something of them is missing
        raises   PeerError if this replica is one of them
        """
        if self.batch_size:
            raise UsageError("a batch is open; close it before retiring actors")
        if upto <= <uint64_t>self.floors.get(node, 0) or upto >= RETIRED or total >= RETIRED:
            return False
        self.check_own(node, upto)
        if self.operations(node, upto) != total:
            return False
        self.raise_floor(node, upto, total)
        return True

    cdef int check_own(self, str node, uint64_t upto) except -1:
        life = self.lives[self.own]
        if life is not None and life[0] == node and life[1] <= upto:
            raise PeerError(f"{self.actor} is retired, {node} has run as a later incarnation: this data directory is an "
                            "old copy; move it away and start this node with --join under another name")
        return 0

    cdef int raise_floor(self, str node, uint64_t upto, uint64_t total) except -1:
        cdef uint32_t i
        cdef uint32_t floor = self.intern(f"{node}~")
        cdef uint32_t sum_of = self.intern(f"{node}~+")
        self.counts[floor], self.counts[sum_of] = upto, total
        self.floors[node] = upto
        for i in range(len(self.actors)):
            life = self.lives[i]
            if life is not None and life[0] == node and 0 <= life[1] <= upto:
                self.counts[i] = RETIRED
        return 0

    @property
    def retired_count(self):
        """How many retired actors are still named here: those whose rows, or rows written on top of them, are alive,
        and those that retired while this process ran."""
        cdef uint32_t i
        return sum([1 for i in range(len(self.actors)) if self.counts[i] == RETIRED])

    @property
    def stamp_max(self):
        """The greatest stamp ever applied: a hybrid logical clock must start above it."""
        return self.stamp_max

    def __len__(self):
        return len(self.entries)

    @property
    def entries(self):
        """key -> entry, to read: the lists of key ranges hold these entries too, and do not own them."""
        return MappingProxyType(self.entries)

    def get(self, str key not None):
        """The entry under a key, or None."""
        return self.entries.get(key)

    # -- digests --

    @property
    def digest(self):
        """128 bits over all live rows, equal on replicas with equal state (a sum, so the order does not matter)."""
        return self.total.lo.to_bytes(8, "little") + self.total.hi.to_bytes(8, "little")

    def leaf_digests(self):
        """The digests of the 1024 key ranges (by hash of the key), 16 bytes each."""
        return PyBytes_FromStringAndSize(<const char *>self.leaves, sizeof(self.leaves))

    def summary(self, cells=None):
        """What a peer is asked with for what differs; its `answer` is for `join`.

        cells   None: the digests of the key ranges (16 KiB). 0: a sketch of the set of rows (98 bytes), which reveals up
                to 10 rows that differ. Else so many cells (13 bytes each, at most `cells_max`), which reveal about four
                rows for each five of them.

        All of one instant, with the clock. The summary of the set costs what changed since the last one, or one pass
        over the rows if there is none yet or more than half as many rows as there are have changed.
        """
        cdef Bytes out
        memset(&out, 0, sizeof(out))
        try:
            put_raw(&out, PyBytes_AS_STRING(SUMMARY_MAGIC if cells is None else SKETCH_MAGIC), 4)
            self.put_clock(&out)
            if cells is None:
                put_raw(&out, self.leaves, sizeof(self.leaves))
            else:
                put_number(&out, self.rows_live)
                piece = <bytes>self.current().encode(cells=min(cells, CELLS_MAX))
                put_raw(&out, PyBytes_AS_STRING(piece), PyBytes_GET_SIZE(piece))
            return PyBytes_FromStringAndSize(<const char *>out.at, out.size)
        finally:
            free(out.at)

    cdef Reconciler current(self):
        """The summary of the set of rows as it is now.

        A write only notes its ids, which it does not feel; to put one in the table would cost it 100 ns. What is noted is
        put in when somebody asks. Too many notes, and one pass over the rows is cheaper: there is no table again.
        """
        cdef Reconciler out = self.differ
        cdef Row row
        cdef Entry entry
        cdef size_t i
        if out is None:
            out = Reconciler(cells=CELLS_MAX)
            for item in self.entries.values():
                entry = <Entry>item
                for each in rows_of(entry):
                    row = <Row>each
                    out.toggle(id_of(entry.leaf, row.digest), 1)
            self.notes_room = max(<size_t>NOTES_MIN, <size_t>(self.rows_live // 2))
            self.notes = <uint64_t *>malloc(self.notes_room * sizeof(uint64_t))
            if self.notes == NULL:
                raise MemoryError
            self.differ = out
        else:
            for i in range(self.noted):
                out.toggle(self.notes[i] | TOP, 1 if self.notes[i] & TOP else <uint32_t>-1)
        self.noted = 0
        return out

    cdef int put_clock(self, Bytes *out) except -1:
        cdef uint32_t i
        put_number(out, sum([1 for i in range(len(self.actors)) if self.told(i)]))
        for i in range(len(self.actors)):
            if self.told(i):
                put_text(out, self.actors[i])
                put_number(out, self.counts[i])
        return 0

    cdef nova_digest digest_of(self, str key, Row row) except *:
        cdef Py_ssize_t nkey, npath
        cdef const char *at_key = PyUnicode_AsUTF8AndSize(key, &nkey)
        cdef const char *path = PyUnicode_AsUTF8AndSize(row.path, &npath)
        cdef Write w = row.write
        return nova_digest_row(
            at_key, nkey, path, npath, self.hashes[w.packed >> COUNT_BITS],
            (w.packed & COUNT_MASK) | <uint64_t>w.kind << 56, w.stamp,
            PyBytes_AS_STRING(row.value), PyBytes_GET_SIZE(row.value))

    cdef uint64_t place_of(self, str key, Row row) except *:
        """A hash of where a row is and which write put it there, whatever it holds."""
        cdef Py_ssize_t nkey, npath
        cdef const char *at_key = PyUnicode_AsUTF8AndSize(key, &nkey)
        cdef const char *path = PyUnicode_AsUTF8AndSize(row.path, &npath)
        return nova_digest_row(at_key, nkey, path, npath, self.hashes[row.write.packed >> COUNT_BITS],
                               row.write.packed & COUNT_MASK, 0, NULL, 0).lo

    cdef int count_row(self, Entry entry, Row row, bint added) except -1:
        cdef nova_digest d
        cdef uint64_t id
        if added:
            row.digest = self.digest_of(entry.key, row)
        d = row.digest
        if added:
            self.total = nova_digest_add(self.total, d)
            self.leaves[entry.leaf] = nova_digest_add(self.leaves[entry.leaf], d)
            self.rows_live += 1
        else:
            self.total = nova_digest_sub(self.total, d)
            self.leaves[entry.leaf] = nova_digest_sub(self.leaves[entry.leaf], d)
            self.rows_live -= 1
        if self.notes != NULL:
            if self.noted == self.notes_room:
                free(self.notes)
                self.notes = NULL
                self.differ = None
                return 0
            id = id_of(entry.leaf, d)
            self.notes[self.noted] = id if added else id ^ TOP
            self.noted += 1
        return 0

    # -- one operation --

    cdef Entry entry_for(self, str key, uint8_t kind):
        cdef Entry entry = <Entry>self.entries.get(key) if key in self.entries else None
        if entry is None:
            entry = Entry.__new__(Entry)
            entry.key = key
            entry.kind = kind
            entry.space = self
            entry.leaf = leaf_of(key)
            self.entries[key] = entry
            entry.after = self.heads[entry.leaf]
            if entry.after != NULL:
                (<Entry>entry.after).before = <void *>entry
            self.heads[entry.leaf] = <void *>entry
        return entry

    cdef list rows_with(self, object ids):
        """(id, entry, row) of the rows that have these ids. Looks at all rows of their key ranges, but only at two words."""
        cdef uint64_t filter[1024]          # 65536 bits, so that few rows are asked for in a set of Python
        cdef uint8_t wanted[LEAVES]
        cdef uint64_t id
        cdef uint32_t i
        cdef void *at
        cdef Entry entry
        cdef list out = []
        cdef set sought = set(ids)
        memset(filter, 0, sizeof(filter))
        memset(wanted, 0, LEAVES)
        for item in sought:
            id = item
            wanted[id & (LEAVES - 1)] = 1
            filter[id >> 16 & 1023] |= <uint64_t>1 << (id >> 10 & 63)
        for i in range(LEAVES):
            at = self.heads[i] if wanted[i] else NULL
            while at != NULL:
                entry = <Entry>at
                self.pick(out, filter, sought, entry, entry.root)
                if entry.rows:
                    for head in entry.rows.values():
                        self.pick(out, filter, sought, entry, <Row>head)
                at = entry.after
        return out

    cdef int pick(self, list out, const uint64_t *filter, set ids, Entry entry, Row head) except -1:
        cdef Row row = head
        cdef uint64_t id
        while row is not None:
            id = id_of(entry.leaf, row.digest)
            if filter[id >> 16 & 1023] >> (id >> 10 & 63) & 1 and id in ids:
                out.append((id, entry, row))
            row = row.next
        return 0

    cdef int forget(self, Entry entry) except -1:
        """Take an entry without rows out of the map and the list of its key range (which does not own its entries)."""
        if entry.before != NULL:
            (<Entry>entry.before).after = entry.after
        else:
            self.heads[entry.leaf] = entry.after
        if entry.after != NULL:
            (<Entry>entry.after).before = entry.before
        entry.before = entry.after = NULL
        del self.entries[entry.key]
        return 0

    cdef list entries_in(self, const uint8_t *wanted):
        """The entries of the key ranges that are marked, found without a look at the others."""
        cdef list out = []
        cdef uint32_t i, marked = 0
        cdef void *at
        for i in range(LEAVES):
            marked += wanted[i]
        if marked == LEAVES:
            return list(self.entries.values())
        for i in range(LEAVES):
            if wanted[i]:
                at = self.heads[i]
                while at != NULL:
                    out.append(<Entry>at)
                    at = (<Entry>at).after
        return out

    cdef object supersede(self, Entry entry, Row head, Dots *context, Write write):
        """The rows of one chain that `context` does not know (or that are the write's own), as a new chain."""
        cdef Row row = head, kept = None, following
        while row is not None:
            following = row.next
            if knows(context, row.write.packed):
                self.count_row(entry, row, False)
                row.next = None
            else:
                row.next = kept
                kept = row
            row = following
        return kept

    cdef tuple apply(self, str key, Write write, bint clear, list puts, list drops):
        """Make one operation true here. Returns (key, write, contended paths or None, deletions or None, alive, puts).

        contended  paths at which rows now stand beside each other with different values, or a deletion met a row
                   that it had not seen
        deletions  (path, write) of deletions that this operation had not seen at its paths; path "" is the whole key
        """
        cdef Entry entry = self.entry_for(key, write.kind)
        cdef Row row, head, other
        cdef list contended = None, deletions = None
        cdef Write grave
        cdef str path
        cdef bytes value
        if puts:
            found = self.graves.pop(key, None)
            if found is not None:
                grave = <Write>found
                if not knows(&write.context, grave.packed):
                    deletions = [("", grave)]
        if clear:
            if entry.root is not None:
                entry.root = self.supersede(entry, entry.root, &write.context, write)
                if entry.root is not None and not puts:
                    contended = [""]
            if entry.rows:
                for path in list(entry.rows):
                    head = self.supersede(entry, <Row>entry.rows[path], &write.context, write)
                    if head is None:
                        del entry.rows[path]
                    else:
                        entry.rows[path] = head
                        if not puts:
                            contended = contended or []
                            contended.append(path)
        for path in drops:
            if path == "":
                entry.root = self.supersede(entry, entry.root, &write.context, write)
                head = entry.root
            else:
                head = self.supersede(entry, <Row>entry.rows.pop(path, None) if entry.rows else None, &write.context, write)
                if head is not None:
                    entry.rows[path] = head
            if head is not None:
                contended = contended or []
                contended.append(path)
            if entry.drops is None:
                entry.drops = {}
            entry.drops[path] = write
            if len(entry.drops) > DROPS_MAX:
                del entry.drops[next(iter(entry.drops))]
        for path, value in puts:
            if path == "":
                head = self.supersede(entry, entry.root, &write.context, write) if entry.root is not None else None
            elif entry.rows is None:
                entry.rows = {}
                head = None
            else:
                found = entry.rows.get(path)
                head = self.supersede(entry, <Row>found, &write.context, write) if found is not None else None
            if entry.drops is not None:
                found = entry.drops.pop(path, None)
                if found is not None:
                    grave = <Write>found
                    if not knows(&write.context, grave.packed):
                        deletions = deletions or []
                        deletions.append((path, grave))
            row = Row.__new__(Row)
            row.path, row.value, row.write, row.next = path, value, write, head
            self.count_row(entry, row, True)
            if path == "":
                entry.root = row
            else:
                entry.rows[path] = row
            other = head
            while other is not None:
                if other.value != value or other.write.kind != write.kind:
                    contended = contended or []
                    contended.append(path)
                    break
                other = other.next
        if write.stamp > self.stamp_max:
            self.stamp_max = write.stamp
        self.counts[write.packed >> COUNT_BITS] = write.packed & COUNT_MASK
        self.revision += 1
        entry.revision = self.revision
        if entry.root is None and not entry.rows:
            self.forget(entry)
            self.graves[key] = write
            if len(self.graves) > GRAVES_MAX:
                del self.graves[next(iter(self.graves))]
            return key, write, contended, deletions, False, puts
        if entry.kind != write.kind:
            entry.mixed = True
        if entry.mixed:
            self.settle_kind(entry)
        return key, write, contended, deletions, True, puts

    cdef int settle_kind(self, Entry entry) except -1:
        """Writers that did not see each other may create a key with different kinds: the newest live write decides.

        Called after every change of an entry that ever had rows of two kinds: the newest may also have been removed.
        """
        cdef Write newest = entry.newest()
        entry.kind = newest.kind
        return 0

    # -- local writes --

    def write(self, str key not None, int kind, list puts not None, list drops not None, bint clear, object context,
              uint64_t stamp):
        """Apply one local operation and add it to the open batch.

        puts      (path, value) pairs; the rows there that the context knows are superseded
        drops     paths whose known rows are removed
        clear     remove every row that the context knows (a delete, or a whole replacement)
        context   actor -> count that the writer had read; None: all that is known here at the paths it touches
        returns   the same tuple as for a remote operation: (key, write, contended, deletions, alive, puts)
        raises    UnavailableError if the context is ahead of this replica; UsageError if `puts` names a path twice
        """
        cdef Write write = Write.__new__(Write)
        cdef Entry entry
        cdef uint64_t count
        cdef uint32_t index
        cdef set writers = None
        cdef tuple life
        cdef Bytes *out = &self.body
        cdef size_t mark = out.size
        if self.counts[self.own] >= COUNT_MASK - 1:
            raise LimitError("this actor has used all of its 2^48 - 2 dots; restart the node to get a new actor")
        if len(puts) > 1 and len(dict(puts)) != len(puts):
            raise UsageError(f"a write of {key!r} puts a path twice; give each path one value")
        write.space = self
        write.kind = <uint8_t>kind
        write.stamp = stamp
        if context is None:
            found = self.entries.get(key)
            if found is not None:
                self.learn_touched(&write.context, <Entry>found, puts, drops, clear)
            found = self.graves.get(key)
            if found is not None:
                self.learn_told(&write.context, <Write>found)
        else:
            for actor, known in context.items():
                if known <= 0:
                    continue
                if self.known_of(actor) < <uint64_t>known:
                    raise UnavailableError(
                        f"the context knows event {known} of {actor}, this node only {self.count(actor)}; "
                        "try again when it has caught up", 50_000_000)
                found = self.indexes.get(actor)
                if found is None:
                    continue  # retired, and nothing here is its
                index = <uint32_t>found
                if self.counts[index] == RETIRED:
                    if writers is None:
                        writers = self.writers_of(key)
                    if index not in writers:
                        continue
                elif self.floors:
                    life = <tuple>self.lives[index]
                    if life is not None and life[1] < 0:
                        continue
                learn(&write.context, <uint64_t>index << COUNT_BITS | <uint64_t>known)
        count = self.counts[self.own] + 1
        write.packed = <uint64_t>self.own << COUNT_BITS | count
        if self.batch_size == 0:
            self.batch_first = count
        try:
            put_raw(out, &stamp, 8)
            put_byte(out, <uint8_t>kind)
            put_byte(out, CLEAR if clear else 0)
            put_text(out, key)
            self.put_context(out, &write.context)
            put_number(out, len(puts))
            for path, value in puts:
                put_text(out, <str?>path)
                put_bytes(out, <bytes?>value)
            put_number(out, len(drops))
            for path in drops:
                put_text(out, <str?>path)
        except BaseException:
            out.size = mark
            raise
        self.batch_size += 1
        return self.apply(key, write, clear, puts, drops)

    cdef int learn_touched(self, Dots *context, Entry entry, list puts, list drops, bint clear) except -1:
        """What is known at the paths that an operation touches. O(paths touched), so that large sets stay cheap."""
        cdef list paths
        cdef Row row
        if clear:
            paths = entry.paths()
        else:
            paths = [path for path, _ in puts]
            paths += drops
        for path in paths:
            row = None
            if path == "":
                row = entry.root
            elif entry.rows:
                row = <Row>entry.rows.get(path)
            while row is not None:
                self.learn_told(context, row.write)
                row = row.next
            if entry.drops is not None:
                found = entry.drops.get(path)
                if found is not None:
                    self.learn_told(context, <Write>found)
        return 0

    cdef int learn_told(self, Dots *context, Write write) except -1:
        """Learn a write and what its writer knew of actors that are not retired.

        What it knew of the retired need not be said again: each replica that takes an operation with our clock under
        it has applied all of theirs, and so has superseded what that writer superseded.
        """
        cdef uint32_t i
        for i in range(write.context.size):
            if self.counts[write.context.at[i] >> COUNT_BITS] != RETIRED:
                learn(context, write.context.at[i])
        return learn(context, write.packed)

    cdef set writers_of(self, str key):
        """The actors, by index, that wrote what lives under a key, or deleted there lately."""
        cdef Entry entry
        cdef set out = set()
        found = self.graves.get(key)
        if found is not None:
            out.add(<uint32_t>((<Write>found).packed >> COUNT_BITS))
        found = self.entries.get(key)
        if found is not None:
            entry = <Entry>found
            for _, rows in entry.live():
                for row in rows:
                    out.add(<uint32_t>((<Row>row).write.packed >> COUNT_BITS))
            if entry.drops is not None:
                for drop in entry.drops.values():
                    out.add(<uint32_t>((<Write>drop).packed >> COUNT_BITS))
        return out

    cdef uint16_t refer(self, uint32_t index) except *:
        """Number of an actor in the table of the open batch, or of the state that is being written."""
        if self.refs[index] == NO_REF:
            self.refs[index] = <uint16_t>len(self.table)
            self.table.append(index)
        return self.refs[index]

    cdef int put_context(self, Bytes *out, Dots *context) except -1:
        cdef uint32_t i
        put_number(out, context.size)
        for i in range(context.size):
            put_number(out, self.refer(<uint32_t>(context.at[i] >> COUNT_BITS)))
            put_number(out, context.at[i] & COUNT_MASK)
        return 0

    cdef void clear_table(self):
        for index in self.table:
            self.refs[<uint32_t>index] = NO_REF
        self.table = []

    @property
    def open_bytes(self):
        """Size of the open batch so far, 0 if there is none."""
        return self.body.size

    def close_batch(self):
        """End the open batch: (first count, last count, bytes), or None if nothing was written since the last one."""
        cdef Bytes out
        cdef uint32_t i, others = 0
        cdef uint64_t first = self.batch_first, last
        if self.batch_size == 0:
            return None
        memset(&out, 0, sizeof(out))
        try:
            last = first + self.batch_size - 1
            # What the whole batch depends on: all that this replica knew when it ended. That is more than each single
            # operation needs, but whoever sends the batch has it too.
            for i in range(len(self.actors)):
                if i != self.own and self.told(i):
                    self.refer(i)
                    others += 1
            put_raw(&out, PyBytes_AS_STRING(BATCH_MAGIC), 4)
            put_text(&out, self.actor)
            put_number(&out, first)
            put_number(&out, self.batch_size)
            put_number(&out, len(self.table))
            for index in self.table:
                put_text(&out, self.actors[index])
            put_number(&out, others)
            for i in range(len(self.actors)):
                if i != self.own and self.told(i):
                    put_number(&out, self.refs[i])
                    put_number(&out, self.counts[i])
            put_raw(&out, self.body.at, self.body.size)
            data = PyBytes_FromStringAndSize(<const char *>out.at, out.size)
        finally:
            free(out.at)
        self.clear_table()
        self.body.size = 0
        self.batch_size = 0
        if self.body.room > 1 << 20:
            free(self.body.at)
            self.body.at, self.body.room = NULL, 0
        return first, last, data

    # -- remote batches --

    def receive(self, bytes batch not None, uint64_t stamp_limit=0xFFFFFFFFFFFFFFFF):
        """Apply a batch, in causal order only: the list of tuples of `write`, or None if something before it is missing.

        Operations that are known already are passed over. Malformed bytes, or a stamp over `stamp_limit`, raise PeerError
        before anything changes.
        """
        cdef Cursor c
        cdef BatchHead head = parse_head(batch, &c)
        cdef uint64_t count, n, known
        cdef uint64_t i, j
        cdef uint32_t origin
        cdef list ops = [], table
        cdef Write write
        cdef uint8_t flags
        cdef size_t mark = len(self.actors)
        for actor, needed in head.deps:
            if self.known_of(actor) < <uint64_t>needed:
                return None
        known = self.known_of(head.origin)
        if head.first > known + 1:
            return None
        if head.first + head.size - 1 <= known:
            return []
        if head.origin == self.actor:
            raise PeerError(f"somebody else writes as {self.actor}: its event {head.first + head.size - 1} is not ours "
                            f"(we wrote {known}); two nodes share a name or a copied data directory")
        try:
            origin = self.intern(head.origin)
            if self.lives[origin] is not None and self.lives[origin][1] < 0:
                raise malformed(f"{head.origin!r} is the name of no actor")
            table = [self.intern(actor) for actor in head.table]
            for i in range(head.size):
                write = Write.__new__(Write)
                write.space = self
                count = head.first + i
                write.packed = <uint64_t>origin << COUNT_BITS | count
                need(&c, 10)
                memcpy(&write.stamp, c.at, 8)
                if write.stamp > stamp_limit:
                    raise PeerError(f"the clock of {head.origin} is {(write.stamp - stamp_limit) >> 16} ms further ahead than "
                                    "allowed; set the clocks (NTP) of both machines")
                write.kind = c.at[8]
                flags = c.at[9]
                c.at += 10
                key = get_text(&c)
                n = get_size(&c)
                if n > WRITERS_MAX:
                    raise malformed(f"{n} writers of one key; the limit is {WRITERS_MAX}")
                for j in range(n):
                    ref = get_number(&c)
                    known_count = get_number(&c)
                    if ref >= <uint64_t>len(table) or known_count == 0 or known_count > COUNT_MASK:
                        raise malformed(f"a context names actor {ref} of {len(table)} with count {known_count}")
                    learn(&write.context, <uint64_t><uint32_t>table[ref] << COUNT_BITS | <uint64_t>known_count)
                puts = []
                for j in range(get_size(&c)):
                    path = get_text(&c)
                    puts.append((path, get_bytes(&c)))
                if len(puts) > 1 and len(dict(puts)) != len(puts):
                    raise malformed(f"an operation on {key!r} puts a path twice")
                drops = [get_text(&c) for j in range(get_size(&c))]
                if count > known:
                    ops.append((key, write, flags & CLEAR, puts, drops))
            if c.at != c.end:
                raise malformed(f"{c.end - c.at} bytes too many")
        except BaseException:
            self.forget_from(mark)
            raise
        return [self.apply(key, write, clear, puts, drops) for key, write, clear, puts, drops in ops]

    # -- whole states --

    def state(self, bytes summary=None):
        """The clock and all rows, or only those in key ranges whose digest differs from that in another's `summary`.

        `join` on that replica takes it. O(keys) for the whole; the snapshot of a replica is state().
        """
        cdef Cursor c
        cdef const uint8_t *base = NULL
        cdef size_t base_size = 0
        cdef Bytes out, body
        cdef uint8_t wanted[LEAVES]
        cdef uint32_t i
        cdef nova_digest theirs
        cdef Entry entry
        cdef list picked
        if self.batch_size:
            raise UsageError("a batch is open; close it before taking the state")
        memset(wanted, 1, LEAVES)
        if summary is not None:
            c.at = <const uint8_t *>PyBytes_AS_STRING(summary)
            c.end = c.at + PyBytes_GET_SIZE(summary)
            check_magic(&c, SUMMARY_MAGIC, "summary")
            base = c.at
            get_clock(&c)
            base_size = c.at - base
            if <size_t>(c.end - c.at) != sizeof(self.leaves):
                raise malformed(f"{c.end - c.at} bytes of range digests, {sizeof(self.leaves)} expected")
            for i in range(LEAVES):
                memcpy(&theirs, c.at + i * sizeof(theirs), sizeof(theirs))
                wanted[i] = theirs.lo != self.leaves[i].lo or theirs.hi != self.leaves[i].hi
        memset(&out, 0, sizeof(out))
        memset(&body, 0, sizeof(body))
        picked = []
        for item in self.entries_in(wanted):
            entry = <Entry>item
            picked.append((entry.key, [row for _, siblings in entry.live() for row in siblings]))
        try:
            self.put_entries(&body, picked)
            self.put_head(&out, STATE_MAGIC)
            if base == NULL:
                put_number(&out, 0)
            else:
                put_raw(&out, base, base_size)
            for i in range(0, LEAVES, 8):
                put_byte(&out, wanted[i] | wanted[i + 1] << 1 | wanted[i + 2] << 2 | wanted[i + 3] << 3
                         | wanted[i + 4] << 4 | wanted[i + 5] << 5 | wanted[i + 6] << 6 | wanted[i + 7] << 7)
            put_raw(&out, body.at, body.size)
            return PyBytes_FromStringAndSize(<const char *>out.at, out.size)
        finally:
            self.clear_table()
            free(out.at)
            free(body.at)

    cdef int put_head(self, Bytes *out, bytes magic) except -1:
        """The beginning of a state or difference whose entries have been written: clock and stamp."""
        put_raw(out, PyBytes_AS_STRING(magic), 4)
        # The clock, and behind it with count 0 the retired whom the rows name.
        put_number(out, len(self.table))
        for index in self.table:
            put_text(out, self.actors[index])
            put_number(out, self.counts[<uint32_t>index] if self.told(<uint32_t>index) else 0)
        put_raw(out, &self.stamp_max, 8)
        return 0

    cdef int put_entries(self, Bytes *out, list picked) except -1:
        """(key, rows) pairs, each write once; the table of actors begins with those that the clock names."""
        cdef Row row
        cdef Write write
        cdef list writes
        cdef dict numbers
        cdef uint32_t i
        for i in range(len(self.actors)):
            if self.told(i):
                self.refer(i)
        put_number(out, len(picked))
        for key, rows in picked:
            put_text(out, key)
            numbers = {}
            writes = []
            for item in rows:
                row = <Row>item
                if row.write.packed not in numbers:
                    numbers[row.write.packed] = len(writes)
                    writes.append(row.write)
            put_number(out, len(writes))
            for item in writes:
                write = <Write>item
                put_number(out, self.refer(<uint32_t>(write.packed >> COUNT_BITS)))
                put_number(out, write.packed & COUNT_MASK)
                put_raw(out, &write.stamp, 8)
                put_byte(out, write.kind)
                self.put_context(out, &write.context)
            put_number(out, len(rows))
            for item in rows:
                row = <Row>item
                put_number(out, numbers[row.write.packed])
                put_text(out, row.path)
                put_bytes(out, row.value)
        return 0

    def answer(self, bytes summary not None):
        """What a replica lacks that asked with `summary()`, for its `join`; or, of cells, how many to ask with again.

        0 cells: to ask by key ranges (`summary()`), because so much differs that a table would not help.
        """
        cdef Cursor c
        if summary[:4] != SKETCH_MAGIC:
            return self.state(summary)
        if self.batch_size:
            raise UsageError("a batch is open; close it before answering")
        c.at = <const uint8_t *>PyBytes_AS_STRING(summary)
        c.end = c.at + PyBytes_GET_SIZE(summary)
        check_magic(&c, SKETCH_MAGIC, "summary")
        return self.difference(&c)

    cdef object difference(self, Cursor *c):
        """The rows that the asker lacks, and the ids of those that this side lacks, of which the asker removes what our
        clock covers: exactly what the whole state would do there."""
        cdef Bytes out, body
        cdef const uint8_t *base = c.at
        cdef size_t base_size
        cdef uint64_t *known = NULL
        cdef uint64_t i, id, rows
        cdef nova_digest expected
        cdef Reconciler own
        cdef Entry entry
        cdef Row row
        cdef dict picked = {}, floors
        cdef list places = []
        names, counts = get_clock(c)
        base_size = c.at - base
        rows = get_number(c)
        piece = PyBytes_FromStringAndSize(<const char *>c.at, c.end - c.at)
        own = self.current()
        try:
            found = own.decode(piece)
        except (CorruptionError, UsageError) as error:
            raise malformed(f"a summary of rows ({error})") from None
        if found is None:
            return self.wider(names, counts, rows, (len(piece) - 18) // 13)
        floors = floors_of(names, counts)
        memset(&out, 0, sizeof(out))
        memset(&body, 0, sizeof(body))
        known = <uint64_t *>calloc(len(self.actors) + 1, sizeof(uint64_t))
        if known == NULL:
            raise MemoryError
        try:
            for i in range(<uint64_t>len(names)):
                index = self.indexes.get(names[i])
                if index is not None:
                    known[<uint32_t>index] = counts[i]
            for i in range(<uint64_t>len(self.actors)):
                life = self.lives[i]
                if life is not None and life[1] >= 0 and life[0] in floors and life[1] <= floors[life[0]][0]:
                    known[i] = RETIRED
            expected = own.total
            held = self.rows_with(found.here)
            if len(held) != len(found.here):
                return 0
            for id, item, each in held:
                entry, row = <Entry>item, <Row>each
                if known[row.write.packed >> COUNT_BITS] < row.write.packed & COUNT_MASK:
                    picked.setdefault(entry.key, []).append(row)
                else:
                    # The asker removed it, or holds something else there, which must not be taken for removed here.
                    places.append(self.place_of(entry.key, row))
                    expected = nova_digest_sub(expected, own.digest_of(id))
            self.put_entries(&body, list(picked.items()))
            self.put_head(&out, DIFFERENCE_MAGIC)
            put_raw(&out, base, base_size)
            put_raw(&out, PyBytes_AS_STRING(piece) + 2, 16)
            put_raw(&out, &expected, 16)
            for numbers in (found.there, places):
                put_number(&out, len(numbers))
                for item in numbers:
                    id = item
                    put_raw(&out, &id, 8)
            put_raw(&out, body.at, body.size)
            return PyBytes_FromStringAndSize(<const char *>out.at, out.size)
        finally:
            self.clear_table()
            free(body.at)
            free(out.at)
            free(known)

    cdef object wider(self, list names, list counts, uint64_t rows, uint64_t tried):
        """How many cells to ask with after so many did not reveal it. Four times as many, or what the sizes of both sets
        say is the least, or what the operations that either side lacks would take; 0 if that is no better than rows."""
        cdef uint64_t least = max(rows, self.rows_live) - min(rows, self.rows_live)
        theirs = dict(zip(names, counts, strict=True))
        beyond = 0
        mine = self.clock
        for actor in theirs.keys() | mine.keys():
            beyond += abs(theirs.get(actor, 0) - mine.get(actor, 0))
        cells = max(CELLS_MIN, 4 * tried, Reconciler.cells_for(least))
        guess = Reconciler.cells_for(2 * beyond)
        if guess <= CELLS_MAX:
            cells = max(cells, guess)
        return cells if cells <= CELLS_MAX and cells < max(rows, self.rows_live) else 0

    def join(self, bytes state not None):
        """Merge a state or an `answer` of another replica: the keys that changed, as (key, contended paths or None, alive).

        A row that only one side has survives unless the other side's clock knows its dot. Malformed bytes raise
        PeerError before anything changes. None, and nothing changes, if a difference does not lead from the set of rows
        that was asked with to that of the other side: ask by key ranges.
        """
        cdef Cursor c
        cdef uint64_t i, j, n, ref, count, stamp_max, theirs_size
        cdef uint64_t *theirs = NULL
        cdef uint64_t *base = NULL
        cdef bint covered
        cdef uint32_t *table = NULL
        cdef const uint8_t *bits
        cdef Entry entry, last = None
        cdef Write write
        cdef Row row, head, kept, following
        cdef list parsed = [], rows, writes, changed = [], struck = []
        cdef dict present, by_path, floors, base_floors
        cdef set contended
        cdef bint touched, whole, moved = False, late = False
        cdef uint8_t wanted[LEAVES]
        cdef uint8_t nothing[128]
        cdef nova_digest before, expected
        cdef uint64_t id
        cdef Reconciler sums
        cdef set doomed = set(), gone = set(), places = set()
        cdef size_t mark = len(self.actors)
        cdef bint taken = False
        if self.batch_size:
            raise UsageError("a batch is open; close it before joining a state")
        c.at = <const uint8_t *>PyBytes_AS_STRING(state)
        c.end = c.at + PyBytes_GET_SIZE(state)
        whole = state[:3] != DIFFERENCE_MAGIC[:3]
        check_magic(&c, STATE_MAGIC if whole else DIFFERENCE_MAGIC, "state")
        names, counts = get_clock(&c)
        n = len(names)
        for i in range(n):
            if names[i] == self.actor and counts[i] > self.counts[self.own]:
                raise PeerError(f"somebody else writes as {self.actor}: a state knows event {counts[i]}, we wrote "
                                f"{self.counts[self.own]}; two nodes share a name or a copied data directory")
        floors = floors_of(names, counts)
        for node, (upto, total) in floors.items():
            if upto > self.floors.get(node, 0):
                self.check_own(node, upto)
                if self.operations(node, upto) > total:
                    raise PeerError(f"a state says that {node} wrote {total} operations up to its incarnation {upto}, but "
                                    f"{self.operations(node, upto)} are here; {node} ran from an old copy of its disk: "
                                    "stop it and start it with an empty data directory under another name")
        need(&c, 8)
        memcpy(&stamp_max, c.at, 8)
        c.at += 8
        base_names, base_counts = get_clock(&c)
        base_floors = floors_of(base_names, base_counts)
        if whole:
            need(&c, LEAVES // 8)
            bits = c.at
            c.at += LEAVES // 8
        else:
            memset(nothing, 0, sizeof(nothing))
            bits = nothing
            need(&c, 32)
            memcpy(&before, c.at, 16)
            memcpy(&expected, c.at + 16, 16)
            c.at += 32
            gone, places = get_ids(&c), get_ids(&c)
            for i in range(<uint64_t>len(base_names)):
                if self.known_of(base_names[i]) < <uint64_t>base_counts[i]:
                    return None             # it answers somebody who knew more than we do
        table = <uint32_t *>malloc((n + 1) * sizeof(uint32_t))
        if table == NULL:
            raise MemoryError
        try:
            for i in range(n):
                table[i] = self.intern(names[i])
            theirs_size = len(self.actors)
            theirs = <uint64_t *>calloc(theirs_size + 1, sizeof(uint64_t))
            if theirs == NULL:
                raise MemoryError
            for i in range(n):
                theirs[table[i]] = counts[i]
            base = <uint64_t *>calloc(theirs_size + 1, sizeof(uint64_t))
            if base == NULL:
                raise MemoryError
            for i in range(<uint64_t>len(base_names)):
                found = self.indexes.get(base_names[i])
                if found is not None and <uint32_t>found < theirs_size:
                    base[<uint32_t>found] = base_counts[i]
            # Whoever retired an actor knows all of its dots.
            for i in range(theirs_size):
                life = self.lives[i]
                if life is not None and life[1] >= 0:
                    if life[0] in floors and life[1] <= floors[life[0]][0]:
                        theirs[i] = RETIRED
                    if life[0] in base_floors and life[1] <= base_floors[life[0]][0]:
                        base[i] = RETIRED
            for i in range(get_size(&c)):
                key = get_text(&c)
                writes = []
                for j in range(get_size(&c)):
                    write = Write.__new__(Write)
                    write.space = self
                    ref = get_number(&c)
                    count = get_number(&c)
                    if ref >= n or count == 0 or count > COUNT_MASK or count > theirs[table[ref]]:
                        raise malformed(f"a row of {key!r} has a dot that the state's own clock does not cover")
                    write.packed = <uint64_t>table[ref] << COUNT_BITS | count
                    need(&c, 9)
                    memcpy(&write.stamp, c.at, 8)
                    write.kind = c.at[8]
                    c.at += 9
                    get_dots(&c, table, n, &write.context)
                    writes.append(write)
                rows = []
                for j in range(get_size(&c)):
                    ref = get_number(&c)
                    if ref >= <uint64_t>len(writes):
                        raise malformed(f"a row of {key!r} names write {ref} of {len(writes)}")
                    row = Row.__new__(Row)
                    row.write = <Write>writes[ref]
                    row.path = get_text(&c)
                    row.value = get_bytes(&c)
                    rows.append(row)
                if not rows:
                    raise malformed(f"{key!r} has no rows")
                # A row twice would count twice in the digest, which then never agrees with anybody's.
                if len(rows) > 1 and len({((<Row>item).path, (<Row>item).write.packed) for item in rows}) != len(rows):
                    raise malformed(f"{key!r} has a row twice")
                parsed.append((key, rows))
            if c.at != c.end:
                raise malformed(f"{c.end - c.at} bytes too many")

            for i in range(len(self.actors)):
                count = base[i] if i < theirs_size else 0
                moved = moved or self.counts[i] != count
                late = late or (i < theirs_size and self.counts[i] > count and theirs[i] > count)
            if not whole:
                # Their rows in place of those which they lack must make of the set that we asked with theirs.
                sums = Reconciler(cells=16)
                for item in gone:
                    before = nova_digest_sub(before, sums.digest_of(item))
                for key, rows in parsed:
                    for item in rows:
                        id = id_of(leaf_of(key), self.digest_of(key, <Row>item))
                        before = nova_digest_add(before, sums.digest_of(id))
                if before.lo != expected.lo or before.hi != expected.hi:
                    return None
                held = self.rows_with(gone)
                if not moved and len(held) != len(gone):
                    return None
                for _, item, each in held:
                    entry = <Entry>item
                    if self.place_of(entry.key, <Row>each) not in places:
                        doomed.add(each)
                        if last is not entry:
                            last = entry
                            struck.append(entry)

            remote = dict(parsed)
            if len(remote) != len(parsed):
                raise malformed("a key twice")
            taken = True
            # Ours that they may have removed: in the ranges that the state covers (or among the rows that they said they
            # lack), all that their clock knows and they have not; in the others, which were equal when we asked, what has
            # arrived here since then and they knew.
            for i in range(LEAVES):
                wanted[i] = late or bits[i >> 3] >> (i & 7) & 1
            for item in self.entries_in(wanted) if whole or late else struck:
                entry = <Entry>item
                key = entry.key
                covered = bits[entry.leaf >> 3] >> (entry.leaf & 7) & 1
                there = remote.get(key)
                present = {}
                if there is not None:
                    for item_row in there:
                        row = <Row>item_row
                        present[(row.path, row.write.packed)] = row
                touched = False
                for path in entry.paths():
                    head = entry.root if path == "" else <Row>entry.rows[path]
                    kept = None
                    row = head
                    while row is not None:
                        following = row.next
                        if (path, row.write.packed) not in present and \
                                theirs[row.write.packed >> COUNT_BITS] >= row.write.packed & COUNT_MASK and \
                                (covered or row in doomed or base[row.write.packed >> COUNT_BITS] < row.write.packed & COUNT_MASK):
                            self.count_row(entry, row, False)
                            touched = True
                        else:
                            row.next = kept
                            kept = row
                        row = following
                    if path == "":
                        entry.root = kept
                    elif kept is None:
                        del entry.rows[path]
                    else:
                        entry.rows[path] = kept
                if touched and entry.mixed and (entry.root is not None or entry.rows):
                    self.settle_kind(entry)
                if touched and there is None:
                    if entry.root is None and not entry.rows:
                        self.forget(entry)
                        changed.append((key, None, False))
                    else:
                        changed.append((key, None, True))
                elif touched:
                    changed.append((key, None, True))
            # Theirs that we have neither seen nor removed.
            seen = {key: i for i, (key, _, _) in enumerate(changed)}
            for key, rows in parsed:
                fresh = []
                for item_row in rows:
                    row = <Row>item_row
                    if self.counts[row.write.packed >> COUNT_BITS] < row.write.packed & COUNT_MASK:
                        fresh.append(row)
                if not fresh:
                    found = self.entries.get(key)
                    if found is not None:
                        entry = <Entry>found
                        if entry.root is None and not entry.rows:
                            self.forget(entry)
                            changed[seen[key]] = (key, None, False)
                    continue
                entry = self.entry_for(key, (<Row>fresh[0]).write.kind)
                self.graves.pop(key, None)
                contended = set()
                for item_row in fresh:
                    row = <Row>item_row
                    if row.write.kind != entry.kind:
                        entry.mixed = True
                    if row.path == "":
                        row.next = entry.root
                        entry.root = row
                    else:
                        if entry.rows is None:
                            entry.rows = {}
                        row.next = <Row>entry.rows.get(row.path) if row.path in entry.rows else None
                        entry.rows[row.path] = row
                    self.count_row(entry, row, True)
                    following = row.next
                    while following is not None:
                        if following.value != row.value or following.write.kind != row.write.kind:
                            contended.add(row.path)
                        following = following.next
                self.settle_kind(entry)
                item = (key, sorted(contended) or None, True)
                if key in seen:
                    changed[seen[key]] = item
                else:
                    changed.append(item)
            for i in range(n):
                life = self.lives[table[i]]
                if counts[i] > self.counts[table[i]] and (life is None or life[1] >= 0):
                    self.counts[table[i]] = counts[i]
            for node, (upto, total) in floors.items():
                if upto > self.floors.get(node, 0):
                    self.raise_floor(node, upto, total)
            if stamp_max > self.stamp_max:
                self.stamp_max = stamp_max
            self.revision = 0
            for i in range(len(self.actors)):
                life = self.lives[i]
                if self.told(i) and (life is None or life[1] != FLOOR):
                    self.revision += self.counts[i]
            # Each changed key had at least one operation that was not known here: there is a revision for each.
            for i, (key, _, alive) in enumerate(changed):
                if alive:
                    (<Entry>self.entries[key]).revision = self.revision - len(changed) + 1 + i
            return changed
        finally:
            if not taken:
                self.forget_from(mark)
            free(table)
            free(theirs)
            free(base)


cdef dict floors_of(list names, list counts):
    """node -> (incarnation, operations) that a clock says are complete."""
    cdef dict out = {}, told = dict(zip(names, counts))
    for name, count in told.items():
        life = life_of(name)
        if life is not None and life[1] == FLOOR and count:
            out[life[0]] = count, told.get(f"{life[0]}~+", 0)
    return out


cdef tuple get_clock(Cursor *c):
    """(actors, counts) of a clock."""
    cdef uint64_t count
    cdef list names = [], counts = []
    for _ in range(get_size(c)):
        name = get_text(c)
        count = get_number(c)
        if count >= COUNT_MASK:
            raise malformed(f"count {count} of {name} is over the 2^48 - 2 that an actor can have")
        names.append(name)
        counts.append(count)
    if len(set(names)) != len(names):
        raise malformed("an actor twice in a clock")
    return names, counts


cdef set get_ids(Cursor *c):
    cdef uint64_t i, id, n = get_number(c)
    cdef set out = set()
    if n > <uint64_t>(c.end - c.at) // 8:
        raise malformed(f"{n} ids of rows announced, {c.end - c.at} bytes left")
    for i in range(n):
        memcpy(&id, c.at, 8)
        c.at += 8
        out.add(id)
    if <uint64_t>len(out) != n:
        raise malformed("an id of a row is in it twice")
    return out


cdef int get_dots(Cursor *c, uint32_t *table, uint64_t size, Dots *out) except -1:
    cdef uint64_t n = get_size(c), i, ref, count
    if n > WRITERS_MAX:
        raise malformed(f"{n} writers of one key; the limit is {WRITERS_MAX}")
    for i in range(n):
        ref = get_number(c)
        count = get_number(c)
        if ref >= size or count == 0 or count > COUNT_MASK:
            raise malformed(f"a clock names actor {ref} of {size} with count {count}")
        learn(out, <uint64_t>table[ref] << COUNT_BITS | count)
    return 0


cdef int check_magic(Cursor *c, bytes magic, str what) except -1:
    need(c, 4)
    if c.at[0] != b"N" or c.at[1] != b"V" or c.at[2] != <uint8_t>magic[2]:
        raise malformed(f"this is no {what}")
    if c.at[3] != <uint8_t>magic[3]:
        raise PeerError(f"a {what} of version {c.at[3]}; this release reads version {magic[3]}; upgrade this node")
    c.at += 4
    return 0


@cython.final
cdef class BatchHead:
    """The head of a batch: who wrote it, which of its dots, and what must be known before it."""

    cdef readonly str origin
    cdef readonly uint64_t first
    cdef readonly uint64_t size
    cdef readonly list table
    cdef readonly list deps

    @property
    def last(self):
        return self.first + self.size - 1


cdef BatchHead parse_head(bytes batch, Cursor *c):
    cdef BatchHead head = BatchHead.__new__(BatchHead)
    cdef uint64_t i, ref, count
    c.at = <const uint8_t *>PyBytes_AS_STRING(batch)
    c.end = c.at + PyBytes_GET_SIZE(batch)
    check_magic(c, BATCH_MAGIC, "batch")
    head.origin = get_text(c)
    head.first = get_number(c)
    head.size = get_size(c)
    if head.first == 0 or head.size == 0 or head.first > COUNT_MASK - head.size:
        raise malformed(f"{head.size} operations from count {head.first}")
    head.table = [get_text(c) for i in range(get_size(c))]
    head.deps = []
    for i in range(get_size(c)):
        ref = get_number(c)
        count = get_number(c)
        if ref >= <uint64_t>len(head.table):
            raise malformed(f"a dependency names actor {ref} of {len(head.table)}")
        head.deps.append((head.table[ref], count))
    return head


def batch_head(bytes batch not None):
    """Read who wrote a batch and what it depends on, without applying it."""
    cdef Cursor c
    return parse_head(batch, &c)
