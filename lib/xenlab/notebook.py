"""What a chapter's first cell calls: the chapter, shown where it runs."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TextIO

import pandas as pd

from xenlab import display
from xenlab.card import duration
from xenlab.chapter import Chapter
from xenlab.errors import ConsentNeeded
from xenlab.opening import open_chapter as open_in_view
from xenlab.plain import clean
from xenlab.recorder import Phase
from xenlab.resources.base import Asked, Difference, Waiting
from xenlab.view import STOP, VIEW, StepView, View


def open_chapter(name: str, namespace: Mapping[str, Any]) -> Chapter:
    """Open a chapter for the parameters in a notebook's namespace (``globals()``).

    In a notebook its steps appear as HTML, anywhere else as lines of text. Raises BadInput before
    anything is touched, NoConnection if the host cannot be reached.
    """
    if VIEW in namespace:
        return open_in_view(name, namespace, namespace[VIEW], namespace.get(STOP))
    if not display.in_notebook():
        return open_in_view(name, namespace, TextView(sys.stdout))
    display.show_errors_briefly()
    view: View = display.NotebookView()
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
        self._lock = threading.Lock()

    def difference(self, label: str, difference: Difference) -> None:
        """A line of its summary, the diff below it."""
        self._add(f"{label}: {difference.summary}" if label else difference.summary)
        if difference.diff:
            self._add(difference.diff)
        if difference.rows:
            self.table(pd.DataFrame(list(difference.rows)))

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
