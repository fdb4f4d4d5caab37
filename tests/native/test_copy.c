/* cl_copy against memcpy, at every alignment of source and target. The bytes around the target must not change. */
#include "check.h"

#include "copy.h"

#define MOST ((size_t)3 << 20)
#define EDGE 256

static uint8_t *from, *to;

static void one(size_t n, size_t source, size_t target, uint64_t whole)
{
    memset(to, 0xa5, n + 2 * EDGE + 64);
    cl_copy(to + EDGE + target, from + source, n, whole);
    CHECK(memcmp(to + EDGE + target, from + source, n) == 0);
    for (size_t i = 0; i < EDGE; i++) {
        CHECK(to[target + i] == 0xa5 && to[EDGE + target + n + i] == 0xa5);
    }
}

int main(void)
{
    uint64_t word = 88172645463325252u;
    from = aligned_alloc(4096, MOST + 4096);
    to = aligned_alloc(4096, MOST + 4096);
    CHECK(from != NULL && to != NULL);
    for (size_t i = 0; i < MOST + 4096; i++) {
        word ^= word << 13, word ^= word >> 7, word ^= word << 17;
        from[i] = (uint8_t)word;
    }
    const size_t sizes[] = {0,          1,     63,    64,         4095,       4096,  16383, 16384,  16385,   16384 + 63,
                            16384 + 64, 32767, 32768, 32768 + 63, 32768 + 64, 40000, 65536, 131072, 1 << 20, MOST - 64};
    for (size_t k = 0; k < sizeof sizes / sizeof *sizes; k++) {
        for (size_t at = 0; at < 64; at += sizes[k] < 65536 ? 1 : 13) {
            one(sizes[k], at % 17, at, CL_COPY_LARGE);
            one(sizes[k], at, 0, UINT64_MAX);
        }
        one(sizes[k], 0, 0, 0);
    }
    free(from);
    free(to);
    printf("copy: ok\n");
    return 0;
}
