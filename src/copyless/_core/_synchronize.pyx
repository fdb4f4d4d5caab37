# cython: language_level=3, freethreading_compatible=True, auto_pickle=False
"""The binding of sync.h. Each operation tries once with the GIL held; then it waits without the GIL and handles signals.

The public classes, their names and documentation are in `copyless.synchronize`.
"""
import os
import threading

from libc.stdint cimport int64_t, uint32_t, uint64_t, uintptr_t
from libc.string cimport memset
from posix.unistd cimport getpid

from copyless._core import events
from copyless._core._blocks cimport Block, Object, is_elsewhere, look_at_name
from copyless._core._check cimport AT_ONCE, check, deadline_of, fail, new_wait, served, Wait
from copyless._core.c_library cimport (
    CL_AGAIN, cl_bells_tell, CL_CLOSED, CL_FOREVER, CL_FULL, CL_KIND_BARRIER, CL_KIND_CONDITION, CL_KIND_EVENT, CL_KIND_LOCK, CL_KIND_RLOCK,
    CL_KIND_ROBUST_SEMAPHORE, CL_KIND_RWLOCK, CL_KIND_SEMAPHORE, CL_LOCK_SLEEP, CL_MISSING, CL_OK, CL_OWNER_DIED, CL_SEM_SLEEP,
    CL_TIMEOUT, cl_au32, cl_barrier, cl_barrier_arrive, cl_barrier_break, cl_barrier_release, cl_barrier_wait, cl_barrier_waiting, cl_condition,
    cl_condition_begin, cl_condition_end, cl_condition_lock, cl_condition_notify, cl_condition_wait, cl_entry, cl_event, cl_event_clear, cl_event_set,
    cl_event_wait, cl_head, cl_is_dead, cl_mark, cl_monitor, cl_monotonic_ns, cl_mutex, cl_mutex_lock, cl_object, cl_object_attach, cl_owner_pid, cl_put, cl_rlock,
    cl_rlock_is_mine, cl_rlock_restore, cl_rlock_save, cl_robust, cl_robust_acquire,
    cl_robust_release, cl_robust_value, cl_runlock, cl_rw_forget, cl_rw_read, cl_rw_release, cl_rw_write, cl_rwlock, cl_seen, cl_self,
    cl_sem_acquire, cl_sem_release, cl_semaphore, cl_spin, cl_stay_awake, cl_store, cl_swap, cl_unlock, cl_waits, cl_wake, cl_watch,
)

from copyless.errors import CorruptSegmentError, NotHeldError, OwnerDiedError

cdef extern from "pythread.h" nogil:
    unsigned long PyThread_get_thread_ident()

cdef enum:
    LOOK_NS = 1000000

MUTEX_BYTES = sizeof(cl_mutex)
SEMAPHORE_BYTES = sizeof(cl_semaphore)
EVENT_BYTES = sizeof(cl_event)
ENTRY_BYTES = sizeof(cl_entry)
ROBUST_BYTES = sizeof(cl_robust)
RWLOCK_BYTES = sizeof(cl_rwlock)
CONDITION_BYTES = sizeof(cl_condition)
BARRIER_BYTES = sizeof(cl_barrier)


cdef tuple watch_monitor(cl_monitor *monitor):
    """The word to sleep on: it changes with every change of the object."""
    cdef uint32_t seen = cl_seen(&monitor.change)
    cl_put(&monitor.sleeping, 1)
    return <uintptr_t>&monitor.change, seen


cdef class _Sync(Object):
    """An object of sync.h. Its head was copied and checked when this process attached; it is not read again."""
    cdef cl_object o

    def _stand(self, Block block):
        cdef int rc = cl_object_attach(&self.o, <cl_head *>block.ref.data, block.ref.capacity, block.number)
        check(rc)
        if self.o.is_.kind != self.KIND:
            raise CorruptSegmentError(f"block {block.number} holds no {type(self).__name__} (kind {self.o.is_.kind}, expected {self.KIND})")
        self.take(block, self.o.head)

    cdef int watch(self, cl_watch *out, uint32_t reader) except -1:
        out.store, out.head, out.is_ = self.store, self._open_head(), self.o.is_
        if out.is_.kind not in (CL_KIND_LOCK, CL_KIND_RLOCK, CL_KIND_SEMAPHORE, CL_KIND_ROBUST_SEMAPHORE, CL_KIND_EVENT):
            return Object.watch(self, out, reader)
        out.thread = PyThread_get_thread_ident()
        return 0

    cdef void tell(self) noexcept:
        """The object may have become ready: wake waits for several objects."""
        cl_bells_tell(self.store, self.head)

    @property
    def _flags(self):
        self._open_head()
        return self.o.is_.flags

    @property
    def _number(self):
        self._open_head()
        return self.o.is_.number


cdef bint is_time_to_look(int64_t *looked_ns) noexcept:
    """Whether a try without waiting checks if the holder lives. That is a system call, so repeated tries check only now and then."""
    cdef int64_t now = cl_monotonic_ns()
    if now - looked_ns[0] < LOOK_NS:
        return False
    looked_ns[0] = now
    return True


cdef int tell_of_dead_holder(object what, bint free) except -1:
    """Count that the last holder died, and log it if this thread does not hold the lock."""
    events.holder_died(type(what).__name__, free)
    return 0


cdef class _Lock(_Sync):
    KIND = CL_KIND_LOCK
    cdef cl_spin spin
    cdef int64_t looked_ns
    cdef public bint silent
    cdef readonly bint recovered
    cdef bint simple  # a Lock that is set up: its whole state is one word

    def __cinit__(self, *args, **kwargs):
        memset(&self.spin, 0, sizeof(self.spin))

    cdef cl_mutex *mutex(self) except NULL:
        return <cl_mutex *>self._open_head()

    cdef int once(self, int64_t deadline) noexcept nogil:
        return cl_mutex_lock(self.store, &(<cl_mutex *>self.head).word, deadline, &self.spin)

    cdef int take_over(self) noexcept:
        """Take the lock over from a dead holder without waiting, unless another process is faster."""
        cdef int rc
        with nogil:
            cl_stay_awake(True)
            rc = self.once(CL_FOREVER)
            cl_stay_awake(False)
        cl_waits().holder = 0
        return rc

    cdef void release_held(self) noexcept:
        cl_unlock(&(<cl_mutex *>self.head).word)
        self.tell()

    cdef bint get(self, int64_t deadline, bint keep) except -1:
        self.mutex()
        return self.got(self.once(0), deadline, keep)

    cdef bint got(self, int rc, int64_t deadline, bint keep) except -1:
        """Continue after the first try gave `rc`."""
        cdef Wait wait = new_wait()
        if rc == CL_AGAIN and deadline != 0:
            while rc == CL_AGAIN:
                with nogil:
                    rc = self.once(deadline)
                rc = served(&wait, rc, CL_FOREVER, True)
                if rc == CL_AGAIN:
                    look_at_name(self)
        elif rc == CL_AGAIN and is_time_to_look(&self.looked_ns) and cl_is_dead(
            self.store, cl_seen(&(<cl_mutex *>self.head).word) & ~CL_LOCK_SLEEP
        ):
            rc = self.take_over()
        if rc == CL_OK:
            self.recovered = False
            return True
        if rc == CL_AGAIN or rc == CL_TIMEOUT:
            look_at_name(self)
            return False
        if rc != CL_OWNER_DIED:
            fail(rc)
        self.recovered = True
        if not self.silent and not keep:
            self.release_held()
        tell_of_dead_holder(self, not self.silent and not keep)
        if not self.silent:
            raise OwnerDiedError(f"the process that held this {type(self).__name__} has died, so the data that it "
                                 "guards may be half changed. Repair the data: the lock is free, and the next "
                                 "acquire succeeds (with recover='silent' this error is not raised)")
        return True

    def acquire(self, block=True, timeout=None):
        """acquire(block=True, timeout=None)

        Acquire the lock. Returns whether it was acquired.

        Parameters
        ----------
        block : bool
            If false, do not wait.
        timeout : float or None
            Seconds to wait; None: without limit.

        Raises
        ------
        OwnerDiedError
            Once, if the last holder died and `recover` is "raise". The lock is then free.
        """
        if self.simple and not is_elsewhere(self.store) and cl_mark(&(<cl_mutex *>self.head).word, 0, cl_self(self.store)):
            self.recovered = False
            return True
        return self.get(deadline_of(timeout) if block else 0, False)

    cdef int put_back(self) except -1:
        cdef cl_au32 *word = &self.mutex().word
        cdef uint32_t held = cl_swap(word, 0)
        if held & CL_LOCK_SLEEP:
            cl_wake(word, 1)
            self.tell()
        if held & ~CL_LOCK_SLEEP == 0:
            raise NotHeldError("semaphore or lock released too many times")
        return 0

    def release(self):
        """release()

        Release the lock. Raises NotHeldError if it is not held; for an RLock also if another thread holds it.
        """
        self.put_back()

    def _stand(self, Block block):
        _Sync._stand(self, block)
        self.simple = self.KIND == CL_KIND_LOCK

    def locked(self):
        """locked()

        Whether any thread of any process holds the lock.
        """
        return (cl_seen(&self.mutex().word) & ~CL_LOCK_SLEEP) != 0

    def __enter__(self):
        if self.simple and not is_elsewhere(self.store) and cl_mark(&(<cl_mutex *>self.head).word, 0, cl_self(self.store)):
            self.recovered = False
            return True
        return self.get(CL_FOREVER, False)

    def __exit__(self, kind, value, traceback):
        self.put_back()

    # Methods that a condition calls on its lock.
    def _is_mine(self):
        return (cl_seen(&self.mutex().word) & ~CL_LOCK_SLEEP) == cl_self(self.store)

    def _release_save(self):
        self.release_held()
        return 1

    def _acquire_restore(self, depth):
        self.get(CL_FOREVER, True)

    @property
    def _owner_pid(self):
        """The process id of the holder; 0 if the lock is free."""
        return cl_owner_pid(self.store, cl_seen(&self.mutex().word))

    # Methods for event loops: one try without waiting, and the word to sleep on.
    def _try(self, bint slept):
        return self.get(0, False)

    def _watch(self):
        cdef cl_au32 *word = &self.mutex().word
        cdef uint32_t seen = cl_seen(word)
        if seen & ~CL_LOCK_SLEEP == 0:
            return None
        if not seen & CL_LOCK_SLEEP and not cl_mark(word, seen, seen | CL_LOCK_SLEEP):
            return None
        return <uintptr_t>word, seen | CL_LOCK_SLEEP


cdef class _Guard(_Lock):
    """A lock that records in the same call that this object holds it, so that no signal comes in between; `leave` likewise."""
    cdef bint has
    cdef int pid

    def take(self, timeout):
        if self.get(deadline_of(timeout), False):
            self.has, self.pid = True, getpid()
        return self.held

    @property
    def held(self):
        return self.has and self.pid == getpid()  # in a forked child, the parent holds it

    def leave(self):
        if self.has and self.pid == getpid():
            self.has = False
            self.put_back()


cdef class _RLock(_Lock):
    KIND = CL_KIND_RLOCK

    def _stand_in(self, _Condition condition):
        """Use the lock that a condition keeps behind its waiters."""
        cdef int rc = cl_condition_lock(&condition.o, condition.block.ref.capacity, &self.o)
        check(rc)
        self.take(condition.block, self.o.head)

    cdef int once(self, int64_t deadline) noexcept nogil:
        return cl_rlock(self.store, <cl_mutex *>self.head, PyThread_get_thread_ident(), deadline, &self.spin)

    cdef void release_held(self) noexcept:
        cl_runlock(<cl_mutex *>self.head)
        self.tell()

    def __enter__(self):
        cdef int rc = cl_rlock(self.store, self.mutex(), PyThread_get_thread_ident(), 0, &self.spin)
        if rc == CL_OK:
            self.recovered = False
            return True
        return self.got(rc, CL_FOREVER, False)

    def __exit__(self, kind, value, traceback):
        self.put_back()

    cdef int put_back(self) except -1:
        if not cl_rlock_is_mine(self.store, self.mutex(), PyThread_get_thread_ident()):
            raise NotHeldError("attempt to release recursive lock not owned by thread")
        cl_runlock(<cl_mutex *>self.head)
        self.tell()
        return 0

    def _is_mine(self):
        return cl_rlock_is_mine(self.store, self.mutex(), PyThread_get_thread_ident()) != 0

    def _release_save(self):
        if not self._is_mine():
            return 0
        depth = cl_rlock_save(<cl_mutex *>self.head)
        self.tell()
        return depth

    def _acquire_restore(self, depth):
        try:
            self.get(CL_FOREVER, True)
        finally:
            if depth > 1 and self._is_mine():
                cl_rlock_restore(self.store, <cl_mutex *>self.head, PyThread_get_thread_ident(), depth, 0, &self.spin)


cdef class _Semaphore(_Sync):
    KIND = CL_KIND_SEMAPHORE
    cdef cl_spin spin
    cdef int64_t looked_ns
    cdef public bint silent
    cdef readonly bint recovered
    cdef bint robust

    def _stand(self, Block block):
        cdef int rc = cl_object_attach(&self.o, <cl_head *>block.ref.data, block.ref.capacity, block.number)
        check(rc)
        if self.o.is_.kind != CL_KIND_SEMAPHORE and self.o.is_.kind != CL_KIND_ROBUST_SEMAPHORE:
            raise CorruptSegmentError(f"block {block.number} holds no {type(self).__name__} (kind {self.o.is_.kind})")
        self.robust = self.o.is_.kind == CL_KIND_ROBUST_SEMAPHORE
        self.take(block, self.o.head)

    cdef int once(self, int64_t deadline) noexcept nogil:
        if self.robust:
            return cl_robust_acquire(self.store, &self.o, deadline, &self.spin)
        return cl_sem_acquire(<cl_semaphore *>self.head, deadline, &self.spin)

    cdef bint get(self, int64_t deadline) except -1:
        cdef Wait wait = new_wait()
        cdef int rc
        self._open_head()
        rc = self.once(0)
        if rc == CL_AGAIN and deadline == 0 and self.robust and is_time_to_look(&self.looked_ns):
            rc = self.once(AT_ONCE)  # has a dead process permits?
        while rc == CL_AGAIN and deadline != 0:
            with nogil:
                rc = self.once(deadline)
            rc = served(&wait, rc, CL_FOREVER)
            if rc == CL_AGAIN:
                look_at_name(self)
        if rc == CL_OK:
            self.recovered = False
            return True
        if rc == CL_AGAIN or rc == CL_TIMEOUT:
            look_at_name(self)
            return False
        if rc != CL_OWNER_DIED:
            fail(rc)
        self.recovered = True
        if not self.silent:
            self.give_back()
        tell_of_dead_holder(self, not self.silent)
        if not self.silent:
            raise OwnerDiedError("a process that held a permit of this semaphore has died, so the data that it "
                                 "guards may be half changed. Repair the data: the permit is back, and the next "
                                 "acquire succeeds")
        return True

    cdef int give_back(self) except -100:
        """Return one permit of a robust semaphore."""
        cdef Wait wait = new_wait()
        cdef int rc = cl_robust_release(self.store, &self.o, 0)
        while rc == CL_AGAIN:
            with nogil:
                rc = cl_robust_release(self.store, &self.o, CL_FOREVER)
            rc = served(&wait, rc, CL_FOREVER)
        self.tell()
        return rc

    def acquire(self, block=True, timeout=None):
        """acquire(block=True, timeout=None)

        Acquire a permit. Returns whether one was acquired.

        Parameters
        ----------
        block : bool
            If false, do not wait.
        timeout : float or None
            Seconds to wait; None: without limit.

        Raises
        ------
        OwnerDiedError
            Once for each permit whose holder died, if the semaphore is robust and `recover` is "raise".
        """
        return self.get(deadline_of(timeout) if block else 0)

    def release(self, n=1):
        """release(n=1)

        Return `n` permits. Raises NotHeldError if there are too many: more than a bounded semaphore began with, or more
        than this process acquired from a robust one.
        """
        cdef int rc = CL_OK
        self._open_head()
        if n < 1 or n > 0x7fffffff:
            raise ValueError(f"n must be 1 or more, not {n}")
        if self.robust:
            for _ in range(n):
                rc = self.give_back()
                if rc == CL_MISSING:
                    raise NotHeldError("semaphore or lock released too many times (by this process: its permits are attributed)")
                if rc != CL_OK:
                    fail(rc)
        else:
            rc = cl_sem_release(&self.o, n)
            self.tell()
        if rc == CL_FULL:
            raise NotHeldError("semaphore or lock released too many times")
        check(rc)

    def get_value(self):
        """get_value()

        The number of free permits.
        """
        self._open_head()
        if self.robust:
            return cl_robust_value(self.store, &self.o)
        return cl_seen(&(<cl_semaphore *>self.head).word) & ~<uint32_t>CL_SEM_SLEEP

    def _begin(self, uint32_t value):
        cl_put(&(<cl_semaphore *>self.head).word, value)

    def __enter__(self):
        return self.get(CL_FOREVER)

    def __exit__(self, *exc):
        self.release()

    def _try(self, bint slept):
        return self.get(0)

    def _watch(self):
        cdef cl_au32 *word = &(<cl_semaphore *>self.head).word
        cdef uint32_t seen
        if self.robust:
            return watch_monitor(&(<cl_robust *>self.head).monitor)
        seen = cl_seen(word)
        if seen & ~<uint32_t>CL_SEM_SLEEP != 0:
            return None
        if not seen & <uint32_t>CL_SEM_SLEEP and not cl_mark(word, seen, seen | <uint32_t>CL_SEM_SLEEP):
            return None
        return <uintptr_t>word, seen | <uint32_t>CL_SEM_SLEEP


cdef class _Event(_Sync):
    KIND = CL_KIND_EVENT
    cdef cl_spin spin

    def is_set(self):
        """is_set()

        Whether the event is set.
        """
        return (cl_seen(&(<cl_event *>self._open_head()).word) & 1) != 0

    def set(self):
        """set()

        Set the event and wake all waiters. Allowed in a signal handler.
        """
        cl_event_set(<cl_event *>self._open_head())
        self.tell()

    def clear(self):
        """clear()

        Clear the event: `wait` waits again.
        """
        cl_event_clear(<cl_event *>self._open_head())
        if self._signal is not None:
            self._signal.settle()

    def wait(self, timeout=None):
        """wait(timeout=None)

        Wait until the event is set. False after `timeout` seconds (None: no limit).
        """
        cdef int64_t deadline = deadline_of(timeout)
        cdef uint32_t seen = 0
        cdef Wait wait = new_wait()
        cdef int rc
        self._open_head()
        rc = cl_event_wait(<cl_event *>self.head, &seen, 0, &self.spin)
        while rc == CL_AGAIN and deadline != 0:
            with nogil:
                rc = cl_event_wait(<cl_event *>self.head, &seen, deadline, &self.spin)
            rc = served(&wait, rc, CL_FOREVER)
            if rc == CL_AGAIN:
                look_at_name(self)
        if rc != CL_OK:
            look_at_name(self)
        return rc == CL_OK

    def _try(self, bint slept):
        return self.is_set()

    def _watch(self):
        cdef cl_au32 *word = &(<cl_event *>self._open_head()).word
        cdef uint32_t seen = cl_seen(word)
        if seen & 1:
            return None
        if not seen & 2 and not cl_mark(word, seen, seen | 2):
            return None
        return <uintptr_t>word, seen | 2

    def _sets(self):
        look_at_name(self)  # an event loop calls this while it waits
        return cl_seen(&(<cl_event *>self._open_head()).word) >> 2


cdef class _Condition(_Sync):
    KIND = CL_KIND_CONDITION
    cdef cl_spin spin

    # In C, like those of the lock: in Python, a signal could arrive after the lock is acquired and before `with` knows it.
    def __enter__(self):
        return (<object>self)._lock.__enter__()

    def __exit__(self, kind, value, traceback):
        (<object>self)._lock.__exit__(kind, value, traceback)

    def _wait(self, lock, timeout):
        """Called with the lock held. The lock is released while waiting and always acquired again afterwards."""
        cdef int64_t deadline = deadline_of(timeout)
        cdef uint32_t entry = 0
        cdef Wait wait = new_wait()
        cdef int rc = cl_condition_begin(self.store, &self.o, &entry)
        cdef bint notified = False
        check(rc)
        depth = lock._release_save()
        try:
            rc = CL_AGAIN
            while rc == CL_AGAIN:
                with nogil:
                    rc = cl_condition_wait(self.store, &self.o, entry, deadline, &self.spin)
                rc = served(&wait, rc, CL_FOREVER)
                if rc == CL_AGAIN:
                    look_at_name(self)
        finally:
            notified = cl_condition_end(&self.o, entry)
            lock._acquire_restore(depth)
        return notified

    def _notify(self, uint32_t n):
        return cl_condition_notify(self.store, &self.o, n)


# The RWLocks held in this process: (lock's block, thread or task) -> [times for reading, for writing]. In shared memory a
# process is one reader, however many of its threads read, so that a thread that reads may read again while a writer waits.
cdef dict HOLDING = {}
os.register_at_fork(after_in_child=HOLDING.clear)


cdef class _RWLock(_Sync):
    KIND = CL_KIND_RWLOCK
    cdef cl_spin spin
    cdef public bint silent
    cdef readonly bint recovered

    # Acquiring and recording it is one piece of C, and so is releasing: between two lines of Python a signal may raise, and the
    # lock would stay held for ever.
    cdef tuple key_of(self, who):
        return (self.block.ref.segment_id, self.block.number, self.block.ref.generation), who

    cdef list begin(self, tuple key, bint write):
        """How often this thread or task holds the lock, recorded from now on. RuntimeError if it would wait for itself."""
        cdef list mine = HOLDING.get(key)
        if mine is None:
            mine = HOLDING[key] = [0, 0]
        elif mine[1]:
            raise RuntimeError("this thread already holds this RWLock for writing, and would wait for itself: "
                               "acquire it once only")
        elif write and mine[0]:
            raise RuntimeError("this thread holds this RWLock for reading, and a reader cannot become the writer: "
                               "leave read() first, then read the data again under write()")
        return mine

    cdef void end(self, tuple key, list mine) noexcept:
        if not mine[0] and not mine[1]:
            HOLDING.pop(key, None)

    def _acquire(self, bint write, timeout):
        self._open_head()
        cdef tuple key = self.key_of(threading.get_ident())
        cdef list mine = self.begin(key, write)
        try:
            if not mine[0] and not (<object>self)._get(write, timeout if timeout is None or timeout >= 0 else 0):
                return False
            mine[write] += 1
            return True
        finally:
            self.end(key, mine)

    def _begin(self, who, bint write):
        """For a task, which waits in Python: its record, and the argument for `_end`."""
        self._open_head()
        cdef tuple key = self.key_of(who)
        return key, self.begin(key, write)

    def _end(self, tuple key, list mine):
        self.end(key, mine)

    def _let(self, who, bint write):
        self._open_head()
        cdef tuple key = self.key_of(who)
        cdef list mine = HOLDING.get(key)
        if mine is None or not mine[write]:
            raise ValueError(f"this thread does not hold the lock for {'writing' if write else 'reading'}")
        if mine[write] == 1:
            self._release_side(write)
        mine[write] -= 1
        self.end(key, mine)

    def _get(self, bint write, timeout):
        cdef int64_t deadline = deadline_of(timeout)
        cdef Wait wait = new_wait()
        cdef int rc
        self._open_head()
        rc = self.once(write, -1 if timeout is not None and timeout < 0 else 0)
        try:
            while rc == CL_AGAIN and deadline != 0:
                with nogil:
                    rc = self.once(write, deadline)
                rc = served(&wait, rc, CL_FOREVER)
                if rc == CL_AGAIN:
                    look_at_name(self)
        except BaseException:
            if write:
                self.forget_writing()
            raise
        if rc == CL_OK:
            self.recovered = False
            return True
        if rc == CL_AGAIN or rc == CL_TIMEOUT:
            look_at_name(self)
            return False
        if rc != CL_OWNER_DIED:
            fail(rc)
        self.recovered = True
        if not self.silent:
            self._release_side(write)
        tell_of_dead_holder(self, not self.silent)
        if not self.silent:
            raise OwnerDiedError("the process that held this RWLock for writing has died, so the data that it "
                                 "guards may be half changed. Repair the data: the lock is free, and the next "
                                 "acquire succeeds")
        return True

    cdef int once(self, bint write, int64_t deadline) noexcept nogil:
        if write:
            return cl_rw_write(self.store, &self.o, deadline, &self.spin)
        return cl_rw_read(self.store, &self.o, deadline, &self.spin)

    # For an event loop: the word that changes with every change of the lock.
    def _watch(self):
        return watch_monitor(&(<cl_rwlock *>self.head).monitor)

    @property
    def _users(self):
        """(process id of the writer or 0, number of processes that read)."""
        cdef cl_rwlock *l = <cl_rwlock *>self._open_head()
        return cl_owner_pid(self.store, cl_seen(&l.writer)), sum([cl_seen(&l.readers[i].owner) != 0 for i in range(self.o.is_.room)])

    cdef void forget_writing(self) noexcept:
        cl_rw_forget(self.store, &self.o)  # never waits

    def _forget_writing(self):
        self._open_head()
        self.forget_writing()

    def _release_side(self, bint write):
        cdef Wait wait = new_wait()
        cdef int rc = CL_AGAIN
        self._open_head()
        while rc == CL_AGAIN:
            with nogil:
                rc = cl_rw_release(self.store, &self.o, write)
            rc = served(&wait, rc, CL_FOREVER)
        if rc == CL_MISSING:
            raise ValueError(f"this process does not hold the lock for {'writing' if write else 'reading'}")
        check(rc)


cdef class _Side:
    """One use of an RWLock, for reading or for writing."""
    cdef readonly object _lock
    cdef readonly bint _writes
    cdef readonly object _timeout

    def __init__(self, lock, bint writes, timeout):
        self._lock, self._writes, self._timeout = lock, writes, timeout

    def _failed(self):
        return TimeoutError(f"the lock was not free for {'writing' if self._writes else 'reading'} in {self._timeout} seconds")

    def __enter__(self):
        if not self._lock._acquire(self._writes, self._timeout):
            raise self._failed()

    def __exit__(self, kind, value, traceback):
        self._lock._let(threading.get_ident(), self._writes)


cdef class _Barrier(_Sync):
    KIND = CL_KIND_BARRIER

    def _arrive(self, timeout):
        """(entry, index); None if the barrier is broken; False after the timeout."""
        cdef int64_t deadline = deadline_of(timeout)
        cdef uint32_t entry = 0, index = 0
        cdef Wait wait = new_wait()
        cdef int rc = CL_AGAIN
        self._open_head()
        while rc == CL_AGAIN:
            with nogil:
                rc = cl_barrier_arrive(self.store, &self.o, &entry, &index, deadline)
            rc = served(&wait, rc, CL_FOREVER)
        if rc == CL_OK:
            return entry, index
        if rc == CL_CLOSED:
            return None
        if rc == CL_TIMEOUT:
            return False
        fail(rc)

    def _wait(self, uint32_t entry, timeout):
        """True if all parties arrived; False if the barrier broke."""
        cdef int64_t deadline = deadline_of(timeout)
        cdef Wait wait = new_wait()
        cdef int rc = CL_AGAIN
        try:
            while rc == CL_AGAIN:
                with nogil:
                    rc = cl_barrier_wait(self.store, &self.o, entry, deadline)
                rc = served(&wait, rc, CL_FOREVER)
                if rc == CL_AGAIN:
                    look_at_name(self)
        except BaseException:
            self._give_up(entry)
            raise
        if rc == CL_OK:
            return True
        if rc == CL_CLOSED:
            return False
        fail(rc)

    cdef void _leave(self, uint32_t entry) noexcept:
        """Give up the place of a wait that is interrupted, and break the barrier. No signal is handled meanwhile."""
        cdef int rc = CL_AGAIN
        with nogil:
            while rc == CL_AGAIN:
                rc = cl_barrier_wait(self.store, &self.o, entry, 0)

    def _give_up(self, uint32_t entry):
        """Break the barrier and leave it, without waiting for a process that is stopped inside it."""
        self._break_off()
        self._leave(entry)

    def _release(self, uint32_t entry, timeout):
        """Release all waiters. False: not in that time, because a process is stopped inside."""
        cdef int64_t deadline = deadline_of(timeout)
        cdef Wait wait = new_wait()
        cdef int rc = CL_AGAIN
        try:
            while rc == CL_AGAIN:
                with nogil:
                    rc = cl_barrier_release(self.store, &self.o, entry, deadline)
                rc = served(&wait, rc, CL_FOREVER)
        except BaseException:
            self._give_up(entry)
            raise
        if rc == CL_TIMEOUT:
            return False
        check(rc)
        return True

    def _break(self, bint reset):
        cdef Wait wait = new_wait()
        cdef int rc = CL_AGAIN
        self._open_head()
        while rc == CL_AGAIN:
            with nogil:
                rc = cl_barrier_break(self.store, &self.o, reset)
            rc = served(&wait, rc, CL_FOREVER)
        check(rc)

    def _break_off(self):
        """Break the barrier through the one word that needs no lock, without waiting for a process that is stopped inside it."""
        cdef int rc
        self._open_head()
        with nogil:
            rc = cl_barrier_break(self.store, &self.o, False)
        if rc == CL_AGAIN:
            cl_put(&(<cl_barrier *>self.head).broken, 1)
            return
        check(rc)

    @property
    def parties(self):
        """How many threads or processes must arrive."""
        return self.o.is_.number

    @property
    def n_waiting(self):
        """How many threads or processes wait now."""
        cdef uint32_t n = 0
        cdef Wait wait = new_wait()
        cdef int rc = CL_AGAIN
        self._open_head()
        while rc == CL_AGAIN:
            with nogil:
                rc = cl_barrier_waiting(self.store, &self.o, &n)
            rc = served(&wait, rc, CL_FOREVER)
        check(rc)
        return n

    @property
    def broken(self):
        return cl_seen(&(<cl_barrier *>self._open_head()).broken) != 0
