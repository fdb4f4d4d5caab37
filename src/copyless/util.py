"""`multiprocessing.util`, the same module object: its finalizers, loggers and hooks apply to every process."""

import sys
from multiprocessing import util
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from multiprocessing.util import *  # noqa: F403
    from multiprocessing.util import DEBUG as DEBUG
    from multiprocessing.util import DEFAULT_LOGGING_FORMAT as DEFAULT_LOGGING_FORMAT
    from multiprocessing.util import INFO as INFO
    from multiprocessing.util import LOGGER_NAME as LOGGER_NAME
    from multiprocessing.util import MAXFD as MAXFD
    from multiprocessing.util import NOTSET as NOTSET
    from multiprocessing.util import abstract_sockets_supported as abstract_sockets_supported
    from multiprocessing.util import is_abstract_socket_namespace as is_abstract_socket_namespace
    from multiprocessing.util import spawnv_passfds as spawnv_passfds

    if sys.version_info >= (3, 14):
        from multiprocessing.util import WARNING as WARNING
        from multiprocessing.util import warn as warn

sys.modules[__name__] = util
