"""Stable-Baselines3's SubprocVecEnv: one environment in each process, controlled by a pipe, under each start method."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))
from clients import Archive, change, get, judge, outcomes

ARCHIVE = Archive(
    file="stable_baselines3-2.9.2.tar.gz",
    parts=("stable_baselines3", "tests"),
    digest="8af267e9513343f481b3f0680b7740ad79a746873db24f18a9fb2edcbd9a2df7",
)
PASSES = 15
KNOWN: dict[str, str] = {}

if __name__ == "__main__":
    root = get(ARCHIVE)
    assert change(root) >= 2
    found = outcomes(root, ["tests/test_vec_envs.py", "-k", "subproc"])
    sys.exit(judge("stable_baselines3", "2.9.2", found, PASSES, KNOWN))
