# cython: language_level=3, freethreading_compatible=True, auto_pickle=False
"""A large object as several messages of MPI: a head with its pickle, and each large buffer from its own memory.

The head has the caller's tag, and `HEAD` bytes. Each buffer follows on a tag from a range of ours, which the head states.
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
import pickle
from struct import Struct

from mpi4py import MPI

from copyless._core._pickles import loads
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
cdef long tags = min(1 << 20, (most_tag + 1) // 8)
cdef long first_tag = most_tag + 1 - 2 * tags, end_of_tags = most_tag + 1 - tags
FIRST_TAG, END_OF_TAGS = first_tag, end_of_tags
cdef object count = itertools.count().__next__

# A pickle that calls `copyless._loaders.mpi_parts(payload)`, for receives that know nothing of heads.
cdef bytes BEGIN = b"\x80\x05\x8c\x11copyless._loaders\x8c\x09mpi_parts\x93B"
cdef bytes END = b"\x85R."
cdef object length = Struct("<I")
cdef Py_ssize_t payload_at = len(BEGIN) + 4

cdef dict strays = {}  # buffers that a signal handler met, while the code that it interrupted had matched their head
cdef list left = []  # (requests, memory) of receives that nothing waits for

cdef bint is_ours(long tag):
    return first_tag <= tag < end_of_tags


def is_reserved(long tag):
    """Whether messages with this tag are buffers."""
    return is_ours(tag)


def sweep():
    """Release the memory of receives that nothing waited for, and that are complete."""
    if left:
        left[:] = [each for each in left if not end_all(list(each[0]))]


def keep(requests, memory):
    """Keep the memory of receives that nothing waits for, until MPI no longer writes into it."""
    sweep()
    left.append((requests, memory))


def keep_unless_ended(requests, memory, process):
    """`keep`, if MPI may still write, and not in a forked child, where MPI must not be called."""
    if any(requests) and process == os.getpid() and not MPI.Is_finalized() and not all(map(has_ended, requests)):
        keep(requests, memory)


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
    tag = first_tag + count() % tags
    # A receive by mpi4py itself knows no communicator: it can find the buffers if that is the world.
    source = rank_of(comm) if comm == world else -1
    payload = pickle.dumps((tag, source, data, within), 5)
    if payload_at + len(payload) + len(END) > CL_HEAD:
        return None
    head = b"".join((BEGIN, length.pack(len(payload)), payload, END)).ljust(CL_HEAD, b"\0")
    return Divided(head, tag, tuple(apart), nbytes + sum(part.nbytes for part in apart))


def send(comm, begin, Divided message, dest, tag):
    """The requests of its sends. `begin` is the function of MPI that sends the head."""
    made = [as_message(part, part.nbytes) for part in message.buffers]
    requests = [begin(comm, (message.head, CL_HEAD, BYTE), dest, tag)]
    for buffer, _ in made:
        requests.append(isend(comm, buffer, dest, message.tag))
    for _, datatype in made:
        if datatype is not None:
            datatype.Free()
    return tuple(requests)


cdef class Arriving:
    """A matched message whose bytes MPI is receiving, or has received."""
    cdef readonly tuple requests
    cdef readonly Py_ssize_t nbytes
    cdef object data, buffers, whole
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
        self.data = self.buffers = None
        return loads(data, buffers=buffers)

    def __del__(self):
        if self.data is not None:
            keep_unless_ended(self.requests, self.buffers, self.process)


cdef Arriving arriving(bytes data, object buffers, tuple requests, Py_ssize_t nbytes):
    cdef Arriving made = Arriving.__new__(Arriving)
    made.data, made.buffers, made.requests, made.nbytes = data, buffers, requests, nbytes
    made.process = os.getpid()
    return made


cdef tuple opened(bytes whole):
    """(tag, source, the pickle, its buffers or their sizes) of a head."""
    (nbytes,) = length.unpack_from(whole, len(BEGIN))
    return loads(whole[payload_at : payload_at + nbytes])


cdef object stray(comm, source, tag):
    """The next buffer that a signal handler met before it was asked for, if there is one."""
    met = strays.get((number_of(comm), source, tag)) if strays else None
    return met.pop(0) if met else None


cdef object begin_to_receive(comm, buffer, source, tag):
    message = stray(comm, source, tag)
    return irecv(comm, buffer, source, tag) if message is None else irecv_matched(message, buffer)


cdef int drop(comm, source, tag, Py_ssize_t nbytes, message=None) except -1:
    """Receive a buffer into memory that nobody reads."""
    memory = allocate(nbytes)
    into = as_message(memory, nbytes)
    request = begin_to_receive(comm, into[0], source, tag) if message is None else irecv_matched(message, into[0])
    if into[1] is not None:
        into[1].Free()
    keep((request,), memory)
    return 0


cdef Arriving unfold(comm, bytes whole, source):
    """What has arrived in a message with the length of a head; if it is one, MPI begins to receive its buffers."""
    if not whole.startswith(BEGIN):
        return arriving(whole, None, (), len(whole))
    cdef Py_ssize_t nbytes = len(whole)
    tag, _, data, within = opened(whole)
    try:
        buffers = []
        made = []
        for each in within:
            if type(each) is int:
                memory = memory_for(each)
                made.append(as_message(memory, each))
                nbytes += each
                buffers.append(memory)
            else:
                buffers.append(bytearray(each))
    except BaseException:  # no memory, or Ctrl-C: the sender waits, and the buffers would be in the way
        for each in within:
            if type(each) is int:
                drop(comm, source, tag, each)
        raise
    requests = [begin_to_receive(comm, into, source, tag) for into, _ in made]
    for _, datatype in made:
        if datatype is not None:
            datatype.Free()
    return arriving(data, buffers, tuple(requests), nbytes)


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
            if datatype is not None:
                datatype.Free()
            buffers.append(memory)
        else:
            buffers.append(bytearray(each))
    return loads(data, buffers=buffers)


cpdef object matched(comm, source, tag, status):
    """MPI's `Improbe`: None, or a message, which is an `Arriving` if it has the length of a head."""
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
                nbytes = elements_of(status, BYTE)
                if outer:
                    drop(comm, None, None, nbytes, message)
                else:
                    strays.setdefault((number_of(comm), source_of(status), theirs), []).append(message)
                continue
            if elements_of(status, BYTE) != CL_HEAD:
                return message
            whole = PyBytes_FromStringAndSize(NULL, CL_HEAD)
            recv_matched(message, (PyMemoryView_FromMemory(PyBytes_AS_STRING(whole), CL_HEAD, PyBUF_WRITE), CL_HEAD, BYTE))
            return unfold(comm, whole, source_of(status))
    finally:
        if outer:
            cl_end_matching()


def drop_lost(comm, source, tag):
    """Receive and drop a buffer that has lost its head. False if a thread is matching now: then it may be that one's."""
    if not cl_begin_matching(PyThread_get_thread_ident()):
        return False
    try:
        status = Status()
        message = improbe(comm, source, tag, status)
        if message is not None:
            drop(comm, source, tag, elements_of(status, BYTE), message)
        return True
    finally:
        cl_end_matching()
