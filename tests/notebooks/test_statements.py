"""Each statement of the howto is shown: in a cell under its number, or on the card of its step."""

from __future__ import annotations

import re
from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.notebooks.chapters import FOLDER, NOTEBOOKS, cells
from tests.site_files import with_files

from xenlab.chapter.step import typed
from xenlab.runs import execute
from xenlab.runs.script import runbook

ROOT = FOLDER.parent
STATEMENTS: dict[str, dict[str, Any]] = yaml.safe_load((ROOT / "docs/statements.yaml").read_text())


def shown_in() -> dict[str, list[tuple[str, str]]]:
    """By statement, the steps under the headings that carry its number: title and cell."""
    found: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for path in NOTEBOOKS:
        for above, cell in pairwise(cells(path)):
            for number in above.tags if above.kind == "markdown" else ():
                found[number].append((cell.step() or "", cell.source))
    return found


STEPS = shown_in()
SITES = {told.get("site", "lab") for told in STATEMENTS.values()}


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """By site and title of a step, the commands that its card shows."""
    found: dict[str, dict[str, str]] = {}
    for site in SITES:
        plan = execute.prepare(FOLDER, (), with_files(tmp_path_factory.mktemp(site), site))
        steps = [step for path in plan.notebooks for step in runbook(plan, path).steps]
        found[site] = {step.title: typed(step.resources) for step in steps}
    return found


def test_each_statement_is_carried_out_by_a_step() -> None:
    assert set(STEPS) == set(STATEMENTS)
    assert [number for number, steps in STEPS.items() if "" in dict(steps)] == []


def test_a_statement_is_shown_or_it_is_said_why_not() -> None:
    kinds = {number: {"shows", "unseen"} & set(told) for number, told in STATEMENTS.items()}
    assert {number: kind for number, kind in kinds.items() if len(kind) != 1} == {}


@pytest.mark.parametrize("number", [n for n, told in STATEMENTS.items() if "shows" in told])
def test_a_statement_is_shown(number: str, scripts: dict[str, dict[str, str]]) -> None:
    told = STATEMENTS[number]
    commands = scripts[told.get("site", "lab")]
    seen = "\n".join(cell + "\n" + commands.get(title, "") for title, cell in STEPS[number])
    assert [words for words in told["shows"] if words not in seen] == [], seen


def test_what_chapter_11_has_a_person_type_is_what_its_cards_show(
    scripts: dict[str, dict[str, str]],
) -> None:
    (path,) = (path for path in NOTEBOOKS if path.stem == "11_action")
    above = {cell.step(): above.source for above, cell in pairwise(cells(path)) if cell.step()}
    told = {title: re.findall(r"(?s)```\n(.*?)\n```", text) for title, text in above.items()}
    assert sum(map(len, told.values())) == 7
    for title, blocks in told.items():
        shown = re.sub(r"  # .*", "", scripts["lab"].get(title or "", "")).splitlines()
        assert [line for block in blocks for line in block.splitlines() if line not in shown] == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_no_reader_meets_a_bare_number(path: Path) -> None:
    """They are tags; the page "From 2006 to today" says what each stands for."""
    prose = "\n".join(cell.source for cell in cells(path) if cell.kind == "markdown")
    assert re.findall(r"\bS\d\d\b", prose) == []


UNTRANSLATED = re.compile(r"„[^“]*“(?!\s\(“)")
"""A German quotation that its English does not follow: „Neustart“ (“restart”)."""

PAGES = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_german_quotation_has_its_english_beside_it(path: Path) -> None:
    """The howto's heading stands beside the chapter's title already."""
    title, *others = [cell.source for cell in cells(path) if cell.kind == "markdown"]
    prose = [re.sub(r"^\*Howto: .*", "", title, flags=re.MULTILINE), *others]
    assert UNTRANSLATED.findall("\n".join(prose)) == []
    quoting = [text for text in prose if re.search(r"^> ", text, re.MULTILINE)]
    assert [text for text in quoting if "\n> *In English:* " not in text] == []


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_a_page_translates_what_it_quotes(path: Path) -> None:
    """2006.md is made of the notebooks' titles and of statements that have both languages."""
    text = re.sub(r"^\*Howto: .*", "", path.read_text(), flags=re.MULTILINE)
    assert UNTRANSLATED.findall(text) == []
