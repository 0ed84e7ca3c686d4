"""What readers get of a whole run: its report, the pages made from it, chapters that run."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Request
from tests.end_to_end.test_finish import whole
from tests.end_to_end.test_jupyter import notebooks_of
from tests.notebooks.chapters import NOTEBOOKS
from tests.whole_lab import ROOT, Site

from xenlab.runs import folder as runs

MIB = 1 << 20


@pytest.fixture
def run(site: Site) -> Path:
    """The run that made the lab."""
    return next(folder for folder in runs.every(site.runs) if whole(folder))


@pytest.fixture
def foreign(browser: Browser) -> Callable[[Path, int], list[str]]:
    """What a page asks others for when it is opened in a window of a width."""

    def asked(place: Path, width: int) -> list[str]:
        page = browser.new_page(viewport={"width": width, "height": 900})
        found: list[str] = []

        def note(request: Request) -> None:
            if not request.url.startswith(("file:", "data:")):
                found.append(request.url)

        page.on("request", note)
        page.goto(place.as_uri())
        assert page.evaluate("document.body.scrollWidth <= window.innerWidth"), place
        page.close()
        return found

    return asked


def test_the_report_is_small_and_opens_at_once(
    run: Path, browser: Browser, foreign: Callable[[Path, int], list[str]]
) -> None:
    place = run / "report.html"
    assert place.stat().st_size < 10 * MIB
    page = browser.new_page()
    start = time.monotonic()
    page.goto(place.as_uri())
    assert time.monotonic() - start < 2
    assert "15_shared_usr" in page.inner_text("body")
    page.close()
    assert foreign(place, 1300) == []


def test_the_pages_are_made_from_the_run_without_a_warning(
    run: Path, tmp_path: Path, foreign: Callable[[Path, int], list[str]]
) -> None:
    docs = tmp_path / "docs"
    html = docs / "_build" / "html"
    shutil.copytree(ROOT / "docs", docs, ignore=shutil.ignore_patterns("_build", "chapters"))
    for beside in ("notebooks", "parameters", "tests"):
        (tmp_path / beside).symlink_to(ROOT / beside)
    sphinx = ["-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html"]
    for words in ([str(docs / "collect.py"), str(run)], [*sphinx, str(docs), str(html)]):
        command = [sys.executable, *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=1800, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    for name in ("index", "chapters/04_grub", "chapters/13_network", "figures"):
        for width in (1300, 420):
            assert foreign(html / f"{name}.html", width) == []


def test_the_committed_chapters_run_as_they_stand(site: Site, tmp_path: Path) -> None:
    folder = notebooks_of(site, tmp_path, *(path.stem for path in NOTEBOOKS))
    done = subprocess.run(
        [
            sys.executable, "-m", "pytest", "-q", "--nbval-lax", "--nbval-cell-timeout", "1800",
            "-p", "no:cacheprovider", "-c", "/dev/null", "--rootdir", str(folder), str(folder),
        ],
        cwd=folder,
        env=site.environment(),
        capture_output=True,
        text=True,
        timeout=5400,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
