/* Waiting: a wait sees a change by another process, never returns early, and uses no processor time while asleep. */
#include "check.h"

#include <sys/mman.h>
#include <time.h>

int main(void)
{
    cl_au32 *word = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    cl_spin spin = {0};
    CHECK(cl_wait(word, 1, CL_FOREVER, &spin) == CL_OK); /* differs already */

    int64_t deadline = cl_monotonic_ns() + 130000000;
    struct timespec before, after;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &before);
    int rc, slices = 0;
    while ((rc = cl_wait(word, 0, deadline, &spin)) == CL_AGAIN) {
        slices++;
    }
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &after);
    CHECK(rc == CL_TIMEOUT && cl_monotonic_ns() >= deadline && slices >= 1);
    CHECK((after.tv_sec - before.tv_sec) * 1000000000 + after.tv_nsec - before.tv_nsec < 30000000);

    pid_t child = fork();
    if (child == 0) {
        for (uint32_t turn = 0; turn < 1000; turn++) { /* answer each even number with the next odd one */
            while (atomic_load(word) != 2 * turn + 2) {
                cl_wait(word, 2 * turn + 1, CL_FOREVER, &spin);
            }
            atomic_store(word, 2 * turn + 3);
            cl_wake(word, 1);
        }
        _exit(0);
    }
    atomic_store(word, 1);
    for (uint32_t turn = 0; turn < 1000; turn++) {
        atomic_store(word, 2 * turn + 2);
        cl_wake(word, 1);
        while (atomic_load(word) == 2 * turn + 2) {
            cl_wait(word, 2 * turn + 2, CL_FOREVER, &spin);
        }
    }
    CHECK(ended(child));
    puts("wait: ok");
    return 0;
}
