"""The chapters as the tests read them."""

import ast
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat

FOLDER = Path(__file__).parents[2] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("[0-8]*.ipynb"))

STEPS = {"ensure", "each", "run", "facts", "check", "picture"}
"""The calls that are a step, with a title that begins with its number."""


@dataclass(frozen=True)
class Cell:
    """One cell; ``tree`` is its code as Python reads it, empty for a markdown cell."""

    kind: str
    id: str
    source: str
    tags: tuple[str, ...]
    tree: ast.Module

    def chapter_calls(self) -> list[ast.Call]:
        """What the chapter is asked to do; ``chapter.packages.installed(…)`` is no such thing."""
        return [
            node
            for node in ast.walk(self.tree)
            if isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and isinstance(node.func.value, ast.Name)
            and node.func.value.id == "chapter"
            and node.func.attr in STEPS | {"needs", "close"}
        ]

    def step(self) -> str | None:
        """The title of the step in this cell."""
        for call in self.chapter_calls():
            assert isinstance(call.func, ast.Attribute)
            if call.func.attr in STEPS:
                title = call.args[0]
                assert isinstance(title, ast.Constant), f"{self.id}: a step's title is plain text"
                return str(title.value)
        return None


def read(path: Path) -> Any:
    """The notebook as nbformat reads it, without putting anything right."""
    return nbformat.reads(path.read_text(), as_version=nbformat.NO_CONVERT)


def cells(path: Path) -> list[Cell]:
    """A chapter's cells; SyntaxError where one is not plain Python (magics, ``!``)."""
    return [
        Cell(
            kind=cell.cell_type,
            id=cell.id,
            source=cell.source,
            tags=tuple(cell.metadata.get("tags", ())),
            tree=ast.parse(cell.source if cell.cell_type == "code" else "", cell.id),
        )
        for cell in read(path).cells
    ]


def code_cells(path: Path) -> list[Cell]:
    """The code cells of a chapter."""
    return [cell for cell in cells(path) if cell.kind == "code"]


def parameters_cell(path: Path) -> Cell:
    """The one cell that is tagged so."""
    (cell,) = (cell for cell in cells(path) if "parameters" in cell.tags)
    return cell
