"""`multiprocessing.forkserver`, the same module object: processes are those of the standard library."""

import sys
from multiprocessing import forkserver
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from multiprocessing.forkserver import *  # noqa: F403
    from multiprocessing.forkserver import MAXFDS_TO_SEND as MAXFDS_TO_SEND
    from multiprocessing.forkserver import SIGNED_STRUCT as SIGNED_STRUCT
    from multiprocessing.forkserver import ForkServer as ForkServer
    from multiprocessing.forkserver import main as main
    from multiprocessing.forkserver import read_signed as read_signed
    from multiprocessing.forkserver import write_signed as write_signed

sys.modules[__name__] = forkserver
