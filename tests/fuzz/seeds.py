"""Inputs made by hand, for what random inputs do not find: each field of the tables and headers, with each value that
could be mistaken for it, before each call; each refusal of the system at each of its calls; each action of another
process, at each state; and programs of the operations of each kind of object.

    python -m tests.fuzz.seeds TARGET DIRECTORY [THIN]        one in THIN of them

There are many of them, always the same ones, made again for each run of the fuzzer. Only those that reach new code go
into `corpus`. The bytes of an input are a program: `step` in fuzz_registry.c, `LLVMFuzzerTestOneInput` in fuzz_attach.c
and the `..._turn` of each kind in fuzz_objects.c read it.
"""

import hashlib
import itertools
import random
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

HERE = Path(__file__).parent

# ---- what faults.h refuses and answers

OPEN, STAT, ROOM, WRITE, MAP, MEMORY, LOCKING, LINK, SLEEP = range(9)


def refusal(kind: int, reason: int = 0, when: int = 0) -> tuple[int, int]:
    """`when`: the calls before the one that fails; 16: many fail, 64: one more does."""
    return kind + 9 * reason, when


WHYS = {
    OPEN: [0, 1, 2, 4],
    ROOM: [0, 1, 2, 3, 4],
    LINK: [0, 1, 2],
}  # errors of open, of space and of a link, which are told apart
REFUSED = [
    refusal(kind, why, when)
    for kind in range(9)
    for why in WHYS.get(kind, [0, 3])
    for when in (*range(9), 11, 16, 64, 65, 66)
]
# Answers of the system that are not errors; and late, with the calls before it.
SAID = [(236 + kind + 5 * why, when) for kind in range(5) for why in range(3) for when in (*range(6), 16)]
LATE = [(kind, 32, n) for kind in (ROOM, WRITE, MAP, MEMORY) for n in range(0, 255, 8)]

# ---- registry

WAIT = 0x80


def listed(pattern: str) -> list[str]:
    """The entries of one of the two tables of fields.h."""
    return re.findall(pattern, (HERE / "fields.h").read_text(), re.MULTILINE)


FIELDS = listed(r"^    ([A-Z]+\([\w.\[\]]+\)),$")
VALUES = len(listed(r"^    ((?:CL_|\d|U?INT)[^(\n]*),$"))
HEADERS = sum(field.startswith("HEADER") for field in FIELDS)
NEARBY = [45, 46, 47, 49, 50, 51]  # three less to three more: see fuzz_damage


def call(op: int, who: int = 0, at: int = 0, *more: int, wait: int = WAIT, high: int = 0) -> bytes:
    return bytes([op, wait | high << 6 | at << 1 | who, *more])


def aimed(field: int, entry: int, value: int) -> bytes:
    return bytes([84, WAIT, field, entry, value])


PRELUDES = [
    b"",
    call(0, 0, 7, 43, 1, 0, 0)
    + call(7, 0, 7)
    + call(7, 0, 0)
    + call(19, 0, 0, 1, 0),  # an item, another about to be put
    call(25)
    + call(7, 0, 0)
    + call(19, 0, 0, 5, 1)
    + call(9, 0, 1, 1),  # a fork, an item with a payload, a name that persists
    call(7, 1, 0)
    + call(19, 1, 0, 1, 0)
    + call(22, 0, 2, 1)
    + call(9, 0, 1, 1)
    + call(91, 0, 0, 1, 3),  # an item of another process, a POSIX object
    call(27, 0, 0, 2)
    + call(0, 0, 3, 255, 255, 4, 2)
    + call(0, 0, 4, 16, 0, 0, 8)
    + call(2, 0, 3)
    + call(2, 0, 1),  # on disk, and freed
    call(25) + call(2, 0, 0) + call(25) + call(17),  # an estate, and a death
]
CALLS = [
    *(call(op, who, at) for op in (2, 4, 6, 7, 8, 10, 20, 21) for who in (0, 1) for at in (0, 1)),
    *(call(0, who, 5, 200, 0, 0, flags) for who in (0, 1) for flags in (0, 4, 8, 26)),
    *(call(0, who, 6, 255, 255, 3, flags) for who in (0, 1) for flags in (0, 2)),
    *(call(5, who, at, 0, 7) for who in (0, 1) for at in (0, 1)),
    *(call(9, who, 2, persist) for who in (0, 1) for persist in (0, 1)),
    *(call(9, 0, 1, persist) for persist in (0, 1)),
    *(call(11, 0, at, n) for at in (0, 1) for n in (0, 1)),
    *(call(op, who, 0, 0) for op in (12, 13, 14, 15) for who in (0, 1)),
    *(call(16, who, 1, 3, 1, 1) for who in (0, 1)),
    *(call(19, who, 0, 3, with_payload) for who in (0, 1) for with_payload in (0, 1)),
    *(call(20, who, 0, 1) for who in (0, 1)),
    *(call(op, who, 2, 1) for op in (22, 23, 24) for who in (0, 1)),
    call(25), call(26), call(17), call(18), call(27, 1, 0, 0), call(27, 0, 0, 64),
    *(call(86, who, at, how, spec, 0) for who in (0, 1) for at, how, spec in ((0, 0, 0), (1, 1, 1), (0, 9, 0), (7, 18, 0), (7, 8, 0), (7, 16, 0), (7, 4, 0))),  # noqa: E501
    *(call(90, who, 0, how) for who in (0, 1) for how in (0, 1, 2, 11, 3 + 40, 5 + 32, 7 + 48, 64, 128 + 48)),
    *(call(91, who, at, how, 2) for who in (0, 1) for at in (0, 1) for how in (0, 1, 2, 3, 4, 5, 14)),
    *(call(92, who, 0, how) for who in (0, 1) for how in range(4)),
    call(93), call(94, 0, 0, 0, 20), call(94, 1, 0, 1, 40), call(95, 0, 1, 3), call(95, 1, 1, 3),
]  # fmt: skip
CHANGES = [
    *(call(87, who, 0, what, to) for who in (0, 1) for what in range(18) for to in (0, 1, 2, 4, 9, 24)),
    *(call(88, who, 0, how) for who in (0, 1) for how in range(32)),
    *(call(89, who, 0, how) for who in (0, 1) for how in (0, 1, 2, 3, 4, 9, 16, 17, 32, 130, 131, 66, 34, 20)),
    *(call(89, 0, 0, 1) + call(89, 0, 0, 0x40 + how) for how in (0, 2, 18, 130)),
    *(call(27, 0, 0, 0x80, *refused) for refused in (*REFUSED, *SAID)),
    *(call(27, 0, 0, what) for what in (2, 5, 7)),
]


def spread(*what: object, among: int) -> int:
    """A number that looks random and is the same each time."""
    return int.from_bytes(hashlib.blake2b(repr(what).encode(), digest_size=4).digest(), "little") % among


def some(n: int, *what: object) -> bytes:
    """This number of calls in a row, starting at one; some do not wait."""
    first = spread(*what, among=len(CALLS))
    step = 1 + 2 * spread(*what, "step", among=20)
    return b"".join(CALLS[(first + i * step) % len(CALLS)] for i in range(n))


def number(name: str) -> int:
    return FIELDS.index(name)


def set_field(name: str, entry: int, value: int) -> bytes:
    """To a small number."""
    return aimed(number(name), entry, 64 + value)


def of_hand() -> Iterator[bytes]:
    """Operations of several steps that belong together."""
    drafts = [call(94, 1, 0, 1, n) for n in (40, 100, 200)]
    segment = [
        set_field("SEGMENT(state)", e, state) + set_field("SEGMENT(owner)", e, 2)
        for e in (0, 1, 2, 3, 5)
        for state in (1, 3)
    ]
    lost = call(87, 0, 0, 13, 0)
    for busy in (b"", lost, call(27, 0, 0, 3), call(88, 0, 0, 18), call(87, 0, 0, 5, 1), call(27, 0, 0, 0x80, 240, 4)):
        for last in (call(12), call(92, 0, 0, 0), call(92, 0, 0, 2), call(92, 0, 0, 3), call(27, 0, 0, 64), call(10),
            call(9, 0, 2, 1), call(27, 1, 0, 0),
                     call(13, 0, 0, 0), call(95, 0, 1, 0)):  # fmt: skip
            for held in (*drafts, call(94, 1, 0, 3, 70), call(94, 0, 0, 3, 70), call(94, 0, 0, 4, 60),
                call(94, 0, 0, 20, 60),
                         call(94, 0, 0, 0x30, 255) + call(94, 0, 0, 0x30, 255), *segment, b""):  # fmt: skip
                yield held + busy + last + call(12)
                yield held + call(17) + busy + last + call(12)
                yield held + call(25) + call(17) + busy + last + call(25) + last
    for depth in (3, 63, 64, 65, 66, 79):
        yield call(94, 0, 0, 2, depth) + call(12)
        yield call(94, 0, 0, 0x80, depth) + call(94, 0, 0, 2, depth)
    yield call(94, 0, 0, 6, 1) + call(13)
    for refused in REFUSED:
        yield call(27, 0, 0, 0x80, *refused) + call(94, 0, 0, 6, 1)
        for name in ("CONTROL(holds_free)", "CONTROL(names_free)", "CONTROL(segments_free)"):
            yield set_field(name, 0, 0) + call(27, 0, 0, 0x80, *refused) + some(40, refused, name)
            yield (
                set_field(name, 0, 0)
                + call(27, 0, 0, 0x80, *refused)
                + call(9, 0, 1, 1)
                + call(0, 0, 5, 1, 0, 0, 8)
                + call(4, 0, 1)
            )
    for at in (6, 7):
        for c in (call(22, 0, at, 1), call(22, 0, at, 0)):
            yield call(87, 0, 0, 16, 0) + c + call(24, 0, at)
            yield call(87, 0, 0, 16, 0) + c + call(17) + call(12) + call(24, 0, 7)
    for entry, value in itertools.product(range(3), range(4)):
        for c in (call(10, 0, 0), call(10, 0, 1), call(9, 0, 2, 0), call(11, 0, 0, 0)):
            yield set_field("NAME(hash)", entry, 7) + set_field("NAME(next)", entry, value) + c
        for name in ("OWNER(unregistered)", "OWNER(leaving)", "OWNER(first_estate)", "OWNER(stage)", "OWNER(state)"):
            for c in (call(27, 1, 0, 0), call(27, 0, 0, 64), call(12), call(17) + call(12)):
                yield set_field(name, entry, value) + c
                for state in (1, 2):
                    yield set_field("OWNER(state)", entry, state) + set_field(name, entry, value) + c + call(12)
                    yield (
                        set_field("OWNER(unregistered)", entry, 1)
                        + set_field(name, entry, value)
                        + set_field("OWNER(stage)", entry, state)
                        + c
                        + call(12)
                    )
    for parent, space in itertools.product((0, 1, 2, 4, 0x31), (0, 1)):  # messages of families that have ended
        yield (call(87, 1, 0, 8, 77) + call(87, 1, 0, 9, parent) + call(87, 1, 0, 7, space) + call(4, 1, 0) + call(87, 1, 0, 9, parent ^ 0x10)  # noqa: E501
               + call(4, 1, 0) + call(22, 1, 2, 1) + call(12) + call(17) + call(12))  # fmt: skip
    for to, fd in itertools.product((0, 1), (0, 1, 2, 3)):
        for last in (
            call(12),
            call(27, 0, 0, 64),
            call(17) + call(27, 0, 0, 64),
            call(0, 0, 5, 0, 0, 0, 8),
            call(27, 1, 0, 0),
            call(25),
        ):
            for reuse in (0, 1):
                yield call(87, 0, 0, 11, to) + call(87, 0, 0, fd, reuse) + last
                yield call(87, 0, 0, fd, reuse) + call(27, 0, 0, 5) + last
    for what in (2, 18, 34, 130, 146):
        yield call(89, 0, 0, what) + call(27, 0, 0, 5) + call(12) + call(17) + call(27, 0, 0, 64)
    yield call(4, 0, 0) + call(17) + call(27, 0, 0, 64)
    for idle, warm in itertools.product((0, 1, 255), (0, 1)):
        yield (call(94, 0, 0, 3, 20) + call(94, 0, 0, 19, 20) + call(87, 0, 0, 6, warm) + call(87, 0, 0, 5, idle) + call(92, 0, 0, 1) + call(12)  # noqa: E501
               + call(92, 0, 0, 0))  # fmt: skip
    for epoch in (call(25), set_field("OWNER(epoch)", 0, 9)):
        yield PRELUDES[1] + epoch + call(19, 0, 7, 5, 1) + call(20, 0, 7, 0)
        yield PRELUDES[1] + epoch + set_field("CONTROL(holds_free)", 0, 150) + call(19, 0, 7, 5, 1) + call(20, 0, 7, 0)
        for refused in (b"", *(call(27, 0, 0, 0x80, *r) for r in REFUSED[::7])):
            yield (
                epoch
                + set_field("CONTROL(holds_free)", 0, 0)
                + refused
                + call(7, 0, 0)
                + call(19, 0, 0, 5, 1)
                + call(25)
                + call(20, 0, 0, 1)
            )
            yield epoch + refused + call(7, 0, 0) + call(19, 0, 0, 5, 1) + call(20, 0, 0, 1)
    used = HEADERS + [field.partition("(")[0] for field in FIELDS[HEADERS:]].index("HOLD")
    ends = [
        call(19, 0, 7, 5, 1) + call(21, 0, 0, 0) + call(20, 0, 7, 0) + call(12),
        call(19, 0, 0, 5, 1) + call(21, 0, 0, 0) + call(2, 0, 0) + call(12),
        call(20, 0, 0, 0) + call(8, 0, 0) + call(6, 0, 0) + call(93),
        call(0, 0, 5, 43, 1, 0, 0)
        + call(0, 0, 6, 43, 1, 0, 4)
        + call(0, 0, 4, 255, 255, 1, 0)
        + call(2, 0, 1)
        + call(13, 0, 0, 0)
        + call(95, 0, 1, 0),
        call(93) + call(12) + call(17) + call(12) + call(27, 0, 0, 64),
    ]
    for which, field, value in itertools.product(
        (0, 1, 2, 3, 4, 5, 6, 7, 8, 16), range(len(FIELDS) - used), (64, 65, 66, 68, VALUES - 3, 49)
    ):
        for n, end in enumerate(ends):
            for prelude in (1, 2, 3, 4):
                if spread(which, field, value, n, prelude, among=2 if which in (0, 1, 2, 3, 16) else 4) == 0:
                    yield PRELUDES[prelude] + call(85, 0, 7 if which & 24 else 0, which, field, value) + end
    for to in range(0, 256, 4):
        yield PRELUDES[1] + call(87, 0, 0, 12, to) + call(19, 0, 7, 5, 1)
        yield call(7, 0, 0) + call(87, 0, 0, 12, to) + call(19, 0, 0, 5, 1) + call(2, 0, 0) + call(5, 0, 0, 0, 0)


def short() -> Iterator[bytes]:
    """Few steps each."""
    stopped, gone = call(27, 0, 0, 3), call(27, 0, 0, 5)
    for n, at in itertools.product((0, 1, 3), (0, 1)):  # a release while another process is stopped is put off
        for first in (b"", call(4, 0, 0), call(7, 0, 0) + call(7, 0, 1)):
            yield first + stopped + call(6, 0, at) * n + call(2, 0, at) + call(6, 0, 1 - at) + call(4, 0, at)
            yield first + stopped + call(27, 0, 0, 0x80, 5, n) + call(6, 0, at) + call(6, 0, at) + call(2, 0, at)
            yield (
                first
                + call(87, 0, 0, 17, 4 * at + n)
                + call(6, 0, at)
                + call(90, 0, at, 1)
                + call(6, 0, at)
                + call(2, 0, at)
            )
    for who, at, how in itertools.product((0, 1), (0, 1), (1, 0)):
        load = call(90, who, at, how)
        yield stopped + load
        yield gone + call(90, who, at, how) + call(5, who, at, 0, 7)
        for field, entry, value in itertools.product(
            ("OWNER(incarnation)", "OWNER(state)", "HOLD(kind)", "HOLD(owner)"), range(4), (0, 2, 5)
        ):
            yield set_field(field, entry, value) + load
        for to in (0, 4, 9, 24):
            yield call(87, who, 0, 12, to) + load
    for at, family in itertools.product((6, 7), (0, 1)):
        made = call(87, 0, 0, 16, 0) + call(22, 0, at, family)
        yield made + call(24, 0, at)
        yield made + call(24, 0, 13 - at)
        for field, value in itertools.product(
            ("BLOCK(name)", "BLOCK(holds)", "NAME(device)", "NAME(inode)"), (64, 65, 70, 120, 21)
        ):
            if field[0] == "B":
                other = call(87, 1, 0, 8, 77) + call(87, 0, 0, 16, 0) + call(22, 1, at, 1)  # of a family that ends
                yield other + call(85, 1, 0, 7, number(field) - number("HOLD(kind)"), value) + call(17) + call(12)
                yield made + call(85, 0, 0, 7, number(field) - number("HOLD(kind)"), value) + call(24, 0, at)
            for entry in range(3):
                yield made + aimed(number(field), entry, value) + call(24, 0, at)


def audited() -> Iterator[bytes]:
    """The tables, one field of which another process damages without taking a lock."""
    for field in range(HEADERS, len(FIELDS)):
        for entry, value in itertools.product(range(3), (0, VALUES - 3, 65, 66, 67, 68, 70, 49, 47)):
            p = spread(field, entry, value, among=len(PRELUDES))
            yield PRELUDES[p] + call(14, 0, 0, field, entry, value, high=1)
    free_page = [number("CONTROL(marks_free)"), 0, 65]
    yield call(14, 0, 1 << 3, number("CONTROL(marks_high)"), 0, 67, *free_page, high=1)
    for word in range(4):  # a page that is its own successor
        yield bytes([96, 0, 9, 18, word, 0, 1]) + call(
            14, 0, 1 << 3, number("CONTROL(marks_high)"), 0, 65, *free_page, high=1
        )
    for entry, value in itertools.product(range(3), (64 + 8, 64 + 100, VALUES - 3)):  # a segment that is being removed
        for name in ("SEGMENT(class_index)", "SEGMENT(nblocks)"):
            yield call(14, 0, 1 << 3, number("SEGMENT(state)"), entry, 67, number(name), entry, value, high=1)
    for field, value in itertools.product(
        ("HOLD(kind)", "BLOCK(state)", "BLOCK(first_child)", "HOLD(next)", "HOLD(prev)", "HOLD(channel)"), range(8)
    ):
        for entry in range(5):
            yield PRELUDES[1] + call(14, 0, 0, number(field), entry, 64 + value, high=1)
    for entry in range(8):
        yield call(14, 0, 0, number("SEGMENT(next)"), entry, 65 + entry, high=1)  # a free one that is its own successor
    for entry in range(32):
        yield PRELUDES[1] + call(14, 0, 0, number("HOLD(channel)"), entry, VALUES - 3, high=1)
    for entry, block in enumerate((65, 8, 9)):  # one more name, of a block, and in no chain
        more = [number("NAME(kind)"), 3, 65, number("NAME(block)"), 3, block, number("BLOCK(name)"), entry, 68]
        yield call(14, 0, 3 << 3, *more, number("CONTROL(names_free)"), 0, 64, high=1)
    on_disk = call(27, 0, 0, 2) + call(0, 0, 3, 255, 255, 4, 2)
    yield on_disk + call(14) + call(2, 0, 3) + call(14)
    for n in range(9):
        yield (
            call(27, 0, 0, 0x80, *refusal(MEMORY, 0, n))
            + call(14)
            + call(27, 0, 0, 0x80, *refusal(MEMORY, 0, n))
            + call(15)
        )
    gone = call(1, 0, 2, 255, 255, 3, 0)
    for c in (*CALLS, call(2, 0, 1), call(2, 1, 1), call(13, 0, 0, 0), gone, call(92, 0, 0, 3)):
        yield call(15, 0, 0, high=1) + c
        yield gone + call(15, 0, 2 << 3, high=1) + call(2, 0, 2) + call(13, 0, 0, 0) + c
        yield (
            gone
            + call(15, 0, 2 << 3, high=1)
            + call(2, 0, 2)
            + call(13, 0, 0, 0)
            + set_field("CONTROL(guard)", 0, 0)
            + c
        )
        yield call(27, 0, 0, 1 | 4) + call(15, 0, 0, high=1) + c


def posix() -> Iterator[bytes]:
    """Objects at the standard library's place, whose entry, segment or hold is damaged, or for which there is no
    memory.
    """
    wrong = ("NAME(next)", "NAME(block)", "NAME(kind)", "NAME(length)", "SEGMENT(id)", "SEGMENT(state)",
        "BLOCK(holds)")  # fmt: skip
    heads = ("CONTROL(holds_free)", "CONTROL(segments_free)", "CONTROL(names_free)")
    for family in (0, 1):
        made = call(22, 0, 2, family)
        for op, who, at in itertools.product((22, 23, 24), (0, 1), (2, 3, 5)):
            last = call(op, who, at, *([family] if op == 22 else []))
            for name, entry, value in itertools.product(wrong, range(5), (0, VALUES - 3)):
                yield made + aimed(number(name), entry, value) + last
            for name, value in itertools.product(heads, (1, VALUES - 3, 21)):
                yield made + aimed(number(name), 0, value) + last
            for n in range(5):
                for first in (b"", call(17) + call(18)):
                    yield made + first + call(27, 0, 0, 0x80, *refusal(MEMORY, 0, n)) + last
            for value in (VALUES - 3, 49, 64):
                yield (
                    made
                    + call(23, who, 2)
                    + call(85, who, 0, 7, number("SEGMENT(id)") - number("HOLD(kind)"), value)
                    + last
                )


def registry() -> Iterator[bytes]:
    used = HEADERS + [field.partition("(")[0] for field in FIELDS[HEADERS:]].index("HOLD")
    for field, value in itertools.product(range(len(FIELDS) - used), (*range(VALUES), *NEARBY)):
        for which in (0, 1, 2, 3, 4, 5, 6, 7, 8, 16):
            for way in range(2):
                p = spread(field, value, which, way, among=len(PRELUDES))
                yield (
                    PRELUDES[p]
                    + call(85, 0, 0, which, field, value)
                    + call(93) * way
                    + some(40, field, value, which, way)
                )
    for p, prelude in enumerate(PRELUDES):
        yield prelude + b"".join(CALLS)
        for change in CHANGES:
            for way in range(3):
                yield prelude + change + some(30, p, change, way)
        for c in CALLS:
            for change in CHANGES[-6:]:
                yield prelude + change + c
            yield prelude + c + c + some(3, p, c)
    for field, name in enumerate(FIELDS[HEADERS:], HEADERS):
        entries = {"CONTROL": 1, "OWNER": 3, "NAME": 2, "HOLD": 9, "SEGMENT": 4, "BLOCK": 5}[name.partition("(")[0]]
        for entry, value in itertools.product(range(entries), (*range(VALUES), *NEARBY)):
            p = spread(field, entry, value, among=len(PRELUDES))
            for way in range(4):
                yield (
                    PRELUDES[(p + way) % len(PRELUDES)]
                    + aimed(field, entry, value)
                    + some(40, field, entry, value, way)
                )


# ---- attach


def leaving() -> Iterator[bytes]:
    """The last process exits while files are replaced, descriptors closed, locks refused."""
    sound = bytes([0, 1])
    for how, live, name in itertools.product((0x94, 0x9C, 0xD4), (0, 1), range(7)):
        yield bytes([how, *sound, 0, 1, live, name, 0, 1])
        yield bytes([how, *sound, 0, 1, live, name, 1, 1, 1])
    for how, when, why in itertools.product((0xB4, 0xB6, 0xBC), (*range(6), 16, 17, 64), range(2)):
        yield bytes([how, *sound, 0, *([0] if not how & 2 else []), 0, 6 + 9 * why, when, 0, 1])
    for how, which in itertools.product((0xB4, 0xB6, 0xBC), range(256)):
        yield bytes([how, *sound, 0, *([0] if not how & 2 else []), 64, 0, 15, which, 0, 1])
        yield bytes([how, *sound, 0, *([0] if not how & 2 else []), 0xC0, 2, which & 1, 0, 15, which, 0, 1])


def attach() -> Iterator[bytes]:
    yield from leaving()
    # how: 1 small, 2 maker lives, 4 comes before, 8 and has it mapped, 16 the registry's, 32 refusals, 64 more of them,
    # 128 waits header damage: many (noise | damage << 3), damage: field entry value; how: 1 checksum right, 2 spill,
    # ...
    sound = bytes([0, 1])  # of the header: nothing, checksum right
    for how in range(0, 256, 1):
        if not how & 32:
            yield bytes([how]) + sound
    for how, field, value in itertools.product(
        (128, 134, 142, 144, 146, 148), range(HEADERS), (*range(VALUES), *NEARBY)
    ):
        for right in (0, 1, 3, 35, 43):
            if right < 3 or (how & 16 and value < 2):
                yield bytes([how, 8, field, 0, value, right])
    for field, name in enumerate(FIELDS[HEADERS:], HEADERS):
        if name.startswith(("CONTROL", "OWNER")):
            for how, value in itertools.product((0x90, 0x94), (*range(VALUES), *NEARBY)):
                yield bytes([how, *sound, 1, 0x80, field, 0, value])
                yield bytes(
                    [how, *sound, 2, 0x80, field, 0, value, 0x80, FIELDS.index("CONTROL(persistent)"), 0, 1, 11, 0, 1]
                )
    boot = [8, FIELDS.index("HEADER(boot)"), 0, 3, 1]  # a registry of another boot, on each kind of file system
    removed = [1, 0x80, FIELDS.index("CONTROL(removed)"), 0, 1]
    persistent = [1, 0x80, FIELDS.index("CONTROL(persistent)"), 0, 1]
    both = [2, *removed[1:], *persistent[1:]]
    for header, fields, n in itertools.product((boot, list(sound)), ([0], removed, persistent, both), range(4)):
        for said in (*SAID, (6, n), (15, n), (24, n)):
            for other in ([0x80 | 1, 0], [0x80 | 1, 1], [0x80 | 1, 2, 0], [0x80 | 1, 2, 1], [0x80 | 1, 4, 18]):
                yield bytes([0xB0, *header, *fields, 11, 0, 13, *other, *said, 238, n, 1, 1])
                yield bytes([0xB2, *header, *fields, 11, 0, 13, *other, *said, 236 + n, n, 1, 1])
    # A registry is created: its file is gone, and the system refuses calls meanwhile. 11: its length stays; 0: no name.
    for gone in (
        [11, 0, 0],
        [11, 1, 0],
        [11, 1, 2],
        [11, 0, 3],
        [11, 1, 3],
        [11, 0, 1],
        [11, 0, 2],
        [11, 0, 5],
        [11, 1, 5],
        [11, 0, 13],
    ):
        for refused in (*REFUSED, *SAID, *LATE):
            yield bytes([0xB0, *sound, 0, *gone, 0, *refused, 1, 1])
            yield bytes([0xB0, *sound, 0, *gone, 1, 0, 16, *refused, 1, 1])  # no nameless files
        for other, which in itertools.product(range(128), range(0, 256, 5)):
            if spread(other, which, among=8) == 0:
                yield bytes(
                    [0xB0, *sound, 0, *gone, 0x80, other, which, which ^ 16, which ^ 64, which ^ 2, 0, 15, 1, 1]
                )
    for how, refused, other in itertools.product(
        (0xA2, 0xA6, 0xAE, 0xAC, 0xB2), (0x20, 0xA0, 0x60, 0xE0, 0xB0, 0xC0, 0xD1), (0, 1, 2, 64, 96, 32, 66)
    ):
        for name, which in itertools.product((0, 1, 4, 5, 13), (0, 8, 136, 9, 10, 32, 64)):  # one is stopped
            between = [0, 1, 11, name] if not how & 16 else [0, 1, 0]
            more = [other] if refused & 128 else []
            yield bytes(
                [
                    how,
                    *between,
                    refused,
                    *more,
                    *([1] if other & 2 else []),
                    0,
                    15,
                    *([which] if refused & 64 else []),
                    1,
                    1,
                ]
            )
    # Blocks that are loaded and made while the system refuses, or while descriptors are closed.
    for how in (0xA0, 0xA1, 0xA2, 0xA4, 0xA6, 0xAE, 0xAF, 0xEE, 0xE2, 0xB6, 0xBE, 0xF4):
        between = [0, 1, 11, 13] if not how & 16 else [0, 1, 0, 11]
        for refused in (*REFUSED, *SAID):
            yield bytes([how, *between, 0, *refused, 1, *refused, 1])
            yield bytes([how, *between, 64 | 1, *refused, 8, 15, 8, 1, *refused, 1])
        for which, name in itertools.product(range(0, 256, 1), (0, 1, 3, 4, 13)):
            if spread(how, which, name, among=6) == 0:
                yield bytes(
                    [
                        how,
                        0,
                        1,
                        11 if not how & 16 else 0,
                        name,
                        64 | spread(which, among=2) * 128,
                        0,
                        15,
                        which,
                        1,
                        0,
                        15,
                        1,
                    ]
                )


# ---- objects

LOCK, RLOCK, RWLOCK, SEMAPHORE, ROBUST, CONDITION, EVENT, BARRIER, QUEUE, RING, LIST = range(1, 12)
EVERY_SYNC = [LOCK, RLOCK, RWLOCK, SEMAPHORE, ROBUST, CONDITION, EVENT, BARRIER]
SECOND, WAITS, SPINS = 1, 0x40, 0x80  # of an operation's argument
FIRST_SELF, SECOND_SELF, LEFT, ONES, SECOND_SLEEPS, FIRST_SLEEPS, NOBODY, HUGE = range(8)  # fuzz_words


def damage(op: int, at: int, size: int, mode: int, value: int = 0) -> bytes:
    """Damage of `size` bytes at `at`.

    mode 0: value more, 1: less, 2: ones, 3: a bit flipped, 4: a byte, 5: zero, 6: all of it, 7: a word that means
    something.
    """
    index = at // size
    tail = b"" if mode == 5 else value.to_bytes(size, "little") if mode == 6 else bytes([value & 255])
    return bytes([op, 0, size.bit_length() - 1 | mode << 2]) + index.to_bytes(2, "little") + tail


class Random(random.Random):
    def one(self, *of: int) -> int:
        return of[self.randrange(len(of))]

    def arg(self) -> int:
        return (
            self.one(0, SECOND)
            | self.one(0, WAITS, WAITS)
            | self.one(0, 0, SPINS)
            | self.one(0, 2, 4, 8, 16, 32, self.randrange(64))
        )

    def value(self, size: int) -> int:
        return self.one(
            0, 1, 2, 3, 7, 64, 200, (1 << 8 * size - 1) - 1, (1 << 8 * size) - 1, self.getrandbits(8 * size)
        )


def others(r: Random, also: int, stop: int) -> bytes:
    """A call is refused, or the other process acts: while this one sleeps, yields, or is at a step of its next call."""
    which = r.randrange(8)
    if which == 0:
        return bytes(
            [
                also,
                0,
                *refusal(
                    r.one(SLEEP, SLEEP, ROOM, MEMORY, MAP, WRITE, OPEN),
                    r.randrange(4),
                    r.randrange(16) | r.one(0, 16, 64),
                ),
            ]
        )
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
    if before == 0:  # before any process has attached
        out += damage(
            170,
            *r.choice([(8, 4), (12, 4), (16, 4), (24, 8), (32, 8), (40, 8), (0, 4), (4, 4)]),
            r.one(6, 5, 4, 2, 0, 1),
            r.value(4),
        )
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
            value = (
                word() if at % 64 == 0 and at < 64 * n else r.one(r.randrange(12) << 16 | r.one(0, 1, 2, 9), r.value(8))
            )
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
            at = r.choice([(128, 4), (128, 4), (132, 4), (end, 8), (end, 4), (end + 64, 4), (end + 64, 4), *[(side + 8 * i, 8) for i in range(8)], (144, 8), (56, 8),  # noqa: E501
                           (704, 4), (708, 4), (712, 8), (720, 8)])  # fmt: skip
            out += damage(170, *at, r.one(7, 7, 6, 5, 4, 3, 0, 1, 2), r.one(r.value(4), r.randrange(8)))
        elif which == 1:
            at = 64 * r.randrange(3)
            field = r.choice(
                [(0, 4), (0, 4), (4, 4), (8, 8), (16, 8), (24, 8), (32, 8), (40, 8), (48, 8), (56, 4), (60, 4)]
            )
            out += damage(230, at + field[0], field[1], r.one(7, 7, 6, 5, 4, 0, 1), r.one(r.value(4), r.randrange(8)))
        elif which == 2:  # in the chunk
            field = r.choice([(0, 8), (64, 4), (64, 4), (68, 4), (72, 8), (80, 8), (88, 8), (96, 8)])
            out += bytes([13, r.one(0, 2)]) + damage(0, *field, r.one(6, 5, 4, 0, 1, 3), r.value(4))[2:]
        elif which < 6:
            out += others(r, 157, 156)
        elif which == 6 and r.randrange(3) == 0:
            out += bytes([r.one(158, 159), r.arg()])
        elif which == 7:
            out += (
                bytes([154, 0, r.randrange(256)])
                if r.randrange(3) == 0
                else bytes([155, 0, r.randrange(40), r.randrange(256)])
            )
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
            at = r.choice(
                [
                    (0, 4),
                    (8, 8),
                    (16, 8),
                    (24, 8),
                    (slot, 8),
                    (slot + 8, 4),
                    (slot + 8, 4),
                    (slot + 16, 8),
                    (slot + 24, 8),
                    (slot + 32, 8),
                ]
            )
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


def refuse(kind: int, reason: int = 0, when: int = 0) -> bytes:
    return bytes([125, 0, *refusal(kind, reason, when)])


MEANWHILE, ASLEEP, SLOWLY = bytes([125, 1]), bytes([125, 3]), bytes([125, 5])
INTERRUPTED, WOKEN = refuse(SLEEP), refuse(SLEEP, 3)
BOTH = bytes([126, SECOND])
SECOND_DIES = bytes([127, 0])


def step(op: int, arg: int = 0, n: int = 0) -> bytes:
    return bytes([op, arg, n])


def stop(at: int, how: int = 0, op: int = 124) -> bytes:
    """how 1: the second process dies there, 2: another thread of the same process acts; times more << 2."""
    return bytes([op, 0, at, how])


def watch(what: int, arg: int = 0, more: int = 0) -> bytes:
    """what 0: ask, 1: ring, 2: its descriptors are written, 3: until they are heard, 4: check, 6: wait."""
    return bytes([123, arg, what << 1 | more])


def queues() -> list[bytes]:
    attach = bytes([11, 0, 11, SECOND])
    long = (8000).to_bytes(2, "little") * 3
    three, block, take, take_three = (
        bytes([0, WAITS]) + long,
        bytes([2, WAITS, 100, 0]),
        bytes([3, WAITS]),
        bytes([5, WAITS]),
    )
    token = bytes([1, 16 | WAITS, 30, 0, 30, 0, 30, 0])
    plain, lent = bytes([QUEUE, 1]) + attach, bytes([QUEUE, 2]) + attach
    twice = bytes([QUEUE, 2 | 16]) + attach
    out = [plain + three * 4 + take_three * 6, plain + three * 3 + bytes([1, WAITS]) + long + take * 12]
    out += [
        plain + three * 4 + take * n + bytes([6, WAITS]) + take * 3 for n in range(7, 10)
    ]  # given up before the jump
    # leases of the dead and of a process that gave back, read by a process that waits for many objects
    for begin in (lent, twice):
        for how in (0, 8, 24, 40, 128):
            for look in (8, 24):
                out.append(begin + block + take + bytes([155, 0, 3, how, 153, 0, look, 159, 0, 153, 0, look]))
                out.append(
                    begin
                    + block
                    + take
                    + bytes([155, 0, 3, how])
                    + damage(230, 4, 4, 4, 1)
                    + bytes([153, 0, look, 159, 0, 153, 0, look])
                )
            for after in (3, 6, 9, 10, 140, 147, 150):
                out.append(begin + block + take + bytes([155, 0, 3, how, 159, 0, after, WAITS | 2, 0, 0]))
                out.append(
                    begin
                    + block
                    + take
                    + bytes([155, 0, 3, how])
                    + damage(230, 4, 4, 4, 1)
                    + bytes([159, 0, after, WAITS | 2, 0, 0])
                )
    # no process is left that could put
    for ends in (bytes([159, 0]), bytes([11, SECOND | 8 | 16])):
        for role in (4 | 16, 2 | 16):
            for filled in (b"", three):
                for how in (0, 128):
                    out.append(
                        plain
                        + bytes([11, SECOND | 2 | 16, 11, role])
                        + filled
                        + ends
                        + bytes([153, 8, 8 | 16 | 64 | how, 12, 0])
                    )
    # all users share one entry: dead, alive, of a process that never existed
    for word_of in (FIRST_SELF, SECOND_SELF, ONES):
        for which in (8, 0):
            out.append(
                plain
                + bytes([0, 2 | WAITS])
                + long
                + take
                + bytes([154, 0, word_of << 4 | which, 9, WAITS])
                + bytes([159, 0, 9, WAITS])
            )
    for how in (89, 24, 24 | 128, 8 | 128, 25):
        out.append(lent + block + take + bytes([155, 0, 3, how, 150, WAITS | 2, 150, WAITS]))
    for begin in (lent, twice):
        for end in (8, 140, 147):
            out.append(begin + block + take + bytes([end, WAITS, 0]))
            out.append(
                begin
                + block
                + take
                + damage(230, 0, 4, 7, FIRST_SELF)
                + damage(230, 4, 4, 4, 1)
                + bytes([end, WAITS, 0])
            )
            out += [
                begin + block + take + bytes([156, 0, at, 0, end, WAITS, 0, 151, sleeps])
                for at in range(8)
                for sleeps in (2, 4)
            ]
    # the lock of an end belongs to a process, live or dead
    for end in (192 + 64, 448 + 64):
        for who in (SECOND_SELF, LEFT, SECOND_SLEEPS):
            for dead in (b"", bytes([159, 0])):
                for begin in (plain, lent, twice):
                    held = begin + (block if begin is not plain else three) + damage(170, end, 4, 7, who) + dead
                    out += [
                        held + bytes([157, 3, op, WAITS | arg, 0, 0])
                        for op in (0, 3, 8, 9, 10, 140, 147, 150)
                        for arg in (0, 2)
                    ]
                    taken = (
                        begin
                        + (block if begin is not plain else bytes([0, 2 | WAITS]) + long)
                        + take
                        + damage(170, end, 4, 7, who)
                        + dead
                    )
                    out += [taken + bytes([op, WAITS | arg, 0, 0]) for op in (3, 8, 9, 10) for arg in (0, 2)]
    # the other process moves on while this one reads
    out += [begin + bytes([157, how, 3, WAITS | SPINS]) + bytes([0, SECOND | WAITS, 8, 0, 8, 0, 8, 0])
            for begin in (plain, lent) for how in (1, 3, 5)]  # fmt: skip
    out += [plain + bytes([157, 1, 7, SPINS]) + bytes([0, SECOND | WAITS, 8, 0, 8, 0, 8, 0])]
    full = bytes([QUEUE, 1 | 4]) + attach + bytes([0, WAITS, 8, 0, 8, 0, 8, 0]) * 2
    out += [
        full + bytes([157, how, 0, WAITS | SPINS | 4]) + bytes([8, 0] * 3) + bytes([3, SECOND | WAITS]) + take
        for how in (1, 3, 5)
    ]
    # the registry is held by a stopped process, or a call is refused, at each step
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
                    out += [
                        plain + bytes([157, 0, *refusal(kind, reason, after | often)]) + call + take
                        for call in (three, block)
                    ]
    for after in range(3):
        out += [
            plain + call + bytes([157, 0, *refusal(MEMORY, 0, after)]) + take * 2
            for call in (three * 4 + take_three * 3, token, block)
        ]
    return out


def rings() -> list[bytes]:
    """Each operation, and at each of its first steps an action of the other process."""
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
                        out.append(
                            begin
                            + before
                            + bytes([156, 0, at, how, first, WAITS, 0])
                            + bytes([other, WAITS | SECOND, 0]) * 2
                        )
        for lock in (NOBODY, ONES, SECOND_SELF):
            for dead in (b"", bytes([159, 0])):
                held = begin + bytes([155, 8, 8]) + damage(170, 64, 4, 7, lock) + dead
                out += [held + bytes([op, WAITS | arg, 0]) for op in (0, 10, 3, 5) for arg in (0, 32, SPINS)]
    return out


def written() -> list[bytes]:
    """Cases that random inputs are not likely to reach."""
    out = [
        # a lock is released while another process spins; a depth that is impossible; taken by another process between a
        # save and a restore, which then dies
        bytes([LOCK, 0]) + BOTH + word(64, 7, SECOND_SELF) + MEANWHILE + step(6) + word(64, 5),
        bytes([RLOCK, 0]) + BOTH + step(2) + word(68, 6, 2**32 - 1) + step(2),
        *[bytes([RLOCK, 0]) + BOTH + step(2) + stop(at) + step(4, WAITS) + step(0, SECOND) for at in range(4)],
        *[bytes([RLOCK, 0]) + BOTH + step(2) + stop(at, 4) + step(4, WAITS) + step(0, SECOND) + SECOND_DIES for at in range(4)],  # noqa: E501
        bytes([SEMAPHORE, 0]) + BOTH + INTERRUPTED + step(0, WAITS),
        bytes([SEMAPHORE, 0]) + BOTH + ASLEEP + INTERRUPTED + step(0, WAITS) + step(1, SECOND, 1),
        bytes([SEMAPHORE, 0]) + BOTH + ASLEEP + WOKEN + step(0, WAITS) + step(1, SECOND, 2),
        bytes([SEMAPHORE, 0]) + BOTH + SLOWLY + step(0, WAITS | SPINS) + step(1, SECOND, 1),
        *[bytes([RWLOCK, 0]) + BOTH + b"".join(word(88 + 8 * i, 7, SECOND_SELF) + word(92 + 8 * i, 4, 1) for i in range(6)) + dead + step(0, WAITS)  # noqa: E501
          for dead in (b"", SECOND_DIES)],
        bytes([EVENT, 0]) + BOTH + ASLEEP + INTERRUPTED + step(2, WAITS, 1) + step(0, SECOND),
        bytes([EVENT, 0]) + BOTH + ASLEEP + INTERRUPTED + step(2, WAITS, 1) + word(64, 4, 10),
        bytes([CONDITION, 0]) + BOTH + step(0) + INTERRUPTED + step(1, WAITS),
        bytes([CONDITION, 0]) + BOTH + step(0) + WOKEN + step(1, WAITS),
        bytes([CONDITION, 0]) + BOTH + step(0, SECOND) + step(0) + step(3, 0, 1) + SECOND_DIES + INTERRUPTED + step(1, WAITS),  # noqa: E501
        bytes([CONDITION, 0]) + BOTH + step(0, SECOND) + step(0) + step(3, 0, 1) + SECOND_DIES + step(3, 0, 255),
        bytes([CONDITION, 0]) + word(12, 4, 3) + bytes([126, 0]) + step(4),
        bytes([BARRIER, 0]) + BOTH + step(0) + INTERRUPTED + step(1, WAITS),
        bytes([BARRIER, 0]) + BOTH + step(0, SECOND) + step(0) + SECOND_DIES + INTERRUPTED + step(1, WAITS),
        bytes([BARRIER, 0]) + BOTH + step(0, SECOND) + step(0) + SECOND_DIES + INTERRUPTED + INTERRUPTED + step(1, WAITS) + step(1, WAITS),  # noqa: E501
        bytes([EVENT, 0]) + BOTH + watch(0, SECOND) + watch(2, 2, 16) + watch(1) + watch(3, WAITS),
        bytes([EVENT, 0]) + BOTH + watch(0, SECOND) + watch(2, 2, 16) + watch(1) + INTERRUPTED + watch(3, WAITS),
        bytes([EVENT, 0]) + BOTH + watch(0, SECOND) + watch(2, 2, 16) + watch(1) + SECOND_DIES + watch(3, WAITS),
        bytes([EVENT, 0]) + BOTH + watch(0, SECOND) + watch(2, 2, 16) + watch(1, 16) + ASLEEP + watch(3, WAITS | 16) + watch(2, SECOND | 2, 16),  # noqa: E501
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
    return [
        *out,
        *queues(),
        *rings(),
        *[
            bytes([BARRIER, 0])
            + BOTH
            + step(0, SECOND)
            + stop(at, 1)
            + step(1, SECOND | WAITS)
            + step(0)
            + step(1, WAITS)
            for at in range(5)
        ],
    ]


def objects() -> Iterator[bytes]:
    r = Random(1)
    makers: list[tuple[Callable[[Random, int], bytes], list[int], int]] = [
        (sync, EVERY_SYNC, 150), (ring, [RING], 1500), (queue, [QUEUE], 1500), (lists, [LIST], 200),
    ]  # fmt: skip
    yield from written()
    yield from (make(r, kind) for make, kinds, times in makers for kind in kinds for _ in range(times))


# ---- all of them

MADE = {"attach": attach, "registry": registry, "objects": objects}


def write(name: str, place: Path, thin: int = 1) -> int:
    """One in `thin` of them; but all of those made one by one by hand."""
    place.mkdir(parents=True, exist_ok=True)
    inputs = {bytes(made)[:500] for made in MADE[name]() if spread(made, among=thin) == 0}
    if name == "attach":
        inputs |= set(leaving())
    if name == "registry":
        inputs |= {made[:500] for part in (short, audited, posix) for made in part()}
        inputs |= {made[:500] for made in of_hand() if thin < 20 or made[0] == 84 or spread(made, among=2) == 0}
    for n, made in enumerate(sorted(inputs)):
        (place / f"{n:05}").write_bytes(made)
    return len(inputs)


if __name__ == "__main__":
    print(write(sys.argv[1], Path(sys.argv[2]), *map(int, sys.argv[3:])), "inputs")
