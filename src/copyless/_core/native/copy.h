/* Copying into shared memory what another process will read, or this one will not soon.
 *
 * memcpy reads each line of its target before it writes it, up to sizes of a hundred mebibytes, because what it copies may be
 * wanted in the cache. What is copied here is wanted elsewhere: large copies write past the caches, and go through eight pages at
 * a time, which the memory serves at once. That takes two thirds of memcpy's time, reading it in another process
 * included (`docs/design/copies.md`). Elsewhere than on x86-64 it is memcpy. */
#ifndef CL_COPY_H
#define CL_COPY_H

#include <stdint.h>

#define CL_COPY_LARGE ((uint64_t)1 << 20) /* bytes of a whole transfer from which it goes past the caches */

/* n bytes of a transfer of `whole` bytes. Done when it returns: what is published afterwards is seen after it. */
void cl_copy(void *to, const void *from, uint64_t n, uint64_t whole);

#endif
