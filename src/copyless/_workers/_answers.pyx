# cython: language_level=3, freethreading_compatible=True, auto_pickle=False
"""The log of a worker: its answers to the tasks of a bundle, in shared memory as soon as each is made.

A worker writes each answer into its log before it begins the next task. It sends the log as one message, some milliseconds after
the last message or when the log is full. No other process writes there. The parent reads the log if a message is late or the
worker has died. The entries are pickles without head and stop, so that the whole log is the pickle of a list.

A writer never waits for a reader. `epoch` is odd while the log is being emptied. If a reader finds another epoch after its copy
than before, it drops the copy: the answers in the log have been sent by then.
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
FINISHED, FLUSH, OTHER, RAISED = range(4)  # why `Log.run` returned

cdef enum:
    HEAD = 4  # bytes of a pickled list before its items: protocol, empty list, mark
    TAIL = 2  # bytes after them: append, stop
    KEYWORDS = 0  # styles of a task: see copyless._workers.protocol
    ONE = 1


cdef bytes whole(const uint8_t *data, uint64_t used):
    """The pickle of the list of answers in a log."""
    cdef bytes out = PyBytes_FromStringAndSize(NULL, <Py_ssize_t>used + HEAD + TAIL)
    cdef char *at = PyBytes_AS_STRING(out)
    memcpy(at, b"\x80\x05](", HEAD)
    memcpy(at + HEAD, data, used)
    memcpy(at + HEAD + used, b"e.", TAIL)
    return out


cdef class Log:
    """A log in `memory`, which it keeps alive: so many bytes at `offset`."""
    cdef object memory
    cdef answers_head *head
    cdef uint8_t *data
    cdef uint64_t *words  # the words of the memory: rows that record which tasks have begun
    cdef uint64_t room, used, nwords
    cdef int64_t send_at, patience
    cdef readonly uint64_t first  # the first task of the bundle that is answered here
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
        """Empty the log, for the tasks of a bundle from `first` on."""
        cdef uint64_t epoch = answers_seen(&self.head.epoch)
        epoch += epoch & 1  # the worker that had this log before may have died at this point
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
        """Whether the value is plain and there was room for it."""
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
        """Answer the next task with a plain value, if there is room for it."""
        return self.write(value)

    def add_sealed(self, bytes data):
        """Answer the next task with a sealed object, if there is room for it."""
        if self.used + len(data) + 32 > self.room:
            return False
        answers_say(&self.head.mixed, 1)
        self.mixed = True
        return self.write((data,))

    def is_due(self):
        return answers_clock() >= self.send_at

    def run(self, function, int style, batch, uint64_t i, uint64_t count, uint64_t begun, uint64_t tries):
        """Run tasks of a bundle and log their answers, from task `i`, which is marked as begun, until an answer cannot be logged or
        it is time to send the log. `begun` is the index of the word that records the task, `tries` that of a word that is set to 0
        for each new task (0: none).

        Returns (task, why, what): the next task and FINISHED or FLUSH; or the task that was run with OTHER and its result, or
        RAISED and its exception.
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
        """The pickle of the list of answers in the log."""
        return whole(self.data, self.used)

    def read(self):
        """The log of another process: (number of the bundle, first task, answers, whether some are sealed, pickle of a list), or None."""
        cdef uint64_t epoch = answers_seen(&self.head.epoch)
        cdef uint64_t number, first, count, used, mixed
        cdef bytes out
        if epoch & 1:
            return None
        number, first = answers_seen(&self.head.number), answers_seen(&self.head.first)
        count = answers_seen(&self.head.count)
        if count == 0:
            return None
        used = answers_seen(&self.head.used)  # the bytes of `count` answers or of more: checked when they are loaded
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
    """Base of an iterator with a buffer of values: `_give` fills it; `_wait` is called when it is empty."""
    cdef list values
    cdef Py_ssize_t at
    cdef uint64_t made

    def __cinit__(self, *args, **kwargs):
        self.made = forks

    def _give(self, list values):
        """Return these values next; the caller keeps no reference to the list."""
        self.values, self.at = values, 0

    def _left(self):
        """The number of values in the buffer."""
        return 0 if self.values is None else len(self.values) - self.at

    def __iter__(self):
        return self

    cdef object following(self, timeout):
        cdef object value
        if self.values is not None and self.made == forks:
            if self.at < len(self.values):
                value = self.values[self.at]
                self.values[self.at] = None  # do not keep it alive
                self.at += 1
                return value
            self.values = None
        return self._wait(timeout)

    @cython.critical_section
    def __next__(self):
        return self.following(None)

    @cython.critical_section
    def next(self, timeout=None):
        """The next result; wait at most `timeout` seconds (`multiprocessing.TimeoutError`)."""
        return self.following(timeout)
