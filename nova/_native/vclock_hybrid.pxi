# Hybrid logical clocks: stamps near the wall's time that never go back. Part of vclock.pyx.

def stamp_ms(stamp):
    """Unix milliseconds of a stamp."""
    return stamp >> 16


cdef class HybridLogicalClock:
    """Time that respects causality and stays near the wall clock (Kulkarni et al. 2014).

    A stamp is an int: unix milliseconds << 16 | counter. Stamps of one clock only rise, also when the wall clock steps
    back; a counter that is full carries into the milliseconds. The caller brings the wall clock, in nanoseconds.
    After a restart, `last` must be at least the greatest stamp ever given out or received.
    """

    def __init__(self, drift_ms_max=60_000, last=0):
        if isinstance(drift_ms_max, bool) or not isinstance(drift_ms_max, int) or not 0 <= drift_ms_max < 1 << 48:
            raise UsageError(f"drift_ms_max is {drift_ms_max!r}; it is an int from 0 to 2**48 - 1")
        if isinstance(last, bool) or not isinstance(last, int) or not 0 <= last <= U64_MAX:
            raise UsageError(f"last is {last!r}; a stamp is an int from 0 to 2**64 - 1")
        self.drift_ms_max = drift_ms_max
        self.last_stamp = last

    @property
    def last(self):
        """The greatest stamp given out or received."""
        return self.last_stamp

    cdef uint64_t tick_c(self, int64_t wall_ns) except? 0:
        cdef uint64_t wall = 0
        if wall_ns > 0:
            wall = <uint64_t>wall_ns // 1_000_000 << 16
        if self.last_stamp < wall:
            self.last_stamp = wall
        elif self.last_stamp == U64_MAX:
            raise UsageError(f"stamp {self.last_stamp} is the last one of 64 bits; set the wall clock that made it right")
        else:
            self.last_stamp += 1
        return self.last_stamp

    cdef uint64_t receive_c(self, uint64_t stamp, int64_t wall_ns) except? 0:
        cdef uint64_t wall_ms = 0, last = self.last_stamp
        if wall_ns > 0:
            wall_ms = <uint64_t>wall_ns // 1_000_000
        if stamp >> 16 > wall_ms + self.drift_ms_max:
            raise UsageError(
                f"stamp {stamp} is {(stamp >> 16) - wall_ms} ms ahead of this clock; the limit is {self.drift_ms_max} ms; "
                "set the clock of its sender (or ours) right")
        if stamp == U64_MAX:
            raise UsageError(f"stamp {stamp} is the last one of 64 bits; set the clock of its sender right")
        if self.last_stamp < stamp:
            self.last_stamp = stamp
        return self.tick_c(wall_ns)

    def tick(self, int64_t wall_ns):
        """A stamp for an event here, greater than all before."""
        return self.tick_c(wall_ns)

    def receive(self, stamp, int64_t wall_ns):
        """Take note of a remote stamp; returns one greater than it, than all before, and not behind the wall.

        raises   UsageError if the stamp is more than `drift_ms_max` ahead of the wall; the clock is then as before
        """
        if isinstance(stamp, bool) or not isinstance(stamp, int) or not 0 <= stamp <= U64_MAX:
            raise UsageError(f"stamp {stamp!r} is none; a stamp is an int from 0 to 2**64 - 1")
        return self.receive_c(stamp, wall_ns)

    def __repr__(self):
        return f"HybridLogicalClock(drift_ms_max={self.drift_ms_max}, last={self.last_stamp})"
