"""Large objects to another node, which go as a head and buffers: run on two ranks with COPYLESS_NODES=2."""

import faulthandler
import gc
import os
import random
import resource
import signal
import sys
import threading

import numpy as np
from mpi4py import MPI

from copyless.comm import _mpi_communicator, _mpi_staging, _mpi_waiting, _parts, mpi

faulthandler.dump_traceback_later(120, exit=True)
world = mpi.Intracomm(MPI.COMM_WORLD)
rank, other = world.rank, 1 - world.rank
ANY_TAG, FIRST = mpi.ANY_TAG, _parts.FIRST_TAG


def array(number, n=1 << 18):
    return np.arange(n, dtype="u1") + np.uint8(number % 256)


def is_array(got, number, n=1 << 18):
    return type(got) is np.ndarray and got.size == n and bool((got == array(number, n)).all())


def arrays(number, n, many):
    return [array(number, n) for _ in range(many)]


def raised(kind, call, *args):
    try:
        call(*args)
    except kind as error:
        return error
    raise AssertionError(f"{call} raised nothing")


def in_any_order():
    """Each buffer comes to its own head, whichever head is received first."""
    sent = [world.isend([tag, array(tag), array(tag + 1)], other, tag) for tag in range(20)]
    for tag in random.Random(rank).sample(range(20), 20):
        got = world.recv(None, other, tag)
        assert got[0] == tag
        assert is_array(got[1], tag)
        assert is_array(got[2], tag + 1)
        got[1][:] = 0  # its own
    mpi.Request.waitall(sent)


def matched_and_received_later():
    status = mpi.Status()
    sent = [world.isend(array(tag), other, tag) for tag in range(4)] + [world.issend(array(5), other, 5)]
    message = world.mprobe(other, 0, status)
    assert message
    assert message != MPI.MESSAGE_NULL
    assert status.Get_tag() == 0
    assert world.probe(other, ANY_TAG, status)
    assert status.Get_tag() == 1  # and not a buffer of the one that was matched
    assert is_array(message.recv(status), 0)
    assert status.Get_tag() == 0
    assert not message
    assert message == MPI.MESSAGE_NULL
    while (later := world.improbe(other, 1)) is None:
        pass
    request = later.irecv()
    assert request
    assert request != MPI.REQUEST_NULL
    assert not later
    assert world.mprobe(other, 2)  # and dropped: its send ends all the same
    assert is_array(request.wait(status), 1)
    assert status.Get_tag() == 1
    assert not request
    request = world.irecv(None, other, 3)
    while not (tested := request.test())[0]:
        pass
    assert is_array(tested[1], 3)
    assert is_array(world.irecv(None, other, 5).wait(), 5)
    mpi.Request.waitall(sent)


def as_long_as_a_head():
    """A message that only has the length of a head is received like any other, and once."""
    text = next(
        "x" * n for n in range(_parts.HEAD) if len(mpi.pickle.dumps({"text": "x" * n, "s": {1}})) == _parts.HEAD
    )
    thing = {"text": text, "s": {1}}
    sent = [world.isend(thing, other, tag) for tag in range(3)]
    assert world.recv(None, other, 2) == thing
    assert world.mprobe(other, 1).recv() == thing
    request = world.mprobe(other, 0).irecv()
    assert request
    assert request.wait() == thing
    mpi.Request.waitall(sent)


def by_mpi4py_itself():
    """Its own receives find the buffers of the world's messages; of others they say who can receive them."""
    sent = world.isend(arrays(1, 8192, 20), other, 7)  # one message, its buffers behind it
    error = raised(RuntimeError, MPI.COMM_WORLD.recv, None, other, 7)
    assert "Intracomm(comm).recv()" in str(error), error
    sent.wait()
    sent = world.isend([array(1), "text", array(2)], other, 7)
    got = MPI.COMM_WORLD.recv(None, other, 7)
    assert is_array(got[0], 1)
    assert is_array(got[2], 2)
    sent.wait()
    duplicate = world.Dup()
    sent = duplicate.isend(array(3), other, 7)
    error = raised(RuntimeError, MPI.Intracomm(duplicate).recv, None, other, 7)
    assert "Intracomm(comm).recv()" in str(error), error
    while not sent.test()[0]:
        duplicate.iprobe(other)  # what lost its head is dropped, and not seen
    assert not duplicate.iprobe(other)


def tags_that_are_ours():
    for tag in (FIRST, _parts.END_OF_TAGS - 1):
        for send in (world.send, world.isend, world.issend):
            for thing in (1, "x" * 5000, array(1)):
                error = raised(mpi.CommError, send, thing, other, tag)
                assert error.Get_error_class() == MPI.ERR_TAG
                assert str(FIRST) in str(error)
        for receive in (world.recv, world.irecv, world.mprobe, world.improbe, world.probe, world.iprobe):
            wanted = (None, other, tag) if "recv" in receive.__name__ else (other, tag)
            assert raised(MPI.Exception, receive, *wanted).Get_error_class() == MPI.ERR_TAG
    for tag in (FIRST - 1, _parts.END_OF_TAGS, MPI.COMM_WORLD.Get_attr(MPI.TAG_UB)):
        sent = world.isend(array(1), other, tag)
        assert is_array(world.recv(None, other, tag), 1)
        sent.wait()


def many_buffers():
    for count in (_parts.MOST, _parts.MOST + 1, 200):
        sent = world.isend([array(k, 1 << 17) for k in range(count)], other)
        got = world.recv(None, other)
        assert len(got) == count
        assert all(is_array(each, k, 1 << 17) for k, each in enumerate(got))
        sent.wait()


def many_sends():
    """What is known of large messages under way does not grow with those that have ended."""
    for _ in range(400):
        sent = world.isend(array(1, 1 << 17), other)
        assert world.recv(None, other).size == 1 << 17
        sent.wait()
    assert len(_mpi_waiting._moving) < 200


def in_threads():
    """Two threads that receive whatever comes: none of them takes a buffer of the other's."""
    total = 400
    if MPI.Query_thread() != MPI.THREAD_MULTIPLE:
        return
    if rank == 0:
        sent = [world.isend([k, array(k, 1 << 17)], other, k % 5) for k in range(total)]
        mpi.Request.waitall(sent)
        for _ in range(3):
            world.send("end", other)
    else:
        got, lock, failed = [], threading.Lock(), []

        def receive():
            try:
                while (item := world.recv(None, 0)) != "end":
                    world.iprobe(0)
                    with lock:
                        got.append(item[0] if is_array(item[1], item[0], 1 << 17) else "wrong")
            except BaseException as error:
                failed.append(error)
                raise

        threads = [threading.Thread(target=receive) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failed, failed
        assert sorted(got) == list(range(total))
    world.barrier()


class Signalled:
    """Within it, a signal comes each third time that memory for a buffer is obtained: the head is matched by then."""

    def __init__(self, handler):
        self.handler, self.calls, self.real = handler, 0, _parts.memory_for

    def __enter__(self):
        def memory_for(nbytes):
            self.calls += 1
            if self.calls % 3 == 0:
                signal.raise_signal(signal.SIGALRM)
            return self.real(nbytes)

        self.before = signal.signal(signal.SIGALRM, self.handler)
        _parts.memory_for = memory_for

    def __exit__(self, *_):
        _parts.memory_for = self.real
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, self.before)


def handlers_that_raise():
    """A handler that raises wherever a receive is: that message may be lost, but no later one, and no sender waits."""
    total = 300
    if rank == 0:
        for k in range(total):
            # in parts, and as one message: with more buffers than MOST, and without any
            things = [array(k, 1 << 17), array(k, 1 << 18), *arrays(k, 8192, 20 if k % 4 == 1 else 0)]
            things.append("x" * 70000 * (k % 2))
            world.send([k, *things], other, k % 3)
        for _ in range(20):  # some may be lost
            world.send("end", other)
        world.send("over", other)
    else:

        def handler(*_):
            signal.setitimer(signal.ITIMER_REAL, 0)
            raise KeyboardInterrupt

        last, raised, draw, item = -1, 0, random.Random(1), None
        with Signalled(handler):
            while item != "end":
                try:
                    signal.setitimer(signal.ITIMER_REAL, draw.uniform(1e-5, 2e-3))
                    item = world.recv(None, 0)
                    signal.setitimer(signal.ITIMER_REAL, 0)
                except KeyboardInterrupt:
                    raised += 1
                    continue
                if item != "end":
                    assert item[0] > last, (item[0], last)
                    last = item[0]
                    assert is_array(item[1], last, 1 << 17)
                    assert is_array(item[2], last, 1 << 18)
                    assert all(is_array(each, last, 8192) for each in item[3:-1])
                    assert item[-1] == "x" * 70000 * (last % 2)
        assert raised > 60, raised
        while item != "over":
            item = world.recv(None, 0)
    world.barrier()


def a_handler_that_receives():
    """It meets the buffers of the message that the interrupted code has just matched, and the messages behind it."""
    total = 300
    if rank == 0:
        sent = [world.isend([k, array(k, 1 << 17), array(k + 1, 1 << 17)], other, 0) for k in range(total)]
        world.send("all are under way", other, 1)
        mpi.Request.waitall(sent)
    else:
        world.recv(None, 0, 1)
        got, nested = [], []

        def handler(*_):
            if not nested:
                nested.append(True)
                message = world.improbe(0)
                if message is not None:
                    got.append(message.recv())
                nested.clear()

        with Signalled(handler):
            while len(got) < total:
                message = world.improbe(0)
                if message is not None:
                    got.append(message.recv())
        assert sorted(item[0] for item in got) == list(range(total))
        assert [item[0] for item in got] != list(range(total))  # the handler received some
        assert all(is_array(item[1], item[0], 1 << 17) and is_array(item[2], item[0] + 1, 1 << 17) for item in got)
    world.barrier()


def a_handler_that_probes():
    """It is told of the next message, and not of the buffers before it."""
    if rank == 0:
        sent = [world.isend([k, array(k), array(k + 1)], other, k) for k in range(12)]
        world.send("all are under way", other, 20)
        mpi.Request.waitall(sent)
    else:
        world.recv(None, 0, 20)
        probed = []

        def handler(*_):
            status = mpi.Status()
            if len(probed) < 4 and world.probe(0, ANY_TAG, status) and world.iprobe(0):
                probed.append(status.Get_tag())

        with Signalled(handler):
            for k in range(12):
                number, *got = world.recv(None, 0)
                assert number == k
                assert is_array(got[0], k)
                assert is_array(got[1], k + 1)
        assert probed == sorted(probed)
        assert len(probed) == 4
    world.barrier()


class Cycle:
    """Garbage that calls a function when Python collects it."""

    def __init__(self, call):
        self.call, self.itself = call, self

    def __del__(self):
        self.call()


def garbage_that_receives():
    """Python collects garbage anywhere in a receive, and `__del__` receives what comes next."""
    total = 200
    if rank == 0:
        sent = [world.isend([k, *(array(k + i, 1 << 17) for i in range(3))], other, 0) for k in range(total)]
        world.send("all are under way", other, 1)
        mpi.Request.waitall(sent)
    else:
        world.recv(None, 0, 1)
        got, nested, draw, inside = [], [], random.Random(1), False

        def receive():
            nonlocal inside
            if not inside:
                inside = True
                message = world.improbe(0)
                if message is not None:
                    nested.append(message.recv())
                inside = False

        threshold = gc.get_threshold()
        while len(got) + len(nested) < total:
            gc.disable()
            Cycle(receive)
            gc.set_threshold(gc.get_count()[0] + draw.randrange(1, 60))
            gc.enable()
            message = world.improbe(0)
            if message is not None:
                got.append(message.recv())
        inside = True
        gc.set_threshold(*threshold)
        got += nested
        assert nested
        assert sorted(item[0] for item in got) == list(range(total))
        assert all(is_array(each, item[0] + i, 1 << 17) for item in got for i, each in enumerate(item[1:]))
    world.barrier()


def without_memory():
    """A message for which there is no memory is lost, its sender ends, and the next one comes."""
    n = 1 << 27
    things = [array(1, n), arrays(1, n >> 5, 32), "x" * n]
    for k, thing in enumerate(things):
        if rank == 0:
            world.send(thing, other, k)
            world.send(array(k), other, 9)
        else:
            with open("/proc/self/statm") as file:
                used = int(file.read().split()[0]) * resource.getpagesize()
            before = resource.getrlimit(resource.RLIMIT_AS)
            resource.setrlimit(resource.RLIMIT_AS, (used + (n >> 2), before[1]))
            raised(MemoryError, world.recv, None, 0, k)
            assert is_array(world.recv(None, 0, 9), k)
            resource.setrlimit(resource.RLIMIT_AS, before)
    world.barrier()


def interrupted_as_it_begins():
    """A signal between the beginning of a send and its wait: MPI reads what was sent, not what came in its place."""
    if rank == 1:
        world.recv(None, other, 9)
        assert is_array(world.recv(None, other, 0), 1, 1 << 21)
        assert all(is_array(each, 2, 1 << 17) for each in world.recv(None, other, 1))
        return
    real = _mpi_communicator.Request

    def request(*args):
        signal.raise_signal(signal.SIGALRM)
        return real(*args)

    def handler(*_):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, handler)
    _mpi_communicator.Request = request
    raised(KeyboardInterrupt, lambda: world.send(array(1, 1 << 21), other, 0))
    raised(KeyboardInterrupt, lambda: world.send(arrays(2, 1 << 17, 20), other, 1))
    _mpi_communicator.Request = real
    signal.signal(signal.SIGALRM, before)
    gc.collect()
    filled = [np.full(n, 9, "u1") for n in (1 << 21, 1 << 17) for _ in range(20)]
    staged = [_mpi_staging.Staged(20 << 17) for _ in range(2)]
    for each in staged:
        np.frombuffer(each.view, "u1")[:] = 9
    world.send(len(filled), other, 9)


def in_a_forked_child():
    """What a child deletes is its parent's: the child calls no MPI."""
    n = 1 << 20
    sent = [world.isend([array(k, n)] if k % 2 else arrays(k, n // 32, 32), other, k) for k in range(8)]
    world.sendrecv("all are under way", other, 20, None, other, 20)
    requests = [world.irecv(None, other, k) for k in range(2)]
    messages = [world.mprobe(other, k) for k in range(2, 4)]
    child = os.fork()
    if child == 0:
        try:
            del sent, requests, messages
            gc.collect()
        finally:
            os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    got = [request.wait() for request in requests] + [message.recv() for message in messages]
    got += [world.recv(None, other, k) for k in range(4, 8)]
    for k, each in enumerate(got):
        assert all(is_array(part, k, n if k % 2 else n // 32) for part in each)
    mpi.Request.waitall(sent)


def dropped():
    """Requests and messages that are deleted before they are complete: MPI still writes, so their memory is kept."""
    n = 1 << 19
    sent = [world.isend(array(k, n) if k % 2 else arrays(k, n // 32, 32), other, k) for k in range(12)]
    world.sendrecv("all are under way", other, 20, None, other, 20)
    for k in range(8):
        request = world.irecv(None, other, k)
        assert request._posted.message is not None
        del request
    for k in range(4):
        world.mprobe(other, 8 + k).irecv()
    gc.collect()
    filled = [bytes([9]) * n for _ in range(32)]
    mpi.Request.waitall(sent)
    assert all(each == bytes([9]) * n for each in filled)
    assert world.sendrecv(rank, other, 0, None, other, 0) == other


def between_groups():
    inter = world.Split(rank).Create_intercomm(0, MPI.COMM_WORLD, other)
    sent = inter.isend(array(4), 0)
    assert is_array(inter.recv(None, 0), 4)
    sent.wait()


works = [
    in_any_order, matched_and_received_later, as_long_as_a_head, by_mpi4py_itself, tags_that_are_ours, many_buffers,
    many_sends, in_threads, handlers_that_raise, a_handler_that_receives, a_handler_that_probes,
    garbage_that_receives, without_memory, interrupted_as_it_begins, in_a_forked_child, dropped, between_groups,
]  # fmt: skip
for work in works:
    if not sys.argv[1:] or work.__name__ in sys.argv[1:]:
        work()
        MPI.COMM_WORLD.Barrier()
        if rank == 0:
            print("held", work.__name__, flush=True)
os.write(1, b"end\n")
