# From a result of the C library to an exception. All of this is inline: the calling thread asks the library for the error of
# the call that it made, and for the process that the call has waited for.
from cpython.exc cimport PyErr_CheckSignals
from libc.stdint cimport int64_t, uint32_t

from copyless._core.c_library cimport (
    CL_AGAIN, CL_FOREVER, CL_OK, CL_SLICE_NS, CL_TIMEOUT, cl_error, cl_last_error, cl_monotonic_ns, cl_waiting, cl_waits,
)


cdef inline int fail(int rc) except -1:
    """Raise the exception for a result."""
    cdef cl_error *e = cl_last_error()
    from copyless._core.failures import native_error
    if e.code != rc:  # the call left no text; the present text belongs to another call
        raise native_error(rc, 0, "", 0)
    e.code = CL_OK
    raise native_error(rc, e.sys, (<bytes>e.what).decode("utf-8", "replace"), e.asked)


cdef inline int check(int rc) except -1:
    """Raise unless a call succeeded."""
    if rc != CL_OK:
        fail(rc)
    return 0


cdef inline int64_t deadline_of(timeout) except -1:
    """The monotonic time at which a wait of `timeout` seconds (None: for ever) ends."""
    cdef double seconds
    if timeout is None:
        return CL_FOREVER
    seconds = timeout
    if seconds != seconds:
        raise ValueError("timeout must be a number of seconds, not NaN")
    if seconds <= 0:
        return 0
    if seconds > 9e9:
        return CL_FOREVER
    return cl_monotonic_ns() + <int64_t>(seconds * 1e9)


# A call that waits does so in slices, without the GIL:
#
#     rc = cl_something(..., 0)
#     while rc == CL_AGAIN:
#         with nogil:
#             rc = cl_something(..., CL_MAY_WAIT)
#         rc = served(&wait, rc, deadline)

cdef enum:
    AT_ONCE = -1  # a deadline for event loops: try, and do not sleep


cdef struct Wait:  # the state of one call over its slices
    uint32_t holder  # the process that it waits for, as a lock word; 0: none
    int64_t since_ns
    int64_t tell_ns  # when that process is logged


cdef inline Wait new_wait() noexcept nogil:
    return Wait(0, 0, 0)


cdef inline int served(Wait *wait, int rc, int64_t deadline_ns, bint users=False) except -100:
    """The result of a slice. Between two slices, signals are handled, and the process that the call waits for is logged.

    CL_AGAIN becomes CL_TIMEOUT after the deadline (CL_FOREVER: the C library checks it). `users`: a user may hold the lock for
    any time, so its holder is logged only if it is stopped.
    """
    cdef cl_waiting *waits
    cdef int64_t now
    if rc != CL_AGAIN:
        return rc
    waits = cl_waits()
    now = cl_monotonic_ns()
    if waits.holder == 0:
        wait.holder = 0
    elif waits.holder != wait.holder:
        wait.holder, wait.since_ns, wait.tell_ns = waits.holder, waits.since_ns, waits.since_ns + 1000000000
    elif now >= wait.tell_ns:
        from copyless._core.waiting import tell
        wait.tell_ns = CL_FOREVER if tell(waits.pid, (now - wait.since_ns) * 1e-9, users) else now + 1000000000
    waits.holder = 0  # valid for this slice; the next one sets it again
    PyErr_CheckSignals()
    return CL_TIMEOUT if deadline_ns != CL_FOREVER and now >= deadline_ns else rc


cdef inline int64_t after_a_slice(int64_t deadline_ns) noexcept nogil:
    """The deadline, or the end of a slice from now if that is later: for internal locks, which are held for microseconds.

    AT_ONCE is returned unchanged: the thread then does not sleep at all (`cl_stay_awake`).
    """
    cdef int64_t slice_ends
    if deadline_ns == CL_FOREVER or deadline_ns < 0:  # AT_ONCE
        return deadline_ns
    slice_ends = cl_monotonic_ns() + CL_SLICE_NS
    return deadline_ns if deadline_ns > slice_ends else slice_ends
