"""The page about the security model names tests, and each of them is there."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NAMED = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", (ROOT / "docs" / "security.md").read_text())


def test_it_names_tests() -> None:
    assert len(NAMED) > 10


@pytest.mark.parametrize(("path", "name"), NAMED)
def test_what_it_names_is_there(path: str, name: str) -> None:
    tree = ast.parse((ROOT / path).read_text())
    tests = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    assert not name or name in tests
