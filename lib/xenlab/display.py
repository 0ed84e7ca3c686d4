"""What a step looks like in a notebook: plain HTML that stays in the executed notebook."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from IPython.core.getipython import get_ipython
from IPython.display import display as ipython_display

from xenlab.card import Card, environment
from xenlab.errors import ConsentNeeded, XenlabError
from xenlab.painted import PaintedStep
from xenlab.panel.consent import ConsentCard
from xenlab.plain import clean
from xenlab.view import StepView

# IPython's functions have no types.
_display: Callable[..., Any] = ipython_display
_shell: Callable[[], Any] = get_ipython


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

    def consent(self, needed: ConsentNeeded, give: Callable[[str], None]) -> None:
        """A card to type the consent into, below the step; a run of its own asks nobody."""
        if "XENLAB_RUN" not in os.environ:
            _display(ConsentCard(needed, give).widget)


class NotebookStep(PaintedStep):
    """One step's display in a cell's output."""

    def __init__(self, title: str, kept: str) -> None:
        note = f"since {datetime.now(UTC):%H:%M:%S} UTC"
        card = Card(title, note=note, kept=kept)
        super().__init__(card)
        # None outside IPython
        self._handle: Any = _display(_bundle(card), raw=True, display_id=True)

    def paint(self, card: Card) -> None:
        """Replace what the cell shows."""
        if self._handle is not None:
            self._handle.update(_bundle(card), raw=True)


def _bundle(card: Card) -> dict[str, str]:
    plain = f"{card.status}  {card.title}  {card.duration}".rstrip()
    if card.message:
        plain += f"\n{card.message}"
    return {"text/html": card.html(), "text/plain": clean(plain)}


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
    lines = [clean(f"{kind.__name__}: {error}")]
    shell._showtraceback(kind, error, lines)
    return lines
