"""`multiprocessing.dummy.connection`, the same module object; `copyless.dummy` replaces this module by it."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from multiprocessing.dummy.connection import *  # noqa: F403
    from multiprocessing.dummy.connection import Connection as Connection
    from multiprocessing.dummy.connection import families as families
