/* Transactions: all or nothing at every kill point; damage in the journal is told, not followed. */
#include "check.h"

#include <sys/mman.h>

int main(void)
{
    uint8_t *base =
        mmap(NULL, CL_REGISTRY_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    CHECK(base != MAP_FAILED);
    cl_control *c = (cl_control *)(void *)(base + CL_OFF_CONTROL);
    for (long n = 1;; n++) {
        c->owners_high = 1;
        c->total_bytes = 10;
        c->messages = 100;
        pid_t child = fork();
        if (child == 0) {
            cl_kill_at = cl_kill_passed + n;
            cl_txn txn = cl_begin(base);
            cl_set32(&txn, &c->owners_high, 2);
            cl_set64(&txn, &c->total_bytes, 20);
            cl_set32(&txn, &c->messages, 200);
            cl_commit(&txn);
            _exit(0);
        }
        int whole = ended(child);
        CHECK(cl_replay(base) == CL_OK);
        int before = c->owners_high == 1 && c->total_bytes == 10 && c->messages == 100;
        int after = c->owners_high == 2 && c->total_bytes == 20 && c->messages == 200;
        CHECK(before || after);
        CHECK(!whole || after);
        if (whole) {
            CHECK(n > 4);
            break;
        }
    }
    atomic_store(&c->journal.committed, CL_JOURNAL_MAX + 1);
    CHECK(cl_replay(base) == CL_CORRUPT);
    atomic_store(&c->journal.committed, 1);
    c->journal.writes[0].offset = CL_REGISTRY_SIZE;
    CHECK(cl_replay(base) == CL_CORRUPT);
    puts("journal: ok");
    return 0;
}
