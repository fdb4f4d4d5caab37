"""``python -m copyless.comm prog.py``: run a program as a rank, and end the whole job if it fails.

    mpiexec -n 4 python -m copyless.comm prog.py [arguments]
    mpiexec -n 4 python -m copyless.comm -m package.module [arguments]

Like `python -m mpi4py`: after an uncaught exception, or `sys.exit` with a code other than 0, the other ranks might wait
for this one for ever, so MPI is asked to abort them. ``copyless run`` always does this.
"""

from __future__ import annotations

import os
import runpy
import sys

from copyless.comm import _aborting


def main() -> None:
    arguments = sys.argv[1:]
    if not arguments or arguments == ["-m"]:
        sys.exit("usage: python -m copyless.comm [-m] PROGRAM [ARGUMENTS]...")
    with _aborting.on_error():
        if arguments[0] == "-m":
            sys.argv[:] = arguments[1:]
            runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
        else:
            sys.argv[:] = arguments
            if not sys.flags.isolated:
                sys.path[0] = os.path.dirname(os.path.realpath(sys.argv[0]))
            runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
