"""ctypes objects in shared memory."""

import ctypes
import gc
import multiprocessing
import os
import pickle
import signal

import numpy as np
import pytest

import copyless
from copyless import OutOfSharedMemory, OwnerDiedError, sharedctypes
from copyless.cli.look import listing
from copyless.sharedctypes import Array, RawArray, RawValue, Value, copy, synchronized
from tests.conftest import until


class Point(ctypes.Structure):
    _fields_ = [("x", ctypes.c_int), ("y", ctypes.c_double)]


class Box(Point):
    _fields_ = [("corner", Point), ("name", ctypes.c_char * 8)]


@pytest.mark.parametrize("lock", [True, False])
def test_an_array_of_the_items_of_an_iterator(lock):
    assert list(Array("i", (n * n for n in range(4)), lock=lock)) == [0, 1, 4, 9]


@pytest.mark.parametrize("code", list("cubBhHiIlLqQfdg?"))
def test_every_type_code(code):
    value = {"c": b"x", "u": "€", "?": True}.get(code, 7)
    v = Value(code, value)
    assert v.value == value
    other = pickle.loads(pickle.dumps(v))
    fresh = {"c": b"y", "u": "y", "?": False}.get(code, 9)
    other.value = fresh
    assert v.value == fresh
    raw = RawArray(code, 3)
    raw[2] = fresh
    assert raw[2] == fresh
    assert ctypes.sizeof(raw) == 3 * ctypes.sizeof(sharedctypes.typecode_to_type[code])


@pytest.mark.parametrize("dtype", ["int32", "f8", np.uint16, np.dtype("i8"), "bool"])
def test_numpys_types_are_taken_too(dtype):
    a = Array(dtype, shape=(2, 3))
    assert np.asarray(a).shape == (2, 3)
    assert np.asarray(a).dtype == np.dtype(dtype)
    assert Value(dtype).value == 0
    made = RawArray(dtype, np.arange(6).reshape(2, 3) > 2, shape=(2, 3))
    assert np.asarray(made).tolist() == (np.arange(6).reshape(2, 3) > 2).astype(dtype).tolist()


def test_values_wrap_and_refuse_as_ctypes_does():
    for code in "bBhHiIlLqQ":
        mine, theirs = Value(code), sharedctypes.typecode_to_type[code]()
        for n in (-1, 255, 2**31, 2**63, -(2**40), 2**70):
            mine.value = theirs.value = n
            assert mine.value == theirs.value
    v = Value("i", 5)
    for bad in ("x", 2.5, None):
        with pytest.raises(TypeError):
            v.value = bad
    f = Value("f")
    f.value = 3
    assert f.value == 3.0
    assert v.value == 5


def test_no_two_share_a_cache_line():
    for made in (RawValue("b"), RawArray("c", 3), Value("d").get_obj(), Array("i", 1).get_obj()):
        assert ctypes.addressof(made) % 64 == 0


def test_numpy_stands_on_the_same_memory():
    a = Array("d", 4)
    np.asarray(a)[:] = range(4)
    np.frombuffer(a.get_obj())[3] = 30
    assert a[:] == [0.0, 1.0, 2.0, 30.0]
    assert np.asarray(a, dtype="i4").tolist() == [0, 1, 2, 30]
    raw = RawArray("i", 3)
    view = np.asarray(raw)
    del raw
    view[0] = 5  # the memory lives as long as the view
    assert view[0] == 5


@pytest.mark.parametrize(
    "bad", [ctypes.c_char_p, ctypes.c_void_p, ctypes.POINTER(ctypes.c_int), ctypes.CFUNCTYPE(None), ctypes.py_object]
)
def test_pointers_are_refused_wherever_they_are(bad):
    class Holder(ctypes.Structure):
        _fields_ = [("ok", ctypes.c_int), ("bad", bad * 2)]

    for kind in (bad, bad * 3, Holder):
        with pytest.raises(TypeError, match="pointer"):
            RawValue(kind)
    with pytest.raises(TypeError, match="not a type code"):
        Value("no such type")


def test_bad_sizes():
    with pytest.raises(ValueError):
        Array("i", -1)
    with pytest.raises(TypeError):
        RawArray("i")
    with pytest.raises((OutOfSharedMemory, OverflowError)):
        RawArray("d", 1 << 50)
    assert len(Array("i", 0)) == 0


def _change(v, a, s, raw, text):
    v.value += 1
    a[1] = 20
    s.x = 7
    raw[0].y = 2.5
    text.value = b"changed"


@pytest.mark.parametrize("by", ["args", "queue", "pickle"])
def test_all_of_them_go_to_any_process(context, by):
    objects = Value("i", 4), Array("h", [1, 2, 3]), Value(Box), RawArray(Point, 2), Array("c", 10)
    if by == "args":
        child = context.Process(target=_change, args=objects)
    elif by == "queue":
        q = copyless.SimpleQueue()
        q.put(objects)
        child = context.Process(target=_change_from, args=(q,))
    else:
        child = context.Process(
            target=_change_pickled, args=(pickle.dumps((objects[0], objects[1], objects[2], objects[4])), objects[3])
        )
    child.start()
    child.join()
    v, a, s, raw, text = objects
    assert (v.value, a[:], s.x, raw[0].y, text.value) == (5, [1, 20, 3], 7, 2.5, b"changed")


def _change_from(q):
    _change(*q.get())


def _change_pickled(data, raw):
    v, a, s, text = pickle.loads(data)
    _change(v, a, s, raw, text)


def _count(v, n):
    for _ in range(n):
        v.add(1)
    for _ in range(n):
        with v:
            v.value += 1


def test_adding_is_one_step(context):
    v = Value("q", 0)
    children = [context.Process(target=_count, args=(v, 5000)) for _ in range(2)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert v.value == 20000
    assert v.exchange(5) == 20000
    assert not v.compare_exchange(4, 6)
    assert v.compare_exchange(5, 6)
    assert v.value == 6
    f = Value("d", 1.5)
    assert f.add(1) == 2.5


def _hold(v):
    v.acquire()
    v.get_obj().value = 1
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_holder_is_told_of_once():
    v = Value("i", 0)
    child = multiprocessing.get_context("fork").Process(target=_hold, args=(v,))
    child.start()
    child.join()
    with pytest.raises(OwnerDiedError):
        v.value += 1
    assert v.value == 1
    v.value += 1
    assert v.value == 2


@pytest.mark.parametrize("lock", [True, None, "mine", "plain"])
def test_locks(lock):
    mine = copyless.Lock() if lock == "mine" else multiprocessing.Lock() if lock == "plain" else lock
    v = Value("i", 5, lock=mine)
    a = Array("i", 5, lock=mine)
    if lock in ("mine", "plain"):
        assert v.get_lock() is mine
        assert a.get_lock() is mine
    with v.get_lock():
        v.get_obj().value = 6
    assert v.value == 6
    with pytest.raises(AttributeError, match="has no method 'acquire'"):
        Value("i", lock="navalue")
    for raw in (Value("i", lock=False), Array("i", 3, lock=False)):
        assert not hasattr(raw, "get_lock")
        assert not hasattr(raw, "get_obj")


def test_copy_and_synchronized():
    box = RawValue(Box, 1, 2.0)
    twin = copy(box)
    twin.x = 9
    assert (box.x, twin.x, twin.y) == (1, 9, 2.0)
    guarded = synchronized(box)
    guarded.x = 3
    assert box.x == 3
    assert repr(synchronized(RawValue("i", 2))) == "<Synchronized wrapper for c_int(2)>"
    with pytest.raises(AssertionError):
        synchronized(guarded)
    text = Array("c", b"hello")
    assert (text.value, text.raw, len(text)) == (b"hello", b"hello", 5)
    assert not hasattr(Array("i", 3), "value")


def test_plain_pickle_of_a_raw_value_stores_its_data():
    v = RawValue("i", 4)
    other = pickle.loads(pickle.dumps(v))
    other.value = 5
    assert v.value == 4


def test_beside_the_standard_librarys(context):
    from multiprocessing import sharedctypes as theirs

    ours, other = RawValue("i", 1), theirs.RawValue("i", 2)
    child = context.Process(target=_both, args=(ours, other))
    child.start()
    child.join()
    assert (ours.value, other.value) == (11, 12)


def _both(ours, other):
    ours.value += 10
    other.value += 10


def test_no_leak_by_many():
    def blocks():
        copyless.reap()
        return len(listing()["blocks"])

    before = blocks()
    made = [Value("i", n) for n in range(2000)]
    assert blocks() >= before + 2000
    assert [value.value for value in made] == list(range(2000))
    del made
    gc.collect()
    until(lambda: blocks() <= before, lambda: f"{blocks()} blocks, {before} before")
