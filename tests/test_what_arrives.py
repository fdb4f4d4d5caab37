"""What arrives is what was sent: type, dtype, metadata, schema, order and values, after `share` and through each channel."""

from __future__ import annotations

import pickle
from multiprocessing.reduction import ForkingPickler

import numpy as np
import pytest

import copyless
from copyless import pickling

pl = pytest.importorskip("polars")

RANKS = pl.Enum(["low", "mid", "high"])


def by_pickler(obj):
    """As multiprocessing's own pipes and queues have it."""
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
    assert "as polars pickles it" in why
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
    pickling.register(Table, pickling.or_as_pickle(_fails))
    assert by_queue(Table()).values == by_pickler(Table()).values == list(range(1000))
    (part,) = copyless.explain(Table())
    assert "LookupError: no way" in part.why
    assert "share()" not in part.why


# ---- dtypes


def alike(a, b):
    """Whether two dtypes are the same in all that NumPy's equality passes over, too."""
    if a.names is not None:
        fields = [len(a.fields[n]) == len(b.fields[n]) and alike(a.fields[n][0], b.fields[n][0]) for n in a.names]
        if not all(fields) or a.isalignedstruct != b.isalignedstruct:
            return False
        if [a.fields[n][1:] for n in a.names] != [b.fields[n][1:] for n in b.names]:
            return False
    if a.subdtype is not None and not (alike(a.base, b.base) and a.shape == b.shape):
        return False
    return a == b and a.type is b.type and a.metadata == b.metadata and a.itemsize == b.itemsize


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
