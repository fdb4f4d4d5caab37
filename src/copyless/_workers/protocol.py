"""The messages between a worker pool and its workers, the rows of the board, and the logs of answers.

A message is (number, i, kind, value). For an answer: the number of the bundle, the position of the task in it, a kind
and a value. For a worker itself (`READY`, `NO_START`, `ENDED`): its pid, its exit code, the kind and a text.
"""

from __future__ import annotations

__all__ = [
    "ATOMS", "BEGUN", "DEAD", "DIED", "DONE", "ENDED", "FULL", "IN_LOG", "LOG_BYTES", "MANY", "MIXED", "NAMED",
    "NO_ROOM", "NO_START",
    "NUMBER", "PATIENCE", "PID", "RAISED", "READY", "ROWS", "SEALED", "SINGLE", "STARRED", "TRIES", "UNREADABLE",
    "UNSENDABLE", "WIDTH",
]  # fmt: skip

# Kinds of messages. Plain numbers, because they are part of each message.
DONE, SEALED, RAISED, UNREADABLE, DIED, UNSENDABLE, READY, NO_START, ENDED, MANY, MIXED = range(11)

# The arguments of a task in a bundle: (args, kwargs), one argument, or a tuple of arguments. `_answers.pyx` uses the
# first two numbers.
FULL, SINGLE, STARRED = range(3)
NAMED = 4  # added to the style: the function is given by its name, as a separate pickle

ROWS = 1024  # rows of the board: the most bundles that are queued or running
NUMBER, BEGUN, TRIES, PID, NO_ROOM, WIDTH = range(6)  # words of a row, and how many there are
DEAD = 1 << 32  # in NO_ROOM: the answer is that a worker died in the task
IN_LOG = 1 << 33  # in NO_ROOM: the answers lie in the worker's log

LOG_BYTES = 8192
PATIENCE = 0.005  # seconds that an answer may lie in a log while its worker runs other tasks

ATOMS = frozenset((type(None), bool, int, float, str, bytes))  # results that are sent as they are
