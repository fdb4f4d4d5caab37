"""Imports go one way: what imports what, in Python, Cython and C, is compared with the floors in docs/design/README.md.

Counted are imports at the top and in functions, cimports, and strings that name a module of ours. Any file may name a
function of `_loaders`, because pickles name it. No file of the package calls one, so its imports are not counted.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src/copyless"
PAGE = (ROOT / "docs/design/README.md").read_text()
NAMES_OF_PICKLES = "copyless._loaders"


def modules() -> dict[str, Path]:
    found = {}
    for path in sorted(SOURCE.rglob("*")):
        if path.suffix in (".py", ".pyx") and "native" not in path.parts:
            name = ".".join(path.relative_to(SOURCE.parent).with_suffix("").parts)
            found[name.removesuffix(".__init__")] = path
    return found


MODULES = modules()


def floors() -> dict[str, int]:
    """Module or package -> floor, from the table in the page."""
    rows = re.findall(r"^\| (\d+) \| (.*?) \|", PAGE.partition("## The floors")[2].partition("\n## ")[0], re.M)
    found = {}
    for number, cell in rows:
        for each in re.findall(r"`([^`]+)`", cell):
            name = (
                "copyless"
                if each == "__init__.py"
                else "copyless." + each.removesuffix(".py").removesuffix(".pyx").removesuffix("/").replace("/", ".")
            )
            assert name not in found, f"{each} stands on two floors"
            found[name] = int(number)
    return found


FLOORS = floors()


def floor_of(module: str) -> int | None:
    while module:
        if module in FLOORS:
            return FLOORS[module]
        module = module.rpartition(".")[0]
        if module == "copyless":
            return None
    return None


def resolved(name: str) -> str | None:
    """The module of ours at the beginning of a dotted name."""
    while name and name not in MODULES:
        name = name.rpartition(".")[0]
    return name or None


def docstrings(tree: ast.AST) -> set[int]:
    found = set()
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if (
            isinstance(body, list)
            and body
            and isinstance(body[0], ast.Expr)
            and isinstance(body[0].value, ast.Constant)
        ):
            found.add(id(body[0].value))
        if isinstance(node, ast.Assign) and any(
            getattr(target, "id", getattr(target, "attr", "")) == "__module__" for target in node.targets
        ):
            found.add(id(node.value))  # it says in which module a public name is shown
        if isinstance(node, ast.Dict):
            found |= {
                id(value)
                for key, value in zip(node.keys, node.values, strict=True)
                if getattr(key, "value", "") == "__module__"
            }
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "getLogger":
            found |= {id(argument) for argument in node.args}
    return found


def of_python(module: str, path: Path) -> Iterator[tuple[str, int, str]]:
    """(module of ours, line, how it is named)."""
    text = path.read_text()
    tree = ast.parse(text)
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    spared = docstrings(tree)
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            names = [f"{base}.{alias.name}" for alias in node.names]
        elif (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and id(node) not in spared
            and node.value in MODULES
            and "." in node.value
        ):
            names = [node.value]
        for name in names:
            if name.partition(".")[0] == "copyless" and (found := resolved(name)):
                yield found, node.lineno, text.splitlines()[node.lineno - 1].strip()


def of_cython(module: str, path: Path) -> Iterator[tuple[str, int, str]]:
    files = [path, path.with_suffix(".pxd")]
    for file in files:
        if not file.exists():
            continue
        for number, line in enumerate(file.read_text().splitlines(), 1):
            matched = re.match(r"\s*(?:from\s+(copyless[\w.]*)\s+c?import\s+(.*)|c?import\s+(copyless[\w.]*))", line)
            if not matched:
                continue
            base = matched.group(1) or matched.group(3)
            for name in re.findall(r"\w+", (matched.group(2) or "").partition("#")[0]) or [""]:
                if found := resolved(f"{base}.{name}".rstrip(".")):
                    yield found, number, line.strip()


def edges() -> Iterator[tuple[str, str, int, str]]:
    for module, path in MODULES.items():
        if module == NAMES_OF_PICKLES:
            continue
        for target, line, text in (of_python if path.suffix == ".py" else of_cython)(module, path):
            if target not in (module, NAMES_OF_PICKLES):
                yield module, target, line, text


EDGES = list(edges())


def test_every_module_stands_on_one_floor():
    assert len(FLOORS) > 30
    homeless = [module for module in MODULES if floor_of(module) is None and module != NAMES_OF_PICKLES]
    assert not homeless, f"docs/design/README.md has no floor for {homeless}"
    ghosts = [
        module
        for module in FLOORS
        if module not in MODULES and not (SOURCE / module.removeprefix("copyless.").replace(".", "/")).is_dir()
    ]
    assert not ghosts, f"docs/design/README.md names what is not there: {ghosts}"


def test_no_import_goes_up():
    wrong = []
    for module, target, line, text in EDGES:
        below, above = floor_of(module), floor_of(target)
        if target == "copyless" and MODULES[module].name == "__init__.py":
            continue
        if below is not None and above is not None and above > below:
            there = MODULES[target].relative_to(ROOT)
            wrong.append(
                f"{MODULES[module].relative_to(ROOT)}:{line} (floor {below}): {text}\n    {there}:1 (floor {above})"
            )
    assert not wrong, "imports that go up:\n" + "\n".join(wrong)


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Groups of two or more modules that reach each other."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in graph.get(node, ()):
            if other not in index:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            group = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(group) > 1:
                found.append(sorted(group))

    for node in graph:
        if node not in index:
            visit(node)
    return found


def test_no_modules_import_each_other_in_a_circle():
    graph: dict[str, set[str]] = {module: set() for module in MODULES}
    imports = [edge for edge in EDGES if "import" in edge[3]]  # a string in the same package starts it as a program
    for module, target, _, _ in imports:
        graph[module].add(target)
    told = []
    for group in circles(graph):
        told += [
            f"{MODULES[a].relative_to(ROOT)}:{line}: {text}"
            for a, b, line, text in imports
            if a in group and b in group
        ]
    assert not told, "\n".join(told)


def test_nobody_calls_a_loader():
    """They are only for pickles. Otherwise their imports would count as imports of their callers."""
    for path in MODULES.values():
        if path.suffix == ".py" and path.stem != "_loaders":
            for node in ast.walk(ast.parse(path.read_text())):
                if (
                    isinstance(node, ast.Call)
                    and isinstance(node.func, ast.Attribute)
                    and isinstance(node.func.value, ast.Name)
                ):
                    assert node.func.value.id != "_loaders", (
                        f"{path.relative_to(ROOT)}:{node.lineno} calls {node.func.attr}"
                    )


# ---- C


NATIVE = SOURCE / "_core/native"


def of_c() -> tuple[dict[str, set[str]], dict[tuple[str, str], str]]:
    """(file -> files whose functions it calls, (file, file) -> one such function)."""
    texts = {
        path.stem: re.sub(r'//[^\n]*|/\*.*?\*/|"(\\.|[^"\\])*"', "", path.read_text(), flags=re.S)
        for path in [*NATIVE.glob("*.c"), *NATIVE.glob("structures/*.c")]
    }
    home = {}
    for stem, text in texts.items():
        for name in re.findall(r"^(?!static)[a-z][\w \*]*?\b(cl_\w+)\([^;{]*\)\s*\n?\{", text, re.M):
            home[name] = stem
    graph: dict[str, set[str]] = {stem: set() for stem in texts}
    why = {}
    for stem, text in texts.items():
        for name in set(re.findall(r"\bcl_\w+\b", text)):
            if home.get(name, stem) != stem:
                graph[stem].add(home[name])
                why[stem, home[name]] = name
    return graph, why


def test_no_files_of_c_call_each_other_in_a_circle():
    graph, why = of_c()
    assert sum(map(len, graph.values())) > 100
    told = [
        f"{a}.c calls {why[a, b]} of {b}.c" for group in circles(graph) for a in group for b in graph[a] if b in group
    ]
    assert not told, "\n".join(told)


def test_the_structures_stand_on_the_store():
    graph, why = of_c()
    structures = {path.stem for path in NATIVE.glob("structures/*.c")}
    told = [
        f"{a}.c calls {why[a, b]} of structures/{b}.c"
        for a in graph
        if a not in structures
        for b in graph[a] & structures
    ]
    assert not told, "\n".join(told)


@pytest.mark.parametrize(
    "planted", ["from copyless.queues import Queue", "def f():\n    import copyless.pool", "X = 'copyless.managers'"]
)
def test_a_step_up_is_seen(planted, tmp_path):
    path = tmp_path / "planted.py"
    path.write_text(planted + "\n")
    targets = [target for target, _, _ in of_python("copyless._core.planted", path)]
    assert targets
    assert all((floor_of(target) or 0) > (floor_of("copyless._core") or 0) for target in targets)
