# cython: language_level=3, freethreading_compatible=True, auto_pickle=False
"""The answers of a worker to the tasks of a bundle, in shared memory from the moment each is made.

A worker writes each answer into its log before it begins the next task, and sends what is in it by one message, some milliseconds
after the last or when it is full. Nobody else writes there. The parent reads it when a message is late, or the worker died. What is
written are pickles without head and stop, so the whole is the pickle of a list.

A reader is never waited for: `epoch` is odd while the log is begun anew, and who sees another epoch after his copy than before it
has read nothing. (What was in it has been sent by then.)
"""
cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.object cimport PyObject
from libc.stdint cimport int64_t, uint8_t, uint64_t, uintptr_t
from libc.string cimport memcpy, memmove

cdef extern from "plain.h":
    size_t plain_dump(object o, uint8_t *out, size_t room)

cdef extern from *:
    """
    #include <stdatomic.h>
    #include <time.h>

    typedef struct answers_head {
        _Atomic uint64_t epoch, number, first, count, used, mixed;
        uint64_t spare[2];
    } answers_head;

    static inline uint64_t answers_seen(_Atomic uint64_t *word) { return atomic_load_explicit(word, memory_order_acquire); }
    static inline void answers_say(_Atomic uint64_t *word, uint64_t value) { atomic_store_explicit(word, value, memory_order_release); }
    static inline void answers_stores_first(void) { atomic_thread_fence(memory_order_release); }
    static inline void answers_loads_first(void) { atomic_thread_fence(memory_order_acquire); }
    static inline void answers_begun(void *word, uint64_t value)
    {
        atomic_store_explicit((_Atomic uint64_t *)word, value, memory_order_release);
    }
    static inline int answers_is_atom(PyObject *o)
    {
        return o == Py_None || PyBool_Check(o) || PyLong_CheckExact(o) || PyFloat_CheckExact(o) || PyUnicode_CheckExact(o) ||
               PyBytes_CheckExact(o);
    }
    static inline int64_t answers_clock(void)
    {
        struct timespec now;
        clock_gettime(CLOCK_MONOTONIC_COARSE, &now); /* in steps of some milliseconds, for a quarter of the time */
        return now.tv_sec * INT64_C(1000000000) + now.tv_nsec;
    }
    """
    ctypedef struct atomic64 "_Atomic uint64_t":
        pass
    ctypedef struct answers_head:
        atomic64 epoch, number, first, count, used, mixed
    uint64_t answers_seen(atomic64 *word)
    void answers_say(atomic64 *word, uint64_t value)
    void answers_stores_first()
    void answers_loads_first()
    void answers_begun(void *word, uint64_t value)
    bint answers_is_atom(object o)
    int64_t answers_clock()

HEAD_BYTES = sizeof(answers_head)
FINISHED, FLUSH, OTHER, RAISED = range(4)  # why `Log.run` came back

cdef enum:
    HEAD = 4  # bytes of a pickled list before its items: protocol, empty list, mark
    TAIL = 2  # behind them: append, stop
    KEYWORDS = 0  # styles of a task: see copyless.workers
    ONE = 1


cdef bytes whole(const uint8_t *data, uint64_t used):
    """The pickle of a list of what is in a log."""
    cdef bytes out = PyBytes_FromStringAndSize(NULL, <Py_ssize_t>used + HEAD + TAIL)
    cdef char *at = PyBytes_AS_STRING(out)
    memcpy(at, b"\x80\x05](", HEAD)
    memcpy(at + HEAD, data, used)
    memcpy(at + HEAD + used, b"e.", TAIL)
    return out


cdef class Log:
    """A log in `memory`, which stays as long as this: so many bytes at `offset`."""
    cdef object memory
    cdef answers_head *head
    cdef uint8_t *data
    cdef uint64_t *words  # of the memory from its beginning: rows that say which tasks are begun
    cdef uint64_t room, used, nwords
    cdef int64_t send_at, patience
    cdef readonly uint64_t first  # task of the bundle that is answered first here
    cdef readonly uint64_t count
    cdef readonly bint mixed  # some answers are sealed

    def __init__(self, memory, uint64_t offset, uint64_t nbytes, double patience):
        if offset + nbytes > <uint64_t>memory.nbytes or nbytes < 256:
            raise ValueError("a log lies within its memory")
        self.memory = memory
        self.words, self.nwords = <uint64_t *><uintptr_t>memory.address, offset // 8
        self.head = <answers_head *><uintptr_t>(memory.address + offset)
        self.data = <uint8_t *>self.head + sizeof(answers_head)
        self.room = nbytes - sizeof(answers_head)
        self.patience = <int64_t>(patience * 1e9)

    def begin(self, uint64_t number, uint64_t first):
        """Empty it, for the tasks of a bundle from `first` on."""
        cdef uint64_t epoch = answers_seen(&self.head.epoch)
        epoch += epoch & 1  # whoever had this log before may have died right here
        answers_say(&self.head.epoch, epoch + 1)
        answers_stores_first()
        answers_say(&self.head.count, 0)
        answers_say(&self.head.used, 0)
        answers_say(&self.head.number, number)
        answers_say(&self.head.first, first)
        answers_say(&self.head.mixed, 0)
        answers_say(&self.head.epoch, epoch + 2)
        answers_stores_first()
        self.first, self.count, self.used, self.mixed = first, 0, 0, False
        self.send_at = answers_clock() + self.patience

    cdef bint write(self, value) except -1:
        """Whether there was room for it, and it is plain."""
        cdef uint8_t *at = self.data + self.used
        cdef size_t n
        if self.used + 16 > self.room:
            return False
        n = plain_dump(value, at, self.room - self.used)
        if n == 0:
            return False
        memmove(at, at + 2, n - 3)  # without head and stop
        self.used += n - 3
        self.count += 1
        answers_say(&self.head.used, self.used)
        answers_say(&self.head.count, self.count)
        return True

    def add(self, value):
        """Answer the next task by a plain value, where there is room for it."""
        return self.write(value)

    def add_sealed(self, bytes data):
        """Answer the next task by a sealed object, where there is room for it."""
        if self.used + len(data) + 32 > self.room:
            return False
        answers_say(&self.head.mixed, 1)
        self.mixed = True
        return self.write((data,))

    def is_due(self):
        return answers_clock() >= self.send_at

    def run(self, function, int style, batch, uint64_t i, uint64_t count, uint64_t begun, uint64_t tries):
        """Run tasks of a bundle and write down the answers, from task `i`, which is marked as begun, to the first that is more than
        an answer to write down, or to the time to send them. `begun` is the word of the memory that says which, `tries` one that a new
        task sets to 0 (0: none).

        Return (task, why, what): the next task and FINISHED or FLUSH; or the task that has been run, OTHER and its result, or
        RAISED and the exception.
        """
        cdef uint64_t from_ = i
        cdef object args, value
        cdef bint is_list = type(batch) is list
        if begun >= self.nwords or tries >= self.nwords:
            raise IndexError("no such word")
        while i < count:
            if i != from_:
                if tries:
                    self.words[tries] = 0
                answers_begun(&self.words[begun], i + 1)
            args = (<list>batch)[i] if is_list else batch[i]
            try:
                if style == ONE:
                    value = function(args)
                elif style == KEYWORDS:
                    value = function(*args[0], **args[1])
                else:
                    value = function(*args)
            except BaseException as error:
                return i, RAISED, error
            args = None
            if not answers_is_atom(value) or not self.write(value):
                return i, OTHER, value
            value = None
            i += 1
            if answers_clock() >= self.send_at:
                break
        return i, FINISHED if i == count else FLUSH, None

    def take(self):
        """The pickle of a list of the answers in it."""
        return whole(self.data, self.used)

    def read(self):
        """What somebody else wrote: (bundle's number, first task, answers, whether some are sealed, pickle of a list), or None."""
        cdef uint64_t epoch = answers_seen(&self.head.epoch)
        cdef uint64_t number, first, count, used, mixed
        cdef bytes out
        if epoch & 1:
            return None
        number, first = answers_seen(&self.head.number), answers_seen(&self.head.first)
        count = answers_seen(&self.head.count)
        if count == 0:
            return None
        used = answers_seen(&self.head.used)  # of `count` answers or of more: that is looked at where they are loaded
        mixed = answers_seen(&self.head.mixed)
        if used > self.room:
            return None
        out = whole(self.data, used)
        answers_loads_first()
        if answers_seen(&self.head.epoch) != epoch:
            return None
        return number, first, count, bool(mixed), out


cdef uint64_t forks = 0


def _forked():
    global forks
    forks += 1


cdef class Ready:
    """Base of an iterator that has some values at hand: `_give` puts them there; `_wait` is asked for one where there is none."""
    cdef list values
    cdef Py_ssize_t at
    cdef uint64_t made

    def __cinit__(self, *args, **kwargs):
        self.made = forks

    def _give(self, list values):
        """Have these values next, which nobody else has."""
        self.values, self.at = values, 0

    def _left(self):
        """How many are at hand."""
        return 0 if self.values is None else len(self.values) - self.at

    def __iter__(self):
        return self

    cdef object following(self, timeout):
        cdef object value
        if self.values is not None and self.made == forks:
            if self.at < len(self.values):
                value = self.values[self.at]
                self.values[self.at] = None  # nothing here keeps it alive
                self.at += 1
                return value
            self.values = None
        return self._wait(timeout)

    @cython.critical_section
    def __next__(self):
        return self.following(None)

    @cython.critical_section
    def next(self, timeout=None):
        """The next result, waiting at most `timeout` seconds (`multiprocessing.TimeoutError`)."""
        return self.following(timeout)
