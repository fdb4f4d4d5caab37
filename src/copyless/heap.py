"""`multiprocessing.heap`, the same module object: the ctypes objects of copyless do not use it."""

import sys
from multiprocessing import heap
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from multiprocessing.heap import *  # noqa: F403
    from multiprocessing.heap import Arena as Arena
    from multiprocessing.heap import Heap as Heap
    from multiprocessing.heap import rebuild_arena as rebuild_arena
    from multiprocessing.heap import reduce_arena as reduce_arena

sys.modules[__name__] = heap
