/* A snapshot of the registry's tables, for who lists them.
 *
 * Promise: the tables agree with each other, and the registry's lock is held for the time of a copy, not of a listing. What
 * asks the system (which owners live) and what makes objects of a language is done afterwards, on the copy. */
#include "store.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

void cl_snapshot_free(cl_snapshot *snapshot)
{
    free(snapshot->owners);
    free(snapshot->segments);
    free(snapshot->holds);
    free(snapshot->names);
    memset(snapshot, 0, sizeof *snapshot);
}

/* Room for a table that may grow a little before it is copied. */
static void *room_for(uint32_t high, uint32_t most, size_t size, uint32_t *room)
{
    *room = high + high / 8 + 256 < most ? high + high / 8 + 256 : most;
    return malloc(*room * size);
}

int cl_snapshot_take(cl_store *store, cl_snapshot *out, unsigned flags)
{
    for (;;) {
        uint32_t owners, segments, holds, names;
        int rc = cl_peek(store, &out->control, flags);
        const cl_control *c = &out->control;
        memset((uint8_t *)out + sizeof out->control, 0, sizeof *out - sizeof out->control);
        if (rc != CL_OK) {
            return rc;
        }
        out->owners = room_for(c->owners_high, CL_MAX_OWNERS, sizeof *out->owners, &owners);
        out->segments = room_for(c->segments_high, CL_MAX_SEGMENTS, sizeof *out->segments, &segments);
        out->holds = room_for(c->holds_high, CL_MAX_HOLDS, sizeof *out->holds, &holds);
        out->names = room_for(c->names_high, CL_MAX_NAMES, sizeof *out->names, &names);
        if (out->owners == NULL || out->segments == NULL || out->holds == NULL || out->names == NULL) {
            cl_snapshot_free(out);
            return cl_fail(CL_SYSTEM, ENOMEM, "a copy of the registry's tables");
        }
        rc = cl_enter(store, CL_OP_LIST, flags);
        if (rc != CL_OK) {
            cl_snapshot_free(out);
            return rc;
        }
        out->control = *store->control;
        int fits = c->owners_high <= owners && c->segments_high <= segments && c->holds_high <= holds &&
                   c->names_high <= names;
        if (fits) {
            memcpy(out->owners, store->owners, c->owners_high * sizeof *out->owners);
            memcpy(out->segments, store->segments, c->segments_high * sizeof *out->segments);
            memcpy(out->holds, store->holds, c->holds_high * sizeof *out->holds);
            memcpy(out->names, store->names, c->names_high * sizeof *out->names);
        }
        cl_leave(store);
        if (fits) {
            return CL_OK;
        }
        cl_snapshot_free(out);
    }
}
