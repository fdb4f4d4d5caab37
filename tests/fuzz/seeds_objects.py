"""Inputs of the target `objects` that mean something: programs of its operations, and damage aimed at single fields.

    python -m tests.fuzz.seeds_objects DIR     write them there

The fuzzer begins with them; what they reach, and no smaller input does, is kept in the corpus. Always the same ones.
"""

import random
import sys
from collections.abc import Callable
from pathlib import Path

LOCK, RLOCK, RWLOCK, SEMAPHORE, ROBUST, CONDITION, EVENT, BARRIER, QUEUE, RING, LIST = range(1, 12)
EVERY_SYNC = [LOCK, RLOCK, RWLOCK, SEMAPHORE, ROBUST, CONDITION, EVENT, BARRIER]
SECOND, WAITS, SPINS = 1, 0x40, 0x80  # of an operation's argument
# What faults.h can refuse.
OPEN, STAT, ROOM, WRITE, MAP, MEMORY, LOCKING, LINK, SLEEP = range(9)
FIRST_SELF, SECOND_SELF, LEFT, ONES, SECOND_SLEEPS, FIRST_SLEEPS, NOBODY, HUGE = range(8)  # fuzz_words


def damage(op: int, at: int, size: int, mode: int, value: int = 0) -> bytes:
    """Of `size` bytes at `at`. mode 0: value more, 1: less, 2: ones, 3: a bit flipped, 4: a byte, 5: zero, 6: all of it, 7: a word that means something."""
    index = at // size
    tail = b"" if mode == 5 else value.to_bytes(size, "little") if mode == 6 else bytes([value & 255])
    return bytes([op, 0, size.bit_length() - 1 | mode << 2]) + index.to_bytes(2, "little") + tail


class Random(random.Random):
    def one(self, *of: int) -> int:
        return of[self.randrange(len(of))]

    def arg(self) -> int:
        return self.one(0, SECOND) | self.one(0, WAITS, WAITS) | self.one(0, 0, SPINS) | self.one(0, 2, 4, 8, 16, 32, self.randrange(64))

    def value(self, size: int) -> int:
        return self.one(0, 1, 2, 3, 7, 64, 200, (1 << 8 * size - 1) - 1, (1 << 8 * size) - 1, self.getrandbits(8 * size))


def others(r: Random, also: int, stop: int) -> bytes:
    """Something is refused, or the other one acts: while one sleeps, gives way, or is at a step of its next call."""
    which = r.randrange(8)
    if which == 0:
        return bytes([also, 0, r.one(SLEEP, SLEEP, ROOM, MEMORY, MAP, WRITE, OPEN) + 9 * r.randrange(4), r.randrange(16) | r.one(0, 16, 64)])
    if which < 4:
        return bytes([also, 1 | r.randrange(4) << 1])
    return bytes([stop, 0, r.randrange(1 << r.randrange(1, 6)), r.one(0, 0, 1, 2, 4, 6, 12)])


def sync(r: Random, kind: int) -> bytes:
    out = bytes([kind, r.one(0, 0x80)]) + bytes([126, SECOND])
    fields = {LOCK: 4, RLOCK: 4, RWLOCK: 22, SEMAPHORE: 1, ROBUST: 16, CONDITION: 14, EVENT: 1, BARRIER: 12}[kind]
    for _ in range(r.randrange(3, 25)):
        which = r.randrange(12)
        if which < 2:
            at = r.one(0, 64, 64, 68, 72) if which == 0 and r.randrange(3) == 0 else 64 + 4 * r.randrange(fields)
            size = 8 if at % 8 == 0 and r.randrange(4) == 0 else 4
            out += damage(200, at, size, r.one(7, 7, 6, 5, 4, 3, 0, 1, 2), r.value(size))
        elif which < 5:
            out += others(r, 125, 124)
        elif which == 5 and r.randrange(3) == 0:
            out += bytes([127, 0])
        elif which == 6:
            out += bytes([123, r.arg(), r.randrange(256)])
        elif which == 7 and r.randrange(4) == 0:
            out += bytes([126, r.arg()])
        else:
            out += bytes([r.randrange(7), r.arg(), r.one(0, 1, 2, 3, 254, 255)])
    return out


def ring(r: Random, _kind: int) -> bytes:
    slots, room = r.randrange(4), 0
    out = bytes([RING, slots | r.one(0, 4) | r.one(0, 8) | room << 4])
    n = slots + 2
    before = r.randrange(12)
    if before == 0:  # before anybody has attached
        out += damage(170, *r.choice([(8, 4), (12, 4), (16, 4), (24, 8), (32, 8), (40, 8), (0, 4), (4, 4)]), r.one(6, 5, 4, 2, 0, 1), r.value(4))
        if r.randrange(2):
            out += damage(170, *r.choice([(8, 4), (12, 4), (24, 8), (32, 8), (40, 8)]), r.one(6, 5, 4), r.value(4))
    elif before == 1:
        out += bytes([152, r.randrange(256)])
    out += bytes([11, 0, 11, SECOND])

    def word() -> int:
        return r.randrange(4) << 62 | r.one(0, 1, 2, 63, 64, 4095) << 50 | r.one(0, 1, 2, 3, 4, 5, 9, (1 << 44) - 1)

    for _ in range(r.randrange(4, 40)):
        which = r.randrange(20)
        if which == 0:
            at = r.choice([(64, 4), (64, 4), (68, 4), (72, 4), (76, 4), (80, 8), (80, 8), (96, 4), (56, 8)])
            out += damage(170, *at, r.one(7, 7, 6, 5, 4, 3, 0, 1, 2), r.one(r.value(4), r.randrange(8)))
        elif which == 1:
            at = r.choice([(0, 4), (4, 4), (8, 8), (32, 4), (36, 4), (40, 8)])
            out += damage(200, *at, r.one(7, 7, 6, 5, 4, 0, 1), r.one(r.value(4), r.randrange(8)))
        elif which == 2:
            at = r.one(64 * r.randrange(n), 64 * r.randrange(n) + 16, 64 * n + 8 * r.randrange(n), 72 * n)
            value = word() if at % 64 == 0 and at < 64 * n else r.one(r.randrange(12) << 16 | r.one(0, 1, 2, 9), r.value(8))
            out += damage(240, at, 8, r.one(6, 6, 6, 5, 0, 1, 3), value)
        elif which < 6:
            out += others(r, 157, 156)
        elif which == 6 and r.randrange(3) == 0:
            out += bytes([r.one(158, 159, 154, 154), r.arg()])
        elif which == 7 and r.randrange(2) == 0:
            out += bytes([155, r.one(2, 4, 8, 16, 6, 16 | 32 * r.randrange(8)), r.randrange(256)])
        elif which == 8:
            out += bytes([153, r.arg(), r.randrange(256)])
        elif which == 9:
            out += bytes([152, r.arg()])
        elif which < 13:
            out += bytes([0, who := r.one(0, SECOND) | r.one(0, WAITS), 0, who])
        else:
            out += bytes([r.one(0, 2, 3, 4, 5, 5, 6, 7, 7, 9, 10, 11), r.arg(), r.randrange(10)])
    return out


def queue(r: Random, _kind: int) -> bytes:
    out = bytes([QUEUE, r.randrange(32)])
    before = r.randrange(16)
    if before == 0:
        out += damage(170, *r.choice([(8, 4), (12, 4), (16, 4), (0, 4), (4, 4)]), r.one(6, 5, 4, 2, 0, 1), r.value(4))
    elif before == 1:
        out += bytes([153, r.randrange(256)])
    out += bytes([11, 0, 11, SECOND])
    put, get = 192, 192 + 64 + 64 + 128  # the ends
    for _ in range(r.randrange(4, 40)):
        which = r.randrange(20)
        if which == 0:
            end = r.one(put, get)
            side = end + 128 + 64 * r.randrange(2)
            at = r.choice([(128, 4), (128, 4), (132, 4), (end, 8), (end, 4), (end + 64, 4), (end + 64, 4), *[(side + 8 * i, 8) for i in range(8)], (144, 8), (56, 8),
                           (704, 4), (708, 4), (712, 8), (720, 8)])  # fmt: skip
            out += damage(170, *at, r.one(7, 7, 6, 5, 4, 3, 0, 1, 2), r.one(r.value(4), r.randrange(8)))
        elif which == 1:
            at = 64 * r.randrange(3)
            field = r.choice([(0, 4), (0, 4), (4, 4), (8, 8), (16, 8), (24, 8), (32, 8), (40, 8), (48, 8), (56, 4), (60, 4)])
            out += damage(230, at + field[0], field[1], r.one(7, 7, 6, 5, 4, 0, 1), r.one(r.value(4), r.randrange(8)))
        elif which == 2:  # in the chunk
            field = r.choice([(0, 8), (64, 4), (64, 4), (68, 4), (72, 8), (80, 8), (88, 8), (96, 8)])
            out += bytes([13, r.one(0, 2)]) + damage(0, *field, r.one(6, 5, 4, 0, 1, 3), r.value(4))[2:]
        elif which < 6:
            out += others(r, 157, 156)
        elif which == 6 and r.randrange(3) == 0:
            out += bytes([r.one(158, 159), r.arg()])
        elif which == 7:
            out += bytes([154, 0, r.randrange(256)]) if r.randrange(3) == 0 else bytes([155, 0, r.randrange(40), r.randrange(256)])
        elif which == 8:
            out += bytes([153, r.arg(), r.randrange(256)])
        elif which == 9:
            out += bytes([151, r.randrange(16)])
        elif which < 13:
            sizes = b"".join(r.one(0, 8, 30, 100, 2000, 8000).to_bytes(2, "little") for _ in range(3))
            out += bytes([r.one(0, 1), r.arg()]) + sizes
        elif which == 13:
            out += bytes([2, r.arg() | WAITS]) + r.one(20, 100, 5000).to_bytes(2, "little")
        elif which < 16:
            out += bytes([r.one(3, 4, 5, 6), r.arg()])
        elif which < 18:
            out += bytes([r.one(140, 147, 150), r.arg(), r.randrange(4)])
        else:
            out += bytes([r.one(6, 7, 8, 9, 10, 11, 12, 152), r.arg(), r.randrange(4)])
    return out


def lists(r: Random, _kind: int) -> bytes:
    out = bytes([LIST])
    for _ in range(r.randrange(3, 20)):
        which = r.randrange(10)
        if which == 0:
            slot = 64 + 64 * r.randrange(4)
            at = r.choice([(0, 4), (8, 8), (16, 8), (24, 8), (slot, 8), (slot + 8, 4), (slot + 8, 4), (slot + 16, 8), (slot + 24, 8), (slot + 32, 8)])
            out += damage(200, *at, r.one(7, 7, 6, 5, 4, 0, 1, 2), r.one(r.value(4), r.randrange(8)))
        elif which == 1:
            out += bytes([124, r.randrange(256), r.randrange(256), r.randrange(256)])
        elif which == 2:
            out += bytes([126, r.one(2, r.randrange(256))])
        elif which == 3:
            out += bytes([r.one(127, 125), 0, SLEEP, r.randrange(8)])
        else:
            out += bytes([r.randrange(2), r.arg(), r.randrange(6), r.randrange(5), r.one(0, 8, 13, 100, 200)])
    return out


def word(at: int, mode: int, value: int = 0) -> bytes:
    return damage(200, at, 4, mode, value)


def refuse(kind: int, reason: int = 0, after: int = 0, often: int = 0) -> bytes:
    return bytes([125, 0, kind + 9 * reason, after | often])


MEANWHILE, ASLEEP, SLOWLY = bytes([125, 1]), bytes([125, 3]), bytes([125, 5])
INTERRUPTED, WOKEN = refuse(SLEEP), refuse(SLEEP, 3)
BOTH = bytes([126, SECOND])
SECOND_DIES = bytes([127, 0])


def step(op: int, arg: int = 0, n: int = 0) -> bytes:
    return bytes([op, arg, n])


def stop(at: int, how: int = 0, op: int = 124) -> bytes:
    """how 1: the second one dies there, 2: another thread of the same process acts; times more << 2."""
    return bytes([op, 0, at, how])


def watch(what: int, arg: int = 0, more: int = 0) -> bytes:
    """what 0: ask, 1: ring, 2: its descriptors are written, 3: until they are heard, 4: look, 6: wait."""
    return bytes([123, arg, what << 1 | more])


def queues() -> list[bytes]:
    attach = bytes([11, 0, 11, SECOND])
    long = (8000).to_bytes(2, "little") * 3
    three, block, take, take_three = bytes([0, WAITS]) + long, bytes([2, WAITS, 100, 0]), bytes([3, WAITS]), bytes([5, WAITS])
    token = bytes([1, 16 | WAITS, 30, 0, 30, 0, 30, 0])
    plain, lent = bytes([QUEUE, 1]) + attach, bytes([QUEUE, 2]) + attach
    twice = bytes([QUEUE, 2 | 16]) + attach
    out = [plain + three * 4 + take_three * 6, plain + three * 3 + bytes([1, WAITS]) + long + take * 12]
    out += [plain + three * 4 + take * n + bytes([6, WAITS]) + take * 3 for n in range(7, 10)]  # given up before the jump
    # leases of the dead and of who gave back, in the eyes of one who waits for many things
    for begin in (lent, twice):
        for how in (0, 8, 24, 40, 128):
            for look in (8, 24):
                out.append(begin + block + take + bytes([155, 0, 3, how, 153, 0, look, 159, 0, 153, 0, look]))
                out.append(begin + block + take + bytes([155, 0, 3, how]) + damage(230, 4, 4, 4, 1) + bytes([153, 0, look, 159, 0, 153, 0, look]))
            for after in (3, 6, 9, 10, 140, 147, 150):
                out.append(begin + block + take + bytes([155, 0, 3, how, 159, 0, after, WAITS | 2, 0, 0]))
                out.append(begin + block + take + bytes([155, 0, 3, how]) + damage(230, 4, 4, 4, 1) + bytes([159, 0, after, WAITS | 2, 0, 0]))
    # nobody is left who could put
    for ends in (bytes([159, 0]), bytes([11, SECOND | 8 | 16])):
        for role in (4 | 16, 2 | 16):
            for filled in (b"", three):
                for how in (0, 128):
                    out.append(plain + bytes([11, SECOND | 2 | 16, 11, role]) + filled + ends + bytes([153, 8, 8 | 16 | 64 | how, 12, 0]))
    # all users are one: dead, alive, of one who was never there
    for word_of in (FIRST_SELF, SECOND_SELF, ONES):
        for which in (8, 0):
            out.append(plain + bytes([0, 2 | WAITS]) + long + take + bytes([154, 0, word_of << 4 | which, 9, WAITS]) + bytes([159, 0, 9, WAITS]))
    for how in (89, 24, 24 | 128, 8 | 128, 25):
        out.append(lent + block + take + bytes([155, 0, 3, how, 150, WAITS | 2, 150, WAITS]))
    for begin in (lent, twice):
        for end in (8, 140, 147):
            out.append(begin + block + take + bytes([end, WAITS, 0]))
            out.append(begin + block + take + damage(230, 0, 4, 7, FIRST_SELF) + damage(230, 4, 4, 4, 1) + bytes([end, WAITS, 0]))
            out += [begin + block + take + bytes([156, 0, at, 0, end, WAITS, 0, 151, sleeps]) for at in range(8) for sleeps in (2, 4)]
    # an end's lock is somebody's, who lives, or is dead
    for end in (192 + 64, 448 + 64):
        for who in (SECOND_SELF, LEFT, SECOND_SLEEPS):
            for dead in (b"", bytes([159, 0])):
                for begin in (plain, lent, twice):
                    held = begin + (block if begin is not plain else three) + damage(170, end, 4, 7, who) + dead
                    out += [held + bytes([157, 3, op, WAITS | arg, 0, 0]) for op in (0, 3, 8, 9, 10, 140, 147, 150) for arg in (0, 2)]
                    taken = begin + (block if begin is not plain else bytes([0, 2 | WAITS]) + long) + take + damage(170, end, 4, 7, who) + dead
                    out += [taken + bytes([op, WAITS | arg, 0, 0]) for op in (3, 8, 9, 10) for arg in (0, 2)]
    # the other one moves on while one looks on
    out += [begin + bytes([157, how, 3, WAITS | SPINS]) + bytes([0, SECOND | WAITS, 8, 0, 8, 0, 8, 0])
            for begin in (plain, lent) for how in (1, 3, 5)]  # fmt: skip
    out += [plain + bytes([157, 1, 7, SPINS]) + bytes([0, SECOND | WAITS, 8, 0, 8, 0, 8, 0])]
    full = bytes([QUEUE, 1 | 4]) + attach + bytes([0, WAITS, 8, 0, 8, 0, 8, 0]) * 2
    out += [full + bytes([157, how, 0, WAITS | SPINS | 4]) + bytes([8, 0] * 3) + bytes([3, SECOND | WAITS]) + take for how in (1, 3, 5)]
    # the registry is held by one who is stopped, or something is refused, at each step
    for sleeps in (2, 4, 8):
        for at in range(12):
            for begin in (plain, lent):
                for call in (three, block, token, take, bytes([8, 0, 0]), bytes([10, 2])):
                    out.append(begin + block + bytes([156, 0, at, 0]) + call + bytes([151, sleeps]) + take)
                out.append(begin + bytes([156, 0, at, 0]) + block + bytes([151, sleeps]) + take)
    for kind in (OPEN, STAT, ROOM, WRITE, MAP, MEMORY):
        for reason in range(4 if kind in (OPEN, ROOM, MAP) else 1):
            for after in range(8):
                for often in (0, 16):
                    out += [plain + bytes([157, 0, kind + 9 * reason, after | often]) + call + take for call in (three, block)]
    for after in range(3):
        out += [plain + call + bytes([157, 0, MEMORY, after]) + take * 2 for call in (three * 4 + take_three * 3, token, block)]
    return out


def rings() -> list[bytes]:
    """Each operation, and at each of its first steps another."""
    publish, by_second = bytes([0, WAITS, 0, WAITS]), bytes([0, WAITS | SECOND, 0, WAITS | SECOND])
    out = []
    for slots in (0, 4):
        begin = bytes([RING, slots, 11, 0, 11, SECOND]) + publish + by_second + publish
        begin += bytes([5, 2 if slots else 0, 0, 5, SECOND, 0])
        for first in (0, 2, 3, 4, 5, 6, 7, 9, 10):
            before = bytes([3, WAITS, 0]) if first == 9 else bytes([0, WAITS]) if first == 2 else b""
            for other in (0, 3, 7, 9, 10):
                for at in range(10):
                    for how in (0, 4, 6):
                        out.append(begin + before + bytes([156, 0, at, how, first, WAITS, 0]) + bytes([other, WAITS | SECOND, 0]) * 2)
        for lock in (NOBODY, ONES, SECOND_SELF):
            for dead in (b"", bytes([159, 0])):
                held = begin + bytes([155, 8, 8]) + damage(170, 64, 4, 7, lock) + dead
                out += [held + bytes([op, WAITS | arg, 0]) for op in (0, 10, 3, 5) for arg in (0, 32, SPINS)]
    return out


def written() -> list[bytes]:
    """What chance is not likely to come to."""
    out = [
        # a lock is let go while one looks on; a depth that nobody has; taken by another between a save and a restore, who dies
        bytes([LOCK, 0]) + BOTH + word(64, 7, SECOND_SELF) + MEANWHILE + step(6) + word(64, 5),
        bytes([RLOCK, 0]) + BOTH + step(2) + word(68, 6, 2**32 - 1) + step(2),
        *[bytes([RLOCK, 0]) + BOTH + step(2) + stop(at) + step(4, WAITS) + step(0, SECOND) for at in range(4)],
        *[bytes([RLOCK, 0]) + BOTH + step(2) + stop(at, 4) + step(4, WAITS) + step(0, SECOND) + SECOND_DIES for at in range(4)],
        bytes([SEMAPHORE, 0]) + BOTH + INTERRUPTED + step(0, WAITS),
        bytes([SEMAPHORE, 0]) + BOTH + ASLEEP + INTERRUPTED + step(0, WAITS) + step(1, SECOND, 1),
        bytes([SEMAPHORE, 0]) + BOTH + ASLEEP + WOKEN + step(0, WAITS) + step(1, SECOND, 2),
        bytes([SEMAPHORE, 0]) + BOTH + SLOWLY + step(0, WAITS | SPINS) + step(1, SECOND, 1),
        *[bytes([RWLOCK, 0]) + BOTH + b"".join(word(88 + 8 * i, 7, SECOND_SELF) + word(92 + 8 * i, 4, 1) for i in range(6)) + dead + step(0, WAITS)
          for dead in (b"", SECOND_DIES)],
        bytes([EVENT, 0]) + BOTH + ASLEEP + INTERRUPTED + step(2, WAITS, 1) + step(0, SECOND),
        bytes([EVENT, 0]) + BOTH + ASLEEP + INTERRUPTED + step(2, WAITS, 1) + word(64, 4, 10),
        bytes([CONDITION, 0]) + BOTH + step(0) + INTERRUPTED + step(1, WAITS),
        bytes([CONDITION, 0]) + BOTH + step(0) + WOKEN + step(1, WAITS),
        bytes([CONDITION, 0]) + BOTH + step(0, SECOND) + step(0) + step(3, 0, 1) + SECOND_DIES + INTERRUPTED + step(1, WAITS),
        bytes([CONDITION, 0]) + BOTH + step(0, SECOND) + step(0) + step(3, 0, 1) + SECOND_DIES + step(3, 0, 255),
        bytes([CONDITION, 0]) + word(12, 4, 3) + bytes([126, 0]) + step(4),
        bytes([BARRIER, 0]) + BOTH + step(0) + INTERRUPTED + step(1, WAITS),
        bytes([BARRIER, 0]) + BOTH + step(0, SECOND) + step(0) + SECOND_DIES + INTERRUPTED + step(1, WAITS),
        bytes([BARRIER, 0]) + BOTH + step(0, SECOND) + step(0) + SECOND_DIES + INTERRUPTED + INTERRUPTED + step(1, WAITS) + step(1, WAITS),
        bytes([EVENT, 0]) + BOTH + watch(0, SECOND) + watch(2, 2, 16) + watch(1) + watch(3, WAITS),
        bytes([EVENT, 0]) + BOTH + watch(0, SECOND) + watch(2, 2, 16) + watch(1) + INTERRUPTED + watch(3, WAITS),
        bytes([EVENT, 0]) + BOTH + watch(0, SECOND) + watch(2, 2, 16) + watch(1) + SECOND_DIES + watch(3, WAITS),
        bytes([EVENT, 0]) + BOTH + watch(0, SECOND) + watch(2, 2, 16) + watch(1, 16) + ASLEEP + watch(3, WAITS | 16) + watch(2, SECOND | 2, 16),
        bytes([EVENT, 0]) + BOTH + watch(0) + watch(2, 2) + watch(1) + watch(3, WAITS),
        bytes([EVENT, 0]) + watch(4, 0, 128) + step(0) + step(1) + watch(4),
    ]  # fmt: skip
    out += [bytes([LIST, 126, 2]) + more for more in (
        damage(200, 80, 8, 7, HUGE) + bytes([1, 0, 8, 0]),
        damage(200, 136, 4, 7, SECOND_SELF) + bytes([127, 0, 0, WAITS, 0, 8, 1]),
        damage(200, 136, 4, 7, SECOND_SELF) + bytes([0, WAITS, 0, 8, 1]),
        damage(200, 152, 8, 0, 1) + bytes([1, 0, 8, 1]),
        bytes([124, 54, 1, 1]), bytes([124, 63, 1, 1]), bytes([124, 128, 1, 1]),
    )]  # fmt: skip
    return [*out, *queues(), *rings(), *[bytes([BARRIER, 0]) + BOTH + step(0, SECOND) + stop(at, 1) + step(1, SECOND | WAITS) + step(0) + step(1, WAITS) for at in range(5)]]


def programs() -> list[bytes]:
    r = Random(1)
    makers: list[tuple[Callable[[Random, int], bytes], list[int], int]] = [
        (sync, EVERY_SYNC, 150), (ring, [RING], 1500), (queue, [QUEUE], 1500), (lists, [LIST], 200),
    ]  # fmt: skip
    return written() + [make(r, kind)[:500] for make, kinds, times in makers for kind in kinds for _ in range(times)]


def write(place: Path) -> None:
    place.mkdir(parents=True, exist_ok=True)
    for i, program in enumerate(programs()):
        (place / f"{i:05}").write_bytes(program)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
