"""`multiprocessing.popen_spawn_posix`, the same module object: processes are those of the standard library."""

import sys
from multiprocessing import popen_spawn_posix
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from multiprocessing.popen_spawn_posix import *  # noqa: F403

sys.modules[__name__] = popen_spawn_posix
