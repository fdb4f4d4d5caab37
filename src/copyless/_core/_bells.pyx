# cython: language_level=3, freethreading_compatible=True, auto_pickle=False
"""The binding of bells.h and bell_thread.h: waiting for many objects, and descriptors that are readable when an object is ready.

The public functions are in `copyless.waiting`.
"""
cimport cython
from libc.errno cimport EAGAIN, EBADF, errno
from libc.stdint cimport int64_t, uint8_t, uint32_t
from libc.stdlib cimport atexit, calloc, free
from libc.string cimport memset
from posix.unistd cimport close, getpid

from copyless._core._blocks cimport Block, Object, is_elsewhere
from copyless._core._check cimport check, deadline_of, new_wait, served, Wait
from copyless._core.c_library cimport (
    CL_AGAIN, CL_FOREVER, CL_LOOK_SLICES, CL_OK, CL_SLICE_NS, CL_SYSTEM, cl_descriptor_id, cl_descriptor_id_of, cl_descriptor_is_there,
    cl_lower_descriptor, cl_place_descriptor, cl_raise_descriptor, cl_wake_descriptor, cl_signal, cl_signal_add,
    cl_signal_keep, cl_signal_remove, cl_signal_replace, cl_signal_settle, cl_signal_shut, cl_signals_forget, cl_signals_stop, cl_spin, cl_store, cl_watch, cl_watch_any, cl_watch_pass,
)

import os

from copyless._core.failures import native_error
from copyless.errors import WrongProcessError

SLICE = CL_SLICE_NS * 1e-9
LOOK_SLICES = CL_LOOK_SLICES

cdef cl_spin spin
memset(&spin, 0, sizeof(spin))
cdef bint STOPS_AT_EXIT = False


def _forget():
    cl_signals_forget()


os.register_at_fork(after_in_child=_forget)


cdef int add(cl_signal *s) except -1:
    global STOPS_AT_EXIT
    cdef int rc
    if not STOPS_AT_EXIT:  # the store is open: this function runs before it is left
        STOPS_AT_EXIT = True
        atexit(cl_signals_stop)
    with nogil:
        rc = cl_signal_add(s)
    check(rc)
    return 0


cdef int new_descriptor() except -1:
    cdef int fd = cl_wake_descriptor()
    if fd < 0:
        raise native_error(CL_SYSTEM, errno, "no descriptor to wait by could be made", 0)
    return fd


cdef class WakeDescriptor:
    """A descriptor that does not block. If the program closed it, it is not touched: another file may have its number."""
    cdef readonly int fd
    cdef cl_descriptor_id known

    def __cinit__(self):
        self.fd = -1
        self.fd = new_descriptor()
        self.known = cl_descriptor_id_of(self.fd)

    def is_there(self):
        return cl_descriptor_is_there(self.fd, self.known)

    def write(self):
        if cl_descriptor_is_there(self.fd, self.known):
            cl_raise_descriptor(self.fd)

    def empty(self):
        if not cl_descriptor_is_there(self.fd, self.known):
            raise native_error(CL_SYSTEM, EBADF, "the program closed the descriptor of a wait that was under way", 0)
        if cl_lower_descriptor(self.fd) != 0 and errno != EAGAIN:
            raise native_error(CL_SYSTEM, errno, "the descriptor of a wait could not be read", 0)

    def __dealloc__(self):
        if self.fd >= 0 and cl_descriptor_is_there(self.fd, self.known):
            close(self.fd)


@cython.no_gc_clear  # its thread uses the block until __dealloc__ stops it
cdef class Signal:
    """A descriptor of this process that is readable while an object is ready. It keeps the memory of the object, not the object."""
    cdef cl_signal s
    cdef Block block
    cdef int pid

    def __cinit__(self, *args):
        self.s.fd = -1

    def __init__(self, Object source):
        memset(&self.s, 0, sizeof(self.s))
        self.s.fd = -1
        source.watch(&self.s.watch, 0)
        self.s.watch.closed, self.s.watch.queue = NULL, NULL  # they belong to the object, which may be freed first
        self.s.store = self.s.watch.store
        self.block = source.block
        self.s.fd = new_descriptor()
        self.pid = getpid()
        try:
            add(&self.s)
        except BaseException:
            close(self.s.fd)
            self.s.fd = -1
            raise

    cdef int be_here(self) except -1:
        """In a forked child: make a new descriptor with the same number; with another one if the program closed it."""
        cdef int fd
        if self.pid == getpid():
            if not cl_descriptor_is_there(self.s.fd, self.s.known):
                fd = new_descriptor()
                if not cl_signal_replace(&self.s, fd):  # another thread was faster
                    close(fd)
            return 0
        if is_elsewhere(self.s.store):
            raise WrongProcessError("this descriptor is the parent's: this child was not forked by fork(), or could not be registered")
        fd = new_descriptor()
        if not cl_descriptor_is_there(self.s.fd, self.s.known):
            self.s.fd = fd
        elif cl_place_descriptor(fd, self.s.fd) < 0:
            close(fd)
            raise native_error(CL_SYSTEM, errno, "the descriptor could not be made again after the fork", 0)
        else:
            close(fd)
        self.pid = getpid()
        add(&self.s)
        return 0

    def fileno(self):
        self.be_here()
        cl_signal_settle(&self.s)  # an object that is ready when a wait begins is readable then
        return self.s.fd

    def settle(self):
        """Make the descriptor readable exactly if the object is ready. Returns whether it is."""
        if self.pid != getpid():
            return None  # it was not requested in this child yet
        return cl_signal_settle(&self.s) != 0

    def keep(self, bint on):
        """Keep it readable while `on`, whatever the state of the object: this process has taken an item that is not delivered yet."""
        if self.pid == getpid():
            cl_signal_keep(&self.s, on)

    def shut(self):
        """Keep it readable from now on: the object was closed."""
        if self.pid == getpid():
            cl_signal_shut(&self.s)

    def __dealloc__(self):
        if self.s.fd >= 0:
            if self.pid == getpid():
                cl_signal_remove(&self.s)
            if cl_descriptor_is_there(self.s.fd, self.s.known):
                close(self.s.fd)


cdef class Listener:
    """A descriptor that becomes readable with every ring of this process's bell in one store."""
    cdef cl_signal s
    cdef int pid
    cdef WakeDescriptor wake

    def __cinit__(self, Waiting waiting, uint32_t i, WakeDescriptor wake):
        memset(&self.s, 0, sizeof(self.s))
        self.wake = wake
        self.s.store, self.s.fd, self.s.listens = waiting.watches[i].store, wake.fd, True
        self.pid = 0
        add(&self.s)
        self.pid = getpid()

    def __dealloc__(self):
        if self.pid == getpid():
            cl_signal_remove(&self.s)


cdef class Waiting:
    """The objects of one wait in one store, as [(object, reader)...]; it keeps them alive."""
    cdef cl_watch *watches
    cdef uint8_t *ready
    cdef uint32_t n
    cdef list objects

    def __cinit__(self, list objects):
        cdef uint32_t i = 0
        cdef Object each
        self.n = len(objects)
        self.objects = objects
        self.watches = <cl_watch *>calloc(self.n + 1, sizeof(cl_watch))
        self.ready = <uint8_t *>calloc(self.n + 1, 1)
        if self.watches == NULL or self.ready == NULL:
            raise MemoryError
        for each, reader in objects:
            each.watch(&self.watches[i], reader)
            i += 1

    def __dealloc__(self):
        free(self.watches)
        free(self.ready)

    def listeners(self, WakeDescriptor wake):
        """For each store a listener that writes to it."""
        cdef uint32_t i, j
        made = []
        for i in range(self.n):
            for j in range(i):
                if self.watches[j].store == self.watches[i].store:
                    break
            else:
                made.append(Listener(self, i, wake))
        return made

    cdef list found(self):
        cdef uint32_t i
        return [i for i in range(self.n) if self.ready[i]]

    def look(self, bint ask, bint deaths):
        """The indices of the objects that are ready now. `ask`: listen to the bell from now on."""
        cdef uint32_t n
        with nogil:
            n = cl_watch_pass(self.watches, self.n, self.ready, ask, deaths)
        return self.found() if n else []

    @property
    def is_of_one_store(self):
        cdef uint32_t i
        for i in range(1, self.n):
            if self.watches[i].store != self.watches[0].store:
                return False
        return self.n != 0

    def forget_who_is_left(self):
        """A wait with a timeout does not check whether producers are left, like a get with a timeout."""
        cdef uint32_t i
        for i in range(self.n):
            self.watches[i].queue = NULL

    def wait(self, timeout):
        """Sleep on the bell until an object is ready: the indices, none after `timeout` seconds. All objects are of one store."""
        cdef Wait wait = new_wait()
        cdef int64_t deadline = deadline_of(timeout)
        cdef uint32_t slices = 0
        cdef int rc = CL_AGAIN
        if deadline != CL_FOREVER:
            self.forget_who_is_left()
        while rc == CL_AGAIN:
            with nogil:
                rc = cl_watch_any(self.watches, self.n, self.ready, &slices, deadline, &spin)
            rc = served(&wait, rc, deadline)
        return self.found() if rc == CL_OK else []
