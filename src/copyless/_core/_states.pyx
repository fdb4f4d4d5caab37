# cython: language_level=3, freethreading_compatible=True, auto_pickle=False
"""The state of a lock, queue or ring, read from a copy of its bytes: for an observer, which takes no lock and joins nothing.

Promise: any bytes may be given. What does not describe an object of its kind raises CorruptSegmentError. The bytes were copied while
other processes used the object, so that each number is right, but two of them may be of slightly different moments.

Who holds something is given as a lock word: 0 for nobody, otherwise `owner_of` says which owner.
"""
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy

from copyless._core._check cimport check
from copyless._core.c_library cimport (
    CL_KIND_BARRIER, CL_KIND_CONDITION, CL_KIND_EVENT, CL_KIND_LOCK, CL_KIND_QUEUE, CL_KIND_RING, CL_KIND_RLOCK, CL_KIND_ROBUST_SEMAPHORE,
    CL_KIND_RWLOCK, CL_KIND_SEMAPHORE, CL_LOCK_SLEEP, CL_LOCK_SLOT, CL_OBJECT_MAGIC, CL_QUEUE_JOINABLE, CL_QUEUE_REDELIVER, CL_READER_BLOCKS,
    CL_READER_DEMOTED, CL_READER_POLICY, CL_SEM_SLEEP, cl_au32, cl_au64, cl_condition_lock, cl_end, cl_entry, cl_head, cl_monitor, cl_mutex,
    cl_object, cl_object_attach, cl_queue_bytes, cl_queue_head, cl_queue_size, cl_reader, cl_ring, cl_ring_attach, cl_ring_bytes, cl_ring_count,
    cl_ring_counts, cl_ring_detach, cl_ring_head, cl_seen, cl_seen64, cl_store,
)

from copyless.errors import CorruptSegmentError

cdef extern from "sync.h" nogil:
    enum: CL_WAITER_WAITING, CL_WAITER_NOTIFIED, CL_PARTY_ARRIVED
    uint32_t CL_LOCK_INCARNATION(uint32_t word)
    ctypedef struct full_entry "cl_entry":
        cl_au32 owner, state
    ctypedef struct full_mutex "cl_mutex":
        cl_au32 word, depth
    ctypedef struct full_monitor "cl_monitor":
        cl_au32 mutex, sleeping
    ctypedef struct full_semaphore "cl_semaphore":
        cl_au32 word
    ctypedef struct full_robust "cl_robust":
        full_monitor monitor
        full_entry entries[1]
    ctypedef struct full_rwlock "cl_rwlock":
        full_monitor monitor
        cl_au32 writer, writer_waiting
        full_entry readers[1]
    ctypedef struct full_event "cl_event":
        cl_au32 word
    ctypedef struct full_condition "cl_condition":
        full_entry waiters[1]
    ctypedef struct full_barrier "cl_barrier":
        full_monitor monitor
        cl_au32 broken
        full_entry parties[1]

cdef extern from "queue_layout.h" nogil:
    enum: CL_USERS, CL_SET_ASIDE, CL_COMMIT_SLEEP, CL_COMMIT_SHIFT, CL_ROLE_PUTS, CL_ROLE_GETS, CL_ROLE_CLOSED
    ctypedef struct full_end "cl_end":
        cl_au64 commit
        cl_au32 lock
    ctypedef struct full_user "cl_user":
        cl_au32 owner, role
        cl_au64 taken, done
    ctypedef struct full_lease "cl_lease":
        cl_au32 owner, again
        cl_au64 sequence, nbytes
    ctypedef struct full_queue "cl_queue_head":
        cl_head head
        cl_au32 state
        cl_au64 dropped, spilled
        full_end put, get
        full_user users[256]
        full_lease leases[1]

cdef extern from "list.h" nogil:
    uint64_t CL_LIST_MAGIC
    ctypedef struct full_list "cl_list":
        uint64_t magic, nbytes, nslots, registry

HEAD_BYTES = sizeof(cl_head)
cdef cl_store nobody  # all zeros: no owner has its lock word
_OWN_LOCK = 4  # a flag of a condition's head: its lock lies behind its waiters (`copyless.synchronize`)


def owner_of(uint32_t word):
    """(slot, incarnation modulo 2^19) of the owner that a lock word names."""
    return <int64_t>CL_LOCK_SLOT(word) - 1, CL_LOCK_INCARNATION(word)


def described(bytes head):
    """(kind, flags) of the object that begins with these bytes; kind 0: none does."""
    cdef cl_head *h = <cl_head *>PyBytes_AS_STRING(head)
    if len(head) < <Py_ssize_t>sizeof(cl_head) or h.magic != CL_OBJECT_MAGIC:
        return 0, 0
    return h.kind, h.flags


def items_of_list(bytes head):
    """The number of items of the ShareableList that begins with these bytes; None: it is none."""
    cdef full_list *l = <full_list *>PyBytes_AS_STRING(head)
    if len(head) < <Py_ssize_t>sizeof(full_list) or l.magic != CL_LIST_MAGIC:
        return None
    return l.nslots


def bytes_of_state(bytes head, uint64_t capacity):
    """How many bytes of a block of this capacity `state` needs to see; not the frames of a ring."""
    cdef cl_head *h = <cl_head *>PyBytes_AS_STRING(head)
    cdef uint64_t n = capacity
    if h.kind == CL_KIND_RING and h.number <= 1 << 16 and h.room <= 1 << 12 and h.room % 64 == 0 and h.spare[2] <= capacity:
        n = cl_ring_bytes(h.number, h.room, 0, h.spare[2])
    elif h.kind == CL_KIND_QUEUE:
        n = sizeof(full_queue) + <uint64_t>h.room * sizeof(full_lease)
    elif h.kind == CL_KIND_LOCK or h.kind == CL_KIND_RLOCK or h.kind == CL_KIND_SEMAPHORE or h.kind == CL_KIND_EVENT:
        n = sizeof(cl_mutex)
    return min(n, capacity)


def state(bytes copied, uint64_t capacity, uint32_t number):
    """The state of the object whose first bytes these are, as a dict. Raises CorruptSegmentError.

    `capacity` is the capacity of its block, `number` the block's number, for errors.
    """
    cdef char *data = <char *>calloc(1, len(copied) + sizeof(cl_queue_head))  # aligned, and never too short for a fixed part
    cdef uint32_t kind
    if data == NULL:
        raise MemoryError
    memcpy(data, PyBytes_AS_STRING(copied), len(copied))
    try:
        kind = (<cl_head *>data).kind
        if kind == CL_KIND_QUEUE:
            return state_of_queue(<full_queue *>data, len(copied), number)
        if kind == CL_KIND_RING:
            return state_of_ring(<cl_ring_head *>data, len(copied), capacity, number)
        return state_of_lock(<cl_head *>data, len(copied), number)
    finally:
        free(data)


cdef list entries_of(full_entry *entries, uint32_t room):
    """[(lock word, state)] of the entries in use."""
    cdef uint32_t i, owner
    found = []
    for i in range(room):
        owner = cl_seen(&entries[i].owner)
        if owner != 0:
            found.append((owner, cl_seen(&entries[i].state)))
    return found


cdef dict state_of_mutex(full_mutex *m, bint recursive):
    cdef uint32_t word = cl_seen(&m.word)
    found = {"owner": word & ~CL_LOCK_SLEEP, "has_waiters": (word & CL_LOCK_SLEEP) != 0}
    if recursive:
        found["depth"] = cl_seen(&m.depth) if word & ~CL_LOCK_SLEEP else 0
    return found


cdef dict state_of_lock(cl_head *head, uint64_t capacity, uint32_t number):
    cdef cl_object o, own
    cdef uint32_t word
    cdef full_robust *r
    cdef full_rwlock *rw
    cdef full_barrier *b
    cdef int rc = cl_object_attach(&o, head, capacity, number)
    check(rc)
    kind = o.is_.kind
    if kind == CL_KIND_LOCK or kind == CL_KIND_RLOCK:
        return state_of_mutex(<full_mutex *>head, kind == CL_KIND_RLOCK)
    if kind == CL_KIND_SEMAPHORE:
        word = cl_seen(&(<full_semaphore *>head).word)
        return {"value": word & ~CL_SEM_SLEEP, "most": o.is_.number or None, "has_waiters": (word & CL_SEM_SLEEP) != 0}
    if kind == CL_KIND_ROBUST_SEMAPHORE:
        r = <full_robust *>head
        holders = [owner for owner, _ in entries_of(r.entries, o.is_.room)]
        return {"value": o.is_.room - len(holders), "most": o.is_.room, "holders": holders, "has_waiters": cl_seen(&r.monitor.sleeping) != 0}
    if kind == CL_KIND_RWLOCK:
        rw = <full_rwlock *>head
        return {"writer": cl_seen(&rw.writer), "writer_waits": cl_seen(&rw.writer_waiting) != 0,
                "readers": [owner for owner, _ in entries_of(rw.readers, o.is_.room)], "has_waiters": cl_seen(&rw.monitor.sleeping) != 0}
    if kind == CL_KIND_EVENT:
        return {"set": (cl_seen(&(<full_event *>head).word) & 1) != 0}
    if kind == CL_KIND_CONDITION:
        found = {"waiters": [owner for owner, is_ in entries_of((<full_condition *>head).waiters, o.is_.room) if is_ & 3 == CL_WAITER_WAITING]}
        if o.is_.flags & _OWN_LOCK and cl_condition_lock(&o, capacity, &own) == 0:
            found.update(state_of_mutex(<full_mutex *>own.head, True))
        return found
    if kind == CL_KIND_BARRIER:
        b = <full_barrier *>head
        arrived = [owner for owner, is_ in entries_of(b.parties, o.is_.room) if is_ == CL_PARTY_ARRIVED]
        return {"parties": o.is_.number, "waiting": len(arrived), "waiters": arrived, "broken": cl_seen(&b.broken) != 0}
    raise CorruptSegmentError(f"block {number} holds an object of kind {kind}, which this version does not know")


cdef dict state_of_queue(full_queue *h, uint64_t nbytes, uint32_t number):
    cdef uint32_t i, owner, role
    cdef uint64_t got, put
    cdef full_lease *lease
    if nbytes < sizeof(full_queue) or (nbytes - sizeof(full_queue)) // sizeof(full_lease) < h.head.room:
        raise CorruptSegmentError(f"block {number} of {nbytes} bytes does not contain a valid queue ({h.head.room} leases)")
    got, put = cl_seen64(&h.get.commit), cl_seen64(&h.put.commit)
    users = []
    for i in range(CL_USERS):
        owner = cl_seen(&h.users[i].owner)
        if owner != 0:
            role = cl_seen(&h.users[i].role)
            users.append({"owner": owner, "puts": (role & CL_ROLE_PUTS) != 0, "gets": (role & CL_ROLE_GETS) != 0,
                          "closed": (role & CL_ROLE_CLOSED) != 0, "taken": cl_seen64(&h.users[i].taken),
                          "done": cl_seen64(&h.users[i].done)})
    leases, dead_letters = [], 0
    for i in range(h.head.room):
        lease = &h.leases[i]
        owner = cl_seen(&lease.owner)
        if owner == CL_SET_ASIDE:
            dead_letters += 1
        elif owner != 0 and cl_seen64(&lease.sequence) < got >> CL_COMMIT_SHIFT:
            leases.append({"owner": owner, "item": cl_seen64(&lease.sequence), "bytes": cl_seen64(&lease.nbytes),
                           "delivered": cl_seen(&lease.again) + 1})
    return {
        "put": put >> CL_COMMIT_SHIFT, "taken": got >> CL_COMMIT_SHIFT, "size": cl_queue_size(<cl_queue_head *>h),
        "bytes_of_items": cl_queue_bytes(<cl_queue_head *>h), "spilled": cl_seen64(&h.spilled), "leased": len(leases),
        "lost": cl_seen64(&h.dropped), "dead_letters": dead_letters, "most": h.head.number or None, "most_bytes": h.head.spare[0] or None,
        "shut_down": cl_seen(&h.state) != 0, "consumers_sleep": (put & CL_COMMIT_SLEEP) != 0, "producers_sleep": (got & CL_COMMIT_SLEEP) != 0,
        "put_lock": cl_seen(&h.put.lock) & ~CL_LOCK_SLEEP, "get_lock": cl_seen(&h.get.lock) & ~CL_LOCK_SLEEP,
        "joinable": (h.head.flags & CL_QUEUE_JOINABLE) != 0, "redelivers": (h.head.flags & CL_QUEUE_REDELIVER) != 0,
        "users": users, "leases": leases,
    }


cdef dict state_of_ring(cl_ring_head *h, uint64_t nbytes, uint64_t capacity, uint32_t number):
    cdef cl_ring r
    cdef cl_ring_counts n
    cdef cl_reader *q
    cdef uint32_t i, owner, policy
    cdef uint64_t cursor
    cdef int rc = cl_ring_attach(&r, &nobody, h, capacity, number)
    check(rc)
    try:
        if cl_ring_bytes(r.slots, r.room, 0, r.spec_bytes) > nbytes:  # it changed since its head was read
            raise CorruptSegmentError(f"block {number} does not contain a valid ring")
        cl_ring_count(&r, &n)
        readers = []
        for i in range(r.room):
            q = &r.readers[i]
            owner = cl_seen(&q.owner)
            if owner != 0:
                policy, cursor = CL_READER_POLICY(cl_seen(&q.policy)), cl_seen64(&q.cursor)
                readers.append({
                    "owner": owner, "taken": cl_seen64(&q.taken), "dropped": cl_seen64(&q.dropped),
                    "lag": n.last - cursor if n.last > cursor else 0,
                    "policy": "block" if policy == CL_READER_BLOCKS else "demoted" if policy == CL_READER_DEMOTED else "drop",
                })
        return {
            "published": n.last, "slots": r.slots, "held": n.held, "writing": n.writing, "loans": n.on_loan, "waits": cl_seen64(&h.waits),
            "frame_bytes": r.stride, "shut_down": cl_seen(&h.state) != 0, "oldest_ns": n.oldest_ns, "newest_ns": n.newest_ns,
            "readers": readers, "spec": PyBytes_FromStringAndSize(<char *>r.spec, <Py_ssize_t>r.spec_bytes),
        }
    finally:
        cl_ring_detach(&r)
