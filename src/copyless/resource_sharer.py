"""`multiprocessing.resource_sharer`, the very same module: connections and sockets cross as they do there."""

import sys
from multiprocessing import resource_sharer
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from multiprocessing.resource_sharer import *  # noqa: F403
    from multiprocessing.resource_sharer import DupFd as DupFd

sys.modules[__name__] = resource_sharer
