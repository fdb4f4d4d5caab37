"""One Python target: under Atheris (`python -m tests.fuzz.python NAME [libFuzzer's arguments]`), or its kept inputs
once (`--replay DIR`).
"""

import importlib
import sys
from pathlib import Path


def replay(name: str, places: list[str]) -> int:
    target = importlib.import_module(f"tests.fuzz.fuzz_{name}")
    inputs = [file for place in places for file in sorted(Path(place).iterdir())]
    for file in inputs:
        print(file, file=sys.stderr, flush=True)  # a death by a signal names its input
        target.test_one_input(file.read_bytes())
    return len(inputs)


def main(name: str, arguments: list[str]) -> None:
    if arguments[:1] == ["--replay"]:
        print(replay(name, arguments[1:]), "inputs")
        return
    import atheris

    with atheris.instrument_imports(include=["copyless", "tests.fuzz"]):
        target = importlib.import_module(f"tests.fuzz.fuzz_{name}")
    atheris.Setup([name, *arguments], target.test_one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
