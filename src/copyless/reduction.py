"""`multiprocessing.reduction`, the same module object: reductions that are registered with its pickler apply to both
packages.
"""

import sys
from multiprocessing import reduction
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from multiprocessing.reduction import *  # noqa: F403
    from multiprocessing.reduction import ACKNOWLEDGE as ACKNOWLEDGE
    from multiprocessing.reduction import HAVE_SEND_HANDLE as HAVE_SEND_HANDLE
    from multiprocessing.reduction import AbstractReducer as AbstractReducer

sys.modules[__name__] = reduction
