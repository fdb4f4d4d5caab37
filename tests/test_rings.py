"""Ring buffers: frames whole and in order, loans that never change, which process waits for which, deaths, names, event
loops.
"""

import asyncio
import contextlib
import datetime
import gc
import math
import os
import pickle
import queue
import threading
import time
import zlib
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest

import copyless
from tests.conftest import python, start_python, until

SPEC = {"rgb": ((8, 6, 3), "u1"), "pose": (7, "f8"), "t": ((), "f8")}


def frame_of(i):
    return {"rgb": np.full((8, 6, 3), i % 256, "u1"), "pose": np.full(7, float(i)), "t": float(i)}


# ---- frames


def test_a_frame_comes_as_it_was_put():
    ring = copyless.RingBuffer(SPEC, slots=4)
    assert ring.put(frame_of(3)) == 1
    with ring.latest() as frame:
        assert (frame["rgb"] == 3).all()
        assert frame["pose"].tolist() == [3.0] * 7
        assert float(frame["t"]) == 3
        assert frame.seq == 1
        assert 0 <= time.monotonic() - frame.timestamp < 10
        assert sorted(frame) == sorted(SPEC)
        assert len(frame) == 3
        with pytest.raises(ValueError, match="read-only"):
            frame["pose"][0] = 5
        with pytest.raises(KeyError, match="rgb"):
            frame["depth"]
        with pytest.raises(TypeError, match="several arrays"):
            frame.array  # noqa: B018
        mine = frame.copy()
    mine["rgb"][:] = 9
    with pytest.raises(copyless.ClosedError, match="this frame was released"):
        frame["rgb"]
    assert (ring.latest()["rgb"] == 3).all()


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((5,), "f4"), ((), "i8"), ((3, 4), [("a", "i4"), ("b", "f8")]), ((2, 0), "u1"), ((7,), ">i2"), (4, "M8[ms]")],
)
def test_frames_of_one_array(shape, dtype):
    ring = copyless.RingBuffer((shape, dtype), slots=2)
    value = np.zeros(shape, dtype)
    ring.put(value)
    with ring.write() as frame:
        frame[...] = value
        assert frame.array.shape == value.shape
    with ring.latest() as frame:
        np.testing.assert_array_equal(np.asarray(frame), value)
        assert frame.array.dtype == value.dtype
        assert frame.copy().flags.writeable
    assert ring.spec == (value.shape, value.dtype)


def test_like_and_spec():
    ring = copyless.RingBuffer.like({"a": np.zeros((2, 3), "f4"), "b": 1.5}, slots=3)
    assert ring.spec == {"a": ((2, 3), np.dtype("f4")), "b": ((), np.dtype("f8"))}
    assert ring.slots == 3
    assert ring.nbytes > 3 * 64
    assert repr(copyless.RingBuffer.like(np.zeros(5), slots=2)) == "<RingBuffer 0 frames in 2 slots of 5 float64>"


@pytest.mark.parametrize("bad", [
    lambda: copyless.RingBuffer(((5,), "u1"), slots=1), lambda: copyless.RingBuffer(((5,), "u1"), slots=70_000),
    lambda: copyless.RingBuffer({}), lambda: copyless.RingBuffer({"a": 5}),
    lambda: copyless.RingBuffer({"a": ((-1,), "u1")}),
    lambda: copyless.RingBuffer(((5,), "no-such-type")), lambda: copyless.RingBuffer(((5,), "u1"), block_timeout=0),
    lambda: copyless.RingBuffer(((5,), "u1")).put(np.zeros(6)), lambda: copyless.RingBuffer(SPEC).put({"rgb": 1}),
    lambda: copyless.RingBuffer(SPEC).put(np.zeros(3)), lambda: copyless.RingBuffer(SPEC).last(0),
    lambda: copyless.RingBuffer(SPEC).subscribe("wait"), lambda: copyless.RingBuffer(SPEC).subscribe(since=-1),
    lambda: copyless.RingBuffer(SPEC, allow_block=False).subscribe("block"),
])  # fmt: skip
def test_bad_input_is_named(bad):
    with pytest.raises(ValueError):
        bad()


def test_bad_types_are_named():
    with pytest.raises(TypeError, match="Python objects"):
        copyless.RingBuffer(((3,), object))
    with pytest.raises(TypeError, match="must be str"):
        copyless.RingBuffer({1: ((3,), "u1")})
    with pytest.raises(TypeError, match="give spec="):
        copyless.RingBuffer()
    ring = copyless.RingBuffer(((3,), "i4"), slots=2)
    with pytest.raises(TypeError, match="Cannot cast"):
        ring.put(np.zeros(3))
    with pytest.raises(copyless.OutOfSharedMemory):
        copyless.RingBuffer(((1 << 40,), "u1"), slots=100)
    assert ring.stats().writing == 0
    ring.put(np.arange(3, dtype="i2"))
    with pytest.raises(TypeError, match="valid only in the process"):
        pickle.dumps(ring.latest())


# What is put is what is read, for every type of number; what would change is refused.
KEPT = [
    ("i8", True, 1), ("f8", True, 1.0), ("u1", 255, 255), ("i1", -128, -128), ("f4", 7, 7.0), ("c8", 1.5, 1.5),
    ("?", True, True),
    ("u1", np.int64(3), 3), ("i8", np.uint8(3), 3), ("f4", np.float64(0.5), 0.5), ("f8", Fraction(1, 2), 0.5),
    ("f8", Decimal("0.25"), 0.25),
    ("f4", math.inf, math.inf), ("U3", "abc", "abc"), ("S3", b"ab", b"ab"),
    ("M8[ms]", np.datetime64("2020-01-01"), np.datetime64("2020-01-01")),
    ("M8[s]", datetime.datetime(2020, 1, 1), np.datetime64("2020-01-01")),
    ("m8[s]", np.timedelta64(2000, "ms"), np.timedelta64(2, "s")),
    ("?", np.True_, True), ("i8", np.array(3), 3), ("f8", np.float32(0.5), 0.5), ("u8", 2**64 - 1, 2**64 - 1),
    ("f8", np.longdouble(0.5), 0.5),
]  # fmt: skip
LOST = [
    ("i8", 1.9, TypeError), ("i8", 2.0, TypeError), ("i8", np.float32(1.9), TypeError),
    ("i8", np.float64(2), TypeError), ("?", 0.2, TypeError),
    ("?", 1, TypeError), ("?", np.int8(1), TypeError), ("f8", 1j, TypeError), ("f8", np.complex64(1), TypeError),
    ("i8", Fraction(1, 2), TypeError),
    ("i8", Decimal("1.5"), TypeError), ("i8", Fraction(2), TypeError), ("i8", "1", TypeError), ("f8", "1.5", TypeError),
    ("f8", b"1", TypeError),
    ("U3", 5, TypeError), ("U3", "abcd", TypeError), ("S2", b"abc", TypeError), ("U3", b"a", TypeError),
    ("i8", math.nan, TypeError),
    ("i8", np.nan, TypeError), ("u1", 300, OverflowError), ("u1", -1, OverflowError),
    ("u1", np.int64(300), OverflowError),
    ("i8", 2**63, OverflowError), ("i8", np.uint64(2**63), OverflowError), ("f4", 1e300, OverflowError),
    ("f2", np.float64(1e6), OverflowError),
    ("f8", 10**400, OverflowError), ("c8", complex(0, 1e300), OverflowError),
    ("M8[s]", np.datetime64("2020-01-01T00:00:00.5"), TypeError),
    ("M8[s]", 5, TypeError), ("M8[s]", np.timedelta64(5, "s"), TypeError), ("i8", np.datetime64("2020"), TypeError),
    ("f8", None, TypeError),
    ("i8", np.longdouble(1.5), TypeError), ("i8", np.array(1.9), TypeError), ("i8", object(), TypeError),
    ("f8", [1j], TypeError),
]  # fmt: skip


@pytest.mark.parametrize(("dtype", "value", "right"), KEPT, ids=str)
def test_a_number_comes_out_of_a_ring_as_it_went_in(dtype, value, right):
    ring = copyless.RingBuffer({"a": ((), dtype)}, slots=2)
    ring.put({"a": value})
    with ring.write() as draft:
        draft["a"] = value
    for frame in ring.last(2):
        assert frame["a"][()] == right
    alone = copyless.RingBuffer(((), dtype), slots=2)
    alone.put(value)
    assert alone.latest()[()] == right


@pytest.mark.parametrize(("dtype", "value", "error"), LOST, ids=str)
def test_a_number_that_would_lose_its_kind_is_refused_and_publishes_nothing(dtype, value, error):
    ring = copyless.RingBuffer({"a": (np.shape(value) if type(value) is list else (), dtype)}, slots=2)
    with pytest.raises(error):
        ring.put({"a": value})
    with pytest.raises(error), ring.write() as draft:
        draft["a"] = value
    assert ring.stats().published == ring.stats().writing == 0


@pytest.mark.parametrize(
    ("dtype", "value", "error"),
    [
        ("i4", np.zeros(2), TypeError), ("u1", np.array([1, 300]), TypeError),
        ("u1", np.array([1, 300], "u2"), OverflowError),
        ("i4", np.array([1, 2**40]), OverflowError), ("f4", np.array([1, 1e300]), OverflowError),
        ("M8[s]", np.zeros(2, "M8[ms]"), TypeError),
        ("U2", np.array(["ab", "abc"]), TypeError), ("U5", np.array([1, 2]), TypeError),
        ("f8", np.array(["1", "2"]), TypeError),
        ("?", np.array([0, 1]), TypeError), ("i8", [1, 2.5], TypeError), ("u1", [1, 300], OverflowError),
        ("f8", np.ones(2, complex), TypeError),
    ],
    ids=str,
)  # fmt: skip
def test_an_array_that_would_lose_its_kind_or_values_is_refused(dtype, value, error):
    ring = copyless.RingBuffer((2, dtype), slots=2)
    with pytest.raises(error):
        ring.put(value)
    assert ring.stats().published == ring.stats().writing == 0


def test_arrays_that_keep_their_kind_are_taken():
    for dtype, value in (("i4", np.array([1, -2])), ("f4", np.array([0.5, 1])), ("u1", [1, 255]),
        ("M8[ms]", np.zeros(2, "M8[D]")),
                         ("f8", np.array([1, 2])), ("U3", np.array(["a", "b"])), ("c8", np.ones(2)),
                         ("u1", np.array([1, 2], "u2"))):  # fmt: skip
        ring = copyless.RingBuffer((2, dtype), slots=2)
        ring.put(value)
        assert (np.asarray(ring.latest()) == value).all()


# ---- writing


def test_an_exception_publishes_nothing():
    ring = copyless.RingBuffer(SPEC, slots=2)
    for _ in range(5):
        with pytest.raises(ZeroDivisionError), ring.write() as frame:
            frame["t"] = 5
            1 / 0  # noqa: B018
    assert ring.stats().published == 0
    with pytest.raises(queue.Empty):
        ring.latest(timeout=0)
    with ring.write() as frame:
        frame["t"] = 1
    assert frame.seq == 1


def test_in_place_unless_a_writable_view_escapes():
    ring = copyless.RingBuffer(((1000,), "i4"), slots=4)
    with ring.write() as frame:
        frame[...] = 5
        address = frame.array.ctypes.data
    with ring.latest() as seen:
        assert seen.array.ctypes.data == address
    with ring.write() as frame:
        kept = frame[10:20]
        kept[:] = 1
        address = frame.array.ctypes.data
    with ring.latest() as seen:
        assert seen.seq == 2
        assert seen.array.ctypes.data != address
        kept[:] = 99
        assert (seen[10:20] == 1).all()
    assert ring.stats().writing == 1
    del kept
    assert ring.stats().writing == 0


def test_several_may_be_written_at_once_and_come_in_the_order_of_publishing():
    ring = copyless.RingBuffer(((), "i8"), slots=4)
    with ring.write() as first:
        first[...] = 1
        with ring.write() as second:
            second[...] = 2
    assert [int(f.array) for f in ring.last(2)] == [2, 1]
    assert [f.seq for f in ring.last(4)] == [1, 2]


# ---- loans


def test_a_loaned_frame_never_changes():
    ring = copyless.RingBuffer(((10_000,), "i8"), slots=3)
    ring.put(np.full(10_000, 1))
    held = ring.latest()
    array = held.array
    held.release()
    part = array[5:10]
    del array, held
    for i in range(2, 20):
        ring.put(np.full(10_000, i))
        assert (part == 1).all()
    assert ring.stats().on_loan == 1
    del part
    assert ring.stats().on_loan == 0
    with ring.last(3) as frames:
        assert [int(f[0]) for f in frames] == [17, 18, 19] or [int(f[0]) for f in frames] == [18, 19]


def test_the_collector_of_cycles_gives_slots_back():
    """Each frame is referenced by an object that refers to itself, as a frame in a traceback is: the collector frees
    all of it.
    """
    ring = copyless.RingBuffer.like(np.arange(4), slots=3)
    ring.put(np.arange(4))
    for _ in range(3):
        for get in (ring.latest, lambda: ring.write().__enter__()):
            loop = [get()]
            loop.append(loop)
            del loop
        gc.collect()
    stats = ring.stats()
    assert (stats.on_loan, stats.writing) == (0, 0)
    assert ring.put(np.arange(4)) == 2


def test_a_claim_is_published_once():
    """Its slot may belong to another claim of the same process by then."""
    ring = copyless.RingBuffer.like(np.arange(4), slots=2)
    first = ring._claim(0)
    assert first.publish()[0] == 1
    others = [ring._claim(0), ring._claim(0)]
    assert first.slot in [each.slot for each in others]
    with pytest.raises(copyless.ClosedError, match="already"):
        first.publish()
    assert ring.stats().writing == 2
    for each in others:
        each.discard()


def test_no_free_slot_is_full_and_comes_free_with_a_loan():
    ring = copyless.RingBuffer(((), "i8"), slots=2)
    ring.put(1)
    ring.put(2)
    frames = ring.last(2)
    for attempt in (
        lambda: ring.put(3, timeout=0),
        lambda: ring.put(3, timeout=0.05),
        lambda: ring.write(0.01).__enter__(),
    ):
        with pytest.raises(queue.Full, match="on loan"):
            attempt()
    threading.Timer(0.1, frames[0].release).start()
    assert ring.put(3, timeout=20) == 3
    assert ring.stats().waits >= 3
    assert [f.seq for f in ring.last(2)] == [2, 3]


def test_what_is_sent_on_of_a_frame_goes_by_value():
    ring, q = copyless.RingBuffer(((5000,), "i8"), slots=2), copyless.Queue()
    ring.put(np.full(5000, 1))
    with ring.latest() as frame:
        q.put(frame.array)
        q.put([frame.array[:10]])
        assert not copyless.is_shared(frame.array)
    for i in range(5):
        ring.put(np.full(5000, i))
    assert (q.get() == 1).all()
    assert (q.get()[0] == 1).all()


# ---- readers


def test_a_slow_reader_that_drops_is_told_how_many_it_missed():
    ring = copyless.RingBuffer(((), "i8"), slots=4)
    ring.put(0)
    with ring.subscribe() as reader:
        with pytest.raises(queue.Empty):
            reader.get(timeout=0)
        for i in range(1, 11):
            ring.put(i)
        assert reader.lag == 10
        with reader.get() as frame:
            assert (frame.missed, int(frame.array), frame.seq) == (6, 7, 8)
        assert [int(reader.get().array) for _ in range(3)] == [8, 9, 10]
        assert reader.missed == 6
        assert ring.stats().readers[0][1:] == (4, 6, 0, False)
        assert "4 taken, 6 missed" in repr(reader)
    with pytest.raises(copyless.ClosedError):
        reader.get()
    assert [f.seq for f in [ring.subscribe(since=0).get(), ring.subscribe(since=9).get()]] == [8, 10]


def test_a_reader_that_blocks_stops_the_writer_and_misses_nothing():
    ring = copyless.RingBuffer(((), "i8"), slots=3)
    reader = ring.subscribe("block")
    got = []

    def read():
        for frame in reader:
            with frame:
                got.append(int(frame.array))
            time.sleep(0.002)

    thread = threading.Thread(target=read)
    thread.start()
    for i in range(100):
        ring.put(i, timeout=20)
    ring.shutdown()
    thread.join()
    assert got == list(range(100))
    assert ring.stats().waits > 0


def test_a_stopped_reader_cannot_freeze_the_writer_for_ever():
    ring = copyless.RingBuffer(((), "i8"), slots=3, block_timeout=0.1)
    reader = ring.subscribe("block")
    for i in range(3):
        ring.put(i)
    with pytest.raises(queue.Full):
        ring.put(3, timeout=0.02)
    ring.put(3, timeout=20)
    assert reader.policy == "drop"
    assert "blocked for too long" in repr(reader)
    with reader.get() as frame:
        assert (frame.missed, int(frame.array)) == (1, 1)
    blocking = copyless.RingBuffer(((), "i8"), slots=2)
    waits = blocking.subscribe("block")
    blocking.put(1)
    blocking.put(2)
    threading.Timer(0.1, waits.close).start()
    blocking.put(3, timeout=20)


def test_latest_waits_for_a_newer_one():
    ring = copyless.RingBuffer(((), "i8"), slots=3)
    threading.Timer(0.1, lambda: ring.put(5)).start()
    with ring.latest(timeout=20) as frame:
        seq = frame.seq
    with pytest.raises(queue.Empty):
        ring.latest(timeout=0.02, after=seq)
    threading.Timer(0.1, lambda: ring.put(6)).start()
    assert int(ring.latest(20, after=seq).array) == 6


def test_shutdown_and_close():
    ring = copyless.RingBuffer(((), "i8"), slots=3)
    reader = ring.subscribe()
    ring.put(1)
    other = pickle.loads(pickle.dumps(ring))
    ring.close()
    for use in (lambda: ring.put(2), ring.latest, lambda: ring.last(1), ring.subscribe, reader.get):
        with pytest.raises(copyless.ClosedError, match="closed"):
            use()
    reader = other.subscribe(since=0)
    woken = []
    thread = threading.Thread(target=lambda: woken.extend(f.seq for f in reader))
    thread.start()
    other.put(2)
    until(lambda: woken == [1, 2])
    other.shutdown()
    thread.join(20)
    with pytest.raises(copyless.ClosedError, match="shut down"):
        other.put(3)
    assert "shut down" in repr(other)
    assert other.latest().seq == 2


# ---- processes


def _produce(ring, me, n, pause):
    rng = np.random.default_rng(me)
    for i in range(n):
        with ring.write() as frame:
            frame["data"][...] = rng.integers(0, 255, frame["data"].shape, "u1")
            frame["who"] = [me, i]
            frame["sum"] = zlib.crc32(frame["data"])
        time.sleep(pause)


def _consume(ring, policy, results, ready):
    seen, bad, missed = [0, 0], 0, 0
    with ring.subscribe(policy) as frames:
        ready.release()
        for frame in frames:
            with frame:
                bad += zlib.crc32(frame["data"]) != int(frame["sum"])
                seen[int(frame["who"][0])] += 1
                missed += frame.missed
    results.put((policy, seen, bad, missed))


def test_two_producers_three_consumers_every_frame_checksummed(context):
    ring = copyless.RingBuffer({"data": ((50_000,), "u1"), "who": (2, "i4"), "sum": ((), "u4")}, slots=10)
    results, ready = copyless.Queue(), copyless.Semaphore(0)
    consumers = [
        context.Process(target=_consume, args=(ring, policy, results, ready)) for policy in ("block", "drop", "block")
    ]
    producers = [context.Process(target=_produce, args=(ring, me, 100, 0.0003)) for me in range(2)]
    for process in consumers:
        process.start()
    for _ in consumers:
        assert ready.acquire(timeout=30)
    for process in producers:
        process.start()
    for process in producers:
        process.join()
    ring.shutdown()
    for _ in consumers:
        policy, seen, bad, missed = results.get(timeout=30)
        assert bad == 0
        assert sum(seen) + missed == 200
        if policy == "block":
            assert seen == [100, 100]
    for process in consumers:
        process.join()


def _hold(ring, ready, how):
    if how == "loan":
        frames = ring.last(3)
    elif how == "write":
        write = ring.write()
        write.__enter__()[...] = 999
    elif how == "block":
        frames = ring.subscribe("block")
    ready.release()
    time.sleep(100)
    del frames


@pytest.mark.parametrize("how", ["loan", "write", "block"])
def test_the_death_of_a_member_costs_nothing(context, how):
    ring, ready = copyless.RingBuffer(((), "i8"), slots=4), copyless.Semaphore(0)
    for i in range(4):
        ring.put(i)
    process = context.Process(target=_hold, args=(ring, ready, how))
    process.start()
    assert ready.acquire(timeout=30)
    threading.Timer(0.1, process.kill).start()
    start = time.monotonic()
    for i in range(20):
        ring.put(100 + i, timeout=30)
    assert time.monotonic() - start < 20
    process.join()
    stats = ring.stats()
    assert (stats.on_loan, stats.writing, stats.readers) == (0, 0, [])
    for i in range(4):
        ring.put(200 + i)
    assert [int(f.array) for f in ring.last(4)] == [200, 201, 202, 203]


def test_a_forked_child_has_loans_of_its_own():
    ring = copyless.RingBuffer(((), "i8"), slots=4)
    ring.put(1)
    frame, reader = ring.latest(), ring.subscribe()
    child = os.fork()
    if child == 0:
        code = 0
        try:
            reader.get(0)
            code = 1
        except copyless.WrongProcessError:
            pass
        frame.release()  # not ours: the parent's frame stays
        ring.put(2)
        with ring.latest() as newest:
            code |= int(newest.array) != 2
        os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert ring.stats().on_loan == 1
    assert int(frame.array) == 1
    assert reader.get(0).seq == 2


def test_unrelated_programs_meet_by_name():
    ring = copyless.RingBuffer(SPEC, slots=4, name="t-ring")
    program = start_python("""
        import copyless
        ring = copyless.RingBuffer(name='t-ring')
        for frame in ring.subscribe(since=0):
            with frame: print(frame.seq, int(frame['rgb'][0, 0, 0]))
    """)
    for i in range(3):
        ring.put(frame_of(i + 5))
        time.sleep(0.01)
    assert program.stdout.readline() == "1 5\n"
    assert program.stdout.readline() == "2 6\n"
    with pytest.raises(FileExistsError, match="other frames"):
        copyless.RingBuffer(((3,), "u1"), name="t-ring")
    others = [copyless.RingBuffer(SPEC, name="t-ring"), copyless.open("t-ring"), pickle.loads(pickle.dumps(ring)),
              copyless.attach(copyless.handle(ring))]  # fmt: skip
    ring.shutdown()
    assert program.stdout.readline() == "3 7\n"
    program.communicate(timeout=30)
    for other in (*others, copyless.open("t-ring")):
        assert other.latest().seq == 3
        assert other.spec == ring.spec
    with pytest.raises(FileNotFoundError):
        copyless.RingBuffer(name="t-no-such-ring")


def test_waiting_costs_no_processor_time():
    ring = copyless.RingBuffer(((), "i8"), slots=2)
    before = time.process_time()
    with pytest.raises(queue.Empty):
        ring.latest(timeout=1)
    assert time.process_time() - before < 0.2


def test_control_c_ends_a_wait():
    import signal

    program = start_python("import copyless; r = copyless.RingBuffer(((), 'i8')); print('up'); r.latest()")
    program.stdout.readline()
    time.sleep(0.05)
    program.send_signal(signal.SIGINT)
    assert "KeyboardInterrupt" in program.communicate(timeout=30)[1]


# ---- event loops


def test_tasks_write_and_read():
    async def main():
        ring = copyless.RingBuffer(((), "i8"), slots=4)

        async def write():
            for i in range(50):
                if i % 2:
                    await ring.aput(i)
                else:
                    async with ring.write() as frame:
                        frame[...] = i
            ring.shutdown()

        async def read(reader):
            got = []
            async for frame in reader:
                with frame:
                    got.append(int(frame.array))
            return got

        readers = [ring.subscribe("block") for _ in range(20)]
        latest = asyncio.ensure_future(ring.alatest())
        tasks = [asyncio.ensure_future(read(reader)) for reader in readers]
        await asyncio.sleep(0.05)
        assert threading.active_count() < 10
        await write()
        for got in await asyncio.wait_for(asyncio.gather(*tasks), 60):
            assert got == list(range(50))
        (await latest).release()
        with pytest.raises(queue.Empty):
            await copyless.RingBuffer(((), "i8"), slots=2).alatest(0.02)

    asyncio.run(main())


def test_the_ring_of_a_killed_family_is_taken_back():
    python(
        """
        import copyless, os, signal
        ring = copyless.RingBuffer(((1000, 1000), "u1"), slots=4)
        frame = ring.write().__enter__()
        os.kill(os.getpid(), signal.SIGKILL)
    """,
        check=False,
    )
    copyless.reap()


# ---- members


def test_members_are_set_at_creation():
    assert copyless.RingBuffer(((3,), "u1")).members == 256
    assert copyless.RingBuffer(((3,), "u1"), members=1).members == 64
    assert copyless.RingBuffer(((3,), "u1"), members=4096).members == 4096
    for wrong in 0, -1, 4097:
        with pytest.raises(ValueError, match="members must be 1 to 4,096"):
            copyless.RingBuffer(((3,), "u1"), members=wrong)


def test_signals_that_raise_at_any_instant_leave_no_subscription():
    done = python("""
        import copyless, gc, random, signal
        class Broken(Exception): pass
        def break_it(*_): raise Broken
        signal.signal(signal.SIGALRM, break_it)
        random.seed(1)
        ring = copyless.RingBuffer(((4,), "u1"), slots=4)
        with ring.subscribe("block"): pass
        broken = 0
        for _ in range(4000):
            try:
                try:
                    signal.setitimer(signal.ITIMER_REAL, 1e-6 + random.random() * 2e-5)
                    for _ in range(10):
                        with ring.subscribe("block"): pass
                finally:
                    signal.setitimer(signal.ITIMER_REAL, 0)
            except Broken:
                broken += 1
        gc.collect()
        print(broken > 0, ring.stats().readers)
    """)
    assert done.stdout == "True []\n"


def test_one_member_or_subscription_too_many_is_told_and_a_place_comes_free():
    name = f"t-members-{os.getpid()}"
    ring = copyless.RingBuffer(((3,), "u1"), name=name, members=64)
    ring.put(np.zeros(3, "u1"))
    others = [copyless.RingBuffer(name=name) for _ in range(64)]
    for other in others[:63]:
        other.latest(timeout=0).release()
    for use in (
        others[63].subscribe,
        lambda: others[63].write(timeout=0).__enter__(),
        lambda: others[63].latest(timeout=0),
    ):
        with pytest.raises(copyless.LimitExceededError, match="64 processes already use this ring") as error:
            use()
        assert error.value.limit == 64
        assert "members=" in error.value.remedy
    del other, others[0]
    others[62].latest(timeout=0).release()
    readers = [ring.subscribe() for _ in range(64)]
    with pytest.raises(copyless.LimitExceededError, match="64 readers are already subscribed"):
        ring.subscribe()
    readers.pop().close()
    with ring.subscribe(since=0) as reader:
        assert reader.get(timeout=0).seq == 1


def test_a_ring_of_the_most_members_works():
    ring = copyless.RingBuffer(((3,), "u1"), slots=3, members=4096)
    with ring.subscribe("block") as frames:
        for i in range(10):
            ring.put(np.full(3, i, "u1"), timeout=0)
            with frames.get(timeout=0) as frame:
                assert frame.copy().tolist() == [i] * 3
    assert ring.stats().published == 10


@pytest.mark.parametrize("call", ["_latest(0, 0)", "_last(3)", "_claim(0)", "_subscribe(False, None)"])
def test_where_there_is_no_memory_for_what_is_lent_it_is_given_back(call):
    capi = pytest.importorskip("_testcapi")
    ring = copyless.RingBuffer.like(np.zeros(4), slots=8)
    for _ in range(4):
        ring.put(np.zeros(4))
    run = compile(f"ring.{call}", "call", "eval")
    eval(run, {"ring": ring})
    names = {"ring": ring}
    gc.collect()
    gc.disable()
    try:
        for refused in range(1, 12):
            with contextlib.suppress(MemoryError):
                capi.set_nomemory(refused, refused + 1)
                try:
                    eval(run, names)
                finally:
                    capi.remove_mem_hooks()
    finally:
        gc.enable()
    gc.collect()
    _, held, writing, on_loan, *_, readers = ring._statistics()
    assert (held, writing, on_loan, len(readers)) == (4, 0, 0, 0)
