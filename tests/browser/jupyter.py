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
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Locator, Page, expect
from tests.ssh.conftest import free_port, wait_until

SECONDS = 120
"""How long a person would wait for anything to appear."""

KERNEL = re.compile("Python 3|python3")
"""What the kernel is called, by its display name or, before that is known, by its own."""

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
        """Open a notebook with a kernel that was started for it, and wait until that is ready.

        JupyterLab shows a notebook as idle before it has a kernel. A cell that is run then is
        dropped, or asks for a kernel of its own while the first one starts, which ends in a
        question to the person (“Select Kernel”). The kernel's name is shown once there is one.
        """
        self._start_kernel(name)
        self.page.goto(f"{self._address}/doc/tree/{name}?token={self._token}")
        self.page.wait_for_selector(".jp-Notebook .jp-Cell")
        expect(self.page.locator(".jp-KernelName")).to_have_text(KERNEL)
        self.wait_until_idle()

    def wait_until_idle(self) -> None:
        """Wait until no cell runs."""
        self.page.wait_for_selector('.jp-Notebook-ExecutionIndicator[data-status="idle"]')

    def cell(self, number: int) -> Locator:
        """A code cell, counted from 0."""
        return self.page.locator(".jp-Notebook .jp-CodeCell").nth(number)

    def run(self, number: int) -> Locator:
        """Run a code cell without waiting for its end; returns it."""
        cell = self.cell(number)
        folded = cell.locator(".jp-InputPlaceholder")
        if folded.is_visible():
            folded.click()
        prompt = cell.locator(".jp-InputPrompt")
        before = prompt.inner_text()
        cell.locator(".jp-InputArea-editor").click()
        expect(cell).to_have_class(re.compile(r"\bjp-mod-active\b"))
        self.page.keyboard.press("Control+Enter")
        expect(prompt).not_to_have_text(before)
        return cell

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

    def ask(self, what: str, **values: object) -> Any:
        """Ask the server's interface for programs; with values it is told something."""
        request = urllib.request.Request(
            f"{self._address}/{what}",
            json.dumps(values).encode() if values else None,
            {"Authorization": f"token {self._token}", "Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=SECONDS) as answer:
            return json.load(answer)

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
            self.ask("api/status")
        except OSError:
            return False
        return True

    def _start_kernel(self, notebook: str) -> None:
        """Start a notebook's kernel, as JupyterLab itself would, and name it to the server."""
        kernel = {"name": "python3"}
        self.ask("api/sessions", path=notebook, name=notebook, type="notebook", kernel=kernel)


def shows_its_end(text: Locator) -> bool:
    """Whether the last line of a text in a box that scrolls is in sight, and not the first ones."""
    return bool(
        text.evaluate("""text => {
            const box = text.parentElement.getBoundingClientRect()
            const all = text.getBoundingClientRect()
            return text.scrollHeight <= text.clientHeight + 1 && all.bottom <= box.bottom + 1
        }""")
    )
