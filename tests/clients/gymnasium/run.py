"""Gymnasium's vector environments: AsyncVectorEnv uses processes behind pipes and observations in shared arrays."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))
from clients import Archive, change, get, judge, outcomes

COMMIT = "95a790e199c1ea7befa2fca03ac9fc42001c908d"  # "Update to v1.4.0"; its source archive has no tests/vector
ARCHIVE = Archive(
    file=f"Gymnasium-{COMMIT}.tar.gz",
    parts=("gymnasium", "tests"),
    digest="ab81e9bc242bbe662dd4ec610e6a896f3da7a284edfb275764cf9bd9deacf917",
    github=f"Farama-Foundation/Gymnasium/{COMMIT}",
)
PASSES = 1516
NEED_MORE = ["tests/vector/test_sync_vector_env.py::test_sync_vector_env_seed"]  # Box2D, which is built from source
KNOWN: dict[str, str] = {}

if __name__ == "__main__":
    root = get(ARCHIVE)
    assert change(root) >= 3
    found = outcomes(root, ["tests/vector", "--import-mode=importlib", *(f"--deselect={test}" for test in NEED_MORE)])
    sys.exit(judge("gymnasium", "1.4.0", found, PASSES, KNOWN))
