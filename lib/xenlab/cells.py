"""A chapter's notebook as the panel and a run read it: how it opens, and its steps."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

VERBS = frozenset({"ensure", "each", "run", "facts", "picture", "check"})
"""The methods of a chapter that are one step each."""


@dataclass(frozen=True)
class StepCell:
    """A cell with a step in it."""

    title: str
    code: str

    @property
    def number(self) -> str:
        """``04.2``, with which the title begins."""
        return self.title.partition(" ")[0]


def steps(notebook: Path) -> list[StepCell]:
    """The cells of a chapter's steps, in their order."""
    return [StepCell(title, code) for code, tree in _code(notebook) for title in _titles(tree)]


def opening(notebook: Path) -> str:
    """The code of the cell that opens the chapter, "" where there is none."""
    for code, tree in _code(notebook):
        names = (node.id for node in ast.walk(tree) if isinstance(node, ast.Name))
        if "open_chapter" in names:
            return code
    return ""


def _code(notebook: Path) -> Iterator[tuple[str, ast.Module]]:
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] != "code":
            continue
        code = "".join(cell["source"])
        try:
            yield code, ast.parse(code)
        except SyntaxError:
            continue


def _titles(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        match node:
            case ast.Call(
                func=ast.Attribute(value=ast.Name(id="book"), attr=verb),
                args=[ast.Constant(value=str(title)), *_],
            ) if verb in VERBS:
                yield title
