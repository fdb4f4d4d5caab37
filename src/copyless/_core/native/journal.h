/* Transactions on the registry: several words change together or not at all, whichever process is killed.
 *
 * Promise: called under the registry's lock. Writes are collected in the shared journal; commit publishes their number
 * in one store, applies them and clears it. Every value is absolute, so applying it twice does no harm.
 *
 * What SIGKILL leaves: before that store, nothing has changed (the collected writes are ignored). After it, the next
 * holder of the lock gets CL_OWNER_DIED and applies all of them again (cl_replay), which finishes the transaction.
 * There is no third state, so no structure of the registry needs a repair of its own.
 *
 * Inside a transaction reads still see the old values. */
#ifndef CL_JOURNAL_H
#define CL_JOURNAL_H

#include "layout.h"

typedef struct cl_txn {
    uint8_t *base; /* of the registry */
    cl_journal *journal;
    uint32_t n;
} cl_txn;

cl_txn cl_begin(void *registry);
void cl_set32(cl_txn *txn, uint32_t *field, uint32_t value);
void cl_set64(cl_txn *txn, uint64_t *field, uint64_t value);
void cl_commit(cl_txn *txn);

/* Finish what a dead holder of the lock had committed. CL_OK or CL_CORRUPT. */
int cl_replay(void *registry);

#endif
