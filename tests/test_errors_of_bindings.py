"""Each binding has its own copy of the C library: an error must come from its own call, not from a call of another
binding.
"""

from __future__ import annotations

import os
import pathlib
import pickle
import re
import struct
from collections.abc import Callable

import pytest

import copyless
from copyless._core import _blocks, _names, _posix, c_library
from copyless._core.failures import native_error
from copyless.errors import CorruptSegmentError, LimitExceededError, OutOfSharedMemory, StaleHandleError, TableFullError

from .conftest import python

pytestmark = pytest.mark.usefixtures("open_store")
LOCK_AT, LIST_LOCK_AT = 64, 64 + 8  # offsets of the lock words: sync.h, list.h


@pytest.fixture(scope="module")
def open_store() -> None:
    copyless.zeros(1)


def _blocks_fails() -> None:
    _blocks.alloc(1 << 61)


def _posix_fails() -> None:
    fd = os.open("/dev/shm", os.O_RDONLY)
    try:
        _posix.check_capacity(fd, 1 << 60)
    finally:
        os.close(fd)


def _handles_fails() -> None:
    array = copyless.zeros(10)
    handle = copyless.handle(array)
    del array
    copyless.attach(handle)


def _names_fails() -> None:
    _names.publish(_blocks.alloc(10), b"x" * 300, 0, 0, False)


def _synchronize_fails() -> None:
    lock = copyless.Lock()
    struct.pack_into("<I", lock.block, LOCK_AT, 0x1000)  # an incarnation, but no process
    try:
        lock.acquire(timeout=10)
    finally:
        struct.pack_into("<I", lock.block, LOCK_AT, 0)


def _list_fails() -> None:
    numbers = copyless.ShareableList([1, 2])
    try:
        struct.pack_into("<I", numbers.shm.buf, LIST_LOCK_AT, 0x2000)
        numbers[0] = 3
    finally:
        numbers.shm.close()
        numbers.shm.unlink()


def _queue_fails() -> None:
    queue: copyless.JoinableQueue[int] = copyless.JoinableQueue(redeliver=True)
    queue.put_many(range(1025))
    taken = [queue.get(timeout=10) for _ in range(1025)]
    del taken


def _ring_fails() -> None:
    ring = copyless.RingBuffer(((3,), "u1"), slots=2)
    readers = [ring.subscribe() for _ in range(257)]
    del readers


OWN: dict[str, tuple[Callable[[], None], type[Exception], str]] = {
    "_blocks": (_blocks_fails, OutOfSharedMemory, r"asked for 2,305,843,009,213,693,952 bytes"),
    "_posix": (_posix_fails, OutOfSharedMemory, r"asked for 1,152,921,504,606,846,976 bytes"),
    "_handles": (_handles_fails, StaleHandleError, r"the block no longer exists \(segment"),
    "_names": (_names_fails, OSError, r"a name of 300 bytes"),
    "_synchronize": (_synchronize_fails, CorruptSegmentError, r"lock word 0x00001000 names no owner"),
    "_list": (_list_fails, CorruptSegmentError, r"lock word 0x00002000 names no owner"),
    "_queue": (
        _queue_fails,
        TableFullError,
        r"^1,024 items are taken and not acknowledged: acknowledge some, or discard dead letters, or make the queue "
        r"with more leases=$",
    ),
    "_ring": (
        _ring_fails,
        TableFullError,
        r"^256 readers are already subscribed: close some subscriptions, or make the ring with more members=$",
    ),
}


@pytest.mark.parametrize("binding", OWN)
def test_an_error_is_of_the_call_that_failed(binding):
    fails, kind, text = OWN[binding]
    for other, (fails_before, kind_before, text_before) in OWN.items():
        if other != binding:
            with pytest.raises(kind_before, match=text_before):
                fails_before()
            with pytest.raises(kind, match=text):
                fails()


def test_so_is_that_of_the_store_itself():
    out = python(
        """
        import os
        from copyless._core import _posix, _store
        from copyless.errors import ClosedError, OutOfSharedMemory

        try:
            _posix.check_capacity(os.open("/dev/shm", os.O_RDONLY), 1 << 60)
        except OutOfSharedMemory as error:
            assert "asked for 1,152,921,504,606,846,976 bytes (no storage directory is open)" in str(error), error
        try:
            _store.audit()
        except ClosedError as error:
            print(error)
        """
    )
    assert out.stdout.strip() == "the store is not open"


def test_a_full_table_says_which_and_nothing_of_memory():
    with pytest.raises(LimitExceededError) as caught:
        _queue_fails()
    error = caught.value
    assert (error.limit, error.present, error.remedy) == (
        1024,
        1024,
        "acknowledge some, or discard dead letters, or make the queue with more leases=",
    )
    assert isinstance(error, OutOfSharedMemory)  # a caller that then sends by value catches it, like any lack of space
    assert isinstance(error, OSError)
    assert isinstance(error, MemoryError)
    for word in ("memory", "COPYLESS_DIR", "remount", "trim"):
        assert word not in str(error)
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), again.limit, again.remedy) == (
        type(error),
        str(error),
        1024,
        "acknowledge some, or discard dead letters, or make the queue with more leases=",
    )


def _full_tables():
    """The error of the C library for each full table, with a number where it has one."""
    native = pathlib.Path(__file__).parent.parent / "src" / "copyless" / "_core" / "native"
    source = "".join(path.read_text() for path in sorted(native.rglob("*.c")))
    texts = set(re.findall(r'CL_TABLE_FULL, 0,\s*"([^"]+)"', source))
    texts.remove("all %u %s are taken")
    texts.update(f"all %u {what} are taken" for what in re.findall(r'cl_table table = {\.what = "(\w+)"', source))
    return [re.sub("%[a-z]+", "512", text) for text in sorted(texts)]


def test_the_tables_are_found_in_the_source():
    assert len(_full_tables()) >= 11


@pytest.mark.parametrize("what", _full_tables())
def test_every_table_has_a_remedy_of_its_own(what):
    error = native_error(c_library.TABLE_FULL, 0, what, 0)
    assert isinstance(error, TableFullError)
    assert f"{error.limit:,}" in str(error)
    assert error.remedy
    assert error.remedy != native_error(c_library.TABLE_FULL, 0, "", 0).remedy  # type: ignore[attr-defined]


@pytest.mark.parametrize("code",
    [c_library.CORRUPT, c_library.STALE, c_library.FULL, c_library.TABLE_FULL, c_library.SYSTEM, c_library.CLOSED])  # fmt: skip  # noqa: E501
def test_a_result_without_a_text_is_told_all_the_same(code):
    text = str(native_error(code, 0, "", 0))
    assert len(text) > 10
    assert ":  " not in text
    assert not text.startswith((":", ".", " "))
