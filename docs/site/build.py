"""Builds the documentation: `make docs`. Warnings are errors.

The pages are gathered in build/docs/pages (the README becomes the first page, the reference is written from the
sources), Zensical makes build/site of them, and then the result is checked: every public name has an entry with a text,
every page is in the navigation, and the project's address is the one in pyproject.toml.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import griffe
import yaml

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(HERE))

import reference  # noqa: E402
from reference import ERRORS, MIRRORED, PAGES, TEXTS, Page  # noqa: E402

LINK = re.compile(r"(!?\[(?:[^\[\]]|\[[^\]]*\])*\]\()([^)\s]+)(\))")
FENCE = re.compile(r"(^ *```.*?^ *```)", flags=re.S | re.M)
# The files of the repository that are pages, and the names of the pages.
MOVED = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
}


class Wrong(Exception):
    """The documentation cannot be built as it is. The text says what to change."""


def addresses() -> tuple[str, str]:
    """The addresses of the sources and of this documentation: [project.urls] in pyproject.toml, the one place.

    The other addresses there and the links of the README must begin with it.
    """
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    table = re.search(r"^\[project\.urls\]\n(.*?)(?=^\[|\Z)", text, flags=re.S | re.M)
    urls = dict(re.findall(r'^(\w+) = "([^"]+)"$', table[1], flags=re.M)) if table else {}
    if not urls.get("Source", "").endswith("/"):
        raise Wrong("pyproject.toml: [project.urls] needs Source, which ends with a slash")
    source = urls["Source"]
    for name, url in urls.items():
        if not url.startswith(source):
            raise Wrong(f"pyproject.toml: {name} = {url!r} does not begin with the address in Source, {source!r}")
    for name in ("Documentation", "Issues", "Changelog", "Security"):
        if name not in urls:
            raise Wrong(f"pyproject.toml: [project.urls] has no {name}")
    host = source.split("/")[2]
    for file in [ROOT / name for name in MOVED] + sorted((ROOT / "docs").rglob("*.md")):
        for url in re.findall(r"https?://[\w.-]+\.example[^\s)>\"'`]*", file.read_text(encoding="utf-8")):
            if url.split("/")[2].endswith(host) and not url.startswith(source):
                raise Wrong(
                    f"{file.relative_to(ROOT)}: {url} does not begin with the address in pyproject.toml, {source}"
                )
        for contact in re.findall(r"[\w.+-]+@([\w-]+\.[\w.-]*\w)", file.read_text(encoding="utf-8")):
            if contact != host:
                raise Wrong(f"{file.relative_to(ROOT)}: a contact at {contact}, and the project is at {host}")
    return source, urls["Documentation"]


# ---- the pages that exist as files


def page_of(file: str) -> str | None:
    """The page that a file of the repository becomes."""
    if file in MOVED:
        return MOVED[file]
    if file.startswith("docs/") and not file.startswith("docs/site/") and not file.endswith("/"):
        page = file.removeprefix("docs/")
        return "design/index.md" if page == "design/README.md" else page
    return None


def moved(text: str, file: str, source: str) -> str:
    """The text of a file with its links as they must be on its page."""
    here = page_of(file) or file

    def lead(match: re.Match[str]) -> str:
        before, link, after = match.groups()
        if link.startswith(source):
            target = link.removeprefix(source)
        elif re.match(r"[a-z]+:", link) or link.startswith("#"):
            return match[0]
        else:
            target = os.path.normpath(os.path.join(os.path.dirname(file), link))
        target, _, anchor = target.partition("#")
        page = page_of(target)
        if page is None:  # a file that is not documentation: it is shown with the sources
            if not (ROOT / target).exists():
                raise Wrong(f"{file}: {link} leads nowhere")
            return f"{before}{source}{target}{after}"
        to = os.path.relpath(page, os.path.dirname(here) or ".")
        return f"{before}{to}{'#' + anchor if anchor else ''}{after}"

    parts = FENCE.split(text)
    # The inner part of a picture that is a link is a link too: two passes.
    return "".join(p if p.lstrip().startswith("```") else picture_links(p, lead) for p in parts)


def picture_links(text: str, lead: Any) -> str:
    text = re.sub(r"(!\[[^\]]*\]\()([^)\s]+)(\))", lead, text)
    return re.sub(r"((?<!!)\[(?:!\[[^\]]*\]\([^)]*\)|[^\[\]])*\]\()([^)\s]+)(\))", lead, text)


def gather(pages: Path, source: str) -> None:
    files = [*MOVED, *(str(p.relative_to(ROOT)) for p in sorted((ROOT / "docs").rglob("*")) if p.is_file())]
    for file in files:
        page = page_of(file)
        if page is None:
            continue
        to = pages / page
        to.parent.mkdir(parents=True, exist_ok=True)
        if to.suffix == ".md":
            to.write_text(moved((ROOT / file).read_text(encoding="utf-8"), file, source), encoding="utf-8")
        else:
            shutil.copyfile(ROOT / file, to)
    shutil.copyfile(HERE / "style.css", pages / "style.css")


# ---- the reference


class Reference:
    """Writes the pages of the reference, and knows which entry each public name must have."""

    def __init__(self) -> None:
        extensions = griffe.load_extensions(str(HERE / "compiled.py"))
        loader = griffe.GriffeLoader(search_paths=[str(ROOT / "src")], extensions=extensions)
        self.package: Any = loader.load("copyless")
        loader.resolve_aliases(implicit=False, external=False)
        self.homes: dict[
            str, str
        ] = {}  # the entry (page#anchor) of each documented object, by the path of its definition
        self.lines: dict[str, str] = {}  # what is said of a value, by the path of its definition
        self.entries: dict[str, set[str]] = {}  # page: the anchors that it must have

    def target(self, dotted: str) -> Any:
        """The definition of a name, or None: it belongs to another package, or exists at run time only."""
        try:
            found = self.package[dotted.removeprefix("copyless.")]
            return found.final_target if found.is_alias else found
        except (KeyError, griffe.AliasResolutionError, griffe.CyclicAliasError):
            return None

    def outside(self, dotted: str) -> str | None:
        """The dotted name that another package gives it."""
        try:
            found = self.package[dotted.removeprefix("copyless.")]
        except KeyError:
            return None
        while found.is_alias:
            path = str(found.target_path)
            if not path.startswith("copyless."):
                return path
            found = self.package[path.removeprefix("copyless.")]
        return None

    def entry(self, page: str, dotted: str) -> str:
        self.entries.setdefault(page, set()).add(dotted)
        return f'<code id="{dotted}">{dotted.rpartition(".")[2]}</code>'

    def line(self, each: Any) -> str:
        """The first sentence of a docstring, for a table."""
        first = " ".join(each.docstring.value.strip().split("\n\n")[0].split())
        return first.replace("|", "\\|")

    def write(self, pages: Path) -> None:
        (pages / "api").mkdir()
        homes = [Page("errors", "Errors", (ERRORS,)), *PAGES]
        for page in homes:
            text = self.errors() if page.file == "errors" else "".join(self.module(page, each) for each in page.modules)
            title = f"# {page.title}\n\n" + (f"{page.intro}\n\n" if page.intro else "")
            (pages / "api" / f"{page.file}.md").write_text(title + text, encoding="utf-8")
        (pages / "api" / "standard.md").write_text(self.standard(), encoding="utf-8")
        (pages / "api" / "index.md").write_text(self.index(homes), encoding="utf-8")

    def module(self, page: Page, module: str) -> str:
        """A module's docstring, an entry for each name that it defines, and tables of the others."""
        file = f"api/{page.file}.md"
        full, values, elsewhere, others = [], [], [], []
        for name in page.names or reference.public_names(module):
            dotted = f"{module}.{name}"
            target = self.target(dotted)
            if dotted in TEXTS:
                values.append(f"| {self.entry(file, dotted)} | {TEXTS[dotted]} |\n")
                if target is not None:
                    self.homes.setdefault(target.path, f"{file}#{dotted}")
                    self.lines.setdefault(target.path, TEXTS[dotted])
            elif target is None:
                others.append(self.others(file, dotted, self.outside(dotted)))
            elif target.path in self.homes:
                text = self.lines.get(target.path) or self.line(target)
                elsewhere.append(f"| {self.entry(file, dotted)} | {text} [more](../{self.homes[target.path]}) |\n")
            elif target.is_attribute and self.alias_of(target) is None:
                text = self.constant(dotted, target)
                if text:
                    values.append(f"| {self.entry(file, dotted)} | {text} |\n")
            else:
                target = self.alias_of(target) or target
                if not target.docstring:
                    raise Wrong(f"{dotted} ({target.filepath}:{target.lineno}) is public and has no docstring")
                shown = (
                    target.path if self.target(dotted).is_attribute else dotted
                )  # a second name has no entry of its own
                check_parameters(target)
                full.append((name, shown))
                self.entries.setdefault(file, set()).add(dotted if shown == dotted else target.path)
                self.homes[target.path] = f"{file}#{shown}"
        head = ""
        if not page.names:
            docstring = self.package[module.removeprefix("copyless.")].docstring
            if not docstring:
                raise Wrong(f"{module} is public and has no docstring")
            kind = f"## {module}\n\n" if len(page.modules) > 1 else f"`{module}`\n\n"
            head = kind + docstring.value.strip() + "\n\n"
        # The communicators on MPI have the methods of those on one host; mpi4py's own documentation has the others.
        options = "    options:\n      inherited_members: false\n" if module == "copyless.comm.mpi" else ""
        text = head + "".join(f"::: {shown}\n{options}\n" for _, shown in full)
        for rows, title, columns in (
            (values, "Values", "| name | meaning |\n|---|---|\n"),
            (elsewhere, "Documented elsewhere", "| name | what |\n|---|---|\n"),
            (others, "Names of other packages", "| name | what |\n|---|---|\n"),
        ):
            if rows:
                text += f"## {title}\n\n{columns}{''.join(rows)}\n"
        return text

    def alias_of(self, target: Any) -> Any:
        """The class or function of a line such as ``AsyncResult = results.AsyncResult``."""
        if not target.is_attribute or not isinstance(target.value, griffe.ExprAttribute | griffe.ExprName):
            return None
        try:
            found = self.package[target.value.canonical_path.removeprefix("copyless.")]
            found = found.final_target if found.is_alias else found
        except (KeyError, griffe.AliasResolutionError):
            return None
        return found if found.is_class or found.is_function else None

    def constant(self, dotted: str, target: Any) -> str:
        if target.docstring:
            return self.line(target)
        raise Wrong(f"{dotted} is public and has no text: give it a line in TEXTS of docs/site/reference.py")

    def others(self, file: str, dotted: str, outside: str | None) -> str:
        if outside is None:
            raise Wrong(
                f"{dotted} is in __all__, and the sources do not say what it is: see TEXTS of docs/site/reference.py"
            )
        return f"| {self.entry(file, dotted)} | {of_python(outside)} |\n"

    def errors(self) -> str:
        """The table of all errors, then each with its attributes."""
        module = self.package["errors"]
        rows, full = [], []
        for name in reference.public_names(ERRORS):
            cls = module[name]
            if not cls.docstring:
                raise Wrong(f"{ERRORS}.{name} is public and has no docstring")
            bases = ", ".join(f"`{str(base).replace('_QueueShutDown', 'queue.ShutDown')}`" for base in cls.bases)
            rows.append(f"| [`{name}`](#{ERRORS}.{name}) | {bases} | {self.line(cls)} |\n")
            full.append(f"::: {ERRORS}.{name}\n\n")
            self.entries.setdefault("api/errors.md", set()).add(f"{ERRORS}.{name}")
            self.homes[f"{ERRORS}.{name}"] = f"api/errors.md#{ERRORS}.{name}"
        table = "| error | also is | when |\n|---|---|---|\n" + "".join(rows)
        return f"`{ERRORS}`\n\n{module.docstring.value.strip()}\n\n{table}\n" + "".join(full)

    def standard(self) -> str:
        """The modules of multiprocessing that copyless has under its own name."""
        text = (
            "# Other modules of multiprocessing\n\nThese modules are the standard library's own, so that a "
            "program needs only its import changed. Some names depend on the version of Python.\n\n"
        )
        for module, theirs in MIRRORED.items():
            docstring = self.package[module.removeprefix("copyless.")].docstring
            if not docstring:
                raise Wrong(f"{module} is public and has no docstring")
            text += f"## {module}\n\n{docstring.value.strip()}\n\n"
            rows = [
                f"| {self.entry('api/standard.md', f'{module}.{name}')} | {of_python(f'{theirs}.{name}')} |\n"
                for name in reference.public_names(module)
            ]
            text += ("| name | what |\n|---|---|\n" + "".join(rows) + "\n") if rows else ""
        return text

    def index(self, pages: list[Page]) -> str:
        """All names that ``import copyless`` gives, each with its line."""
        text = (
            "# Reference\n\nEach module by its subject, then every name of `copyless`.\n\n"
            "## Modules\n\n| page | module |\n|---|---|\n"
        )
        for page in sorted(pages[1:] + pages[:1], key=lambda page: page.file == "errors"):
            names = ", ".join(f"`{name}`" for name in page.names) or ", ".join(f"`{module}`" for module in page.modules)
            text += f"| [{page.title}]({page.file}.md) | {names} |\n"
        text += "| [Other modules of multiprocessing](standard.md) | the standard library's own |\n"
        text += "\n## Names of copyless\n\n| name | what |\n|---|---|\n"
        for name in reference.public_names("copyless"):
            dotted = f"copyless.{name}"
            target, entry = self.target(dotted), self.entry("api/index.md", dotted)
            if dotted in TEXTS:
                text += f"| {entry} | {TEXTS[dotted]} |\n"
            elif target is not None and target.path in self.homes:
                self.entries["api/index.md"].add(dotted)
                text += f"| [{entry}]({self.homes[target.path].removeprefix('api/')}) | {self.line(target)} |\n"
            elif target is None and self.outside(dotted):
                text += f"| {entry} | {of_python(self.outside(dotted) or '')} |\n"
            else:
                raise Wrong(f"{dotted} is public, and no page of docs/site/reference.py has it")
        return text


def check_parameters(target: Any) -> None:
    """The section Parameters of a docstring has parameters only: a paragraph after them would be taken for one.

    Those of a class are those of its __init__; what takes keywords or any arguments may name any.
    """
    things = [target, *(each for each in target.members.values() if not each.is_alias)] if target.is_class else [target]
    for each in things:
        if not each.docstring or not (each.is_class or each.is_function):
            continue
        known = {parameter.name.lstrip("*") for parameter in each.parameters}
        open_ended = any(parameter.kind and "variadic" in parameter.kind.value for parameter in each.parameters)
        for section in each.docstring.parse("numpy", warnings=False):
            if section.kind.value != "parameters":
                continue
            for parameter in section.value:
                name = parameter.name.lstrip("*")
                if not name.isidentifier() or (name not in known and not open_ended):
                    raise Wrong(f"{each.path}: its docstring has the parameter {name!r}, which it does not take")


def of_python(dotted: str) -> str:
    """One line about a name of the standard library or of another package."""
    module, _, name = dotted.rpartition(".")
    try:
        value = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError):
        return f"`{dotted}`."
    first = (inspect.getdoc(value) or "").strip().split("\n\n")[0] if callable(value) else ""
    first = " ".join(first.split())
    # What an exception inherits from Exception says nothing, and signatures are no sentences.
    told = (
        f" {first.rstrip('.')}."
        if first and "base class for all non-exit" not in first and "(" not in first.split(" ")[0]
        else ""
    )
    home = {"_queue": "queue"}.get(module, module)
    return f"`{home}.{name}`.{told}".replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*").replace("_.", "\\_.")


def command(pages: Path) -> None:
    """The help of the command and of each of its commands, as it prints it."""

    def told(*words: str) -> str:
        program = "import sys; from copyless.cli import main; sys.argv[0] = 'copyless'; sys.exit(main())"
        done = subprocess.run(
            [sys.executable, "-B", "-c", program, *words, "--help"],
            env={**os.environ, "PYTHONPATH": str(ROOT / "src"), "COLUMNS": "90", "NO_COLOR": "1"},
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        if done.returncode:
            raise Wrong(f"copyless {' '.join(words)} --help: {done.stderr}")
        return f"```text\n{done.stdout.strip()}\n```\n\n"

    general = told()
    names = re.findall(r"^  (\w+) ", general.partition("commands:")[2].partition("options:")[0], flags=re.M)
    if not names:
        raise Wrong("copyless --help lists no commands")
    text = f"# The command\n\n{general}" + "".join(f"## copyless {name}\n\n{told(name)}" for name in names)
    (pages / "command.md").write_text(text, encoding="utf-8")


# ---- the site


def configuration(project: Path, home: str) -> None:
    config = yaml.safe_load((HERE / "mkdocs.yml").read_text(encoding="utf-8"))
    config |= {"site_url": home, "docs_dir": "pages", "site_dir": "site"}
    python = config["plugins"][-1]["mkdocstrings"]["handlers"]["python"]
    python["paths"] = [str(ROOT / "src")]
    python["options"]["extensions"] = [str(HERE / "compiled.py")]
    design = (ROOT / "docs/design/README.md").read_text(encoding="utf-8")
    order = re.findall(r"^\| \[(\w+\.md)\]\(\1\) \|", design, flags=re.M)
    api = ["api/index.md"] + [{page.title: f"api/{page.file}.md"} for page in PAGES] + ["api/standard.md"]
    for section in config["nav"]:
        for name, pages in section.items():
            section[name] = {
                "REFERENCE": api,
                "DESIGN": ["design/index.md", *(f"design/{page}" for page in order)],
            }.get(pages if isinstance(pages, str) else "", pages)
    listed = set(re.findall(r"[\w/]+\.md", yaml.safe_dump(config["nav"])))
    there = {str(path.relative_to(project / "pages")) for path in (project / "pages").rglob("*.md")}
    if listed != there:
        raise Wrong(f"the navigation in docs/site/mkdocs.yml and the pages differ: {sorted(listed ^ there)}")
    (project / "mkdocs.yml").write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")


def build(project: Path) -> None:
    zensical = Path(sys.executable).with_name("zensical")
    done = subprocess.run(
        [zensical, "build", "--strict", "--clean", "-f", project / "mkdocs.yml"],
        cwd=project, capture_output=True, text=True, timeout=300, env={**os.environ, "NO_COLOR": "1"},
    )  # fmt: skip
    said = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout + done.stderr)
    wrong = [line for line in said.splitlines() if re.match(r"griffe:|mkdocstrings:|Warning|WARNING|ERROR|Error", line)]
    if done.returncode or wrong:
        raise Wrong(said)


SHIM = '<script src="https://unpkg.com/iframe-worker/shim"'


def without_strangers(site: Path) -> None:
    """The theme loads a script from another machine for pages that are opened as files. Ours stands in its place."""
    replaced = 0
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        bundle = re.search(r'<script src="([^"]*assets/javascripts/)bundle', text)
        if bundle is None:
            raise Wrong(f"{page.name} has no script of the theme: its layout has changed")
        replaced += text.count(SHIM)
        text = text.replace(SHIM, f'<script src="{bundle[1]}worker.js"')
        for stranger in re.findall(r'<(?:script|img|iframe)[^>]* src="(https?://[^"]*)"', text):
            raise Wrong(f"{page.name} loads {stranger} from another machine")
        page.write_text(text, encoding="utf-8")
    if not replaced:
        raise Wrong("the theme has another way to search pages that are opened as files: see docs/site/worker.js")
    shutil.copyfile(HERE / "worker.js", site / "assets/javascripts/worker.js")


class Anchors(HTMLParser):
    """The anchors of a page."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.found: set[str] = set()
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.update(value for name, value in attrs if name == "id" and value)


def check(site: Path, entries: dict[str, set[str]]) -> int:
    """Every public name has its entry on the page that was made."""
    total = 0
    for page, names in entries.items():
        missing = names - Anchors(site / page.replace(".md", ".html")).found
        if missing:
            raise Wrong(f"{page} has no entry for {', '.join(sorted(missing))}")
        total += len(names)
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description="Build the documentation, with warnings as errors.")
    parser.add_argument("--out", type=Path, default=ROOT / "build", help="the folder of docs/ and site/")
    out = parser.parse_args().out.resolve()
    project, site = out / "docs", out / "site"
    shutil.rmtree(project, ignore_errors=True)
    pages = project / "pages"
    pages.mkdir(parents=True)
    source, home = addresses()
    gather(pages, source)
    made = Reference()
    made.write(pages)
    command(pages)
    configuration(project, home)
    build(project)
    without_strangers(project / "site")
    total = check(project / "site", made.entries)
    shutil.rmtree(site, ignore_errors=True)
    (project / "site").rename(site)
    print(f"{len(list(site.rglob('*.html')))} pages, {total} entries of public names: {site / 'index.html'}")


if __name__ == "__main__":
    try:
        main()
    except Wrong as wrong:
        sys.exit(f"the documentation was not built: {wrong}")
