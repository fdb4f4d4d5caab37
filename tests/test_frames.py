"""DataFrames and tables in shared memory (pandas, polars, pyarrow, NumPy), and what explain and to_recarray return."""

import datetime
import os
import pickle
import subprocess
import sys
from multiprocessing.reduction import ForkingPickler

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

import copyless

N = 20_000


def pandas_frame():
    return pd.DataFrame(
        {
            "number": np.arange(N),
            "float32": np.random.default_rng(1).random(N).astype("f4"),
            "category": pd.Categorical.from_codes([0, 1] * (N // 2), pd.Index(["u", "v"], dtype="string[pyarrow]")),
            "zone": pd.date_range("2020", periods=N, freq="s", tz="Europe/Berlin"),
            "text": pd.array([f"行 {i}" for i in range(N)], dtype="string[pyarrow]"),
            "nullable": pd.array([1, None] * (N // 2), dtype="Int64"),
            "period": pd.period_range("2020", periods=N, freq="h"),
            "arrow": pd.array(range(N), dtype="int64[pyarrow]"),
            "list": pd.Series([[1, 2]] * N, dtype=pd.ArrowDtype(pa.list_(pa.int64()))),
        },
        index=pd.MultiIndex.from_arrays(
            [np.arange(N) // 10, pd.array([str(i % 10) for i in range(N)], dtype="string[pyarrow]")], names=["x", "y"]
        ),
    )


def polars_frame():
    return pl.DataFrame(
        {
            "a": np.arange(N),
            "text": [f"row number {i}, longer than a view" for i in range(N)],
            "list": [[1, 2]] * N,
            "time": [datetime.datetime(2020, 1, 1)] * N,
            "bool": [True, None] * (N // 2),
            "struct": [{"x": 1, "y": "b"}] * N,
        }
    )


def arrow_table():
    return pa.table(
        {
            "list": [[1, 2]] * N,
            "dictionary": pa.array(["a", "b"] * (N // 2)).dictionary_encode(),
            "text": [f"row {i}" for i in range(N)],
            "struct": [{"x": 1}] * N,
            "chunks": pa.chunked_array([pa.array(range(N // 2)), pa.array(range(N // 2))]),
        }
    )


def recarray():
    return np.rec.fromarrays([np.arange(N), np.random.default_rng(2).random(N)], names="a,b")


TABLES = {
    "pandas": pandas_frame,
    "pandas series": lambda: pandas_frame()["text"],
    "polars": polars_frame,
    "polars series": lambda: polars_frame()["text"],
    "arrow": arrow_table,
    "arrow batch": lambda: arrow_table().combine_chunks().to_batches()[0],
    "recarray": recarray,
}


def same(a, b):
    return type(a) is type(b) and (a.equals(b) if hasattr(a, "equals") else a.dtype == b.dtype and (a == b).all())


def cross(obj):
    message = bytes(ForkingPickler.dumps(obj))
    return len(message), pickle.loads(message)


@pytest.mark.parametrize("kind", TABLES)
def test_a_shared_table_keeps_its_type_and_crosses_without_its_bytes(kind):
    table = TABLES[kind]()
    assert not copyless.is_shared(table)
    shared = copyless.share(table)
    assert same(shared, table)
    assert copyless.is_shared(shared)
    size, arrived = cross(shared)
    assert size < 12_000
    assert same(arrived, table)
    assert copyless.is_shared(arrived)
    assert cross(arrived)[0] == size  # and on to a third process
    assert copyless.explain(shared).copied_bytes < 12_000
    assert copyless.explain(shared).shared_bytes >= N * 8


def look(jobs, answers):
    while (table := jobs.get()) is not None:
        answers.put((copyless.is_shared(table), table))


@pytest.mark.parametrize("by", ["ours", "standard"])
def test_it_arrives_in_a_worker_and_comes_back(context, by):
    jobs, answers = (
        (copyless.Queue(), copyless.Queue()) if by == "ours" else (context.SimpleQueue(), context.SimpleQueue())
    )
    worker = context.Process(target=look, args=(jobs, answers))
    worker.start()
    for kind, make in TABLES.items():
        if kind.startswith("polars") and context.get_start_method() == "fork":
            continue  # its threads do not survive a fork: polars's documentation forbids it
        table = make()
        jobs.put(copyless.share(table))
        shared, back = answers.get()
        assert shared
        assert same(back, table)
    jobs.put(None)
    worker.join()


def test_a_frame_over_a_shared_array_is_a_window_on_it():
    array = copyless.zeros((1000, 2))
    _, other = cross(pd.DataFrame(array, columns=["a", "b"], copy=False))
    array[:, 1] = 5
    assert (other["b"] == 5).all()
    assert (other["a"] == 0).all()


@pytest.mark.parametrize("text", ["string[pyarrow]", "str", "string[python]"])
def test_text_can_be_written_after_sharing_and_after_crossing(text):
    for shared in (copyless.share(pd.DataFrame({"text": pd.Series(["a", "b"], dtype=text)})), None):
        frame = shared if shared is not None else cross(copyless.share(pandas_frame()[["text"]]))[1]
        frame.loc[frame.index[1], "text"] = "written"
        assert list(frame["text"][:2])[1] == "written"
        frame["text"] = frame["text"].fillna("").str.upper()
        assert frame["text"].iloc[1] == "WRITTEN"


def test_columns_of_objects_go_by_value_and_explain_says_so():
    frame = pd.DataFrame({"a": np.arange(N), "what": pd.Series([("x", i) for i in range(N)], dtype=object)})
    shared = copyless.share(frame)
    _, arrived = cross(shared)
    assert arrived.equals(frame)
    report = copyless.explain(shared)
    parts = {part.path: part for part in report}
    assert parts["column 'a'"].shared == 8 * N
    assert parts["column 'a'"].copied == 0
    assert parts["column 'what'"].shared == 0
    assert parts["column 'what'"].copied > N
    assert "category" in parts["column 'what'"].why
    assert "column 'what'" in repr(report)
    assert "<table>" in report._repr_html_()
    assert not copyless.is_shared(shared)


def test_explain_tells_private_memory_from_shared():
    image = np.ones((100, 100))
    report = copyless.explain({"image": image, "shared": copyless.array(image), "name": "x" * 10})
    private, shared, name = report.parts
    assert (private.shared, private.copied > 80_000, "share()" in private.why) == (0, True, True)
    assert (shared.shared, shared.copied, shared.why) == (80_000, 0, "")
    assert (name.shared, name.copied < 100, name.why) == (0, True, "")
    assert report.copied_bytes == private.copied + name.copied
    many = copyless.explain(list(range(100_000)))
    assert len(many) == 100_000
    assert len(repr(many).splitlines()) < 80
    with pytest.raises((TypeError, pickle.PicklingError, AttributeError)):
        copyless.explain(sys)
    assert copyless.explain(copyless.zeros((3, 4))[:, ::2]).shared_bytes == 3 * 2 * 8


def test_explain_holds_nothing_afterwards():
    array = copyless.zeros(1_000_000)
    copyless.explain([array, array])
    number = copyless.handle(array)
    del array
    with pytest.raises(copyless.StaleHandleError):
        copyless.attach(number)


def test_categories_of_polars_are_copied_and_arrive():
    frame = pl.DataFrame({"a": np.arange(N), "c": pl.Series(["x", "y"] * (N // 2), dtype=pl.Categorical)})
    shared = copyless.share(frame)
    assert shared.equals(frame)
    assert shared.schema == frame.schema
    size, arrived = cross(shared)
    assert arrived.equals(frame)
    assert arrived.schema == frame.schema
    assert 4 * N < size < 5 * N  # the codes alone
    report = {part.path: part for part in copyless.explain(shared)}
    assert "to_physical" in report["column 'c'"].why
    assert report["column 'a'"].copied == 0


def test_empty_tables():
    for table in (pl.DataFrame(), pl.DataFrame({"a": []}), pd.DataFrame(), pa.table({"a": pa.array([], "i8")})):
        shared = copyless.share(table)
        assert same(shared, table)
        assert same(cross(shared)[1], table)
        assert copyless.explain(shared).copied_bytes < 4000


def test_a_small_slice_of_a_large_arrow_array_takes_little():
    array = pa.array(range(1_000_000)).slice(10, 10)
    shared = copyless.share(array)
    assert shared.equals(array)
    assert shared.get_total_buffer_size() < 1000


def test_two_arrays_on_one_buffer_share_one():
    text = pa.array([f"row {i}" for i in range(N)])
    shared = copyless.share(pa.table({"a": text, "b": text}))
    (a, b) = (column.chunk(0).buffers()[1].address for column in shared.columns)
    assert a == b


def test_polars_without_pyarrow_says_what_to_install():
    code = (
        "import sys, polars as pl, copyless\n"
        "sys.modules['pyarrow'] = None\n"
        "try:\n"
        "    copyless.share(pl.DataFrame({'a': [1]}))\n"
        "except ImportError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=dict(os.environ)
    )
    assert "copyless[arrow]" in done.stdout, done.stderr


# ---- records


def test_to_recarray_of_pandas_keeps_what_to_records_keeps():
    frame = pandas_frame()[["number", "float32", "arrow"]]
    records = copyless.to_recarray(frame)
    expected = frame.to_records()
    assert type(records) is np.recarray
    assert records.dtype.names == expected.dtype.names == ("x", "y", "number", "float32", "arrow")
    assert copyless.is_shared(records)
    for name in records.dtype.names:
        assert (records[name] == expected[name]).all()
    size, arrived = cross(records)
    assert size < 2000
    assert same(arrived, records)
    arrived.number[0] = -7
    assert records[0].number == -7


def test_to_recarray_of_other_tables_and_dtypes():
    frame = pandas_frame().reset_index(drop=True)
    records = copyless.to_recarray(frame[["zone", "text"]], index=False)
    assert records.zone[0] == np.datetime64("2019-12-31T23:00:00")
    assert records.text[17] == "行 17"
    small = copyless.to_recarray(frame[["number"]], index=False, column_dtypes={"number": "i2"})
    assert small.dtype["number"] == np.dtype("i2")
    assert (copyless.to_recarray(polars_frame().select("a", "text")).a == np.arange(N)).all()
    assert copyless.to_recarray(arrow_table().select(["text"])).text[3] == "row 3"
    assert copyless.to_recarray({"x": [1, 2], "y": [0.5, 1.5]})[1].y == 1.5
    assert copyless.to_recarray(pd.DataFrame({"a": []})).shape == (0,)


def test_a_recarray_by_name():
    records = copyless.to_recarray({"x": [1, 2]}, name="t-records")
    assert copyless.open("t-records").view(np.recarray).x.tolist() == [1, 2]
    with pytest.raises(FileExistsError):
        copyless.to_recarray({"x": [1]}, name="t-records")
    del records


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (pd.DataFrame({"a": pd.Series([{}, {}], dtype=object)}), "column 'a' holds dict"),
        (pd.DataFrame({"t": pd.Series(["x", None], dtype=object)}), "column 't' holds NoneType"),
        ([1, 2], "a DataFrame of pandas or polars"),
    ],
)
def test_what_records_cannot_hold_is_named(table, message):
    with pytest.raises(TypeError, match=message):
        copyless.to_recarray(table)


def test_bad_columns():
    with pytest.raises(ValueError, match="must have the same length"):
        copyless.to_recarray({"a": [1], "b": [1, 2]})
    with pytest.raises(ValueError, match="named 'a'"):
        copyless.to_recarray(pd.DataFrame([[1, 2]], columns=["a", "a"]), index=False)
