#define _GNU_SOURCE
#include "monitor.h"

static int someone_reads(cl_store *store, cl_rwlock *l, uint32_t room)
{
    for (uint32_t i = 0; i < room; i++) {
        uint32_t owner = cl_entry_owner(&l->readers[i]);
        if (owner != 0 && !CL_MUTANT(rwlock_dead_reader_counts) && cl_is_dead(store, owner)) {
            cl_entry_put(&l->readers[i], 0, 0);
        } else if (owner != 0) {
            return 1;
        }
    }
    return 0;
}

static int add_reader(cl_store *store, cl_rwlock *l, uint32_t room)
{
    cl_entry *empty = NULL;
    uint32_t self = cl_self(store);
    for (int look = 0; look < 2; look++) {
        for (uint32_t i = 0; i < room; i++) {
            uint32_t owner = cl_entry_owner(&l->readers[i]);
            if (owner == self) {
                atomic_store_explicit(&l->readers[i].state, cl_entry_state(&l->readers[i]) + 1, memory_order_relaxed);
                return CL_OK;
            }
            if (empty == NULL && (owner == 0 || (look && cl_is_dead(store, owner)))) {
                empty = &l->readers[i];
            }
        }
        if (empty != NULL) {
            if (cl_entry_owner(empty) != 0) {
                cl_entry_put(empty, 0, 0);
            }
            cl_entry_put(empty, self, 1);
            return CL_OK;
        }
    }
    return cl_fail(CL_TABLE_FULL, 0, "%u processes already hold the lock for reading", room);
}

int cl_rw_read(cl_store *store, const cl_object *o, int64_t deadline_ns, cl_spin *spin)
{
    cl_rwlock *l = (cl_rwlock *)(void *)o->head;
    for (int64_t begun = 0;;) {
        int rc = cl_monitor_enter(store, &l->monitor, deadline_ns);
        if (rc != CL_OK) {
            return rc;
        }
        uint32_t writer = atomic_load_explicit(&l->writer, memory_order_relaxed);
        uint32_t waiting = atomic_load_explicit(&l->writer_waiting, memory_order_relaxed);
        int died = writer != 0 && cl_is_dead(store, writer);
        if (waiting != 0 && !CL_MUTANT(rwlock_dead_writer_keeps_readers_out) && cl_is_dead(store, waiting)) {
            atomic_store_explicit(&l->writer_waiting, 0, memory_order_relaxed);
            waiting = 0;
        }
        if ((writer == 0 && waiting == 0) || died) {
            rc = add_reader(store, l, o->is.room);
            if (rc == CL_OK && died) {
                atomic_store_explicit(&l->writer, 0, memory_order_relaxed);
                rc = CL_OWNER_DIED;
            }
            cl_monitor_leave(store, &l->monitor, died);
            return rc;
        }
        if (deadline_ns == 0) {
            cl_monitor_leave(store, &l->monitor, 0);
            return CL_AGAIN;
        }
        rc = cl_monitor_wait(store, &l->monitor, &begun, deadline_ns, spin);
        if (rc != CL_OK) {
            return rc;
        }
    }
}

/* A writer no longer waits. This needs no monitor, whose holder may be stopped: the mark is one word, and the readers
 * that it kept out check again. If the process is killed before the wake, they check after a slice. */
static void stop_waiting(cl_rwlock *l, uint32_t self)
{
    if (atomic_compare_exchange_strong(&l->writer_waiting, &self, 0)) {
        CL_KILL_POINT();
        cl_monitor_tell(&l->monitor);
    }
}

int cl_rw_write(cl_store *store, const cl_object *o, int64_t deadline_ns, cl_spin *spin)
{
    cl_rwlock *l = (cl_rwlock *)(void *)o->head;
    uint32_t self = cl_self(store);
    int64_t begun = 0;
    for (int given_up = CL_OK;;) {
        int rc = cl_monitor_enter(store, &l->monitor, deadline_ns);
        if (rc != CL_OK) {
            if ((rc == CL_TIMEOUT || given_up == CL_TIMEOUT) && !CL_MUTANT(rwlock_writer_waits_for_ever)) {
                stop_waiting(l, self);
            }
            return given_up == CL_TIMEOUT ? given_up : rc;
        }
        uint32_t writer = atomic_load_explicit(&l->writer, memory_order_relaxed);
        uint32_t waiting = atomic_load_explicit(&l->writer_waiting, memory_order_relaxed);
        int died = writer != 0 && cl_is_dead(store, writer);
        if ((writer == 0 || died) && !someone_reads(store, l, o->is.room)) {
            atomic_store_explicit(&l->writer, self, memory_order_relaxed);
            CL_KILL_POINT();
            if (waiting == self) {
                atomic_store_explicit(&l->writer_waiting, 0, memory_order_relaxed);
            }
            cl_monitor_leave(store, &l->monitor, 0);
            return died ? CL_OWNER_DIED : CL_OK;
        }
        if (given_up != CL_OK || deadline_ns == 0) {
            if (waiting == self && given_up == CL_TIMEOUT) {
                atomic_store_explicit(&l->writer_waiting, 0, memory_order_relaxed);
            }
            cl_monitor_leave(store, &l->monitor, given_up == CL_TIMEOUT);
            return given_up != CL_OK ? given_up : CL_AGAIN;
        }
        if (waiting == 0 || cl_is_dead(store, waiting)) {
            atomic_store_explicit(&l->writer_waiting, self, memory_order_relaxed);
        }
        if (deadline_ns < 0) {
            cl_monitor_leave(store, &l->monitor, 0);
            return CL_AGAIN;
        }
        given_up = cl_monitor_wait(store, &l->monitor, &begun, deadline_ns, spin);
    }
}

int cl_rw_forget(cl_store *store, const cl_object *o)
{
    stop_waiting((cl_rwlock *)(void *)o->head, cl_self(store));
    return CL_OK;
}

int cl_rw_release(cl_store *store, const cl_object *o, int write)
{
    cl_rwlock *l = (cl_rwlock *)(void *)o->head;
    int rc = cl_monitor_enter(store, &l->monitor, CL_FOREVER);
    if (rc != CL_OK) {
        return rc;
    }
    uint32_t self = cl_self(store);
    if (write) {
        int mine = atomic_load_explicit(&l->writer, memory_order_relaxed) == self;
        if (mine) {
            atomic_store_explicit(&l->writer, 0, memory_order_relaxed);
        }
        cl_monitor_leave(store, &l->monitor, mine);
        return mine ? CL_OK : CL_MISSING;
    }
    for (uint32_t i = 0; i < o->is.room; i++) {
        if (cl_entry_owner(&l->readers[i]) == self) {
            uint32_t n = cl_entry_state(&l->readers[i]);
            if (n > 1) {
                atomic_store_explicit(&l->readers[i].state, n - 1, memory_order_relaxed);
            } else {
                atomic_store_explicit(&l->readers[i].owner, 0, memory_order_release);
            }
            cl_monitor_leave(store, &l->monitor, n <= 1);
            return CL_OK;
        }
    }
    cl_monitor_leave(store, &l->monitor, 0);
    return CL_MISSING;
}
