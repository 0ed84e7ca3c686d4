"""The page about errors: every class is there, and its messages are those of the code."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from xenlab import errors
from xenlab.cli.terminal import DRIFT
from xenlab.platform.apt import Apt
from xenlab.platform.base import INSTALL_SECONDS
from xenlab.resources.base import Resource
from xenlab.resources.disk import Filesystem
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


def patterns() -> set[str]:
    """What the code holds as text, as expressions: in an f-string anything stands for a value."""
    found = set()
    for module in (ROOT / "lib").rglob("*.py"):
        for node in ast.walk(ast.parse(module.read_text())):
            parts = node.values if isinstance(node, ast.JoinedStr) else [node]
            texts = [part.value if isinstance(part, ast.Constant) else None for part in parts]
            words = " ".join(text for text in texts if isinstance(text, str))
            if len(words) >= 11 and " " in words:
                text = "".join(re.escape(t) if isinstance(t, str) else ".*" for t in texts)
                # str.format's names stand for values, too
                found.add(re.sub(r"\\{\w+\\}", ".*", text))
    return found


PATTERNS = [re.compile(rf"(\S+: )?(line \d+: )?{pattern}") for pattern in patterns()]


@pytest.mark.parametrize("example", EXAMPLES)
def test_an_example_is_what_the_code_says(example: str) -> None:
    message, _, hint = (" ".join(part.split()) for part in example.partition("\nTry: "))
    assert any(pattern.match(message) for pattern in PATTERNS), message
    assert not hint or any(pattern.match(hint) for pattern in PATTERNS), hint


@pytest.mark.parametrize(
    ("how", "resource"),
    [
        ("command failed with exit status 1", Filesystem("/dev/vda2", "boot")),
        (f"timed out after {INSTALL_SECONDS:.0f} s", Apt().installed("distcc")),
    ],
)
def test_a_command_in_an_example_is_what_a_person_would_type(how: str, resource: Resource) -> None:
    (command,) = resource.commands()
    assert f"dom0: {how}: {command.by_hand()}\n" in PAGE


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
