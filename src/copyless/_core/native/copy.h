/* Copies data into shared memory that another process will read, or that this process will not read soon.
 *
 * memcpy reads each line of its target before it writes it, up to sizes of a hundred mebibytes, because the program may
 * need the copy in its cache. The copies made here are needed by others: large copies bypass the caches, and write to
 * eight pages at a time, which the memory serves in parallel. Copying and then reading in another process takes two
 * thirds of the time that it takes with memcpy (`docs/design/copies.md`). On processors other than x86-64 this is
 * memcpy. */
#ifndef CL_COPY_H
#define CL_COPY_H

#include <stdint.h>

#define CL_COPY_LARGE ((uint64_t)1 << 20) /* transfers of at least so many bytes bypass the caches */

/* Copy n bytes of a transfer of `whole` bytes. All writes are done when it returns: what is published afterwards is
 * visible after them. */
void cl_copy(void *to, const void *from, uint64_t n, uint64_t whole);

#endif
