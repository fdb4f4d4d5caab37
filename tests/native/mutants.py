"""Named mistakes in the C source, and the test that notices each: `make mutants`, or MUTANT=name for one.

`CL_MUTANT(name)` in the source is 0, except in a build with -DCL_MUTANTS when the environment variable CL_MUTANT has
that name. The tests are compiled once with it and must pass without a mutant. Then for each mutant the tests named
beside it run in order until one fails. A test that hangs has failed. `lock@thread` is a test compiled with the thread
sanitizer, which finds memory orders that this processor hides; `tests/test_x.py::test_y` is a Python test, with the
extension built in the same way.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import datetime
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TOP = Path(__file__).resolve().parents[2]
NATIVE = TOP / "src" / "copyless" / "_core" / "native"
BUILD = TOP / "build" / "mutants"
REPORT = TOP / "docs" / "design" / "testing.md"
BEGIN, END = "<!-- mutants: written by `make mutants` -->", "<!-- /mutants -->"
FLAGS = ["-std=gnu11", "-g", "-O1", "-Wall", "-Wextra", "-Werror", "-DCL_KILL_POINTS", "-DCL_MUTANTS"]
FLAGS += [f"-I{NATIVE}", f"-I{NATIVE}/structures"]

# mutant: the tests to run, in this order
TESTS = {
    "journal_replay_keeps_committed": "journal",
    "journal_replay_applies_nothing": "journal",
    "journal_offset_unchecked": "journal",
    "journal_count_unchecked": "journal",
    "journal_commit_relaxed": "journal@thread",
    "lock_release_relaxed": "lock@thread",
    "lock_acquire_relaxed": "lock@thread",
    "lock_takeover_loses_sleepers": "lock",
    "lock_sleeper_forgets_others": "lock",
    "lock_looks_once": "lock",
    "lock_wakes_nobody": "lock",
    "lock_nobody_is_damage": "sync",
    "rwlock_writer_waits_for_ever": "sync",
    "snapshot_ignores_entries": "snapshot",
    "bells_not_rung": "bells",
    "bells_not_asked": "bells",
    "bells_queue_unmarked": "bells",
    "enter_own_slot_unchecked": "damage",
    "enter_heals_unaudited": "registry",
    "registry_checksum_unchecked": "damage",
    "registry_opened_though_removed": "kill",
    "owners_join_ignores_removed": "registry",
    "owners_incarnation_stays": "sync",
    "owners_slot_looked_at_once": "registry kill heap",
    "fork_child_inherits_nothing": "fork",
    "fork_child_keeps_its_parents_life": "fork",
    "fork_child_keeps_its_parents_nonce": "fork",
    "fork_copy_not_noted": "fork",
    "fork_epoch_stays": "fork",
    "estate_marks_not_inherited": "fork",
    "estate_mark_not_cleared": "fork",
    "estate_marks_ignored": "fork",
    "estate_dropped_from_heirs": "fork",
    "estate_not_looked_through": "fork",
    "reap_takes_from_heirs": "fork",
    "holds_nonce_unchecked": "holds",
    "holds_generation_stays": "holds",
    "holds_queue_keeps_itself": "holds",
    "load_ignores_generation": "holds",
    "load_agreement_unchecked": "damage",
    "heap_new_generation_stays": "holds heap kill",
    "heap_hands_out_going": "reap",
    "segment_checksum_unchecked": "damage",
    "segment_inode_unchecked": "damage",
    "segment_recorded_inode_unchecked": "damage",
    "reap_leaves_going": "kill",
    "reap_leaves_making": "kill",
    "reap_messages_never_end": "holds",
    "reap_parents_of_one_number": "reap",
    "process_start_unchecked": "reap",
    "queue_producer_not_cleaned": "queue",
    "queue_consumer_not_cleaned": "queue",
    "queue_leases_beyond_kept": "queue",
    "queue_taken_not_counted": "queue",
    "queue_cleans_leased": "queue",
    "queue_lengths_unchecked": "damage",
    "queue_body_unchecked": "damage",
    "queue_head_unchecked": "damage",
    "queue_end_unchecked": "damage",
    "queue_abort_keeps_the_next_chunk": "queue",
    "queue_wake_not_passed_on": "queue",
    "queue_others_do_not_sleep": "queue",
    "ring_writer_releases_no_dead": "ring",
    "ring_frame_not_finished": "ring",
    "ring_finished_twice": "ring",
    "ring_number_smaller": "ring",
    "ring_place_not_reserved": "ring",
    "ring_nobody_helps": "ring",
    "ring_number_taken_again": "ring",
    "ring_reader_looks_once": "ring ring@thread",
    "ring_claim_not_undone": "ring",
    "ring_loans_looked_at_once": "ring ring@thread",
    "ring_calls_not_told_apart": "ring",
    "ring_hints_believed": "ring",
    "ring_hints_not_renewed": "ring",
    "ring_releases_all_of_a_word": "ring",
    "ring_subscriber_looks_once": "ring",
    "ring_dead_readers_kept": "ring",
    "ring_index_unbounded": "ring",
    "condition_notice_dies": "sync",
    "condition_notifies_the_dead": "sync",
    "rwlock_dead_writer_keeps_readers_out": "sync",
    "rwlock_dead_reader_counts": "sync",
    "barrier_dead_party_waited_for": "sync",
    "semaphore_dead_holder_keeps": "sync",
    "sync_nobody_lives": "sync",
    "list_reader_looks_once": "list",
    "list_place_unchecked": "list",
    "list_writer_unfenced": "list list@thread",
    "copy_unfenced": "copy queue ring",
}

# Mutants that no test can notice, and why.
EQUIVALENT = {
    "ring_calls_not_told_apart": "three threads must collide within a few instructions; model_ring.c finds it when its "
    "calls are not told apart",
    "list_writer_unfenced": "x86 keeps stores in their order, and the thread sanitizer knows no fences",
    "copy_unfenced": "a locked instruction publishes the copy; on x86 it orders streaming stores too",
    "owners_slot_looked_at_once": "a process that joins reads the state again under the registry's lock; prepare of a "
    "fork has the lock",
    "heap_new_generation_stays": "each free has already incremented the generation, and the segment's random id is "
    "compared first",
}


def named_in_source() -> set[str]:
    text = "".join(path.read_text() for path in [*NATIVE.glob("*.[ch]"), *NATIVE.glob("structures/*.[ch]")])
    return set(re.findall(r"CL_(?:MUTANT|ORDER)\((\w+)[,)]", text)) - {"name"}


class Tests:
    """The compiled tests, and how long each takes without a mutant."""

    def __init__(self, build: Path) -> None:
        self.build = build
        self.seconds: dict[str, float] = {}
        self.compiler = shlex.split(os.environ.get("CC", "cc"))

    def objects(self, kind: str) -> list[str]:
        place = self.build / kind
        place.mkdir(parents=True)
        sources = sorted([*NATIVE.glob("*.c"), *NATIVE.glob("structures/*.c")])
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            done = [pool.submit(self.compile, kind, ["-c", str(s), "-o", str(place / f"{s.stem}.o")]) for s in sources]
            for one in done:
                one.result()
        return [str(place / f"{s.stem}.o") for s in sources]

    def compile(self, kind: str, arguments: list[str]) -> None:
        sanitizer = ["-fsanitize=thread", "-Wno-tsan"] if kind == "thread" else []
        subprocess.run([*self.compiler, *FLAGS, *sanitizer, *arguments], check=True)

    def prepare(self, wanted: set[str]) -> None:
        objects: dict[str, list[str]] = {}
        for test in sorted(wanted):
            if test.startswith("tests/"):
                self.prepare_python()
            else:
                name, _, kind = test.partition("@")
                kind = kind or "plain"
                if kind not in objects:
                    objects[kind] = self.objects(kind)
                source = str(TOP / "tests" / "native" / f"test_{name}.c")
                self.compile(kind, [source, *objects[kind], "-o", str(self.build / test), "-lpthread"])
            begun = time.monotonic()
            said = self.run(test, None, 600)
            if said is not None:
                raise SystemExit(f"{test} fails without any mutant: {said}")
            self.seconds[test] = time.monotonic() - begun

    def prepare_python(self) -> None:
        if not (self.build / "python").exists():
            pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q", "install", "--no-deps"]
            subprocess.run(
                [*pip, "-C", "setup-args=-Dc_args=-DCL_MUTANTS", "-t", str(self.build / "python"), str(TOP)], check=True
            )

    def run(self, test: str, mutant: str | None, timeout: float, reached: Path | None = None) -> str | None:
        """What it printed when it failed; None: it passed."""
        environment = {key: value for key, value in os.environ.items() if not key.startswith("CL_")}
        command = [str(self.build / test)]
        if test.startswith("tests/"):
            command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", str(TOP / test)]
            environment["PYTHONPATH"] = str(self.build / "python")
        if mutant is not None:
            environment["CL_MUTANT"] = mutant
            environment["CL_MUTANT_REACHED"] = str(reached)
        with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="copyless-mutant-") as place:
            environment["CL_TEST_DIR"] = environment["COPYLESS_DIR"] = place
            with tempfile.TemporaryFile() as said:
                process = subprocess.Popen(
                    command,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=said,
                    stderr=said,
                    start_new_session=True,
                    cwd=place,
                )
                try:
                    code: int | None = process.wait(timeout)
                except subprocess.TimeoutExpired:
                    code = None
                try:  # and all that it started
                    os.killpg(process.pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
                process.wait()
                said.seek(0)
                lines = said.read().decode(errors="replace").strip().splitlines()
        if code == 0:
            return None
        if code is None:
            return "it hangs"
        races = [line for line in lines if "data race" in line]
        checks = [line for line in lines if re.match(r".*\.[ch]:\d+: |FAILED ", line)]
        last = races[0] if races else checks[0] if checks else (lines or [""])[-1]
        last = re.sub(r"^.*/tests/native/", "", re.sub(r" \(pid=.*| \[[^\[\]]*\]$", "", last))
        return last if checks or races or code >= 0 else f"{signal.Signals(-code).name} {last}"


def judge(tests: Tests, mutant: str) -> tuple[str, str]:
    """(killed, survives or unreached; by what)"""
    reached = tests.build / f"{mutant}.reached"
    for test in TESTS[mutant].split():
        said = tests.run(test, mutant, max(20.0, 8 * tests.seconds[test]), reached)
        if said is not None and reached.exists():
            return "killed", f"{test}: {said}"
        if said is not None:
            return "unreached", f"{test} fails, but not by this: {said}"
    return ("survives", "") if reached.exists() else ("unreached", "no test comes by")


def commit() -> str:
    found = subprocess.run(
        ["git", "-C", str(TOP), "describe", "--always", "--dirty", "--exclude=*"], capture_output=True, text=True
    )
    return found.stdout.strip() or "unknown"


def write_report(results: dict[str, tuple[str, str]], seconds: float) -> None:
    killed = sum(state == "killed" for state, _ in results.values())
    lines = [BEGIN, ""]
    lines.append(
        f"{len(results)} mutants at `{commit()}`, {datetime.date.today()}, {seconds / 60:.0f} minutes: {killed} "
        f"killed, "
    )
    lines[-1] += f"{len(results) - killed} survive."
    lines += ["", "| Mutant | Killed by |", "|---|---|"]
    for name, (state, what) in results.items():
        why = what if state == "killed" else f"*survives*: {EQUIVALENT.get(name, state + ' ' + what)}"
        cell = why.replace("|", "\\|").replace("`", "'")
        test, colon, said = cell.partition(": ")
        lines.append(f"| `{name}` | {test + colon + ('`' + said + '`' if state == 'killed' else said)} |")
    lines += ["", END]
    text = REPORT.read_text()
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2]
    REPORT.write_text(before + "\n".join(lines) + after)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "mutants", nargs="*", help="names, or beginnings of names; without any: all, and the report is written"
    )
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--no-report", action="store_true")
    arguments = parser.parse_args()
    if named_in_source() != set(TESTS):
        raise SystemExit(f"source and table differ: {sorted(named_in_source() ^ set(TESTS))}")
    chosen = [name for name in TESTS if not arguments.mutants or name.startswith(tuple(arguments.mutants))]
    if not chosen:
        raise SystemExit(f"no mutant has this name: {arguments.mutants}")
    begun = time.monotonic()
    BUILD.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=BUILD) as place:
        tests = Tests(Path(place))
        tests.prepare({test for name in chosen for test in TESTS[name].split()})
        print(f"built, and all pass without a mutant: {time.monotonic() - begun:.0f} s", flush=True)
        results, bad = {}, 0
        with concurrent.futures.ThreadPoolExecutor(arguments.jobs) as pool:
            for name, result in zip(chosen, pool.map(lambda mutant: judge(tests, mutant), chosen), strict=True):
                results[name] = result
                state, what = result
                good = state == "killed" if name not in EQUIVALENT else state == "survives"
                bad += not good
                what = EQUIVALENT.get(name, what) if state == "survives" else what
                print(f"{'  ' if good else '! '}{name:40} {state:9} {what[:150]}", flush=True)
    killed = sum(state == "killed" for state, _ in results.values())
    print(f"{len(results)} mutants, {killed} killed, {len(results) - killed} survive; {bad} are not as the table says")
    if not arguments.mutants and not arguments.no_report:
        write_report(results, time.monotonic() - begun)
    return 1 if bad else 0


if __name__ == "__main__":
    if shutil.which(shlex.split(os.environ.get("CC", "cc"))[0]) is None:
        raise SystemExit("no C compiler was found: set CC")
    sys.exit(main())
