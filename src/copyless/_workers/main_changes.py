"""Names of `__main__` that an interactive session has rebound since its workers started.

A forked worker has the `__main__` of its parent at the time of the fork. In a notebook, or `python -i`, functions and
classes are defined again and again. In the worker, their names then refer to the old objects, or do not exist.
Therefore everything of `__main__` that a task uses, and that has changed or was added since, is sent by value
(cloudpickle) and put into the worker's `__main__`. Unchanged objects are sent by name: the worker's own object has the
state that an initializer gave it.

This applies to every rebound name, of a function, a class or a value, wherever a task uses it. It does not apply to a
value that was changed in place, or to names that the initializer sets with `global`: each worker has its own.

In a program that has a file, nothing is compared.
"""

from __future__ import annotations

import functools
import io
import weakref
from collections.abc import Callable, Iterable
from types import CodeType, FunctionType, MethodType, ModuleType

from copyless._first_use import first_use
from copyless._transfer import packing
from copyless._typing import Any
from copyless._workers.snapshot import Snapshot, main_names

__all__ = ["Changes", "changes_since", "names_set_by"]


def _is_definition(value: object) -> bool:
    return isinstance(value, (FunctionType, type, functools.partial, MethodType, ModuleType)) or (
        callable(value) and hasattr(type(value), "__get__") and hasattr(value, "__wrapped__")
    )


def names_set_by(function: object) -> frozenset[str]:
    """The globals of `__main__` that a function sets, or a function of `__main__` that it calls."""
    main, found, seen, waiting = main_names(), set(), set(), [getattr(function, "func", function)]
    while waiting:
        function = waiting.pop()
        function = getattr(function, "__func__", function)
        if not isinstance(function, FunctionType) or function.__globals__ is not main or function in seen:
            continue
        seen.add(function)
        codes = [function.__code__]
        while codes:
            code = codes.pop()
            codes += [constant for constant in code.co_consts if isinstance(constant, CodeType)]
            with first_use:
                import dis
            found |= {step.argval for step in dis.get_instructions(code) if step.opname == "STORE_GLOBAL"}
            waiting += [main[name] for name in code.co_names if name in main]
    return frozenset(found)


def changes_since(snapshots: Iterable[Snapshot], own: frozenset[str], last: Changes | None) -> Changes | None:
    """The names that at least one of the snapshots does not have, without the workers' `own` names.

    None if there are none; `last` if they are the same as before.
    """
    snapshots = list({id(snapshot): snapshot for snapshot in snapshots}.values())
    if not snapshots:
        return None
    found = {
        name: value if _is_definition(value) else None  # does not keep a value alive
        for name, value in list(main_names().items())
        if name not in own and not all(snapshot.has(name, value) for snapshot in snapshots)
    }
    if not found:
        return None
    if (
        last is not None
        and last.snapshots == snapshots
        and last.names.keys() == found.keys()
        and all(value is last.names[name] for name, value in found.items())
    ):
        return last
    return Changes(snapshots, found, own)


def _names_in(code: CodeType) -> set[str]:
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            names |= _names_in(constant)
    return names


class Changes:
    """Names of `__main__` that some workers do not have, or have with another object."""

    def __init__(self, snapshots: list[Snapshot], names: dict[str, Any], own: frozenset[str]) -> None:
        self.snapshots, self.names, self.own = snapshots, names, own
        self._stale: weakref.WeakKeyDictionary[Any, bool] = weakref.WeakKeyDictionary()

    def has_all(self, name: str, value: object) -> bool:
        """Whether all workers have this value under this name, or one of their own."""
        return name in self.own or all(snapshot.has(name, value) for snapshot in self.snapshots)

    def concern(self, thing: object) -> bool:
        """Whether a function or class, or one that it uses, differs from the one that the workers find by its name."""
        try:
            known = self._stale.get(thing)
            if known is None:
                known = self._stale[thing] = self._look_at(thing, set())
            return known
        except TypeError:
            return self._look_at(thing, set())

    def _look_at(self, thing: object, seen: set[int]) -> bool:
        if id(thing) in seen:
            return False
        seen.add(id(thing))
        if isinstance(thing, FunctionType):
            main = main_names()
            if thing.__globals__ is main:
                name = thing.__qualname__.partition(".")[0]
                if name in self.names or (thing.__module__ == "__main__" and "." not in thing.__qualname__ and main.get(name) is not thing  # noqa: E501
                                          and getattr(main.get(name), "__wrapped__", None) is not thing):  # fmt: skip
                    return True
                for name in _names_in(thing.__code__):
                    if name in self.names or self._look_at(main.get(name), seen):
                        return True
            inside = [
                *(thing.__defaults__ or ()),
                *(thing.__kwdefaults__ or {}).values(),
                getattr(thing, "__wrapped__", None),
            ]
            for cell in thing.__closure__ or ():
                try:
                    inside.append(cell.cell_contents)
                except ValueError:
                    continue
            return any(self._look_at(part, seen) for part in inside)
        if isinstance(thing, type):
            if thing.__module__ != "__main__":
                return False
            name = thing.__qualname__.partition(".")[0]
            if name in self.names or ("." not in thing.__qualname__ and main_names().get(name) is not thing):
                return True
            parts: list[Any] = [*thing.__bases__]
            for value in vars(thing).values():
                if isinstance(value, property):
                    parts += [value.fget, value.fset, value.fdel]
                else:
                    parts.append(getattr(value, "__func__", value))
            return any(self._look_at(part, seen) for part in parts)
        if isinstance(thing, functools.partial):
            return any(self._look_at(part, seen) for part in (thing.func, *thing.args, *thing.keywords.values()))
        if isinstance(thing, MethodType):
            return self._look_at(thing.__func__, seen) or self._look_at(type(thing.__self__), seen)
        if type(thing) is packing.CACHED and thing.__module__ == "__main__" and thing.__qualname__ in self.names:
            return True
        wrapped = getattr(thing, "__wrapped__", None) if callable(thing) else None
        return wrapped is not None and self._look_at(wrapped, seen)

    def pickler(self, stream: io.BytesIO, beside: object) -> Any:
        """A pickler for `packing.pack` that sends by value what the workers do not have."""
        pickler = _pickler_class()(stream, 5, buffer_callback=beside)
        pickler.changes = self
        return pickler


class _Module:
    def __reduce__(self) -> Any:
        from importlib import import_module

        return import_module, ("__main__",)


class _Globals:
    """The names of `__main__` in the process where this is unpickled."""

    def __reduce__(self) -> Any:
        return vars, (_Module(),)


@functools.cache
def _pickler_class() -> Callable[..., Any]:
    cloud: Any = packing.cloud_pickler()

    class Pickler(cloud):  # type: ignore[misc]
        changes: Changes

        def reducer_override(self, obj: object) -> Any:
            if type(obj) is packing.CACHED and obj.__module__ == "__main__" and not self.changes.concern(obj):
                return NotImplemented
            if isinstance(obj, (FunctionType, type)) and obj.__module__ == "__main__" and "<" not in obj.__qualname__:
                if not self.changes.concern(obj):
                    return NotImplemented  # pickle it by its name
                reduced = super().reducer_override(obj)
                if isinstance(obj, FunctionType) and obj.__globals__ is main_names():
                    return self._in_main(reduced)
                return reduced
            return super().reducer_override(obj)

        def _in_main(self, reduced: Any) -> Any:
            """A function that is sent by value uses the globals of the worker's `__main__`, and brings the missing
            ones.
            """
            try:
                make, (code, _, *rest), (attributes, slots), *more = reduced
                bound = slots["__globals__"]
            except (TypeError, ValueError, KeyError):
                return reduced  # another version of cloudpickle: it brings all globals
            slots["__globals__"] = {name: value for name, value in bound.items() if not self._is_there(name, value)}
            return make, (code, _Globals(), *rest), (attributes, slots), *more

        def _is_there(self, name: str, value: Any) -> bool:
            return self.changes.has_all(name, value) and not (_is_definition(value) and self.changes.concern(value))

    return Pickler
