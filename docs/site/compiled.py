"""Gives the reference the docstrings that the stubs lack: those of the .pyx beside them, and those of base classes.

The reference is read from the sources, without compiling them. A compiled module is described by a .pyi, and documented
in its .pyx. The signature in the first line of a docstring is for `help`; the reference has the one of the code.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import griffe

_BLOCK = re.compile(r"^( *)(?:cdef )?(class|def|async def) (?:\w+\.)*(\w+)")
_SIGNATURE = re.compile(r"\A\w+\(.*?\)(?: -> [^\n]*)?\n\n", flags=re.S)


def docstrings(source: str) -> dict[str, tuple[int, str]]:
    """{dotted name: (line, docstring)} of the classes and functions of a Cython file."""
    lines = source.split("\n")
    found: dict[str, tuple[int, str]] = {}
    around: list[tuple[int, str]] = []  # (indentation, name) of the classes that are open
    for number, line in enumerate(lines):
        block = _BLOCK.match(line)
        if block is None:
            continue
        indent, kind, name = len(block[1]), block[2], block[3]
        around = [each for each in around if each[0] < indent]
        dotted = ".".join([each for _, each in around] + [name])
        if kind == "class":
            around.append((indent, name))
        end = number
        while not lines[end].split("  #")[0].rstrip().endswith(":"):
            end += 1
        rest = "\n".join(lines[end + 1 :]).lstrip()
        if rest.startswith('"""'):
            text = ast.literal_eval(rest[: rest.index('"""', 3) + 3])
            found[dotted] = (end + 2, text)
    return found


def one_by_one(text: str) -> str:
    """Parameters that share a text, as ``a, b``, each with its own: griffe gives them all the type of the first."""
    before, header, section = text.partition("Parameters\n----------\n")
    if not header:
        return text
    lines = section.split("\n")
    made: list[str] = []
    while lines:
        line = lines.pop(0)
        if lines and re.fullmatch("-{3,}", lines[0]):  # the next section
            made.extend((line, *lines))
            break
        told = lines[: next((n for n, each in enumerate(lines) if each and not each.startswith(" ")), len(lines))]
        names, colon, kind = line.partition(" : ")
        if told and re.fullmatch(r"\*{0,2}\w+(, \*{0,2}\w+)+", names):
            for name in names.split(", "):
                made.extend((name + colon + kind, *told))
            del lines[: len(told)]
        else:
            made.append(line)
    return before + header + "\n".join(made)


class Compiled(griffe.Extension):
    """The extension that mkdocstrings and the build load."""

    def on_package(self, *, pkg: griffe.Module, loader: griffe.GriffeLoader, **_: Any) -> None:
        self.style = {"parser": loader.docstring_parser, "parser_options": loader.docstring_options}
        modules = [pkg]
        for module in modules:
            modules.extend(each for each in module.members.values() if not each.is_alias and each.is_module)  # type: ignore[misc]
        for module in modules:
            path = module.filepath
            if isinstance(path, Path) and path.suffix == ".pyi" and path.with_suffix(".pyx").exists():
                self._fill(module, docstrings(path.with_suffix(".pyx").read_text(encoding="utf-8")))
        for module in modules:
            for each in module.members.values():
                if not each.is_alias and each.is_class:
                    self._inherit(each)  # type: ignore[arg-type]
        for module in modules:
            for each in module.members.values():
                if not each.is_alias:
                    self._trim(each)

    def _trim(self, each: Any) -> None:
        if each.docstring:
            each.docstring.value = one_by_one(_SIGNATURE.sub("", each.docstring.value))
        if each.is_class:
            for member in each.members.values():
                if not member.is_alias:
                    self._trim(member)

    def _fill(self, module: griffe.Module, texts: dict[str, tuple[int, str]]) -> None:
        for dotted, (line, text) in texts.items():
            try:
                each = module[dotted]
            except KeyError:
                continue
            if not each.is_alias and not each.docstring:
                each.docstring = griffe.Docstring(text, lineno=line, parent=each, **self.style)

    def _inherit(self, cls: griffe.Class) -> None:
        """A class or method without a text says what the one that it derives from says."""
        try:
            bases = cls.mro()
        except Exception:  # a base class of another package
            return
        if not cls.docstring and bases and (text := bases[0].docstring):
            cls.docstring = griffe.Docstring(text.value, lineno=text.lineno, parent=cls, **self.style)
        for name, method in cls.members.items():
            if method.is_alias or method.docstring or name.startswith("_"):
                continue
            for base in bases:
                above = base.members.get(name)
                if above is not None and not above.is_alias and above.docstring:
                    method.docstring = griffe.Docstring(
                        above.docstring.value, lineno=above.docstring.lineno, parent=method
                    )
                    break
