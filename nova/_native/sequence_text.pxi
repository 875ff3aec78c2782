# The text, and marks on it; a part of sequence.pyx.

cdef dict EXPANDS = {"none": 0, "before": NOVA_EXPAND_BEFORE, "after": NOVA_EXPAND_AFTER,
                     "both": NOVA_EXPAND_BEFORE | NOVA_EXPAND_AFTER}


cdef tuple read_say(bytes raw):
    """Name and value of a mark, from bytes that may be a stranger's."""
    try:
        name, value = decode(raw)
    except (msgspec.MsgspecError, TypeError, ValueError):
        raise malformed(WHAT, "what a mark says is no name and value") from None
    if type(name) is not str or not name:
        raise malformed(WHAT, "a mark has no name")
    return name, value


cdef class RGA(Sequence):
    """A text that many write at once: inserts and deletes by position, merged without conflicts; and marks (bold, a
    link, a comment) on ranges of it.

    RGA is the familiar name; the order of concurrent inserts is FugueMax (Weidner, Kleppmann 2023, "The Art of the
    Fugue"), ties going to the smaller actor, then the smaller event: what was typed in one run stays in one run, forwards and
    backwards. Positions count code points. An insert or delete of n code points is n events of the actor; deleting
    twice is deleting once; deleted content is not kept, only that it was there.

    A mark is one event, whose ends hold on to characters (Litt et al. 2022, "Peritext"), so that it grows and shrinks
    with the text under it. Of marks of one name on one character the one that was made last counts, of concurrent ones
    that of the greater actor.

    cost   an edit next to the one before: O(1); elsewhere O(log runs) and a move of the bytes between the two places;
           memory by runs of events, not by characters, and 1 byte a visible character (4 once one is above U+00FF)
    """

    def __cinit__(self):
        self.state_magic, self.delta_magic = b"NVT\x02", b"NVU\x02"
        self.whole, self.unit = "text", "code points"
        self.says = []
        self.says_numbers = {}

    # -- edits --

    cdef int put(self, uint64_t pos, const void *text, unsigned kind, uint64_t n) except -1:
        cdef int code = nova_sequence_insert(self.events, self.own, pos, text, kind, n)
        if code:
            raise failed(code)
        return 0

    cdef int cut(self, uint64_t pos, uint64_t n) except -1:
        cdef int code = nova_sequence_delete(self.events, self.own, pos, n)
        if code:
            raise failed(code)
        return 0

    def insert(self, int64_t pos, text):
        """Insert text before position pos. raises UsageError for a position beyond the text."""
        self.splice(pos, 0, text)

    def delete(self, int64_t pos, int64_t n):
        """Delete n code points from position pos on. raises UsageError if they are not all there."""
        self.splice(pos, n, "")

    def splice(self, int64_t pos, int64_t n, text):
        """Delete n code points from position pos on, then insert text there. Nothing happens if it cannot be done whole."""
        self.writable()
        self.check_range(pos, n)
        if type(text) is not str or not PyUnicode_IS_ASCII(text):
            check_text(text)
        if n:
            self.cut(pos, n)
        if PyUnicode_GET_LENGTH(text):
            self.put(pos, PyUnicode_DATA(text), PyUnicode_KIND(text), PyUnicode_GET_LENGTH(text))

    def apply_patches(self, patches, text=None):
        """Many splices in one call: all of them, or none if one does not fit.

        patches   a list of (position, deleted count, inserted text); or, with `text`, a C-contiguous int64 buffer of
                  shape (n, 3) of position, deleted count, inserted count, and the inserted code points one behind the
                  other in `text`
        raises    UsageError that names the first patch that does not fit
        """
        cdef Py_ssize_t i, size
        cdef list kept = None if text is not None else list(patches)
        cdef const int64_t[:, ::1] rows
        cdef patch *at
        self.writable()
        if text is None:
            size = len(kept)
        else:
            check_text(text)
            rows = patches
            size = rows.shape[0]
            if rows.shape[1] != 3:
                raise UsageError(
                    f"patches have {rows.shape[1]} columns; they are position, deleted count, inserted count"
                )
        at = <patch *>PyMem_Malloc((size + 1) * sizeof(patch))
        if at == NULL:
            raise MemoryError
        try:
            if text is None:
                self.read_patches(kept, at)
            else:
                self.read_rows(rows, text, at)
            for i in range(size):
                if at[i].deleted:
                    self.cut(at[i].pos, at[i].deleted)
                if at[i].inserted:
                    self.put(at[i].pos, at[i].data, at[i].kind, at[i].inserted)
        finally:
            PyMem_Free(at)

    cdef int read_patches(self, list patches, patch *at) except -1:
        """What (position, deleted count, inserted text) are, if they fit; the list keeps the texts."""
        cdef int64_t length = nova_sequence_length(self.events), pos, n
        cdef Py_ssize_t i
        for i in range(len(patches)):
            given = patches[i]
            if type(given) is not tuple:
                patches[i] = given = tuple(given)
            if len(<tuple>given) != 3:
                raise UsageError(f"patch {i} has {len(given)} parts; a patch is (position, deleted, inserted text)")
            pos, n, inserted = <tuple>given
            if pos < 0 or n < 0 or pos > length or n > length - pos:
                raise UsageError(f"patch {i}: {bad_range(pos, n, self.whole, length, self.unit)}")
            if type(inserted) is not str or not PyUnicode_IS_ASCII(inserted):
                check_text(inserted)
            at[i] = patch(pos, n, PyUnicode_GET_LENGTH(inserted), PyUnicode_KIND(inserted), PyUnicode_DATA(inserted))
            length += at[i].inserted - n
        return 0

    cdef int read_rows(self, const int64_t[:, ::1] rows, object text, patch *at) except -1:
        """The same of rows of (position, deleted count, inserted count); the inserted stand one behind the other."""
        cdef int64_t length = nova_sequence_length(self.events), left = PyUnicode_GET_LENGTH(text), pos, n, more
        cdef const uint8_t *data = <const uint8_t *>PyUnicode_DATA(text)
        cdef unsigned kind = PyUnicode_KIND(text)
        cdef Py_ssize_t i
        for i in range(rows.shape[0]):
            pos, n, more = rows[i, 0], rows[i, 1], rows[i, 2]
            if pos < 0 or n < 0 or pos > length or n > length - pos:
                raise UsageError(f"patch {i}: {bad_range(pos, n, self.whole, length, self.unit)}")
            if more < 0 or more > left:
                raise UsageError(f"patch {i} inserts {more} code points; the text has {left} left")
            at[i] = patch(pos, n, more, kind, data)
            left -= more
            length += more - n
            data += more * kind
        return 0

    # -- marks --

    cdef uint32_t say(self, bytes raw) except? 0xFFFFFFFF:
        """The number of a mark's name and value."""
        found = self.says_numbers.get(raw)
        if found is None:
            found = self.says_numbers[raw] = len(self.says)
            self.says.append(raw)
        return found

    cdef int put_mark(self, int64_t pos, int64_t n, object name, object value, str expand) except -1:
        cdef bytes raw
        cdef int code
        self.writable()
        self.check_range(pos, n)
        if n == 0:
            raise UsageError(f"a mark on 0 code points at {pos}; mark at least one")
        if not isinstance(name, str) or not name:
            raise UsageError(f"mark {name!r} is none; a mark has a str for a name")
        if expand not in EXPANDS:
            raise UsageError(f"expand {expand!r} is none; it is one of {', '.join(EXPANDS)}")
        raw = pack([str(name), value])
        if len(raw) > MARK_BYTES_MAX:
            raise LimitError(f"a mark of {len(raw)} bytes; the limit is {MARK_BYTES_MAX}; keep large values elsewhere")
        code = nova_sequence_mark(self.events, self.own, pos, n, EXPANDS[expand], self.say(raw),
                                  hash_bytes(PyBytes_AS_STRING(raw), PyBytes_GET_SIZE(raw), 0).lo)
        if code:
            raise failed(code)
        self.settle(True)
        return 0

    def mark(self, int64_t pos, int64_t n, name, value=True, *, str expand="after"):
        """Mark n code points from position pos on.

        name     what the mark is: "bold", "link"; a name has one value on each character
        value    a JSON-like value, not None
        expand   at which ends text that is inserted there is marked, too: "after" (as bold does), "before", "both", or
                 "none" (as a link does)
        """
        if value is None:
            raise UsageError("a mark of None; unmark takes a mark away")
        self.put_mark(pos, n, name, value, expand)

    def unmark(self, int64_t pos, int64_t n, name, *, str expand="after"):
        """Take the mark of that name from n code points from position pos on."""
        self.put_mark(pos, n, name, None, expand)

    @property
    def spans(self):
        """The text in stretches that are marked alike: [(text, {name: value}), ...]. O(marks log size + text)."""
        cdef nova_marked *marks = NULL
        cdef nova_painted *painted = NULL
        cdef uint32_t *name_of = NULL
        cdef size_t i, n, size = 0
        cdef int code
        cdef dict numbers = {}, active = {}
        cdef list said, edges = [], out = [], last = None
        self.ready()
        text = self.text
        n = nova_sequence_marks(self.events)
        said = [read_say(raw) for raw in self.says]
        try:
            marks = <nova_marked *>PyMem_Malloc((n + 1) * sizeof(nova_marked))
            painted = <nova_painted *>PyMem_Malloc((2 * n + 1) * sizeof(nova_painted))
            name_of = <uint32_t *>PyMem_Malloc((len(said) + 1) * sizeof(uint32_t))
            if marks == NULL or painted == NULL or name_of == NULL:
                raise MemoryError
            for i in range(<size_t>len(said)):
                name_of[i] = numbers.setdefault(said[i][0], len(numbers))
            nova_sequence_marked(self.events, marks)
            code = nova_marks_paint(marks, n, name_of, painted, &size)
            if code:
                raise failed(code)
            for i in range(size):
                if said[painted[i].value][1] is not None:
                    edges.append((painted[i].end, False, painted[i].value))
                    edges.append((painted[i].start, True, painted[i].value))
        finally:
            PyMem_Free(marks)
            PyMem_Free(painted)
            PyMem_Free(name_of)
        edges.sort()  # at one place ends come before starts
        edges.append((len(text), False, None))
        at = 0
        for place, starts, say in edges:
            if place > at:
                found = sorted(active.values())
                if out and found == last:
                    out[len(out) - 1] = (out[len(out) - 1][0] + text[at:place], out[len(out) - 1][1])
                else:
                    out.append((text[at:place], {said[number][0]: said[number][1] for number in found}))
                at, last = place, found
            if starts:
                active[said[say][0]] = say
            elif say is not None:
                del active[said[say][0]]
        return out

    # -- reading --

    @property
    def text(self):
        """The text as it stands here."""
        cdef unsigned width
        cdef const void *at
        if self.unread is not None:
            return self.unread_elements
        self.ready()
        at = nova_sequence_view(self.events, &width)
        return PyUnicode_FromKindAndData(width, at, nova_sequence_length(self.events)) if at != NULL else ""

    @property
    def value(self):
        """The text as it stands here."""
        return self.text

    def __str__(self):
        return self.text

    # -- what elements and marks are --

    cdef list whole_bytes(self):
        return packed(self.text.encode())

    cdef object read_whole(self, nova_reader *r):
        return unpacked_text(r)

    cdef int load(self, nova_runs *runs, object whole) except -1:
        cdef int code = nova_sequence_load(self.events, runs, PyUnicode_DATA(whole), PyUnicode_KIND(whole),
                                           PyUnicode_GET_LENGTH(whole))
        if code:
            raise failed(code)
        return 0

    cdef list elements_bytes(self, nova_runs *runs):
        return packed((<str>PyUnicode_FromKindAndData(4, runs.elements, runs.elements_size)).encode()
                      if runs.elements_size else b"")

    cdef int read_elements(self, nova_reader *r, nova_runs *runs) except -1:
        cdef str text = unpacked_text(r)
        cdef Py_ssize_t n = PyUnicode_GET_LENGTH(text)
        PyUnicode_AsUCS4(text, room_for_elements(runs, n), n + 1, True)
        return 0

    cdef list marks_bytes(self, nova_runs *runs):
        cdef dict places = {}
        cdef size_t i
        cdef list out
        for i in range(runs.marks_size):
            runs.marks[i].value = places.setdefault(runs.marks[i].value, len(places))
        out = [number(len(places))]
        for value in places:
            raw = self.says[value]
            out += [number(len(raw)), raw]
        return out

    cdef list read_says(self, nova_reader *r):
        cdef uint64_t i, n = nova_take_size(r, 2), size
        cdef const uint8_t *at
        cdef list out = []
        for i in range(n):
            size = nova_take_number(r)
            at = nova_take(r, size)
            if at == NULL or size > MARK_BYTES_MAX:
                raise malformed(WHAT, "what a mark says is cut or too long")
            check_spelling(at, size)
            raw = PyBytes_FromStringAndSize(<const char *>at, size)
            read_say(raw)
            out.append(raw)
        return out

    cdef int adopt(self, Sequence other, nova_runs *runs) except -1:
        cdef size_t i
        for i in range(runs.marks_size):
            runs.marks[i].value = self.say((<RGA>other).says[runs.marks[i].value])
        return 0

    cdef int settle(self, bint kept) except -1:
        if kept:
            self.says_kept = len(self.says)
        while len(self.says) > self.says_kept:
            del self.says_numbers[self.says.pop()]
        return 0
