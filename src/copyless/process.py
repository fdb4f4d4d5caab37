"""`multiprocessing.process`, the very same module: processes are the standard library's own."""

import sys
from multiprocessing import process
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from multiprocessing.process import *  # noqa: F403

sys.modules[__name__] = process
