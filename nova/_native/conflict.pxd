from nova._native.vclock cimport VectorClock


# What is wrong between versions; see conflict.pyx.
cdef class Conflict:
    cdef readonly object resource_id, kind, severity, siblings, base, reason
    cdef readonly tuple versions, types, paths, contentions, broken
    cdef readonly bint auto_resolvable
    cdef object named, weighed
    cdef Conflict source         # of which this is a part
    cdef bint is_whole(self)
    cdef object version(self, Py_ssize_t at)
    cdef tuple told(self)


cdef class Resolution:
    cdef readonly object value, strategy, confidence, settled, siblings, attempts
    cdef readonly VectorClock clock
    cdef readonly tuple discarded, alarms, via, actions
    cdef readonly bint pending
    cdef tuple said             # None: say(about) tells it
    cdef object say, about
    cdef tuple told(self)
