# nova/_native/meter.pyx - owner of metric cells; csrc/meter.h has the theory
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.math cimport isfinite
from libc.stdint cimport int32_t, int64_t, uint64_t
from libc.stdio cimport snprintf
from libc.stdlib cimport calloc, free, realloc
from libc.string cimport memcpy

from nova.errors import UsageError

cdef extern from "meter.h" nogil:
    double NOVA_SKETCH_ERROR
    double NOVA_SKETCH_MIN
    double NOVA_SKETCH_MAX
    size_t nova_meter_bucket(const double *bounds, size_t n, double v)
    int32_t nova_sketch_bin(double v)
    double nova_sketch_quantile(const uint64_t *bins, size_t size, int32_t low, uint64_t zeros, uint64_t count,
                                double q)

QUANTILE_ERROR_RATIO = NOVA_SKETCH_ERROR


cdef class Cell:
    """One number of a counter or gauge; a `function` given at construction is asked for it instead."""

    def __cinit__(self, function=None):
        self.amount = 0
        self.function = function

    @property
    def value(self):
        """The number."""
        return self.amount if self.function is None else float(self.function())

    def inc(self, double amount=1.0):
        """Add `amount`."""
        self.amount += amount

    def count(self, double amount=1.0):
        """Add `amount`, which is not negative: counters only rise."""
        if not amount >= 0:
            raise UsageError(f"a counter cannot be raised by {amount}; counters only rise: use a gauge")
        self.amount += amount

    def dec(self, double amount=1.0):
        """Take `amount` away."""
        self.amount -= amount

    def set(self, double value):
        """Replace the number."""
        self.amount = value


cdef class Distribution:
    """Values as fixed buckets (for Prometheus) and as a quantile sketch with 1% relative error (for us)."""

    def __cinit__(self, tuple bounds not None):
        cdef size_t i
        self.n = len(bounds)
        self.limits = <double *>calloc(self.n + 1, sizeof(double))
        self.counts = <uint64_t *>calloc(self.n + 1, sizeof(uint64_t))
        if self.limits == NULL or self.counts == NULL:
            raise MemoryError
        for i in range(self.n):
            self.limits[i] = bounds[i]
            if i and not self.limits[i - 1] < self.limits[i]:
                raise UsageError(f"bucket bounds {bounds!r} do not ascend; give each once, smallest first")

    def __dealloc__(self):
        free(self.limits)
        free(self.counts)
        free(self.bins)

    cdef int admit(self, int32_t low, int32_t high) except -1:
        """Make the window of bins cover low..high."""
        cdef size_t size, i
        cdef uint64_t *bins
        if self.size:
            if low >= self.low and high < self.low + <int32_t>self.size:
                return 0
            if low > self.low:
                low = self.low
            if high < self.low + <int32_t>self.size - 1:
                high = self.low + <int32_t>self.size - 1
        low -= 16
        high += 16
        size = <size_t>(high - low + 1)
        bins = <uint64_t *>calloc(size, sizeof(uint64_t))
        if bins == NULL:
            raise MemoryError
        for i in range(self.size):
            bins[<size_t>(self.low - low) + i] = self.bins[i]
        free(self.bins)
        self.bins = bins
        self.size = size
        self.low = low
        return 0

    def observe(self, double value):
        """Count one value. Negative values count as zero in the sketch; NaN is refused."""
        cdef int32_t bin
        if value != value:
            raise UsageError("a histogram was given NaN; observe numbers only")
        if value < NOVA_SKETCH_MIN:
            self.zeros += 1
        else:
            bin = nova_sketch_bin(value if value < NOVA_SKETCH_MAX else NOVA_SKETCH_MAX)
            if bin < self.low or bin >= self.low + <int32_t>self.size:
                self.admit(bin, bin)
            self.bins[bin - self.low] += 1
        self.counts[nova_meter_bucket(self.limits, self.n, value)] += 1
        self.total += 1
        self.added += value

    def quantile(self, double q):
        """The value at quantile `q`, within 1% (of values between 1e-9 and 1e12), or NaN if there are none."""
        if not 0 <= q <= 1:
            raise UsageError(f"quantile {q} is asked for; quantiles lie between 0 and 1")
        if self.total == 0:
            return float("nan")
        return nova_sketch_quantile(self.bins, self.size, self.low, self.zeros, self.total, q)

    def merge(self, Distribution other not None):
        """Add all that `other` saw, exactly: as if both had been one."""
        cdef size_t i
        if self.bounds != other.bounds:
            raise UsageError(f"buckets {other.bounds} cannot be merged into {self.bounds}; they must be equal")
        if other.size:
            self.admit(other.low, other.low + <int32_t>other.size - 1)
            for i in range(other.size):
                self.bins[<size_t>(other.low - self.low) + i] += other.bins[i]
        for i in range(self.n + 1):
            self.counts[i] += other.counts[i]
        self.zeros += other.zeros
        self.total += other.total
        self.added += other.added

    @property
    def bounds(self):
        """Upper bounds of the buckets, without infinity."""
        return tuple([self.limits[i] for i in range(self.n)])

    @property
    def count(self):
        """How many values were seen."""
        return self.total

    @property
    def sum(self):
        """Their sum."""
        return self.added

    @property
    def buckets(self):
        """How many values each bucket holds by itself; the last is for those over every bound."""
        return tuple([self.counts[i] for i in range(self.n + 1)])


cdef class Page:
    """Text under construction."""

    cdef char *text
    cdef size_t used, room

    def __dealloc__(self):
        free(self.text)

    cdef int put(self, const char *text, size_t size) except -1:
        cdef char *grown
        if self.room - self.used < size:
            grown = <char *>realloc(self.text, 2 * self.room + size + 4096)
            if grown == NULL:
                raise MemoryError
            self.text = grown
            self.room = 2 * self.room + size + 4096
        memcpy(self.text + self.used, text, size)
        self.used += size
        return 0

    cdef int sample(self, bytes name, double value) except -1:
        cdef char number[32]
        cdef bytes text
        self.put(PyBytes_AS_STRING(name), PyBytes_GET_SIZE(name))
        if isfinite(value) and -1e15 < value < 1e15 and value == <double><int64_t>value:
            self.put(number, snprintf(number, sizeof(number), " %lld\n", <long long>value))
        else:
            text = f" {value!r}\n".replace("inf", "Inf").replace("nan", "NaN").encode()
            self.put(PyBytes_AS_STRING(text), PyBytes_GET_SIZE(text))
        return 0


def render_cells(list names not None, list cells not None):
    """One line for each cell: its name with labels, and its number. A cell whose function raises says NaN."""
    cdef Page page = Page()
    cdef Cell cell
    cdef double value
    for name, cell in zip(names, cells):
        if cell.function is None:
            value = cell.amount
        else:
            try:
                value = cell.value
            except Exception:
                value = float("nan")
        page.sample(name, value)
    return PyBytes_FromStringAndSize(page.text, page.used)


def render_distributions(list names not None, list distributions not None):
    """The lines of each distribution; its names are those of its buckets, and then of its sum and count."""
    cdef Page page = Page()
    cdef Distribution one
    cdef tuple lines
    cdef size_t i
    cdef uint64_t below
    for lines, one in zip(names, distributions):
        below = 0
        for i in range(one.n + 1):
            below += one.counts[i]
            page.sample(lines[i], <double>below)
        page.sample(lines[one.n + 1], one.added)
        page.sample(lines[one.n + 2], <double>one.total)
    return PyBytes_FromStringAndSize(page.text, page.used)
