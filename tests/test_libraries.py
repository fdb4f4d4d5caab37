"""The table of libraries whose objects are shared: which entry handles what, when a file is imported, what a new
library needs.
"""

import importlib.machinery
import importlib.util
import pickle
import subprocess
import sys
import textwrap
import types
import warnings

import numpy as np
import pytest

import copyless
from copyless import _libraries, _share, arrays
from copyless._transfer import _array_type
from copyless._transfer._memory import Memory

WAIT = 120


def alone(program):
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=WAIT
    )
    assert done.returncode == 0, done.stderr


class Image:
    """An object of the library below: a buffer, and its meaning."""

    def __init__(self, buffer, title):
        self.buffer, self.title = buffer, title

    def __reduce__(self):
        return Image, (self.buffer, self.title)


class Pixels:
    """A piece of memory of the library below."""

    def __init__(self, memory):
        self.memory = memory

    def __reduce__(self):
        return Pixels, (bytes(memoryview(self.memory)),)


class ImageLibrary(_libraries.Library):
    def owns(self, kind):
        return kind in (Image, Pixels)

    def memory_of(self, obj):
        if type(obj) is not Pixels:
            return None
        view = np.frombuffer(obj.memory, "u1")
        return view.__array_interface__["data"][0], view.nbytes

    def move(self, piece):
        memory = Memory.allocate(len(memoryview(piece.memory)))
        memoryview(memory)[:] = memoryview(piece.memory)
        return Pixels(memory)

    def parts(self, obj):
        return (f"Image {obj.title}", [("pixels", obj.buffer)]) if type(obj) is Image else None

    def describe(self, part):
        return "pixels" if type(part) is Pixels else None


@pytest.fixture
def images(monkeypatch):
    """As if a program had imported a package `images`, and a file for it existed."""
    package = types.ModuleType("images")
    package.__spec__ = importlib.machinery.ModuleSpec("images", None)
    file = types.ModuleType("copyless._libraries.images")
    file.LIBRARY = ImageLibrary()
    monkeypatch.setitem(sys.modules, "images", package)
    monkeypatch.setitem(sys.modules, "copyless._libraries.images", file)
    monkeypatch.setitem(_libraries._FILES, "images", "images")
    _libraries._owners.clear()
    yield package
    _libraries._owners.clear()
    _libraries._imported.pop("images", None)


def test_a_new_library_is_one_file(images):
    image = Image(Pixels(bytearray(b"p" * 5000)), "photo")
    assert not copyless.is_shared(image)
    assert "private memory" in copyless.explain([image]).parts[0].why
    shared = copyless.share({"one": image, "again": image.buffer})
    assert copyless.is_shared(shared["one"])
    assert not copyless.is_shared(image)
    assert type(shared["one"].buffer) is Pixels
    assert shared["one"].title == "photo"
    assert bytes(memoryview(shared["one"].buffer.memory)) == b"p" * 5000
    assert copyless.share(shared["one"]) is shared["one"]
    report = copyless.explain(image)
    assert (report.title, report.parts[0].path, report.parts[0].kind) == ("Image photo", "pixels", "pixels")
    assert report.parts[0].copied >= 5000


def test_a_library_that_is_being_imported_is_not_asked(images):
    images.__spec__._initializing = True
    assert _libraries.of_kind(Image) is None
    images.__spec__._initializing = False
    _libraries._owners.clear()
    assert type(_libraries.of_kind(Image)) is ImageLibrary


def test_what_stands_in_sys_modules_without_being_a_package_is_not_asked(monkeypatch):
    for instead in (None, types.ModuleType("torch")):  # as a test puts them there
        monkeypatch.setitem(sys.modules, "torch", instead)
        monkeypatch.setattr(_libraries, "_imported", {})
        assert not _libraries.overlaps()
        assert copyless.is_shared(copyless.share([np.ones(3)]))


def test_classes_without_end_are_not_kept():
    for _ in range(_libraries._MOST_OWNERS + 100):
        assert _libraries.of_kind(type("Passing", (), {})) is None
    assert len(_libraries._owners) <= _libraries._MOST_OWNERS


def test_a_file_is_imported_when_an_object_of_its_library_is_met():
    for library in ("pandas", "polars"):
        if importlib.util.find_spec(library) is None:
            continue
        alone(f"""
            import sys
            import numpy as np, copyless
            def here():
                return {{name for name in sys.modules if name.startswith("copyless._libraries.")}} - {{"copyless._libraries.library"}}
            import {library} as library
            copyless.share([np.ones(3), {{"a": np.ones(3)}}])
            queue = copyless.Queue(); queue.put({{1, 2}}); queue.get(timeout=60)
            assert not here(), here()
            frame = library.DataFrame({{"a": np.arange(1000.0)}})
            assert copyless.is_shared(copyless.share(frame))
            assert "copyless._libraries.{library}" in here() and "copyless._libraries.torch" not in here(), here()
        """)  # noqa: E501


def test_reductions_come_when_their_library_does_and_stay_in_one_table():
    if importlib.util.find_spec("torch") is None:
        pytest.skip("without PyTorch")
    alone("""
        import copyless
        from copyless import _libraries
        table = _libraries.reductions()
        assert table == {}
        import torch
        assert _libraries.reductions() is table and torch.Tensor in table
        assert not _libraries._due
        size = len(table)
        assert _libraries.reductions() is table and len(table) == size
    """)


def test_each_array_is_looked_up_once(monkeypatch):
    asked = []
    look = _array_type.shared_memory_of
    for place in (_array_type, arrays):
        monkeypatch.setattr(place, "shared_memory_of", lambda array: asked.append(array) or look(array))
    derived = type("Derived", (np.ndarray,), {})
    records = np.rec.array(np.zeros(3, [("a", "f8")]))
    for array in (np.ones(3), np.ones(3).view(derived), records, copyless.ones(3)):
        asked.clear()
        shared = copyless.share(array)
        assert len(asked) == 1, type(array)
        assert copyless.is_shared(shared)
        asked.clear()
        assert copyless.share(_Holder(array)).array.tolist() == array.tolist()
        assert len(asked) == 1, type(array)


class _Holder:
    def __init__(self, array):
        self.array = array


def test_an_empty_array_of_a_derived_class_is_shared_without_a_warning():
    masked = np.ma.array([1.0, 2.0], mask=[0, 1])[:0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        shared = copyless.share([masked])[0]
    assert type(shared) is np.ma.MaskedArray
    assert shared.shape == (0,)
    assert shared.dtype == masked.dtype


class _Nested:
    """Shares an object of its own while it is pickled, and checks another."""

    def __init__(self, tensor, array, attribute):
        self.tensor, self.array, self.attribute = tensor, array, attribute

    def __reduce__(self):
        assert not copyless.is_shared(self.attribute)
        assert not _share.would_move(copyless.share([self.array, self.tensor]))
        return _Nested, (self.tensor, self.array, self.attribute)


def test_share_may_be_called_while_it_runs():
    torch = pytest.importorskip("torch")
    tensors = [torch.arange(9000), torch.arange(9000)]
    nested = copyless.share([_Nested(tensors[0], np.ones(5), torch.ones(9000)), tensors[1]])
    assert copyless.is_shared(nested[1])
    assert nested[1].tolist() == tensors[1].tolist()
    assert copyless.is_shared(nested[0].tensor)
    assert nested[0].tensor.tolist() == tensors[0].tolist()
    assert copyless.is_shared(nested[0].attribute)
    assert not copyless.is_shared(tensors[1])


def test_public_functions_say_that_they_are_copylesss():
    for name in ("share", "is_shared", "explain", "Explanation", "to_recarray"):
        value = getattr(copyless, name)
        assert value.__module__ == "copyless"
        data = pickle.dumps(value)
        assert pickle.loads(data) is value
        assert b"._" not in data
