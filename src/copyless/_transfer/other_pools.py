"""Shared arrays in the pools of other packages: which reductions their picklers get, and when.

loky (joblib's default) and multiprocess (pathos, p_tqdm) send pickles through pipes of one host, each to one receiver.
Their picklers send a shared array like multiprocessing's: as its handle, with a hold of the message. They are
registered when a shared array is made or sent while their module is loaded; nothing is imported for that, and no import
is watched.

Dask and Ray pickle once and load many times, on hosts that are unknown at that moment. There a shared array is sent by
value, with one warning that writes do not reach the original, until the program states that the cluster is one host:
`copyless.integrations.dask.register` and `copyless.integrations.ray.register`.

A pickler asks an object for its reduction if none was registered, or if the pickler was made before that. `SharedArray`
then determines which package called: the first function below those of the picklers themselves.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from typing import Any

from copyless import _loaders
from copyless._core import _handles, _names, _store
from copyless._transfer import _array_type, in_flight
from copyless._transfer.array_handles import encode, raw
from copyless._transfer.dtypes import NotDescribed
from copyless._transfer.in_flight import Hold, reduction_of
from copyless.errors import UnnamedError

__all__ = ["allow", "look", "reduce"]

_PIPES = ("loky.backend.reduction", "joblib.externals.loky.backend.reduction", "multiprocess.reduction")
_DASK, _RAY = "distributed.protocol.pickle", "ray."
_MODULES = (*_PIPES, _DASK, "ray.cloudpickle")
# Functions of these modules are the pickler itself: its caller is below them on the stack.
_PICKLERS = frozenset((
    "pickle", "dill._dill", "cloudpickle.cloudpickle", "joblib.externals.cloudpickle.cloudpickle",
    "ray.cloudpickle.cloudpickle",
))  # fmt: skip
_OURS = __name__.rpartition(".")[0]  # so are the reductions of copyless
_NAMES = {"dask": "Dask", "ray": "Ray"}

_allowed: set[str] = set()  # packages whose clusters are known to be on one host
_warned: set[str] = set()
_taught: dict[str, Any] = {}  # by module: the class of its pickler
_seen = 0  # number of modules at the last check
_named: dict[tuple[int, int], str] = {}  # by block and generation


class _ByPickle(NotImplementedError, TypeError):
    """Dask's serializers take this exception as: use the pickler."""


def look(kind: type) -> None:
    """Called when a shared array of the type `kind` is made or sent: register it with the picklers that are loaded by
    now.

    Costs one comparison unless a module was loaded since.
    """
    global _seen
    if len(sys.modules) != _seen:
        _seen = len(sys.modules)
        for name in _PIPES:
            module = sys.modules.get(name)
            if module is not None:
                _teach(name, module, kind)
        serialize = getattr(sys.modules.get("distributed.protocol.serialize"), "dask_serialize", None)
        if serialize is not None and kind not in serialize._lookup:
            serialize.register(kind, _by_pickle)


def _teach(name: str, module: object, shared_array: type) -> None:
    """Make a package's pickler send shared arrays as handles, and release the holds if a pickle fails halfway."""
    if name == "multiprocess.reduction":
        kind = getattr(module, "ForkingPickler", None)
    else:
        kind = getattr(module, "get_loky_pickler", lambda: None)()  # set_loky_pickler changes the class
    register = getattr(module, "register", None)
    if kind is None or register is None or _taught.get(name) is kind:
        return  # still being imported
    register(shared_array, reduction_of(shared_array))
    kind.dump = in_flight.noting(kind.dump)
    _taught[name] = kind


def _by_pickle(array: object, context: object = None) -> object:
    raise _ByPickle


def _caller() -> str:
    """The module whose function called the pickler that asks."""
    frame: Any = sys._getframe(2)
    while frame is not None:
        name = frame.f_globals.get("__name__", "")
        if name not in _PICKLERS and not name.startswith(_OURS):
            return str(name)
        frame = frame.f_back
    return ""


def reduce(array: object, shared_array: type, protocol: object, of_class: Callable[[Any], object]) -> object:
    """The result of `SharedArray.__reduce_ex__` for a pickler of another package; None: the data, as for a file."""
    if not any(name in sys.modules for name in _MODULES):
        return None
    look(shared_array)
    caller = _caller()
    if caller in _PIPES:
        return of_class(array) if type(array) is not shared_array else reduction_of(shared_array)(array)
    package = "dask" if caller == _DASK else "ray" if caller.startswith(_RAY) else None
    if package is None:
        return None
    if package in _allowed:
        return of_class(array) if type(array) is not shared_array else _by_name(array, package)
    if package not in _warned:
        _warned.add(package)
        warnings.warn(
            f"{_NAMES[package]} copies a shared array by value: writes to the copy do not change this array. "
            f"If the whole cluster runs on this host, call copyless.integrations.{package}.register() first",
            RuntimeWarning,
            stacklevel=4,
        )
    return None


# ---- clusters on one host: a message may be loaded many times or never, so it has no hold, and the array needs a name


def allow(package: str) -> None:
    """Send shared arrays by name in the messages of a package, in this process."""
    _allowed.add(package)
    kind = _array_type.shared_array_type()
    if kind is not None:
        look(kind)


def _by_name(array: Any, package: str) -> object:
    if array.size == 0:
        return _loaders.empty_array, (array.shape, array.dtype)
    dtype = None
    try:
        handle = encode(array, Hold.NONE)
    except NotDescribed:
        handle, dtype = encode(raw(array), Hold.NONE), array.dtype
    assert handle is not None
    return _loaders.array_of_cluster, (package, handle, _name_of(handle, package), dtype)


def _name_of(handle: bytes, package: str) -> str:
    """The name of the block that has an array; empty for a file, which needs none."""
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
        f"{_NAMES[package]} may load this shared array several times, also after this process has ended, "
        "so the array needs a name: make it with name=..., and with persist=True if no process holds it "
        "meanwhile"
    )
