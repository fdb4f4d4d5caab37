# cython: language_level=3, freethreading_compatible=True, auto_pickle=False
"""The binding of sync.h: each operation tries once with the GIL held, and waits without it, serving signals.

What the classes mean to their users, names and documents, is in `copyless.synchronize`.
"""
import os
import threading

from libc.stdint cimport int64_t, uint32_t, uint64_t, uintptr_t
from libc.string cimport memset
from posix.unistd cimport getpid

from copyless._core._blocks cimport Block, Object, is_elsewhere, look_at_name
from copyless._core._check cimport check, deadline_of, fail, new_wait, served, Wait
from copyless._core.c_library cimport (
    CL_AGAIN, cl_bells_tell, CL_CLOSED, CL_FOREVER, CL_FULL, CL_KIND_BARRIER, CL_KIND_CONDITION, CL_KIND_EVENT, CL_KIND_LOCK, CL_KIND_RLOCK,
    CL_KIND_ROBUST_SEMAPHORE, CL_KIND_RWLOCK, CL_KIND_SEMAPHORE, CL_LOCK_SLEEP, CL_MISSING, CL_OK, CL_OWNER_DIED, CL_SEM_SLEEP,
    CL_TIMEOUT, cl_au32, cl_barrier, cl_barrier_arrive, cl_barrier_break, cl_barrier_release, cl_barrier_wait, cl_barrier_waiting, cl_condition,
    cl_condition_begin, cl_condition_end, cl_condition_lock, cl_condition_notify, cl_condition_wait, cl_entry, cl_event, cl_event_clear, cl_event_set,
    cl_event_wait, cl_head, cl_mark, cl_monitor, cl_mutex, cl_mutex_lock, cl_object, cl_object_attach, cl_owner_pid, cl_put, cl_rlock,
    cl_rlock_is_mine, cl_rlock_restore, cl_rlock_save, cl_robust, cl_robust_acquire,
    cl_robust_release, cl_robust_value, cl_runlock, cl_rw_forget, cl_rw_read, cl_rw_release, cl_rw_write, cl_rwlock, cl_seen, cl_self,
    cl_sem_acquire, cl_sem_release, cl_semaphore, cl_spin, cl_store, cl_swap, cl_unlock, cl_wake, cl_watch,
)

from copyless.errors import CorruptSegmentError, NotHeldError, OwnerDiedError

cdef extern from "pythread.h" nogil:
    unsigned long PyThread_get_thread_ident()

MUTEX_BYTES = sizeof(cl_mutex)
SEMAPHORE_BYTES = sizeof(cl_semaphore)
EVENT_BYTES = sizeof(cl_event)
ENTRY_BYTES = sizeof(cl_entry)
ROBUST_BYTES = sizeof(cl_robust)
RWLOCK_BYTES = sizeof(cl_rwlock)
CONDITION_BYTES = sizeof(cl_condition)
BARRIER_BYTES = sizeof(cl_barrier)


cdef tuple watch_monitor(cl_monitor *monitor):
    """What to sleep on: the word that moves on when something changes."""
    cdef uint32_t seen = cl_seen(&monitor.change)
    cl_put(&monitor.sleeping, 1)
    return <uintptr_t>&monitor.change, seen


cdef class _Sync(Object):
    """An object of sync.h: what its head says was copied and checked when this process attached, and is not read again."""
    cdef cl_object o

    def _stand(self, Block block):
        cdef int rc = cl_object_attach(&self.o, <cl_head *>block.ref.data, block.ref.capacity, block.number)
        check(rc)
        if self.o.is_.kind != self.KIND:
            raise CorruptSegmentError(f"block {block.number} holds no {type(self).__name__} (kind {self.o.is_.kind}, expected {self.KIND})")
        self.take(block, self.o.head)

    cdef int watch(self, cl_watch *out, uint32_t reader) except -1:
        out.store, out.head, out.is_ = self.store, self._need(), self.o.is_
        if out.is_.kind not in (CL_KIND_LOCK, CL_KIND_RLOCK, CL_KIND_SEMAPHORE, CL_KIND_ROBUST_SEMAPHORE, CL_KIND_EVENT):
            return Object.watch(self, out, reader)
        out.thread = PyThread_get_thread_ident()
        return 0

    cdef void tell(self) noexcept:
        """What was done may have made it ready: tell those who wait for it among other things."""
        cl_bells_tell(self.store, self.head)

    @property
    def _flags(self):
        self._need()
        return self.o.is_.flags

    @property
    def _number(self):
        self._need()
        return self.o.is_.number


cdef class _Lock(_Sync):
    KIND = CL_KIND_LOCK
    cdef cl_spin spin
    cdef public bint silent
    cdef readonly bint recovered
    cdef bint simple  # a plain lock that stands: one word is all there is to it

    def __cinit__(self, *args, **kwargs):
        memset(&self.spin, 0, sizeof(self.spin))

    cdef cl_mutex *mutex(self) except NULL:
        return <cl_mutex *>self._need()

    cdef int once(self, int64_t deadline) noexcept nogil:
        return cl_mutex_lock(self.store, &(<cl_mutex *>self.head).word, deadline, &self.spin)

    cdef void let_go(self) noexcept:
        cl_unlock(&(<cl_mutex *>self.head).word)
        self.tell()

    cdef bint get(self, int64_t deadline, bint keep) except -1:
        self.mutex()
        return self.got(self.once(0), deadline, keep)

    cdef bint got(self, int rc, int64_t deadline, bint keep) except -1:
        """Go on from what the first try gave."""
        cdef Wait wait = new_wait()
        if rc == CL_AGAIN and deadline != 0:
            while rc == CL_AGAIN:
                with nogil:
                    rc = self.once(deadline)
                rc = served(&wait, rc, CL_FOREVER, True)
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
            if not keep:
                self.let_go()
            raise OwnerDiedError(f"the process that held this {type(self).__name__} has died, so what it guards may be half "
                                 "changed. Put that right: the lock is free, the next acquire succeeds (recover='silent': it "
                                 "simply acquires)")
        return True

    def acquire(self, block=True, timeout=None):
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
        self.put_back()

    def _stand(self, Block block):
        _Sync._stand(self, block)
        self.simple = self.KIND == CL_KIND_LOCK

    def locked(self):
        return (cl_seen(&self.mutex().word) & ~CL_LOCK_SLEEP) != 0

    def __enter__(self):
        if self.simple and not is_elsewhere(self.store) and cl_mark(&(<cl_mutex *>self.head).word, 0, cl_self(self.store)):
            self.recovered = False
            return True
        return self.get(CL_FOREVER, False)

    def __exit__(self, kind, value, traceback):
        self.put_back()

    # What a condition asks of its lock.
    def _is_mine(self):
        return (cl_seen(&self.mutex().word) & ~CL_LOCK_SLEEP) == cl_self(self.store)

    def _release_save(self):
        self.let_go()
        return 1

    def _acquire_restore(self, depth):
        self.get(CL_FOREVER, True)

    @property
    def _owner_pid(self):
        """0: free; else the holder's process number."""
        return cl_owner_pid(self.store, cl_seen(&self.mutex().word))

    # What an event loop asks: one try that knows whether it slept, and the word to sleep on.
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
    """A lock that notes in the same call that this object has it, and gives back what it has in one: no signal comes between."""
    cdef bint has
    cdef int pid

    def take(self, timeout):
        if self.get(deadline_of(timeout), False):
            self.has, self.pid = True, getpid()
        return self.held

    @property
    def held(self):
        return self.has and self.pid == getpid()  # in a forked child it is its parent's

    def leave(self):
        if self.has and self.pid == getpid():
            self.has = False
            self.put_back()


cdef class _RLock(_Lock):
    KIND = CL_KIND_RLOCK

    def _stand_in(self, _Condition condition):
        """Stand on the lock that a condition keeps behind its waiters."""
        cdef int rc = cl_condition_lock(&condition.o, condition.block.ref.capacity, &self.o)
        check(rc)
        self.take(condition.block, self.o.head)

    cdef int once(self, int64_t deadline) noexcept nogil:
        return cl_rlock(self.store, <cl_mutex *>self.head, PyThread_get_thread_ident(), deadline, &self.spin)

    cdef void let_go(self) noexcept:
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
        self._need()
        rc = self.once(0)
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
            raise OwnerDiedError("a process that held a permit of this semaphore has died, so what it guards may be half changed. "
                                 "Put that right: the permit is back, the next acquire succeeds")
        return True

    cdef int give_back(self) except -100:
        """One permit of a robust semaphore."""
        cdef Wait wait = new_wait()
        cdef int rc = cl_robust_release(self.store, &self.o, 0)
        while rc == CL_AGAIN:
            with nogil:
                rc = cl_robust_release(self.store, &self.o, CL_FOREVER)
            rc = served(&wait, rc, CL_FOREVER)
        self.tell()
        return rc

    def acquire(self, block=True, timeout=None):
        return self.get(deadline_of(timeout) if block else 0)

    def release(self, n=1):
        cdef int rc = CL_OK
        self._need()
        if n < 1 or n > 0x7fffffff:
            raise ValueError(f"n must be one or more, not {n}")
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
        self._need()
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
        return (cl_seen(&(<cl_event *>self._need()).word) & 1) != 0

    def set(self):
        cl_event_set(<cl_event *>self._need())
        self.tell()

    def clear(self):
        cl_event_clear(<cl_event *>self._need())
        if self._signal is not None:
            self._signal.settle()

    def wait(self, timeout=None):
        cdef int64_t deadline = deadline_of(timeout)
        cdef uint32_t seen = 0
        cdef Wait wait = new_wait()
        cdef int rc
        self._need()
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
        cdef cl_au32 *word = &(<cl_event *>self._need()).word
        cdef uint32_t seen = cl_seen(word)
        if seen & 1:
            return None
        if not seen & 2 and not cl_mark(word, seen, seen | 2):
            return None
        return <uintptr_t>word, seen | 2

    def _sets(self):
        look_at_name(self)  # an event loop asks while it waits
        return cl_seen(&(<cl_event *>self._need()).word) >> 2


cdef class _Condition(_Sync):
    KIND = CL_KIND_CONDITION
    cdef cl_spin spin

    # C, as those of the lock are: in Python a signal could come when it is acquired and `with` does not know of it.
    def __enter__(self):
        return (<object>self)._lock.__enter__()

    def __exit__(self, kind, value, traceback):
        (<object>self)._lock.__exit__(kind, value, traceback)

    def _wait(self, lock, timeout):
        """Under the lock, which is let go meanwhile and held again afterwards whatever happens."""
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


# Who holds which RWLock here: (lock's block, thread or task) -> [times for reading, for writing]. A process is one reader
# in shared memory however many of its threads read, so that a thread that reads may read again while a writer waits.
cdef dict HOLDING = {}
os.register_at_fork(after_in_child=HOLDING.clear)


cdef class _RWLock(_Sync):
    KIND = CL_KIND_RWLOCK
    cdef cl_spin spin
    cdef public bint silent
    cdef readonly bint recovered

    # In C from the taking to the noting, and back: between two lines of Python a signal may raise, and what it left half done
    # would be held for ever.
    cdef tuple key_of(self, who):
        return (self.block.ref.segment_id, self.block.number, self.block.ref.generation), who

    cdef list begin(self, tuple key, bint write):
        """How often this thread or task has it, noted from now on; RuntimeError when it would wait for itself."""
        cdef list mine = HOLDING.get(key)
        if mine is None:
            mine = HOLDING[key] = [0, 0]
        elif mine[1]:
            raise RuntimeError("this thread writes under this RWLock already: it would wait for itself")
        elif write and mine[0]:
            raise RuntimeError("this thread reads under this RWLock: a reader cannot become the writer. Leave read() first, then "
                               "look again at what was read")
        return mine

    cdef void end(self, tuple key, list mine) noexcept:
        if not mine[0] and not mine[1]:
            HOLDING.pop(key, None)

    def _acquire(self, bint write, timeout):
        self._need()
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
        """For a task, which waits in Python: its note, and what `_end` needs."""
        self._need()
        cdef tuple key = self.key_of(who)
        return key, self.begin(key, write)

    def _end(self, tuple key, list mine):
        self.end(key, mine)

    def _let(self, who, bint write):
        self._need()
        cdef tuple key = self.key_of(who)
        cdef list mine = HOLDING.get(key)
        if mine is None or not mine[write]:
            raise ValueError(f"this thread does not hold the lock for {'writing' if write else 'reading'}")
        if mine[write] == 1:
            self._let_go(write)
        mine[write] -= 1
        self.end(key, mine)

    def _get(self, bint write, timeout):
        cdef int64_t deadline = deadline_of(timeout)
        cdef Wait wait = new_wait()
        cdef int rc
        self._need()
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
            self._let_go(write)
            raise OwnerDiedError("the process that held this RWLock for writing has died, so what it guards may be half changed. "
                                 "Put that right: the lock is free, the next acquire succeeds")
        return True

    cdef int once(self, bint write, int64_t deadline) noexcept nogil:
        if write:
            return cl_rw_write(self.store, &self.o, deadline, &self.spin)
        return cl_rw_read(self.store, &self.o, deadline, &self.spin)

    # For an event loop: the word that moves on when something changes.
    def _watch(self):
        return watch_monitor(&(<cl_rwlock *>self.head).monitor)

    @property
    def _users(self):
        """(the writer's process number or 0, how many processes read)."""
        cdef cl_rwlock *l = <cl_rwlock *>self._need()
        return cl_owner_pid(self.store, cl_seen(&l.writer)), sum([cl_seen(&l.readers[i].owner) != 0 for i in range(self.o.is_.room)])

    cdef void forget_writing(self) noexcept:
        cl_rw_forget(self.store, &self.o)  # waits for nobody

    def _forget_writing(self):
        self._need()
        self.forget_writing()

    def _let_go(self, bint write):
        cdef Wait wait = new_wait()
        cdef int rc = CL_AGAIN
        self._need()
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
        """(entry, index), None when it is broken, or False when the time is over."""
        cdef int64_t deadline = deadline_of(timeout)
        cdef uint32_t entry = 0, index = 0
        cdef Wait wait = new_wait()
        cdef int rc = CL_AGAIN
        self._need()
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
        """Whether it was passed; False: it broke."""
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
            self._break(False)
            with nogil:
                cl_barrier_wait(self.store, &self.o, entry, 0)
            raise
        if rc == CL_OK:
            return True
        if rc == CL_CLOSED:
            return False
        fail(rc)

    def _release(self, uint32_t entry):
        cdef Wait wait = new_wait()
        cdef int rc = CL_AGAIN
        while rc == CL_AGAIN:
            with nogil:
                rc = cl_barrier_release(self.store, &self.o, entry)
            rc = served(&wait, rc, CL_FOREVER)
        check(rc)

    def _break(self, bint reset):
        cdef Wait wait = new_wait()
        cdef int rc = CL_AGAIN
        self._need()
        while rc == CL_AGAIN:
            with nogil:
                rc = cl_barrier_break(self.store, &self.o, reset)
            rc = served(&wait, rc, CL_FOREVER)
        check(rc)

    def _break_off(self):
        """Break it without waiting for one who is stopped in it: by the one word that needs no lock."""
        cdef int rc
        self._need()
        with nogil:
            rc = cl_barrier_break(self.store, &self.o, False)
        if rc == CL_AGAIN:
            cl_put(&(<cl_barrier *>self.head).broken, 1)
            return
        check(rc)

    @property
    def parties(self):
        return self.o.is_.number

    @property
    def n_waiting(self):
        cdef uint32_t n = 0
        cdef Wait wait = new_wait()
        cdef int rc = CL_AGAIN
        self._need()
        while rc == CL_AGAIN:
            with nogil:
                rc = cl_barrier_waiting(self.store, &self.o, &n)
            rc = served(&wait, rc, CL_FOREVER)
        check(rc)
        return n

    @property
    def broken(self):
        return cl_seen(&(<cl_barrier *>self._need()).broken) != 0
