"""All names of `multiprocessing` are found at the same place, as ours or as the same object."""

import importlib
import inspect
import multiprocessing
import pathlib
import pkgutil
import re
import subprocess
import sys
import types

import pytest

import copyless

DOCS = pathlib.Path(__file__).parent.parent / "docs"

# Modules of the standard library that have no counterpart.
NOT_MODULES = {
    "popen_spawn_win32": "for Windows; it cannot be imported elsewhere",
}
# Public names that are neither the same object nor of a module of ours.
NOT_OURS = {
    "sharedctypes.typecode_to_type": "ours knows one code more, '?'",
    "managers.listener_client": "our managers speak another protocol; what is in it is ours",
}


def modules():
    for info in pkgutil.walk_packages(multiprocessing.__path__, "multiprocessing."):
        name = info.name.removeprefix("multiprocessing.")
        if name not in NOT_MODULES:
            yield name


def public_names(module):
    """All names that a program may use there, except modules that the module itself has imported."""
    for name in dir(module):
        if not name.startswith("_") and not isinstance(getattr(module, name), types.ModuleType):
            yield name


def is_ours(value):
    home = getattr(value, "__module__", None) or getattr(type(value), "__module__", "")
    return home.split(".")[0] == "copyless"


def differing(theirs, ours, name):
    for each in public_names(theirs):
        if not hasattr(ours, each):
            yield f"{name}{each}: not found"
            continue
        value, standard = getattr(ours, each), getattr(theirs, each)
        if value is standard or is_ours(value) or f"{name}{each}" in NOT_OURS:
            continue
        if isinstance(standard, (int, str, float)) and value == standard:
            continue
        if inspect.ismethod(standard) and value == standard:  # of the default context
            continue
        yield f"{name}{each}: {value!r} is neither ours nor the standard library's"


@pytest.mark.parametrize("name", list(modules()))
def test_each_public_name_of_a_module_is_ours_or_the_very_same(name):
    theirs = importlib.import_module(f"multiprocessing.{name}")
    ours = importlib.import_module(f"copyless.{name}")
    assert list(differing(theirs, ours, f"{name}.")) == []
    assert set(getattr(theirs, "__all__", ())) <= set(ours.__all__)
    assert {each for each in public_names(theirs) if each not in dir(ours)} == set()


def test_each_public_name_of_the_package_is_ours_or_the_very_same():
    assert list(differing(multiprocessing, copyless, "")) == []
    assert set(multiprocessing.__all__) <= set(copyless.__all__)


@pytest.mark.parametrize("name", list(NOT_MODULES))
def test_a_module_that_is_left_out_cannot_be_imported_from_the_standard_library_either(name):
    with pytest.raises(ImportError):
        importlib.import_module(f"multiprocessing.{name}")


def test_each_module_is_found_as_an_attribute_and_by_each_form_of_import(tmp_path):
    """In a new interpreter each, since the first import is what may fail."""
    program = tmp_path / "imports.py"
    lines = ["import sys, importlib, copyless, multiprocessing"]
    lines += [
        f"assert 'multiprocessing' not in sys.modules or 'copyless.{name}' not in sys.modules"
        for name in ("dummy", "process")
    ]
    for name in modules():
        lines.append(f"import copyless.{name} as one")
        lines.append(f"assert one is sys.modules['copyless.{name}'] and one is copyless.{name}, {name!r}")
    lines.append("from copyless.dummy import Pool")
    lines.append("from copyless.dummy.connection import Pipe")
    lines.append("import multiprocessing.dummy")
    lines.append("assert Pool is multiprocessing.dummy.Pool and Pipe is multiprocessing.dummy.connection.Pipe")
    program.write_text("\n".join(lines))
    done = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["connection", "dummy", "pool", "util"])
def test_a_module_that_is_named_first_of_all_is_found(name):
    """`import copyless` and nothing else, then an attribute."""
    program = f"import copyless; assert copyless.{name}.__name__.endswith({name!r}); import copyless.{name}"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr


def test_the_package_loads_none_of_them():
    program = "import sys, copyless; print([m for m in sys.modules if 'multiprocessing' in m or m.count('.') and 'copyless' in m])"  # noqa: E501
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=100)
    assert done.stdout.strip() == "['copyless._typing', 'copyless._first_use']"


@pytest.mark.parametrize(
    "name", ["connection", "context", "managers", "pool", "queues", "shared_memory", "sharedctypes", "synchronize"]
)
def test_a_misspelt_name_is_an_attribute_error_of_our_module(name):
    module = importlib.import_module(f"copyless.{name}")
    with pytest.raises(AttributeError, match=f"module 'copyless.{name}' has no attribute 'Lokc'"):
        module.Lokc  # noqa: B018


def test_the_contexts_have_names_and_make_our_objects():
    from copyless import context, queues

    for method, kind in (
        ("fork", context.ForkContext),
        ("spawn", context.SpawnContext),
        ("forkserver", context.ForkServerContext),
    ):
        assert type(copyless.get_context(method)) is kind
        assert issubclass(kind, getattr(multiprocessing.context, kind.__name__))
        made = kind()
        assert type(made.Queue()) is queues.Queue
        standard = getattr(multiprocessing.context, kind.__name__).Process
        assert made.Process.__name__ == standard.__name__
        if sys.version_info >= (3, 14):
            assert made.Process is standard
        else:  # it has one method more, which Python 3.14 brought
            assert issubclass(made.Process, standard)
            assert {name for name in dir(made.Process) if not hasattr(standard, name)} == {"interrupt"}
        assert type(made.get_context()) is kind


def test_a_default_context_gives_our_contexts():
    from copyless import context

    made = context.DefaultContext(copyless.get_context("spawn"))
    assert made.get_start_method() == "spawn"
    assert type(made.get_context()) is context.SpawnContext
    made.set_start_method("fork", force=True)
    assert type(made.get_context()) is context.ForkContext
    assert type(made.Lock()) is copyless.Lock
    assert "fork" in repr(made)


def test_a_semlock_is_what_locks_and_semaphores_are():
    from copyless.synchronize import SemLock

    made = (copyless.Lock(), copyless.RLock(), copyless.Semaphore(), copyless.BoundedSemaphore())
    assert all(isinstance(each, SemLock) for each in made)
    assert not isinstance(copyless.Event(), SemLock)
    with pytest.raises(TypeError, match="use Lock"):
        SemLock(0, 1, 1, ctx=None)


def test_a_class_that_unlinks_by_the_module_of_c_works():
    """As in Frigate: it registers nothing with the tracker, and calls `_posixshmem` itself."""
    from copyless import resource_tracker, shared_memory

    class Untracked(shared_memory.SharedMemory):
        def __init__(self, name=None, create=False, size=0):
            before = resource_tracker.register
            resource_tracker.register = lambda *_: None
            try:
                super().__init__(name=name, create=create, size=size)
            finally:
                resource_tracker.register = before

        def unlink(self):
            if shared_memory._USE_POSIX and self._name:
                shared_memory._posixshmem.shm_unlink(self._name)

    one = Untracked(create=True, size=100)
    one.buf[0] = 7
    assert Untracked(one.name).buf[0] == 7
    one.unlink()
    with pytest.raises(FileNotFoundError):
        Untracked(one.name)
    again = Untracked(one.name, create=True, size=10)
    again.unlink()


def test_objects_of_ctypes_are_taken_apart_and_put_together():
    from copyless import sharedctypes

    value = copyless.RawArray("i", 3)
    made = sharedctypes.rebuild_ctype(type(value)._type_, value._wrapper, 3)
    made[1] = 5
    assert value[1] == 5
    rebuild, (kind, lengths, memory) = sharedctypes.reduce_ctype(value)
    load, arguments = memory.__reduce__()  # as in a pickle
    assert rebuild(kind, lengths, load(*arguments))[1] == 5
    theirs = multiprocessing.sharedctypes.RawArray("i", 3)
    same = sharedctypes.rebuild_ctype(type(theirs)._type_, theirs._wrapper, 3)
    same[1] = 5
    assert theirs[1] == 5


def test_dispatch_asks_a_server_of_ours_and_one_of_the_standard_librarys():
    from copyless import connection, managers

    with managers.SyncManager(authkey=b"ours") as manager:
        kept = manager.list([1])
        _, connect = managers.listener_client["pickle"]
        line = connect(manager.address, authkey=b"ours")
        assert managers.dispatch(line, None, "number_of_objects") == 1
        assert managers.dispatch(line, kept._token.id, "__getitem__", (0,)) == 1
        with pytest.raises(IndexError):
            managers.dispatch(line, kept._token.id, "__getitem__", (5,))
        line.close()
    with multiprocessing.managers.SyncManager(authkey=b"theirs") as manager:
        kept = manager.list([2])
        theirs = connection.Client(manager.address, authkey=b"theirs")
        assert managers.dispatch(theirs, None, "number_of_objects") == 1
        theirs.close()
    assert isinstance(managers.convert_to_error("#TRACEBACK", "x"), managers.RemoteError)
    assert isinstance(managers.convert_to_error(managers.TRACEBACK, "x"), managers.RemoteError)


# ---- the page on isinstance

ROW = re.compile(r"^\| `(.+)` \| `(.+)` \| (True|False) \|$", re.M)


def rows():
    return ROW.findall((DOCS / "multiprocessing.md").read_text())


def test_the_page_has_a_row_for_each_kind_of_object():
    said = {made for made, _, _ in rows()}
    kinds = {"Queue", "JoinableQueue", "SimpleQueue", "Lock", "RLock", "Semaphore", "BoundedSemaphore", "Event",
        "Condition", "Barrier",
             "Value", "Array", "RawValue", "Pipe", "Process", "Pool", "ProcessPoolExecutor", "SharedMemory",
             "ShareableList", "zeros"}  # fmt: skip
    assert {kind for kind in kinds if not any(made.startswith(f"copyless.{kind}(") for made in said)} == set()


@pytest.mark.parametrize(("made", "kind", "answer"), rows())
def test_isinstance_gives_what_the_page_says(made, kind, answer):
    names = {"copyless": copyless, "multiprocessing": multiprocessing, "ValueError": ValueError}
    for module in ("copyless.futures", "multiprocessing.pool", "multiprocessing.managers", "multiprocessing.queues",
        "ctypes", "queue",
                   "multiprocessing.synchronize", "multiprocessing.sharedctypes", "multiprocessing.shared_memory",
                   "numpy",
                   "multiprocessing.connection", "concurrent.futures.process", "threading"):  # fmt: skip
        importlib.import_module(module)
        names[module.split(".")[0]] = sys.modules[module.split(".")[0]]
    obj = eval(made, names)
    try:
        assert str(isinstance(obj, eval(kind, names))) == answer
    finally:
        for end in ("terminate", "unlink"):
            if hasattr(obj, end) and not isinstance(obj, multiprocessing.process.BaseProcess):
                getattr(obj, end)()
        if hasattr(getattr(obj, "shm", None), "unlink"):
            obj.shm.unlink()


# ---- what checkers see

TYPED = """
import copyless.connection, copyless.dummy, copyless.process, copyless.util
import copyless as mp
from copyless.context import SpawnContext, SpawnProcess
from copyless.pool import Pool, ThreadPool
from copyless.resource_tracker import register
from copyless.synchronize import Lock, SemLock

def call(client: copyless.process.BaseProcess, context: SpawnContext) -> ThreadPool:
    reveal_type(client.name)
    reveal_type(copyless.util.get_logger())
    reveal_type(mp.connection.Client)
    reveal_type(register)
    mp.synchronize.Lokc
    copyless.pool.ThraedPool
    return ThreadPool(2)
"""


def test_a_checker_sees_the_names_and_a_misspelt_one(tmp_path):
    api = pytest.importorskip("mypy.api")
    program = tmp_path / "typed.py"
    program.write_text(TYPED)
    out, err, _ = api.run(["--strict", "--cache-dir", str(tmp_path / "cache"), str(program)])
    found = re.findall(r'Revealed type is "(.*?)"', out)
    assert found[:2] in (["builtins.str", "logging.Logger"], ["str", "logging.Logger"]), out + err
    assert "def (" in found[2], out
    assert "def (" in found[3], out
    assert [
        line for line in out.splitlines() if "error" in line and "attr-defined" not in line and "Found" not in line
    ] == [], out
    assert "Lokc" in out, out
    assert "ThraedPool" in out, out
