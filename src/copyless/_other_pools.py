"""Shared arrays in the pools of other packages: what their picklers are taught, and when.

loky (joblib's default) and multiprocess (pathos, p_tqdm) carry pickles through pipes of one host, each to one receiver. Their
picklers send a shared array as multiprocessing's does: by its handle, with a message's hold. They learn it when a shared array is made
or sent while their module is loaded; nothing is imported for it, and no import is watched.

Dask and Ray pickle once and load many times, on hosts that nobody knows at that moment. There a shared array goes by value, with one warning
that what is written does not arrive, until the program says that the cluster is one host: `copyless.integrations.dask.register` and
`copyless.integrations.ray.register`.

A pickler asks an object for its reduction where it was not taught one, or was made before it was. So `SharedArray` looks which package
called: the first function below those of the picklers themselves.
"""

from __future__ import annotations

import sys
import warnings
from typing import Any

from copyless import _loaders, pickling
from copyless._core import _handles, _names, _store
from copyless.errors import StaleHandleError, UnnamedError

__all__ = ["allow", "arrive", "look", "reduce"]

_PIPES = ("loky.backend.reduction", "joblib.externals.loky.backend.reduction", "multiprocess.reduction")
_DASK, _RAY = "distributed.protocol.pickle", "ray."
_MODULES = (*_PIPES, _DASK, "ray.cloudpickle")
# Functions of these are the pickler itself: who called it stands below them.
_PICKLERS = frozenset((
    "pickle", "dill._dill", "cloudpickle.cloudpickle", "joblib.externals.cloudpickle.cloudpickle", "ray.cloudpickle.cloudpickle",
    "copyless.arrays", __name__, "copyless.pickling",
))  # fmt: skip
_NAMES = {"dask": "Dask", "ray": "Ray"}

_allowed: set[str] = set()  # clusters that are known to be one host
_warned: set[str] = set()
_taught: dict[str, Any] = {}  # by module: its pickler's class
_seen = 0  # modules at the last look
_shared_array: Any = None
_reduce_array: Any = None
_named: dict[tuple[int, int], str] = {}  # by block and generation


class _ByPickle(NotImplementedError, TypeError):
    """What Dask's serializers understand as: take the pickler."""


def know(shared_array: type, reduction: Any) -> None:
    global _shared_array, _reduce_array
    _shared_array, _reduce_array = shared_array, reduction


def look() -> None:
    """A shared array is made or sent: teach those picklers that are there by now. A comparison, unless a module was loaded since."""
    global _seen
    if len(sys.modules) != _seen:
        _seen = len(sys.modules)
        for name in _PIPES:
            module = sys.modules.get(name)
            if module is not None:
                _teach(name, module)
        serialize = getattr(sys.modules.get("distributed.protocol.serialize"), "dask_serialize", None)
        if serialize is not None and _shared_array not in serialize._lookup:
            serialize.register(_shared_array, _by_pickle)


def _teach(name: str, module: Any) -> None:
    """Have a package's pickler send shared arrays by handle, and take the holds back when a pickle fails half way."""
    if name == "multiprocess.reduction":
        kind = getattr(module, "ForkingPickler", None)
    else:
        kind = getattr(module, "get_loky_pickler", lambda: None)()  # another class after set_loky_pickler
    register = getattr(module, "register", None)
    if kind is None or register is None or _taught.get(name) is kind:
        return  # still being imported
    register(_shared_array, _reduce_array)
    kind.dump = pickling.noting(kind.dump)
    _taught[name] = kind


def _by_pickle(array: Any, context: Any = None) -> Any:
    raise _ByPickle


def _caller() -> str:
    """The module whose function called the pickler that asks."""
    frame: Any = sys._getframe(2)
    while frame is not None:
        name = frame.f_globals.get("__name__", "")
        if name not in _PICKLERS:
            return str(name)
        frame = frame.f_back
    return ""


def reduce(array: Any, protocol: Any) -> Any:
    """What `SharedArray.__reduce_ex__` returns for a pickler of another package; None: the data, as for a file."""
    if not any(name in sys.modules for name in _MODULES):
        return None
    look()
    caller = _caller()
    if caller in _PIPES:
        return _reduce_class(array) or _reduce_array(array)
    package = "dask" if caller == _DASK else "ray" if caller.startswith(_RAY) else None
    if package is None:
        return None
    if package in _allowed:
        return _reduce_class(array) or _by_name(array, package)
    if package not in _warned:
        _warned.add(package)
        warnings.warn(
            f"{_NAMES[package]} takes a shared array by value: what is written to it there does not arrive here. Where the cluster is this "
            f"host alone, call copyless.integrations.{package}.register() first",
            RuntimeWarning,
            stacklevel=4,
        )
    return None


def _reduce_class(array: Any) -> Any:
    if type(array) is _shared_array:
        return None
    from copyless.arrays import reduce_of_class

    return reduce_of_class(array)


# ---- clusters of one host: what is sent may be loaded many times, or never, so it takes no hold and needs a name


def allow(package: str) -> None:
    """This process sends shared arrays by name in a package's messages."""
    _allowed.add(package)
    look()


def _by_name(array: Any, package: str) -> Any:
    from copyless import arrays
    from copyless.storage.dtypes import NotDescribed

    if array.size == 0:
        return _loaders.empty_array, (array.shape, array.dtype)
    dtype = None
    try:
        handle = arrays._encode(array, 0)
    except NotDescribed:
        handle, dtype = arrays._encode(arrays._raw(array), 0), array.dtype
    assert handle is not None
    return _loaders.array_of_cluster, (package, handle, _name_of(handle, package), dtype)


def _name_of(handle: bytes, package: str) -> str:
    """The name of the block in which an array lies; empty for a file, which needs none."""
    kind, _, _, number, generation = _handles.wire_fields(handle)
    if kind == _handles.KIND_FILE:
        return ""
    place = number, generation
    name = _named.get(place)
    if name is not None:
        found = _names.lookup(name.encode())
        if found is not None and _handles.wire_fields(found[0])[3:] == place:
            return name
        del _named[place]
    for entry in _store.snapshot()["names"]:
        if entry["block"] == number:
            _named[place] = str(entry["name"])
            return str(entry["name"])
    raise UnnamedError(
        f"{_NAMES[package]} may load this shared array many times, and later than this process lives, so it needs a name that keeps it: make it "
        "with name=..., and with persist=True where nobody holds it meanwhile"
    )


def arrive(package: str, handle: bytes, name: str, dtype: Any) -> Any:
    """An array that came in a message of a cluster of one host; this process is of that cluster, so it sends as it got."""
    from copyless import arrays

    try:
        array = arrays.attach(handle)
    except StaleHandleError as error:
        raise StaleHandleError(
            f"the shared array {name!r} is gone: its last holder ended, or it was unlinked. Keep it where it was made, or make it with persist=True"
        ) from error
    allow(package)
    return array if dtype is None else array.view(dtype)
