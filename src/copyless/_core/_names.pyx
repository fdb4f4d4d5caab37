# cython: language_level=3, freethreading_compatible=True, auto_pickle=False
"""Names of blocks: publishing, finding, waiting for and removing them."""
from cpython.bytes cimport PyBytes_AS_STRING
from cpython.exc cimport PyErr_CheckSignals
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memset

from copyless._core._blocks cimport Block, due, hurry
from copyless._core._check cimport after_a_slice, check, deadline_of, new_wait, served, Wait
from copyless._core._handles cimport wire_of_memory
from copyless._core._store cimport tell_news, the_store
from copyless._core.c_library cimport (
    CL_AGAIN, CL_EXISTS, CL_FOREVER, CL_MAY_WAIT, CL_MISSING, CL_OK, cl_control, cl_lookup, cl_monotonic_ns, cl_named, cl_peek, cl_publish, cl_seen, cl_spin, cl_stay_awake, cl_store, CL_TIMEOUT,
    cl_unpublish, cl_unpublish_of, cl_wait, CL_KIND_QUEUE, CL_KIND_RING, CL_RING_OPEN, cl_queue_head, cl_queue_size, cl_ring_head,
)

from copyless._core._blocks import Late, object_kind


def in_time(timeout, function, *arguments):
    """The result of a function, which raises `Late` if the registry's lock is not free within so many seconds (None: no limit)."""
    cdef int64_t before = hurry(deadline_of(timeout))
    try:
        return function(*arguments)
    finally:
        hurry(before)


def publish(Block block, bytes name, uint64_t spec_offset, uint64_t spec_length, bint persist):
    cdef const char *text = PyBytes_AS_STRING(name)
    cdef uint32_t n = len(name)
    cdef Wait wait = new_wait()
    cdef int rc = CL_AGAIN
    while rc == CL_AGAIN:
        with nogil:
            rc = cl_publish(block.store, text, n, block.ref.segment, block.ref.index, spec_offset, spec_length, persist,
                            CL_MAY_WAIT)
        rc = served(&wait, rc, CL_FOREVER)
    tell_news(block.store)
    if rc == CL_EXISTS:
        return False
    check(rc)
    return True


def ended(Block block):
    """(whether the queue or ring in a block was shut down for good, the number of its items); for other kinds, (False, 0)."""
    cdef uint32_t kind = object_kind(block)
    cdef cl_queue_head *queue = <cl_queue_head *>block.ref.data
    if kind == CL_KIND_QUEUE and block.ref.capacity >= sizeof(cl_queue_head) and cl_seen(&queue.state) != 0:
        return True, cl_queue_size(queue)
    if kind == CL_KIND_RING and block.ref.capacity >= sizeof(cl_ring_head):
        return cl_seen(&(<cl_ring_head *>block.ref.data).state) != CL_RING_OPEN, 0
    return False, 0


def lookup(bytes name):
    """(handle, offset and length of the description, whether the name persists), or None. Searches the store in use, then earlier ones.

    `Late` if the registry's lock is not free in time."""
    cdef cl_store *store = the_store()
    cdef const char *text = PyBytes_AS_STRING(name)
    cdef uint32_t n = len(name)
    cdef cl_named found
    cdef Wait wait = new_wait()
    cdef int64_t until = after_a_slice(due())
    cdef int rc
    while True:
        rc = CL_AGAIN
        while rc == CL_AGAIN:
            with nogil:
                cl_stay_awake(until < 0)
                rc = cl_lookup(store, text, n, CL_MAY_WAIT, &found)
                cl_stay_awake(False)
            rc = served(&wait, rc, until)
        if rc != CL_MISSING or store.older == NULL or not store.older.open:
            break
        store = store.older
    if rc == CL_MISSING or rc == CL_OK:
        tell_news(store)
    if rc == CL_MISSING:
        return None
    if rc == CL_TIMEOUT:
        raise Late
    check(rc)
    return wire_of_memory(store, &found.address, found.nbytes), found.spec_offset, found.spec_length, found.persists != 0


def unpublish(bytes name):
    cdef cl_store *store = the_store()
    cdef const char *text = PyBytes_AS_STRING(name)
    cdef uint32_t n = len(name)
    cdef Wait wait = new_wait()
    cdef int rc
    while True:
        rc = CL_AGAIN
        while rc == CL_AGAIN:
            with nogil:
                rc = cl_unpublish(store, text, n, CL_MAY_WAIT)
            rc = served(&wait, rc, CL_FOREVER)
        if rc != CL_MISSING or store.older == NULL or not store.older.open:
            break
        store = store.older
    if rc == CL_MISSING:
        return False
    check(rc)
    return True


def unpublish_of(bytes name, Block block):
    """The same, only if the name belongs to this block. Returns whether it did."""
    cdef const char *text = PyBytes_AS_STRING(name)
    cdef uint32_t n = len(name)
    cdef Wait wait = new_wait()
    cdef int rc = CL_AGAIN
    while rc == CL_AGAIN:
        with nogil:
            rc = cl_unpublish_of(block.store, text, n, block.ref.segment, block.ref.index, CL_MAY_WAIT)
        rc = served(&wait, rc, CL_FOREVER)
    if rc == CL_MISSING:
        return False
    check(rc)
    return True


def leads_elsewhere(bytes name, Block block):
    """Whether a name belongs to another block than this one; False if it belongs to none."""
    cdef cl_store *store = the_store()
    cdef const char *text = PyBytes_AS_STRING(name)
    cdef uint32_t n = len(name)
    cdef cl_named found
    cdef Wait wait = new_wait()
    cdef int rc = CL_AGAIN
    while rc == CL_AGAIN:
        with nogil:
            rc = cl_lookup(store, text, n, CL_MAY_WAIT, &found)
        rc = served(&wait, rc, CL_FOREVER)
    if rc != CL_OK:
        return False
    return (found.address.segment_id != block.ref.segment_id or found.address.segment != block.ref.segment
            or found.address.index != block.ref.index)


def names_seq():
    cdef cl_store *store = the_store()
    cdef cl_control c
    cdef Wait wait = new_wait()
    cdef int64_t until = after_a_slice(due())
    cdef int rc = CL_AGAIN
    while rc == CL_AGAIN:
        with nogil:
            cl_stay_awake(until < 0)
            rc = cl_peek(store, &c, CL_MAY_WAIT)
            cl_stay_awake(False)
        rc = served(&wait, rc, until)
    if rc == CL_TIMEOUT:
        raise Late
    check(rc)
    return cl_seen(&c.names_seq)


def wait_for_name(uint32_t seen, double seconds):
    """Wait until a name is published after `names_seq()` was `seen`, at most `seconds`; handles signals."""
    cdef cl_store *store = the_store()
    cdef cl_spin spin
    cdef Wait wait = new_wait()
    cdef int rc = CL_AGAIN
    cdef int64_t deadline = cl_monotonic_ns() + <int64_t>(seconds * 1e9)
    memset(&spin, 0, sizeof(spin))
    while rc == CL_AGAIN:
        with nogil:
            rc = cl_wait(&store.control.names_seq, seen, deadline, &spin)
        rc = served(&wait, rc, CL_FOREVER)
    PyErr_CheckSignals()
    return rc == CL_OK
