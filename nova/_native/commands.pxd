cdef class Session:
    cdef readonly long long floor
    cdef readonly dict answers
    cdef long long seen
    cdef unsigned long long round


cdef class Pending:
    cdef readonly object command
    cdef public long long age
    cdef public bint queued
    cdef readonly bint retries


cdef class Call:
    cdef readonly object waiter
    cdef readonly Py_ssize_t place
    cdef readonly double began_s
    cdef readonly object data, key
    cdef readonly bint timed
    cdef int tell(self, object answer) except -1


cdef class CallTable:
    cdef public object session, backlog
    cdef public long long _sequence, _answered
    cdef public dict _flying
    cdef readonly Py_ssize_t calls_max, window
    cdef object submit, command, later, ok
    cpdef admit(self, Py_ssize_t count)
    cpdef bint fly(self, Call call) except *
    cdef Call answer(self, object command, object outcome)


cdef class Answers:
    cdef CallTable calls
    cdef object kind, observe, clock, pump, other, fatal
