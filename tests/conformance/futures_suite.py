"""Run CPython's own installed tests of process executors on ours.

    python futures_suite.py --start spawn|fork|forkserver [-k text] [--json FILE]

`concurrent.futures.ProcessPoolExecutor` is replaced by `copyless.futures` before `test.test_concurrent_futures` is
imported: in this process, in its workers (which import this file as `__mp_main__`) and in the programs that the tests
start. Nothing is copied.
"""

import argparse
import gc
import importlib
import json
import pkgutil
import re
import signal
import sys
import time
import unittest
from concurrent import futures

import copyless.futures

futures.ProcessPoolExecutor = copyless.futures.ProcessPoolExecutor
# Not run: they wait for ever where one killed worker fails its own task alone.
NOT_RUN = {"test_broken_process_pool_traceback"}
_MIXINS = {"fork": "ProcessPoolForkMixin", "spawn": "ProcessPoolSpawnMixin", "forkserver": "ProcessPoolForkserverMixin"}


def modules():
    package = importlib.import_module("test.test_concurrent_futures")
    if not hasattr(package, "__path__"):
        return [package]  # to 3.11: one file
    names = [f"{package.__name__}.{found.name}" for found in pkgutil.iter_modules(package.__path__)]
    return [importlib.import_module(name) for name in names]


def retarget_programs():
    """`from concurrent.futures import ProcessPoolExecutor` in the programs that the tests run."""
    helper = importlib.import_module("test.support.script_helper")
    real = helper.assert_python_ok

    def rewrite(code):
        new = re.sub(r"from concurrent\.futures import Process", "from copyless.futures import Process", code)
        return new if new == code else f"import sys; sys.path[:] = {sys.path!r}\n{new}"  # they run isolated

    def ours(*args, **kwds):
        return real(*map(rewrite, args), **kwds)

    helper.assert_python_ok = ours


class Result(unittest.TestResult):
    def __init__(self, verbose):
        super().__init__()
        self.status, self.why, self.verbose = {}, {}, verbose

    def startTest(self, test):
        super().startTest(test)
        self.began = time.monotonic()
        signal.setitimer(signal.ITIMER_REAL, 60)

    def stopTest(self, test):
        signal.setitimer(signal.ITIMER_REAL, 0)
        if self.status.get(test.id()) == "fail":
            # the executor of a test that stopped half way; from 3.13 the end of the module waits for its workers
            gc.collect()
        if self.verbose:
            print(
                f"{self.status.get(test.id(), 'pass'):5s} {time.monotonic() - self.began:6.2f}s {test.id()}", flush=True
            )

    def addSuccess(self, test):
        self.status.setdefault(test.id(), "pass")

    def addSkip(self, test, reason):
        self.status[test.id()], self.why[test.id()] = "skip", reason

    def addError(self, test, err):
        self.status[test.id()] = "fail"
        self.why[test.id()] = f"{err[0].__name__}: {err[1]}"[:300]
        if self.verbose > 1:
            print(self._exc_info_to_string(err, test))

    addFailure = addError

    def addSubTest(self, test, subtest, err):
        if err is not None:
            self.addError(test, err)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--start", default="spawn", choices=_MIXINS)
    parser.add_argument("-k", dest="keyword", default="")
    parser.add_argument("--json")
    parser.add_argument("-v", "--verbose", action="count", default=0)
    args = parser.parse_args()
    retarget_programs()

    def late(*_):
        raise TimeoutError("no end within 60 s")

    signal.signal(signal.SIGALRM, late)
    result = Result(args.verbose)
    seen = set()
    for module in modules():
        for cls in vars(module).values():
            bases = {base.__name__ for base in getattr(cls, "__mro__", ())}
            if not isinstance(cls, type) or not issubclass(cls, unittest.TestCase) or cls in seen:
                continue
            if _MIXINS[args.start] not in bases:
                continue
            seen.add(cls)
            names = unittest.TestLoader().getTestCaseNames(cls)
            tests = [cls(name) for name in names if args.keyword in f"{cls.__name__}.{name}" and name not in NOT_RUN]
            unittest.TestSuite(tests).run(result)
    by = {s: [i for i, status in result.status.items() if status == s] for s in ("pass", "fail", "skip")}
    for status in ("skip", "fail"):
        for test in by[status]:
            print(f"{status.upper()} {test}: {result.why.get(test, '')}")
    if args.json:
        with open(args.json, "w") as f:
            json.dump({"status": result.status, "why": result.why}, f, indent=1)
    print(
        f"copyless.futures --start {args.start}: {len(by['pass'])} passed, {len(by['fail'])} failed, "
        f"{len(by['skip'])} skipped"
    )
    return 1 if by["fail"] else 0


if __name__ == "__main__":
    sys.exit(main())
