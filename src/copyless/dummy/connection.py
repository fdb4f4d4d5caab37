"""`multiprocessing.dummy.connection`, the very same module; `copyless.dummy` puts it in this one's place."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from multiprocessing.dummy.connection import *  # noqa: F403
    from multiprocessing.dummy.connection import Connection as Connection
    from multiprocessing.dummy.connection import families as families
