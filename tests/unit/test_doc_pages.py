"""The pages of ``make docs`` as a fresh clone makes them, where no run has made a lab."""

from __future__ import annotations

import html
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CHAPTERS = [path.stem for path in sorted((ROOT / "notebooks").glob("[0-8]*.ipynb"))]


@dataclass(frozen=True)
class Pages:
    """The pages' sources, made ones included, and what became of them."""

    sources: Path
    html: Path

    def text(self, name: str) -> str:
        """What a page says, without its markup."""
        page = (self.html / f"{name}.html").read_text()
        return html.unescape(re.sub(r"<[^>]+>", "", page))


@pytest.fixture(scope="session")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Pages:
    """The pages, built once by the commands that ``make docs`` runs."""
    clone = tmp_path_factory.mktemp("clone")
    docs = clone / "docs"
    made = shutil.ignore_patterns("_build", "chapters", "made", "2006.md", "__pycache__")
    shutil.copytree(ROOT / "docs", docs, ignore=made)
    for beside in ("lib", "notebooks", "parameters"):
        (clone / beside).symlink_to(ROOT / beside)
    sphinx = ["-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html", "docs", "docs/_build/html"]
    for words in (["docs/collect.py"], sphinx):
        done = subprocess.run(
            [sys.executable, *words],
            cwd=clone,
            env={"PYTHONPATH": str(ROOT / "lib"), "PATH": "/usr/bin:/bin"},
            capture_output=True,
            text=True,
            timeout=280,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
    return Pages(docs, docs / "_build" / "html")


def test_the_index_of_the_chapters_says_what_is_missing_and_what_makes_it(pages: Pages) -> None:
    said = pages.text("chapters/index")
    assert "No run here has made a whole lab yet" in said and "make lab" in said
    assert "From 2006 to today" in pages.text("2006")


@pytest.mark.parametrize("name", CHAPTERS)
def test_a_chapter_that_no_run_has_executed_says_so(pages: Pages, name: str) -> None:
    assert "Not executed here: no run on this machine" in pages.text(f"chapters/{name}")


def test_a_run_that_is_named_and_not_there_is_refused() -> None:
    words = [sys.executable, str(ROOT / "docs" / "collect.py"), "gone"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 1 and "there is no run gone" in done.stderr
