"""`multiprocessing.dummy`, the same module object: its processes are threads, which share everything already."""

import sys
from multiprocessing import dummy
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from multiprocessing.dummy import *  # noqa: F403
    from multiprocessing.dummy import Array as Array
    from multiprocessing.dummy import DummyProcess as DummyProcess
    from multiprocessing.dummy import Namespace as Namespace
    from multiprocessing.dummy import Value as Value
    from multiprocessing.dummy import shutdown as shutdown

sys.modules[__name__] = dummy
sys.modules[f"{__name__}.connection"] = dummy.connection  # otherwise it would be loaded a second time, under this name
