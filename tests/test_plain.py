"""Small values as pickles without the pickler: what is written, the pickle module reads; what is read, it would read so."""

import pickle
import pickletools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from copyless.core import _queue

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
    """Equal, of equal types throughout, and the same bits of floats."""
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
    data = _queue.plain_dumps(value)
    if data is None:
        return
    assert same(pickle.loads(data), value)
    pickletools.dis(data, out=open("/dev/null", "w"))  # noqa: SIM115
    assert same(_queue.plain_loads(data)[0], value)


@pytest.mark.parametrize(
    "value", [None, 0, 255, 256, -1, 2**31 - 1, -(2**31), 2**31, 2**63 - 1, -(2**63), 1.5, "", "é€😀", b"", (), (1,), (1, 2), (1, 2, 3),
              (1, 2, 3, 4), [], {}, {"a": [1, {"b": (None, True)}]}, "x" * 300, b"y" * 300]
)  # fmt: skip
def test_small_values_take_the_short_way(value):
    assert same(_queue.plain_loads(_queue.plain_dumps(value))[0], value)


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
        assert _queue.plain_dumps(value) is None
    same_tuple = (1, 2)
    assert _queue.plain_dumps([same_tuple, same_tuple]) is not None


@settings(max_examples=300, deadline=None)
@given(VALUES, st.integers(0, 5))
def test_any_pickle_is_read_rightly_or_not_at_all(value, protocol):
    data = pickle.dumps(value, protocol)
    read = _queue.plain_loads(data)
    assert read is None or same(read[0], value)


@settings(max_examples=1000, deadline=None)
@given(st.binary(max_size=60), st.booleans())
def test_noise_is_never_more_than_refused(noise, begins_well):
    _queue.plain_loads(b"\x80\x05" + noise if begins_well else noise)


@settings(max_examples=1000, deadline=None)
@given(
    st.lists(
        st.sampled_from([b"N", b"K\x01", b"(", b"t", b"e", b"u", b"]", b"}", b")", b"\x85", b"\x86", b"\x87", b"."]),
        max_size=40,
    )
)
def test_opcodes_in_any_order_are_never_more_than_refused(opcodes):
    data = b"\x80\x05" + b"".join(opcodes)
    read = _queue.plain_loads(data)
    if read is not None:
        assert same(pickle.loads(data), read[0])
