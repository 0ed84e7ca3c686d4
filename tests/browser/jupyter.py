"""JupyterLab with settings of its own, and what a person does in it."""

from __future__ import annotations

import json
import os
import re
import secrets
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from playwright.sync_api import Browser, Locator, Page, expect
from playwright.sync_api import TimeoutError as PlaywrightTimeout
from tests.ssh.conftest import free_port, wait_until

SECONDS = 120
"""How long a person would wait for anything to appear."""

SETTINGS = {
    # cells out of sight are left out of the page otherwise
    "@jupyterlab/notebook-extension/tracker.jupyterlab-settings": {"windowingMode": "none"},
    "@jupyterlab/apputils-extension/notification.jupyterlab-settings": {
        "fetchNews": "false",
        "checkForUpdates": False,
    },
}


class Jupyter:
    """A server on a folder of notebooks, and a page of a browser that shows one of them."""

    def __init__(
        self, browser: Browser, folder: Path, home: Path, environment: Mapping[str, str]
    ) -> None:
        self.folder = folder
        self._token = secrets.token_hex(16)
        self._log = home / "jupyter.log"
        for name, values in SETTINGS.items():
            place = home / "settings" / name
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(json.dumps(values))
        self._port = free_port()
        self._environment = {
            **os.environ,
            "JUPYTERLAB_SETTINGS_DIR": str(home / "settings"),
            "JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces"),
            "JUPYTER_CONFIG_DIR": str(home / "config"),
            **environment,
        }
        self._start()
        self.page: Page = browser.new_page(viewport={"width": 1360, "height": 900})
        self.page.set_default_timeout(SECONDS * 1000)
        expect.set_options(timeout=SECONDS * 1000)

    def open(self, name: str) -> None:
        """Open a notebook and wait until its kernel is ready."""
        self.page.goto(f"{self._address}/doc/tree/{name}?token={self._token}")
        self.page.wait_for_selector(".jp-Notebook .jp-Cell")
        self.wait_until_idle()

    def wait_until_idle(self) -> None:
        """Wait until no cell runs."""
        self.page.wait_for_selector('.jp-Notebook-ExecutionIndicator[data-status="idle"]')

    def cell(self, number: int) -> Locator:
        """A code cell, counted from 0."""
        return self.page.locator(".jp-Notebook .jp-CodeCell").nth(number)

    def run(self, number: int) -> Locator:
        """Run a code cell without waiting for its end; returns it.

        JupyterLab drops what it is asked before its kernel listens, so that one asks again.
        """
        cell = self.cell(number)
        prompt = cell.locator(".jp-InputPrompt")
        before = prompt.inner_text()

        dialog = self.page.locator(".jp-Dialog")

        def begun() -> bool:
            if dialog.count():
                self._choose_kernel(dialog)
                return False
            try:
                cell.locator(".jp-InputArea-editor").click(timeout=5000)
            except PlaywrightTimeout:
                # the question has come up just now
                return False
            self.page.keyboard.press("Control+Enter")
            with suppress(AssertionError):
                expect(prompt).not_to_have_text(before, timeout=5000)
                return True
            return False

        wait_until(begun, SECONDS)
        return cell

    def _choose_kernel(self, dialog: Locator) -> None:
        """Say that the notebook shall have its kernel; any other question fails the test.

        JupyterLab asks where a busy machine's server has not named its kernels in time.
        """
        text = dialog.first.inner_text()
        assert "Select Kernel" in text, f"JupyterLab asks: {text}"
        # the button shows “Select”, and is called otherwise
        dialog.first.get_by_role("button", name="Select Kernel", exact=True).click()
        expect(dialog).to_have_count(0)

    def run_to_end(self, number: int) -> Locator:
        """Run a code cell and wait until it has ended."""
        cell = self.run(number)
        prompt = cell.locator(".jp-InputPrompt")
        expect(prompt).to_have_text(re.compile(r"\[\d+\]:"))
        return cell

    def interrupt(self) -> None:
        """JupyterLab's own stop button."""
        self.page.locator('[data-command="notebook:interrupt-kernel"]').first.click()

    def save(self) -> None:
        """Save the notebook, and wait until it stands on the disk."""
        before = {path: path.stat().st_mtime_ns for path in self.folder.glob("*.ipynb")}
        self.page.keyboard.press("Control+s")
        wait_until(
            lambda: any(path.stat().st_mtime_ns != time for path, time in before.items()), SECONDS
        )

    def shot(self, name: str) -> None:
        """Keep a picture of the page in ``$XENLAB_SCREENSHOTS``, where that is set."""
        if folder := os.environ.get("XENLAB_SCREENSHOTS"):
            self.page.screenshot(path=Path(folder) / f"{name}.png")

    def stop(self) -> None:
        """End the server and its kernels."""
        self.page.close()
        os.killpg(self._process.pid, signal.SIGTERM)
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    @property
    def _address(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def _start(self) -> None:
        command = [
            sys.executable, "-m", "jupyter", "lab", "--no-browser", "--allow-root",
            f"--ServerApp.root_dir={self.folder}", f"--ServerApp.port={self._port}",
            "--ServerApp.port_retries=0", f"--IdentityProvider.token={self._token}",
        ]  # fmt: skip
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                cwd=self.folder,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        wait_until(self._answers, SECONDS)

    def _answers(self) -> bool:
        assert self._process.poll() is None, self._log.read_text()
        try:
            address = f"{self._address}/api/status?token={self._token}"
            with urllib.request.urlopen(address, timeout=10) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False
