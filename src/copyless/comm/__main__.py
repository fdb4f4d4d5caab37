"""``python -m copyless.comm prog.py``: run a program as a rank, and end the whole job when it fails here.

    mpiexec -n 4 python -m copyless.comm prog.py [arguments]
    mpiexec -n 4 python -m copyless.comm -m package.module [arguments]

As `python -m mpi4py`: after an uncaught exception, or `sys.exit` with anything but success, the other ranks would wait for this one for ever;
so MPI is told to end them. Under ``copyless run`` that is done anyhow.
"""

from __future__ import annotations

import os
import runpy
import sys

from copyless.comm import aborting


def main() -> None:
    arguments = sys.argv[1:]
    if not arguments or arguments == ["-m"]:
        sys.exit("usage: python -m copyless.comm [-m] PROGRAM [ARGUMENTS]...")
    with aborting.on_error():
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
