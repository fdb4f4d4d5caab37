"""`multiprocessing.process`, the same module object: processes are those of the standard library."""

import sys
from multiprocessing import process
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from multiprocessing.process import *  # noqa: F403

sys.modules[__name__] = process
