"""`multiprocessing.resource_tracker`, the same module object: a program has one tracker, and copyless needs none."""

import sys
from multiprocessing import resource_tracker
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from multiprocessing.resource_tracker import *  # noqa: F403
    from multiprocessing.resource_tracker import ResourceTracker as ResourceTracker
    from multiprocessing.resource_tracker import getfd as getfd
    from multiprocessing.resource_tracker import main as main

sys.modules[__name__] = resource_tracker
