"""A chapter declares every parameter that the code below its cells reads from the site.

What it did not declare would be an error in the middle of a run. The code is read, not run: a value
that only one branch asks for counts as well.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest
from tests.notebooks.chapters import NOTEBOOKS, cells

import xenlab
from xenlab.site.loader import declared
from xenlab.site.schema import Parameters

OWN = {"site", "ssh", "secrets", "disk"}
"""What opening any chapter asks for."""

ANSWERS = (("xenlab.chapter.chapter", "Chapter"), ("xenlab.platform.choice", "PlatformAnswers"))
"""The classes that ``chapter`` is of."""


@cache
def tree(module: str) -> ast.Module:
    spec = find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    return ast.parse(Path(spec.origin).read_text(encoding="utf-8"))


@cache
def defined(module: str) -> dict[str, ast.AST]:
    """The functions and classes of a module."""
    kinds = (ast.FunctionDef, ast.ClassDef)
    return {node.name: node for node in tree(module).body if isinstance(node, kinds)}


def imported(body: ast.Module) -> dict[str, tuple[str, str]]:
    """The names that come from xenlab: module and name there, "" for a module itself."""
    found: dict[str, tuple[str, str]] = {}
    for node in ast.walk(body):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("xenlab"):
            for alias in node.names:
                home = node.module or ""
                if home == "xenlab" and alias.name in xenlab._HOME:
                    home = f"xenlab.{xenlab._HOME[alias.name]}"
                inner = f"{home}.{alias.name}"
                module = alias.name not in defined(home) and is_module(inner)
                found[alias.asname or alias.name] = (inner, "") if module else (home, alias.name)
    return found


def is_module(module: str) -> bool:
    """Whether there is a module of this name."""
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def local_names(function: ast.FunctionDef) -> Iterator[str]:
    """What a function calls its own values and inner functions."""
    for node in ast.walk(function):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.FunctionDef) and node is not function:
            yield node.name


class Reads(ast.NodeVisitor):
    """What a piece of code reads from ``site``, and what of xenlab it may call."""

    def __init__(self, body: ast.Module, own: str = "") -> None:
        self.parameters: set[str] = set()
        self.calls: set[tuple[str, str]] = set()
        self._hidden: set[str] = set()
        self._names = imported(body) | {name: (own, name) for name in (defined(own) if own else ())}

    def visit_arg(self, node: ast.arg) -> None:
        """An annotation is nothing that is called."""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        """Without what it says it returns; its own names hide those of the module."""
        before = self._hidden
        self._hidden = before | set(local_names(node))
        for part in (node.args, *node.decorator_list, *node.body):
            self.visit(part)
        self._hidden = before

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self.visit(node.value)

    def visit_Name(self, node: ast.Name) -> None:
        if node.id in self._names and node.id not in self._hidden:
            self.calls.add(self._names[node.id])

    def visit_Attribute(self, node: ast.Attribute) -> None:
        owner = node.value
        name = owner.attr if isinstance(owner, ast.Attribute) else ""
        name = owner.id if isinstance(owner, ast.Name) else name
        if name == "site" and node.attr in Parameters.model_fields:
            self.parameters.add(node.attr)
        elif name == "chapter":
            self.calls.add(("chapter", node.attr))
        elif self._names.get(name, ("", "x"))[1] == "":
            self.calls.add((self._names[name][0], node.attr))
        self.generic_visit(node)


@cache
def reads(module: str, name: str) -> Reads:
    """What a function or a class of xenlab reads and calls."""
    if module == "chapter":
        found = Reads(ast.Module([], []))
        for home, kind in ANSWERS:
            found = Reads(tree(home), home)
            for node in ast.iter_child_nodes(defined(home)[kind]):
                if isinstance(node, ast.FunctionDef) and node.name == name:
                    found.visit(node)
                    return found
        return found
    found = Reads(tree(module), module)
    # a constant that holds functions is none of ours
    if name in defined(module):
        found.visit(defined(module)[name])
    return found


def read_below(code: ast.Module) -> set[str]:
    """The parameters that this code, and all of xenlab that it calls, reads."""
    first = Reads(code)
    first.visit(code)
    parameters, todo, seen = set(first.parameters), list(first.calls), set[tuple[str, str]]()
    while todo:
        call = todo.pop()
        if call in seen or call[1] in ("", "open_chapter"):
            continue
        seen.add(call)
        found = reads(*call)
        parameters |= found.parameters
        todo += found.calls
    return parameters


def code_of(path: Path) -> ast.Module:
    """The cells of a chapter behind its parameters."""
    trees = [cell.tree for cell in cells(path) if "parameters" not in cell.tags]
    return ast.Module([node for each in trees for node in each.body], [])


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_chapter_declares_all_that_it_reads(path: Path) -> None:
    names = set(declared(path))
    assert names >= OWN
    assert read_below(code_of(path)) - names == set()


def test_the_reading_finds_what_lies_below_a_cell() -> None:
    """Through a name, a module, a class, and what the chapter itself answers."""
    for cell, wanted in (
        ("chapter.check('x', Fits(chapter.site))", {"dom0_mem_mib", "domains", "boot_mib"}),
        ("kernel.build_tools(chapter)", {"build_on", "kernel_source", "portage", "share"}),
        ("chapter.power", {"power", "lab"}),
        ("image_taken(chapter)", {"imaging", "software", "platform", "package_proxy"}),
    ):
        names = (
            "from xenlab import Fits\nfrom xenlab.chapters import kernel\n"
            "from xenlab.chapters.guests import image_taken\n"
        )
        assert read_below(ast.parse(names + cell)) >= wanted, cell
