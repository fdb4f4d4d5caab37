"""Run the tests of mpi4py.futures on our ranks: only their import is changed.

    mpiexec -n 3 python mpi4py_futures_suite.py DIRECTORY mpi REPORT [--skip NAME]... [--only TEXT]

`MPIPoolExecutor` is `copyless.comm.futures.ProcessPoolExecutor`. Rank 0 runs the tests. The other ranks create each
executor together with it and work for it, as in a program of ours. They serve one executor at a time: a new one ends
the previous one. Rank 0 writes the result of each test into REPORT, as JSON.
"""

import argparse
import concurrent.futures
import contextlib
import faulthandler
import json
import os
import re
import sys
import types
import unittest
import weakref
from multiprocessing.pool import RemoteTraceback

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from mpi4py_suite import Result

IMPORT = re.compile(r"^from mpi4py import MPI, futures$", re.MULTILINE)
APLUS = re.compile(r"^from mpi4py\.futures\.aplus import ThenableFuture.*$", re.MULTILINE)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("directory")
    parser.add_argument("transport", choices=["mpi", "local"])
    parser.add_argument("report")
    parser.add_argument("--skip", action="append", default=[])
    parser.add_argument("--only", default="")
    args = parser.parse_args()
    faulthandler.dump_traceback_later(int(os.environ.get("SUITE_SECONDS", "140")), exit=True)
    sys.path.insert(0, args.directory)
    from copyless import comm
    from copyless.comm.futures import BrokenExecutor, ProcessPoolExecutor

    transport = getattr(comm, args.transport)
    world = transport.world()
    opened = weakref.WeakSet()

    class Executor(ProcessPoolExecutor):
        def __init__(self, *given, **named):
            for other in list(opened):
                other.shutdown()
            world.bcast((given, named), 0)
            super().__init__(*given, comm=world, **named)
            opened.add(self)

    futures = types.ModuleType("futures_of_ours")
    vars(futures).update({name: getattr(concurrent.futures, name) for name in concurrent.futures.__all__})
    vars(futures).update(
        MPIPoolExecutor=Executor,
        BrokenExecutor=BrokenExecutor,
        MPICommExecutor=None,
        _core=types.SimpleNamespace(SharedPool=object if world.size > 1 else None, RemoteTraceback=RemoteTraceback),
    )
    sys.modules["futures_of_ours"] = futures
    import mpitestutil

    mpitestutil.disable_mpi_spawn = lambda: False
    path = os.path.join(args.directory, "test_futures.py")
    with open(path) as file:
        text = file.read()
    text, times = IMPORT.subn(
        f"from copyless.comm import {args.transport} as MPI; import futures_of_ours as futures", text
    )
    text, more = APLUS.subn("ThenableFuture = futures.Future", text)
    assert (times, more) == (1, 1)
    module = types.ModuleType("test_futures")
    module.__file__ = path
    sys.modules["test_futures"] = module
    exec(compile(text, path, "exec"), module.__dict__)
    if world.rank:
        while (made := world.bcast(None, 0)) is not None:
            with contextlib.suppress(SystemExit, TypeError, ValueError):
                ProcessPoolExecutor(*made[0], comm=world, **made[1])
        return 0
    suite = unittest.TestSuite()

    def walk(tests: unittest.TestSuite) -> None:
        for test in tests:
            if isinstance(test, unittest.TestSuite):
                walk(test)
            elif args.only in test.id() and not any(re.search(rf"\b{name}\b", test.id()) for name in args.skip):
                suite.addTest(test)

    walk(unittest.defaultTestLoader.loadTestsFromModule(module))
    runner = unittest.TextTestRunner(stream=sys.stdout, verbosity=2 if args.only else 0, resultclass=Result)
    result = runner.run(suite)
    for other in list(opened):
        other.shutdown()
    world.bcast(None, 0)
    with open(args.report, "w") as file:
        json.dump(result.status, file)
    return 0


if __name__ == "__main__":
    sys.exit(main())
