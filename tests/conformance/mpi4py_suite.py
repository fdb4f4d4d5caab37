"""Run some of mpi4py's own test files on one of our ranks: only their import is changed.

    mpiexec -n 3 python mpi4py_suite.py DIRECTORY test_p2p_obj,test_cco_obj mpi REPORT [--skip NAME]...

In a file, `from mpi4py import MPI` (for test_util_pkl5 on MPI: `from mpi4py.util import pkl5`) becomes an import of
`copyless.comm.mpi` or `copyless.comm.local`. Each rank writes the result of each test into REPORT.<rank>, as JSON.
"""

import argparse
import faulthandler
import json
import os
import re
import sys
import types
import unittest

MPI_LINE = re.compile(r"^from mpi4py import MPI$", re.MULTILINE)
PKL5_LINE = re.compile(r"^from mpi4py\.util import pkl5$", re.MULTILINE)


def changed(text: str, transport: str) -> str:
    """The file with its import changed."""
    times = 0
    if not PKL5_LINE.search(text) or transport == "local":
        text, times = MPI_LINE.subn(f"from copyless.comm import {transport} as MPI", text)
        assert times == 1
    return PKL5_LINE.sub(f"from copyless.comm import {transport} as pkl5", text)


class Result(unittest.TextTestResult):
    status: dict[str, str]

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)
        self.status = {}

    def startTest(self, test: unittest.TestCase) -> None:
        self.status[test.id()] = "begun"
        super().startTest(test)

    def addSuccess(self, test: unittest.TestCase) -> None:
        self.status[test.id()] = "pass"
        super().addSuccess(test)

    def addError(self, test: unittest.TestCase, err: object) -> None:
        self.status[test.id()] = "fail"
        super().addError(test, err)

    def addFailure(self, test: unittest.TestCase, err: object) -> None:
        self.status[test.id()] = "fail"
        super().addFailure(test, err)

    def addSkip(self, test: unittest.TestCase, reason: str) -> None:
        self.status[test.id()] = "skip"
        super().addSkip(test, reason)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("directory")
    parser.add_argument("names")
    parser.add_argument("transport", choices=["mpi", "local"])
    parser.add_argument("report")
    parser.add_argument("--skip", action="append", default=[])
    parser.add_argument("--only")
    args = parser.parse_args()
    faulthandler.dump_traceback_later(130, exit=True)
    sys.path.insert(0, args.directory)
    from copyless import comm

    transport = getattr(comm, args.transport)
    # What tests of pkl5 set, before and after each: how it splits large messages. Ours has no such part.
    transport._BigMPI = lambda: types.SimpleNamespace(blocksize=0)
    transport._bigmpi = None
    world = transport.world()
    modules = []
    for name in args.names.split(","):
        path = os.path.join(args.directory, name + ".py")
        with open(path) as file:
            text = changed(file.read(), args.transport)
        module = types.ModuleType(name)
        module.__file__ = path
        sys.modules[name] = module
        exec(compile(text, path, "exec"), module.__dict__)
        modules.append(module)
    suite = unittest.TestSuite()

    def walk(tests: unittest.TestSuite) -> None:
        for test in tests:
            if isinstance(test, unittest.TestSuite):
                walk(test)
            elif not any(test.id().endswith(name) for name in args.skip) and (
                args.only is None or args.only in test.id()
            ):
                suite.addTest(test)

    for module in modules:
        walk(unittest.defaultTestLoader.loadTestsFromModule(module))
    runner = unittest.TextTestRunner(stream=sys.stdout, verbosity=2 if args.only else 0, resultclass=Result)
    result = runner.run(suite)
    with open(f"{args.report}.{world.rank}", "w") as file:
        json.dump(result.status, file)
    world.barrier()


if __name__ == "__main__":
    main()
