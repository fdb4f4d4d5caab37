"""ShareableList: the standard library's interface, without its losses."""

import enum
import os
import pickle
import signal
import struct
import time
from multiprocessing import shared_memory as stdlib

import numpy as np
import pytest

import copyless
from copyless import CorruptSegmentError, ForeignHostError, ShareableList, SharedMemory
from tests.conftest import ours_in_shm, python, until


@pytest.fixture
def make():
    made = []

    def make(*args, **kwargs):
        made.append(ShareableList(*args, **kwargs))
        return made[-1]

    yield make
    while made:  # the test's own item keeps this list
        item = made.pop()
        item.shm.close()
        if os.path.exists("/dev/shm/" + item.shm.name):
            item.shm.unlink()


VALUES = [
    "a\0", b"b\0\0", b"\0", "", b"", "€" * 8, "漢字", b"\xff" * 3, 0, -1, 2**63 - 1, -(2**63), 2.5, float("inf"), True,
    False, None,
]  # fmt: skip


def test_what_is_put_in_comes_back_exactly(make):
    items = make(VALUES)
    assert list(items) == VALUES
    assert [type(item) for item in items] == [type(value) for value in VALUES]
    assert list(ShareableList(name=items.shm.name)) == VALUES
    for at, value in enumerate(VALUES):
        items[at] = value
        assert items[at] == value


def test_it_is_like_a_list(make):
    items = make(["x", 1, "x", None])
    assert len(items) == 4
    assert items[-1] is None
    assert items[-4] == "x"
    assert items.count("x") == 2
    assert items.index(1) == 1
    assert None in items
    assert "y" not in items
    assert items == ["x", 1, "x", None]
    assert items != ["x"]
    assert items == make(items)
    assert repr(items) == f"ShareableList(['x', 1, 'x', None], name={items.shm.name!r})"
    with pytest.raises(ValueError, match="'y' not in this container"):
        items.index("y")
    assert ShareableList[int].__origin__ is ShareableList


def test_a_name_of_ones_own_and_pickling(make, context):
    items = make(range(3), name="list-of-mine")
    assert items.shm.name == "list-of-mine"
    assert len(pickle.dumps(items)) == len(pickle.dumps(make(range(300), name="list-of-minf")))
    there = pickle.loads(pickle.dumps(items))
    there[0] = 77
    assert items[0] == 77
    child = context.Process(target=_set, args=(items, 1, "eight"))
    child.start()
    child.join()
    assert items[1] == "eight"
    data = pickle.dumps(items)
    items.shm.unlink()
    with pytest.raises(FileNotFoundError):
        pickle.loads(data)


def _set(items, at, value):
    items[at] = value


def test_what_cannot_be_in_it_is_refused_before_anything_is_made(make):
    before = ours_in_shm()
    for bad, error in [([2**63], OverflowError), ([1j], TypeError), ([[]], TypeError), ([object()], TypeError)]:
        with pytest.raises(error):
            ShareableList(bad)
    with pytest.raises(UnicodeEncodeError):
        ShareableList(["\ud800"])
    assert ours_in_shm() == before


class Colour(enum.IntEnum):
    RED = 3


class Text(str):
    pass


def test_subclasses_and_numpy_scalars_are_taken(make):
    items = make([Colour.RED, Text("t"), np.int64(7), np.float64(0.5), np.uint8(255)])
    assert list(items) == [3, "t", 7, 0.5, 255]
    assert [type(item) for item in items] == [int, str, int, float, int]


def test_a_refused_value_changes_nothing(make):
    items = make(["hello", 1])
    for bad, error in [(2**70, OverflowError), ("much too long", ValueError), (1j, TypeError), ("€" * 3, ValueError)]:
        with pytest.raises(error):
            items[0] = bad
        assert list(items) == ["hello", 1]
    with pytest.raises(ValueError, match="exceeds available storage: 9 bytes, and item 0 has room for 8"):
        items[0] = "nine byte"


@pytest.mark.parametrize("at", [3, -4, 10**30, -(10**30)])
def test_a_bad_index_is_an_error(make, at):
    items = make([1, 2, 3])
    with pytest.raises(IndexError):
        items[at]
    with pytest.raises(IndexError):
        items[at] = 5
    with pytest.raises(TypeError):
        items["0"]
    assert list(items) == [1, 2, 3]


def test_ten_megabytes(make):
    data = os.urandom(10_000_000)
    items = make([data, "é" * 5_000_000])
    assert items[0] == data
    assert items[1] == "é" * 5_000_000
    items[0] = data[::-1]
    assert items[0] == data[::-1]


def test_closed(make):
    items = make([1])
    name = items.shm.name
    other = ShareableList(name=name)
    other.shm.close()
    with pytest.raises(ValueError, match="closed"):
        other[0]
    assert items[0] == 1


def test_read_only_memory_cannot_be_written(make):
    items = make([1, 2])
    shm = SharedMemory(items.shm.name, readonly=True)
    view = ShareableList.__new__(ShareableList)
    view._stand(shm)
    assert view[1] == 2
    with pytest.raises(TypeError, match="is read-only"):
        view[1] = 3


def test_a_list_of_the_standard_library_is_told_apart():
    theirs = stdlib.ShareableList([1, 2])
    try:
        with pytest.raises(CorruptSegmentError, match=r"copyless.*multiprocessing"):
            ShareableList(name=theirs.shm.name)
        assert list(theirs) == [1, 2]
    finally:
        theirs.shm.close()
        theirs.shm.unlink()


@pytest.mark.parametrize("where", [0, 8, 16, 64 + 16, 64 + 24, 64 + 32])
@pytest.mark.parametrize("value", [2**40, 2**64 - 1, 2**63])
def test_damage_is_an_error_never_a_crash(make, where, value):
    items = make(["text", 1])
    struct.pack_into("<Q", items.shm.buf, where, value)
    try:
        assert len(list(ShareableList(name=items.shm.name))) <= 2
        items[0] = "more"
    except CorruptSegmentError:
        pass


def test_a_list_of_another_storage_directory_is_refused(make, tmp_path):
    items = make([1, 2])
    done = python(
        f"""
        from copyless import ForeignHostError, ShareableList
        try:
            ShareableList(name={items.shm.name!r})
        except ForeignHostError as error:
            print(error)
        """,
        COPYLESS_DIR=str(tmp_path),
    )
    assert "COPYLESS_DIR" in done.stdout
    assert issubclass(ForeignHostError, ValueError)


LONG, SHORT = "長い" * 40, "s"


def _toggle(items, seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for value in (LONG, 1, SHORT, b"\0\1", 2.5, None):
            items[1] = value


def test_a_reader_never_sees_a_torn_value(make, context):
    items = make([0, LONG, 0])
    writers = [context.Process(target=_toggle, args=(items, 2.0)) for _ in range(2)]
    for writer in writers:
        writer.start()
    seen = set()
    while any(writer.is_alive() for writer in writers):
        for _ in range(1000):
            seen.add(items[1])
    assert seen <= {LONG, 1, SHORT, b"\0\1", 2.5, None}
    assert len(seen) > 1
    assert items[0] == items[2] == 0


def test_writers_killed_anywhere_leave_whole_values(make):
    import multiprocessing

    fork = multiprocessing.get_context("fork")
    items = make([LONG])
    start = items[0]
    assert start == LONG
    for round in range(60):
        writer = fork.Process(target=_write_for_ever, args=(items,))
        writer.start()
        until(lambda: items[0] == SHORT)
        time.sleep(0.001 * (round % 7))
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()
        assert items[0] in (LONG, SHORT)
        items[0] = LONG
        assert items[0] == LONG


def _write_for_ever(items):
    while True:
        items[0] = SHORT
        items[0] = LONG


def test_lists_vanish_with_their_makers():
    done = python("import copyless; items = copyless.ShareableList([1]); print(items.shm.name)")
    copyless.reap()
    assert not os.path.exists("/dev/shm/" + done.stdout.strip())
    assert done.stderr == ""
