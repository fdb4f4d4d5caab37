"""MPI's own collective operations among the leaders of nodes: they carry the bytes of bundles.

Every operation of ours begins with the same exchange, whatever it is: each leader gives one row of a fixed size to all
(`Iallgather`). A row says which operation and root its leader is in, how many bytes follow, and whether its node has
failed; a bundle of a few hundred bytes is in the row itself. So leaders that are in different operations find out, all
at once, before any of them begins an operation of MPI that the others do not. After the exchange all of them know the
same rows, so their calls of MPI match.

Only nonblocking forms are called, and `_mpi_waiting.wait` waits: Ctrl-C is answered, and pending receives are served.
"""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Callable, Sequence
from typing import Any

from mpi4py import MPI

from copyless._core import _copying
from copyless.comm import _bundles
from copyless.comm._bundles import ALIGN, Bundle
from copyless.comm._mpi_staging import KEPT, Staged, type_of
from copyless.comm._mpi_waiting import LARGE, under_way, wait

__all__ = ["Leaders", "Rows"]

_ROW = (
    32  # bytes at the beginning of a row: code, bytes, bytes in the row or how it failed, a number of the operation's
)
_FAILED = -1
_TEXT = 1000  # bytes of the text of an error that crosses between nodes
_TABLE = 1 << 16  # bytes that the rows of all leaders take, at most, if that leaves each row enough
_LEAST, _MOST = 128, 1024  # bytes of a row
COUNTABLE = (1 << 31) - 1  # bytes, or units of several bytes, that every version of MPI can count
_ZEROS = bytes(ALIGN)
FIXED = 4096  # bytes up to which what goes from each node to each has one size

_left: list[Any] = []  # what MPI may still use: of waits that ended by an error


class Rows:
    """The rows of all leaders."""

    __slots__ = ("nbytes", "numbers", "table", "total", "within")

    def __init__(self, table: bytearray, row: int, size: int) -> None:
        view = memoryview(table)
        numbers = view.cast("q")
        self.table, step = view, row // 8
        self.nbytes: list[int] = numbers[1::step].tolist()
        self.numbers: list[int] = numbers[3::step].tolist()
        self.within: list[int] = numbers[2::step].tolist()
        self.total = sum(self.nbytes)

    def inline(self, node: int) -> bytes:
        """The bundle in a leader's row."""
        begin = node * (len(self.table) // len(self.nbytes)) + _ROW
        return bytes(self.table[begin : begin + self.within[node]])


class Leaders:
    """Leaders(comm, rank, size)

    The leaders of the nodes of one communicator, on a communicator of their own. `rank` is the number of this leader's
    node.
    """

    def __init__(self, comm: Any, rank: int, size: int) -> None:
        self.comm, self.rank, self.size = comm, rank, size
        self.row = min(max(_TABLE // size // 8 * 8, _LEAST), _MOST)
        self.inline = self.row - _ROW  # bytes
        self._datatype: Any = None

    # ---- what all begin with

    def exchange(
        self, code: int, bundle: Any, nbytes: int, number: int, late: Callable[[], Any]
    ) -> tuple[Rows, tuple[int, int] | str | None]:
        """(the rows of all leaders, what is wrong with them).

        What is wrong is (the number of a leader, the code of its operation) if that is another operation, or the text
        of an error that a node has met. `bundle` is the error's text if this node has; otherwise the bundle that this
        node gives to others, of `nbytes`.
        """
        failed = type(bundle) is str
        within = b"" if failed or type(bundle) is not bytes or len(bundle) > self.inline else bundle
        head = array("q", (code, 0 if failed else nbytes - len(within), _FAILED if failed else len(within), number))
        row = (head.tobytes() + within).ljust(self.row, b"\0")
        table = bytearray(self.row * self.size)
        self._finish(self.comm.Iallgather((row, self.row, MPI.BYTE), (table, self.row, MPI.BYTE)), 0, late, row, table)
        codes = memoryview(table).cast("q")[0 :: self.row // 8].tolist()
        rows = Rows(table, self.row, self.size)
        if codes.count(code) != self.size:
            other = next(node for node, theirs in enumerate(codes) if theirs != code)
            return rows, (other, codes[other])
        if _FAILED in rows.within:
            return rows, self._texts(bundle if failed else "", rows.within, late)
        return rows, None

    def _texts(self, text: str, failed: list[int], late: Callable[[], Any]) -> str:
        """The error of the first node that has met one."""
        mine = text.encode(errors="replace")[:_TEXT].ljust(_TEXT, b"\0")
        found = bytearray(_TEXT * self.size)
        self._finish(self.comm.Iallgather((mine, _TEXT, MPI.BYTE), (found, _TEXT, MPI.BYTE)), 0, late, mine, found)
        begin = _TEXT * failed.index(_FAILED)
        return bytes(found[begin : begin + _TEXT]).rstrip(b"\0").decode(errors="replace")

    # ---- bytes

    def bcast(self, source: Any, nbytes: int, root: int, late: Callable[[], Any], meanwhile: Callable[[], Any]) -> Any:
        """The root's bundle of so many bytes, at each other leader; `source` is the root's. `meanwhile` is called once
        the transfer has begun.
        """
        bundle = None
        if self.rank != root:
            bundle = Bundle(_bundles.memory_for(nbytes))
            source = self._whole(bundle.whole, nbytes), ()
        buffer, kept = source
        # MPICH takes three times as long for `Ibcast` among two, if the root is the second.
        if self.size > 2:
            request = self.comm.Ibcast(buffer, root)
        elif self.rank == root:
            request = self.comm.Isend(buffer, 1 - root)
        else:
            request = self.comm.Irecv(buffer, root)
        self._finish(request, nbytes, late, buffer, *kept, meanwhile=meanwhile)
        return bundle

    def gather(self, source: Any, rows: Rows, root: int, late: Callable[[], Any]) -> Bundle | None:
        """The bundles of all leaders that are not in their rows, one after the other, at the root. `source` is this
        leader's.
        """
        layout, datatype, room = self._layout(rows.nbytes)
        buffer, kept = source if rows.nbytes[self.rank] else ((b"", 0, MPI.BYTE), ())
        got = None
        into = None
        if self.rank == root:
            got = Bundle(_bundles.memory_for(room))
            into = [got.whole, layout, datatype]
        request = self.comm.Igatherv(buffer, into, root)
        self._finish(request, room, late, buffer, into, *kept)
        return got

    def allgather(self, parts: Sequence[Any], rows: Rows, late: Callable[[], Any]) -> Bundle:
        """The bundles of all leaders that are not in their rows, one after the other, at each. `parts` make up this
        leader's.
        """
        layout, datatype, room = self._layout(rows.nbytes)
        got = Bundle(_bundles.memory_for(room))
        if rows.nbytes[self.rank]:
            begin = sum(rows.nbytes[: self.rank])
            pieces = [piece for part in parts for piece in _bundles.pieces_of(part)]
            _copying.copy_parts(memoryview(got.whole)[begin : begin + rows.nbytes[self.rank]], pieces, ALIGN)
        into = [got.whole, layout, datatype]
        self._finish(self.comm.Iallgatherv(MPI.IN_PLACE, into), room, late, into)
        return got

    def scatter(self, bundles: Any, sizes: Sequence[int], most: int, root: int, late: Callable[[], Any]) -> Any:
        """This leader's part of the root's bundles, which lie one after the other, of these sizes. `most` is the
        largest of the sizes, which all know.
        """
        if most <= FIXED:
            got: Any = bytearray(most)
            rows = b""
            if self.rank == root:
                view, at, padded = _bundles.view_of(bundles), 0, []
                for nbytes in sizes:
                    padded.append(bytes(view[at : at + nbytes]).ljust(most, b"\0"))
                    at += nbytes
                rows = b"".join(padded)
            request = self.comm.Iscatter(
                (rows, most, MPI.BYTE) if self.rank == root else None, (got, most, MPI.BYTE), root
            )
            self._finish(request, most, late, rows, got)
            return bytes(got)
        count = array("q", [0])
        counted = array("q", sizes) if self.rank == root else None
        request = self.comm.Iscatter(
            None if counted is None else (counted, 1, MPI.INT64_T), (count, 1, MPI.INT64_T), root
        )
        self._finish(request, 0, late, counted, count)
        source = None
        if self.rank == root:
            layout, datatype, _ = self._layout(sizes)
            source = [bundles.whole, layout, datatype]
        mine: Any = Bundle(_bundles.memory_for(count[0])) if self.rank != root else None
        into = MPI.IN_PLACE if mine is None else self._whole(mine.whole, count[0])
        self._finish(self.comm.Iscatterv(source, into, root), max(LARGE, count[0]), late, source, into)
        return mine

    def alltoall(self, parts: Sequence[Sequence[Any]], sizes: Sequence[int], most: int, late: Callable[[], Any]) -> Any:
        """What the other leaders give to this one, one after the other. `parts` are the pieces for each of them, `most`
        is the largest size from any leader to any.
        """
        flat = [piece for pieces in parts for piece in pieces]
        if most <= FIXED:
            given = bytearray(most * self.size)
            view = memoryview(given)
            for node, pieces in enumerate(parts):
                _copying.copy_parts(view[node * most : (node + 1) * most], list(pieces), ALIGN)
            got = bytearray(len(given))
            request = self.comm.Ialltoall((given, most, MPI.BYTE), (got, most, MPI.BYTE))
            self._finish(request, len(got), late, given, got)
            return _bundles.squeezed(got, most)
        mine, theirs = array("q", sizes), array("q", bytes(8 * self.size))
        self._finish(self.comm.Ialltoall((mine, 1, MPI.INT64_T), (theirs, 1, MPI.INT64_T)), 0, late, mine, theirs)
        given_at, given_type, room = self._layout(sizes)
        staged = _bundles.memory_for(max(room, 1))
        _copying.copy_parts(staged, flat, ALIGN)
        taken_at, taken_type, nbytes = self._layout(theirs.tolist())
        result = Bundle(_bundles.memory_for(max(nbytes, 1)))
        source, into = [staged, given_at, given_type], [result.whole, taken_at, taken_type]
        self._finish(self.comm.Ialltoallv(source, into), max(room, nbytes), late, source, into)
        return result

    # ---- arrays

    def allreduce(self, array: Any, datatype: Any, op: Any, late: Callable[[], Any]) -> None:
        """MPI's reduction of an array of each leader, in place at each.

        For `reduce` too: MPICH's `Ireduce` takes six times as long for 20 MiB.
        """
        target = (array, array.size, datatype)
        self._finish(self.comm.Iallreduce(MPI.IN_PLACE, target, op), array.nbytes, late, target)

    # ---- how

    @property
    def _units(self) -> Any:
        """The datatype of ALIGN bytes. Every bundle is a multiple of it, and MPI before version 4 counts to 2**31."""
        if self._datatype is None:
            self._datatype = MPI.BYTE.Create_contiguous(ALIGN).Commit()
        return self._datatype

    def _layout(self, sizes: Sequence[int]) -> tuple[Any, Any, int]:
        """(counts of each and where each begins, the datatype that is counted, the bytes of all).

        Bytes, as long as MPI can count them: MPICH takes twice as long for 20 MiB of another type.
        """
        total = sum(sizes)
        if total > COUNTABLE * ALIGN:
            raise OverflowError(
                f"{total} bytes in one collective operation, where MPI carries {COUNTABLE * ALIGN}: divide the objects"
            )
        counts, datatype = list(sizes), MPI.BYTE
        if total > COUNTABLE:
            counts, datatype = [nbytes // ALIGN for nbytes in sizes], self._units
        return (counts, [0, *itertools.accumulate(counts)][:-1]), datatype, total

    def _whole(self, whole: object, nbytes: int) -> Any:
        """Memory of so many bytes, as MPI takes it."""
        return (whole, nbytes, MPI.BYTE) if nbytes <= COUNTABLE else (whole, nbytes // ALIGN, self._units)

    def source(self, parts: Sequence[object]) -> tuple[Any, Sequence[Any]]:
        """(bundles one after the other as MPI takes them, what must live while it does).

        To be made before the exchange: until then the others sleep, and afterwards they move bytes.
        """
        if len(parts) == 1 and type(parts[0]) is not _bundles.Stretch:
            view = _bundles.view_of(parts[0])
            return self._whole(view, view.nbytes), (view,)
        pieces = [piece for part in parts for piece in _bundles.pieces_of(part)]
        total = sum(map(_bundles.nbytes_of, parts))
        if total < KEPT:
            staged = Staged(total)
            _copying.copy_parts(staged.view, pieces, ALIGN)
            return self._whole(staged.view, total), (staged,)
        places = []
        for piece in pieces:
            nbytes = memoryview(piece).nbytes
            places.append((MPI.Get_address(piece), nbytes))
            if nbytes % ALIGN:
                places.append((MPI.Get_address(_ZEROS), -nbytes % ALIGN))
        datatype = type_of(places)
        return (MPI.BOTTOM, 1, datatype), (pieces, datatype)

    def _finish(
        self, request: Any, nbytes: int, late: Callable[[], Any], *kept: Any, meanwhile: Callable[[], Any] | None = None
    ) -> None:
        """Wait for an operation of MPI. What it uses is kept if the wait ends by an error."""
        try:
            if meanwhile is not None:
                meanwhile()
            if not request.Test():
                if nbytes >= LARGE:
                    under_way((request,))
                wait(request.Test, late)
        except BaseException:
            _left.append((request, kept))
            raise
        for each in kept:
            if isinstance(each, MPI.Datatype):
                each.Free()

    def free(self) -> None:
        if self._datatype is not None:
            self._datatype.Free()
        self.comm.Free()
