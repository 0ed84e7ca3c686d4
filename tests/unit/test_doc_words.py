"""The glossary: in order, without a word that nobody uses, and with every status of a step."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from xenlab.chapter import step

ROOT = Path(__file__).parents[2]
GLOSSARY = ROOT / "docs" / "words.md"
WORDS = re.findall(r"^([^\n:#].*)\n: ", GLOSSARY.read_text(), re.MULTILINE)
READ = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "notebooks").glob("*.ipynb")]
TEXT = "\n".join(path.read_text() for path in READ if path != GLOSSARY)
STATUSES = {
    status
    for name, status in vars(step).items()
    if name in ("ABORTED", "CHANGED", "FAILED", "OK", "REFUSED", "UNKNOWN", "UNREACHABLE")
}


def test_each_word_stands_once_and_in_its_place() -> None:
    assert len(WORDS) > 60
    assert sorted(set(WORDS), key=str.lower) == WORDS


@pytest.mark.parametrize("word", [one for word in WORDS for one in re.split(", | … ", word)])
def test_a_word_is_used(word: str) -> None:
    assert re.search(rf"\b{re.escape(word)}", TEXT, re.IGNORECASE)


def test_every_status_of_a_step_is_explained() -> None:
    assert len(STATUSES) == 7
    page = " ".join(GLOSSARY.read_text().split())
    assert {status for status in STATUSES if f"`{status}`" not in page} == set()
