"""Every type of NumPy, pandas, polars and pyarrow arrives as it was sent, after `share` and through each channel.

The types are those that the packages define. A new type fails here until values for it are added below.
"""

from __future__ import annotations

import contextlib
import datetime
import decimal
import multiprocessing
import operator
import uuid
import warnings

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import copyless
from tests.test_what_arrives import alike

D = decimal.Decimal
MAY = settings(
    max_examples=4,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.generate],
)


@contextlib.contextmanager
def channels():
    """Each channel of copyless, as a function that sends a value and returns what arrived."""
    context = copyless.get_context("spawn")
    with contextlib.ExitStack() as stack:
        queue = stack.enter_context(copyless.Queue())
        joinable = stack.enter_context(copyless.JoinableQueue(redeliver=True))
        simple = copyless.SimpleQueue()
        stack.callback(simple.close)
        pool = stack.enter_context(copyless.Pool(1, context=context))
        manager = stack.enter_context(context.Manager())
        near, far = multiprocessing.Pipe()
        stack.callback(near.close)
        stack.callback(far.close)
        kept = manager.dict()

        def by_queue(value):
            queue.put(value)
            return queue.get(timeout=60)

        def by_joinable(value):
            joinable.put([value])
            got = joinable.get(timeout=60)
            joinable.task_done(got)
            return got[0]

        def by_simple(value):
            simple.put({"x": value})
            return simple.get()["x"]

        def by_pipe(value):
            near.send(value)
            return far.recv()

        def by_pool(value):
            return pool.apply(operator.itemgetter(0), ((value,),))

        def by_manager(value):
            kept["x"] = value
            return kept["x"]

        yield [by_queue, by_joinable, by_simple, by_pipe, by_pool, by_manager]


def everything_arrives(makers, same):
    """`makers`: title to a strategy; `same`: raises unless the second value equals the first."""

    with channels() as ways, warnings.catch_warnings():
        warnings.simplefilter("ignore")

        @MAY
        @given(st.data())
        def run(data):
            for title, maker in makers.items():
                value = data.draw(maker, label=title)
                shared = copyless.share(value)
                same(value, shared, title + ", shared")
                for way in ways:
                    same(value, way(value), f"{title}, {way.__name__}")
                    same(value, way(shared), f"{title}, shared, {way.__name__}")

        run()


# ---- NumPy


NUMBERS = [np.dtype(getattr(np.dtypes, name)()) for name in dir(np.dtypes)
           if name.endswith("DType") and name not in ("BytesDType", "StrDType", "VoidDType", "DateTime64DType", "TimeDelta64DType", "ObjectDType", "StringDType")]  # fmt: skip  # noqa: E501
OTHERS = {
    "BytesDType": ["S5"], "StrDType": ["U4"],
    "VoidDType": ["V3", [("a", "u1"), ("b", ">f8")], np.dtype([("a", "u1"), ("b", "f8")], align=True)],
    "DateTime64DType": ["M8[ns]", "M8[3D]", ">M8[s]"], "TimeDelta64DType": ["m8[us]", "m8[M]"], "ObjectDType": [],
    "StringDType": [],
}  # fmt: skip


@st.composite
def numpy_arrays(draw, dtype):
    """Arrays of random bytes (except for bool), of each layout."""
    shape = draw(st.sampled_from([(), (0,), (7,), (3, 4), (2, 3, 4), (800,), (30, 40)]))
    count = int(np.prod(shape))
    raw = np.random.default_rng(draw(st.integers(0, 1 << 32))).bytes(count * dtype.itemsize)
    array = np.frombuffer(raw, "u1").copy()
    array = array % 2 if dtype.kind == "b" else array % 128 if dtype.kind in "SU" else array
    if dtype.kind == "U":
        array = np.frombuffer((array.view("u4") % 128).tobytes(), "u1").copy() if count else array
    array = array[: count * dtype.itemsize].view(dtype)[:count].reshape(shape) if count else np.zeros(shape, dtype)
    layout = draw(st.sampled_from(["C", "F", "part", "back"]))
    if layout == "F":
        return np.asfortranarray(array)
    if layout in ("part", "back") and array.ndim:
        return array[:: 2 if layout == "part" else -1]
    return array


def bytes_of(array):
    """Without the padding between the fields."""
    return [array[name].tobytes() for name in array.dtype.names] if array.dtype.names else array.tobytes()


def same_array(sent, got, title):
    assert isinstance(got, np.ndarray), title
    assert type(got) in (type(sent), copyless.SharedArray), title
    assert alike(got.dtype, sent.dtype), title
    assert got.shape == sent.shape, title
    if sent.dtype.hasobject:
        assert got.tolist() == sent.tolist(), title
    else:
        assert bytes_of(got) == bytes_of(sent), title
    if sent.flags.forc:
        assert (got.flags.c_contiguous, got.flags.f_contiguous) == (sent.flags.c_contiguous, sent.flags.f_contiguous), (
            title
        )


def test_every_dtype_of_numpy():
    assert {
        name for name in dir(np.dtypes) if name.endswith("DType") and not isinstance(getattr(np.dtypes, name), type)
    } == set()
    dtypes = [
        *NUMBERS,
        *(dtype.newbyteorder() for dtype in NUMBERS),
        *(np.dtype(each) for known in OTHERS.values() for each in known),
    ]
    dtypes.append(np.dtype("i4", metadata={"unit": "m"}))
    makers = {f"{dtype!r} {i}": numpy_arrays(dtype) for i, dtype in enumerate(dtypes)}
    makers["objects"] = st.just(np.array([1, "a", None, [2]], object))
    if hasattr(np.dtypes, "StringDType"):
        makers["StringDType"] = st.lists(st.text(max_size=30), min_size=1).map(
            lambda texts: np.array(texts, np.dtypes.StringDType())
        )
    everything_arrives(makers, same_array)


def test_every_dtype_of_numpy_in_a_ring():
    @MAY
    @given(st.data())
    def run(data):
        for dtype in [*NUMBERS, *(np.dtype(each) for known in OTHERS.values() for each in known)]:
            array = data.draw(numpy_arrays(dtype))
            ring = copyless.RingBuffer({"a": (array.shape, dtype)}, slots=2)
            ring.put({"a": array})
            got = ring.latest()["a"]
            assert alike(got.dtype, dtype)
            assert bytes_of(got) == bytes_of(array)

    run()


# ---- polars


def test_every_type_of_polars():
    pl = pytest.importorskip("polars")
    pytest.importorskip("pyarrow")
    day, time = datetime.date(2020, 2, 3), datetime.datetime(2020, 2, 3, 4, 5, 6)
    ranks = pl.Enum(["low", "mid", "high"])
    known = {
        **{name: [(getattr(pl, name), [0, 1, 100])] for name in dir(pl.datatypes) if name.startswith(("Int", "UInt")) and name[-1].isdigit()},  # noqa: E501
        **{name: [(getattr(pl, name), [0.5, -1.0, float("inf")])] for name in ("Float16", "Float32", "Float64") if hasattr(pl, name)},  # noqa: E501
        "Boolean": [(pl.Boolean, [True, False])], "Binary": [(pl.Binary, [b"", b"a" * 40])],
        "String": [(pl.String, ["", "a", "\u00e4" * 30])],
        "Date": [(pl.Date, [day])], "Time": [(pl.Time, [datetime.time(1, 2)])],
        "Datetime": [(pl.Datetime(unit, zone), [time]) for unit in ("ms", "us", "ns") for zone in (None, "Europe/Rome")],  # noqa: E501
        "Duration": [(pl.Duration(unit), [datetime.timedelta(1)]) for unit in ("ms", "us", "ns")],
        "Decimal": [(pl.Decimal(20, 3), [D("1.500"), D("-2")])], "Null": [(pl.Null, [None])],
        "Categorical": [(pl.Categorical, ["b", "a"])], "Enum": [(ranks, ["high", "low"])],
        "List": [(pl.List(pl.Int8), [[1], []]), (pl.List(ranks), [["low"]]), (pl.List(pl.Int128), [[1]])],
        "Array": [(pl.Array(pl.Float32, 2), [[1, 2]]), (pl.Array(ranks, 1), [["mid"]])],
        "Struct": [(pl.Struct({"a": pl.Int8, "b": ranks}), [{"a": 1, "b": "mid"}])],
    }  # fmt: skip
    # Names of types without values, an old name, and types that polars itself cannot pickle or that a program must
    # define.
    aside = {
        "DataType",
        "IntegerType",
        "FloatType",
        "TemporalType",
        "Unknown",
        "Utf8",
        "Object",
        "BaseExtension",
        "Extension",
        "Field",
    }
    if hasattr(pl, "Map"):
        aside.add("Map")
        with contextlib.suppress(Exception):  # not every version that has the name can make it
            pl.Series([[("a", 1)]], dtype=pl.Map(pl.String, pl.Int64))
    there = {
        n
        for n in dir(pl.datatypes)
        if isinstance(each := getattr(pl.datatypes, n), type) and issubclass(each, pl.DataType)
    }
    assert there - aside - set(known) == set()

    def of(dtype, values):
        lists = st.lists(st.sampled_from([*values, None]), max_size=8).flatmap(
            lambda few: st.sampled_from([few, few * 60])
        )
        return lists.map(lambda items: pl.DataFrame({"n": range(len(items)), "x": pl.Series(items, dtype=dtype)}))

    def same(sent, got, title):
        assert type(got) is type(sent), title
        assert got.schema == sent.schema, title
        assert got.equals(sent, null_equal=True), title
        assert [got[name].flags["SORTED_ASC"] for name in got.columns] == [
            sent[name].flags["SORTED_ASC"] for name in sent.columns
        ], title
        single = got["x"]
        assert single.dtype == sent["x"].dtype, title

    everything_arrives({f"{dtype}": of(dtype, values) for each in known.values() for dtype, values in each}, same)


# ---- pyarrow


def test_every_type_of_pyarrow():
    pa = pytest.importorskip("pyarrow")
    day, time = datetime.date(2020, 2, 3), datetime.datetime(2020, 2, 3, 4, 5, 6)
    whole = {
        f"{sign}INT{bits}": [(getattr(pa, f"{sign}int{bits}".lower())(), [0, 1, 100])]
        for sign in ("", "U")
        for bits in (8, 16, 32, 64)
    }
    words = {
        "BINARY": [b"a"],
        "LARGE_BINARY": [b"a"],
        "BINARY_VIEW": [b"a" * 30],
        "STRING": ["a"],
        "LARGE_STRING": ["a"],
        "STRING_VIEW": ["a" * 30],
    }
    known = {
        **whole,
        **{name: [(getattr(pa, name.lower())(), values)] for name, values in words.items()},
        "HALF_FLOAT": [(pa.float16(), [0.5])], "FLOAT": [(pa.float32(), [0.5])], "DOUBLE": [(pa.float64(), [0.5])],
        "BOOL": [(pa.bool_(), [True, False])],
        "NA": [(pa.null(), [None])], "DATE32": [(pa.date32(), [day])], "DATE64": [(pa.date64(), [day])],
        "TIME32": [(pa.time32("s"), [time.time()])], "TIME64": [(pa.time64("us"), [time.time()])],
        "TIMESTAMP": [(pa.timestamp(unit, zone), [time]) for unit in ("s", "ms", "us", "ns") for zone in (None, "Europe/Rome")],  # noqa: E501
        "DURATION": [(pa.duration("us"), [datetime.timedelta(1)])],
        "INTERVAL_MONTH_DAY_NANO": [(pa.month_day_nano_interval(), [(1, 2, 3)])],
        "FIXED_SIZE_BINARY": [(pa.binary(3), [b"abc"]), *([(pa.uuid(), [uuid.UUID(int=5).bytes])] if hasattr(pa, "uuid") else [])],  # noqa: E501
        "LIST": [(pa.list_(pa.int8()), [[1], []])], "LARGE_LIST": [(pa.large_list(pa.string()), [["a"]])],
        "FIXED_SIZE_LIST": [(pa.list_(pa.int8(), 2), [[1, 2]])],
        "STRUCT": [(pa.struct([("a", pa.int8()), ("b", pa.string())]), [{"a": 1, "b": "x"}])],
        "MAP": [(pa.map_(pa.string(), pa.int8()), [[("a", 1)]])],
        "DICTIONARY": [(pa.dictionary(pa.int8(), pa.string(), ordered=ordered), ["b", "a"]) for ordered in (False, True)],  # noqa: E501
        **{f"DECIMAL{bits}": [(getattr(pa, f"decimal{bits}")(6, 2), [D("1.50")])] for bits in (32, 64, 128, 256) if hasattr(pa, f"decimal{bits}")},  # noqa: E501
        **{name: [(getattr(pa, name.lower())(pa.int8()), [[1], []])] for name in ("LIST_VIEW", "LARGE_LIST_VIEW") if hasattr(pa, name.lower())},  # noqa: E501
    }  # fmt: skip
    aside = {"INTERVAL_MONTHS", "INTERVAL_DAY_TIME", "EXTENSION"}  # pyarrow cannot make these
    made = {"RUN_END_ENCODED", "SPARSE_UNION", "DENSE_UNION"}  # made from parts, below
    assert {name.removeprefix("Type_") for name in dir(pa.lib) if name.startswith("Type_")} - aside - made - set(
        known
    ) == set()
    parts = [pa.array([1, 2], "i8"), pa.array(["a", "b"])]
    built = {
        "RUN_END_ENCODED": pa.RunEndEncodedArray.from_arrays([2, 5], ["a", "b"]),
        "SPARSE_UNION": pa.UnionArray.from_sparse(pa.array([0, 1], "i1"), parts),
        "DENSE_UNION": pa.UnionArray.from_dense(pa.array([0, 1], "i1"), pa.array([0, 0], "i4"), parts),
    }
    for name, arguments in {
        "bool8": (),
        "json_": (),
        "fixed_shape_tensor": (pa.int8(), [2]),
        "opaque": (pa.int8(), "t", "v"),
    }.items():
        if hasattr(pa, name):
            kind = getattr(pa, name)(*arguments)
            built[name] = pa.ExtensionArray.from_storage(kind, pa.array([None, None], kind.storage_type))

    def of(kind, values):
        lists = st.lists(st.sampled_from([*values, None]), max_size=8).flatmap(
            lambda few: st.sampled_from([few, few * 60])
        )
        return lists.map(lambda items: table(pa.array(items, kind)))

    def table(array):
        schema = pa.schema([pa.field("x", array.type, metadata={"unit": "m"})], metadata={"whole": "table"})
        return pa.table([array], schema=schema)

    def same(sent, got, title):
        assert type(got) is type(sent), title
        assert got.schema.equals(sent.schema, check_metadata=True), title
        assert got.equals(sent), title
        got.validate(full=True)

    makers = {f"{kind} {i}": of(kind, values) for each in known.values() for i, (kind, values) in enumerate(each)}
    everything_arrives({**makers, **{name: st.just(table(array)) for name, array in built.items()}}, same)


# ---- pandas


def test_every_type_of_pandas():
    pd = pytest.importorskip("pandas")
    pa = pytest.importorskip("pyarrow")
    time = pd.Timestamp("2020-02-03 04:05:06")
    whole = {
        f"{sign}Int{bits}Dtype": [(f"{sign}Int{bits}", [0, 1, None])] for sign in ("", "U") for bits in (8, 16, 32, 64)
    }
    known = {
        **whole,
        "Float32Dtype": [("Float32", [0.5, None])], "Float64Dtype": [("Float64", [0.5, None])],
        "BooleanDtype": [("boolean", [True, None])],
        "StringDtype": [(pd.StringDtype(storage), ["a", None]) for storage in ("python", "pyarrow")],
        "ArrowDtype": [(pd.ArrowDtype(kind), values) for kind, values in ((pa.int8(), [1, None]), (pa.string(), ["a"]),
        (pa.list_(pa.int8()), [[1]]),
                                                                         (pa.dictionary(pa.int8(), pa.string()), ["a", "b"]))],  # noqa: E501
        "CategoricalDtype": [(pd.CategoricalDtype(["b", "a"], ordered), ["a", None]) for ordered in (True, False)],
        "DatetimeTZDtype": [(pd.DatetimeTZDtype(unit, zone), [time.tz_localize(zone), None]) for unit in ("s", "ns") for zone in ("UTC", "Europe/Rome")],  # noqa: E501
        "IntervalDtype": [(pd.IntervalDtype("float64", "left"), [pd.Interval(0.0, 1.0, "left"), None])],
        "PeriodDtype": [("period[D]", [pd.Period("2020-01-01"), None])],
        "SparseDtype": [(pd.SparseDtype("f8", 0.0), [0.0, 1.5])],
    }  # fmt: skip
    plain = [("i8", [1, 2]), ("f4", [0.5]), ("bool", [True]), ("complex128", [1j]), ("M8[ns]", [time, None]),
        ("M8[s]", [time]), ("m8[us]", [time - time]),
             ("object", [1, "a", None, (1, 2)]), (None, ["a", "b"])]  # fmt: skip
    assert {name for name in dir(pd) if name.endswith("Dtype")} - set(known) == set()
    indexes = {
        "Index": pd.Index(["a", "b", "c"], name="i"), "RangeIndex": pd.RangeIndex(3, name="r"),
        "CategoricalIndex": pd.CategoricalIndex(["a", "b", "a"], name="c"),
        "DatetimeIndex": pd.date_range("2020", periods=3, freq="D", name="t", tz="UTC"),
        "TimedeltaIndex": pd.timedelta_range("1D", periods=3, name="d"),
        "IntervalIndex": pd.interval_range(0, 3, name="v"),
        "PeriodIndex": pd.period_range("2020", periods=3, freq="M", name="p"),
        "MultiIndex": pd.MultiIndex.from_arrays([[1, 1, 2], ["a", "b", "a"]], names=["x", None]),
    }  # fmt: skip
    assert {name for name in dir(pd) if name.endswith("Index")} - set(indexes) == set()

    def of(dtype, values):
        lists = st.lists(st.sampled_from(values), max_size=8).flatmap(lambda few: st.sampled_from([few, few * 60]))
        return lists.map(lambda items: frame(pd.Series(items, dtype=dtype)))

    def frame(series, index=None):
        made = pd.DataFrame(
            {"x": series, ("n", 1): np.arange(len(series))}, index=series.index if index is None else index
        )
        made.columns.name = "columns"
        made.attrs = {"unit": "m", "of": {"a": [1]}}
        return made.set_flags(allows_duplicate_labels=False) if made.index.is_unique else made

    def same(sent, got, title):
        assert type(got) is type(sent), title
        pd.testing.assert_frame_equal(got, sent, check_exact=True, check_freq=True, check_index_type="exact", obj=title)
        assert (got.attrs, got.flags.allows_duplicate_labels) == (sent.attrs, sent.flags.allows_duplicate_labels), title
        assert list(got.index.names) == list(sent.index.names), title
        assert (got.columns.name, type(got.index)) == (sent.columns.name, type(sent.index)), title
        assert got.dtypes.tolist() == sent.dtypes.tolist(), title
        assert type(got.iloc[:, 0].array) is type(sent.iloc[:, 0].array), title

    makers = {
        f"{dtype} {i}": of(dtype, values) for each in [*known.values(), plain] for i, (dtype, values) in enumerate(each)
    }
    makers.update(
        {name: st.just(frame(pd.Series([1.5, 2.5, 3.5], index=index), index)) for name, index in indexes.items()}
    )
    everything_arrives(makers, same)
