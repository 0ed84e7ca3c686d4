"""The parameters cells, the schema and the lab's file say the same."""

import ast
from pathlib import Path

import papermill
import pytest
from click.testing import CliRunner
from papermill.cli import papermill as papermill_command
from tests.notebooks.chapters import FOLDER, NOTEBOOKS, parameters_cell

from xenlab.site.loader import declared, defaults
from xenlab.site.schema import Parameters, for_chapter, load, part

LAB = load(FOLDER.parent / "parameters" / "lab.yaml")

every_chapter = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


@every_chapter
def test_it_declares_parameters_of_the_schema(path: Path) -> None:
    names = declared(path)
    assert set(names) <= set(Parameters.model_fields)
    reached = {"ssh", "dom0_ssh", "guest_ssh"}
    assert {"site", "secrets", "platform"} | reached <= set(names)
    assert len(set(names)) == len(names)


@every_chapter
def test_its_defaults_are_the_lab_s(path: Path) -> None:
    values = defaults(path)
    assert for_chapter(part(values, path.name), values) == for_chapter(LAB, values)


@every_chapter
def test_its_types_are_those_of_the_values(path: Path) -> None:
    values = defaults(path)
    for statement in parameters_cell(path).tree.body:
        assert isinstance(statement, ast.AnnAssign)
        name = ast.unparse(statement.target)
        assert ast.unparse(statement.annotation) == type(values[name]).__name__, name


@every_chapter
def test_what_a_run_hands_over_is_what_the_chapter_accepts(path: Path) -> None:
    given = for_chapter(LAB, declared(path))
    assert for_chapter(part(given, path.name), given) == given


def shown_by_papermill(path: Path) -> list[str]:
    """The parameters that papermill can show: it gives up on a value that holds a “=”."""
    return [name for name, value in defaults(path).items() if "=" not in repr(value)]


@every_chapter
def test_papermill_knows_each_parameter_and_its_comment(path: Path) -> None:
    known = papermill.inspect_notebook(str(path))
    assert list(known) == shown_by_papermill(path), "a comment must not hold a “=”"
    silent = [name for name, told in known.items() if not told["help"]]
    assert silent == [], "the comment belongs to the line that the value ends in"


@every_chapter
def test_papermill_s_help_for_the_notebook_shows_them(path: Path) -> None:
    shown = CliRunner().invoke(papermill_command, ["--help-notebook", str(path)])
    assert shown.exit_code == 0, shown.output
    assert [n for n in shown_by_papermill(path) if f"\n  {n}: " not in shown.output] == []
