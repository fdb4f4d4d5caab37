"""Managers: the standard library's interface; calls on one host and between hosts; deaths of clients and servers."""

import errno
import gc
import logging
import multiprocessing
import operator
import os
import queue
import random
import signal
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
from multiprocessing import AuthenticationError, ProcessError
from multiprocessing import managers as stdlib

import numpy as np
import psutil
import pytest

import copyless
from copyless import OwnerDiedError, ServerEndedError, StaleHandleError
from copyless.managers import (
    AcquirerProxy,
    BaseManager,
    BaseProxy,
    IteratorProxy,
    ListProxy,
    NamespaceProxy,
    RemoteError,
    SharedMemoryManager,
    SyncManager,
    Token,
    _connection,
    _endpoints,
    _handshake,
    _link,
    _references,
)
from copyless.shared_memory import ShareableList, SharedMemory
from tests.conftest import interrupted, python, start_python, until

FORK = multiprocessing.get_context("fork")
CERTIFICATE = os.path.join(os.path.dirname(__file__), "data", "localhost.pem")
KEY = b"a key for tests"
GREETING = len(_handshake._GREETING) + 32


# ---- classes that tests register


class Foo:
    def f(self):
        return "f()"

    def g(self):
        raise ValueError("from g")

    def _h(self):
        return "_h()"


class Wide:
    """An error."""

    def unpicklable(self):
        return threading.Lock()

    def raises_unpicklable(self):
        error = ValueError("says why")
        error.lock = threading.Lock()
        raise error

    def wait(self, seconds):
        time.sleep(seconds)
        return "waited"

    def echo(self, *args, **kwds):
        return args, kwds

    def fill(self, array, value):
        array[...] = value

    def pid(self):
        return os.getpid()


class Explodes:
    """Cannot be unpickled."""

    def __reduce__(self):
        return operator.truediv, (1, 0)


def squares():
    for i in range(10):
        yield i * i


class MyManager(BaseManager):
    pass


MyManager.register("Foo", callable=Foo)
MyManager.register("Bar", callable=Foo, exposed=("f", "_h"))
MyManager.register("baz", callable=squares, proxytype=IteratorProxy)
MyManager.register("Wide", callable=Wide)
MyManager.register("array", callable=np.zeros, exposed=("sum", "__setitem__", "__getitem__"))

_queue = queue.Queue()


def get_queue():
    return _queue


class QueueManager(BaseManager):
    """A function of the server."""


QueueManager.register("get_queue", callable=get_queue)


class QueueClient(BaseManager):
    """With the same interface, but without a referent."""


QueueClient.register("get_queue")


class LockManager(SyncManager):
    pass


_the_lock = []


def the_lock():
    if not _the_lock:
        _the_lock.append(copyless.Lock())
    return _the_lock[0]


_the_queue = []


def the_queue():
    if not _the_queue:
        _the_queue.append(copyless.JoinableQueue())
    return _the_queue[0]


def the_list(_list=[]):  # noqa: B006
    return _list


LockManager.register("the_lock", the_lock, AcquirerProxy)
LockManager.register("the_queue", the_queue)
LockManager.register("the_list", the_list, ListProxy)


@pytest.fixture
def sync():
    with SyncManager(ctx=FORK) as manager:
        yield manager


@pytest.fixture
def mine():
    with MyManager(ctx=FORK) as manager:
        yield manager


SERVER = """
import os, sys
import numpy as np
sys.path[:0] = sys.argv[1:2]
import tests.test_managers as t
manager = t.{cls}(address={address!r}, authkey=t.KEY)
{more}
server = manager.get_server()
print(repr(server.address), flush=True)
server.serve_forever()
"""


class serving:
    """A server in a program of its own."""

    def __init__(self, cls="LockManager", address=("127.0.0.1", 0), more="", **env):
        self.code, self.env = SERVER.format(cls=cls, address=address, more=more), env

    def __enter__(self):
        root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
        self.process = start_python(self.code, root, **self.env)
        line = self.process.stdout.readline()
        if not line:
            raise AssertionError(self.process.stderr.read())
        self.address = eval(line)
        self.log = []
        self.reader = threading.Thread(target=lambda: self.log.extend(self.process.stderr))
        self.reader.start()
        return self

    def __exit__(self, *exc):
        self.process.send_signal(signal.SIGINT)
        self.process.wait(10)
        self.reader.join(10)
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            stream.close()


# ---- the checks of CPython's _TestMyManager, _TestRemoteManager and _TestManagerRestart


def check_my_manager(manager):
    foo, bar, baz = manager.Foo(), manager.Bar(), manager.baz()
    assert [name for name in ("f", "g", "_h") if hasattr(foo, name)] == ["f", "g"]
    assert [name for name in ("f", "g", "_h") if hasattr(bar, name)] == ["f", "_h"]
    assert foo.f() == "f()"
    with pytest.raises(ValueError, match="from g") as caught:
        foo.g()
    assert "in g" in str(caught.value.__cause__)  # the traceback of the server
    assert foo._callmethod("f") == "f()"
    with pytest.raises(RemoteError, match="exposed"):
        foo._callmethod("_h")
    assert (bar.f(), bar._h(), bar._callmethod("f"), bar._callmethod("_h")) == ("f()", "_h()", "f()", "_h()")
    assert list(baz) == [i * i for i in range(10)]


def test_my_manager(context):
    manager = MyManager(ctx=context)
    manager.start()
    check_my_manager(manager)
    manager.shutdown()
    assert manager._process.exitcode == 0
    manager.shutdown()  # a second call does nothing


def test_my_manager_as_context_manager():
    manager = MyManager(ctx=FORK)
    with manager:
        check_my_manager(manager)
    assert manager._process.exitcode == 0
    manager = MyManager(ctx=FORK)
    manager.start()
    with manager:
        check_my_manager(manager)
    assert manager._process.exitcode == 0


VALUES = ["hello world", None, True, 2.25, "hall\xe5 v\xe4rlden", "привіт світ", b"hall\xe5 v\xe4rlden"]


def put_values(address, serializer):
    manager = QueueClient(address=address, authkey=KEY, serializer=serializer)
    manager.connect()
    manager.get_queue().put(tuple(VALUES))


@pytest.mark.parametrize("serializer", ["pickle", "xmlrpclib"])
def test_remote(serializer):
    with QueueManager(("localhost", 0), KEY, serializer, FORK) as manager:
        child = FORK.Process(target=put_values, args=(manager.address, serializer))
        child.start()
        client = QueueClient(manager.address, KEY, serializer)
        client.connect()
        found = client.get_queue()
        assert list(found.get()) == VALUES
        with pytest.raises(Exception, match="marshal|pickle"):
            found.put(time.sleep if serializer == "xmlrpclib" else threading.Lock())
        found.put("goes on")
        assert found.get() == "goes on"
        child.join()
        del found


def test_rapid_restart():
    manager = QueueManager(("127.0.0.1", 0), KEY, ctx=FORK)
    server = manager.get_server()
    address = server.address
    server.listener.close()
    first = QueueManager(address, KEY, ctx=FORK)
    first.start()
    child = FORK.Process(target=put_values, args=(first.address, "pickle"))
    child.start()
    child.join()
    stale = first.get_queue()
    assert list(stale.get()) == VALUES
    first.shutdown()
    second = QueueManager(address, KEY, ctx=FORK)
    second.start()
    assert second.get_queue().qsize() == 0
    # A proxy of the first server never becomes one of the second's objects.
    with pytest.raises((StaleHandleError, KeyError)):
        type(stale)(Token("get_queue", address, stale._id), "pickle", authkey=KEY).qsize()
    second.shutdown()


# ---- all types


def test_lists_dicts_and_sets(sync):
    numbers = sync.list([3, 1, 2])
    numbers += [5]
    numbers *= 2
    numbers.sort(reverse=True)
    assert (numbers[:3], len(numbers), 5 in numbers, numbers + [0]) == ([5, 5, 3], 8, True, [*numbers[:], 0])
    assert numbers.copy() == list(numbers)
    numbers.clear()
    assert not numbers
    pairs = sync.dict(a=1)
    pairs |= {"b": 2}
    assert (pairs | {"c": 3}, {"z": 0} | pairs) == ({"a": 1, "b": 2, "c": 3}, {"z": 0, "a": 1, "b": 2})
    assert (list(pairs), list(reversed(pairs)), dict(pairs.items())) == (["a", "b"], ["b", "a"], {"a": 1, "b": 2})
    letters = sync.set("abc")
    letters |= {"d"}
    letters -= {"a"}
    other = sync.set("cd")
    assert (letters & other, letters | other, letters > other, letters == {"b", "c", "d"}) == (
        {"c", "d"}, set("bcd"), True, True,
    )  # fmt: skip
    assert (sorted(letters), letters.isdisjoint("xyz"), "b" in letters, len(letters)) == (list("bcd"), True, True, 3)
    assert str(pairs) == "{'a': 1, 'b': 2}"
    assert repr(pairs).startswith("<DictProxy object, typeid 'dict' at")
    assert ListProxy[int].__origin__ is ListProxy


def test_values_arrays_namespaces(sync):
    value, array, names = sync.Value("i", 7), sync.Array("d", [1.0, 2.0]), sync.Namespace(x=1)
    value.value += 1
    array[0] = 5.0
    names.y = names.x + 1
    assert (value.value, array[0], len(array), names.y, str(names)) == (8, 5.0, 2, 2, "Namespace(x=1, y=2)")
    del names.x
    with pytest.raises(AttributeError):
        _ = names.x
    assert isinstance(names, NamespaceProxy)


def test_nested_proxies(sync):
    outer, inner = sync.list(), sync.dict(a=1)
    outer.append(inner)
    ident = inner._id
    del inner
    gc.collect()
    again = outer[0]
    again["b"] = 2  # the list contains the dict itself
    assert again._id == ident
    assert dict(outer[0].items()) == {"a": 1, "b": 2}
    assert "DictProxy" in str(outer)
    outer.pop()
    del again
    gc.collect()
    until(lambda: sync._number_of_objects() == 1)  # no process uses it any more


def test_changing_what_a_dict_holds_changes_a_copy(sync):  # H1: as documented for the standard library
    held = sync.dict(a=[])
    held["a"].append(1)
    assert held["a"] == []
    held["a"] = sync.list()  # this is the way
    held["a"].append(1)
    assert held["a"][:] == [1]


def use_locks(lock, event, condition, barrier, items):
    with lock:
        event.set()
    with condition:
        condition.notify()
    barrier.wait(20)
    items.put("from the child")


def test_locks_and_queues_are_used_directly(sync, context):
    lock, event, condition, barrier, items = sync.Lock(), sync.Event(), sync.Condition(), sync.Barrier(2), sync.Queue()
    assert isinstance(lock, AcquirerProxy)
    condition.acquire()
    child = context.Process(target=use_locks, args=(lock, event, condition, barrier, items))
    child.start()
    assert event.wait(30)
    assert condition.wait(30)
    condition.release()
    barrier.wait(20)
    assert items.get(timeout=20) == "from the child"
    assert (barrier.parties, barrier.n_waiting, barrier.broken) == (2, 0, False)
    child.join()
    with pytest.raises(RuntimeError):  # as in threading, which the standard library's manager uses
        lock.release()


def test_locks_go_on_when_the_server_is_killed():
    manager = SyncManager(ctx=FORK)
    manager.start()
    lock, items, numbers = manager.Lock(), manager.Queue(), manager.list()
    os.kill(manager._process.pid, signal.SIGKILL)
    with lock:
        items.put(1)
    assert items.get() == 1
    with pytest.raises((ServerEndedError, ConnectionRefusedError)):
        numbers.append(1)
    manager.shutdown()
    del lock, items, numbers


def test_the_method_of_a_pool_and_its_results(sync):
    with sync.Pool(2) as pool:
        assert pool.map(abs, [-1, 2]) == [1, 2]
        assert pool.apply_async(pow, (2, 5)).get(20) == 32
        assert sorted(pool.imap_unordered(abs, [-3, 4])) == [3, 4]


def test_a_proxy_that_came_in_a_message_knows_the_types_registered_with_sync_manager():
    done = python("""
        import multiprocessing, pickle
        from multiprocessing.reduction import ForkingPickler
        from copyless.managers import IteratorProxy, ListProxy, SyncManager

        class Maker:
            def rows(self): return [1, 2]

        SyncManager.register("Rows", proxytype=ListProxy, create_method=False)
        SyncManager.register("Maker", Maker, method_to_typeid={"rows": "Rows"})

        class Derived(SyncManager): pass

        Derived.register("Rows", proxytype=IteratorProxy, create_method=False)  # its own alone
        with SyncManager(ctx=multiprocessing.get_context("fork")) as manager:
            maker = pickle.loads(ForkingPickler.dumps(manager.Maker()))
            keys = pickle.loads(ForkingPickler.dumps(manager.dict(a=1)))
            assert maker._manager is None
            print(type(maker.rows()).__name__, maker.rows()[:], type(keys.__iter__()).__name__)
    """)
    assert done.stdout == "ListProxy [1, 2] IteratorProxy\n", done.stderr


def test_a_process_that_uses_a_proxy_loads_no_server():
    done = python("""
        import sys
        from copyless import _loaders
        from copyless.managers import ListProxy

        print([name for name in ("manager", "server", "shared", "sync") if f"copyless.managers._{name}" in sys.modules])
        from copyless.managers import SharedMemoryManager, SyncManager
        print(SyncManager.__module__, SharedMemoryManager.__module__)
    """)
    assert done.stdout == "[]\ncopyless.managers copyless.managers\n", done.stderr


# ---- proxies in transit


def add(numbers):
    numbers.append(os.getpid())


def test_a_proxy_whose_sender_lets_it_go_arrives(sync, context):
    items = copyless.Queue()
    items.put(sync.list([1]))
    gc.collect()
    assert items.get()[:] == [1]
    ident = None
    child = context.Process(target=add, args=((numbers := sync.list()),))
    ident, numbers = numbers._id, None
    child.start()
    child.join()
    assert child.exitcode == 0
    assert ident


def test_a_forked_child_keeps_what_its_parent_lets_go(sync):
    held = [sync.list([1, 2])]
    ready, go = FORK.Event(), FORK.Event()
    answers = FORK.SimpleQueue()

    def child():
        ready.set()
        go.wait(20)
        answers.put(held[0][:])

    process = FORK.Process(target=child)
    process.start()
    assert ready.wait(20)
    held.clear()
    gc.collect()
    assert sync._number_of_objects() == 1
    go.set()
    assert answers.get() == [1, 2]
    process.join()
    process.close()
    until(lambda: sync._number_of_objects() == 0)


@pytest.mark.parametrize("where", ["in the thread that has a connection", "in one that has none"])
def test_a_reference_that_no_memory_was_left_to_give_back_is_given_back_later(sync, monkeypatch, where):
    held, others = [sync.list() for _ in range(3)], sync.list()
    connection = sync._link._mine.own.connection
    send, failures = connection.send, []

    def fail_once(obj):
        if obj[2] == "decref" and not failures:
            failures.append(obj)
            raise MemoryError("no room for a chunk")
        send(obj)

    monkeypatch.setattr(connection, "send", fail_once)
    if where == "in one that has none":
        thread = threading.Thread(target=held.clear)  # it reports with the next call
        thread.start()
        thread.join()
        with pytest.raises(MemoryError, match="no room"):
            others.append(1)
    else:
        held.clear()
    others.append(2)
    assert failures
    until(lambda: sync._number_of_objects() == 1, lambda: sync._debug_info())


@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt])
@pytest.mark.parametrize("come", [True, False])
def test_the_server_keeps_nothing_for_an_answer_that_was_not_had(sync, monkeypatch, error, come):
    """No memory to load it, or Ctrl-C, before or after it has come: no process knows the object that it names."""
    kept = sync.list()
    connection = sync._link._mine.own.connection
    recv = connection.recv

    def fail_once():
        monkeypatch.setattr(connection, "recv", recv)
        if come:
            recv()
        raise error

    monkeypatch.setattr(connection, "recv", fail_once)
    with pytest.raises(error):
        sync.Lock()
    until(lambda: sync._number_of_objects() == 1, lambda: sync._debug_info())
    kept.append(1)  # what is known is still there: the new connection was known before the old one ended
    assert kept[:] == [1]


def test_an_interrupted_call_loses_no_object_though_the_server_is_slow(monkeypatch):
    """The end of the old connection may be seen before the new one is known."""
    join = _references.References.join

    def late(*args):
        time.sleep(0.3)
        return join(*args)

    monkeypatch.setattr(_references.References, "join", late)
    with SyncManager(ctx=FORK) as manager:
        kept = manager.list([1])
        connection = manager._link._mine.own.connection

        def interrupt():
            raise KeyboardInterrupt

        connection.recv = interrupt
        with pytest.raises(KeyboardInterrupt):
            kept.append(2)
        assert kept[0] == 1


@pytest.mark.parametrize("short", [lambda: OSError(errno.EMFILE, "Too many open files"), MemoryError])
def test_a_link_on_one_host_is_not_given_up_for_what_is_short_for_a_moment(monkeypatch, short):
    """Otherwise all its calls would use TCP from then on, without a message."""
    with SyncManager(("127.0.0.1", 0), ctx=FORK) as manager:
        link = manager._link
        local = link.local
        assert local not in (None, link.address)
        connect = _link.connect

        def fail_once(*args, **kwds):
            monkeypatch.setattr(_link, "connect", connect)
            raise short()

        monkeypatch.setattr(_link, "connect", fail_once)
        with pytest.raises((OSError, MemoryError)):
            link.connect()
        assert link.local == local
        connection = link.connect()
        assert connection.shared
        connection.close()


def test_a_process_that_is_killed_keeps_nothing_alive(sync):
    ready = copyless.Event()

    def child():
        manager = SyncManager(sync.address, sync._authkey)  # the parent's own manager belongs to the parent
        manager.connect()
        kept = [manager.list() for _ in range(5)]
        ready.set()
        time.sleep(100 + len(kept))

    process = FORK.Process(target=child)
    process.start()
    assert ready.wait(20)
    assert sync._number_of_objects() == 5
    process.kill()
    process.join()
    until(lambda: sync._number_of_objects() == 0)


FORKS = ("context", "os.fork")


def in_a_fork(how, function):
    """The result of a function in a forked child."""
    read, write = os.pipe()

    def run():
        try:
            said = repr(function())
        except BaseException as error:
            said = repr(f"{type(error).__name__}: {error}")
        os.write(write, said.encode())

    if how == "context":
        child = FORK.Process(target=run)
        child.start()
        child.join()
        assert child.exitcode == 0
    elif not (pid := os.fork()):
        run()
        gc.collect()
        os._exit(0)
    else:
        assert os.waitpid(pid, 0)[1] == 0
    os.close(write)
    with os.fdopen(read) as f:
        return eval(f.read())


@pytest.mark.parametrize("how", FORKS)
@pytest.mark.parametrize("kind", ["started", "connected"])
def test_a_manager_belongs_to_the_process_that_began_it(how, kind):
    with MyManager(ctx=FORK) as server, SyncManager(ctx=FORK) as started, SharedMemoryManager(ctx=FORK) as memory:
        connected = SyncManager(started.address, started._authkey)
        connected.connect()
        one = started if kind == "started" else connected
        array = memory.array(10)

        def use():
            said = []
            for call in (
                one.list, one.dict, one.Lock, one.start, one.connect, one.get_server, one.join, one.__enter__,
                one._debug_info,
                one._number_of_objects, server.Foo, memory.list_segments, lambda: memory.SharedMemory(10),
                lambda: memory.array(10),
                lambda: memory.release(array), lambda: memory.Queue(), lambda: memory.ShareableList([1]),
                lambda: memory.Lock(),
                lambda: memory.RingBuffer("f8", 2),
            ):  # fmt: skip
                try:
                    call()
                    said.append("nothing")
                except copyless.WrongProcessError as error:
                    said.append("refused" if "connect()" in str(error) else str(error))
            return said, repr(one), repr(memory)

        said, *shown = in_a_fork(how, use)
        assert set(said) == {"refused"}, said
        assert "SyncManager started" in shown[0]
        assert one.list([1])[:] == [1]
        assert len(memory.array(3)) == 3


@pytest.mark.parametrize("how", FORKS)
def test_a_forks_garbage_and_shutdown_leave_the_parents_server_alone(how):
    managers = [SyncManager(ctx=FORK), SharedMemoryManager(ctx=FORK)]
    for manager in managers:
        manager.start()
    kept, block = managers[0].list([1]), managers[1].SharedMemory(100)
    pids = [manager._process.pid for manager in managers]

    def leave():
        for manager in managers:
            manager.__exit__(None, None, None)
            manager.shutdown()
        managers.clear()
        gc.collect()
        return "left"

    assert in_a_fork(how, leave) == "left"
    assert all(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE for pid in pids)
    assert kept[:] == [1]
    assert managers[1].list_segments() == [block.name]
    block.close()
    for manager in managers:
        manager.shutdown()


@pytest.mark.parametrize("how", FORKS)
def test_proxies_work_in_a_fork_and_what_its_parent_holds_is_not_its_own(how, sync):
    items, lock, again, semaphore = sync.list([1]), sync.Lock(), sync.RLock(), sync.Semaphore(1)
    lock.acquire()
    again.acquire()

    def use():
        items.append(2)
        tried = lock.acquire(False), again.acquire(False), semaphore.acquire(False)
        try:
            again.release()
        except Exception as error:
            return (*tried, type(error).__name__, len(items))
        return "released what its parent holds"

    assert in_a_fork(how, use) == (False, False, True, "NotHeldError", 2)
    items.append(3)
    assert items[:] == [1, 2, 3]
    again.release()
    lock.release()


def test_every_thread_has_a_connection_of_its_own(mine):
    wide = mine.Wide()
    begun = time.monotonic()
    threads = [threading.Thread(target=wide.wait, args=(0.5,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert time.monotonic() - begun < 3


# ---- calls that fail


def test_what_cannot_be_pickled_costs_only_its_call(mine):
    wide = mine.Wide()
    with pytest.raises(TypeError, match="pickle"):
        wide.echo(threading.Lock())
    with pytest.raises(RemoteError, match="Unserializable.*lock"):
        wide.unpicklable()
    with pytest.raises(RemoteError, match="says why"):
        wide.raises_unpicklable()
    with pytest.raises(ZeroDivisionError):
        wide.echo(Explodes())
    assert wide.echo(1, a=2) == ((1,), {"a": 2})


def test_an_interrupted_call_gives_its_answer_to_nobody(mine):
    wide = mine.Wide()

    class Stop(Exception):
        pass

    for i in range(5):
        with pytest.raises(Stop), interrupted(0.05, Stop):
            wide.wait(0.3)
        assert wide.echo(i) == ((i,), {})


def test_a_signal_handler_may_call_too(mine):
    wide, seen = mine.Wide(), []
    before = signal.signal(signal.SIGALRM, lambda *_: seen.append(wide.echo("handler")))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        assert wide.wait(0.3) == "waited"
    finally:
        signal.signal(signal.SIGALRM, before)
    assert seen == [(("handler",), {})]


def test_ctrl_c_reaches_a_waiting_client_and_not_the_server():
    code = """
        import os, signal, sys, threading, time
        from copyless.managers import SyncManager
        import multiprocessing
        manager = SyncManager(ctx=multiprocessing.get_context("fork"))
        manager.start()
        event = manager.Namespace()
        SyncManager.register("slow", time.sleep.__class__)
        print("ready", flush=True)
        try:
            manager.Event().wait()
        except KeyboardInterrupt:
            event.x = 1
            print("interrupted", event.x, flush=True)
        manager.shutdown()
        print(manager._process.exitcode, flush=True)
    """
    process = start_python(code, PYTHONPATH=os.pathsep.join(sys.path))
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert out.split() == ["interrupted", "1", "0"], err
    assert err == ""


def test_bad_input(tmp_path):
    with pytest.raises(TypeError, match="bytes"):
        BaseManager(authkey="text")
    with pytest.raises(KeyError, match="serializer 'json'"):
        BaseManager(serializer="json")
    manager = SyncManager(ctx=FORK)
    with pytest.raises(ValueError, match="start"):
        manager.list()
    with pytest.raises(ValueError, match="needs an address"):
        manager.connect()
    with pytest.raises(ValueError, match="did not start its server"):
        manager.shutdown()
    with pytest.raises(TypeError, match="callable"):
        manager.start(initializer=5)
    with pytest.raises(EOFError, match="ZeroDivisionError"):
        SyncManager(ctx=FORK).start(initializer=operator.truediv, initargs=(1, 0))
    manager.start()
    with pytest.raises(ProcessError, match="Already started"):
        manager.start()
    with pytest.raises(ProcessError, match="Already started"):
        manager.get_server()
    with pytest.raises(TypeError, match="copyless.managers"):
        SyncManager.register("x", list, stdlib.ListProxy)
    with pytest.raises(RemoteError, match="at most 1 argument"):
        manager.list(1, 2, 3)
    manager.shutdown()
    for use in (manager.list, manager._debug_info):
        with pytest.raises(ValueError, match="shut down"):
            use()
    with pytest.raises(ProcessError, match="shut down"):
        manager.start()
    with pytest.raises((ConnectionRefusedError, FileNotFoundError)):
        BaseManager(str(tmp_path / "nobody"), KEY).connect()
    with pytest.raises(ConnectionRefusedError, match="no manager listens"):
        BaseManager("\0nobody", KEY).connect()
    assert repr(manager).startswith("<SyncManager shut down")


def test_a_busy_address_and_one_whose_server_was_killed(tmp_path):
    path = str(tmp_path / "socket")
    manager = SyncManager(path, KEY, ctx=FORK)
    manager.start()
    with pytest.raises(EOFError, match=r"Address already in use|did not start"):
        SyncManager(path, KEY, ctx=FORK).start()
    os.kill(manager._process.pid, signal.SIGKILL)
    manager.shutdown()
    assert os.path.exists(path)
    with SyncManager(path, KEY, ctx=FORK) as again:  # the file has no server: it is replaced
        assert again.list([1])[:] == [1]
    assert not os.path.exists(path)


# ---- arrays


def test_arrays_cross_by_handle_on_one_host(mine):
    wide, image = mine.Wide(), copyless.zeros((200, 300))
    wide.fill(image, 7)
    assert (image == 7).all()  # the server wrote into this memory
    plain = np.zeros(100_000)
    wide.fill(plain, 7)
    assert (plain == 0).all()
    (echoed,), _ = wide.echo(plain)
    echoed[0] = 1  # its own, writable


HOSTS = """
import os, sys
sys.path[:0] = sys.argv[1:2]
import numpy as np, copyless, pickle
from copyless import ForeignHostError
import tests.test_managers as t
manager = t.MyManager(address=eval(sys.argv[2]), authkey=t.KEY)
manager.connect()
wide = manager.Wide()
assert wide._link.local is None or True
image = copyless.array(np.arange(300_000.0).reshape(300, 1000))
(there,), _ = wide.echo(image)
assert type(there) is np.ndarray and not copyless.is_shared(there) and (there == image).all() and there.flags.writeable
wide.fill(image, 7)
assert image[0, 1] == 1  # it had a copy
big = {f"part {i}": np.full(70_000, i) for i in range(30)}
((echo,), _) = wide.echo(big)
assert all((echo[key] == big[key]).all() for key in big)
lock = copyless.Lock()
for stray in (lock, copyless.Queue(), copyless.RWLock()):
    try:
        wide.echo(stray)
    except ForeignHostError as error:
        assert "by value" in str(error)
    else:
        raise AssertionError("a lock crossed hosts")
assert wide.echo(1) == ((1,), {})
print("whole")
"""


def test_between_hosts_arrays_arrive_whole_by_value():
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    with serving("MyManager", COPYLESS_HOST="host-a") as server:
        done = python(HOSTS, root, repr(server.address), COPYLESS_HOST="host-b")
        assert done.stdout == "whole\n"
    assert server.log == []


@pytest.mark.skipif(
    subprocess.run(["unshare", "-rn", "ip", "link"], capture_output=True).returncode != 0
    if all(
        any(os.access(os.path.join(p, tool), os.X_OK) for p in os.environ["PATH"].split(":"))
        for tool in ("unshare", "ip", "nsenter")
    )
    else True,
    reason="needs network namespaces: unshare, nsenter and ip",
)
def test_two_network_namespaces(tmp_path):
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    (tmp_path / "server.py").write_text(SERVER.format(cls="MyManager", address=("10.99.0.1", 0), more=""))
    (tmp_path / "client.py").write_text(HOSTS)
    script = """
        set -e
        ip link set lo up
        unshare -n sleep 100 & other=$!
        sleep 0.2
        ip link add here type veth peer name there
        ip link set there netns $other
        ip addr add 10.99.0.1/24 dev here; ip link set here up
        nsenter -t $other -n ip addr add 10.99.0.2/24 dev there
        nsenter -t $other -n ip link set there up
        COPYLESS_HOST=host-a "$1" -u "$2/server.py" "$3" > "$2/address" & server=$!
        while [ ! -s "$2/address" ]; do sleep 0.05; done
        COPYLESS_HOST=host-b nsenter -t $other -n "$1" "$2/client.py" "$3" "$(cat "$2/address")"
        kill $server || true; kill $other || true
        wait $server || true
    """
    done = subprocess.run(
        ["unshare", "-rn", "sh", "-c", script, "sh", sys.executable, str(tmp_path), root],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.stdout == "whole\n", done.stderr


CLIENT_HOLDS = """
import sys, time
sys.path[:0] = sys.argv[1:2]
import tests.test_managers as t
manager = t.LockManager(address=eval(sys.argv[2]), authkey=t.KEY)
manager.connect()
lock = manager.the_lock()
lock.acquire()
print("held", flush=True)
time.sleep(100)
"""


@pytest.mark.parametrize("host", ["host-a", "host-b"])
def test_a_lock_that_a_killed_client_held_is_free(host):  # H1, F1
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    with serving(COPYLESS_HOST="host-a") as server:
        client = start_python(CLIENT_HOLDS, root, repr(server.address), COPYLESS_HOST=host)
        assert client.stdout.readline() == "held\n"
        code = """
            import sys
            sys.path[:0] = sys.argv[1:2]
            import tests.test_managers as t
            from copyless import OwnerDiedError
            manager = t.LockManager(address=eval(sys.argv[2]), authkey=t.KEY)
            manager.connect()
            lock = manager.the_lock()
            print(lock.acquire(True, 0.05), flush=True)
            sys.stdin.readline()
            try:
                print(lock.acquire(True, 20))
            except OwnerDiedError:
                print(lock.acquire(True, 20))
        """
        other = start_python(code, root, repr(server.address), COPYLESS_HOST="host-a")
        assert other.stdout.readline() == "False\n"
        client.kill()
        client.wait()
        out, err = other.communicate("go\n", timeout=30)
        assert out == "True\n", err
        for stream in (client.stdin, client.stdout, client.stderr):
            stream.close()


# ---- TLS


def server_context():
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE)
    return context


def test_tls(context, monkeypatch):
    client = ssl.create_default_context(cafile=CERTIFICATE)
    with MyManager(("localhost", 0), KEY, ctx=context, ssl_context=server_context) as manager:
        assert manager.Foo().f() == "f()"  # by the private socket of its host
        remote = MyManager(("localhost", manager.address[1]), KEY, ssl_context=client)
        remote.connect()
        assert remote.Wide().echo(np.arange(100_000))[0][0].sum() == sum(range(100_000))
        remote._link.local = None
        connection = remote._link.connect()
        assert isinstance(connection, _connection.SharedConnection)
        connection.close()
        monkeypatch.setattr(_endpoints, "GRACE", 0.5)
        plain = MyManager(("localhost", manager.address[1]), KEY)
        with pytest.raises((AuthenticationError, OSError, EOFError)):
            plain.connect()
        wrong = MyManager(("localhost", manager.address[1]), KEY, ssl_context=ssl.create_default_context())
        with pytest.raises(ssl.SSLCertVerificationError):
            wrong.connect()


def test_tls_carries_packets_between_hosts():
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    client = HOSTS.replace(
        "authkey=t.KEY)", "authkey=t.KEY, ssl_context=__import__('ssl').create_default_context(cafile=t.CERTIFICATE))"
    )
    more = "manager._ssl_context = t.server_context"
    with serving("MyManager", ("localhost", 0), more, COPYLESS_HOST="host-a") as server:
        done = python(client, root, repr(("localhost", server.address[1])), COPYLESS_HOST="host-b")
        assert done.stdout == "whole\n"


# ---- clients without permission


def test_a_wrong_key():
    with serving() as server:
        manager = LockManager(server.address, b"another key")
        with pytest.raises(AuthenticationError, match="refused the authkey"):
            manager.connect()
        right = LockManager(server.address, KEY)
        right.connect()
        until(lambda: server.log)
    assert len(server.log) == 1
    assert "another authkey" in server.log[0]


def raw(address):
    sock = socket.create_connection(address)
    sock.settimeout(20)
    return sock


def proven(address):
    """A socket that has proven the key, as a malicious client might have."""
    sock = raw(address)
    _handshake._prove_as_client(sock, KEY, time.monotonic() + 10)
    return sock


def test_noise_silence_and_oversized_packets_cost_a_line_of_the_log_each():
    with serving(more="t._endpoints.GRACE = 0.5") as server:
        process = psutil.Process(server.process.pid)

        def ended(sock):
            try:
                while sock.recv(4096):
                    pass
            except ConnectionResetError:
                pass
            sock.close()

        with raw(server.address) as silent:
            ended(silent)
        with raw(server.address) as noisy:
            noisy.sendall(os.urandom(4096))
            ended(noisy)
        with raw(server.address) as slow:  # a byte now and then counts as silence too
            for _ in range(20):
                try:
                    slow.sendall(b"x")
                except OSError:
                    break
                time.sleep(0.05)
            ended(slow)
        before = process.memory_info().rss
        for head in (
            _connection._HEAD.pack(b"CLfr", 0, 1 << 62, 1 << 62),
            _connection._HEAD.pack(b"CLfr", 1 << 31, 10, 100),
            _connection._HEAD.pack(b"CLfr", 0, 1 << 40, 10),
            _connection._HEAD.pack(b"nope", 0, 10, 10),
            _connection._HEAD.pack(b"CLfr", 1, 4, 10) + struct.pack("<Q", 1 << 60),
        ):
            with proven(server.address) as sock:
                sock.sendall(head)
                ended(sock)
        until(lambda: len(server.log) == 8, lambda: "".join(server.log))
        assert process.memory_info().rss - before < 5 << 20
        manager = LockManager(server.address, KEY)
        manager.connect()
        assert manager.list([1])[:] == [1]
    assert len(server.log) == 8


def test_an_authenticated_clients_oversized_packet():
    with serving(more="t.LockManager.frame_limit = 1 << 20", COPYLESS_HOST="host-a") as server:
        connection = _connection.SocketConnection(proven(server.address))
        connection.send((b"session", os.getpid(), "pickle", None))
        assert connection.recv() is False
        connection._sock.sendall(_connection._HEAD.pack(b"CLfr", 0, 1 << 34, 1 << 34))
        with pytest.raises(_endpoints.Closed):
            connection.recv()
        connection.close()
        until(lambda: server.log)
        assert "17,179,869,184 bytes" in server.log[0]


def test_a_hundred_thousand_packets_of_noise():
    """Random bytes, and the bytes of a real client with some changed, before and after the key."""
    rng = random.Random(5)
    with serving(more="t.logging.getLogger('copyless.managers').setLevel(100)", address=("127.0.0.1", 0)) as server:
        process = psutil.Process(server.process.pid)
        good = _handshake._GREETING + bytes(32) + bytes(32)
        rss = None
        for i in range(100_000 if "PACKETS" not in os.environ else int(os.environ["PACKETS"])):
            if i % 20 == 19:  # after the key: heads and hellos
                sock = proven(server.address)
                packet = bytearray(
                    _connection._HEAD.pack(b"CLfr", rng.randrange(3), rng.randrange(100), rng.randrange(200))
                )
                for _ in range(rng.randrange(1, 4)):
                    packet[rng.randrange(len(packet))] = rng.randrange(256)
                sock.sendall(packet[: rng.randrange(1, len(packet) + 1)])
            else:
                sock = socket.create_connection(server.address)
                packet = bytearray(good)
                if i % 2:
                    for _ in range(rng.randrange(1, 5)):
                        packet[rng.randrange(len(packet))] = rng.randrange(256)
                else:
                    packet = bytearray(rng.randbytes(rng.randrange(1, 200)))
                sock.sendall(packet[: rng.randrange(1, len(packet) + 1)])
            # Without a pause in which ports in TIME_WAIT could use up the range.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            sock.close()
            if i == 5000:
                rss = process.memory_info().rss
        manager = LockManager(server.address, KEY)
        manager.connect()
        assert manager.list([1])[:] == [1]
        if rss is not None:
            assert process.memory_info().rss - rss < 16 << 20
        until(lambda: process.num_threads() < 12)
        assert process.num_fds() < 60
    assert server.log == []


# ---- shared memory that ends with its manager


def test_shared_memory_manager(context):
    with SharedMemoryManager(ctx=context) as manager:
        block = manager.SharedMemory(size=1000)
        items = manager.ShareableList(["a", 5])
        image = manager.array((4, 5), "u1")
        copied = manager.array(np.arange(5))
        raw = manager.array(10, zeroed=False)
        frames, waiting, lock = manager.RingBuffer({"x": ((3,), "f8")}, slots=4), manager.Queue(), manager.Lock()
        assert (image.shape, image.sum(), copied.tolist(), raw.dtype) == ((4, 5), 0, [0, 1, 2, 3, 4], float)
        with lock:
            waiting.put(1)
        with frames.write() as frame:
            frame["x"][...] = 1
        assert sorted(manager.list_segments()) == sorted([block.name, items.shm.name])
        address = copyless.handle(image)
        image[...] = 9
        image = None
        assert (copyless.attach(address) == 9).all()  # the manager keeps it
        names = block.name, items.shm.name
        view = block.buf[:10]
    for name in names:
        with pytest.raises(FileNotFoundError):
            SharedMemory(name)
    view[0] = 1  # memory lives as long as its last view
    del view, frames, waiting, lock, block, items, copied, raw
    gc.collect()
    with pytest.raises(StaleHandleError):
        copyless.attach(address)
    for make in (lambda: manager.SharedMemory(5), lambda: manager.array(3)):
        with pytest.raises(ValueError, match="shut down"):
            make()


def test_a_block_of_a_client_outlives_it():  # C1
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    manager = SharedMemoryManager(None, KEY, ctx=FORK)
    manager.start()
    code = """
        import sys
        sys.path[:0] = sys.argv[1:2]
        import copyless, numpy as np
        import tests.test_managers as t
        manager = t.SharedMemoryManager(address=eval(sys.argv[2]), authkey=t.KEY)
        manager.connect()
        block, items, array = manager.SharedMemory(64), manager.ShareableList([1, "two"]), manager.array(np.arange(4))
        block.buf[:2] = b"ok"
        print(block.name, items.shm.name, bytes(copyless.handle(array)).hex())
    """
    block, items, address = python(code, root, repr(manager.address)).stdout.split()
    copyless.reap()
    assert bytes(SharedMemory(block).buf[:2]) == b"ok"
    assert list(ShareableList(name=items)) == [1, "two"]
    assert copyless.attach(bytes.fromhex(address)).tolist() == [0, 1, 2, 3]
    manager.shutdown()
    for name in (block, items):
        with pytest.raises(FileNotFoundError):
            SharedMemory(name)
    with pytest.raises(StaleHandleError):
        copyless.attach(bytes.fromhex(address))


def test_a_block_unlinked_by_hand_is_no_trouble():  # C2
    manager = SharedMemoryManager(ctx=FORK)
    manager.start()
    first, second, third = (manager.SharedMemory(64) for _ in range(3))
    first.unlink()
    third.unlink()
    again = SharedMemory(third.name, create=True, size=10)  # the name now belongs to another block
    begun = time.monotonic()
    manager.shutdown()
    assert time.monotonic() - begun < 0.5
    with pytest.raises(FileNotFoundError):
        SharedMemory(second.name)
    SharedMemory(again.name)
    again.unlink()


def test_release_lets_one_go():  # C3
    with SharedMemoryManager(ctx=FORK) as manager:
        block, array, items = manager.SharedMemory(64), manager.array(1000), manager.ShareableList([1])
        address = copyless.handle(array)
        for one in (block, array, items):
            manager.release(one)
        assert manager.list_segments() == []
        with pytest.raises(ValueError, match="this manager does not have this"):
            manager.release(array)
        del array, one
        with pytest.raises(StaleHandleError):
            copyless.attach(address)


def test_names_can_be_given():
    with SharedMemoryManager(ctx=FORK) as manager:
        block = manager.SharedMemory(10, name=f"t-{os.getpid()}-given")
        assert manager.list_segments() == [block.name]
        with pytest.raises(FileExistsError):
            manager.SharedMemory(10, name=block.name)
        with pytest.raises(ValueError):
            manager.SharedMemory(0)


def test_blocks_made_and_unlinked_for_ever_are_forgotten():
    with SharedMemoryManager(ctx=FORK) as manager:
        for _ in range(2000):
            manager.SharedMemory(10).unlink()
        assert len(manager._made._known) < 600


# ---- death


OWNER = """
import os, sys, time
import multiprocessing
from copyless.managers import SyncManager, SharedMemoryManager
context = multiprocessing.get_context(sys.argv[1])
if __name__ == "__main__":
    a, b = SyncManager(ctx=context), SharedMemoryManager(ctx=context)
    a.start(); b.start()
    kept = a.list(), a.Lock(), a.Queue(), b.array(100_000), b.ShareableList([1])
    print(a._process.pid, b._process.pid, b.SharedMemory(100_000).name, flush=True)
    time.sleep(100)
"""


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_an_owner_that_is_killed_takes_its_servers_and_blocks_along(method, tmp_path):
    path = tmp_path / "owner.py"
    path.write_text(OWNER)
    owner = subprocess.Popen([sys.executable, "-u", str(path), method], stdout=subprocess.PIPE, text=True)
    a, b, name = owner.stdout.readline().split()
    owner.kill()
    owner.wait()
    owner.stdout.close()
    until(lambda: not any(alive(int(pid)) for pid in (a, b)))
    assert not os.path.exists(f"/dev/shm/{name}")


def alive(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_server_that_is_killed_is_an_error_for_who_waits():
    manager = MyManager(ctx=FORK)
    manager.start()
    wide = manager.Wide()
    threading.Timer(0.3, os.kill, (manager._process.pid, signal.SIGKILL)).start()
    begun = time.monotonic()
    with pytest.raises(ServerEndedError, match="has ended") as caught:
        wide.wait(60)
    assert isinstance(caught.value, (EOFError, ConnectionError))
    assert time.monotonic() - begun < 5
    assert "failed" in str(wide)
    manager.shutdown()


def test_an_orderly_end_is_heard_at_once():
    manager = MyManager(ctx=FORK)
    manager.start()
    wide = manager.Wide()
    heard = []

    def wait():
        try:
            wide.wait(60)
        except ServerEndedError:
            heard.append(time.monotonic())

    thread = threading.Thread(target=wait)
    thread.start()
    time.sleep(0.2)
    begun = time.monotonic()
    manager.shutdown()
    thread.join(10)
    assert heard
    assert heard[0] - begun < 3


def churn(manager):
    """Calls of all kinds, without end."""
    numbers, pairs, lock, items = manager.the_list(), manager.dict(), manager.the_lock(), manager.Queue()
    while True:
        items.put(np.zeros(2000))
        pairs["x"] = np.arange(3000)
        try:
            with lock:
                numbers.append(1)
                numbers.pop()
        except OwnerDiedError:
            pass
        items.get()


def connect_and_churn(address):
    manager = LockManager(address, KEY)
    manager.connect()
    churn(manager)


def test_a_storm_of_kills_among_clients():
    rng = random.Random(1)
    copyless.configure(message_ttl=2.0)  # for children that are killed before they take what was kept for them
    try:
        manager = LockManager(None, KEY, ctx=FORK)
        manager.start()
    finally:
        copyless.configure(message_ttl=600.0)
    with manager:
        lock = manager.the_lock()
        for _ in range(300):
            client = FORK.Process(target=connect_and_churn, args=(manager.address,))
            client.start()
            time.sleep(rng.uniform(0, 0.03))
            client.kill()
            client.join()
            client.close()
        for _ in range(2):
            try:
                assert lock.acquire(timeout=10)
            except OwnerDiedError:
                assert lock.acquire(timeout=10)
            lock.release()
        del lock
        until(lambda: manager._number_of_objects() == 0, lambda: manager._debug_info())
        assert manager.list([1])[:] == [1]


def test_a_storm_of_kills_of_servers_and_owners():
    rng = random.Random(2)

    def own(connection):
        first = LockManager(None, KEY, ctx=FORK)
        second = SharedMemoryManager(ctx=FORK)
        first.start()
        second.start()
        connection.send((first._process.pid, second._process.pid))
        for _ in range(3):
            second.SharedMemory(5000), second.array(5000)
        churn(first)

    for i in range(200):
        ours, theirs = FORK.Pipe()
        owner = FORK.Process(target=own, args=(theirs,))
        owner.start()
        theirs.close()
        pids = [owner.pid]
        if i % 4:
            pids += ours.recv()
        time.sleep(rng.uniform(0, 0.02))
        os.kill(pids[i % len(pids)], signal.SIGKILL)
        if i % len(pids):
            owner.join(0.02)
            owner.kill()
        owner.join()
        until(lambda: not any(alive(pid) for pid in pids), lambda: f"{pids} live")  # noqa: B023
        owner.close()
        ours.close()


def test_user_proxies_that_override_methods_are_asked():
    class Louder(BaseProxy):
        _exposed_ = ("put", "get")

        def put(self, item):
            return self._callmethod("put", (item * 2,))

        def get(self):
            return self._callmethod("get")

    class Mine(SyncManager):
        pass

    Mine.register("Items", copyless.Queue, Louder)
    with Mine(ctx=FORK) as manager:
        items = manager.Items()
        items.put(4)
        assert items.get() == 8


def test_the_log_is_quiet_in_a_clean_run(caplog):
    with caplog.at_level(logging.DEBUG), SyncManager(ctx=FORK) as manager:
        manager.list()
    assert caplog.records == []


@pytest.mark.parametrize("when", ["before the greeting", "unread greeting", "read greeting"])
def test_who_only_looks_whether_somebody_listens_is_not_logged_as_refused(when):
    """As each manager does with the sockets beside its own when it starts."""
    here, there = socket.socketpair()
    raised = []

    def serve():
        try:
            _handshake._prove_as_server(here, (b"key",), time.monotonic() + 60)
        except BaseException as error:
            raised.append(error)

    server = threading.Thread(target=serve)
    if when == "before the greeting":
        there.close()
    server.start()
    if when == "unread greeting":
        there.recv(1, socket.MSG_PEEK)
    elif when == "read greeting":
        there.recv(4096)
    there.close()
    server.join(60)
    here.close()
    assert [type(error) for error in raised] == [_endpoints.Silent]
