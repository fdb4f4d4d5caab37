/* The lock: exclusion, a dead holder, a word that names nobody, no early or late return. */
#include "check.h"

#include <pthread.h>
#include <sys/mman.h>

static cl_life alive(void *context, uint32_t slot, uint32_t incarnation)
{
    (void)context, (void)incarnation;
    return slot == 7 ? CL_DEAD : slot == 9 ? CL_NOBODY : CL_ALIVE;
}

static cl_au32 word;
static long counter;
static cl_spin spin;

static void *add(void *arg)
{
    uint32_t self = CL_LOCK_WORD((uint32_t)(uintptr_t)arg, 1u);
    for (int i = 0; i < 20000; i++) {
        int rc;
        while ((rc = cl_lock(&word, self, CL_FOREVER, &spin, alive, NULL)) != CL_OK) {
            CHECK(rc == CL_AGAIN);
        }
        counter++;
        cl_unlock(&word);
    }
    return NULL;
}

int main(void)
{
    pthread_t threads[4];
    for (uintptr_t i = 0; i < 4; i++) {
        CHECK(pthread_create(&threads[i], NULL, add, (void *)i) == 0);
    }
    for (int i = 0; i < 4; i++) {
        pthread_join(threads[i], NULL);
    }
    CHECK(counter == 80000 && atomic_load(&word) == 0);

    uint32_t me = CL_LOCK_WORD(1u, 5u);
    CHECK(CL_LOCK_SLOT(me) == 2 && CL_LOCK_INCARNATION(me) == 5);
    atomic_store(&word, CL_LOCK_WORD(7u, 3u)); /* left by the dead */
    CHECK(cl_lock(&word, me, CL_FOREVER, &spin, alive, NULL) == CL_OWNER_DIED);
    CHECK((atomic_load(&word) & ~CL_LOCK_SLEEP) == me);
    cl_unlock(&word);
    atomic_store(&word, CL_LOCK_WORD(9u, 3u)); /* noise */
    CHECK(cl_lock(&word, me, CL_FOREVER, &spin, alive, NULL) == CL_CORRUPT);
    atomic_store(&word, CL_LOCK_WORD(3u, 3u)); /* held */
    CHECK(cl_lock(&word, me, 0, &spin, alive, NULL) == CL_AGAIN);
    int64_t start = cl_monotonic_ns(), deadline = start + 120000000;
    int rc;
    while ((rc = cl_lock(&word, me, deadline, &spin, alive, NULL)) == CL_AGAIN) {
    }
    CHECK(rc == CL_TIMEOUT && cl_monotonic_ns() >= deadline);
    atomic_store(&word, CL_LOCK_SLEEP); /* a holder killed between its swap and its wake */
    CHECK(cl_lock(&word, me, CL_FOREVER, &spin, alive, NULL) == CL_OK);
    cl_unlock(&word);
    puts("lock: ok");
    return 0;
}
