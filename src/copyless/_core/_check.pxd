# From a result of the C library to an exception. All of this is inline: each module asks the copy of the library that is linked
# into it for the error of the call that it made itself.
from libc.stdint cimport int64_t

from copyless._core.c_library cimport CL_FOREVER, CL_OK, cl_error, cl_last_error, cl_monotonic_ns


cdef inline int fail(int rc) except -1:
    """Raise what a result means."""
    cdef cl_error *e = cl_last_error()
    from copyless._core.failures import native_error
    if e.code != rc:  # the call left no text; what is there belongs to another one
        raise native_error(rc, 0, "", 0)
    e.code = CL_OK
    raise native_error(rc, e.sys, (<bytes>e.what).decode("utf-8", "replace"), e.asked)


cdef inline int check(int rc) except -1:
    """Raise unless a call went well."""
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
        raise ValueError("timeout is not a number")
    if seconds <= 0:
        return 0
    if seconds > 9e9:
        return CL_FOREVER
    return cl_monotonic_ns() + <int64_t>(seconds * 1e9)
