"""`multiprocessing.resource_sharer`, the same module object: connections and sockets are sent as they are there."""

import sys
from multiprocessing import resource_sharer
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from multiprocessing.resource_sharer import *  # noqa: F403
    from multiprocessing.resource_sharer import DupFd as DupFd

sys.modules[__name__] = resource_sharer
