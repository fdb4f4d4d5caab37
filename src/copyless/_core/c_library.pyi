"""The constants of the C library; the .pxd beside this file names the header of each. And limits of this process."""

CORRUPT: int
STALE: int
FULL: int
TABLE_FULL: int
SYSTEM: int
CLOSED: int
FORKED: int
RETRY: int
FOREIGN: int
OTHER_FORMAT: int
REMOVED: int
MAX_OWNERS: int
MAX_SEGMENTS: int
MAX_HOLDS: int
MAX_NAMES: int
LAYOUT: int
FORMAT: int

KIND_LOCK: int
KIND_RLOCK: int
KIND_RWLOCK: int
KIND_SEMAPHORE: int
KIND_ROBUST_SEMAPHORE: int
KIND_CONDITION: int
KIND_EVENT: int
KIND_BARRIER: int
KIND_QUEUE: int
KIND_RING: int
QUEUE_BYTES: int
MUTEX_BYTES: int

RLIMIT_AS: int
RLIMIT_FSIZE: int
RLIMIT_NOFILE: int
RLIMIT_NPROC: int

def soft_limit(kind: int) -> int: ...
