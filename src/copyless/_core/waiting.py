"""What is said of a process that holds others up: one line in the log."""

from __future__ import annotations

import logging
import time

__all__ = ["state_of", "tell"]

log = logging.getLogger("copyless")

_AGAIN = 60.0  # seconds until the same process is told again
_STATES = {
    "R": "running",
    "S": "sleeping",
    "D": "waiting for the system",
    "T": "stopped",
    "t": "stopped by a debugger",
    "Z": "ended, not yet waited for",
    "X": "ended",
}
_told: dict[int, float] = {}


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(4096)
    except OSError:
        return b""


def state_of(pid: int) -> tuple[str, str]:
    """(program, state) of a process, in words, as far as /proc shows it."""
    name, _, rest = _read(f"/proc/{pid}/stat").rpartition(b")")  # the name may hold anything
    words = [word.decode("utf-8", "replace") for word in _read(f"/proc/{pid}/cmdline").split(b"\0")]
    program = " ".join(words).strip()[:80] or name.partition(b"(")[2].decode("utf-8", "replace") or "unknown program"
    letter = rest.split()[0].decode() if rest.split() else ""
    return program, _STATES.get(letter, "in an unknown state")


def tell(pid: int, seconds: float, users: bool = False, what: str = "") -> bool:
    """Log who has held this process up for so long; whether all is said. Of a user's own lock (`users`) only who is stopped.

    `what` is held, where that is not a lock.
    """
    program, state = state_of(pid)
    if users and not state.startswith("stopped"):
        return False
    now = time.monotonic()
    if now - _told.get(pid, -_AGAIN) >= _AGAIN:
        if len(_told) >= 1024:
            _told.clear()
        _told[pid] = now  # first: what handles the line may wait for the same process
        what = what or ("a lock" if users else "a lock inside copyless")
        log.warning(
            "waiting for process %d (%s), which is %s and has held %s for %.1f s", pid, program, state, what, seconds
        )
    return True
