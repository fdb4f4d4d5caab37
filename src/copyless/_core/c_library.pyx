# cython: language_level=3, freethreading_compatible=True
"""The constants of the C library for Python: the results of its calls, and the kinds of objects in blocks. And the limits of this
process, which an error names when no descriptor is left to load `resource` with."""
cdef extern from "<sys/resource.h>":
    ctypedef uint64_t rlim_t
    struct rlimit:
        rlim_t rlim_cur
    rlim_t RLIM_INFINITY
    int getrlimit(int kind, rlimit *limit)
    int _AS "RLIMIT_AS", _FSIZE "RLIMIT_FSIZE", _NOFILE "RLIMIT_NOFILE", _NPROC "RLIMIT_NPROC"


CORRUPT, STALE, FULL, TABLE_FULL, SYSTEM, CLOSED, FORKED = CL_CORRUPT, CL_STALE, CL_FULL, CL_TABLE_FULL, CL_SYSTEM, CL_CLOSED, CL_FORKED
RETRY, FOREIGN, OTHER_FORMAT, REMOVED = CL_RETRY, CL_FOREIGN, CL_OTHER_FORMAT, CL_REMOVED
MAX_OWNERS, MAX_SEGMENTS, MAX_HOLDS, MAX_NAMES = CL_CARETAKER, CL_MAX_SEGMENTS, CL_MAX_HOLDS, CL_MAX_NAMES
LAYOUT, FORMAT = CL_LAYOUT, CL_FORMAT

KIND_LOCK, KIND_RLOCK, KIND_RWLOCK = CL_KIND_LOCK, CL_KIND_RLOCK, CL_KIND_RWLOCK
KIND_SEMAPHORE, KIND_ROBUST_SEMAPHORE = CL_KIND_SEMAPHORE, CL_KIND_ROBUST_SEMAPHORE
KIND_CONDITION, KIND_EVENT, KIND_BARRIER = CL_KIND_CONDITION, CL_KIND_EVENT, CL_KIND_BARRIER
KIND_QUEUE, KIND_RING = CL_KIND_QUEUE, CL_KIND_RING
QUEUE_BYTES = sizeof(cl_queue_head)
MUTEX_BYTES = sizeof(cl_mutex)

RLIMIT_AS, RLIMIT_FSIZE, RLIMIT_NOFILE, RLIMIT_NPROC = _AS, _FSIZE, _NOFILE, _NPROC


def soft_limit(int kind):
    """The soft limit of this process of one kind, `RLIMIT_...`; 0 if there is none."""
    cdef rlimit limit
    if getrlimit(kind, &limit) != 0 or limit.rlim_cur == RLIM_INFINITY:
        return 0
    return limit.rlim_cur
