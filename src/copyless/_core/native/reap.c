/* Reaping: taking back what the dead held.
 *
 * Promise: after a scan, no hold of a dead owner, no unfinished segment of a dead owner and no message whose time or
 * family has ended is left. Any process may scan at any time, and may be killed in it: every step is a transaction, the
 * owner's slot is freed last, and the next scan goes on from there.
 *
 * Scans cost a system call an owner. Ordinary calls scan when the last scan, anybody's, is longer ago than 10 ms and than
 * a hundred times what it cost; joining, publishing, looking up a name, a full mount and `reap` always do. */
#define _GNU_SOURCE
#include "store.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

static int reap_owner(cl_store *store, uint32_t slot, cl_reaped *reaped)
{
    cl_control *c = store->control;
    int rc = CL_OK;
    for (uint32_t i = 0; rc == CL_OK && i < c->holds_high && i < CL_MAX_HOLDS; i++) {
        if (store->holds[i].kind == CL_HOLD_OWNER && store->holds[i].owner == slot + 1) {
            rc = cl_hold_drop(store, i);
            reaped->blocks++;
        }
    }
    for (uint32_t i = 0; rc == CL_OK && i < c->segments_high && i < CL_MAX_SEGMENTS; i++) {
        cl_segment *s = &store->segments[i];
        if ((s->state == CL_SEGMENT_MAKING || s->state == CL_SEGMENT_GOING) && s->owner == slot + 1) {
            if (s->state == CL_SEGMENT_GOING) {
                rc = cl_segment_retire(store, i);
            }
            if (rc == CL_OK) {
                cl_segment_destroy(store, s->id);
                CL_KILL_POINT();
                cl_segment_forget(store, i);
                reaped->segments++;
            }
        }
    }
    if (rc == CL_OK) {
        c->deaths++;
        c->deaths_in_op += atomic_load_explicit(&store->owners[slot].op, memory_order_relaxed) != CL_OP_NONE;
        cl_txn txn = cl_begin(store->base);
        cl_set32(&txn, &store->owners[slot].state, CL_OWNER_FREE);
        cl_commit(&txn);
        reaped->owners++;
    }
    return rc;
}

/* Messages whose time is over, whose family has ended, or whose block's name was taken away half way. */
static int reap_messages(cl_store *store, const uint64_t *families, uint32_t nfamilies, cl_reaped *reaped)
{
    cl_control *c = store->control;
    int64_t now = cl_monotonic_ns();
    uint32_t asked_pid = 0;
    int asked_alive = 0, rc = CL_OK;
    for (uint32_t i = 0; rc == CL_OK && i < c->holds_high && i < CL_MAX_HOLDS; i++) {
        const cl_hold *h = &store->holds[i];
        cl_block *block;
        int over = 0;
        if (h->kind != CL_HOLD_MESSAGE && h->kind != CL_HOLD_FAMILY && h->kind != CL_HOLD_PERSIST) {
            continue;
        }
        rc = cl_block_checked(store, h->block - 1, &block);
        if (rc != CL_OK) {
            break;
        }
        if (h->kind != CL_HOLD_MESSAGE && block->name == 0) {
            over = 1; /* its name was removed by a process that was killed before it could drop this */
        } else if (h->kind == CL_HOLD_MESSAGE && now >= h->deadline_ns) {
            over = 1;
        } else if (h->kind != CL_HOLD_PERSIST) {
            int alive = 0;
            for (uint32_t f = 0; f < nfamilies && !alive; f++) {
                alive = families[f] == h->family;
            }
            if (!alive && h->parent_pid != 0) {
                if (h->pid_namespace != store->identity.pid_namespace) {
                    alive = 1; /* its numbers mean nothing here: left to its own container, or to its time */
                } else {
                    if (h->parent_pid != asked_pid) {
                        asked_pid = h->parent_pid;
                        asked_alive = cl_process_start(asked_pid) == h->parent_start;
                    }
                    alive = asked_alive;
                }
            }
            over = !alive;
        }
        if (over) {
            rc = cl_hold_drop(store, i);
            reaped->messages++;
        }
    }
    return rc;
}

static int is_due(const cl_control *c, int64_t now)
{
    uint64_t pause = c->scan_cost_ns > 100000 ? c->scan_cost_ns * 100 : 10000000;
    if (pause > 1000000000) {
        pause = 1000000000;
    }
    return (uint64_t)now - c->scanned_ns >= pause;
}

int cl_scan(cl_store *store, unsigned flags, cl_reaped *reaped)
{
    cl_control *c = store->control;
    cl_reaped ignored = {0};
    int64_t now = cl_monotonic_ns();
    if (!(flags & CL_SCAN_FORCE) && !is_due(c, now)) {
        return CL_OK;
    }
    if (reaped == NULL) {
        reaped = &ignored;
    }
    uint64_t families[CL_MAX_OWNERS];
    uint32_t nfamilies = 0;
    int rc = CL_OK;
    for (uint32_t i = 0; rc == CL_OK && i < c->owners_high && i < CL_MAX_OWNERS - 1; i++) {
        const cl_owner *o = &store->owners[i];
        if (o->state == CL_OWNER_FREE) {
            continue;
        }
        if (i == store->slot || cl_owner_life(store, i, o->incarnation) == CL_ALIVE) {
            if (o->state == CL_OWNER_LIVE && !(i == store->slot && o->leaving) &&
                (nfamilies == 0 || families[nfamilies - 1] != o->family)) {
                families[nfamilies++] = o->family;
            }
        } else {
            rc = reap_owner(store, i, reaped);
        }
    }
    if (rc == CL_OK && (c->messages != 0 || c->persistent != 0)) {
        rc = reap_messages(store, families, nfamilies, reaped);
    }
    if (rc == CL_OK && store->settings.idle_ns > 0) {
        rc = cl_trim_locked(store, store->settings.warm_limit, now - store->settings.idle_ns, NULL);
    }
    cl_map_prune(store);
    c->scanned_ns = (uint64_t)now;
    c->scan_cost_ns = (uint64_t)(cl_monotonic_ns() - now);
    return rc;
}

/* Files that no registry knows: left by a process killed while it made a registry, or by one that was removed by hand. */
static void sweep(cl_store *store, int directory)
{
    int fd = openat(directory, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *d = fd < 0 ? NULL : fdopendir(fd);
    if (d == NULL) {
        if (fd >= 0) {
            close(fd);
        }
        return;
    }
    uint64_t now = cl_realtime_ns() / 1000000000;
    for (struct dirent *e; (e = readdir(d)) != NULL;) {
        unsigned long long id;
        char rest;
        struct stat st;
        int known = 0;
        int segment = sscanf(e->d_name, "seg.%16llx%c", &id, &rest) == 1;
        if (!segment && sscanf(e->d_name, "live.%16llx%c", &id, &rest) != 1 &&
            sscanf(e->d_name, "new.%16llx%c", &id, &rest) != 1) {
            continue;
        }
        for (uint32_t i = 0; segment && i < store->control->segments_high; i++) {
            known |= store->segments[i].id == id && store->segments[i].state != CL_SEGMENT_FREE;
        }
        known |= !segment && id == store->registry_id;
        if (!known && fstatat(fd, e->d_name, &st, AT_SYMLINK_NOFOLLOW) == 0 &&
            (segment || (uint64_t)st.st_mtime + 10 < now)) { /* a young liveness file may be a registry in the making */
            unlinkat(fd, e->d_name, 0);
        }
    }
    closedir(d);
}

int cl_reap(cl_store *store, unsigned flags, cl_reaped *reaped)
{
    int rc;
    cl_reaped counted = {0};
    while ((rc = cl_enter(store, CL_OP_REAP, flags)) == CL_AGAIN && (flags & CL_MAY_WAIT)) {
    }
    if (rc != CL_OK) {
        return rc;
    }
    rc = cl_scan(store, CL_SCAN_FORCE, &counted);
    sweep(store, store->directory);
    if (cl_home(store, CL_SPILLED, 0) >= 0) {
        sweep(store, cl_home(store, CL_SPILLED, 0));
    }
    cl_leave(store);
    if (reaped != NULL) {
        *reaped = counted;
    }
    return rc;
}
