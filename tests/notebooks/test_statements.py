"""Each statement of the howto is shown: in a cell under its number, or by the commands of its card.

The commands are those of a plan that is made here, of every chapter, on a disk that is empty.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.notebooks.chapters import FOLDER, NOTEBOOKS, cells
from tests.ssh.conftest import Sshd

from xenlab.journal import Journal

ROOT = FOLDER.parent
STATEMENTS: dict[str, dict[str, Any]] = yaml.safe_load((ROOT / "docs/statements.yaml").read_text())
GIB = 1 << 30


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
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An empty block device, large enough for the lab."""
    image = tmp_path_factory.mktemp("disk") / "disk.img"
    with image.open("wb") as file:
        file.truncate(16 * GIB)
    words = ["losetup", "--find", "--show", str(image)]
    name = subprocess.run(words, check=True, capture_output=True, text=True).stdout.strip()
    yield name
    subprocess.run(["losetup", "--detach", name], check=True)


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory, disk: str) -> Iterator[dict[str, Any]]:
    """By site and title of a step, the commands that its card shows."""
    folder = tmp_path_factory.mktemp("plans")
    machine = Sshd(folder / "sshd")
    stage = folder / "stage.tar.zst"
    stage.write_bytes(b"never unpacked here")
    sums = folder / "sums"
    sums.write_text(f"{hashlib.sha256(stage.read_bytes()).hexdigest()}  {stage.name}\n")
    found: dict[str, dict[str, str]] = {}
    for site in SITES:
        numbers = [n for n, told in STATEMENTS.items() if told.get("site", "lab") == site]
        chapters = sorted({title[:2] for number in numbers for title, _ in STEPS[number]})
        values = yaml.safe_load((ROOT / "parameters" / f"{site}.yaml").read_text())
        values["ssh"] = {"host": machine.alias, "config": str(machine.config)}
        values |= {"disk": disk, "may_wipe": [f"{disk} {16 * GIB}"]}
        values |= {"stage": str(stage), "stage_checksums": str(sums)}
        file = folder / f"{site}.yaml"
        file.write_text(yaml.safe_dump(values))
        runs = folder / site
        words = [sys.executable, "-m", "xenlab", "plan", "-f", str(file), "--runs", str(runs)]
        done = subprocess.run(
            [*words, "--notebooks", str(FOLDER), *chapters],
            env=os.environ | {"PYTHONPATH": str(ROOT / "lib")},
            capture_output=True,
            text=True,
            timeout=590,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        (run,) = runs.iterdir()
        finals = [record for record in Journal(run).records() if record["phase"] == "final"]
        found[site] = {record["title"]: record.get("script", "") for record in finals}
    yield found
    machine.stop()


def test_each_statement_is_carried_out_by_a_step() -> None:
    assert set(STEPS) == set(STATEMENTS)
    assert [number for number, steps in STEPS.items() if "" in dict(steps)] == []


def test_a_statement_is_shown_or_it_is_said_why_not() -> None:
    kinds = {number: {"shows", "unseen"} & set(told) for number, told in STATEMENTS.items()}
    assert {number: kind for number, kind in kinds.items() if len(kind) != 1} == {}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("number", [n for n, told in STATEMENTS.items() if "shows" in told])
def test_a_statement_is_shown(number: str, scripts: dict[str, dict[str, str]]) -> None:
    told = STATEMENTS[number]
    commands = scripts[told.get("site", "lab")]
    seen = "\n".join(cell + "\n" + commands[title] for title, cell in STEPS[number])
    assert [words for words in told["shows"] if words not in seen] == [], seen


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
