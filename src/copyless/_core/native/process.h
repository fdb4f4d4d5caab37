/* Processes of this machine, as /proc shows them. */
#ifndef CL_PROCESS_H
#define CL_PROCESS_H

#include <stdint.h>

uint64_t cl_process_start(uint32_t pid); /* clock ticks after boot; 0: no such process */

#endif
