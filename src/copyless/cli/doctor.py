"""`copyless doctor`: what this machine offers, what is left behind, and what to change."""

from __future__ import annotations

import os
import platform
import resource
import stat
import sys
import time
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

from copyless._core._observe import liveness_is_weak
from copyless.cli.look import size, within
from copyless.errors import CopylessError, CorruptSegmentError
from copyless.storage import directory, registries, settings
from copyless.storage.observing import look, observing
from copyless.storage.store import WEAK_LIVENESS, boot, need

_LOOKS = 20  # until a copy is whole, each of a tenth of a second
_JOIN_SECONDS = 12.0  # a bit more than joining itself waits


def _mount_of(path: str) -> tuple[str, str]:
    """(mount point, file system type)."""
    best = ("/", "?")
    for part in psutil.disk_partitions(all=True):
        inside = path == part.mountpoint or path.startswith(part.mountpoint.rstrip("/") + "/")
        if inside and len(part.mountpoint) >= len(best[0]):
            best = part.mountpoint, part.fstype
    return best


def _memory_max() -> int | None:
    """The control group's limit in bytes, or None."""
    try:
        with open("/proc/self/cgroup") as f:
            unified = [line.strip().split(":", 2)[2] for line in f if line.startswith("0::")]
    except OSError:
        return None
    for place in [*(f"/sys/fs/cgroup{path}/memory.max" for path in unified), "/sys/fs/cgroup/memory.max",
                  "/sys/fs/cgroup/memory/memory.limit_in_bytes"]:  # fmt: skip
        try:
            with open(place) as f:
                limit = int(f.read())
                return limit if limit < 1 << 60 else None
        except (OSError, ValueError):
            continue
    return None


def _leftovers() -> list[dict[str, Any]]:
    """Files of the standard library in /dev/shm that belong to this user: blocks and semaphores nobody may use any more."""
    found = []
    try:
        entries = list(os.scandir("/dev/shm"))
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
    """Every registry, of any version, in a directory that is ours; two versions side by side are no problem."""
    found = []
    for path in directory.ours():
        for entry in registries.look(path):
            in_use = f"{len(entry.holders)} processes" if entry.holders else "nobody"
            found.append({
                "directory": path, "layout": entry.layout, "used by": in_use, "persistent names": max(entry.persistent, 0),
                "files": entry.files, "bytes": entry.nbytes,
            })  # fmt: skip
            if entry.layout != registries.LAYOUT and not entry.holders:
                holds = f"holds {entry.persistent} persistent names" if entry.persistent > 0 else "is used by nobody"
                what = f"{path}/registry.{entry.layout}" if entry.registry else f"files without a registry in {path}"
                problems.append(
                    f"{what} of another version (layout {entry.layout}, this is {registries.LAYOUT}) {holds} and takes "
                    f"{size(entry.nbytes)}: remove it with that version, or by hand"
                )
    return found


def _registry(facts: dict[str, Any]) -> list[str]:
    """Look at the registry, without its lock. Where there is none, or one of another boot, see whether one can be made."""
    problems: list[str] = []
    facts["registry"] = "not reachable"
    try:
        with observing() as observer:
            usable = observer is not None and observer.look()["boot"] == boot()
        if not usable and not within(_JOIN_SECONDS, need):
            return ["no process can begin to use shared memory: another one is making a registry and does not go on"]
        facts["storage directory"] = directory.current()
        with observing() as observer:
            if observer is None:
                return ["the registry was removed while it was looked at: look again"]
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
        problems.append(f"{found['note']}; others that need the lock wait until it goes on (kill -CONT) or ends")
    place, seen = found["spill"]
    facts["spilled items"] = os.fsdecode(place) or "nowhere"
    if place and not seen:
        problems.append(
            f"items that do not fit go to {facts['spilled items']}, and this process sees another directory there "
            "(PrivateTmp? a container?): give all processes the same one"
        )
    totals = found["totals"]
    facts["in shared memory"] = f"{size(totals['total_bytes'])}, {size(totals['warm_bytes'])} of it free and warm"
    facts["deaths cleaned up after"] = totals["deaths"]
    weak = liveness_is_weak()
    facts["liveness"] = "held weakly, by a descriptor" if weak else "held by a mapping"
    if weak:
        problems.append(WEAK_LIVENESS)
    return problems


def examine() -> dict[str, Any]:
    """Facts and problems; a problem says what to change."""
    path = settings.current().dir
    problems: list[str] = []
    facts: dict[str, Any] = {
        "copyless": __import__("copyless").__version__,
        "python": platform.python_version(),
        "kernel": f"{platform.system()} {platform.release()} {platform.machine()}",
        "processors": settings.processors(),
        "storage directory": directory.current(),
        "spaces in use": ", ".join(space or "(the common one)" for space in directory.spaces()) or "none",
    }
    try:
        st = os.statvfs(path)
        mount, kind = _mount_of(os.path.realpath(path))
        total, free = st.f_blocks * st.f_frsize, st.f_bavail * st.f_frsize
        facts |= {"mount": mount, "file system": kind, "size": size(total), "free": size(free)}
        if kind not in ("tmpfs", "ramfs"):
            problems.append(f"{path} lies on {kind}, a disk: mount a tmpfs there or set COPYLESS_DIR to one")
        if total < 256 << 20:
            problems.append(
                f"{mount} has only {size(total)}: mount -o remount,size=50% {mount}, or docker run --shm-size=2g, "
                "or in Kubernetes an emptyDir with medium: Memory"
            )
        elif free < total // 20:
            problems.append(
                f"{mount} is nearly full ({size(free)} free): 'copyless reap', and see what else lies there"
            )
    except OSError as error:
        problems.append(f"{path}: {error.strerror}: mount a tmpfs there or set COPYLESS_DIR to one")
    limit = _memory_max()
    facts["memory"] = f"{size(psutil.virtual_memory().total)}, {size(psutil.virtual_memory().available)} available"
    facts["memory.max"] = "none" if limit is None else size(limit)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    facts["open files"] = f"{soft} (at most {hard})"
    if soft < 256:
        problems.append(f"only {soft} open files are allowed: ulimit -n 1024")
    space = resource.getrlimit(resource.RLIMIT_AS)[0]
    if space != resource.RLIM_INFINITY:
        facts["address space"] = size(space)
        if space < 4 << 30:
            problems.append(
                f"address space is limited to {size(space)}; mapping large arrays will fail: ulimit -v unlimited"
            )
    try:
        with open("/proc/sys/vm/max_map_count") as f:
            facts["mappings a process"] = int(f.read())
    except OSError:
        pass
    problems += [directory.why_refused(other) for other in directory.refused()]
    problems += _registry(facts)
    return {
        "facts": facts,
        "layouts": _layouts(problems),
        "settings": settings.describe(),
        "leftovers": _leftovers(),
        "problems": problems,
        "ok": not problems,
        "executable": sys.executable,
    }


def show(report: dict[str, Any], console: Console) -> None:
    table = Table(show_header=False)
    for key, value in report["facts"].items():
        table.add_row(key, str(value))
    console.print(table)
    if report["layouts"]:
        layouts = Table(*report["layouts"][0], title="registries", title_justify="left")
        for entry in report["layouts"]:
            layouts.add_row(*(size(value) if key == "bytes" else str(value) for key, value in entry.items()))
        console.print(layouts)
    values = Table("setting", "present value", title="settings", title_justify="left")
    for key, value in report["settings"].items():
        values.add_row(key, str(value))
    console.print(values)
    if report["leftovers"]:
        left = Table(
            "file in /dev/shm",
            "bytes",
            "age",
            title="of the standard library, perhaps left behind",
            title_justify="left",
        )
        for entry in report["leftovers"]:
            left.add_row(entry["name"], size(entry["bytes"]), f"{entry['age_s']} s")
        console.print(left)
    for problem in report["problems"]:
        console.print(f"[red]change:[/] {problem}")
    if report["ok"]:
        console.print("[green]nothing to change[/]")
