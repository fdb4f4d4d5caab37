"""The checks that every rank makes, on any transport: test_comm.py runs this under copyless run and mpiexec."""

import sys
import threading
import time

import numpy as np

import copyless
from copyless import comm

world = comm.world()
rank, size = world.rank, world.size
right, left = (rank + 1) % size, (rank - 1) % size


class Slow:
    """An object with many buffers, and one that counts how often it is made."""

    def __init__(self, n):
        self.arrays = [np.full(3000, i, "i4") for i in range(n)]

    def __eq__(self, other):
        return all((a == b).all() for a, b in zip(self.arrays, other.arrays, strict=True))


OBJECTS = [
    None, 0, -(2**70), "text", b"", {"a": [1, (2, 3)], "b": None}, np.zeros(0), np.arange(10), np.arange(100_000.0),
    np.ones((300, 400), order="F")[::2], np.array(5), {"big": np.arange(300_000), "small": np.arange(3)}, Slow(300),
    bytearray(200_000), np.array(["a", "bb"]), np.arange(10.0).astype(">f8"), [np.zeros(20_000, "u1")] * 3,
]  # fmt: skip


def same(a, b):
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and a.dtype == b.dtype and a.shape == b.shape and (a == b).all()
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


def every_kind_of_object_by_every_send():
    for send in ("send", "isend", "issend", "ssend"):
        for i, obj in enumerate(OBJECTS):
            request = world.irecv(None, left, i)
            sent = getattr(world, send)(obj, right, i)
            assert same(request.wait(), obj), (send, i)
            if sent is not None:
                sent.wait()
                assert not sent


def values_are_snapshots_and_ones_own():
    array = np.zeros(100_000)
    request = world.irecv(None, left, 0)
    world.isend(array, right, 0).wait()
    array[:] = 9
    got = request.wait()
    assert (got == 0).all()
    got[:] = rank  # writable
    world.barrier()
    assert (got == rank).all()
    assert (array == 9).all()
    for obj in (world.bcast(np.zeros(100_000)), world.allgather(np.zeros(100_000))[0]):
        obj[:] = rank
        world.barrier()
        assert (obj == rank).all()


def messages_do_not_overtake():
    requests = [world.isend((i, np.full(i * 100, i)), right, i % 3) for i in range(60)]
    by_tag = {tag: [i for i in range(60) if i % 3 == tag] for tag in range(3)}
    for tag in (2, 0, 1):
        for i in by_tag[tag]:
            number, array = world.recv(None, left, tag)
            assert number == i
            assert len(array) == i * 100
    type(requests[0]).waitall(requests)


def posted_receives_come_first():
    first = world.irecv(None, comm.ANY_SOURCE, comm.ANY_TAG)
    second = world.irecv(None, left, 7)
    third = world.irecv(None, left, comm.ANY_TAG)
    for i in range(4):
        world.send(i, right, 7) if size > 1 else world.isend(i, right, 7)
    assert world.recv(None, left, 7) == 3
    assert (third.wait(), first.wait(), second.wait()) == (2, 0, 1)


def wildcards_and_status():
    status = comm.Status()
    request = world.irecv(None, left, 11)
    world.isend("x" * 100, right, 11).wait() if size > 1 else world.isend("x" * 100, right, 11)
    assert request.wait(status) == "x" * 100
    assert (status.Get_source(), status.Get_tag()) == (left, 11)
    assert status.Get_count() > 100
    sent = world.isend([rank], right, 12)
    status = comm.Status()
    message = world.mprobe(comm.ANY_SOURCE, comm.ANY_TAG, status)
    assert (status.Get_source(), status.Get_tag()) == (left, 12)
    assert message
    assert world.improbe(left, 12) is None
    assert message.irecv().wait() == [left]
    assert not message
    sent.wait()
    sent = world.isend(np.arange(400_000), right, 13)
    message = comm.Message.probe(world, left, 13)
    assert (message.recv() == np.arange(400_000)).all()
    sent.wait()
    assert comm.Message.iprobe(world, left, 13) is None
    assert world.iprobe(left, 14) is False


def nobody():
    world.send(1, comm.PROC_NULL)
    assert world.isend(1, comm.PROC_NULL).wait() is None
    assert world.recv(None, comm.PROC_NULL) is None
    assert world.irecv(None, comm.PROC_NULL).wait() is None
    assert world.sendrecv(1, comm.PROC_NULL, 0, None, comm.PROC_NULL) is None
    assert world.mprobe(comm.PROC_NULL).recv() is None


def requests():
    Request = comm.Request
    assert not Request()
    assert Request() == Request()
    assert Request().wait() is None
    assert Request().test() == (True, None)
    waiting = [world.irecv(None, left, 20 + i) for i in range(3)]
    assert all(waiting)
    assert Request.testall(waiting) == (False, None)
    assert not waiting[0].get_status()
    assert waiting[1].test() == (False, None)
    world.barrier()
    sent = [world.isend(i, right, 20 + i) for i in range(3)]
    statuses = []
    assert Request.waitall(waiting, statuses) == [0, 1, 2]
    assert [status.Get_tag() for status in statuses] == [20, 21, 22]
    Request.waitall(sent)
    withdrawn = world.irecv(None, left, 30)
    withdrawn.cancel()
    assert withdrawn.wait() is None
    freed = world.irecv(None, left, 30)
    freed.free()
    world.barrier()
    sent = world.isend("for a later one", right, 30)
    assert world.recv(None, left, 30) == "for a later one"
    sent.wait()


def the_first_of_many():
    q = copyless.Queue()
    expected = [world.irecv(source=left, tag=50 + i) for i in range(2)]
    assert copyless.wait([q, *expected], 0) == []
    world.barrier()
    world.send("second", right, 51)
    assert copyless.wait([q, *expected], 60) == expected[1:]
    assert expected[1].wait() == "second"
    q.put("here")
    assert copyless.wait([q, expected[0]], 60) == [q]
    q.get()
    world.barrier()
    world.send("first", right, 50)
    assert copyless.wait([expected[0], q], 60) == [expected[0]]
    assert expected[0].wait() == "first"
    sent = world.isend("message", right, 52)
    message = world.mprobe(left, 52)
    assert copyless.wait([q, message], 60) == [message]
    assert message.recv() == "message"
    assert copyless.wait([sent], 60) == [sent]
    sent.wait()


def a_synchronous_send_waits_for_its_receive():
    if size == 1:
        return
    if rank == 0:
        request = world.issend("s", 1, 40)
        assert request.test()[0] is False
        world.send("go", 1, 41)
        request.wait()
    elif rank == 1:
        assert world.recv(None, 0, 41) == "go"
        assert world.recv(None, 0, 40) == "s"


def collectives():
    array = np.arange(50_000.0)
    for root in range(size):
        got = world.bcast({"a": array * root, "root": root} if rank == root else None, root)
        assert got["root"] == root
        assert (got["a"] == array * root).all()
        got = world.gather((rank, array + rank), root)
        if rank == root:
            assert all(i == r and (a == array + r).all() for r, (i, a) in enumerate(got))
        else:
            assert got is None
        parts = [(i, array * i) for i in range(size)] if rank == root else None
        number, part = world.scatter(parts, root)
        assert number == rank
        assert (part == array * rank).all()
        part[:] = 0
        assert world.reduce([rank], root=root) == (list(range(size)) if rank == root else None)
        total = world.reduce(array, root=root)
        assert rank != root or (total == array * size).all()
    got = world.bcast(array if rank == 0 else None, readonly=True)
    assert (got == array).all()
    assert rank == 0 or not got.flags.writeable
    everyone = world.allgather(array + rank)
    assert all((a == array + r).all() for r, a in enumerate(everyone))
    crossed = world.alltoall([(rank, i, array * i) for i in range(size)])
    assert all((a, b) == (r, rank) and (c == array * rank).all() for r, (a, b, c) in enumerate(crossed))
    assert world.alltoall([None] * size) == [None] * size
    assert world.allreduce("ab"[rank % 2]) == "".join("ab"[r % 2] for r in range(size))
    assert world.allreduce(rank, comm.MAX) == size - 1
    assert (world.allreduce(array * rank, comm.MAX) == array * (size - 1)).all()
    assert world.scan([rank]) == list(range(rank + 1))
    assert world.exscan([rank]) == (list(range(rank)) or None)
    try:
        world.alltoall([1] * (size + 1))
        raise AssertionError("a list too long")
    except ValueError as error:
        message = str(error)
    assert "expecting" in message


def shared_arrays_in_collectives():
    mine = copyless.full(10_000, rank, "i4")
    for r, got in enumerate(world.allgather(mine)):
        assert (got == r).all()
    got = world.bcast([mine, "x"] if rank == 0 else None)
    assert (got[0] == 0).all()
    got = world.gather(mine[::2], size - 1)
    assert rank != size - 1 or all((a == r).all() for r, a in enumerate(got))
    got = world.scatter([copyless.full(1000, i) for i in range(size)] if rank == 0 else None)
    assert (got == rank).all()
    assert (world.allreduce(mine) == sum(range(size))).all()
    world.barrier()


def communicators():
    half = world.Split(rank % 2, -rank)
    mine = list(range(rank % 2, size, 2))[::-1]
    assert half.allgather(rank) == mine
    assert half.rank == mine.index(rank)
    other = world.Dup()
    request = other.irecv(None, left, 5)
    sent = [world.isend("world", right, 5), other.isend("other", right, 5)]
    assert world.recv(None, left, 5) == "world"
    assert request.wait() == "other"
    type(sent[0]).waitall(sent)
    again = type(world)(world)  # another wrapper of the same one: receives of the first come before those of the second
    request = world.irecv(None, left, 6)
    sent = [again.isend(i, right, 6) for i in range(2)]
    assert (again.recv(None, left, 6), request.wait()) == (1, 0)
    type(sent[0]).waitall(sent)
    assert not world.Split(comm.UNDEFINED if rank == 0 else 1, 0) or rank != 0  # None, or MPI's null
    if size > 1 and rank == 0:
        type(world)(world)  # on a subset
    other.Free()


def between_groups():
    if size < 2:
        return
    first = rank < (size + 1) // 2
    local = world.Split(0 if first else 1, rank)
    inter = local.Create_intercomm(0, world, (size + 1) // 2 if first else 0, 50)
    inter = comm.Intercomm(inter)
    here, there = local.size, size - local.size
    assert inter.Get_size() == here
    assert inter.Get_remote_size() == there
    me = inter.Get_rank()
    array = np.arange(30_000)
    if me < min(here, there):
        request = inter.irecv(None, me, 1)
        inter.send((first, array), me, 1)
        side, got = request.wait()
        assert side is not first
        assert (got == array).all()
    crossed = inter.allgather((first, me))
    assert crossed == [(not first, i) for i in range(there)]
    assert inter.alltoall([(me, i) for i in range(there)]) == [(i, me) for i in range(there)]
    root = comm.ROOT if me == 0 else comm.PROC_NULL
    got = inter.bcast(array if first and me == 0 else None, root if first else 0)
    assert first or (got == array).all()
    got = inter.gather(me, root if first else 0)
    assert got == (list(range(there)) if first and me == 0 else None)
    got = inter.scatter(list(range(there)) if first and me == 0 else None, root if first else 0)
    assert got == (None if first else me)
    got = inter.reduce([me], root=root if first else 0)
    assert got == (list(range(there)) if first and me == 0 else None)
    assert inter.allreduce([me]) == list(range(there))
    inter.barrier()
    merged = type(world)(inter.Merge(not first))
    assert merged.allgather(rank) == list(range(size))


def many_threads():
    if hasattr(sys.modules.get("mpi4py"), "MPI"):
        from mpi4py import MPI

        if MPI.Query_thread() < MPI.THREAD_MULTIPLE:
            return
    errors = []

    def talk(tag):
        try:
            for i in range(20):
                sent = world.isend((tag, i, np.full(2000, i)), right, 100 + tag)
                got = world.recv(None, left, 100 + tag)
                assert got[:2] == (tag, i)
                sent.wait()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=talk, args=(tag,)) for tag in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


CHECKS = [
    every_kind_of_object_by_every_send, values_are_snapshots_and_ones_own, messages_do_not_overtake,
    posted_receives_come_first,
    wildcards_and_status, nobody, requests, the_first_of_many, a_synchronous_send_waits_for_its_receive, collectives,
    shared_arrays_in_collectives,
    communicators, between_groups, many_threads,
]  # fmt: skip

if __name__ == "__main__":
    for check in CHECKS:
        if len(sys.argv) > 1 and sys.argv[1] != check.__name__:
            continue
        began = time.perf_counter()
        check()
        world.barrier()
        if rank == 0:
            print(f"{check.__name__} {time.perf_counter() - began:.3f}", flush=True)
    if rank == 0:
        print(f"all of {len(CHECKS)} hold on {size}", flush=True)
