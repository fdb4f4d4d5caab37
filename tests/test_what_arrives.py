"""What arrives is what was sent: type, dtype, metadata, schema, order and values, after `share` and through each channel."""

from __future__ import annotations

import pickle
from multiprocessing.reduction import ForkingPickler

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
