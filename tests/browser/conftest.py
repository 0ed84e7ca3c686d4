"""A real JupyterLab, driven in a real browser."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, sync_playwright
from tests.browser.jupyter import Jupyter
from tests.ssh.conftest import make_sshd, site, sshd

__all__ = ["make_sshd", "site", "sshd"]


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Debian's Chromium, headless."""
    program = shutil.which("chromium")
    assert program, "chromium is missing: apt-get install chromium"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=program, args=["--no-sandbox", "--disable-dev-shm-usage"]
        )
        yield browser
        browser.close()


@pytest.fixture
def jupyter(browser: Browser, tmp_path: Path) -> Iterator[Callable[..., Jupyter]]:
    """Start JupyterLab on a folder of notebooks: ``jupyter(folder, NAME="value")``."""
    started: list[Jupyter] = []

    def start(folder: Path, **environment: str) -> Jupyter:
        started.append(Jupyter(browser, folder, tmp_path / f"jupyter{len(started)}", environment))
        return started[-1]

    yield start
    for one in started:
        one.stop()
