"""What the reference has: its pages, and the public names of each module, found without importing the package.

`tests/test_reference.py` compares this with what the package really exports.
"""

from __future__ import annotations

import ast
import importlib
from pathlib import Path
from typing import NamedTuple

SRC = Path(__file__).resolve().parents[2] / "src"


class Page(NamedTuple):
    """A page of the reference. The first page in this list that has a name documents it; other pages link to it."""

    file: str
    title: str
    modules: tuple[str, ...]
    names: tuple[str, ...] = ()  # of the first module; empty: all that are public
    intro: str = ""


PAGES = (
    Page(
        "sharing",
        "Share, send and find",
        ("copyless",),
        ("share", "is_shared", "explain", "Explanation", "to_recarray", "open", "unlink", "handle", "attach", "Handle"),
        "Objects that exist become shared; objects with a name are found by it.",
    ),
    Page("arrays", "Arrays", ("copyless.arrays",)),
    Page("queues", "Queues", ("copyless.queues",)),
    Page("rings", "Ring buffers", ("copyless.rings",)),
    Page("synchronize", "Locks, conditions, events", ("copyless.synchronize",)),
    Page("waiting", "Waiting for the first of many", ("copyless.waiting",)),
    Page("connection", "Pipes", ("copyless.connection",)),
    Page("pool", "Pool", ("copyless.pool",)),
    Page("futures", "Executor", ("copyless.futures",)),
    Page("managers", "Managers", ("copyless.managers",)),
    Page("sharedctypes", "Values and ctypes arrays", ("copyless.sharedctypes",)),
    Page("shared_memory", "SharedMemory, ShareableList", ("copyless.shared_memory",)),
    Page("memory", "Raw memory", ("copyless.memory",)),
    Page("comm_local", "Ranks on one host", ("copyless.comm.local",)),
    Page("comm_mpi", "Ranks on MPI", ("copyless.comm.mpi",)),
    Page("comm_futures", "An executor over ranks", ("copyless.comm.futures",)),
    Page("comm", "Ranks", ("copyless.comm",)),
    Page("joblib", "joblib", ("copyless.joblib",)),
    Page("integrations", "Dask and Ray", ("copyless.integrations.dask", "copyless.integrations.ray")),
    Page("context", "Contexts", ("copyless.context",)),
    Page(
        "process",
        "Settings and upkeep",
        ("copyless",),
        ("configure", "reap", "trim", "stats"),
        "Of this process, and of its user.",
    ),
)
ERRORS = "copyless.errors"

# Modules that are the standard library's own, under a second name.
MIRRORED = {
    f"copyless.{name}": f"multiprocessing.{name}"
    for name in (
        "dummy", "dummy.connection", "forkserver", "heap", "popen_fork", "popen_forkserver", "popen_spawn_posix",
        "process", "reduction", "resource_sharer", "resource_tracker", "spawn", "util",
    )
}  # fmt: skip

# Names that are values or second names, which cannot have a docstring.
TEXTS = {
    "copyless.buffer": "`copyless.Memory` under the name that mpi4py gives it.",
    "copyless.memory.buffer": "`Memory` under the name that mpi4py gives it.",
    "copyless.memory.memory": "`Memory` under mpi4py's older name.",
    "copyless.joblib.Backend": "`CopylessBackend` under the name by which joblib's backends are looked up.",
    "copyless.comm.local.ANY_SOURCE": "As `source`: receive a message from any rank.",
    "copyless.comm.local.ANY_TAG": "As `tag`: receive a message with any tag.",
    "copyless.comm.local.PROC_NULL": "No rank: sending to it does nothing, receiving from it returns None at once.",
    "copyless.comm.local.ROOT": "As `root` on an intercommunicator: this rank is the root.",
    "copyless.comm.local.UNDEFINED": "As the colour for `Split`: this rank gets no communicator.",
    "copyless.comm.local.SUM": "Reduction: `a + b`.",
    "copyless.comm.local.PROD": "Reduction: `a * b`.",
    "copyless.comm.local.MAX": "Reduction: the larger value; of arrays, element by element.",
    "copyless.comm.local.MIN": "Reduction: the smaller value; of arrays, element by element.",
    "copyless.comm.local.LAND": "Reduction: whether both are true; of arrays, element by element.",
    "copyless.comm.local.LOR": "Reduction: whether one is true; of arrays, element by element.",
    "copyless.comm.local.BAND": "Reduction: `a & b`.",
    "copyless.comm.local.BOR": "Reduction: `a | b`.",
    "copyless.comm.local.BXOR": "Reduction: `a ^ b`.",
    "copyless.comm.local.OP_NULL": "No reduction.",
    "copyless.comm.local.SUCCESS": "Error class: no error.",
    "copyless.comm.local.ERR_TAG": "Error class: the tag is invalid.",
    "copyless.comm.local.ERR_RANK": "Error class: the rank is invalid.",
    "copyless.comm.local.ERR_ROOT": "Error class: the root is invalid.",
    "copyless.comm.local.ERR_OTHER": "Error class: any other error.",
    "copyless.comm.local.COMM_NULL": "No communicator.",
    "copyless.comm.local.REQUEST_NULL": "No request: it is complete.",
    "copyless.comm.local.MESSAGE_NULL": "No message.",
    "copyless.comm.local.MESSAGE_NO_PROC": "The message from `PROC_NULL`, which has no data.",
    "copyless.comm.local.COMM_TYPE_SHARED": "For `Split_type`: the ranks that share memory.",
    "copyless.comm.local.THREAD_SINGLE": "A level of `Query_thread`: the process has one thread.",
    "copyless.comm.local.THREAD_FUNNELED": "A level of `Query_thread`: only the main thread communicates.",
    "copyless.comm.local.THREAD_SERIALIZED": "A level of `Query_thread`: one thread at a time communicates.",
    "copyless.comm.local.THREAD_MULTIPLE": "A level of `Query_thread`: any number of threads communicate at once.",
    "copyless.comm.local.BSEND_OVERHEAD": "Bytes to add to a buffer for `bsend`: 0, no buffer is needed.",
    "copyless.comm.local.BYTE": "The name of the type of a byte, for programs that pass it on.",
    "copyless.comm.local.buffer": "`memoryview`: what `Alloc_mem` returns here.",
    "copyless.comm.local.pickle": "The `Pickle` that sends objects; a program may set another.",
    "copyless.comm.mpi.ANY_SOURCE": "mpi4py's own value.",
    "copyless.comm.mpi.ANY_TAG": "mpi4py's own value.",
    "copyless.comm.mpi.PROC_NULL": "mpi4py's own value.",
    "copyless.comm.mpi.ROOT": "mpi4py's own value.",
    "copyless.comm.mpi.UNDEFINED": "mpi4py's own value.",
    "copyless.comm.mpi.Status": "mpi4py's own class.",
    "copyless.comm.mpi.pickle": "The `Pickle` that sends objects; a program may set another.",
}


def public_modules() -> list[str]:
    """Every module whose path has no underscore. `copyless.cli` is the command, which has a page of its own."""
    found = []
    for path in sorted((SRC / "copyless").rglob("*.py")):
        parts = path.relative_to(SRC).with_suffix("").parts
        parts = parts[:-1] if parts[-1] == "__init__" else parts
        if not any(part.startswith("_") for part in parts) and parts[1:2] != ("cli",):
            found.append(".".join(parts))
    return found


def _file(module: str) -> Path:
    path = SRC.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def public_names(module: str) -> list[str]:
    """What `__all__` of a public module has."""
    if module in MIRRORED:
        theirs = importlib.import_module(MIRRORED[module])
        return sorted(getattr(theirs, "__all__", ()))
    if module == "copyless":
        tree = ast.parse(_file(module).with_suffix(".pyi").read_text(encoding="utf-8"))
        homes = [node for node in tree.body if isinstance(node, ast.ImportFrom) and node.module != "copyless"]
        return sorted({alias.name for node in homes for alias in node.names} - {"SUBDEBUG", "SUBWARNING"})
    for node in ast.parse(_file(module).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets):
            return sorted(ast.literal_eval(node.value))
    return []  # a package that only has modules
