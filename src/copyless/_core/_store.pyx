# cython: language_level=3, freethreading_compatible=True, auto_pickle=False
"""The open store of this process: opened, left, carried through fork, cleaned and looked at.

Fast calls keep the GIL and try the locks once; only when one is taken, or a segment must be made, do they let the GIL
go and wait in slices, serving signals between them. So do all other bindings. When it is opened is said in `copyless.storage.store`.
"""
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport atexit, calloc, free
from libc.string cimport memcpy, memset

from copyless._core._check cimport check, new_wait, served, Wait
from copyless._core.c_library cimport (
    CL_AGAIN, CL_ALIVE, CL_BLOCKS, CL_BLOCK_USED, CL_FOREVER, CL_FS_LOCAL, CL_FS_MEMORY, CL_HOLD_CHANNEL, CL_HOLD_FREE, CL_HOLD_MESSAGE, CL_MAY_WAIT,
    CL_NAME_ARRAY, CL_NAME_FREE, CL_NAME_MAX, CL_OK, CL_OP_LIST, CL_OP_REAP, CL_OWNER_FREE, CL_OWNER_GONE, CL_SCAN_FORCE,
    CL_LOCK_SLEEP, cl_seen, CL_SEGMENT_EXTERNAL, CL_SEGMENT_FREE, CL_SEGMENT_READY, CL_STALE, cl_audit, cl_block, cl_control, cl_enter, cl_filesystem_of,
    cl_fork_hold, cl_fork_release, cl_hold, cl_hold_drop, cl_identity, cl_leave, cl_leave_keeping_error, cl_name, cl_owner, cl_owner_life, cl_peek,
    cl_process_lives, cl_process_start, cl_reap, cl_reaped, cl_scan, cl_segment, cl_settings, cl_snapshot, cl_snapshot_free,
    cl_snapshot_take, cl_spill_is_here, cl_store, cl_store_leave, cl_store_open, cl_trim,
)

cdef extern from "unistd.h" nogil:
    int getpid()
    int rmdir(const char *path)

# The store that this process uses now. What stands in one keeps it by a pointer of its own, so none is ever freed.
cdef cl_store *current = <cl_store *>calloc(1, sizeof(cl_store))
if current == NULL:
    raise MemoryError
cdef char DIRECTORY_PATH[4096]
cdef bint LEAVES_AT_EXIT = False


cdef cl_store *the_store() noexcept nogil:
    return current


# ---- opening, leaving, fork


cdef void leave_at_exit() noexcept nogil:
    # Runs after the interpreter is gone: everything Python held has been released by then.
    cdef cl_store *store = current
    while store != NULL:
        if store.open and cl_store_leave(store) == 1 and store == current:
            rmdir(DIRECTORY_PATH)
        store = store.older


def open_store(int directory, bytes path, uint64_t host, uint64_t boot, uint64_t family, uint64_t pid_namespace,
               uint32_t parent_pid, uint64_t parent_start, bytes command, uint64_t warm_limit, int64_t idle_ns,
               int64_t message_ttl_ns, bytes spill):
    """Open the registry in an open directory, joining as an owner. The stores that were used before go on beside it."""
    global LEAVES_AT_EXIT, current
    cdef cl_store *store = current
    cdef cl_identity who
    cdef cl_settings settings
    cdef int rc
    memset(&who, 0, sizeof(who))
    memset(&settings, 0, sizeof(settings))
    if len(spill) >= sizeof(settings.spill):
        raise ValueError(f"the path of the directory for spilled items is too long: {spill!r}")
    memcpy(settings.spill, PyBytes_AS_STRING(spill), len(spill))
    who.host, who.boot, who.family, who.pid_namespace = host, boot, family, pid_namespace
    who.pid = <uint32_t>getpid()
    who.start = cl_process_start(who.pid)
    who.parent_pid, who.parent_start = parent_pid, parent_start
    command = command[:31]
    memcpy(who.command, PyBytes_AS_STRING(command), len(command))
    settings.warm_limit, settings.idle_ns, settings.message_ttl_ns = warm_limit, idle_ns, message_ttl_ns
    if len(path) >= sizeof(DIRECTORY_PATH):
        raise ValueError(f"the path of the storage directory is too long: {path!r}")
    memcpy(DIRECTORY_PATH, PyBytes_AS_STRING(path), len(path) + 1)
    if store.base != NULL:  # used before: what stands in it stays there
        store = <cl_store *>calloc(1, sizeof(cl_store))
        if store == NULL:
            raise MemoryError
    with nogil:
        cl_fork_hold()  # a fork by another thread meanwhile would give its child half a store
        rc = cl_store_open(store, directory, &who, &settings)
        if rc == CL_OK:
            rc = cl_fork_release(store)
        else:
            cl_fork_release(NULL)
    if store != current:
        if rc == CL_OK:
            store.older, current = current, store
        else:
            free(store)
    check(rc)
    if not LEAVES_AT_EXIT:
        LEAVES_AT_EXIT = True
        atexit(leave_at_exit)


def path():
    """The directory of the open store, or of the one that was to be opened last; empty: none was."""
    return <bytes>DIRECTORY_PATH


def is_open():
    return current.open != 0


def identity():
    """(this boot, the registry that was opened last): what is the same for processes that share memory, and for no others."""
    cdef cl_store *store = the_store()
    return store.identity.host, store.identity.boot, store.registry_id


def serves():
    """Whether the open store takes what is new: not when its directory was removed, as far as this process knows."""
    return current.open != 0 and current.adrift == 0


def is_adrift():
    """Whether the open store's directory was found to be removed."""
    return current.open != 0 and current.adrift != 0


def look():
    """Look whether the open store's directory is still there; what `serves` says is then up to date."""
    cdef cl_store *store = current
    cdef cl_control c
    cdef Wait wait = new_wait()
    cdef int rc = CL_AGAIN if store.open else CL_OK
    while rc == CL_AGAIN:
        with nogil:
            rc = cl_peek(store, &c, CL_MAY_WAIT)
        rc = served(&wait, rc, CL_FOREVER)
    check(rc)


def lock_word():
    """The word of the registry's lock: 0 when it is free, or no store is open. For who waits for a change without a thread."""
    return cl_seen(&current.control.lock) & ~CL_LOCK_SLEEP if current.open else 0


def filesystem(int directory):
    """'memory', 'local' (a disk of this machine), or 'shared': other machines may have it too, or nobody knows."""
    cdef int kind = cl_filesystem_of(directory)
    return "memory" if kind == CL_FS_MEMORY else "local" if kind == CL_FS_LOCAL else "shared"


def spill_place():
    """(directory where items go when shared memory is full, whether this process sees it); an empty one: nowhere."""
    cdef cl_store *store = the_store()
    return (<bytes>store.spill.path), cl_spill_is_here(&store.spill) != 0


def configure(uint64_t warm_limit, int64_t idle_ns, int64_t message_ttl_ns):
    cdef cl_store *store = the_store()
    store.settings.warm_limit = warm_limit
    store.settings.idle_ns = idle_ns
    store.settings.message_ttl_ns = message_ttl_ns


def process_start(uint32_t pid):
    """Start of a process in clock ticks after boot; 0 when there is none."""
    return cl_process_start(pid)


def process_lives(uint32_t pid, uint64_t start):
    """Whether the process that had this number and this start still runs; a zombie does not."""
    return cl_process_lives(pid, start) != 0


def owner():
    """(slot, incarnation) of this process in the open store."""
    return the_store().slot, the_store().incarnation


def owner_lives(uint32_t slot, uint32_t incarnation):
    """Whether the process lives that had this slot, whatever namespace its number is in. It does not once it has left."""
    cdef cl_store *store = the_store()
    return cl_owner_life(store, slot, incarnation) == CL_ALIVE


def is_orphan():
    """This is a forked child that could not be registered: what it inherited is not its own."""
    return current.orphan != 0


# ---- looking and cleaning


cpdef scan(bint force=False):
    """Take back what the dead held; unless forced, only if nobody did a moment ago."""
    cdef cl_store *store = the_store()
    cdef Wait wait = new_wait()
    cdef int rc = CL_AGAIN
    while rc == CL_AGAIN:
        with nogil:
            rc = cl_enter(store, CL_OP_REAP, CL_MAY_WAIT)
            if rc == CL_OK:
                rc = cl_scan(store, CL_SCAN_FORCE if force else 0, NULL)  # CL_AGAIN: not to its end
                cl_leave_keeping_error(store)
        rc = served(&wait, rc, CL_FOREVER)
    check(rc)


def reap():
    """Take back what dead processes held: {'owners', 'blocks', 'segments', 'messages'} as counts."""
    cdef cl_store *store = the_store()
    cdef cl_reaped reaped, all
    cdef Wait wait = new_wait()
    cdef int rc = CL_AGAIN
    memset(&all, 0, sizeof(all))
    while rc == CL_AGAIN:
        memset(&reaped, 0, sizeof(reaped))
        with nogil:
            rc = cl_reap(store, CL_MAY_WAIT, &reaped)
        all.owners += reaped.owners  # of each part, where the lock was lost in between
        all.blocks += reaped.blocks
        all.segments += reaped.segments
        all.messages += reaped.messages
        rc = served(&wait, rc, CL_FOREVER)
    check(rc)
    return {"owners": all.owners, "blocks": all.blocks, "segments": all.segments, "messages": all.messages}


def trim(uint64_t keep_bytes):
    """Give whole free segments back to the system until at most `keep_bytes` stay warm; bytes given back."""
    cdef cl_store *store = the_store()
    cdef uint64_t freed
    cdef Wait wait = new_wait()
    cdef int rc = CL_AGAIN
    while rc == CL_AGAIN:
        with nogil:
            rc = cl_trim(store, keep_bytes, CL_MAY_WAIT, &freed)
        rc = served(&wait, rc, CL_FOREVER)
    check(rc)
    return freed


def audit():
    """Raise CorruptSegmentError unless every count and list of the registry agrees with what it counts."""
    cdef cl_store *store = the_store()
    cdef Wait wait = new_wait()
    cdef int rc = CL_AGAIN
    while rc == CL_AGAIN:
        with nogil:
            rc = cl_enter(store, CL_OP_LIST, CL_MAY_WAIT)
            if rc == CL_OK:
                rc = cl_audit(store)
                cl_leave_keeping_error(store)
        rc = served(&wait, rc, CL_FOREVER)
    check(rc)


def statistics():
    """Totals of the registry, without walking it."""
    cdef cl_store *store = the_store()
    cdef cl_control c
    cdef Wait wait = new_wait()
    cdef int rc = CL_AGAIN
    # Never is the GIL waited for while the tables are held: the fork handler wants both.
    while rc == CL_AGAIN:
        with nogil:
            rc = cl_peek(store, &c, CL_MAY_WAIT)
        rc = served(&wait, rc, CL_FOREVER)
    check(rc)
    return {"total_bytes": c.total_bytes, "warm_bytes": c.warm_bytes, "messages": c.messages, "persistent": c.persistent,
            "deaths": c.deaths, "deaths_in_operation": c.deaths_in_op, "recoveries": c.recoveries, "heals": c.heals,
            "weak_liveness": store.weak_liveness != 0, "registry": f"{store.registry_id:016x}", "slot": store.slot}


cdef dict listing(cl_snapshot *all):
    cdef uint32_t i, b
    cdef cl_segment *s
    cdef cl_block *block
    cdef cl_owner *o
    cdef cl_hold *h
    cdef cl_name *n
    owners, segments, blocks, holds, names = [], [], [], [], []
    for i in range(all.control.owners_high):
        o = &all.owners[i]
        if o.state != CL_OWNER_FREE:
            owners.append({"slot": i, "pid": o.pid, "start": o.start, "alive": cl_owner_life(all.view, i, o.incarnation) == CL_ALIVE,
                           "family": o.family, "pid_namespace": o.pid_namespace, "since_ns": o.since_ns,
                           "leaving": o.leaving != 0, "command": (<bytes>o.command).decode("utf-8", "replace"),
                           "gone": o.state == CL_OWNER_GONE,
                           "heir_of": <int64_t>o.heir_of - 1, "self": i == all.view.slot})
    for i in range(all.control.segments_high):
        s = &all.segments[i]
        if s.state == CL_SEGMENT_FREE:
            continue
        segments.append({"slot": i, "id": f"{s.id:016x}", "state": s.state, "external": s.state == CL_SEGMENT_EXTERNAL,
                         "bytes": s.file_size, "block_bytes": s.block_size, "blocks": s.nblocks, "used": s.used})
        if s.state != CL_SEGMENT_READY and s.state != CL_SEGMENT_EXTERNAL:
            continue
        for b in range(min(s.nblocks, <uint32_t>CL_BLOCKS)):
            block = &s.blocks[b]
            if block.state == CL_BLOCK_USED:
                blocks.append({"number": i * CL_BLOCKS + b, "segment": f"{s.id:016x}", "bytes": block.nbytes,
                               "capacity": s.block_size, "holds": block.holds, "generation": block.generation,
                               "creator_pid": block.creator_pid, "created_ns": block.created_ns,
                               "external": s.state == CL_SEGMENT_EXTERNAL})
    for i in range(all.control.holds_high):
        h = &all.holds[i]
        if h.kind != CL_HOLD_FREE:
            holds.append({"kind": ("", "owner", "message", "family", "persist", "channel", "estate")[h.kind if h.kind < 7 else 0],
                          "index": i,
                          "channel": <int64_t>h.channel - 1 if h.kind == CL_HOLD_CHANNEL else -1,
                          "owner": <int64_t>h.owner - 1, "block": <int64_t>h.block - 1, "deadline_ns": h.deadline_ns})
    for i in range(all.control.names_high):
        n = &all.names[i]
        if n.kind != CL_NAME_FREE:
            names.append({"name": PyBytes_FromStringAndSize(n.name, min(n.length, <uint32_t>CL_NAME_MAX)).decode("utf-8", "surrogateescape"),
                          "posix": n.kind != CL_NAME_ARRAY, "block": <int64_t>n.block - 1, "generation": n.generation,
                          "spec_offset": n.spec_offset, "spec_length": n.spec_length})
    return {"owners": owners, "segments": segments, "blocks": blocks, "holds": holds, "names": names}


def snapshot():
    """Owners, segments, blocks, holds and names as they are, as lists of dicts."""
    cdef cl_store *store = the_store()
    cdef cl_snapshot all
    cdef Wait wait = new_wait()
    cdef int rc = CL_AGAIN
    while rc == CL_AGAIN:
        with nogil:
            rc = cl_snapshot_take(store, &all, CL_MAY_WAIT)
        rc = served(&wait, rc, CL_FOREVER)
    check(rc)
    try:
        return listing(&all)
    finally:
        cl_snapshot_free(&all)


def drop_message(uint32_t index):
    """End a message's hold, as the end of its family or of its time does; other holds are left alone."""
    cdef cl_store *store = the_store()
    cdef Wait wait = new_wait()
    cdef int rc = CL_AGAIN
    while rc == CL_AGAIN:
        with nogil:
            rc = cl_enter(store, CL_OP_LIST, CL_MAY_WAIT)
            if rc == CL_OK:
                rc = CL_STALE
                if index < store.control.holds_high and store.holds[index].kind == CL_HOLD_MESSAGE:
                    rc = cl_hold_drop(store, index)
                cl_leave(store)
        rc = served(&wait, rc, CL_FOREVER)
    return rc == CL_OK
