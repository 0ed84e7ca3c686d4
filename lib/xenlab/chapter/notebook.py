"""What a chapter's first cell calls: the chapter, shown where it runs."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

import ipywidgets as widgets
import pandas as pd
from IPython.core.getipython import get_ipython
from IPython.display import display as ipython_display

from xenlab.chapter.card import Card, PaintedStep, duration, environment
from xenlab.chapter.chapter import Chapter
from xenlab.chapter.chapter import open_chapter as open_in_view
from xenlab.chapter.recorder import Phase
from xenlab.chapter.step import RUNBOOK, STOP, VIEW, WOULD_CHANGE, StepView, View
from xenlab.errors import ConsentNeeded, XenlabError
from xenlab.masking import clean
from xenlab.resources.base import Asked, Difference, Waiting

# The consent card: a person types what a step may destroy, a disk's serial or a guest's name.

GOOD, BAD = "#2f7d4f", "#b3403a"


class ConsentCard:
    """Asks for the serial of one disk, or for the names of what xenlab made; nothing else will do.

    A name is consent for what is there now: it is passed on with the UUID of the file system. A
    running cell hears no clicks: so the step has stopped, and is run again after the consent.
    """

    def __init__(self, needed: ConsentNeeded, give: Callable[[str], None]) -> None:
        self._give = give
        self._gives = needed.made or (needed.serial,)
        names = " ".join(thing.partition(" ")[0] for thing in needed.made)
        self._right = names or needed.serial
        self._wiped = names or needed.device
        self._refused = f"“{names}”" if names else f"the serial of {needed.device}"
        question = _by_name(names, needed.device) if names else _by_serial(needed.device)
        self.typed = widgets.Text(
            placeholder="what it destroys, by name" if names else "serial of the disk",
            layout=widgets.Layout(width="240px"),
        )
        self.allow = widgets.Button(
            description=f"Wipe {self._wiped}", button_style="danger", icon="eraser"
        )
        self.answer = widgets.HTML()
        self.allow.on_click(self._asked)
        row = widgets.HBox([self.typed, self.allow])
        self.widget = widgets.VBox([widgets.HTML(question), row, self.answer])
        self.widget.add_class("xenlab-consent")

    def _asked(self, _: Any) -> None:
        typed = self.typed.value.strip()
        if typed != self._right:
            self._say(BAD, f"{typed or 'nothing'} is not {self._refused}")
            return
        for consent in self._gives:
            self._give(consent)
        self.typed.disabled = self.allow.disabled = True
        self._say(GOOD, f"{self._wiped} may be wiped: run the step again")

    def _say(self, colour: str, text: str) -> None:
        self.answer.value = f'<span style="color: {colour}">{escape(text)}</span>'


def _by_serial(device: str) -> str:
    return (
        f"<b>This step wipes {escape(device)}.</b> Type the disk's serial to allow it: "
        "<code>lsblk -do NAME,SERIAL</code> on the machine shows it. "
        "The step's message says what to type for a disk without one."
    )


def _by_name(names: str, device: str) -> str:
    return (
        f"<b>This step destroys what xenlab made on {escape(device)}.</b> All that is in it is "
        f"lost. To allow that, type: <code>{escape(names)}</code>"
    )


# What a step looks like in a notebook: plain HTML that stays in the executed notebook.

# IPython's functions have no types.
_display: Callable[..., Any] = ipython_display
_shell: Callable[[], Any] = get_ipython


class NotebookView:
    """Shows a chapter in the notebook's cells, one display per step (xenlab.chapter.step.View)."""

    def __init__(self) -> None:
        self._kept = ""

    def chapter(self, name: str, site: str, host: str, mode: str, run: Path) -> None:
        """A line that says where the chapter works and where its records go."""
        # a page names no path of the machine that it was made on
        place = f"{run.parent.name}/{run.name}"
        self._kept = f"{place}/output"
        facts = {"chapter": name, "site": site, "host": host, "mode": mode, "run": place}
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


# What a chapter's first cell calls: the chapter, shown where it runs.


def open_chapter(name: str, namespace: Mapping[str, Any]) -> Chapter:
    """Open a chapter for the parameters in a notebook's namespace (``globals()``).

    In a notebook its steps appear as HTML, anywhere else as lines of text. Raises BadInput before
    anything is touched, NoConnection if the host cannot be reached.
    """
    if RUNBOOK in namespace:
        runbook: Chapter = namespace[RUNBOOK]
        return runbook
    if VIEW in namespace:
        return open_in_view(name, namespace, namespace[VIEW], namespace.get(STOP))
    if not in_notebook():
        return open_in_view(name, namespace, TextView(sys.stdout))
    show_errors_briefly()
    view: View = NotebookView()
    return open_in_view(name, namespace, view)


class TextView:
    """Shows a chapter as lines of text, one a step and one for each difference."""

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def chapter(self, name: str, site: str, host: str, mode: str, run: Path) -> None:
        """A line that says where the chapter works and where its records go."""
        line = f"{name}: site {site}, host {host}, mode {mode}, run {run}"
        print(clean(line), file=self._out)

    def step_started(self, title: str) -> StepView:
        """A step, shown when it is finished."""
        return TextStep(self._out, title)

    def consent(self, needed: ConsentNeeded, give: Callable[[str], None]) -> None:
        """Nothing: the step's own message says how to agree."""


class TextStep:
    """One step as text, written when it is finished; its output is in the run folder."""

    def __init__(self, out: TextIO, title: str) -> None:
        self._out = out
        self._title = title
        self._lines: list[str] = []
        self._script = ""
        self._lock = threading.Lock()

    def difference(self, label: str, difference: Difference) -> None:
        """A line of its summary, the diff below it."""
        self._add(f"{label}: {difference.summary}" if label else difference.summary)
        if difference.diff:
            self._add(difference.diff)
        if difference.rows:
            self.table(pd.DataFrame(list(difference.rows)))

    def script(self, text: str, where: str) -> None:
        """The commands, as a person would type them."""
        self._script = text

    def progress(self, what: str, done: float | None) -> None:
        """What is waited for, at once; the rest is over when the step is written."""
        if isinstance(what, Asked | Waiting):
            you = "waiting for you: " if isinstance(what, Asked) else ""
            print(clean(f"{you}{what}"), file=self._out, flush=True)

    def output(self, stream: str, text: str, phase: Phase) -> None:
        """Nothing: the run folder has the whole output."""

    def table(self, frame: pd.DataFrame) -> None:
        """The table in columns, a word where it has no rows."""
        self._add("nothing to show" if frame.empty else frame.to_string(index=False))

    def picture(self, png: bytes) -> None:
        """A word that there is one."""
        self._add(f"(a picture of {len(png)} bytes)")

    def finished(self, status: str, seconds: float, message: str = "") -> None:
        """Write the step."""
        if self._script and status == WOULD_CHANGE:
            self._add(f"would run:\n{self._script}")
        if message:
            self._add(message)
        print(
            f"{status:12} {self._title}  {duration(seconds)}",
            *self._lines,
            sep="\n",
            file=self._out,
        )

    def _add(self, text: str) -> None:
        with self._lock:
            self._lines.extend(f"    {line}" for line in clean(text).rstrip("\n").splitlines())
