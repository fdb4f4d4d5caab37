"""`copyless doctor`: the facts of this machine, leftovers, and what to change."""

from __future__ import annotations

import os
import platform
import resource
import stat
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from copyless import _platform
from copyless._core._observe import liveness_is_weak
from copyless._storage import directory, registries, settings
from copyless._storage.identity import boot
from copyless._storage.observing import look, observing
from copyless._storage.store import ensure_open
from copyless.cli.look import size
from copyless.cli.text import Page, plain
from copyless.errors import CopylessError, CorruptSegmentError

_LOOKS = 20  # attempts to get a consistent copy, each of a tenth of a second
_JOIN_SECONDS = 12.0  # somewhat longer than opening the store waits


def _mount_of(path: str) -> tuple[str, str]:
    """(mount point, file system type)."""
    best = ("/", "?")
    try:
        mounts = list(_platform.mounts())
    except OSError:
        return best
    for point, kind in mounts:
        if (path == point or path.startswith(point.rstrip("/") + "/")) and len(point) >= len(best[0]):
            best = point, kind
    return best


class _Bytes(int):
    """A number of bytes: JSON has the number, a table the text for people."""


def _memory() -> dict[str, _Bytes] | None:
    found = _platform.machine_memory()
    return None if found is None else {"bytes": _Bytes(found[0]), "available": _Bytes(found[1])}


def _leftovers() -> list[dict[str, Any]]:
    """Files of the standard library that belong to this user: blocks and semaphores that may be unused."""
    found = []
    try:
        entries = list(os.scandir(_platform.OBJECTS_DIRECTORY))
    except OSError:
        return []
    for entry in entries:
        try:
            st = entry.stat(follow_symlinks=False)
        except OSError:
            continue
        if stat.S_ISREG(st.st_mode) and st.st_uid == os.geteuid() and entry.name.startswith(("psm_", "sem.", "pym-")):
            found.append({"name": entry.name, "bytes": st.st_blocks * 512, "age_s": round(time.time() - st.st_mtime)})
    return found


def _layouts(problems: list[str]) -> list[dict[str, Any]]:
    """Every registry, of any version, in a directory of this user. Two versions side by side are not a problem."""
    found = []
    for path in directory.ours():
        for entry in registries.look(path):
            found.append({
                "directory": path, "layout": entry.layout, "processes": len(entry.holders),
                "persistent names": max(entry.persistent, 0), "files": entry.files, "bytes": entry.nbytes,
            })  # fmt: skip
            if entry.layout != registries.LAYOUT and not entry.holders:
                holds = f"holds {entry.persistent} persistent names" if entry.persistent > 0 else "is not used"
                what = f"{path}/registry.{entry.layout}" if entry.registry else f"files in {path} without a registry"
                problems.append(
                    f"{what} of another version (layout {entry.layout}, this version has {registries.LAYOUT}) "
                    f"{holds} and takes {size(entry.nbytes)}: remove it with that version, or by hand"
                )
    return found


def within(seconds: float, call: Callable[[], None]) -> bool:
    """Whether a call returned in time; its error is raised.

    A call that did not return is left alone in its own thread.
    """
    failed: list[BaseException] = []

    def run() -> None:
        try:
            call()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if failed:
        raise failed[0]
    return not thread.is_alive()


def _registry(facts: dict[str, Any]) -> list[str]:
    """Check the registry without its lock.

    If there is none, or it is of another boot, check whether one can be made.
    """
    problems: list[str] = []
    facts["registry"] = "not reachable"
    try:
        with observing() as observer:
            usable = observer is not None and observer.look()["boot"] == boot()
        if not usable and not within(_JOIN_SECONDS, ensure_open):
            return [
                "no process can start using shared memory: another process is making the registry and does not go on"
            ]
        facts["storage directory"] = directory.current()
        with observing() as observer:
            if observer is None:
                return ["the registry was removed while it was being read: run copyless doctor again"]
            for _ in range(_LOOKS):
                found = look(observer)
                wrong = observer.audit()
                if wrong is not None or found["holder"] is not None:
                    break
    except CorruptSegmentError as error:
        facts["registry"] = "damaged"
        return [str(error)]
    except (CopylessError, OSError) as error:
        return [str(error)]
    facts["registry"] = "damaged" if wrong else "sound" if wrong is not None else f"not checked: {found['note']}"
    problems += [wrong] if wrong else []
    if found["holder"] is not None:
        facts["holder of the registry's lock"] = found["holder"]
        problems.append(f"{found['note']}; processes that need the lock wait until it goes on (kill -CONT) or ends")
    place, seen = found["spill"]
    facts["spilled items"] = os.fsdecode(place) or "nowhere"
    if place and not seen:
        problems.append(
            f"items that do not fit into shared memory go to {facts['spilled items']}, but this process sees "
            "another directory there (PrivateTmp? a container?): give all processes the same directory"
        )
    totals = found["totals"]
    facts["in shared memory"] = {"bytes": _Bytes(totals["total_bytes"]), "free and warm": _Bytes(totals["warm_bytes"])}
    facts["deaths cleaned up after"] = totals["deaths"]
    weak = liveness_is_weak()
    facts["liveness"] = "held weakly, by a descriptor" if weak else "held by a mapping"
    if weak:
        problems.append(_platform.WEAK_LIVENESS)
    return problems


def examine() -> dict[str, Any]:
    """Facts and problems. Each problem says what to change."""
    path = settings.current().dir
    problems: list[str] = []
    facts: dict[str, Any] = {
        "copyless": __import__("copyless").__version__,
        "python": platform.python_version(),
        "kernel": f"{platform.system()} {platform.release()} {platform.machine()}",
        "processors": _platform.processors(),
        "storage directory": directory.current(),
        "spaces in use": ", ".join(space or "(the default space)" for space in directory.spaces()) or "none",
    }
    try:
        room = _platform.mount_room(path)
        mount, kind = _mount_of(os.path.realpath(path))
        facts |= {"mount": mount, "file system": kind}
        facts |= {"size": _Bytes(room[0]), "free": _Bytes(room[1])} if room else {"size": "no limit of its own"}
        if kind not in ("tmpfs", "ramfs"):
            problems.append(f"{path} is on {kind}, a disk: mount a tmpfs there or set COPYLESS_DIR to one")
        if room is not None and room[0] < 256 << 20:
            problems.append(
                f"{mount} has only {size(room[0])}: mount -o remount,size=50% {mount}, or docker run --shm-size=2g, "
                "or in Kubernetes an emptyDir with medium: Memory"
            )
        elif room is not None and room[1] < room[0] // 20:
            problems.append(
                f"{mount} is nearly full ({size(room[1])} free): 'copyless reap', and check which other files lie there"
            )
    except OSError as error:
        problems.append(f"{path}: {error.strerror}: mount a tmpfs there or set COPYLESS_DIR to one")
    limit = _platform.memory_limit()
    facts["memory"] = _memory()
    facts["memory.max"] = None if limit is None else _Bytes(limit)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    facts["open files"] = {
        key: None if n == resource.RLIM_INFINITY else n for key, n in (("allowed", soft), ("at most", hard))
    }
    if 0 <= soft < 256:
        problems.append(f"only {soft} open files are allowed: ulimit -n 1024")
    space = resource.getrlimit(resource.RLIMIT_AS)[0]
    if space != resource.RLIM_INFINITY:
        facts["address space"] = _Bytes(space)
        if space < 4 << 30:
            problems.append(
                f"address space is limited to {size(space)}, so mapping large arrays will fail: ulimit -v unlimited"
            )
    if most := _platform.most_mappings():
        facts["mappings a process"] = most
    problems += [directory.why_refused(other) for other in directory.refused()]
    problems += _registry(facts)
    return {
        "facts": facts,
        "layouts": _layouts(problems),
        "settings": settings.describe(),
        "environment": settings.others_set(),
        "leftovers": _leftovers(),
        "problems": problems,
        "ok": not problems,
        "executable": sys.executable,
    }


def _cell(value: object) -> str:
    if isinstance(value, dict) and "pid" in value:
        return f"process {value['pid']} ({plain(value['program'])}), {value['state']}"
    if isinstance(value, dict):
        return ", ".join(f"{_cell(each)}{' ' + key if key != 'bytes' else ''}" for key, each in value.items())
    return "none" if value is None else size(value) if isinstance(value, _Bytes) else str(value)


def show(report: dict[str, Any], page: Page) -> None:
    page.table((key, _cell(value)) for key, value in report["facts"].items())
    if report["layouts"]:
        rows = [
            [size(value) if key == "bytes" else value for key, value in entry.items()] for entry in report["layouts"]
        ]
        page.table(rows, list(report["layouts"][0]), title="registries")
    page.table(report["settings"].items(), ("setting", "present value"), title="settings")
    if report["environment"]:
        page.table(report["environment"].items(), ("variable", "value"), title="other variables that copyless reads")
    if report["leftovers"]:
        rows = [[entry["name"], size(entry["bytes"]), f"{entry['age_s']} s"] for entry in report["leftovers"]]
        page.table(
            rows,
            (f"file in {_platform.OBJECTS_DIRECTORY}", "bytes", "age"),
            title="of the standard library, perhaps left behind",
        )
    page.line()
    for problem in report["problems"]:
        page.line(f"{page.styled('red', 'change:')} {plain(problem)}")
    if report["ok"]:
        page.line(page.styled("green", "nothing to change"))
