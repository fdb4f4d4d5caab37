# cython: language_level=3, freethreading_compatible=True, auto_pickle=False
"""The open store of this process: opening, leaving, forking, reclaiming and observing it.

Calls first try the locks once with the GIL held. Only if a lock is taken, or a segment must be made, they release the GIL and
wait in slices, handling signals in between. All other bindings do the same. `copyless._storage.store` decides when it is opened.
"""
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.errno cimport errno
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport atexit, calloc, free, malloc
from libc.string cimport memcpy, memset, strerror

from copyless._core import events
from copyless._core._check cimport check, new_wait, served, Wait
from copyless._core.c_library cimport (
    CL_AGAIN, CL_ALIVE, CL_BLOCKS, CL_BLOCK_USED, CL_DEATHS, CL_FOREVER, CL_FS_LOCAL, CL_FS_MEMORY, CL_HOLD_CHANNEL, CL_HOLD_FREE, CL_HOLD_MESSAGE, CL_MAY_WAIT,
    CL_NAME_ARRAY, CL_NAME_FREE, CL_NAME_MAX, CL_OBJECTS, CL_OK, CL_OP_LIST, CL_OP_REAP, CL_OWNER_FREE, CL_OWNER_GONE, CL_SCAN_FORCE,
    CL_LOCK_SLEEP, cl_seen, CL_SEGMENT_EXTERNAL, CL_SEGMENT_FREE, CL_SEGMENT_READY, CL_SPILLED, CL_STALE, CL_TIMEOUT, cl_audit, cl_before_fork, cl_block, cl_control, cl_enter, cl_filesystem_of,
    cl_fork_hold, cl_fork_release, cl_hold, cl_hold_drop, cl_identity, cl_leave, cl_leave_keeping_error, cl_name, cl_news, cl_news_take, cl_owner, cl_owner_life, cl_peek,
    cl_process_lives, cl_process_start, cl_program, cl_reap, cl_reaped, cl_scan, cl_segment, cl_settings, cl_snapshot, cl_snapshot_free,
    cl_snapshot_take, cl_spill_is_here, cl_start_program, cl_store, cl_store_leave, cl_store_open, cl_trim, cl_used_here, cl_waits,
    sigaddset, sigemptyset, sigset_t,
)

cdef extern from "unistd.h" nogil:
    int getpid()
    int rmdir(const char *path)

# The store that this process uses now. Objects in a store have their own pointer to it, so no store is ever freed.
cdef cl_store *current = <cl_store *>calloc(1, sizeof(cl_store))
if current == NULL:
    raise MemoryError
cdef char DIRECTORY_PATH[4096]
cdef bint LEAVES_AT_EXIT = False


cdef cl_store *the_store() noexcept nogil:
    return current


# ---- opening, leaving, fork


cdef void leave_at_exit() noexcept nogil:
    # Runs after the interpreter has ended: all holds of Python objects have been released by then.
    cdef cl_store *store = current
    while store != NULL:
        if store.open and cl_store_leave(store) == 1 and store == current:
            rmdir(DIRECTORY_PATH)
        store = store.older


def open_store(int directory, bytes path, uint64_t host, uint64_t boot, uint64_t family, uint64_t pid_namespace,
               uint32_t parent_pid, uint64_t parent_start, bytes command, uint64_t warm_limit, int64_t idle_ns,
               int64_t message_ttl_ns, bytes spill):
    """Open the registry in an open directory and join it as an owner. Earlier stores remain usable."""
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
    if store.base != NULL:  # used before: its objects stay there
        store = <cl_store *>calloc(1, sizeof(cl_store))
        if store == NULL:
            raise MemoryError
    with nogil:
        cl_fork_hold()  # a fork by another thread now would give its child an incomplete store
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
    """The directory of the open store, or of the last one that was to be opened; empty if there was none."""
    return <bytes>DIRECTORY_PATH


def is_open():
    return current.open != 0


def identity():
    """(this boot, the registry that was opened last): equal in exactly the processes that share memory."""
    cdef cl_store *store = the_store()
    return store.identity.host, store.identity.boot, store.registry_id


def serves():
    """Whether the open store accepts new objects: not if this process knows that its directory was removed."""
    return current.open != 0 and current.adrift == 0


def is_adrift():
    """Whether the directory of the open store was found to be removed."""
    return current.open != 0 and current.adrift != 0


def look():
    """Check whether the directory of the open store still exists; `serves` is up to date afterwards."""
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
    """The word of the registry's lock: 0 if it is free, or no store is open. For event loops that poll for a change."""
    return cl_seen(&current.control.lock) & ~CL_LOCK_SLEEP if current.open else 0


def filesystem(int directory):
    """'memory', 'local' (a disk of this machine), or 'shared': other machines may use it too, or it is unknown."""
    cdef int kind = cl_filesystem_of(directory)
    return "memory" if kind == CL_FS_MEMORY else "local" if kind == CL_FS_LOCAL else "shared"


def spill_place():
    """(directory for spilled items, whether this process sees it); an empty directory: none."""
    cdef cl_store *store = the_store()
    return (<bytes>store.spill.path), cl_spill_is_here(&store.spill) != 0


def configure(uint64_t warm_limit, int64_t idle_ns, int64_t message_ttl_ns):
    cdef cl_store *store = the_store()
    store.settings.warm_limit = warm_limit
    store.settings.idle_ns = idle_ns
    store.settings.message_ttl_ns = message_ttl_ns


def process_start(uint32_t pid):
    """The start of a process in clock ticks after boot; 0 if there is no such process."""
    return cl_process_start(pid)


def process_lives(uint32_t pid, uint64_t start):
    """Whether the process with this id and start still runs; a zombie does not."""
    return cl_process_lives(pid, start) != 0


cdef char **pointers(list texts) except NULL:
    """Where each text lies, and NULL behind: what C takes for a list. To be freed; good as long as the list."""
    cdef char **found = <char **>malloc((len(texts) + 1) * sizeof(char *))
    cdef Py_ssize_t i
    if found == NULL:
        raise MemoryError
    for i in range(len(texts)):
        text = <bytes?>texts[i]
        if b"\0" in text:
            free(found)
            raise ValueError(f"a NUL ends a text for a program, so there can be none inside: {text!r}")
        found[i] = PyBytes_AS_STRING(text)
    found[len(texts)] = NULL
    return found


def start_program(list paths, list arguments, list environment, int stdin=-1, int stdout=-1, int stderr=-1, int processor=-1, blocked=()):
    """Start a program as a child that gets SIGTERM when the calling thread ends: its number. `cl_start_program` says all.

    Raises OSError where there is no such program, or where it cannot be started.
    """
    cdef cl_program program
    cdef sigset_t signals
    cdef int pid = -1, error = 0
    memset(&program, 0, sizeof(program))
    sigemptyset(&signals)
    for number in blocked:
        sigaddset(&signals, number)
    program.blocked = &signals
    program.descriptors[0], program.descriptors[1], program.descriptors[2] = stdin, stdout, stderr
    program.processor = processor
    try:
        program.paths = pointers(paths)
        program.arguments = pointers(arguments)
        program.environment = pointers(environment)
        with nogil:
            pid = cl_start_program(&program)
            error = errno
    finally:
        free(<void *>program.paths)
        free(<void *>program.arguments)
        free(<void *>program.environment)
    if pid < 0:
        raise OSError(error, strerror(error).decode(), paths[0] if paths else None)
    return pid


def owner():
    """(slot, incarnation) of this process in the open store."""
    return the_store().slot, the_store().incarnation


def owner_lives(uint32_t slot, uint32_t incarnation):
    """Whether the process with this slot lives, whatever its pid namespace. False once it has left the store."""
    cdef cl_store *store = the_store()
    return cl_owner_life(store, slot, incarnation) == CL_ALIVE


def before_fork():
    """Wait, at most 2 s, until a child can be registered; here, where other threads continue. Returns the pid of the process that
    still holds the lock, or 0.

    Signals are handled after the fork: an exception of a handler would be lost here.
    """
    cdef cl_store *store = current
    cdef int rc
    if store.open == 0:
        return 0
    with nogil:
        rc = cl_before_fork(store)
    return cl_waits().pid if rc == 1 else 0


def is_orphan():
    """Whether this is a forked child that could not be registered: the memory that it inherited belongs to its parent."""
    return current.orphan != 0


def why_orphan():
    """Why this child could not be registered. Empty: the registry's lock was not free in time."""
    if current.fork_failed.code == CL_AGAIN or current.fork_failed.code == CL_TIMEOUT:
        return ""
    return (<bytes>current.fork_failed.what).decode("utf-8", "replace") or "no free descriptor, or too many processes"


# ---- observing and reclaiming


cdef int tell_news(cl_store *store) except -1:
    """Log what this process took back from others. Called when the thread holds no lock of the C library."""
    cdef cl_news news
    cdef uint32_t i
    if cl_seen(&store.untold) == 0 or events.is_quiet() or cl_news_take(store, &news) != CL_OK:
        return 0
    deaths = []
    for i in range(CL_DEATHS):
        if news.deaths[i].pid != 0:
            deaths.append((news.deaths[i].pid, (<bytes>news.deaths[i].command).decode("utf-8", "replace"), news.deaths[i].op))
    events.reclaimed(news.reclaimed.owners, news.reclaimed.blocks, news.reclaimed.segments, news.reclaimed.messages,
                     news.reclaimed.expired, deaths)
    if news.spilled != 0:
        events.spilled(news.spilled, (<bytes>store.spill.path).decode("utf-8", "replace"))
    return 0


def news():
    """Log and count what this process took back from others and has not told yet."""
    if current.open:
        tell_news(current)


def used_here():
    """(number of blocks that objects of this process use, the bytes that were asked for in them)."""
    cdef cl_store *store = current
    cdef uint64_t blocks = 0, nbytes = 0, some, of_some
    cdef Wait wait = new_wait()
    cdef int rc
    while store != NULL:
        rc = CL_AGAIN if store.open else CL_OK
        some = of_some = 0
        while rc == CL_AGAIN:
            with nogil:
                rc = cl_used_here(store, CL_MAY_WAIT, &some, &of_some)
            rc = served(&wait, rc, CL_FOREVER)
        check(rc)
        blocks += some
        nbytes += of_some
        store = store.older
    return blocks, nbytes


cpdef scan(bint force=False):
    """Reclaim what dead processes held; unless forced, only if no process did so a moment ago."""
    cdef cl_store *store = the_store()
    cdef Wait wait = new_wait()
    cdef int rc = CL_AGAIN
    while rc == CL_AGAIN:
        with nogil:
            rc = cl_enter(store, CL_OP_REAP, CL_MAY_WAIT)
            if rc == CL_OK:
                rc = cl_scan(store, CL_SCAN_FORCE if force else 0, NULL)  # CL_AGAIN: not finished
                cl_leave_keeping_error(store)
        rc = served(&wait, rc, CL_FOREVER)
    check(rc)
    tell_news(store)


def reap():
    """Reclaim what dead processes held: the counts of 'owners', 'blocks', 'segments' and 'messages'."""
    cdef cl_store *store = the_store()
    cdef cl_reaped reaped, all
    cdef Wait wait = new_wait()
    cdef int rc = CL_AGAIN
    memset(&all, 0, sizeof(all))
    while rc == CL_AGAIN:
        memset(&reaped, 0, sizeof(reaped))
        with nogil:
            rc = cl_reap(store, CL_MAY_WAIT, &reaped)
        all.owners += reaped.owners  # summed over the parts, if the lock was released in between
        all.blocks += reaped.blocks
        all.segments += reaped.segments
        all.messages += reaped.messages
        rc = served(&wait, rc, CL_FOREVER)
    check(rc)
    tell_news(store)
    return {"owners": all.owners, "blocks": all.blocks, "segments": all.segments, "messages": all.messages}


def trim(uint64_t keep_bytes):
    """Return free segments to the system until at most `keep_bytes` are kept. Returns the number of bytes."""
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
    """Raise CorruptSegmentError unless all counts and lists of the registry agree."""
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
    # Never wait for the GIL while the tables are held: the fork handler needs both.
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
            owners.append({"slot": i, "incarnation": o.incarnation, "pid": o.pid, "start": o.start,
                           "alive": cl_owner_life(all.view, i, o.incarnation) == CL_ALIVE,
                           "family": o.family, "pid_namespace": o.pid_namespace, "since_ns": o.since_ns,
                           "leaving": o.leaving != 0, "command": (<bytes>o.command).decode("utf-8", "replace"),
                           "gone": o.state == CL_OWNER_GONE,
                           "heir_of": <int64_t>o.heir_of - 1, "self": i == all.view.slot})
    for i in range(all.control.segments_high):
        s = &all.segments[i]
        if s.state == CL_SEGMENT_FREE:
            continue
        segments.append({"slot": i, "id": f"{s.id:016x}", "state": s.state, "external": s.state == CL_SEGMENT_EXTERNAL,
                         "spilled": s.class_index == CL_SPILLED, "bytes": s.file_size, "block_bytes": s.block_size, "blocks": s.nblocks, "used": s.used})
        if s.state != CL_SEGMENT_READY and s.state != CL_SEGMENT_EXTERNAL:
            continue
        for b in range(min(s.nblocks, <uint32_t>CL_BLOCKS)):
            block = &s.blocks[b]
            if block.state == CL_BLOCK_USED:
                blocks.append({"number": i * CL_BLOCKS + b, "segment": f"{s.id:016x}", "bytes": block.nbytes,
                               "capacity": s.block_size, "holds": block.holds, "generation": block.generation,
                               "creator_pid": block.creator_pid, "created_ns": block.created_ns,
                               "external": s.state == CL_SEGMENT_EXTERNAL, "among_objects": s.class_index >= CL_OBJECTS,
                               "alone": s.nblocks == 1})
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
    """Owners, segments, blocks, holds and names, as lists of dicts."""
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
    """End the hold of a message, as the end of its family or of its time does; other holds are not changed."""
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
