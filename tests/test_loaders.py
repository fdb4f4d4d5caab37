"""Which of our names a pickle may contain: public classes by their public names, and functions of `copyless._loaders`.

Another version of the package loads what one version has pickled (docs/design/formats.md), so each name is a promise.
The programs below send one object of every kind through every channel. Their processes record each of our names that an
unpickler looks up.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import textwrap

import pytest

from copyless import _loaders, managers

# Each is the public place of a class, as its users name it.
PUBLIC = {
    ("copyless.errors", "OutOfSharedMemory"),
    ("copyless.errors", "WorkerDiedError"),
    *(("copyless.managers", name) for name in managers.__all__),
    ("copyless.context", "get_context"),
    ("copyless.pool", "Pool"),
    ("copyless.queues", "JoinableQueue"),
    ("copyless.shared_memory", "ShareableList"),
    ("copyless.shared_memory", "SharedMemory"),
    *(
        ("copyless.synchronize", name)
        for name in ("Barrier", "BoundedSemaphore", "Condition", "Event", "Lock", "RLock", "Semaphore")
    ),
}

WATCH = """
    import os, sys
    place, seen = os.environ["COPYLESS_TEST_NAMES"], set()

    def hook(event, args):
        if event == "pickle.find_class" and args[0].partition(".")[0] == "copyless" and args not in seen:
            seen.add(args)
            with open(place, "a") as file:
                file.write(f"{args[0]} {args[1]}\\n")

    sys.addaudithook(hook)
"""

OBJECTS = """
    import ctypes, importlib.util, pickle, sys
    import multiprocessing as mp
    import numpy as np
    import copyless
    from copyless import comm, managers, sharedctypes
    from copyless.comm._packets import Packet

    class Point(ctypes.Structure):
        _fields_ = [("x", ctypes.c_double)]

    class Image(copyless.SharedArray):
        pass

    class Derived(copyless.Lock):
        pass

    class DerivedValue(sharedctypes.Synchronized):
        pass

    class Maker(managers.BaseManager):
        pass

    Maker.register("Point", complex)
    Maker.register("Array", list, managers.ListProxy)

    def have(name):
        return importlib.util.find_spec(name) is not None

    def objects():
        yield "plain", (1, "a", [2.5])
        yield "arrays", (np.arange(3), np.arange(5000), np.arange(6).reshape(2, 3).T, np.array("2020", "M8[Y]"))
        yield "shared array", copyless.zeros(5)
        yield "part of it", [copyless.zeros(5)[1:]]
        yield "of a class", Image(3)
        yield "of the other byte order", np.zeros(3, ">f8")
        yield "empty", [copyless.empty((0, 3))]
        yield "a dtype that no text says", copyless.zeros(5, np.dtype('f8', metadata={'of': complex}))
        yield "records", [np.rec.array([(1, 2.5)], dtype=[("a", "i4"), ("b", "f8")])]
        yield "shared records", [copyless.share(np.rec.array([(1, 2.5)], dtype=[("a", "i4"), ("b", "f8")]))]
        yield "memory", [copyless.Memory.allocate(100), copyless.Memory(bytearray(10)), copyless.Memory(b"ro")]
        for kind in ("Lock", "RLock", "RWLock", "Event", "Condition", "Semaphore", "BoundedSemaphore"):
            yield kind, [getattr(copyless, kind)()]
        yield "condition over a lock", [copyless.Condition(copyless.Lock())]
        for kind in (Derived, DerivedValue):
            yield "subclass", [kind() if kind is Derived else kind(sharedctypes.RawValue("i", 1), copyless.Lock())]
        yield "robust semaphore", [copyless.Semaphore(2, recover="silent")]
        yield "barrier", [copyless.Barrier(1)]
        for kind in ("Queue", "JoinableQueue", "SimpleQueue"):
            yield kind, [getattr(copyless, kind)()]
        yield "ring", [copyless.RingBuffer(((2, 3), "u1"), slots=2)]
        yield "value", [copyless.Value("d", 2.5), copyless.Value("i", lock=False), copyless.Array("i", 3)]
        yield "value with its lock", [copyless.Value("d", lock=copyless.RLock()), sharedctypes.RawArray(Point, 2)]
        yield "part of a value", [sharedctypes.RawArray(Point, 2)[1], sharedctypes.RawValue(Point)]
        yield "drop-in", [block]
        yield "list", [listed]
        yield "context", [copyless.get_context("spawn")]
        yield "error", [copyless.OutOfSharedMemory(28, "full"), copyless.WorkerDiedError("gone")]
        yield "packets", [Packet.of([np.arange(5000), copyless.zeros(3)]), Packet.of([1, 2])]
        yield "a gathered packet", [Packet.of([np.arange(5000)]).gather()]
        if have("pandas"):
            import pandas as pd
            frame = pd.DataFrame({"n": [1, 2], "t": ["a", "b"], "c": pd.Categorical(["x", "y"])})
            yield "pandas", [frame, copyless.share(frame)]
        if have("pyarrow"):
            import pyarrow as pa
            table = pa.table({"n": [1, 2], "t": ["a", "b"]})
            yield "arrow", [table, copyless.share(table)]
        if have("polars") and mp.get_start_method() != "fork":
            import polars as pl
            table = pl.DataFrame({"n": [1, 2], "t": ["a", "b"], "l": [[1], [2, 3]]})
            yield "polars", [table, copyless.share(table), copyless.share(table["n"])]
        if have("torch"):
            import torch
            yield "torch", [torch.ones(3), torch.ones(3000), copyless.share(torch.ones(3))]
            yield "sparse", [torch.eye(3).to_sparse()]
            yield "conjugate", [torch.ones(3000, dtype=torch.complex64).conj()]

    block = copyless.SharedMemory(create=True, size=10)
    listed = copyless.ShareableList([1, "a"])

    def echo(obj):
        return obj

    def initialize(*args):
        pass
"""

PROGRAMS = {
    "queues, pipes and the plain pickler": """
        queue, (here, there) = copyless.Queue(), mp.Pipe()
        for title, obj in objects():
            queue.put(obj); queue.get(timeout=30)
            if title != "packets" and "packet" not in title:
                here.send(obj); there.recv()
            try:
                data = pickle.dumps(obj)
            except (TypeError, pickle.PicklingError):  # a pool's lock; a type made on the fly
                continue
            try:
                pickle.loads(data)
            except copyless.StaleHandleError:
                pass
        queue.put(copyless.Pipe()[0]); queue.get(timeout=30)
    """,
    "pool by {}": """
        with mp.get_context("{}").Pool(1) as theirs, copyless.get_context("{}").Pool(1, initialize, (1,)) as ours:
            for title, obj in objects():
                if title not in ("context",) and "packet" not in title:
                    ours.apply(echo, (obj,)); list(ours.imap_unordered(echo, [obj])); theirs.map(len, [[1]])
            value = copyless.Value("i")
        with copyless.ProcessPoolExecutor(1, mp_context=mp.get_context("{}"), initializer=initialize) as executor:
            assert list(executor.map(echo, range(10), chunksize=3)) == list(range(10))
            assert executor.submit(echo, lambda: 5).result()() == 5
        process = mp.get_context("{}").Process(target=echo, args=(value,))
        process.start(); process.join()
        assert process.exitcode == 0
    """,
    "joblib": """
        if have("joblib"):
            import joblib, copyless.joblib
            assert joblib.Parallel(n_jobs=2, backend="copyless")(joblib.delayed(pow)(2, n) for n in range(5))[4] == 16
            big = __import__("numpy").zeros(200_000)
            assert joblib.Parallel(n_jobs=2, backend="copyless")(joblib.delayed(len)([big]) for n in range(2)) == [1, 1]
            with joblib.parallel_config("copyless", initializer=int, initargs=("1",)):
                assert joblib.Parallel(n_jobs=2)(joblib.delayed(len)([n]) for n in range(2)) == [1, 1]
            copyless.joblib.shutdown()
    """,
    "managers": """
        for method in ("spawn", "fork"):
            context = mp.get_context(method)
            with Maker(ctx=context) as maker, context.Pool(1) as pool:
                point = maker.Point(1, 2)
                pool.apply(echo, (point,)); pool.apply(echo, (maker.Array([1]),))
            with managers.SyncManager(ctx=context) as manager, context.Pool(1) as pool, copyless.Pool(1) as ours:
                for name in ("Queue", "Event", "Lock", "RLock", "Semaphore", "BoundedSemaphore", "Condition", "list", "dict", "set",
                             "Namespace"):
                    proxy = getattr(manager, name)()
                    pool.apply(echo, (proxy,)); ours.apply(echo, (proxy,))
                    nested = manager.list([proxy]); nested[0]; manager.dict(a=proxy)["a"]
                there = manager.Pool(1)
                for proxy in (manager.Value("i", 1), manager.Array("i", [1]), manager.Barrier(1), there,
                              there.apply_async(len, ([1],)), iter(manager.list([1]))):
                    pool.apply(echo, (proxy,))
                kept = manager.list()
                for title, obj in objects():
                    if title not in ("context", "polars") and "packet" not in title:  # polars hangs in forked processes
                        kept.append(obj); kept[-1]
                there.terminate()
                try:
                    kept[10**9]
                except IndexError:
                    pass
            with managers.SharedMemoryManager(ctx=context) as manager:
                manager.SharedMemory(10), manager.ShareableList([1]), manager.array(3), manager.Queue(), manager.Lock()
    """,  # noqa: E501
    "ranks": """
        import ranks
        for method in ("spawn", "fork"):
            comm.spawn(ranks.talk, 3, context=mp.get_context(method))
    """,
}

RANKS = """
    import importlib
    import marshal

    import numpy as np
    import copyless

    def talk(world):
        from copyless import comm
        me, n = world.rank, world.size
        small, large = np.arange(5000), np.arange(1 << 18)
        for obj in (1, [small], [large], {"a": large, "b": copyless.zeros(5)}, copyless.zeros(3), {"text": "x" * 20_000}):
            if me == 0:
                for to in range(1, n):
                    world.send(obj, to)
                    world.isend(obj, to).wait()
            else:
                world.recv(source=0); world.irecv(source=0).wait()
            world.bcast(obj, 0); world.bcast(obj, 0, readonly=True)
            world.gather(obj, 0); world.allgather(obj); world.alltoall([obj] * n)
            world.scatter([obj] * n if me == 0 else None, 0)
        world.allreduce(large); world.scan(small)
        transport = importlib.import_module(type(world).__module__)
        kept, transport.pickle = transport.pickle, transport.Pickle(marshal.dumps, marshal.loads)
        world.bcast([1, 2], 0)
        transport.pickle = kept
"""  # noqa: E501


def watched(tmp_path, program, *command, **env):
    """Our names that unpicklers looked up while a program ran."""
    (tmp_path / "sitecustomize.py").write_text(textwrap.dedent(WATCH))
    (tmp_path / "ranks.py").write_text(textwrap.dedent(RANKS))
    path, names = tmp_path / "program.py", tmp_path / "names"
    path.write_text(program)
    names.touch()
    done = subprocess.run(
        [*command, sys.executable, str(path)], capture_output=True, text=True, timeout=200, stdin=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(tmp_path), "COPYLESS_TEST_NAMES": str(names), "MPLBACKEND": "agg", **env},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return {tuple(line.split()) for line in names.read_text().splitlines()}


def script(body, start="spawn"):
    objects, body = textwrap.dedent(OBJECTS), textwrap.indent(textwrap.dedent(body), "    ")
    end = "    block.close(); block.unlink(); listed.shm.close(); listed.shm.unlink()\n"
    return f"{objects}\nif __name__ == '__main__':\n    mp.set_start_method({start!r})\n{body}\n{end}"


FOUND: dict[str, set[tuple[str, ...]]] = {}


@pytest.mark.parametrize("title", [*(t for t in PROGRAMS if "{}" not in t), "pool by spawn", "pool by fork"])
def test_pickles_hold_no_other_names(title, tmp_path):
    start = title.removeprefix("pool by ") if title.startswith("pool by") else "spawn"
    body = PROGRAMS["pool by {}"].replace("{}", start) if title.startswith("pool by") else PROGRAMS[title]
    found = FOUND[title] = watched(tmp_path, script(body, start))
    assert found
    assert {(module, name) for module, name in found if module != "copyless._loaders"} <= PUBLIC
    assert {name for module, name in found if module == "copyless._loaders"} <= set(_loaders.__all__)


@pytest.mark.parametrize("nodes", ["1", "2"])
def test_pickles_between_ranks_of_mpi_hold_no_other_names(tmp_path, nodes):
    mpiexec = os.path.join(os.path.dirname(sys.executable), "mpiexec")
    if importlib.util.find_spec("mpi4py") is None or not os.path.exists(mpiexec):
        pytest.skip("MPI's environment is made by `make test`")
    program = """
        import contextlib
        import numpy as np
        import ranks
        from copyless import comm
        from mpi4py import MPI

        world = comm.world()
        ranks.talk(world)
        if world.rank == 0:
            world.send(np.ones(1 << 18), 2)
            for _ in range(2):
                world.send([np.ones(1000) for _ in range(100)], 2)
        elif world.rank == 2:
            MPI.COMM_WORLD.recv(source=0)
            world.recv(source=0)
            with contextlib.suppress(RuntimeError):
                MPI.COMM_WORLD.recv(source=0)
    """
    program = textwrap.dedent(program)
    found = FOUND[f"mpi {nodes}"] = watched(tmp_path, program, mpiexec, "-n", "3", COPYLESS_NODES=nodes)
    assert {module for module, _ in found} == {"copyless._loaders"}
    assert {name for _, name in found} <= set(_loaders.__all__)


def test_the_programs_meet_every_loader():
    """These tests could not check a loader that nothing here loads."""
    if len(FOUND) < len(PROGRAMS) + 3:
        pytest.skip("only after the tests above")
    met = {name for found in FOUND.values() for module, name in found if module == "copyless._loaders"}
    needs = {name: "torch" for name in _loaders.__all__ if name.startswith("tensor") or name == "with_storages"}
    needs |= {
        "joblib_array": "joblib",
        "joblib_begin": "joblib",
        "joblib_begins": "joblib",
        "joblib_call": "joblib",
        "polars_table": "polars",
        "pandas_column": "pandas",
    }
    missing = {name for name, library in needs.items() if importlib.util.find_spec(library) is None}
    earlier = {"tensor", "joblib_worker"}  # of earlier versions; the present one does not write them
    # Dask and Ray, in the tests of other packages; ranks on several nodes whose shared memory is full, in test_nodes.py
    elsewhere = {"array_of_cluster", "comm_bundle"}
    assert set(_loaders.__all__) - missing - earlier - elsewhere == met


def test_importing_the_loaders_imports_nothing():
    program = "import sys; import copyless._loaders; print(*sorted(n for n in sys.modules if 'copyless' in n or n == 'numpy'))"  # noqa: E501
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == [
        "copyless", "copyless._first_use", "copyless._loaders", "copyless._typing",
    ]  # fmt: skip


def hash64(data):
    """As `cl_hash64`: the checksum of a header."""
    h, mask = 0xCBF29CE484222325, (1 << 64) - 1
    for byte in data:
        h = (h ^ byte) * 0x100000001B3 & mask
    h ^= h >> 31
    h = h * 0x7FB5D329728EA185 & mask
    return h ^ h >> 27 or 1


def test_a_registry_of_another_format_is_told_at_joining(tmp_path):
    program = """
        import os, struct, subprocess, sys
        import copyless
        kept = copyless.zeros(3)
        path = os.path.join(copyless._storage.directory.current(), "registry.4")
        join = [sys.executable, "-c", "import copyless; print(copyless.zeros(3).sum())"]
        assert subprocess.run(join).returncode == 0
        with open(path, "r+b") as file:
            header = bytearray(file.read(112))
            assert struct.unpack_from("<Q", header, 104)[0] == hash64(header[:104])
            ours = struct.unpack_from("<I", header, 100)[0]
            for number in (ours + 1, ours):
                struct.pack_into("<I", header, 100, number)
                struct.pack_into("<Q", header, 104, hash64(header[:104]))
                file.seek(0); file.write(header); file.flush()
                done = subprocess.run(join, capture_output=True, text=True)
                kept[:] = number  # who is in goes on
                print(done.returncode, done.stderr.splitlines()[-1:])
    """
    import inspect

    (tmp_path / "program.py").write_text(inspect.getsource(hash64) + textwrap.dedent(program))
    env = {**os.environ, "COPYLESS_DIR": str(tmp_path / "store")}
    (tmp_path / "store").mkdir(mode=0o700)
    done = subprocess.run(
        [sys.executable, str(tmp_path / "program.py")], capture_output=True, text=True, timeout=60, env=env
    )
    assert done.returncode == 0, done.stderr
    _, other, same = done.stdout.splitlines()
    assert "format 2, this version reads 1" in other
    assert "CopylessError" in other
    assert other.startswith("1 ")
    assert same == "0 []"
