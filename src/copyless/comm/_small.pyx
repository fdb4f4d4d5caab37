# cython: language_level=3, freethreading_compatible=True, auto_pickle=False
"""The fast path of small messages on MPI: methods of `copyless.comm.mpi.Comm`, and the receive of a matched message.

Plain values are pickled and unpickled on the stack. MPI is called through mpi4py.
"""
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.buffer cimport PyBUF_READ, PyBUF_WRITE
from cpython.memoryview cimport PyMemoryView_FromMemory
from libc.stdint cimport uint8_t

from copyless._transfer._plain cimport NOTHING, PLAIN_MOST, dump_plain, load_plain
from copyless.comm._parts cimport matched

from mpi4py import MPI

from copyless._core._pickles import loads
from copyless.comm._parts import FIRST_TAG

cdef enum:
    TRIES = 100  # a dozen microseconds

cdef object BYTE = MPI.BYTE, Status = MPI.Status
cdef object MPI_send = MPI.Comm.Send, rank_of = MPI.Comm.Get_rank
cdef object MPI_recv = MPI.Message.Recv, elements_of = MPI.Status.Get_elements
cdef int PROC_NULL = MPI.PROC_NULL

# Whether objects are pickled by the caller's own functions: then none takes the fast path.
cdef bint own_pickle = False


def use_own_pickle(bint own):
    """Set whether objects are pickled by the caller's own functions."""
    global own_pickle
    own_pickle = own


# The states with pending receives, and a communicator of each: while there are any, none takes the fast path.
cdef dict lines = {}
in_line = lines


def fetch(message, Py_ssize_t nbytes):
    """The object of a matched message of so many bytes; None for no message, as in mpi4py."""
    cdef uint8_t small[PLAIN_MOST]
    if nbytes == 0:
        MPI_recv(message, (None, 0, BYTE))
        return None
    if nbytes <= PLAIN_MOST:
        MPI_recv(message, (PyMemoryView_FromMemory(<char *>small, nbytes, PyBUF_WRITE), nbytes, BYTE))
        value = load_plain(small, nbytes)
        return loads(PyBytes_FromStringAndSize(<char *>small, nbytes)) if value is NOTHING else value
    cdef bytes whole = PyBytes_FromStringAndSize(NULL, nbytes)
    MPI_recv(message, (PyMemoryView_FromMemory(PyBytes_AS_STRING(whole), nbytes, PyBUF_WRITE), nbytes, BYTE))
    return loads(whole)


def send(self, obj, dest, tag=0, *, progress=False):
    """Send an object to a rank, in standard mode. The object may be changed as soon as this returns.

    `progress` shows a progress bar for 16 MiB or more. MPI does not report the progress to another node: there the bar only moves.
    """
    cdef uint8_t small[PLAIN_MOST]
    cdef size_t n = 0 if own_pickle else dump_plain(obj, small, PLAIN_MOST)
    if self._me is None:
        self._me = rank_of(self)
    if n == 0 or len(lines) != 0 or dest == self._me:  # a send to this rank itself may wait for its receive inside MPI
        self._send(obj, dest, tag, progress)
    else:
        if tag >= FIRST_TAG:
            self._check_tag(tag)
        MPI_send(self, (PyMemoryView_FromMemory(<char *>small, n, PyBUF_READ), n, BYTE), dest, tag)


def recv(self, buf=None, source=MPI.ANY_SOURCE, tag=MPI.ANY_TAG, status=None, *, progress=False):
    """Receive an object; wait until it arrives. `buf` is accepted for compatibility and not used.

    `progress` shows a moving progress bar while 16 MiB or more arrive from another node.
    """
    cdef int tries
    cdef Py_ssize_t nbytes
    if status is None:
        status = Status()
    if len(lines) == 0 and source != PROC_NULL:  # try whether the message arrives at once
        for tries in range(TRIES):
            message = matched(self, source, tag, status)
            if message is not None:
                nbytes = elements_of(status, BYTE)
                return fetch(message, nbytes) if nbytes <= PLAIN_MOST else self._fetch(message, nbytes, status, progress)
    return self._recv(source, tag, status, progress)
