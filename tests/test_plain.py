"""Small values as pickles without the pickler: the pickle module reads what is written, and reads the same from the
same bytes.
"""

import pickle
import pickletools
import sys
from multiprocessing.reduction import ForkingPickler

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import copyless
from copyless._transfer import _plain

ATOMS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=300) | st.binary(max_size=300)
VALUES = st.recursive(
    ATOMS,
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.dictionaries(st.text(max_size=5) | st.integers() | st.tuples(st.booleans()), inner, max_size=5)
        | st.lists(inner, max_size=5).map(tuple)
    ),
    max_leaves=12,
)


def same(a, b):
    """Equal, of equal types throughout, and with the same bits of floats."""
    if type(a) is not type(b):
        return False
    if type(a) in (list, tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if type(a) is dict:
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    return repr(a) == repr(b)


@settings(max_examples=500, deadline=None)
@given(VALUES)
def test_what_is_written_is_a_pickle(value):
    data = _plain.plain_dumps(value)
    if data is None:
        return
    assert same(pickle.loads(data), value)
    pickletools.dis(data, out=open("/dev/null", "w"))  # noqa: SIM115
    assert same(_plain.plain_loads(data)[0], value)


@pytest.mark.parametrize(
    "value",
    [None, 0, 255, 256, -1, 2**31 - 1, -(2**31), 2**31, 2**63 - 1, -(2**63), 1.5, "", "é€😀", b"", (), (1,), (1, 2), (1, 2, 3),  # noqa: E501
              (1, 2, 3, 4), [], {}, {"a": [1, {"b": (None, True)}]}, "x" * 300, b"y" * 300]
)  # fmt: skip
def test_small_values_take_the_short_way(value):
    assert same(_plain.plain_loads(_plain.plain_dumps(value))[0], value)


def test_what_the_pickler_must_do_is_left_to_it():
    twice, loop, deep = [1], [], 5
    loop.append(loop)
    for _ in range(10):
        deep = (deep,)

    class Int(int):
        pass

    for value in (
        2**63,
        [twice, twice],
        {"a": twice, "b": (twice,)},
        loop,
        deep,
        "\ud800",
        "x" * 5000,
        Int(3),
        {1},
        1j,
        int,
        [[]] * 20,
    ):
        assert _plain.plain_dumps(value) is None
    same_tuple = (1, 2)
    assert _plain.plain_dumps([same_tuple, same_tuple]) is not None


@settings(max_examples=300, deadline=None)
@given(VALUES, st.integers(0, 5))
def test_any_pickle_is_read_rightly_or_not_at_all(value, protocol):
    data = pickle.dumps(value, protocol)
    read = _plain.plain_loads(data)
    assert read is None or same(read[0], value)


@settings(max_examples=1000, deadline=None)
@given(st.binary(max_size=60), st.booleans())
def test_noise_is_never_more_than_refused(noise, begins_well):
    _plain.plain_loads(b"\x80\x05" + noise if begins_well else noise)


@settings(max_examples=1000, deadline=None)
@given(
    st.lists(
        st.sampled_from([b"N", b"K\x01", b"(", b"t", b"e", b"u", b"]", b"}", b")", b"\x85", b"\x86", b"\x87", b"."]),
        max_size=40,
    )
)
def test_opcodes_in_any_order_are_never_more_than_refused(opcodes):
    data = b"\x80\x05" + b"".join(opcodes)
    read = _plain.plain_loads(data)
    if read is not None:
        assert same(pickle.loads(data), read[0])


# ---- with arrays


def arrays_of(shape, dtype):
    return (np.arange(int(np.prod(shape))) % 100).reshape(shape).astype(dtype)


ARRAYS = st.builds(
    arrays_of,
    st.lists(st.integers(1, 40), max_size=4).map(tuple),
    st.sampled_from(["?", "b", "B", "h", "H", "i", "I", "l", "L", "q", "Q", "e", "f", "d"]),
)
MIXED = st.recursive(
    ATOMS | ARRAYS,
    lambda inner: (
        st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=5), inner, max_size=5) | st.tuples(inner, inner)
    ),
    max_leaves=10,
)


def same_with_arrays(a, b):
    if type(a) is np.ndarray:
        return (
            type(b) is np.ndarray
            and a.dtype == b.dtype
            and a.shape == b.shape
            and np.array_equal(a, b)
            and b.flags.writeable
        )
    if type(a) in (list, tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same_with_arrays, a, b))
    if type(a) is dict:
        return list(a) == list(b) and all(same_with_arrays(a[key], b[key]) for key in a)
    return same(a, b)


@settings(max_examples=300, deadline=None)
@given(MIXED)
def test_arrays_of_numbers_are_pickled_too(value):
    both = _plain.dumps(value)
    if both is None:
        return
    data, parts = both
    assert all(part.nbytes >= 4096 for part in parts)
    assert same_with_arrays(value, pickle.loads(data, buffers=[bytearray(part) for part in parts]))
    pickletools.dis(data, out=open("/dev/null", "w"))  # noqa: SIM115


ONE = np.ones((50, 60))
READ_ONLY = np.ones((50, 60))
READ_ONLY.flags.writeable = False


class Sub(np.ndarray):
    pass


LEFT = {
    "in another order": np.asfortranarray(ONE), "with gaps": ONE[:, ::2], "empty": np.zeros((0, 3)),
    "of objects": np.array([None, 1]),
    "of times": np.array(["2026-11-25"], "M8[s]"), "with fields": np.zeros(3, "i4,f8"),
    "of the other byte order": ONE.astype(">f8"),
    "of text": np.array(["a"]), "complex": ONE.astype("c16"), "long double": ONE.astype("g"),
    "of a subclass": ONE.view(Sub),
    "twice": [ONE, ONE], "small and read-only": READ_ONLY[0], "too many": [np.ones(1) for _ in range(300)],
}  # fmt: skip


@pytest.mark.parametrize("what", LEFT)
def test_arrays_that_are_left_to_the_pickler(what):
    value = LEFT[what]
    assert _plain.dumps(value) is None
    queue = copyless.Queue()
    queue.put(value)
    got = queue.get()
    assert type(got) is type(value)
    for a, b in zip(value, got, strict=True) if isinstance(value, list) else [(value, got)]:
        assert a.dtype == b.dtype
        assert a.shape == b.shape
        assert a.flags.writeable == b.flags.writeable
        assert a.tolist() == b.tolist()
    if what == "twice":
        assert got[0] is got[1]


def test_arrays_beside_their_pickle_keep_what_they_are():
    large, zero = np.arange(6000, dtype="i4").reshape(2, 3000), np.array(5.0)
    data, parts = _plain.dumps({"large": large, "again": large[0], "zero": zero, "fixed": READ_ONLY})
    assert [part.nbytes for part in parts] == [24000, 12000, 24000]
    assert len(data) < 300
    got = pickle.loads(data, buffers=[bytearray(part) for part in parts[:2]] + [parts[2]])
    assert got["zero"].shape == ()
    assert got["zero"] == 5
    assert not got["fixed"].flags.writeable
    assert got["large"].flags.writeable
    before = sys.getrefcount(large)
    for _ in range(100):
        _plain.dumps([large, object()])  # fails after the array
    assert sys.getrefcount(large) == before


def test_arrays_in_shared_memory_are_left_to_their_handles():
    shared = copyless.ones(3000)
    plain = np.asarray(shared)
    assert _plain.dumps(plain.view(np.ndarray)) is None
    _, parts = _plain.dumps(plain.view(np.ndarray), True)
    assert len(parts) == 1
    queue = copyless.Queue()
    queue.put({"shared": plain.view(np.ndarray), "own": ONE})
    got = queue.get()
    got["shared"][0] = 7
    assert shared[0] == 7
    queue.put(got["own"])  # it came by value, so it is sent on by value
    got["own"][0] = 9
    assert queue.get()[0, 0] == 1


def test_a_reduction_of_the_users_own_is_kept():
    pickler = ForkingPickler._extra_reducers
    ours = pickler[np.ndarray]
    ForkingPickler.register(np.ndarray, lambda array: (str, ("mine",)))
    try:
        queue = copyless.Queue()
        queue.put([ONE])
        assert queue.get() == ["mine"]
    finally:
        pickler[np.ndarray] = ours


@pytest.mark.parametrize("data", [b"\x80\x45N.", b"\x80\x06N.", b"\x80\x05N(N\x86t\x86.", b"\x80\x05](K\x01\x86e."])
def test_what_pickle_refuses_is_refused(data):
    """A protocol that does not exist; a tuple that reaches below the mark."""
    with pytest.raises((ValueError, pickle.UnpicklingError)):
        pickle.loads(data)
    assert _plain.plain_loads(data) is None
