"""mpire's communication of a pool with its workers: locks, events, conditions, arrays, joinable queues, managers."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))
from clients import Archive, change, get, judge, outcomes

COMMIT = "1b23e57257a32ee0ab0f2b10fdb04af3ed26774c"  # its tag v2.10.2; its source archive has no tests
ARCHIVE = Archive(
    file=f"mpire-{COMMIT}.tar.gz",
    parts=("mpire", "tests"),
    digest="f6891d4fc5bdcbe4bc4c7db4adba070efbf8794a29cfd423c2b9cdeba6711e7c",
    github=f"sybrenjansen/mpire/{COMMIT}",
)
PASSES = 97
KNOWN: dict[str, str] = {}

if __name__ == "__main__":
    root = get(ARCHIVE)
    assert change(root) >= 5
    tests = [f"tests/test_{name}.py" for name in ("comms", "async_result", "insights", "utils", "params")]
    sys.exit(judge("mpire", "2.10.2", outcomes(root, tests), PASSES, KNOWN))
