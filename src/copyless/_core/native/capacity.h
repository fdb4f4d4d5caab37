/* Whether memory of a size can be had, asked before it is reserved. */
#ifndef CL_CAPACITY_H
#define CL_CAPACITY_H

#include "base.h"

#define CL_CAPACITY_LARGE ((uint64_t)64 << 20) /* smaller requests are compared with the mount only */

/* fd: any file of the mount. CL_OK or CL_FULL, the detail says which of the three has no room. */
int cl_capacity_check(int fd, uint64_t size);

#endif
