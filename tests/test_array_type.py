"""No array over private memory has the type SharedArray: checked for every function and method of NumPy."""

from __future__ import annotations

import contextlib
import copy
import gc
import io
import pickle
import types
import warnings
import weakref
from multiprocessing.reduction import ForkingPickler

import numpy as np
import pytest

import copyless
from copyless import SharedArray


@pytest.fixture(autouse=True)
def own_directory(tmp_path, monkeypatch):
    """Some functions take a text argument as the name of a file, and write that file."""
    monkeypatch.chdir(tmp_path)


def square():
    return copyless.array(np.arange(1.0, 10.0).reshape(3, 3) / 9)


def arguments():
    """Argument lists of which most functions accept one. They are made anew each time, since some functions write into
    them.
    """
    a, line = square(), copyless.array(np.arange(1.0, 5.0))
    whole, flags = copyless.array(np.arange(4)), copyless.array(np.array([True, False, True]))
    small = copyless.array(np.arange(4, dtype="u1"))
    day = copyless.array(np.array(["2020-01-06", "2020-01-07"], "M8[D]"))
    return [
        (a,), (line,), (whole,), (flags,), (small,), (day,), ([a, a],), (a, a), (line, line), (whole, whole), (a, 1),
        (line, 1),
        (whole, 1), (a, 1, 0), (a, 0, 1), (line, [1]), (line, [0], 5.0), (a, a, a), (line, line, line), (a, flags),
        (flags, a),
        (flags, a, a), (a > 0.5, a), (a, 1.5), (a, (3, 3)), (line, (2, 2)), (a, "f4"), (line, 2, 2), (a[0], a[0]),
        (day, day),
        (line, whole), (whole, line), (whole, [line, line, line, line]), (a, flags, 0), (a, line[:3], line[:3]),
        ((0, 1), (3, 3)), (whole, (2, 2)), ((whole, whole), (9, 9)), (np.sum, 0, a), (np.sum, a, [0]), ("ij,jk", a, a),
        ("ij->ji", a), (lambda x: x * 1, a),
        (np.sum, a, 0), (line, flags[[0, 1, 0, 1]], lambda x: x), (line, [flags[[0, 1, 0, 1]]], [lambda x: x]), (3,),
        (3, 3), (2, (3, 3)), (lambda i, j: i, (3, 3)), (line, 1, 2, 3), ("1 2", float), ((2, 2), 3.0),
        (flags[:2], day), ([flags], [a[0]]), (a[0], flags, a[0]), (lambda x: x, 1), ("x", (2,)), (0, 5, a),
        (a, whole[:1]), (line, line, 3),
    ]  # fmt: skip


def texts(kind="U5"):
    return copyless.array(np.array(["ab", "1c"], kind))


def text_arguments():
    t = texts()
    return [
        (t,),
        (t, t),
        (t, "a"),
        (t, "a", "b"),
        (texts("S5"),),
        (texts("S5"), "ascii"),
        (t, t, "==", True),
        (t, "b", 0),
        (",", t),
    ]


# Functions that need an argument list of their own: (name in numpy, what is called).
SPECIAL = {
    "array": lambda a: [np.array(a, subok=True), np.array(a, "f4", subok=True), np.array([a, a], subok=True)],
    "asanyarray": lambda a: [np.asanyarray(a), np.asanyarray(a, "f4"), np.asanyarray(a, order="F")],
    "broadcast_arrays": lambda a: np.broadcast_arrays(a, 1.0, subok=True),
    "broadcast_to": lambda a: np.broadcast_to(a, (2, 3, 3), subok=True),
    "copy": lambda a: [np.copy(a), np.copy(a, subok=True)],
    "dsplit": lambda a: np.dsplit(a[:, :, None], 1),
    "fromfile": lambda a: np.fromfile("/dev/null", like=a),
    "fromiter": lambda a: np.fromiter(iter([1, 2]), int, like=a),
    "frompyfunc": lambda a: np.frompyfunc(abs, 1, 1)(a),
    "fromregex": lambda a: np.fromregex(io.StringIO("1 2"), r"(\d) (\d)", [("a", int), ("b", int)]),
    "fromstring": lambda a: np.fromstring("1 2", sep=" ", like=a),
    "genfromtxt": lambda a: np.genfromtxt(["1 2"], like=a),
    "linalg.cholesky": lambda a: np.linalg.cholesky(copyless.array(np.eye(3))),
    "loadtxt": lambda a: np.loadtxt(["1 2"], like=a),
    "ma.flatten_structured_array": lambda a: np.ma.flatten_structured_array(copyless.zeros(2, "i4, f8")),
    "ma.fromflex": lambda a: np.ma.fromflex(np.ma.array(a).toflex()),
    "ma.make_mask_descr": lambda a: np.ma.make_mask_descr(a.dtype),
    "mask_indices": lambda a: np.mask_indices(3, np.triu),
    "nested_iters": lambda a: [each.operands for each in np.nested_iters(a, [[0], [1]])],
    "put_along_axis": lambda a: np.put_along_axis(a, np.zeros((3, 1), int), 1, 0),
    "rec.fromfile": lambda a: np.rec.fromfile("/dev/null", dtype="f8, i4", shape=(0,)),
    "random.hypergeometric": lambda a: np.random.hypergeometric(copyless.full(2, 5), 5, 5),
    "random.logseries": lambda a: np.random.logseries(a[0] / 2),
    "random.multinomial": lambda a: np.random.multinomial(5, copyless.full(2, 0.5)),
    "require": lambda a: [np.require(a, "f4"), np.require(a, requirements=["E", "F"])],
    "take_along_axis": lambda a: np.take_along_axis(a, np.zeros((3, 1), int), 0),
}
# Functions that neither take nor return an array, or cannot be called here.
ASIDE = {
    "load": "reads a file", "save": "writes one", "savez": "writes one", "savez_compressed": "writes one",
    "savetxt": "writes one",
    "get_include": "a path", "info": "prints", "show_config": "prints", "show_runtime": "prints", "test": "runs tests",
    **dict.fromkeys(["datetime_data", "isdtype", "issubdtype", "promote_types", "typename"], "of dtypes"),
    **dict.fromkeys(["get_printoptions", "set_printoptions", "getbufsize", "setbufsize"], "settings"),
    **dict.fromkeys(["geterr", "seterr", "geterrcall", "seterrcall", "setbufsize"], "settings"),
    **dict.fromkeys(["random.seed", "random.set_state", "random.get_state", "random.set_bit_generator"], "state of the generator"),  # noqa: E501
    "random.get_bit_generator": "state of the generator",
}  # fmt: skip


def arrays_in(made):
    if isinstance(made, np.ndarray):
        yield made
        if made.base is not None:
            yield from arrays_in(made.base) if isinstance(made.base, np.ndarray) else ()
    elif isinstance(made, (tuple, list)):
        for each in made:
            yield from arrays_in(each)
    elif isinstance(made, dict):
        yield from arrays_in(list(made.values()))


def untrue(made):
    return [each for each in arrays_in(made) if isinstance(each, SharedArray) and not copyless.is_shared(each)]


def walked(call, lists):
    """Whether the function accepted any of the argument lists. The results are checked."""
    taken = False
    for given in lists():
        with warnings.catch_warnings(), np.errstate(all="ignore"), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            try:
                made = call(*given)
                if isinstance(made, types.GeneratorType):
                    made = list(made)
            except Exception:  # not valid arguments for it
                continue
        taken = True
        assert not untrue((made, given)), (given, untrue((made, given)))
    return taken


MODULES = {"": np, "linalg.": np.linalg, "fft.": np.fft, "lib.stride_tricks.": np.lib.stride_tricks,
               "random.": np.random, "char.": np.char, "strings.": np.strings, "ma.": np.ma, "rec.": np.rec,
               "emath.": np.emath}  # fmt: skip


def functions_of_numpy():
    for prefix, module in MODULES.items():
        for name in sorted(getattr(module, "__all__", None) or dir(module)):
            each = getattr(module, name, None)
            if not name.startswith("_") and callable(each) and not isinstance(each, type):
                yield prefix + name, each


@pytest.mark.parametrize("module", [prefix or "numpy" for prefix in MODULES])
def test_functions(module):
    """Each function accepts one of the argument lists. A new function needs an entry in SPECIAL, or in ASIDE with the
    reason why it needs none.
    """
    prefix = "" if module == "numpy" else module
    untaken = []
    for name, call in functions_of_numpy():
        if name in ASIDE or name.rpartition(".")[0] != prefix.rstrip("."):
            continue
        if name in SPECIAL:
            taken = walked(SPECIAL[name], lambda: [(square(),)])
        else:
            taken = walked(
                call, lambda: text_arguments() + arguments() if prefix in ("char.", "strings.") else arguments()
            )
        untaken += [] if taken else [name]
    assert untaken == []


def test_the_tables_name_no_function_that_is_gone():
    known = dict(functions_of_numpy())
    old = tuple(map(int, np.__version__.split(".")[:2])) < (2, 0)
    assert old or {name for name in SPECIAL if name not in known} == set()


METHODS = {
    "setfield": lambda a: a.setfield(1, "u1"),
    "view": lambda a: [a.view(), a.view("i8"), np.ones(3).view(SharedArray), np.ones(0).view(SharedArray),
    a.copy().view(SharedArray)],
    "astype": lambda a: [a.astype("f4"), a.astype("f8", copy=False), a.astype("f4", subok=True)],
    "to_device": lambda a: a.to_device("cpu") if hasattr(a, "to_device") else a,
    "resize": lambda a: None,
    "put": lambda a: a.put([0], [1]),
    **dict.fromkeys(["__bool__", "__int__", "__float__", "__complex__"], lambda a: [bool(a[:1, :1]), complex(a[0, 0])]),
    "__setstate__": lambda a: None,
    "__class_getitem__": lambda a: None,
}  # fmt: skip


def test_methods():
    def lists():
        own = [
            (copyless.array(np.arange(5)), slice(1, 3)),
            (square(), ([0, 1], [1, 2])),
            (square(), (slice(None), None)),
        ]
        return [*own, (square(), ...), *(given for given in arguments() if isinstance(given[0], np.ndarray))]

    untaken = []
    for name in dir(np.ndarray):
        method = getattr(SharedArray, name)
        if not callable(method) or name in NEEDS_OTHERS:
            continue
        if name in METHODS:
            taken = walked(METHODS[name], lambda: [(square(),)])
        elif name in dir(object) and name not in (
            "__eq__",
            "__ne__",
            "__lt__",
            "__le__",
            "__gt__",
            "__ge__",
            "__reduce__",
        ):
            continue  # every object has it, and it makes no array
        else:
            taken = walked(method, lists)
        untaken += [] if taken else [name]
    assert untaken == []


NEEDS_OTHERS = {
    "__new__": "is covered below", "__buffer__": "gives a memoryview", "__dlpack_device__": "a number",
    "__reduce_ex__": "below",
    "__index__": "of one integer", "__delitem__": "refused", "__release_buffer__": "not for users",
    "__array_ufunc__": "below",
    "__array_function__": "below", "__array_namespace__": "gives a module", "__array_finalize__": "not for users",
    "__imatmul__": "below",
}  # fmt: skip


def test_a_cast_or_a_new_of_the_type_over_private_memory_is_an_ordinary_array():
    a, i = square(), copyless.array(5)
    for made in (
        np.ndarray.__new__(SharedArray, (3,)),
        np.ndarray.__new__(SharedArray, (3,), "u1", bytearray(8)),
        np.frombuffer(bytearray(8), "u1").view(SharedArray),
        np.lib.stride_tricks.as_strided(np.ones(4), (2,), (8,), subok=True).view(SharedArray),
        pickle.loads(pickle.dumps(a)),
        copy.copy(a),
        copy.deepcopy(a),
        np.array(a, subok=True),
    ):
        assert type(made) is np.ndarray
    a @= np.eye(3)
    assert type(a) is SharedArray
    assert copyless.is_shared(a)
    assert i.__index__() == 5
    with pytest.raises(TypeError, match="cannot be replaced"):
        a.__setstate__((1, (2,), np.dtype("f8"), False, b"x" * 16))


def test_views_keep_the_type_whatever_they_stand_on(tmp_path):
    memory = copyless.Alloc_mem(64)
    over_file = copyless.memmap(tmp_path / "f", "f8", "w+", shape=8)
    for a in (
        copyless.zeros(8),
        copyless.frombuffer(memory),
        over_file,
        np.asarray(copyless.zeros(8)).view(SharedArray),
    ):
        for view in (
            a,
            a[1:],
            a[::-2],
            a.reshape(2, 4).T,
            a[None],
            a[...],
            a[2:2],
            a.view("i8"),
            a[1:][1:].reshape(-1),
        ):
            assert type(view) is SharedArray
            assert copyless.is_shared(view)
            assert np.shares_memory(view, a) or not view.size


def test_an_array_whose_type_was_set_lives_and_dies_as_any():
    a = square()
    for _ in range(2000):
        made = np.zeros_like(a)
        assert type(made) is np.ndarray
        gone = weakref.ref(made)
        other = [made.copy(), made[1:], np.array(a, subok=True)]
        del made, other
        assert gone() is None
    gc.collect()
    assert copyless.is_shared(a)


# ---- classes of the user


class Image(SharedArray):
    """As in NumPy's documentation."""

    def __new__(cls, shape, dtype="f8", *, gamma=1.0):
        made = super().__new__(cls, shape, dtype)
        made[...] = 0
        made.gamma = gamma
        return made

    def __array_finalize__(self, obj):
        if obj is not None:
            self.gamma = getattr(obj, "gamma", 1.0)


class Portrait(Image):
    __slots__ = ("__hidden", "name")

    def __array_finalize__(self, obj):
        super().__array_finalize__(obj)
        self.name = getattr(obj, "name", None)
        self.__hidden = 7

    @property
    def hidden(self):
        return self.__hidden


class Bare(SharedArray):
    __slots__ = ()


class Simple(SharedArray):
    pass


@pytest.mark.parametrize("kind", [Image, Portrait, Bare, Simple])
def test_a_derived_class_is_kept_by_views_and_not_by_copies(kind):
    a = kind((3, 3), dtype="f8")
    assert type(a) is type(a[1:]) is type(a.T) is kind
    for _ in range(100):
        for made in (a + 1, a.copy(), np.zeros_like(a), np.array(a, subok=True), a[[0, 1]], copy.deepcopy(a),
            np.ones(3).view(kind),
                     pickle.loads(pickle.dumps(a)), pickle.loads(pickle.dumps(np.zeros_like(a))),
                     copy.copy(np.zeros_like(a))):  # fmt: skip
            assert isinstance(made, np.ndarray)
            assert not isinstance(made, SharedArray)
            assert not copyless.is_shared(made)
    assert type(a + 1) is np.ndarray
    a += 1
    assert type(a) is kind


@pytest.mark.parametrize("kind", [Image, Portrait])
def test_every_function_keeps_a_derived_class_true(kind):
    def lists():
        for given in arguments():
            yield [each.view(kind) if type(each) is SharedArray else each for each in given]

    for name, call in functions_of_numpy():
        if name not in ASIDE and name not in SPECIAL and "." not in name:
            walked(call, lists)


def test_a_derived_class_crosses_with_its_attributes():
    a = Portrait((3, 3), gamma=2.2)
    a.name, a.note = "me", {"k": [1]}
    with copyless.Queue() as queue:
        for sent in (a, a[1:]):
            sent.name = "me"
            queue.put([sent])
            for b in (queue.get(timeout=60)[0], pickle.loads(bytes(ForkingPickler.dumps(sent)))):
                assert type(b) is Portrait
                assert (b.gamma, b.name, b.hidden) == (2.2, "me", 7)
                assert np.shares_memory(b, a) or copyless.is_shared(b)
                b[0] = 5
                assert (sent[0] == 5).all()
    assert b.base is not None


def _what(b):
    b[0] = 9
    return type(b).__name__, b.gamma, copyless.is_shared(b)


@pytest.mark.parametrize("method", ["spawn", "fork", "forkserver"])
def test_a_derived_class_arrives_in_a_worker(method):
    a = Image((3, 3), gamma=0.5)
    with copyless.Pool(1, context=copyless.get_context(method)) as pool:
        assert pool.apply(_what, (a,)) == ("Image", 0.5, True)
    assert (a[0] == 9).all()
