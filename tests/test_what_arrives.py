"""What arrives is what was sent: type, dtype, metadata, schema, order and values, after `share` and through each
channel.
"""

from __future__ import annotations

import dataclasses
import pickle
import threading
import warnings
from multiprocessing.reduction import ForkingPickler

import numpy as np
import pytest

import copyless
from copyless._transfer import in_flight

pl = pytest.importorskip("polars")

RANKS = pl.Enum(["low", "mid", "high"])


def by_pickler(obj):
    """As in multiprocessing's own pipes and queues."""
    return pickle.loads(bytes(ForkingPickler.dumps(obj)))


def by_queue(obj):
    with copyless.Queue() as queue:
        queue.put(obj)
        return queue.get(timeout=60)


WAYS = {"multiprocessing": by_pickler, "queue": by_queue}


# ---- polars


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", [RANKS, pl.List(RANKS), pl.Struct({"a": RANKS}), pl.Array(RANKS, 1)], ids=str)
def test_an_enum_of_polars_stays_one_and_keeps_its_order(dtype, way):
    values = [{pl.List: ["high"], pl.Array: ["high"], pl.Struct: {"a": "high"}}.get(type(dtype), "high")] * 2000
    frame = pl.DataFrame({"n": range(2000), "e": pl.Series(values, dtype=dtype)})
    shared = copyless.share(frame)
    for arrived in (shared, WAYS[way](frame), WAYS[way](shared), WAYS[way](shared["e"]).to_frame()):
        assert arrived.schema["e"] == dtype
        assert arrived["e"].equals(frame["e"])
    assert copyless.is_shared(shared["n"])


def test_an_enum_of_polars_sorts_as_it_did():
    frame = copyless.share(pl.DataFrame({"e": pl.Series(["high", "low", "mid"], dtype=RANKS)}))
    assert by_queue(frame).sort("e")["e"].to_list() == ["low", "mid", "high"]


@pytest.mark.parametrize("way", WAYS)
def test_what_polars_cannot_give_to_arrow_goes_as_polars_pickles_it(way):
    copyless.share(pl.DataFrame({"a": [1]}))
    frame = pl.DataFrame({"a": range(2000), "b": pl.Series(range(2000), dtype=pl.Int128)})
    shared = copyless.share(frame)
    for arrived in (shared, WAYS[way](frame), WAYS[way](shared)):
        assert arrived.schema == frame.schema
        assert arrived.equals(frame)
    assert copyless.is_shared(shared["a"])
    why = {part.path: part.why for part in copyless.explain(shared)}["column 'b'"]
    assert "polars pickles the column" in why
    assert "share()" not in why


def test_objects_in_a_frame_of_polars_stay_where_they_are():
    frame = pl.DataFrame({"a": range(2000), "o": pl.Series([object()] * 2000, dtype=pl.Object)})
    shared = copyless.share(frame)
    assert copyless.is_shared(shared["a"])
    assert shared["o"][0] is frame["o"][0]


def test_a_frame_of_polars_knows_what_is_sorted():
    frame = pl.DataFrame(
        {"up": pl.Series(range(2000)).set_sorted(), "down": pl.Series(range(2000, 0, -1)).set_sorted(descending=True)}
    )
    arrived = by_queue(copyless.share(frame))
    assert arrived["up"].flags["SORTED_ASC"]
    assert arrived["down"].flags["SORTED_DESC"]


def test_a_subclass_of_a_frame_of_polars_stays_one():
    class Mine(pl.DataFrame):
        pass

    assert type(copyless.share(Mine({"a": [1, 2]}))) is Mine


class Table:
    """Pickles by itself; the reduction that is registered for it fails."""

    def __init__(self):
        self.values = list(range(1000))


def _fails(table):
    raise LookupError("no way")


def test_a_reduction_that_fails_gives_way_to_the_types_own_pickling_and_explain_says_so(monkeypatch):
    monkeypatch.setattr(ForkingPickler, "_extra_reducers", dict(ForkingPickler._extra_reducers))
    in_flight.register(Table, in_flight.or_as_pickle(_fails))
    assert by_queue(Table()).values == by_pickler(Table()).values == list(range(1000))
    (part,) = copyless.explain(Table())
    assert "LookupError: no way" in part.why
    assert "share()" not in part.why


# ---- dtypes


def alike(a, b):
    """Whether two dtypes are equal, also in all that NumPy's equality ignores."""
    if a.names is not None:
        fields = [len(a.fields[n]) == len(b.fields[n]) and alike(a.fields[n][0], b.fields[n][0]) for n in a.names]
        if not all(fields) or a.isalignedstruct != b.isalignedstruct:
            return False
        if [a.fields[n][1:] for n in a.names] != [b.fields[n][1:] for n in b.names]:
            return False
    if a.subdtype is not None and not (alike(a.base, b.base) and a.shape == b.shape):
        return False
    # A long and a long long of one size are one type in NumPy's own pickles too.
    same_type = a.type is b.type or (a.kind == b.kind and a.kind in "iu")
    return a == b and same_type and a.metadata == b.metadata and a.itemsize == b.itemsize


RED = {"enum": {"RED": 1}}
DTYPES = {
    "metadata": np.dtype("i4", metadata=RED),
    "other metadata": np.dtype("i4", metadata={"unit": ("m", 1.5, None, True, b"x")}),
    "metadata of text": np.dtype("S8", metadata={"encoding": "utf-8"}),
    "metadata that is no literal": np.dtype("f8", metadata={"class": complex}),
    "metadata of a field": np.dtype([("e", np.dtype("i4", metadata=RED)), ("f", "f8")]),
    "metadata of a field of a field": np.dtype([("a", [("e", np.dtype("i4", metadata=RED))])]),
    "metadata of a part": np.dtype([("a", (np.dtype("i4", metadata=RED), (2,)))]),
    "metadata of a record": np.dtype([("a", "i4")], metadata=RED),
    "aligned": np.dtype([("a", "u1"), ("b", "f8")], align=True),
    "aligned inside": np.dtype([("x", np.dtype([("a", "u1"), ("b", "f8")], align=True)), ("y", "u1")]),
    "not aligned": np.dtype([("a", "u1"), ("b", "f8")]),
    "gaps": np.dtype({"names": ["a", "b"], "formats": ["u1", "f8"], "offsets": [3, 12], "itemsize": 32}),
    "out of order": np.dtype({"names": ["a", "b"], "formats": ["u4", "u2"], "offsets": [4, 0]}),
    "a union": np.dtype({"names": ["a", "b"], "formats": ["u4", "u2"], "offsets": [0, 0]}),
    "titles": np.dtype([(("title", "a"), "i4"), ("b", "f8")]),
    "record": np.dtype((np.record, [("a", "i4"), ("b", "f8")])),
    "parts": np.dtype([("a", "i4", (2, 3)), ("b", "M8[ms]")]),
    "big-endian": np.dtype([("a", ">i4"), ("b", ">M8[3s]")]),
    "bytes": np.dtype("V5"),
}


@pytest.mark.parametrize("n", [3, 5000])
@pytest.mark.parametrize("title", DTYPES)
def test_a_dtype_arrives_with_all_that_equality_passes_over(title, n):
    dtype = DTYPES[title]
    for plain in (np.zeros(n, np.dtype("i4")), np.zeros(n, dtype), np.zeros(n, [("a", "u1"), ("b", "f8")])):
        shared = copyless.share(plain)
        for way in WAYS.values():
            for sent in (plain, shared, (1, plain), {"x": [shared]}, shared[::2]):
                arrived = way(sent)
                array = arrived[1] if type(sent) is tuple else arrived["x"][0] if type(sent) is dict else arrived
                assert alike(array.dtype, plain.dtype)
                assert copyless.is_shared(array) == (sent is not plain and type(sent) is not tuple)


@pytest.mark.parametrize("title", DTYPES)
def test_names_handles_and_rings_hold_the_whole_dtype_or_refuse_it(title):
    dtype = DTYPES[title]
    if "no literal" in title:
        for make in (
            lambda: copyless.zeros(3, dtype, name="a-dtype"),
            lambda: copyless.handle(copyless.zeros(3, dtype)),
            lambda: copyless.RingBuffer(((3,), dtype)),
        ):
            with pytest.raises(TypeError, match="metadata"):
                make()
        return
    array = copyless.zeros(3, dtype, name="a-dtype")
    assert alike(copyless.open("a-dtype").dtype, dtype)
    assert alike(copyless.attach(copyless.handle(array)).dtype, dtype)
    ring = copyless.RingBuffer(((3,), dtype), slots=2)
    assert alike(by_pickler(ring).spec[1], dtype)


def test_who_renames_the_fields_of_what_arrived_renames_no_later_message():
    shared = copyless.zeros(3, [("a", "i4"), ("b", "f8")])
    by_queue(shared).dtype.names = ("x", "y")
    assert by_queue(shared).dtype.names == ("a", "b")
    shared.dtype.names = ("c", "d")
    assert by_queue(shared).dtype.names == ("c", "d")


def test_a_dtype_of_a_library_arrives():
    ml_dtypes = pytest.importorskip("ml_dtypes")
    for dtype in (np.dtype(ml_dtypes.bfloat16), np.dtype([("a", ml_dtypes.float8_e4m3fn), ("b", "i4")])):
        shared = copyless.share(np.zeros(3000, dtype))
        for way in WAYS.values():
            assert alike(way(shared).dtype, dtype)


# ---- arrays of derived classes, dataclasses, results of explain and is_shared


class Quantity(np.ndarray):
    """With attributes that only __array_finalize__ passes on."""

    def __array_finalize__(self, obj):
        self.unit = getattr(obj, "unit", None)
        self.errors = getattr(obj, "errors", None)


class Info(np.ndarray):
    """With a pickle of its own, as in NumPy's documentation."""

    __slots__ = ("info",)

    def __array_finalize__(self, obj):
        self.info = getattr(obj, "info", None)

    def __reduce__(self):
        function, arguments, state = super().__reduce__()
        return function, arguments, (*state, self.info)

    def __setstate__(self, state):
        self.info = state[-1]
        super().__setstate__(state[:-1])


class Locked(np.ndarray):
    """With an attribute that cannot be sent, which NumPy's own pickling drops."""


def quantity(n=3000):
    made = np.arange(float(n)).view(Quantity)
    made.unit, made.errors = "m", np.full(n, 0.5)
    return made


def info():
    made = np.arange(3000.0).view(Info)
    made.info = {"k": [1]}
    return made


def masked(**options):
    return np.ma.array(np.arange(3000.0), mask=np.arange(3000) % 3 == 0, fill_value=-1.5, **options)


DERIVED = {
    "masked": masked,
    "masked without a mask": lambda: np.ma.array(np.arange(3000.0)),
    "masked hard": lambda: masked(hard_mask=True),
    "masked records": lambda: np.ma.array(np.zeros(2000, "i4, f8"), mask=[(1, 0)] * 2000),
    "matrix": lambda: np.matrix(np.arange(6000.0).reshape(2, 3000)),
    "recarray": lambda: np.rec.array(np.zeros(2000, "i4, f8")),
    "masked recarray": lambda: np.ma.mrecords.fromarrays([np.arange(2000), np.arange(2000.0)], names="a,b"),
    "attributes": quantity,
    "its own pickle": info,
    "Fortran": lambda: np.asfortranarray(np.arange(6000.0).reshape(3, 2000)).view(Quantity),
    "a part": lambda: quantity()[::2],
}


def says(array):
    """The whole state of an array of these classes."""
    said = [type(array), alike(array.dtype, array.dtype), array.dtype, array.shape, np.asarray(array).tolist()]
    if isinstance(array, np.ma.MaskedArray):
        said += [np.ma.getmaskarray(array).tolist(), array.fill_value, array.hardmask, array.filled().tolist()]
        said += [array.mask is np.ma.nomask]
    for name in ("unit", "errors", "info"):
        value = getattr(array, name, None)
        said.append(value.tolist() if isinstance(value, np.ndarray) else value)
    return said


@pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")
@pytest.mark.parametrize("title", DERIVED)
def test_an_array_of_a_derived_class_keeps_class_and_attributes(title):
    import numpy.ma.mrecords  # noqa: F401 - which NumPy imports when asked

    array = DERIVED[title]()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        shared = copyless.share(array)
        inside = copyless.share({"x": [array]})["x"][0]
    for made in (shared, inside):
        assert repr(says(made)) == repr(says(array))
        assert copyless.is_shared(made)
    assert copyless.share(shared) is shared
    assert copyless.explain(shared).copied_bytes < 1500
    assert not any(part.why for part in copyless.explain(shared))
    for way in WAYS.values():
        for _ in range(2):  # what arrived can be sent on
            made = way(made)
            assert repr(says(made)) == repr(says(array))
            assert copyless.is_shared(made)


def test_the_one_masked_value_stays_that_one():
    assert copyless.share([np.ma.masked])[0] is np.ma.masked
    assert by_queue(copyless.share(np.ma.masked)) is np.ma.masked


def test_what_is_written_into_a_masked_array_is_seen_by_who_has_it_too():
    shared = copyless.share(masked())
    arrived = by_queue(shared)
    arrived[1] = np.ma.masked
    arrived[2] = 99
    assert shared.mask[1]
    assert shared.data[2] == 99


def test_what_own_pickling_can_send_is_sent_though_an_attribute_cannot():
    array = np.arange(3000.0).view(Locked)
    array.lock = threading.Lock()
    shared = copyless.share(array)
    assert copyless.is_shared(shared)
    assert shared.lock is array.lock
    assert type(by_queue(shared)) is Locked
    (part,) = copyless.explain(shared)
    assert "is pickled by its own type" in part.why
    assert "share()" not in part.why


def test_share_says_what_it_does_not_move(tmp_path):
    over_file = np.memmap(tmp_path / "f", "f8", "w+", shape=3000)
    with pytest.warns(UserWarning, match=r"copyless.memmap"):
        assert copyless.share(over_file) is over_file
    (part,) = copyless.explain(over_file)
    assert "copyless.memmap" in part.why
    assert "share()" not in part.why


@dataclasses.dataclass
class Job:
    image: np.ndarray

    def __post_init__(self):
        self.mask = np.ones(3000)


@dataclasses.dataclass(frozen=True, slots=True)
class Fixed:
    image: np.ndarray


def test_attributes_of_dataclasses_that_are_no_fields_are_moved():
    job = Job(np.zeros(3000))
    assert not copyless.is_shared(job)
    shared = copyless.share(job)
    assert copyless.is_shared(shared)
    assert copyless.is_shared(shared.mask)
    assert [part.path for part in copyless.explain(shared)] == [".image", ".mask"]
    assert not copyless.is_shared(job.mask)
    arrived = by_queue(shared)
    assert np.shares_memory(arrived.mask, shared.mask) or copyless.is_shared(arrived.mask)
    assert copyless.is_shared(copyless.share(Fixed(np.zeros(3000))))
    half = Job(copyless.zeros(3))
    assert not copyless.is_shared(half)


def frames():
    pd, pa = pytest.importorskip("pandas"), pytest.importorskip("pyarrow")
    n = 5000
    columns = {"a": np.arange(n) * 1.0, "b": np.arange(n), "t": [f"text {i}" for i in range(n)]}
    frame = copyless.share(pd.DataFrame(columns))
    yield from (
        frame,
        frame.iloc[10:4000],
        frame["a"],
        frame[["a"]],
        frame[["b", "a"]],
        frame.iloc[:, 1:],
        frame["a"].iloc[::2],
    )
    by_text = copyless.share(frame.set_index("t"))
    yield from (by_text, by_text.iloc[5:3000], by_text["a"], frame["t"].iloc[7:3000])
    table = copyless.share(pa.table(columns))
    yield from (table, table.slice(10, 3000), table["t"], table.slice(10, 3000)["t"], table.select(["a"]))
    polars = copyless.share(pl.DataFrame(columns))
    yield from (polars, polars.slice(10, 3000), polars["t"], polars.select("a"), polars["t"].slice(5, 3000))
    array = copyless.zeros((300, 30))
    yield from (array, array[:, 1], array[5:9], array.T, copyless.share(masked()), copyless.share(masked())[5:2000])


def test_is_shared_and_explain_agree_for_slices_and_columns():
    for part in frames():
        assert copyless.is_shared(part), part
        assert copyless.explain(part).copied_bytes == 0


def test_explain_advises_nothing_that_was_just_done_and_nothing_that_does_not_help():
    pd = pytest.importorskip("pandas")
    for private in (b"x" * 9000, "x" * 9000, set(range(5000)), bytearray(9000), np.zeros(2000), masked(), quantity(),
        Job(np.zeros(3000)),
                    np.full(2000, None), [np.zeros(3000), "x" * 9000],
                    pd.DataFrame({"a": np.zeros(3000), "o": [None, {}, ()] * 1000})):  # fmt: skip
        before, shared = copyless.explain(private), copyless.share(private)
        after = copyless.explain(shared)
        assert not any("copyless.share() moves it" in part.why for part in after)
        advised = any("copyless.share() moves it" in part.why for part in before)
        assert advised == (after.shared_bytes > before.shared_bytes)
        assert all(part.why for part in after if part.copied > 4096)
