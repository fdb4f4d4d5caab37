"""What a type checker finds in a program of multiprocessing after its import was changed: as much as before."""

import re
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# Each comment names the kind of mistake that a checker must find on its line; on the others it must find none.
PROGRAM = """
import copyless as mp
from copyless import ProcessPoolExecutor

def half(x: int) -> float:
    return x / 2

def told(x: float) -> None:
    print(x)

def main() -> None:
    with mp.Pool(2) as pool:
        a: list[float] = pool.map(half, [1])
        b: float = pool.apply(half, (1,))
        c: float = pool.apply_async(half, (1,), callback=told).get()
        d: list[float] = pool.map_async(half, [1]).get()
        e: list[float] = [x for x in pool.imap(half, [1])]
        f: float = pool.imap_unordered(half, [1]).next(timeout=1)
        g: list[float] = pool.starmap(half, [(1,)])
        pool.map(half, ["a"])  # arg-type
        h: list[str] = pool.map(half, [1])  # arg-type
        pool.maps(half, [1])  # attr-defined
    with ProcessPoolExecutor() as executor:
        i: float = executor.submit(half, 1).result()
        executor.submit(half, "x")  # arg-type
        executor.submit(half, 1, 2)  # call-arg
        list(executor.map(half, [1]))
    manager = mp.Manager()
    manager.dict(a=1)["b"] = 2
    manager.list([1]).append(2)
    manager.Queue().put(1)
    manager.dicts()  # attr-defined
    q: mp.Queue[int] = mp.Queue()
    q.put(1)
    q.put("s")  # arg-type
    j: int = q.get()
    k: str = q.get()  # assignment
    for item in q:
        l: int = item
    many: list[int] = q.get_many()
    mp.get_context("spawn").Process(target=main).start()
    mp.zeross(3)  # attr-defined
"""


def test_a_checker_finds_each_planted_mistake_and_no_other(tmp_path):
    api = pytest.importorskip("mypy.api")
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    out, err, _ = api.run(["--strict", "--cache-dir", str(tmp_path / "cache"), str(program)])
    found = {(int(line), kind) for line, kind in re.findall(r"program\.py:(\d+): error: .*\[([a-z-]+)\]", out)}
    lines = enumerate(PROGRAM.splitlines(), 1)
    planted = {(n, line.rpartition("  # ")[2]) for n, line in lines if "  # " in line}
    assert found == planted, out + err


# What a checker cannot see, and what is not readable. A number may only fall: lower it together with what it counts.
MOST = {"Any": 1024, "type: ignore": 75, "long lines": 114}


def _names(path):
    """The names in a file's code, without those of import statements, strings and comments."""
    with open(path, "rb") as file:
        tokens = [token for token in tokenize.tokenize(file.readline) if token.type == tokenize.NAME]
    imports = {token.start[0] for token in tokens if token.string == "import"}
    return [token.string for token in tokens if token.start[0] not in imports]


def test_what_is_not_checked_becomes_less():
    files = [path for end in ("py", "pyi") for path in (ROOT / "src").rglob(f"*.{end}")]
    everywhere = [line for part in ("src", "tests", "bench", "examples", "wheels") for path in (ROOT / part).rglob("*.py")  # noqa: E501
                  for line in path.read_text().splitlines()]  # fmt: skip
    found = {
        "Any": sum(_names(path).count("Any") for path in files),
        "type: ignore": sum(path.read_text().count("# type: ignore") for path in files),
        "long lines": sum(len(line) > 120 for line in everywhere),
    }
    more = {what: (number, MOST[what]) for what, number in found.items() if number > MOST[what]}
    assert not more, "more than there were (found, allowed)"
