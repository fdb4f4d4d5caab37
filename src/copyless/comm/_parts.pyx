# cython: language_level=3, freethreading_compatible=True, auto_pickle=False
"""A large object as several messages of MPI: a head with its pickle, and each large buffer from its own memory.

The head has the caller's tag, and `HEAD` bytes. Each buffer follows on a tag of its own from a range of ours; the head
states the first of them.
Both sides act in one call of this module, in which Python handles no signals, so that Ctrl-C parts no head from its
buffers: the sender begins all its sends, and who matches a head begins to receive its buffers. So no receive or probe of
any tag ever meets a buffer: in this thread since they are matched when it goes on, in others since only one thread of a
process matches at a time.

A message of a tag of ours that is matched all the same has lost its head: what was in it can no longer be told. It is
received and dropped. It is never unpickled.
"""
cimport cython
from cpython.buffer cimport PyBUF_WRITE
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.memoryview cimport PyMemoryView_FromMemory
from cpython.pythread cimport PyThread_get_thread_ident

import itertools
import os

from mpi4py import MPI

from copyless._core._pickles import loads
from copyless.comm._heads import IN_PARTS, decode
from copyless.comm._mpi_staging import as_message, memory_for

cdef extern from *:
    """
    #include <stdatomic.h>
    static _Atomic unsigned long cl_matching = 0;  /* the thread that matches; 0 for none */
    static inline int cl_begin_matching(unsigned long me)
    {
        unsigned long none = 0;
        return atomic_compare_exchange_strong(&cl_matching, &none, me);
    }
    static inline int cl_is_matching(unsigned long me)
    {
        return atomic_load(&cl_matching) == me;
    }
    static inline void cl_end_matching(void)
    {
        atomic_store(&cl_matching, 0);
    }
    """
    int cl_begin_matching(unsigned long me) nogil
    int cl_is_matching(unsigned long me) nogil
    void cl_end_matching() nogil

cdef enum:
    CL_HEAD = 2304  # more than any message of the fast path, less than what any MPI copies at once
    CL_MOST = 16  # buffers
    CL_LARGE = 65536  # bytes from which memory to receive a whole message into is not from malloc
HEAD = CL_HEAD
MOST = CL_MOST
APART = 1 << 17  # bytes of a buffer from which it is a message of its own

cdef object BYTE = MPI.BYTE, Status = MPI.Status, world = MPI.COMM_WORLD
cdef object improbe = MPI.Comm.Improbe, recv_matched = MPI.Message.Recv, irecv_matched = MPI.Message.Irecv
cdef object isend = MPI.Comm.Isend, irecv = MPI.Comm.Irecv, rank_of = MPI.Comm.Get_rank, number_of = MPI.Comm.py2f
cdef object source_of = MPI.Status.Get_source, tag_of = MPI.Status.Get_tag, elements_of = MPI.Status.Get_elements
cdef object has_ended = MPI.Request.Get_status, end_all = MPI.Request.Testall, allocate = MPI.buffer.allocate

# The tags of buffers, below the largest tags, which programs take for themselves. As many can be under way at a time.
cdef long most_tag = MPI.COMM_WORLD.Get_attr(MPI.TAG_UB)
cdef long tags = min(1 << 20, (most_tag + 1) // 8 // CL_MOST * CL_MOST)
cdef long first_tag = most_tag + 1 - 2 * tags, end_of_tags = most_tag + 1 - tags
FIRST_TAG, END_OF_TAGS = first_tag, end_of_tags
cdef object count = itertools.count().__next__

# Buffers that a signal handler or a `__del__` met, while the code that it interrupted had matched their head: for
# (communicator, source, tag) the message and its bytes.
cdef dict strays = {}
cdef list left = []  # (requests, memory) that nothing waits for
cdef Py_ssize_t SCRAP = 1 << 20
cdef object scrap = allocate(SCRAP)  # what nobody reads is received here, if there is no other memory

cdef bint is_ours(long tag):
    return first_tag <= tag < end_of_tags


def is_reserved(long tag):
    """Whether messages with this tag are buffers."""
    return is_ours(tag)


def check(tag):
    """Refuse to receive what has a tag of ours: it would take a buffer from its head."""
    if is_ours(tag):
        raise MPI.Exception(MPI.ERR_TAG)


def sweep():
    """Release the memory that nothing waited for, and that MPI no longer uses."""
    # One at a time, taken out: meanwhile other threads, and each `__del__`, may append or sweep.
    for _ in range(len(left)):
        try:
            each = left.pop(0)
        except IndexError:
            return
        try:
            if end_all(each[0]):
                continue
        except MPI.Exception:  # nothing to the caller, who does something else
            pass
        left.append(each)


def keep(requests, memory):
    """Keep the memory of requests that nothing waits for, until MPI no longer uses it."""
    sweep()
    left.append((list(requests), memory))


cdef keep_unless_ended(requests, memory, process):
    """`keep`, if MPI may still use it, and not in a forked child, where MPI must not be called."""
    if not any(requests) or process != os.getpid() or MPI.Is_finalized():
        return
    try:
        ended = all(map(has_ended, requests))
    except MPI.Exception:  # the other side has died: MPI may still use the rest
        ended = False
    if not ended:
        keep(requests, memory)


@cython.final
cdef class UnderWay:
    """Requests of MPI and the memory that they use, which is kept until they are complete.

    It is made before MPI begins, in the same call: a signal that raises as soon as Python handles signals again finds
    the memory held.
    """
    cdef readonly list requests
    cdef object memory
    cdef int process

    def __del__(self):
        keep_unless_ended(self.requests, self.memory, self.process)


cdef UnderWay holding(memory):
    cdef UnderWay made = UnderWay.__new__(UnderWay)
    made.requests, made.memory, made.process = [], memory, os.getpid()
    return made


def begin_send(comm, begin, message, buffer, dest, tag):
    """The send of a message from one `buffer` of MPI. `begin` is the function of MPI that sends."""
    cdef UnderWay made = holding(message)
    made.requests.append(begin(comm, buffer, dest, tag))
    return made


@cython.final
cdef class Divided:
    """Divided(head, tag, buffers, nbytes)

    An object as it is sent: its head, and the buffers that follow it.
    """
    cdef readonly bytes head
    cdef readonly tuple buffers
    cdef readonly long tag
    cdef readonly Py_ssize_t nbytes

    def __init__(self, head, tag, buffers, nbytes):
        self.head, self.tag, self.buffers, self.nbytes = head, tag, buffers, nbytes

    def __len__(self):
        return self.nbytes


def divided(comm, bytes data, parts):
    """The object with this pickle and these buffers, to be sent by `comm`; None if it should be one message."""
    cdef Py_ssize_t nbytes = len(data)
    apart = []
    within = []
    for part in parts:
        if part.nbytes >= APART:
            apart.append(part)
            within.append(part.nbytes)
        else:
            nbytes += part.nbytes
            if nbytes > CL_HEAD:
                return None
            within.append(bytes(part))
    if not apart or len(apart) > CL_MOST or nbytes > CL_HEAD:
        return None
    tag = first_tag + count() * CL_MOST % tags
    # A receive by mpi4py itself knows no communicator: it can find the buffers if that is the world.
    source = rank_of(comm) if comm == world else -1
    head = IN_PARTS.pack((tag, source, data, within))
    if len(head) > CL_HEAD:
        return None
    return Divided(head.ljust(CL_HEAD, b"\0"), tag, tuple(apart), nbytes + sum(part.nbytes for part in apart))


def send(comm, begin, Divided message, dest, tag):
    """The send of a head and its buffers. `begin` is the function of MPI that sends the head."""
    buffers = [as_message(part, part.nbytes) for part in message.buffers]
    cdef UnderWay made = holding(message)
    cdef long at = message.tag
    made.requests.append(begin(comm, (message.head, CL_HEAD, BYTE), dest, tag))
    for buffer, _ in buffers:
        made.requests.append(isend(comm, buffer, dest, at))
        at += 1
    for _, datatype in buffers:
        if datatype is not None:
            datatype.Free()
    return made


@cython.final
cdef class Arriving:
    """A matched message whose bytes MPI is receiving, or has received: a head and its buffers, or all in one."""
    cdef readonly list requests
    cdef readonly Py_ssize_t nbytes
    cdef object data, buffers
    cdef int process

    def __bool__(self):
        return self.data is not None

    def ended(self):
        """Whether it has arrived."""
        return all(map(has_ended, self.requests))

    def open(self):
        """The object, once."""
        if self.data is None:
            raise ValueError("the message has been received already")
        for request in self.requests:
            request.Wait()
        data, buffers = self.data, self.buffers
        if data is None:
            raise ValueError("another thread has received the message")
        self.data = self.buffers = None
        if buffers is not None:
            return loads(data, buffers=buffers)
        return decode(data) if self.nbytes else None  # MPI's own empty message

    def __del__(self):
        if self.data is not None:
            keep_unless_ended(self.requests, (self.data, self.buffers), self.process)


cdef Arriving arriving(data, object buffers, Py_ssize_t nbytes):
    cdef Arriving made = Arriving.__new__(Arriving)
    made.data, made.buffers, made.requests, made.nbytes = data, buffers, [], nbytes
    made.process = os.getpid()
    return made


cdef void end_matching() noexcept:
    """Let other threads match. Buffers that were met meanwhile and whose head was not are dropped."""
    try:
        while strays:
            _, (message, nbytes) = strays.popitem()
            drop(message, nbytes)
    finally:
        cl_end_matching()


cdef object stray(comm, source, tag):
    """A buffer that a signal handler or a `__del__` met before it was asked for, if there is one."""
    met = strays.pop((number_of(comm), source, tag), None) if strays else None
    return None if met is None else met[0]


cdef object begin_to_receive(comm, buffer, source, tag):
    message = stray(comm, source, tag)
    if message is None:
        request = irecv(comm, buffer, source, tag)
        message = stray(comm, source, tag)
        if message is None:
            return request
        # Python collected garbage just before MPI began, and a `__del__` met the buffer.
        request.Cancel()
        request.Wait()
    return irecv_matched(message, buffer)


cdef object nowhere(Py_ssize_t nbytes):
    """(memory of so many bytes as MPI takes it, the datatype to free), which is the same megabyte again and again.

    What overlaps is not allowed in a receive, but its only effect is that the bytes are undefined: for want of memory.
    """
    whole, rest = divmod(nbytes, SCRAP)
    lengths = [SCRAP] * whole + [rest]
    datatype = BYTE.Create_hindexed(lengths, [0] * len(lengths)).Commit()
    return (scrap, 1, datatype), datatype


cdef int drop(message, Py_ssize_t nbytes, comm=None, source=None, tag=None) except -1:
    """Receive a buffer into memory that nobody reads: a matched message, or the next one with this source and tag."""
    try:
        memory = allocate(nbytes)
        into, datatype = as_message(memory, nbytes)
    except BaseException:
        memory = None
        into, datatype = nowhere(nbytes)
    request = begin_to_receive(comm, into, source, tag) if message is None else irecv_matched(message, into)
    if datatype is not None:
        datatype.Free()
    keep((request,), memory)
    return 0


def begin_to_open(message, Py_ssize_t nbytes):
    """The `Arriving` of a matched message that is no head."""
    cdef bytes small
    datatype = None
    if nbytes < CL_LARGE:
        whole = small = PyBytes_FromStringAndSize(NULL, nbytes)
        into = PyMemoryView_FromMemory(PyBytes_AS_STRING(small), nbytes, PyBUF_WRITE), nbytes, BYTE
    else:
        try:
            whole = memory_for(nbytes)
            into, datatype = as_message(whole, nbytes)
        except BaseException:  # no memory, or Ctrl-C: the sender waits
            drop(message, nbytes)
            raise
    cdef Arriving made = arriving(whole, None, nbytes)
    made.requests.append(irecv_matched(message, into))
    if datatype is not None:
        datatype.Free()
    return made


cdef Arriving unfold(comm, bytes whole, source):
    """What has arrived in a message with the length of a head; if it is one, MPI begins to receive its buffers."""
    if not IN_PARTS.begins(whole):
        return arriving(whole, None, len(whole))
    cdef Py_ssize_t nbytes = len(whole)
    tag, _, data, within = IN_PARTS.payload(whole)
    cdef long at = tag
    try:
        buffers = []
        types = []
        for each in within:
            if type(each) is int:
                memory = memory_for(each)
                types.append(as_message(memory, each))
                nbytes += each
                buffers.append(memory)
            else:
                buffers.append(bytearray(each))
    except BaseException:  # no memory, or Ctrl-C: the sender waits, and the buffers would be in the way
        for each in within:
            if type(each) is int:
                drop(None, each, comm, source, at)
                at += 1
        raise
    cdef Arriving made = arriving(data, buffers, nbytes)
    for into, _ in types:
        made.requests.append(begin_to_receive(comm, into, source, at))
        at += 1
    for _, datatype in types:
        if datatype is not None:
            datatype.Free()
    return made


def receive(payload):
    """The object of a head that mpi4py itself has received: for `copyless._loaders.mpi_parts`."""
    tag, source, data, within = loads(payload)
    if source < 0:
        raise RuntimeError(
            "copyless.comm has sent this object in several messages, which only its own communicators can receive: use "
            "copyless.comm.mpi.Intracomm(comm).recv(), or a communicator of its Split, Dup and similar methods"
        )
    buffers = []
    for each in within:
        if type(each) is int:
            memory = memory_for(each)
            into, datatype = as_message(memory, each)
            begin_to_receive(world, into, source, tag).Wait()
            tag += 1
            if datatype is not None:
                datatype.Free()
            buffers.append(memory)
        else:
            buffers.append(bytearray(each))
    return loads(data, buffers=buffers)


cdef int lost(comm, message, status, bint outer) except -1:
    """Drop a buffer; if code that this thread has interrupted may have matched its head, leave it for that."""
    cdef Py_ssize_t nbytes = elements_of(status, BYTE)
    if outer:
        drop(message, nbytes)
    else:
        strays[number_of(comm), source_of(status), tag_of(status)] = message, nbytes
    return 0


cpdef object matched(comm, source, tag, status):
    """MPI's `Improbe`: None, or a message, which is an `Arriving` if it has the length of a head or more.

    What is longer MPI may not copy at once. If Ctrl-C came between this and its receive, the sender would wait for ever.
    """
    check(tag)
    cdef unsigned long me = PyThread_get_thread_ident()
    cdef bint outer = cl_begin_matching(me)
    cdef bytes whole
    cdef long theirs
    cdef Py_ssize_t nbytes
    if not outer and not cl_is_matching(me):
        return None  # what comes next may be the buffer of a head that another thread has just matched
    try:
        while True:
            message = improbe(comm, source, tag, status)
            if message is None:
                return None
            theirs = tag_of(status)
            if is_ours(theirs):
                lost(comm, message, status, outer)
                continue
            nbytes = elements_of(status, BYTE)
            if nbytes < CL_HEAD:
                return message
            if nbytes > CL_HEAD:
                return begin_to_open(message, nbytes)
            whole = PyBytes_FromStringAndSize(NULL, CL_HEAD)
            recv_matched(message, (PyMemoryView_FromMemory(PyBytes_AS_STRING(whole), CL_HEAD, PyBUF_WRITE), CL_HEAD, BYTE))
            return unfold(comm, whole, source_of(status))
    finally:
        if outer:
            end_matching()


def drop_lost(comm, source, tag):
    """Receive and drop a buffer that has lost its head. False if another thread matches: then it may be that one's."""
    cdef unsigned long me = PyThread_get_thread_ident()
    cdef bint outer = cl_begin_matching(me)
    if not outer and not cl_is_matching(me):
        return False
    try:
        status = Status()
        message = improbe(comm, source, tag, status)
        if message is not None:
            lost(comm, message, status, outer)
        return True
    finally:
        if outer:
            end_matching()
