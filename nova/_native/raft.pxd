cdef class LogState:
    cdef public object offset, offset_term, durable
    cdef public list entries
    cdef public object _syncing
    cdef long long last_position(self) except? -1
    cdef object newest_term(self)
    cdef object term_at(self, long long position)
    cdef long long durable_at(self, long long token) except? -1


cdef class ProgressState:
    cdef public object matched, next, mode, active, paused, quiet, flying, flying_bytes, snapshot_position
    cdef public object snapshot_offset


cdef class RaftState:
    cdef public object node, term, voted_for, committed, role, options
    cdef public LogState log
    cdef public object _leader, _told, _token, _durable_token, _held, _elapsed, _heard, _uncommitted_bytes
    cdef public object _transferee, _sealed_at
    cdef public list _configurations
    cdef public dict _progress


cdef class Steady:
    cdef object append, reply, entry, committed, persisted, outputs, pack, follower, leader, replicate
    cdef object made(self, list persist, list send, list apply, list early)
    cdef object commit(self, RaftState core, long long position)
    cdef bint counts(self, RaftState core, long long position) except *
    cdef int lighter(self, RaftState core, tuple entries) except -1
    cdef long long stored(self, RaftState core, object peer, long long matched, long long durable) except -2
    cdef object follow(self, RaftState core, object sender, object message)
    cdef object replicate_all(self, RaftState core, object entries)
    cdef object synced(self, RaftState core, object token)
    cdef object lead(self, RaftState core, object sender, object message)
