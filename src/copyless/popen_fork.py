"""`multiprocessing.popen_fork`, the same module object: processes are those of the standard library."""

import sys
from multiprocessing import popen_fork
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from multiprocessing.popen_fork import *  # noqa: F403

sys.modules[__name__] = popen_fork
