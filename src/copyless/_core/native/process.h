/* Processes of this machine, as /proc shows them. */
#ifndef CL_PROCESS_H
#define CL_PROCESS_H

#include <stdint.h>

uint64_t cl_process_start(uint32_t pid); /* clock ticks after boot, of a zombie too; 0: no such process */
int cl_process_lives(uint32_t pid, uint64_t start); /* the one that had this number and this start still runs */

#endif
