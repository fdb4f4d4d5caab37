"""Arrays: NumPy's constructors, what is sent as a handle and what is not, names, share, memmap."""

import copy
import dataclasses
import os
import pickle
from multiprocessing.reduction import ForkingPickler

import ml_dtypes
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import copyless
from copyless import SharedArray
from tests.conftest import python, start_python, until

DTYPES = ["f8", "i4", "u1", "?", "c16", "f2", ">i4", "S7", "U5", "M8[ns]", "m8[s]", "V6",
          [("x", "f4"), ("y", "i2", (3,))],
          np.dtype({"names": ["a", "b"], "formats": ["u1", "f8"], "offsets": [0, 8], "itemsize": 24}),
          ml_dtypes.bfloat16]  # fmt: skip


def cross(obj):
    """To another process and back, without the other process."""
    return pickle.loads(ForkingPickler.dumps(obj))


def values(shape, dtype):
    raw = np.arange(int(np.prod(shape)) * np.dtype(dtype).itemsize, dtype="u1") % 2
    return np.frombuffer(raw.tobytes(), dtype).reshape(shape)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_any_plain_dtype_crosses_as_the_same_memory(dtype):
    a = copyless.array(values((3, 4), dtype))
    b = cross(a[1:, ::-1])
    assert type(b) is SharedArray
    assert b.dtype == a.dtype
    assert b.shape == (2, 4)
    b[...] = np.zeros((), dtype)
    assert a[1:].tobytes() == bytes(a[1:].nbytes)


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (5,), (2, 3, 4), (1,) * 8])
@pytest.mark.parametrize("order", ["C", "F"])
def test_any_shape_and_order(shape, order):
    a = copyless.full(shape, 7, "i4", order)
    assert a.flags.f_contiguous if order == "F" else a.flags.c_contiguous
    b = cross(a)
    assert (b.shape, b.dtype, b.strides) == (a.shape, a.dtype, a.strides) or a.size == 0
    assert np.array_equal(b, np.full(shape, 7))


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_any_view_numpy_makes_crosses_as_the_same_memory(data):
    a = copyless.array(np.arange(360).reshape(3, 4, 5, 6))
    view = a
    for _ in range(data.draw(st.integers(1, 4))):
        kind = data.draw(st.sampled_from(["slice", "transpose", "newaxis", "index", "reshape", "swap", "real"]))
        if kind == "slice" and view.ndim:
            view = view[tuple(
                slice(None, None, data.draw(st.sampled_from([1, 2, -1, -2]))) if n > 1 else slice(None) for n in view.shape  # noqa: E501
            )]  # fmt: skip
        elif kind == "transpose":
            view = view.transpose(data.draw(st.permutations(range(view.ndim))))
        elif kind == "newaxis":
            view = view[..., None]
        elif kind == "index" and view.ndim > 1:
            view = view[data.draw(st.integers(-view.shape[0], view.shape[0] - 1))]
        elif kind == "reshape" and view.flags.c_contiguous:
            view = view.reshape(-1)
        elif kind == "swap" and view.ndim > 1:
            view = view.swapaxes(0, -1)
    assert type(view) is SharedArray
    message = ForkingPickler.dumps(view)
    assert len(message) < 400
    other = pickle.loads(message)
    assert (other.shape, other.strides) == (view.shape, view.strides)
    other[...] = -1
    assert (view == -1).all()
    assert (a == -1).sum() == view.size


def test_a_message_is_small_up_to_eight_dimensions():
    message = ForkingPickler.dumps(copyless.zeros((2,) * 8)[::-1, ..., ::-1])
    assert len(message) < 400
    assert pickle.loads(message).shape == (2,) * 8


def test_a_plain_array_over_our_memory_crosses_too_and_stays_plain():
    a = copyless.zeros((4, 5))
    plain = np.asarray(a)[1:3, ::2]
    assert type(plain) is np.ndarray
    other = cross(plain)
    assert type(other) is np.ndarray
    other[...] = 3
    assert a.sum() == 18


def test_a_private_array_goes_by_value():
    a = np.arange(5)
    other = cross(a)
    other[0] = 9
    assert a[0] == 0


def test_read_only_stays_read_only():
    a = copyless.zeros(3)
    a.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        cross(a)[0] = 1


def test_plain_pickle_and_deepcopy_store_the_data(tmp_path):
    a = copyless.arange = None  # no such name exists by accident
    a = copyless.array(np.arange(10))
    stored = [pickle.loads(pickle.dumps(a, protocol)) for protocol in range(pickle.HIGHEST_PROTOCOL + 1)]
    stored += [copy.deepcopy(a), copy.copy(a), copy.deepcopy({"a": a})["a"]]
    np.save(tmp_path / "a.npy", a)
    stored.append(np.load(tmp_path / "a.npy"))
    a[:] = 0
    for s in stored:
        assert type(s) is np.ndarray
        assert np.array_equal(s, np.arange(10))
    del copyless.arange


def test_results_of_arithmetic_are_ordinary():
    a = copyless.ones((3, 4))
    for made in (a + 1, -a, np.sin(a), a @ a.T, a.sum(axis=0), a[[0, 2]], a[a > 0], a.copy(), a.astype("f4"),
        np.add(a, 1),
                 a.flatten(), a.mean(axis=1), np.sort(a)):  # fmt: skip
        assert type(made) is np.ndarray
        assert not copyless.is_shared(made)
    assert isinstance(a.sum(), np.floating)
    assert isinstance(a[0, 0], np.floating)
    same = a
    a += 1
    assert a is same
    assert type(np.add(a, 1, out=a)) is SharedArray


def test_constructors_mirror_numpy():
    assert np.array_equal(copyless.zeros((2, 3), "i4"), np.zeros((2, 3), "i4"))
    assert np.array_equal(copyless.ones(3), np.ones(3))
    assert np.array_equal(copyless.full((2,), "ab"), np.full((2,), "ab"))
    assert copyless.empty(5, dtype="f4").shape == (5,)
    like = np.ones((2, 3), "f4", order="F")
    assert copyless.zeros_like(like).flags.f_contiguous
    assert copyless.empty_like(like, dtype="i8", shape=4).shape == (4,)
    assert copyless.array([[1, 2]], "f4", ndmin=3).shape == (1, 1, 2)
    assert SharedArray((2, 2)).dtype == np.float64
    a = copyless.zeros(3)
    assert copyless.asarray(a) is a
    assert copyless.asarray(a, "f4").dtype == np.float32
    assert type(copyless.asarray(np.asarray(a))) is SharedArray
    assert np.shares_memory(copyless.asarray(np.asarray(a)), a)


def test_zeros_from_recycled_memory_is_zero():
    for _ in range(3):
        a = copyless.full(100_000, 7.0)
        address = a.ctypes.data
        del a
        b = copyless.zeros(100_000)
        assert b.ctypes.data == address  # the warm block, so this test means something
        assert not b.any()
        del b


@pytest.mark.parametrize(
    ("args", "error"),
    [((-1,), ValueError), (((2, -3),), ValueError), ((2.5,), TypeError), (("x",), TypeError), ((None,), TypeError),
     (((1 << 40, 1 << 40),), copyless.OutOfSharedMemory), ((1 << 63,), copyless.OutOfSharedMemory),
     ((1 << 44,), copyless.OutOfSharedMemory),
     ((3, object), TypeError), ((3, [("a", "O")]), TypeError), ((3, "nonsense"), TypeError),
     ((3, "f8", "X"), ValueError),
     (((1,) * 40,), ValueError)],
)  # fmt: skip
def test_what_cannot_be_is_refused(args, error):
    with pytest.raises(error):
        copyless.empty(*args)


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("", ValueError),
        ("a/b", ValueError),
        ("a\0b", ValueError),
        ("a\nb", ValueError),
        ("x" * 256, ValueError),
        (5, TypeError),
    ],
)
def test_a_bad_name_is_refused(name, error):
    for call in (lambda: copyless.zeros(3, name=name), lambda: copyless.open(name), lambda: copyless.unlink(name)):
        with pytest.raises(error):
            call()


def test_names():
    a = copyless.full((2, 3), 5, "i2", name="caméra 0")
    b = copyless.open("caméra 0")
    assert (b.shape, b.dtype) == ((2, 3), np.int16)
    b[0, 0] = 1
    assert a[0, 0] == 1
    assert not copyless.open("caméra 0", readonly=True).flags.writeable
    with pytest.raises(FileExistsError, match="caméra"):
        copyless.zeros(3, name="caméra 0")
    del a
    assert copyless.open("caméra 0").sum() == 26  # b holds it
    del b
    with pytest.raises(FileNotFoundError, match="caméra 0"):
        copyless.open("caméra 0")
    with pytest.raises(FileNotFoundError):
        copyless.unlink("caméra 0")
    with pytest.raises(ValueError, match="name"):
        copyless.zeros(3, persist=True)


def test_a_persistent_name_lives_until_unlink():
    python("import copyless; copyless.full(3, 2.5, name='t-kept', persist=True)")
    assert copyless.open("t-kept").sum() == 7.5
    held = copyless.open("t-kept")
    copyless.unlink("t-kept")
    with pytest.raises(FileNotFoundError):
        copyless.open("t-kept")
    assert held.sum() == 7.5


def test_open_waits_for_a_name():
    waiter = start_python("""
        import copyless
        print('waiting'); a = copyless.open('t-late', timeout=30); print(a.sum())
    """)
    assert waiter.stdout.readline() == "waiting\n"
    made = copyless.ones(4, name="t-late")
    assert waiter.communicate(timeout=30)[0] == "4.0\n"
    del made
    import time

    began = time.monotonic()
    with pytest.raises(FileNotFoundError, match="after waiting"):
        copyless.open("t-never", timeout=0.1)
    assert time.monotonic() - began >= 0.1


def test_a_dead_producers_name_is_free_again():
    producer = start_python("import copyless; a = copyless.ones(4, name='t-mort'); print('up'); input()")
    producer.stdout.readline()
    assert copyless.open("t-mort").sum() == 4
    producer.kill()
    producer.communicate()
    again = copyless.zeros(2, name="t-mort")
    assert copyless.open("t-mort").shape == again.shape


@dataclasses.dataclass
class Job:
    image: object
    label: str
    more: dict


def test_share_moves_all_arrays_inside():
    job = Job(np.ones((50, 50)), "cat", {"parts": [np.arange(3), (np.zeros(2), b"bytes")], "raw": bytearray(b"raw")})
    lock = __import__("threading").Lock()
    job.more["lock"] = lock
    shared = copyless.share(job)
    assert type(shared) is Job
    assert shared is not job
    assert copyless.is_shared(shared.image)
    assert copyless.is_shared(shared.more["parts"][0])
    assert copyless.is_shared(shared.more["parts"][1][0])
    assert shared.more["raw"].tobytes() == b"raw"
    assert copyless.is_shared(shared.more["raw"])
    assert shared.more["lock"] is lock
    assert shared.label == "cat"
    assert not copyless.is_shared(job.image)
    again = copyless.share(shared)
    assert np.shares_memory(again.image, shared.image)
    same = [np.ones(3)]
    assert copyless.share([same, same])[0] is not same
    ring = []
    ring.append(ring)
    copyless.share(ring)


def test_share_a_dataframe_keeps_its_type_and_its_message_small():
    n = 200_000
    frame = pd.DataFrame({"a": np.arange(n), "b": np.random.default_rng(1).random(n), "when": pd.date_range("2020", periods=n, freq="s"),  # noqa: E501
                          "text": pd.array([f"row {i}" for i in range(n)], dtype="string[pyarrow]")}, index=np.arange(n) * 2)  # fmt: skip  # noqa: E501
    shared = copyless.share(frame)
    assert type(shared) is pd.DataFrame
    pd.testing.assert_frame_equal(shared, frame)
    message = ForkingPickler.dumps(shared)
    assert len(message) < 4096 + 400 * len(shared._mgr.blocks)
    other = pickle.loads(message)
    pd.testing.assert_frame_equal(other, frame)
    forwarded = ForkingPickler.dumps(other)
    assert len(forwarded) < 4096 + 400 * len(shared._mgr.blocks)
    pd.testing.assert_frame_equal(pickle.loads(forwarded), frame)
    assert not copyless.is_shared(frame)


def test_share_arrow_arrays():
    array = pa.array(["one", None, "three"] * 100)
    shared = copyless.share(array)
    assert shared.equals(array)
    assert copyless.is_shared(shared)
    assert cross(shared).equals(array)
    assert cross(shared[5:9]).equals(array[5:9])


def test_an_object_array_cannot_be_shared_and_says_so():
    with pytest.raises(TypeError, match="Python objects"):
        copyless.array(np.array([{}, []], dtype=object))
    assert copyless.share(np.array([{}], dtype=object)).dtype == object


def test_memmap_shares_a_file(tmp_path):
    path = tmp_path / "data.bin"
    a = copyless.memmap(path, "i4", "w+", shape=(100, 50))
    a[:] = np.arange(5000).reshape(100, 50)
    message = ForkingPickler.dumps(a[10:20, ::5])
    assert len(message) < 400 + len(str(path))
    b = pickle.loads(message)
    b[0, 0] = -1
    assert a[10, 0] == -1
    assert np.fromfile(path, "i4")[500] == -1
    assert copyless.memmap(path, "i4", "r", offset=400).shape == (4900,)
    assert not cross(copyless.memmap(path, "i4", "r")).flags.writeable
    del a, b
    os.unlink(path)
    with pytest.raises(copyless.StaleHandleError):
        pickle.loads(message)


def test_a_mapped_file_may_be_the_first_thing_that_a_process_sends(tmp_path):
    done = python("""
        import pickle, sys, copyless
        from multiprocessing.reduction import ForkingPickler
        a = copyless.memmap(sys.argv[1], 'u1', 'w+', shape=(3, 4))
        a[1:] = 7
        print(pickle.loads(ForkingPickler.dumps(a[1:])).tolist())
    """, str(tmp_path / "first"))  # fmt: skip
    assert done.stdout.strip() == str([[7] * 4] * 2), done.stderr


def test_memmap_loads_nothing_before_it_is_touched(tmp_path):
    path = tmp_path / "large"
    with open(path, "wb") as f:
        f.truncate(1 << 30)
    done = python("""
        import sys, copyless
        rss = lambda: int(open('/proc/self/statm').read().split()[1]) * 4096
        copyless.memmap(sys.argv[1], 'u1', 'r', shape=10)
        before = rss(); a = copyless.memmap(sys.argv[1], 'u1', 'r'); a[5]; print(a.nbytes, (rss() - before) < 8 << 20)
    """, str(path))  # fmt: skip
    assert done.stdout.split() == [str(1 << 30), "True"]


@pytest.mark.parametrize(("kwargs", "error"),
    [({"mode": "c"}, ValueError), ({"mode": "x"}, ValueError), ({"offset": -1}, ValueError),
                                               ({"shape": 10_000, "mode": "r"}, ValueError),
                                               ({"dtype": "f8", "offset": 3}, ValueError)])  # fmt: skip
def test_memmap_refuses(tmp_path, kwargs, error):
    path = tmp_path / "f"
    path.write_bytes(bytes(64))
    with pytest.raises(error):
        copyless.memmap(path, **kwargs)
    with pytest.raises(FileNotFoundError):
        copyless.memmap(tmp_path / "none")


def test_frombuffer():
    m = copyless.Alloc_mem(80)
    a = copyless.frombuffer(m, "f8")
    a[:] = 2
    assert cross(a).sum() == 20
    with pytest.raises(ValueError, match="shared memory"):
        copyless.frombuffer(bytearray(80))


def test_handles():
    a = copyless.zeros((3, 4))
    h = copyless.handle(a[1:, ::2])
    assert isinstance(h, bytes)
    assert "(2, 2) float64" in repr(h)
    copyless.attach(h)[...] = 1
    assert a.sum() == 4
    m = copyless.Memory.allocate(10)
    copyless.attach(copyless.handle(m))[0] = 5
    assert m[0] == 5
    with pytest.raises(ValueError, match="share"):
        copyless.handle(np.zeros(3))
    with pytest.raises(TypeError):
        copyless.handle("x")
    for bad in (b"", b"junk", bytes(200), bytes(h)[:90], bytes(h)[:-4], b"\0" + bytes(h)[1:]):
        with pytest.raises(ValueError):
            copyless.attach(bad)
    with pytest.raises(TypeError):
        copyless.attach(5)


def test_a_stale_handle_never_shows_anothers_bytes():
    a = copyless.full(1000, 1.0)
    h = copyless.handle(a)
    del a
    other = copyless.full(1000, 2.0)
    with pytest.raises(copyless.StaleHandleError):
        copyless.attach(h)
    del other
    with pytest.raises(copyless.StaleHandleError):
        copyless.attach(h)


def test_a_handle_of_another_host_boot_or_directory(tmp_path):
    h = copyless.handle(a := copyless.zeros(3))
    ask = "import sys, copyless\ntry: copyless.attach(bytes.fromhex(sys.argv[1]))\nexcept Exception as e: print(type(e).__name__)"  # noqa: E501
    assert python(ask, h.hex()).stdout == ""
    assert python(ask, h.hex(), COPYLESS_HOST="elsewhere").stdout == "ForeignHostError\n"
    assert python(ask, h.hex(), COPYLESS_DIR=str(tmp_path)).stdout == "ForeignHostError\n"
    boot = bytearray(h)
    boot[16] ^= 1
    assert python(ask, boot.hex()).stdout == "ForeignHostError\n"
    del a


def test_import_is_light():
    done = python(
        "import sys, copyless; print([m for m in ('numpy', 'rich', 'typer', 'multiprocessing') if m in sys.modules])"
    )
    assert done.stdout.strip() == "[]"


def test_every_public_name_is_there():
    for name in copyless.__all__:
        obj = getattr(copyless, name)
        standard = "multiprocessing" in (copyless._HOME_OF[name], getattr(obj, "__module__", "").partition(".")[0])
        assert obj.__doc__ or standard, name  # some of the standard library's own have none
    with pytest.raises(AttributeError):
        copyless.nonsense  # noqa: B018


@pytest.mark.parametrize("end", ["", "sys.exit(0)", "del a", "b = a[1:]; del a"])
def test_nothing_stays_when_a_program_ends(end, tmp_path):
    place = f"/dev/shm/t-ends-{os.getpid()}"
    os.mkdir(place)
    done = python(f"import sys, copyless; a = copyless.zeros(1000000); a[:] = 1; {end}", COPYLESS_DIR=place)
    assert done.stderr == ""
    assert os.listdir(place) == []
    os.rmdir(place)


def test_threads_share_one_store():
    import threading

    def churn():
        for i in range(300):
            a = copyless.full(1 + i * 37 % 5000, i, "i4")
            assert (a == i).all()
            b = cross(a)
            assert (b == i).all()

    threads = [threading.Thread(target=churn) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    until(lambda: True)
