"""The page about errors: every class is there, and its messages are those of the code."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from xenlab import errors
from xenlab.cli.cli import DRIFT
from xenlab.runs.execute import FAILED, INTERRUPTED

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text()
KINDS = PAGE.partition("## The kinds of errors")[2]
CLASSES = [
    name
    for name, kind in vars(errors).items()
    if isinstance(kind, type) and issubclass(kind, Exception) and kind.__module__ == errors.__name__
]
EXAMPLES = re.findall(r"```text\n(.*?)```", PAGE, re.DOTALL)


def sentences() -> set[str]:
    """What the code holds as text, f-strings in their pieces: long enough to be a message's own."""
    return {
        piece
        for module in (ROOT / "lib").rglob("*.py")
        for node in ast.walk(ast.parse(module.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
        if len(piece := " ".join(node.value.split())) >= 11 and " " in piece
    }


SENTENCES = sentences()


def test_it_has_every_class_and_none_that_does_not_exist() -> None:
    assert re.findall(r"^### (.*)$", KINDS, re.MULTILINE) == CLASSES


@pytest.mark.parametrize("name", CLASSES)
def test_what_is_raised_has_an_example(name: str) -> None:
    section = KINDS.partition(f"### {name}\n")[2].partition("\n### ")[0]
    assert len(section.split()) > 15
    parents = {base.__name__ for kind in CLASSES for base in getattr(errors, kind).__bases__}
    assert ("```text" in section) == (name not in parents and name != "Overdue")


@pytest.mark.parametrize("example", EXAMPLES)
def test_an_example_is_what_the_code_says(example: str) -> None:
    message, _, hint = (" ".join(part.split()) for part in example.partition("\nTry: "))
    assert any(piece in message for piece in SENTENCES), message
    assert not hint or any(piece in hint for piece in SENTENCES | {"xenlab lab up"}), hint


@pytest.mark.parametrize("refusal", re.findall(r"^: `([^`]*…[^`]*)`", PAGE, re.MULTILINE))
def test_a_refusal_is_what_the_code_says(refusal: str) -> None:
    pieces = [piece.strip(" …") for piece in refusal.split("…") if len(piece.strip()) > 10]
    assert pieces
    text = " ".join(SENTENCES)
    assert all(piece.split("(")[0].strip() in text for piece in pieces)


def test_the_exit_statuses_are_those_of_the_code() -> None:
    page = (ROOT / "docs" / "how-it-works.md").read_text()
    rows = dict(re.findall(r"^\| `(\d+)` \| (.*) \|$", page, re.MULTILINE))
    assert set(rows) == {"0", "2", str(FAILED), str(DRIFT), str(INTERRUPTED)}
    assert "drift" in rows[str(DRIFT)] and "Ctrl-C" in rows[str(INTERRUPTED)]
