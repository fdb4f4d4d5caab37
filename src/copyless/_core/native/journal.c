#define _GNU_SOURCE
#include "journal.h"

#include <stdlib.h>

static cl_journal *journal_of(void *registry)
{
    return &((cl_control *)((uint8_t *)registry + CL_OFF_CONTROL))->journal;
}

cl_txn cl_begin(void *registry)
{
    return (cl_txn){.base = registry, .journal = journal_of(registry), .n = 0};
}

static void add(cl_txn *txn, uint64_t offset, uint64_t value)
{
    if (txn->n == CL_JOURNAL_MAX) {
        abort(); /* a transaction's length is fixed by the code, not by data */
    }
    txn->journal->writes[txn->n++] = (cl_write){.offset = offset, .value = value};
}

void cl_set32(cl_txn *txn, uint32_t *field, uint32_t value)
{
    add(txn, (uint64_t)((uint8_t *)field - txn->base), value);
}

void cl_set64(cl_txn *txn, uint64_t *field, uint64_t value)
{
    add(txn, (uint64_t)((uint8_t *)field - txn->base) | 1u, value);
}

static void apply(uint8_t *base, const cl_write *w)
{
    /* Relaxed: other processes read these fields under the lock only. Atomic, so that a kill cannot tear a word. */
    if (w->offset & 1u) {
        atomic_store_explicit((_Atomic uint64_t *)(void *)(base + (w->offset & ~(uint64_t)1)), w->value,
                              memory_order_relaxed);
    } else {
        atomic_store_explicit((cl_au32 *)(void *)(base + w->offset), (uint32_t)w->value, memory_order_relaxed);
    }
}

void cl_commit(cl_txn *txn)
{
    CL_KILL_POINT();
    /* release: "journal filled": the writes are in memory before their number is */
    atomic_store_explicit(&txn->journal->committed, txn->n, CL_ORDER(journal_commit_relaxed, memory_order_release));
    for (uint32_t i = 0; i < txn->n; i++) {
        CL_KILL_POINT();
        apply(txn->base, &txn->journal->writes[i]);
    }
    CL_KILL_POINT();
    /* release: all applied before the journal is empty */
    atomic_store_explicit(&txn->journal->committed, 0, memory_order_release);
    CL_KILL_POINT();
}

int cl_replay(void *registry)
{
    cl_journal *journal = journal_of(registry);
    /* acquire, pairs with "journal filled" */
    uint32_t n = atomic_load_explicit(&journal->committed, memory_order_acquire);
    if (n > CL_JOURNAL_MAX && !CL_MUTANT(journal_count_unchecked)) {
        return cl_fail(CL_CORRUPT, 0, "the journal records %u writes; at most %u fit", n, CL_JOURNAL_MAX);
    }
    for (uint32_t i = 0; i < n; i++) {
        cl_write w = journal->writes[i]; /* copied once, then checked */
        uint64_t offset = w.offset & ~(uint64_t)1;
        int outside = offset < CL_OFF_CONTROL || offset > CL_REGISTRY_SIZE - 8;
        if ((outside || offset % ((w.offset & 1u) ? 8 : 4) != 0) && !CL_MUTANT(journal_offset_unchecked)) {
            return cl_fail(CL_CORRUPT, 0, "the journal names the invalid offset %llu", (unsigned long long)w.offset);
        }
        if (!CL_MUTANT(journal_replay_applies_nothing)) {
            apply(registry, &w);
        }
        CL_KILL_POINT();
    }
    atomic_store_explicit(&journal->committed, CL_MUTANT(journal_replay_keeps_committed) ? n : 0, memory_order_release);
    return CL_OK;
}
