"""Subclasses of shared objects arrive as they were sent: class, attributes, state and slots."""

from __future__ import annotations

import copy
import multiprocessing as mp
import pickle
import pickletools
from multiprocessing.reduction import ForkingPickler

import numpy as np
import pytest

import copyless
from copyless import _loaders, sharedctypes

BASES = {
    "Queue": (), "JoinableQueue": (), "SimpleQueue": (), "Lock": (), "RLock": (), "RWLock": (), "Semaphore": (2,),
    "BoundedSemaphore": (2,),
    "Event": (), "Condition": (), "Barrier": (2,), "RingBuffer": (((2, 3), "u1"), 4),
}  # fmt: skip


def method(self):
    return self.extra * 2


def initialize(self, *args, **options):
    type(self).__mro__[1].__init__(self, *args, **options)
    self.extra = 5


def derived(base, kind, **body):
    name = f"{kind}{base}"
    made = type(
        name, (getattr(copyless, base),), {"__init__": initialize, "method": method, "__module__": __name__, **body}
    )
    globals()[name] = made


def get_state(self):
    return {"base": type(self).__mro__[1].__getstate__(self), "more": self.extra + 1}


def set_state(self, state):
    type(self).__mro__[1].__setstate__(self, state["base"])
    self.seen = state["more"]  # `extra` came with the base's state


def rebuild(kind, state):
    made = kind.__new__(kind)
    made.__setstate__(state)
    return made


def reduce_self(self):
    return rebuild, (type(self), self.__getstate__())


for base in BASES:
    derived(base, "Plain")
    derived(base, "Stated", __getstate__=get_state, __setstate__=set_state)
    derived(base, "Slotted", __slots__=("slot", "unset"))
    derived(base, "Reduced", __reduce__=reduce_self)
KINDS = ("Plain", "Stated", "Slotted", "Reduced")


def use(obj):
    """A property that shows in the other process that it is the same object in shared memory."""
    if hasattr(obj, "put") and not hasattr(obj, "spec"):
        obj.put("from here")
    elif hasattr(obj, "spec"):
        obj.put(np.ones((2, 3), "u1"))
    elif hasattr(obj, "set"):
        obj.set()
    elif hasattr(obj, "abort"):
        obj.abort()
    elif hasattr(obj, "acquire_write"):
        assert obj.acquire_read(0)
        obj.release_read()
    else:
        assert obj.acquire(False)
        obj.release()


def used(obj):
    if hasattr(obj, "spec"):
        return obj.latest(0).seq == 1
    if hasattr(obj, "get"):
        return obj.get() == "from here"
    if hasattr(obj, "set"):
        return obj.is_set()
    return obj.broken if hasattr(obj, "abort") else True


def describe(obj):
    use(obj)
    return type(obj).__name__, obj.method(), getattr(obj, "slot", None), getattr(obj, "seen", None)


def tell(objects, conn):
    conn.send([describe(obj) for obj in objects])


def everything(kind):
    objects = []
    for base, args in BASES.items():
        obj = globals()[kind + base](*args)
        if kind == "Slotted":
            obj.slot = [base]
        objects.append(obj)
    return objects


def expected(kind, base):
    return f"{kind}{base}", 10, [base] if kind == "Slotted" else None, 6 if kind == "Stated" else None


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", ["process", "pool", "queue", "copy"])
def test_a_subclass_arrives(kind, way):
    objects = everything(kind)
    if way == "process":
        here, there = mp.Pipe()
        process = mp.get_context("spawn").Process(target=tell, args=(objects, there))
        process.start()
        there.close()
        found = here.recv()
        process.join()
    elif way == "pool":
        with copyless.get_context("spawn").Pool(1) as pool:
            found = pool.map(describe, objects)
    elif way == "queue":
        with copyless.Queue() as q:
            q.put_many(objects)
            arrived = [q.get(timeout=30) for _ in objects]
        assert all(a is not b for a, b in zip(arrived, objects, strict=True))
        found = [describe(obj) for obj in arrived]
    else:
        found = [describe(copy.copy(obj)) for obj in objects]
    assert found == [expected(kind, base) for base in BASES]
    assert all(used(obj) for obj in objects)


class OfLength(copyless.Lock):
    """Its `__new__` needs an argument."""

    def __new__(cls, length, *, unit="m"):
        made = super().__new__(cls)
        made.length = length, unit
        return made

    def __init__(self, length, *, unit="m"):
        super().__init__()

    def __getnewargs_ex__(self):
        return (self.length[0],), {"unit": self.length[1]}


def test_what_new_wants_arrives():
    arrived = pickle.loads(ForkingPickler.dumps(OfLength(3, unit="km")))
    assert type(arrived) is OfLength
    assert arrived.length == (3, "km")


def test_attributes_of_our_own_classes_arrive():
    """An attribute that is added to a plain object arrives too; an object without any costs no more than its handle."""
    for base, args in BASES.items():
        obj = getattr(copyless, base)(*args)
        plain = bytes(ForkingPickler.dumps(obj))
        assert type(pickle.loads(plain)) is type(obj)
        obj.extra = base
        arrived = pickle.loads(ForkingPickler.dumps(obj))
        assert type(arrived) is type(obj)
        assert arrived.extra == base
        assert len(plain) < 220, base


def test_each_class_names_its_own_loader():
    names = {}
    for base, args in BASES.items():
        for obj in (getattr(copyless, base)(*args), globals()[f"Plain{base}"](*args)):
            data = bytes(ForkingPickler.dumps(obj))
            strings = [arg for _, arg, _ in pickletools.genops(data) if isinstance(arg, str)]
            pickle.loads(data)  # which ends what the message holds
            (loader,) = [name for name in strings[:2] if name in _loaders.__all__]
            names.setdefault(base, set()).add(loader)
    assert all(len(each) == 1 for each in names.values())
    assert len(set.union(*names.values())) == len(BASES)


def test_a_handle_of_another_thing_is_refused():
    lock = copyless.Lock()
    _, (handle,) = lock.__reduce__()
    with pytest.raises(copyless.CorruptSegmentError):
        _loaders.queue(handle)


def test_a_condition_arrives_with_the_lock_that_was_given():
    lock = copyless.Lock()
    one, two = pickle.loads(ForkingPickler.dumps([copyless.Condition(lock), PlainCondition(lock)]))  # noqa: F821
    with one:
        assert lock.locked()
        assert not two.acquire(False)
    assert two.extra == 5


class Forgetful(copyless.Queue):
    def __getstate__(self):
        return {"extra": 1}

    def __setstate__(self, state):
        self.extra = state["extra"]


def test_a_state_without_the_base_is_a_clear_error():
    arrived = pickle.loads(ForkingPickler.dumps(Forgetful()))
    assert arrived.extra == 1
    with pytest.raises(copyless.ClosedError):
        arrived.put(1)


class OurBlock(copyless.SharedMemory):
    def method(self):
        return bytes(self.buf[:1])


class OurList(copyless.ShareableList):
    def method(self):
        return list(self)


def test_subclasses_of_the_drop_in_keep_their_class():
    block = OurBlock(create=True, size=3)
    block.buf[:1] = b"x"
    assert pickle.loads(ForkingPickler.dumps(block)).method() == b"x"
    block.unlink()
    block = OurList([1, "b"])
    assert pickle.loads(ForkingPickler.dumps(block)).method() == [1, "b"]
    block.shm.unlink()


class Counter(sharedctypes.Synchronized):
    def add(self, n):
        with self.get_lock():
            self.value += n


def test_a_subclass_of_a_values_wrapper_can_be_made():
    value = Counter(sharedctypes.RawValue("i", 3), copyless.RLock())
    value.add(2)
    arrived = pickle.loads(ForkingPickler.dumps(value))
    assert arrived.value == 5
    assert type(arrived) is Counter
    arrived.add(1)
    assert value.value == 6
