"""Envelopes of messages between ranks: the bytes in an inbox are overwritten, then read, by the fast path and by the
general one.
"""

import ctypes
import pickle
import threading
from typing import Any

import numpy as np

import copyless
from copyless.comm import _inbox
from copyless.errors import CopylessError
from tests.faults.wild_words import chunk_of

ENVELOPE, RECORD, TOKEN = 32, 16, 16
AS_IT_IS, LONG, IN_A_BLOCK, WITH_AN_ARRAY = range(4)  # what is sent
# Bytes that could call something in a pickle: they are filtered out.
CALLS = bytes.maketrans(b"ciRob\x81\x92\x93\x82\x83\x84QP", b"NNNNNNNNNNNNN")
REFUSED = (CopylessError, ValueError)
PICKLE = (pickle.UnpicklingError, EOFError, IndexError, KeyError, TypeError, AttributeError, OverflowError, *REFUSED)


def side(queues: list[Any], rank: int) -> Any:
    return _inbox.Inbox(queues, rank, lambda parcel: None, {}, {}, threading.Condition(), False)


class Place:
    """A group of two. It is made again when its queue has been damaged beyond use."""

    def __init__(self) -> None:
        self.queues = [copyless.SimpleQueue(), copyless.SimpleQueue()]
        self.mine, self.theirs = side(self.queues, 0), side(self.queues, 1)
        self.number = 0

    def put(self, kind: int, nbytes: int) -> int:
        """Send a message of this number of bytes. Return the address of its record, 0 if it has a block of its own."""
        self.number += 1
        mark = b"mark%08d" % self.number
        nbytes += {LONG: 3000, IN_A_BLOCK: 9000}.get(kind, 0)
        sent = mark + b"x" * nbytes
        self.theirs.send([sent, copyless.asarray(np.arange(3))] if kind == WITH_AN_ARRAY else sent, 0, 7, 1, 3, 0)
        if kind == IN_A_BLOCK:
            return 0
        chunk = chunk_of(self.queues[0])
        at = ctypes.string_at(chunk, 65536).find(mark)
        if at < 0:
            raise LookupError
        envelope = ctypes.string_at(chunk, at).rfind(b"\x45\x00\x00\x00\x01\x00\x00\x00")
        return chunk + envelope - RECORD - (TOKEN if kind == WITH_AN_ARRAY else 0)


place: Place | None = None


def test_one_input(data: bytes) -> None:
    global place
    if len(data) < 2:
        return
    if place is None or place.number > 200:
        place = Place()
    how, data = data[0], data[1:]
    kind = how >> 4 & 3
    try:
        record = place.put(kind, len(data))
    except (*REFUSED, LookupError):
        place = None
        return
    if record:
        damage(record, how, data, TOKEN if kind == WITH_AN_ARRAY else 0)
    try:
        parcel = place.mine.next(0.02)
        if parcel is not None:
            _ = parcel.context, parcel.source, parcel.tag, parcel.number, parcel.sender, parcel.nbytes
            assert parcel.number == 0 or 0 <= parcel.sender < 2
            try:
                parcel.open()
            except PICKLE:
                pass
        assert how & 0xCC or place.mine.next(0) is None
    except REFUSED:
        place = None if how & 0xCC else place
    if how & 0xCC:
        place = None


def damage(record: int, how: int, data: bytes, tokens: int) -> None:
    body = record + RECORD + tokens
    envelope, rest = data[:ENVELOPE], data[ENVELOPE:].translate(CALLS)
    if how & 1:  # only the bytes after the mark
        envelope = b"\x45\x00\x00\x00" + envelope[4:]
    if how & 2:
        envelope = b""
    ctypes.memmove(body, envelope, len(envelope))
    if rest:
        ctypes.memmove(body + ENVELOPE, rest, len(rest))
    if how & 4:  # it says that it contains holds
        ctypes.memmove(record + 4, data[:4], 4)
    if how & 8:  # it gives a longer or shorter length
        ctypes.memmove(record + 8, data[:2], 2)
    if how & 64:  # and so does the record: then it has that length
        nbytes = data[0] % 80
        ctypes.memmove(record, (RECORD + (nbytes + 7) // 8 * 8).to_bytes(4, "little"), 4)
        ctypes.memmove(record + 8, nbytes.to_bytes(8, "little"), 8)


FILES = ["copyless/comm/_inbox.pyx"]
