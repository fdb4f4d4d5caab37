"""Inputs made by hand, for what chance does not find: each field of the tables and headers, with each value that could be mistaken
for it, before each call; each refusal of the system at each of its calls; each thing that others do, at each state.

    python -m tests.fuzz.seeds registry DIRECTORY [THIN]        one in THIN of them

They are many, and are made anew each time that one fuzzes; of them only what reaches something goes into `corpus`. An input's bytes
are a program: `step` in fuzz_registry.c and `LLVMFuzzerTestOneInput` in fuzz_attach.c read it.
"""

import hashlib
import itertools
import re
import sys
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).parent
WAIT = 0x80


def listed(pattern: str) -> list[str]:
    """The entries of one of the two tables of fields.h."""
    return re.findall(pattern, (HERE / "fields.h").read_text(), re.MULTILINE)


FIELDS = listed(r"^    ([A-Z]+\([\w.\[\]]+\)),$")
VALUES = len(listed(r"^    ((?:CL_|\d|U?INT)[^(\n]*),$"))
HEADERS = sum(field.startswith("HEADER") for field in FIELDS)
NEARBY = [45, 46, 47, 49, 50, 51]  # three less to three more: see fuzz_damage
WHYS = {
    0: [0, 1, 2, 4],
    2: [0, 1, 2, 3, 4],
    7: [0, 1, 2],
}  # errors of an opening, of room and of a link that are told apart
# What faults.h refuses, and the calls of each before the one that fails. 236 and on: what the system says that is no error.
REFUSED = [
    (kind + 9 * why, when)
    for kind in range(9)
    for why in WHYS.get(kind, [0, 3])
    for when in (*range(9), 11, 16, 64, 65, 66)
]
SAID = [(236 + kind + 5 * why, when) for kind in range(5) for why in range(3) for when in (*range(6), 16)]
LATE = [(kind, 32, n) for kind in (2, 3, 4, 5) for n in range(0, 255, 8)]


def call(op: int, who: int = 0, at: int = 0, *more: int, wait: int = WAIT, high: int = 0) -> bytes:
    return bytes([op, wait | high << 6 | at << 1 | who, *more])


def damage(field: int, entry: int, value: int) -> bytes:
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
    + call(91, 0, 0, 1, 3),  # another's item, a POSIX object
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
    *(call(86, who, at, how, spec, 0) for who in (0, 1) for at, how, spec in ((0, 0, 0), (1, 1, 1), (0, 9, 0), (7, 18, 0), (7, 8, 0), (7, 16, 0), (7, 4, 0))),
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
    """A number that looks like chance, and is the same each time."""
    return int.from_bytes(hashlib.blake2b(repr(what).encode(), digest_size=4).digest(), "little") % among


def some(n: int, *what: object) -> bytes:
    """So many calls in a row, from one on; some do not wait."""
    first = spread(*what, among=len(CALLS))
    step = 1 + 2 * spread(*what, "step", among=20)
    return b"".join(CALLS[(first + i * step) % len(CALLS)] for i in range(n))


def number(name: str) -> int:
    return FIELDS.index(name)


def set_field(name: str, entry: int, value: int) -> bytes:
    """To a small number."""
    return damage(number(name), entry, 64 + value)


def of_hand() -> Iterator[bytes]:
    """What takes several steps that belong together."""
    drafts = [call(94, 1, 0, 1, n) for n in (40, 100, 200)]
    segment = [
        set_field("SEGMENT(state)", e, state) + set_field("SEGMENT(owner)", e, 2)
        for e in (0, 1, 2, 3, 5)
        for state in (1, 3)
    ]
    lost = call(87, 0, 0, 13, 0)
    for busy in (b"", lost, call(27, 0, 0, 3), call(88, 0, 0, 18), call(87, 0, 0, 5, 1), call(27, 0, 0, 0x80, 240, 4)):
        for last in (call(12), call(92, 0, 0, 0), call(92, 0, 0, 2), call(92, 0, 0, 3), call(27, 0, 0, 64), call(10), call(9, 0, 2, 1), call(27, 1, 0, 0),
                     call(13, 0, 0, 0), call(95, 0, 1, 0)):  # fmt: skip
            for held in (*drafts, call(94, 1, 0, 3, 70), call(94, 0, 0, 3, 70), call(94, 0, 0, 4, 60), call(94, 0, 0, 20, 60),
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
        yield (call(87, 1, 0, 8, 77) + call(87, 1, 0, 9, parent) + call(87, 1, 0, 7, space) + call(4, 1, 0) + call(87, 1, 0, 9, parent ^ 0x10)
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
        yield (call(94, 0, 0, 3, 20) + call(94, 0, 0, 19, 20) + call(87, 0, 0, 6, warm) + call(87, 0, 0, 5, idle) + call(92, 0, 0, 1) + call(12)
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
    for n, at in itertools.product((0, 1, 3), (0, 1)):  # what is let go while another is stopped is put off
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
                yield made + damage(number(field), entry, value) + call(24, 0, at)


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
                    + damage(field, entry, value)
                    + some(40, field, entry, value, way)
                )


def leaving() -> Iterator[bytes]:
    """The last one leaves, while files are replaced, descriptors closed, locks refused."""
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
    # how: 1 small, 2 maker lives, 4 comes before, 8 and has it mapped, 16 the registry's, 32 refusals, 64 more of them, 128 waits
    # header damage: many (noise | damage << 3), damage: field entry value; how: 1 checksum right, 2 spill, ...
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
    # A registry that is made: its file is gone, and what the system refuses meanwhile. 11: its length stays; 0: no name.
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
        for name, which in itertools.product((0, 1, 4, 5, 13), (0, 8, 136, 9, 10, 32, 64)):  # one is stopped, files go
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
    # Blocks that are loaded and made while the system refuses, or descriptors are closed.
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


MADE = {"attach": attach, "registry": registry}


def write(name: str, place: Path, thin: int = 1) -> int:
    """One in `thin` of them; those that are one by one made by hand all."""
    place.mkdir(parents=True, exist_ok=True)
    inputs = {bytes(made)[:500] for made in MADE[name]() if spread(made, among=thin) == 0}
    if name == "attach":
        inputs |= set(leaving())
    if name == "registry":
        inputs |= set(short())
        inputs |= {made[:500] for made in of_hand() if thin < 20 or made[0] == 84 or spread(made, among=2) == 0}
    for n, made in enumerate(sorted(inputs)):
        (place / f"{n:05}").write_bytes(made)
    return len(inputs)


if __name__ == "__main__":
    print(write(sys.argv[1], Path(sys.argv[2]), *map(int, sys.argv[3:])), "inputs")
