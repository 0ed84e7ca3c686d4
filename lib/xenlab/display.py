"""What a step looks like in a notebook: plain HTML that stays in the executed notebook."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

import pandas as pd
from IPython.core.getipython import get_ipython
from IPython.display import display as ipython_display

from xenlab.card import Card, environment
from xenlab.errors import XenlabError
from xenlab.resources.base import Difference
from xenlab.view import StepView

# IPython's functions have no types.
_display: Callable[..., Any] = ipython_display
_shell: Callable[[], Any] = get_ipython

PAINT_SECONDS = 0.25
"""The least time between two updates of a cell's output."""


class NotebookView:
    """Shows a chapter in the notebook's cells, one display per step (xenlab.view.View)."""

    def __init__(self) -> None:
        self._kept = ""

    def chapter(self, name: str, site: str, host: str, mode: str, run: Path) -> None:
        """A line that says where the chapter works and where its records go."""
        self._kept = f"{run}/output"
        facts = {"chapter": name, "site": site, "host": host, "mode": mode, "run": str(run)}
        page = environment().get_template("chapter.html.j2").render(facts=facts)
        text = " · ".join(f"{key} {value}" for key, value in facts.items())
        _display({"text/html": page, "text/plain": text}, raw=True)

    def step_started(self, title: str) -> StepView:
        """A step's display, at once visible."""
        return NotebookStep(title, self._kept)


class NotebookStep:
    """One step's display; any thread may tell it something (xenlab.view.StepView)."""

    def __init__(self, title: str, kept: str) -> None:
        note = f"since {datetime.now(UTC):%H:%M:%S} UTC"
        self._card = Card(title, note=note, kept=kept)
        self._lock = threading.RLock()
        self._later: threading.Timer | None = None
        self._painted = time.monotonic()
        # None outside IPython
        self._handle: Any = _display(self._bundle(), raw=True, display_id=True)

    def difference(self, label: str, difference: Difference) -> None:
        """Show what the step would change."""
        with self._lock:
            self._card.differences.append((label, difference))
            self._changed()

    def progress(self, what: str, done: float | None) -> None:
        """Show what is being done."""
        with self._lock:
            self._card.doing, self._card.done = what, done
            self._changed()

    def output(self, stream: str, text: str) -> None:
        """Show output; its beginning is let go when there is far more than a page holds."""
        with self._lock:
            self._card.add_output(text)
            self._changed()

    def table(self, frame: pd.DataFrame) -> None:
        """Show a table."""
        with self._lock:
            self._card.add_table(frame)
            self._changed()

    def picture(self, png: bytes) -> None:
        """Show a picture."""
        with self._lock:
            self._card.add_picture(png)
            self._changed()

    def finished(self, status: str, seconds: float, message: str = "") -> None:
        """Show the final state; nothing changes after it."""
        with self._lock:
            if self._later is not None:
                self._later.cancel()
            card = self._card
            card.status, card.seconds, card.message = status, seconds, message
            self._paint()

    def _changed(self) -> None:
        """Paint now, or once the least time since the last painting is over."""
        if self._card.status != "running" or self._later is not None:
            return
        wait = self._painted + PAINT_SECONDS - time.monotonic()
        if wait <= 0:
            self._paint()
            return
        self._later = threading.Timer(wait, self._paint_later)
        self._later.daemon = True
        self._later.start()

    def _paint_later(self) -> None:
        with self._lock:
            self._later = None
            if self._card.status == "running":
                self._paint()

    def _paint(self) -> None:
        self._painted = time.monotonic()
        if self._handle is not None:
            self._handle.update(self._bundle(), raw=True)

    def _bundle(self) -> dict[str, str]:
        card = self._card
        plain = f"{card.status}  {card.title}  {card.duration}".rstrip()
        if card.message:
            plain += f"\n{card.message}"
        return {"text/html": card.html(), "text/plain": plain}


def in_notebook() -> bool:
    """Whether this code runs in a notebook's kernel, not in a plain Python or a terminal."""
    return getattr(_shell(), "kernel", None) is not None


def show_errors_briefly() -> None:
    """Let the errors of xenlab stop a cell with their sentence instead of a traceback."""
    shell = _shell()
    if shell is not None:
        shell.set_custom_exc((XenlabError,), _sentence)


def _sentence(
    shell: Any,
    kind: type[XenlabError],
    error: XenlabError,
    trace: TracebackType | None,
    tb_offset: int | None = None,
) -> list[str]:
    lines = [f"{kind.__name__}: {error}"]
    shell._showtraceback(kind, error, lines)
    return lines
