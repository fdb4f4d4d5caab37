/* News: what this process has taken back from dead processes, and put on disk, for the binding to tell.
 *
 * Promise: each fact is told once, by the process that found it out. It is noted under the locks of the scan that found
 * it out; the binding takes it later, when it holds no lock, and writes it into the program's log. A forked child
 * begins without news. If this process is killed before it tells its news, nobody tells them. */
#define _GNU_SOURCE
#include "store.h"

#include <string.h>

void cl_news_add(cl_store *store, const cl_reaped *before, const cl_reaped *now)
{
    cl_reaped *r = &store->news.reclaimed;
    r->owners += now->owners - before->owners;
    r->blocks += now->blocks - before->blocks;
    r->segments += now->segments - before->segments;
    r->messages += now->messages - before->messages;
    r->expired += now->expired - before->expired;
    if ((r->owners | r->blocks | r->segments | r->messages) != 0) {
        atomic_store_explicit(&store->untold, 1, memory_order_relaxed);
    }
}

void cl_news_of_spilling(cl_store *store)
{
    store->news.spilled++;
    atomic_store_explicit(&store->untold, 1, memory_order_relaxed);
}

void cl_news_of_death(cl_store *store, uint32_t slot)
{
    const cl_owner *o = &store->owners[slot];
    cl_news *news = &store->news;
    uint32_t op = atomic_load_explicit(&store->owners[slot].op, memory_order_relaxed);
    for (uint32_t i = 0; i < CL_DEATHS; i++) {
        cl_death *d = &news->deaths[i];
        if (d->pid == 0 && d->command[0] == 0) {
            d->pid = o->pid;
            d->op = op;
            memcpy(d->command, o->command, sizeof d->command);
            d->command[sizeof d->command - 1] = 0;
            return;
        }
    }
}

int cl_news_take(cl_store *store, cl_news *news)
{
    int rc = cl_enter_tables(store, 0);
    if (rc == CL_OK) {
        *news = store->news;
        memset(&store->news, 0, sizeof store->news);
        atomic_store_explicit(&store->untold, 0, memory_order_relaxed);
        cl_leave_tables(store);
    }
    return rc;
}

int cl_used_here(cl_store *store, unsigned flags, uint64_t *blocks, uint64_t *nbytes)
{
    *blocks = *nbytes = 0;
    int rc = cl_enter_tables(store, flags);
    if (rc != CL_OK) {
        return rc;
    }
    uint32_t most = store->open && store->maps != NULL ? store->control->segments_high : 0;
    for (uint32_t slot = 0; slot < most && slot < CL_MAX_SEGMENTS; slot++) {
        const cl_map *map = store->maps[slot];
        if (map == NULL || map->in_use == 0) {
            continue;
        }
        for (uint32_t i = 0; i < map->nblocks && i < CL_BLOCKS; i++) {
            if (map->blocks[i].references != 0) { /* so the entry in the registry does not change */
                ++*blocks;
                *nbytes += store->segments[slot].blocks[i].nbytes;
            }
        }
    }
    cl_leave_tables(store);
    return CL_OK;
}
