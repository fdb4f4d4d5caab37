# cython: language_level=3, freethreading_compatible=True, auto_pickle=False
"""Messages of ranks, in queues that are their inboxes. An envelope before the object says which receive may get it.

An item of an inbox is what `_queue` makes of the object, with an envelope of 32 bytes between the tokens and the pickle. Plain
values are unpickled when they are taken from the inbox, since that runs no code; all others when they are received, by the
thread that receives them.

After a SIGKILL an inbox is what queue_layout.h promises of a queue: a message is there whole, or not at all. A message that was
taken and not opened belongs to its process: its block and holds are released with the process.
"""
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.dict cimport PyDict_GetItem
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

from copyless._core._blocks cimport Block
from copyless._core._check cimport deadline_of
from copyless._objects._queue cimport _Queue
from copyless._transfer._codec cimport Packed, pack, unpack, unsend
from copyless._transfer._plain cimport NOTHING, PLAIN_MOST, dump_plain, load_plain
from copyless._core.c_library cimport (
    CL_FOREVER, CL_OK, CL_ROLE_GETS, CL_TIMEOUT, cl_got, cl_item, cl_queue, cl_queue_abort, cl_queue_poll, cl_store, cl_token,
)

import os

from copyless._core._blocks import Late
from copyless.comm import _constants
from copyless.errors import CorruptSegmentError

cdef object ANY_SOURCE = _constants.ANY_SOURCE, ANY_TAG = _constants.ANY_TAG
cdef long TAG_MOST = _constants.TAG_MOST

cdef extern from "Python.h":
    long PyLong_AsLongAndOverflow(object o, int *overflow) except? -1
    bint PyLong_CheckExact(object o)

cdef extern from *:
    """
    #include <stdatomic.h>
    static int cl_test_and_set(int *flag)
    {
        return atomic_exchange_explicit((_Atomic int *)flag, 1, memory_order_acquire);
    }
    static void cl_reset(int *flag)
    {
        atomic_store_explicit((_Atomic int *)flag, 0, memory_order_release);
    }
    """
    int cl_test_and_set(int *flag) nogil
    void cl_reset(int *flag) nogil

cdef enum:
    MARK = 69  # no item of another kind begins with this byte
    NO_NUMBER = -100  # for values that are not a rank or tag

cdef struct envelope:
    uint32_t mark
    int32_t source, tag, sender
    int64_t context, number

cdef struct letter:
    envelope label
    uint8_t pickle[PLAIN_MOST]

# How long the fast path spins for a message, and how long a waiter spins before it sleeps: a wake-up takes a fifth of that.
cdef int64_t SOON_NS = 100000, LATER_NS = 500000
cdef int64_t CROWDED_NS = 3000  # instead of the first, and 0 instead of the second, if there are more ranks than processors

# Whether objects are pickled by the caller's own functions: then none takes the fast path.
cdef bint own_pickle = False


def use_own_pickle(bint own):
    """Set whether objects are pickled by the caller's own functions."""
    global own_pickle
    own_pickle = own


# A forked child is not a rank: objects that were made before the fork belong to its parent.
cdef int generation = 0


def _forked():
    global generation
    generation += 1


os.register_at_fork(after_in_child=_forked)


cdef class Parcel:
    """A message that has arrived. `open` makes its object, once.

    Attributes
    ----------
    context, source, tag : int
        The communicator, the rank in it that sent the message, and the tag.
    number, sender : int
        The number that a waiting sender expects as acknowledgement, else 0; the sender's rank in the group.
    nbytes : int
        Bytes of the pickle and its buffers.
    """
    cdef envelope label
    cdef readonly uint64_t nbytes
    cdef bint is_value
    cdef object content  # the value, or the bytes of the item
    cdef cl_store *store  # of the inbox
    cdef cl_token *tokens  # the holds on memory that the bytes name; this process has them until it opens the bytes
    cdef uint32_t ntokens

    def __dealloc__(self):
        if self.tokens != NULL:
            unsend(self.store, self.tokens, self.ntokens)
            free(self.tokens)

    @property
    def context(self):
        return self.label.context

    @property
    def source(self):
        return self.label.source

    @property
    def tag(self):
        return self.label.tag

    @property
    def number(self):
        return self.label.number

    @property
    def sender(self):
        return self.label.sender

    def open(self):
        """The object."""
        content, self.content = self.content, None
        if self.is_value:
            return content
        broken_off = False
        try:
            return unpack(self.store, content, self.ntokens, sizeof(envelope))
        except (Late, KeyboardInterrupt):
            broken_off = True  # its holds are released with this parcel
            raise
        finally:
            if not broken_off:  # unpickling has taken them over
                free(self.tokens)
                self.tokens = NULL


cdef class Inbox:
    """Inbox(queues, rank, arrive, posted, unexpected, changed, crowded)

    One rank's side of the inboxes of a group.

    Parameters
    ----------
    queues
        The inboxes of all ranks.
    rank
        The rank of this process.
    arrive
        Called with each message that the fast path takes and that is not for its caller.
    posted, unexpected
        By communicator, the pending receives and the messages that no receive waits for. The fast path is only used if there
        are none before the caller.
    changed
        A condition, notified when a thread has read while others wait.
    crowded
        Whether there are more ranks than processors.
    """
    cdef list queues
    cdef _Queue queue
    cdef int rank, reading, made
    cdef int64_t soon, later
    cdef public int waiting
    cdef object arrive, changed
    cdef dict posted, unexpected

    def __init__(self, list queues, int rank, arrive, dict posted, dict unexpected, changed, bint crowded):
        self.queues, self.queue, self.rank = queues, queues[rank], rank
        self.arrive, self.posted, self.unexpected, self.changed = arrive, posted, unexpected, changed
        self.made = generation
        self.soon = CROWDED_NS if crowded else SOON_NS
        self.later = 0 if crowded else LATER_NS

    @property
    def inherited(self):
        """Whether this process is a forked child of the rank that has the inbox."""
        return self.made != generation

    # ---- one thread reads at a time

    def begin(self):
        """Whether the caller may read now; then it must call `leave`."""
        return not cl_test_and_set(&self.reading)

    cpdef leave(self):
        cl_reset(&self.reading)
        if self.waiting:
            with self.changed:
                self.changed.notify_all()

    cdef int look_on(self, int64_t budget_ns) except -1:
        cdef cl_queue *q = &self.queue.q
        self.queue.use(CL_ROLE_GETS)
        if cl_queue_poll(q, 0):
            return True
        with nogil:
            return cl_queue_poll(q, budget_ns)

    def poll(self):
        """Spin for a while until a message arrives. Only for the thread that may read."""
        return self.look_on(self.later) != 0

    cpdef Parcel next(self, timeout):
        """The next message, after waiting at most so many seconds; None: there is none. Only for the thread that may read."""
        cdef cl_got got
        if self.queue.begin(deadline_of(timeout) if timeout else 0, &got) == CL_TIMEOUT:
            return None
        return self.parcel(&got)

    cdef Parcel parcel(self, cl_got *got):
        """The message that was taken. Taking it is committed."""
        cdef Parcel made
        cdef letter item
        cdef const uint8_t *data
        cdef uint32_t ntokens = got.ntokens
        cdef uint64_t of_tokens = ntokens * sizeof(cl_token), nbytes = got.nbytes
        try:
            made = Parcel.__new__(Parcel)
        except BaseException:
            self.queue.forget(got)
            raise
        made.store = self.queue.store
        if got.body != NULL and ntokens == 0 and sizeof(envelope) <= nbytes <= sizeof(item):
            memcpy(&item, got.body, nbytes)
            self.queue.finish(got)
            made.label = item.label
            made.content = load_plain(item.pickle, nbytes - sizeof(envelope)) if nbytes > sizeof(envelope) else NOTHING
            made.is_value = made.content is not NOTHING
            if not made.is_value:
                made.content = PyBytes_FromStringAndSize(<char *>&item, <Py_ssize_t>nbytes)
        else:
            made.content = self.queue.body(got)
            data = (<Block>made.content).ref.data if isinstance(made.content, Block) else <uint8_t *>PyBytes_AS_STRING(made.content)
            if nbytes < of_tokens + sizeof(envelope):
                raise CorruptSegmentError(f"a message of {nbytes} bytes is damaged")
            if ntokens:
                made.tokens = <cl_token *>malloc(of_tokens)
                if made.tokens == NULL:
                    raise MemoryError
                made.ntokens = ntokens
                memcpy(made.tokens, data, of_tokens)
            memcpy(&made.label, data + of_tokens, sizeof(envelope))
        if made.label.mark != MARK:
            raise CorruptSegmentError(f"a message of {nbytes} bytes has no envelope")
        if made.label.number != 0 and not 0 <= made.label.sender < len(self.queues):
            raise CorruptSegmentError(f"a message of rank {made.label.sender} in a group of {len(self.queues)}")
        made.nbytes = nbytes - of_tokens - sizeof(envelope)
        return made

    def send(self, obj, int to, int64_t context, int source, int tag, int64_t number, watch=None):
        """Put a message into a rank's inbox; `watch(bytes)` is the context of copying its large buffers.

        Raises
        ------
        ShutDown
            If that inbox is closed.
        """
        cdef envelope label
        cdef Packed packed
        cdef cl_item item
        cdef uint32_t done = 0
        cdef int rc
        cdef _Queue queue = self.queues[to]
        label.mark, label.source, label.tag, label.sender = MARK, source, tag, self.rank
        label.context, label.number = context, number
        packed = pack(queue.store, obj, False, False, <uint8_t *>&label, sizeof(envelope), watch, CL_FOREVER)
        packed.describe(&item)
        rc = queue.insert(&item, 1, &done, queue.deadline(True, None))
        if done:
            packed.was_given()
        if rc != CL_OK:
            queue.refuse(rc)


cdef int number_of(object o) except? -1:
    cdef int overflow
    cdef long value
    if not PyLong_CheckExact(o):
        return NO_NUMBER
    value = PyLong_AsLongAndOverflow(o, &overflow)
    return <int>value if not overflow and 0 <= value <= TAG_MOST else NO_NUMBER


cdef class Port:
    """Port(inbox, context, remote, me)

    The fast path of one communicator: small plain values, sent at once and received if no other receive comes before.

    Parameters
    ----------
    inbox
        The inbox of this rank.
    context
        The communicator's number.
    remote
        The ranks, as numbers of the group, that messages are sent to.
    me
        The rank of this process in the communicator.
    """
    cdef Inbox inbox
    cdef object key
    cdef int64_t context
    cdef int me, n
    cdef list remote

    def __init__(self, Inbox inbox, context, list remote, int me):
        self.inbox, self.key, self.context, self.remote, self.me = inbox, context, context, remote, me
        self.n = len(remote)

    cdef bint send(self, obj, dest, tag) except -1:
        """Whether the message was sent; if not, the slow path sends it or raises the error."""
        cdef letter out
        cdef int to = number_of(dest), marked = number_of(tag)
        cdef cl_item item
        cdef uint32_t done = 0
        cdef size_t n
        cdef _Queue queue
        if not 0 <= to < self.n or marked < 0 or self.inbox.made != generation or own_pickle:
            return False
        n = dump_plain(obj, out.pickle, PLAIN_MOST)
        if n == 0:
            return False
        out.label.mark, out.label.source, out.label.tag, out.label.sender = MARK, self.me, marked, self.inbox.rank
        out.label.context, out.label.number = self.context, 0
        item.body, item.nbytes, item.tokens, item.ntokens, item.payload = &out, n + sizeof(envelope), NULL, 0, NULL
        queue = <_Queue>self.inbox.queues[<object>self.remote[to]]
        return queue.insert(&item, 1, &done, 0) == CL_OK

    cdef bint is_behind(self):
        """Whether another receive or message comes before a receive that begins now."""
        return (
            (len(self.inbox.posted) != 0 and PyDict_GetItem(self.inbox.posted, self.key) != NULL)
            or (len(self.inbox.unexpected) != 0 and PyDict_GetItem(self.inbox.unexpected, self.key) != NULL)
        )

    cdef object receive(self, source, tag, comm, status):
        """The object of the next message, if it is there soon and is for this receive; else NOTHING."""
        cdef Inbox inbox = self.inbox
        cdef int wanted = number_of(source), marked = number_of(tag)
        cdef Parcel parcel = None
        cdef letter item
        cdef const envelope *label
        cdef cl_got got
        if (wanted < 0 and source != ANY_SOURCE) or (marked < 0 and tag != ANY_TAG) or wanted >= self.n or self.inbox.made != generation:
            return NOTHING
        if self.is_behind() or cl_test_and_set(&inbox.reading):
            return NOTHING
        try:
            inbox.look_on(inbox.soon)
            if inbox.queue.begin(0, &got) == CL_TIMEOUT:
                return NOTHING
            label = <const envelope *>got.body
            if (
                label == NULL
                or status is not None
                or got.ntokens != 0
                or not sizeof(envelope) < got.nbytes <= sizeof(letter)
                or not self.fits(label, wanted, marked)
            ):
                parcel = inbox.parcel(&got)
                if not self.fits(&parcel.label, wanted, marked):
                    inbox.arrive(parcel)
                    return NOTHING
            else:  # most messages
                memcpy(&item, got.body, got.nbytes)
                inbox.queue.finish(&got)
        finally:
            inbox.leave()
        if parcel is None:
            value = load_plain(item.pickle, got.nbytes - sizeof(envelope))
            if value is not NOTHING:
                return value
            return unpack(inbox.queue.store, PyBytes_FromStringAndSize(<char *>&item, <Py_ssize_t>got.nbytes), 0, sizeof(envelope))
        if status is not None:
            status._tell(comm, parcel)
        return parcel.open()

    cdef bint fits(self, const envelope *label, int wanted, int marked):
        return (
            label.mark == MARK
            and label.context == self.context
            and label.number == 0
            and (wanted < 0 or wanted == label.source)
            and (marked < 0 or marked == label.tag)
            and not self.is_behind()
        )


# ---- methods of a communicator, `copyless.comm.local.Comm`


def send(self, obj, dest, tag=0, *, progress=False):
    """Send an object to a rank. When this returns, a snapshot of the object is in shared memory.

    Costs about 2 us for small values. Each buffer of 4 KiB or more is copied once; shared arrays are not copied. `progress`
    shows a progress bar while 16 MiB or more are copied.

    Raises
    ------
    CommError
        For a rank or tag that does not exist (a ValueError).
    OwnerDiedError
        If that rank has ended.
    """
    cdef Port port = self._port
    if port is None or not port.send(obj, dest, tag):
        self._send(obj, dest, tag, progress)


NONE_YET = NOTHING


def at_once(self, source, tag):
    """The object of the next message, if it matches and arrives soon; else `NONE_YET`."""
    cdef Port port = self._port
    return NOTHING if port is None else port.receive(source, tag, self, None)


def recv(self, buf=None, source=_constants.ANY_SOURCE, tag=_constants.ANY_TAG, status=None, *, progress=False):
    """Receive an object; wait until it arrives. `buf` and `progress` are accepted for compatibility and not used.

    Raises
    ------
    CommError
        For a rank or tag that does not exist (a ValueError).
    OwnerDiedError
        If a rank that could send it has died, or all have ended without sending it.
    """
    cdef Port port = self._port
    if port is not None:
        found = port.receive(source, tag, self, status)
        if found is not NOTHING:
            return found
    return self._recv(source, tag, status)
