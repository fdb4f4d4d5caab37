"""Every pickle from another process is checked before it is loaded: one damaged byte must not request terabytes."""

import importlib.util
import os
import pickle
import re
import subprocess
import sys
import textwrap
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import pytest

import copyless
from copyless import _loaders
from copyless._core import _pickles
from copyless._transfer.sealed import unseal
from copyless._workers.named_functions import function_of
from copyless.comm import _packets
from copyless.comm._group import Group
from copyless.managers import _connection

# Each requests a terabyte or a memo of as many places, and is cut off there: bytearrays, bytes, two numbers of the
# memo.
BOMBS = {
    "bytearray": b"\x80\x05\x96" + (1 << 40).to_bytes(8, "little") + b"x.",
    "bytes": b"\x80\x05\x8e" + (1 << 40).to_bytes(8, "little") + b"x.",
    "memo": b"\x80\x05Nr\xff\xff\xff\x7f.",
    "memo in text": b"Np1099511627776\n.",
}


def packet(data, buffers=()):
    return _packets.Packet(data, [memoryview(buffer) for buffer in buffers]).open()


def packet_of_several(data, buffers=()):
    memory = _packets.in_memory([memoryview(buffer) for buffer in buffers or [b"1"]])
    made = pickle.loads(bytes(ForkingPickler.dumps(_Together(data, memory, [len(buffer) for buffer in buffers]))))
    return made.open()


class _Together:
    def __init__(self, *what):
        self.what = what

    def __reduce__(self):
        data, memory, sizes = self.what
        return _loaders.packet_together, (data, sizes, bytes(copyless.handle(memory)))


def sealed(data, buffers=()):
    return unseal(_loaders.sealed(data, [], *buffers))


def sealed_bytes(data, buffers=()):
    return unseal(data)


def with_storages(data, buffers=()):
    if importlib.util.find_spec("torch") is None:
        pytest.skip("without PyTorch")
    from copyless._libraries import torch as tensors

    return tensors.with_storages(data, [], [], buffers)


CALLERS = {
    "loads": lambda data, buffers=(): _pickles.loads(data, buffers or None),
    "a packet of a manager": lambda data, buffers=(): _connection._SERIALIZERS["pickle"][1](
        bytearray(data), list(buffers)
    ),
    "a packet": packet,
    "a packet of several": packet_of_several,
    "sealed": sealed,
    "sealed bytes": sealed_bytes,
    "inline": lambda data, buffers=(): _loaders.mpi_inline(data, *buffers),
    "tensors": with_storages,
    "a function's name": lambda data, buffers=(): function_of(data),
}


@pytest.mark.parametrize("caller", CALLERS)
def test_no_caller_loads_a_pickle_that_asks_for_terabytes(caller):
    for bomb in BOMBS.values():
        with pytest.raises(copyless.CorruptSegmentError, match="more memory than it has bytes") as caught:
            CALLERS[caller](bomb)
        assert isinstance(caught.value, pickle.UnpicklingError)  # code that expects pickle's own error catches it
    assert CALLERS[caller](pickle.dumps(len, 5)) is len


def test_buffers_beside_a_pickle_arrive_through_every_caller():
    parts = []
    data = pickle.dumps([pickle.PickleBuffer(b"a" * 100), 7], 5, buffer_callback=parts.append)
    for name in CALLERS.keys() - {"sealed bytes", "a function's name"}:
        if name != "tensors" or importlib.util.find_spec("torch") is not None:
            found = CALLERS[name](data, [bytes(part.raw()) for part in parts])
            assert [bytes(found[0]), found[1]] == [b"a" * 100, 7], name


def test_the_handle_of_a_group_is_looked_at():
    group = Group(2)
    whole = group.handle
    for damaged in (BOMBS["bytes"], b"", whole[:3], whole[:-1], whole[:40], b"\xff" * 4 + whole[4:], whole + b"\1"):
        with pytest.raises(copyless.CorruptSegmentError, match="the handle of a group is damaged"):
            Group.from_handle(damaged)


def test_what_is_looked_at_may_be_empty_or_any_contiguous_buffer():
    for nothing in (b"", bytearray()):
        _pickles.check_pickle(nothing)
        with pytest.raises(EOFError):
            _pickles.loads(nothing)
    data = pickle.dumps({"a": [1, 2.5, None]})
    for kind in (bytes, bytearray, memoryview):
        assert _pickles.loads(kind(data)) == {"a": [1, 2.5, None]}
    with pytest.raises(BufferError):
        _pickles.loads(memoryview(data)[::2])


def test_a_pickle_of_a_megabyte_is_looked_at_too():
    data = pickle.dumps([*range(200_000)], 5)
    assert _pickles.loads(data)[-1] == 199_999
    with pytest.raises(copyless.CorruptSegmentError):
        _pickles.loads(data[:-2] + BOMBS["memo"][3:])


def test_series_that_go_as_polars_pickles_them_are_looked_at():
    pl = pytest.importorskip("polars")
    from copyless._libraries import polars

    series = pl.Series("o", [1, 2])
    function, arguments = polars._Plainly(series).__reduce__()
    assert function(*arguments).to_list() == [1, 2]
    with pytest.raises(copyless.CorruptSegmentError):
        function(BOMBS["bytearray"])


def test_messages_of_mpi_are_looked_at():
    mpiexec = os.path.join(os.path.dirname(sys.executable), "mpiexec")
    if importlib.util.find_spec("mpi4py") is None or not os.path.exists(mpiexec):
        pytest.skip("MPI's environment is made by `make test`")
    program = f"""
        import pickle
        from mpi4py import MPI
        import copyless
        from copyless import comm
        from copyless.comm import _heads, _mpi_messages, mpi
        from copyless.comm._packets import in_memory
        world, bombs = comm.world(), {list(BOMBS.values())!r}

        def refused(call):
            try:
                print("took", call())
            except copyless.CorruptSegmentError as error:
                print("refused" if "more memory" in str(error) else error)

        def through(data):
            request = MPI.Comm.Isend(world, [data, MPI.BYTE], 0, 5)
            try:
                return world.recv(source=0, tag=5)
            finally:
                request.Wait()

        for bomb in bombs:
            block = in_memory([memoryview(b"1")])
            refused(lambda: through(bomb))
            refused(lambda: through(bomb + b"x" * 100_000))
            refused(lambda: _heads.decode(bomb))
            refused(lambda: _mpi_messages.in_block(bomb, [], bytes(copyless.handle(block))))
            head = _heads.WHOLE.pack((128, [len(bomb)])).ljust(128, b"0")
            refused(lambda: _heads.decode(head + bomb.ljust(64, b"0")))
        print(through(pickle.dumps({{1}})), _heads.decode(pickle.dumps({{2}})))
    """
    done = subprocess.run([mpiexec, "-n", "1", sys.executable, "-c", textwrap.dedent(program)], capture_output=True,
        text=True,
                          timeout=120)  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split("\n") == ["refused"] * 5 * len(BOMBS) + ["{1} {2}", ""]


def test_nothing_else_in_the_package_loads_a_pickle():
    """`pickle.loads` itself is called in one place.

    (An unpickler of this process's own bytes, in `share`, does not count.)
    """
    sources = Path(__file__).parent.parent / "src/copyless"
    calls = re.compile(r"\b(?:pickle|cloudpickle|marshal)\.loads?\b|from (?:pickle|cloudpickle) import .*\bloads?\b")
    found = [
        f"{path.name}: {line}"
        for path in [*sources.rglob("*.py"), *sources.rglob("*.pyx")]
        if path.name != "_pickles.pyx"
        for line in path.read_text().splitlines()
        if calls.search(line)
    ]
    assert found == []
