"""Fuzz each target for a while, keep what is worth keeping, and say which branches of its files are reached.

    python -m tests.fuzz --seconds 60 [--targets attach wire ...]     fuzz, then keep and report
    python -m tests.fuzz --seconds 0                                  only the report, over the kept inputs

The C targets need clang (with libFuzzer and llvm-cov), the Python targets the packages atheris and coverage. The kept
inputs are also run without any of them, by `make check-native` and `tests/test_fuzz.py`. What was found lies in
build/fuzz.
"""

import argparse
import importlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

from . import seeds

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
NATIVE = ROOT / "src/copyless/_core/native"
BUILD = ROOT / "build/fuzz"
KEPT = HERE / "corpus"
MOST_KEPT = 80_000  # bytes of kept inputs of a target

# The files that a target is meant to cover; their branches are counted.
C_TARGETS = {
    "attach": ["registry.c", "segment_file.c", "enter.c", "spill.c", "files.c"],
    "registry": [
        "audit.c", "blocks.c", "channels.c", "estate.c", "heap.c", "holds.c", "journal.c", "messages.c", "name_table.c",
        "names.c", "operation.c", "posix.c", "reap.c", "segment_table.c", "snapshot.c",
    ],
    "objects": [
        "barrier.c", "bells.c", "condition.c", "event.c", "list.c", "monitor.c", "mutex.c", "object.c", "queue.c",
        "queue_chunks.c",
        "queue_state.c", "ring.c", "robust_semaphore.c", "rwlock.c", "semaphore.c",
    ],
    "plain": ["plain.h"],
}  # fmt: skip
# The calls that can fail if the input says so: see faults.h.
WRAPPED = [
    "calloc", "fcntl", "fchmod", "fdopendir", "fstat", "ftruncate", "linkat", "madvise", "malloc", "mkdir", "mmap",
    "openat",
    "posix_fallocate", "pwrite", "realloc", "sched_yield", "syscall",
]  # fmt: skip
# One in this number of the inputs of seeds.py: all of them would take minutes.
THIN = {"attach": 9, "registry": 60, "objects": 1}
PYTHON_TARGETS = ["arrays", "inbox", "wire"]


def run(*command: object, **keywords: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(part) for part in command], check=True, text=True, cwd=ROOT, **keywords)  # type: ignore[call-overload, no-any-return]


def compile_target(name: str, flags: list[str], place: Path, driver: list[Path]) -> Path:
    """The program of a C target; `driver` is empty if libFuzzer has its main."""
    common = ["clang", "-std=gnu11", "-g", "-O1", f"-I{NATIVE}", f"-I{NATIVE}/structures", f"-I{HERE}", *flags]
    place.mkdir(parents=True, exist_ok=True)
    program = place / name
    if name == "plain":
        library = sysconfig.get_config_var("LIBDIR")
        run(*common, f"-I{sysconfig.get_path('include')}", f"-I{NATIVE.parent}", HERE / "fuzz_plain.c", *driver,
            *([NATIVE / "base.c"] if driver else []), "-o", program,
            f"-L{library}", f"-lpython{sysconfig.get_config_var('LDVERSION')}", f"-Wl,-rpath,{library}")  # fmt: skip
        return program
    common.append("-DCL_KILL_POINTS")  # other processes act in the middle of a call: faults.h
    objects = []
    library_flags = [flag.replace(",fuzzer", ",fuzzer-no-link") for flag in common]
    for source in sorted([*NATIVE.glob("*.c"), *NATIVE.glob("structures/*.c")]):
        made = place / f"{source.stem}.o"
        newest = max(
            p.stat().st_mtime for p in [source, Path(__file__), *NATIVE.glob("*.h"), *NATIVE.glob("structures/*.h")]
        )
        if not made.exists() or made.stat().st_mtime < newest:
            run(*library_flags, "-c", source, "-o", made)
        objects.append(made)
    wrapped = [f"-Wl,--wrap={function}" for function in WRAPPED]
    run(*common, HERE / f"fuzz_{name}.c", *driver, *objects, *wrapped, "-o", program, "-lpthread")
    return program


SANITIZED = ["-fsanitize=address,undefined,fuzzer", "-fno-sanitize-recover=all"]
COUNTED = ["-fprofile-instr-generate", "-fcoverage-mapping"]
ENVIRONMENT = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0", "PYTHONMALLOC": "malloc"}


def command_of(name: str) -> list[str]:
    if name in C_TARGETS:
        return [str(compile_target(name, SANITIZED, BUILD / "sanitized", []))]
    return [sys.executable, "-m", "tests.fuzz.python", name]


def seeds_of(name: str) -> list[Path]:
    """The directory of a target's seeds; made again each time, since they depend on the layout."""
    place = BUILD / "seeds" / name
    if name not in THIN:
        return []
    shutil.rmtree(place, ignore_errors=True)
    seeds.write(name, place, THIN[name])
    return [place]


def fuzz(name: str, seconds: int) -> bool:
    """Whether nothing was found."""
    work, kept = BUILD / "corpus" / name, KEPT / name
    work.mkdir(parents=True, exist_ok=True)
    kept.mkdir(parents=True, exist_ok=True)
    command = command_of(name)
    begun = time.monotonic()
    with open(BUILD / f"{name}.log", "w") as log:
        done = subprocess.run(
            [*command, f"-max_total_time={seconds}", "-timeout=25", "-rss_limit_mb=4096", "-len_control=0", "-max_len=500",  # noqa: E501
             f"-artifact_prefix={BUILD}/{name}-", str(work), str(kept), *map(str, seeds_of(name))],
            cwd=ROOT, env=ENVIRONMENT, stdout=log, stderr=log,
        )  # fmt: skip
    print(
        f"{name}: {time.monotonic() - begun:.0f} s, {'nothing found' if done.returncode == 0 else 'FOUND something'}",
        flush=True,
    )
    if done.returncode != 0:
        print((BUILD / f"{name}.log").read_text(errors="replace")[-3000:])
    else:
        keep(name, command)
    return done.returncode == 0


def keep(name: str, command: list[str]) -> None:
    """The smallest inputs that together reach all that any input reaches, as far as they fit."""
    work, kept = BUILD / "corpus" / name, KEPT / name
    with tempfile.TemporaryDirectory(dir=BUILD) as place:
        chosen = Path(place)
        if name in C_TARGETS:
            subprocess.run([*command, "-set_cover_merge=1", "-use_counters=0", "-timeout=25", "-rss_limit_mb=4096", "-max_len=500", place, str(kept),  # noqa: E501
                            str(work), *map(str, seeds_of(name))], cwd=ROOT, env=ENVIRONMENT, capture_output=True)  # fmt: skip  # noqa: E501
        else:  # Atheris cannot restart itself, which merging needs; its set of inputs is small
            for file in [*kept.iterdir(), *work.iterdir()]:
                shutil.copy(file, chosen)
        files = sorted(chosen.iterdir(), key=lambda file: file.stat().st_size)
        if not files:  # merging failed: the kept inputs stay
            return
        step = sum(file.stat().st_size for file in files) // MOST_KEPT + 1
        total = 0
        shutil.rmtree(kept)
        kept.mkdir()
        for file in files[::-1][::step]:
            if total + file.stat().st_size <= MOST_KEPT:
                total += file.stat().st_size
                shutil.copy(file, kept)


def report(name: str) -> None:
    places = [str(place) for place in (KEPT / name, BUILD / "corpus" / name, *seeds_of(name)) if place.is_dir()]
    if name in C_TARGETS:
        program = compile_target(name, COUNTED, BUILD / "counted", [HERE / "replay.c"])
        profile = BUILD / f"{name}.profraw"
        run(program, *places, env={**ENVIRONMENT, "LLVM_PROFILE_FILE": str(profile)}, stdout=subprocess.DEVNULL)
        run("llvm-profdata", "merge", "-o", profile.with_suffix(".profdata"), profile)
        made = run("llvm-cov", "report", program, f"-instr-profile={profile.with_suffix('.profdata')}",
                   "--show-branch-summary", capture_output=True).stdout  # fmt: skip
        for line in made.splitlines():
            fields = line.split()
            if fields and fields[0].rpartition("/")[2] in C_TARGETS[name] and len(fields) >= 13:
                print(
                    f"  {name:9} {fields[0].rpartition('/')[2]:20} {fields[-1]:>8} of {fields[-3]} branches", flush=True
                )
        return
    counted = BUILD / f".coverage.{name}"
    run(sys.executable, "-m", "coverage", "run", "--branch", "--source=copyless", f"--data-file={counted}", "-m", "tests.fuzz.python", name, "--replay",  # noqa: E501
        *places, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
    module = importlib.import_module(f"tests.fuzz.fuzz_{name}")
    wanted = [f"*/{file}" for file in module.FILES if file.endswith(".py")]
    if not wanted:
        print(f"  {name:9} {module.FILES[0]}: compiled by Cython, not counted", flush=True)
        return
    if hasattr(module, "FUNCTIONS"):
        report_functions(name, counted, module.FUNCTIONS)
        return
    print(run(sys.executable, "-m", "coverage", "report", "--show-missing", f"--data-file={counted}", f"--include={','.join(wanted)}",  # noqa: E501
              capture_output=True).stdout)  # fmt: skip


def report_functions(name: str, counted: Path, functions: dict[str, list[str]]) -> None:
    """For files of which only some functions read fuzzed data."""
    made = counted.with_suffix(".json")
    of = reached = 0
    for file, names in functions.items():
        run(sys.executable, "-m", "coverage", "json", "-q", f"--data-file={counted}", f"--include=*/{file}", "-o", made)
        (found,) = json.loads(made.read_text())["files"].values()
        for function in names:
            of_it = found["functions"][function]
            of, reached = of + of_it["summary"]["num_branches"], reached + of_it["summary"]["covered_branches"]
            missed = f", lines {of_it['missing_lines']} not" if of_it["missing_lines"] else ""
            print(
                f"  {name:9} {function}: {of_it['summary']['covered_branches']} of {of_it['summary']['num_branches']} "
                f"branches{missed}"
            )
    print(f"  {name:9} {reached / of:.0%} of {of} branches of these functions", flush=True)


def missing() -> str:
    tools = [tool for tool in ("clang", "llvm-cov", "llvm-profdata") if shutil.which(tool) is None]
    packages = [package for package in ("atheris", "coverage") if importlib.util.find_spec(package) is None]
    said = [f"install {' '.join(tools)} (Debian: clang llvm)"] if tools else []
    return ", and ".join(said + ([f"pip install {' '.join(packages)}"] if packages else []))


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz", description=__doc__.splitlines()[0] if __doc__ else ""
    )
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument("--targets", nargs="*", default=[*C_TARGETS, *PYTHON_TARGETS])
    options = parser.parse_args()
    if missing():
        sys.exit(missing())
    BUILD.mkdir(parents=True, exist_ok=True)
    commit = run("git", "rev-parse", "--short", "HEAD", capture_output=True).stdout.strip()
    print(time.strftime("%Y-%m-%d"), commit, f"{options.seconds} s each", flush=True)
    good = True
    for name in options.targets if options.seconds else []:
        good &= fuzz(name, options.seconds)
    for name in options.targets:
        report(name)
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
