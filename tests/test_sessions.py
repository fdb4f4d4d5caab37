"""Notebooks and `python -i`: a task uses the names of `__main__` as they are when it is submitted, never silently old
ones.
"""

import subprocess
import sys

import pytest

START = """
import copyless, functools, multiprocessing, os, signal
context = multiprocessing.get_context({method!r})

def run(function, *args):
    try:
        return pool.apply_async(function, args).get(60)
    except Exception as error:
        return type(error).__name__

def tell(what, value):
    print(what, value, sep=": ", flush=True)

"""


def session(code, method="fork", arguments=("-c", "import sys; sys.ps1 = sys.ps2 = ''")):
    """The output of an interactive interpreter, as {word: text}. Code is typed: an empty line ends a block."""
    done = subprocess.run(
        [sys.executable, "-i", "-q", *arguments],
        input=START.format(method=method) + code, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    told = dict(line.split(": ", 1) for line in done.stdout.splitlines() if ": " in line)
    assert "Traceback" not in done.stderr, done.stderr
    return told


REDEFINED = """
def f(x): return "old"

def helper(): return "old"

def through(x): return helper()

class Point:
    def name(self): return "old"
    def ask(self): return helper()

class Child(Point): pass

def of_class(x): return Point().name()

def factory():
    def inner(): return helper()
    return inner

@functools.lru_cache
def cached(): return "old"

def of_cached(x): return cached()

def deep(x): return through(x)

factor = "old"
def of_value(x): return factor

{start}
tell("first", [run(g, 1) for g in (f, through, of_class, deep, of_cached, of_value)])

def f(x): return "new"

tell("redefined", run(f, 1))
def late(x): return "late"

tell("late", run(late, 1))
def helper(): return "new"

tell("through", run(through, 1))
tell("deep", run(deep, 1))
tell("partial", run(functools.partial(through, 1)))
tell("lambda", run(lambda x: through(x), 1))
tell("closure", run(factory()))
tell("nested", run(max, [1], [2]))
tell("method of the unchanged", run(Point().ask))
tell("of a child", run(Child().ask))
class Point:
    def name(self): return "new"
    def __eq__(self, other): return type(other) is Point

tell("method", run(Point().name))
tell("class", run(of_class, 1))
tell("instance inside", run(lambda x: x[0].name(), [Point()]))
tell("instance back", run(Point) == Point())
@functools.lru_cache
def cached(): return "new"

tell("cached", run(of_cached, 1))
factor = "new"
tell("value", run(of_value, 1))
tell("names", run(str.upper, "abc"))
tell("map", pool.map_async(through, range(3)).get(60) if hasattr(pool, "map_async") else list(pool.map(through, range(3))))
{end}
"""  # noqa: E501
POOL = ("pool = copyless.Pool(2, context=context)", "pool.terminate()")
EXECUTOR = (
    "pool = copyless.ProcessPoolExecutor(2, context)\n"
    "pool.apply_async = lambda function, args: type('', (), {'get': lambda self, s, f=pool.submit(function, *args): "
    "f.result(s)})()\n",
    "pool.shutdown()",
)


@pytest.mark.parametrize(
    ("made", "method"), [(POOL, "fork"), (EXECUTOR, "fork"), (POOL, "spawn"), (POOL, "forkserver")]
)
def test_what_was_redefined_runs_as_it_is_now(made, method):
    start, end = made
    told = session(REDEFINED.replace("{start}", start).replace("{end}", end), method)
    assert told == {
        "first": str(["old"] * 6), "redefined": "new", "late": "late", "through": "new", "deep": "new",
        "partial": "new", "lambda": "new",
        "closure": "new", "nested": "[2]", "method of the unchanged": "new", "of a child": "new", "method": "new",
        "class": "new",
        "instance inside": "new", "instance back": "True", "cached": "new", "value": "new", "names": "ABC",
        "map": str(["new"] * 3),
    }  # fmt: skip


def test_what_an_initializer_sets_stays_the_workers_own():
    told = session("""
model = None
def load(): return "loaded by " + str(os.getpid())

def begin():
    global model
    model = load()

def ask(x): return model.startswith("loaded") and x

def offset(): return 1

pool = copyless.Pool(1, begin, context=context)
tell("first", run(ask, 5))
def offset(): return 2

def late(x): return model.startswith("loaded") and x + offset()

tell("late", run(late, 5))
tell("unchanged", run(ask, 5))
model = 7
tell("set here too", run(ask, 5))
tell("late again", run(late, 5))
pool.terminate()
""")
    assert told == {"first": "5", "late": "7", "unchanged": "5", "set here too": "5", "late again": "7"}


def test_a_worker_that_was_replaced_is_newer_than_the_others():
    told = session("""
def f(x): return "old"

def die(): os.kill(os.getpid(), signal.SIGKILL)

pool = copyless.Pool(2, context=context)
tell("first", pool.map_async(f, range(4), 1).get(60))
def f(x): return "new"

tell("died", run(die))
tell("after", set(pool.map_async(f, range(40), 1).get(60)))
def f(x): return "newest"

tell("last", set(pool.map_async(f, range(40), 1).get(60)))
pool.terminate()
""")
    assert told == {
        "first": str(["old"] * 4), "died": "WorkerDiedError", "after": "{'new'}", "last": "{'newest'}",
    }  # fmt: skip


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_session_behind_a_program(method, tmp_path):
    program = tmp_path / "program.py"
    program.write_text("def f(x):\n    return 'old'\n\ndef through(x):\n    return f(x)\n")
    told = session("""
pool = copyless.Pool(1, context=context)
tell("first", run(through, 1))
def f(x): return "new"

tell("redefined", run(f, 1))
tell("through", run(through, 1))
pool.terminate()
""", method, (str(program),))  # fmt: skip
    told = {name.removeprefix(">>> ").replace(">>> ", "").replace("... ", ""): text for name, text in told.items()}
    assert told == {"first": "old", "redefined": "new", "through": "new"}
