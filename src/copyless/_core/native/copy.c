#define _GNU_SOURCE
#include "copy.h"

#include "base.h"

#include <string.h>

#if defined(__x86_64__)
#include <emmintrin.h>

#define PAGE 4096
#define PAGES 8 /* pages written at a time */
#define AHEAD 256 /* how far ahead the source is fetched, in bytes */
#define STEP 128 /* two cache lines */

static void copy_step(uint8_t *to, const uint8_t *from)
{
    __m128i v[STEP / 16];
    _mm_prefetch((const char *)from + AHEAD, _MM_HINT_T0);
    _mm_prefetch((const char *)from + AHEAD + 64, _MM_HINT_T0);
    for (int i = 0; i < STEP / 16; i++) {
        v[i] = _mm_loadu_si128((const __m128i *)(const void *)(from + 16 * i));
    }
    for (int i = 0; i < STEP / 16; i++) {
        _mm_stream_si128((__m128i *)(void *)(to + 16 * i), v[i]);
    }
}

void cl_copy(void *to, const void *from, uint64_t n, uint64_t whole)
{
    uint8_t *out = to;
    const uint8_t *in = from;
    uint64_t head = -(uintptr_t)to & 63;
    if (whole < CL_COPY_LARGE || n < head + PAGES * PAGE) {
        memcpy(to, from, n);
        return;
    }
    memcpy(out, in, head); /* streaming stores need whole lines */
    out += head, in += head, n -= head;
    for (; n >= PAGES * PAGE; out += PAGES * PAGE, in += PAGES * PAGE, n -= PAGES * PAGE) {
        for (int at = 0; at < PAGE; at += STEP) {
            for (int page = 0; page < PAGES; page++) {
                copy_step(out + page * PAGE + at, in + page * PAGE + at);
            }
        }
    }
    if (!CL_MUTANT(copy_unfenced)) {
        _mm_sfence(); /* nothing else orders streaming stores */
    }
    memcpy(out, in, n);
}
#else
void cl_copy(void *to, const void *from, uint64_t n, uint64_t whole)
{
    (void)whole;
    memcpy(to, from, n);
}
#endif
