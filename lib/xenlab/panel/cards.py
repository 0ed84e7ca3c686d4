"""What the panel starts outside of a notebook's cells: a thread, steps as cards, looks."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ipywidgets as widgets

from xenlab.chapter.card import Card, PaintedStep
from xenlab.chapter.notebook import ConsentCard
from xenlab.chapter.step import StepView
from xenlab.command import Command
from xenlab.errors import ConsentNeeded
from xenlab.masking import Secret

# Looks at a machine that decide nothing: they are on no record, and can be stopped.


class Unrecorded:
    """Notes nothing of what a host runs, and stops it once ``stop`` is set (host.Watcher)."""

    mark = ""
    looks = True

    def __init__(self, stop: threading.Event, secrets: tuple[Secret, ...]) -> None:
        self.stop = stop
        self.secrets = secrets

    def started(self, host: str, command: Command, input: bytes) -> Unnoted:
        """A command is about to run."""
        return Unnoted()


class Unnoted:
    """One command of which nothing is noted (host.Call)."""

    def output(self, stream: str, piece: bytes) -> None:
        """Nothing."""

    def ended(self, status: int | None, seconds: float) -> None:
        """Nothing."""


# One piece of work at a time in a thread of its own, so that buttons are heard meanwhile.


class Worker:
    """Does what it is given in a thread; tells ``changed`` when it begins and when it ends.

    ``stop`` is set to stop what is being done, whatever it does.
    """

    def __init__(self, changed: Callable[[], None]) -> None:
        self.stop = threading.Event()
        self._changed = changed
        self._lock = threading.RLock()
        self._thread: threading.Thread | None = None

    @property
    def busy(self) -> bool:
        """Whether something is being done."""
        return self._thread is not None

    def start(self, work: Callable[[], None]) -> bool:
        """Do this now; False, and nothing is done, where something else still is."""
        with self._lock:
            if self._thread is not None:
                return False
            self.stop.clear()
            self._thread = threading.Thread(target=self._run, args=(work,), daemon=True)
            self._thread.start()
            self._changed()
        return True

    def wait(self, seconds: float | None = None) -> bool:
        """Wait for its end; whether it came in time."""
        thread = self._thread
        if thread is not None:
            thread.join(seconds)
        return not self.busy

    def _run(self, work: Callable[[], None]) -> None:
        with self._lock:
            # that it begins is told before that it ends
            pass
        try:
            work()
        finally:
            self._thread = None
            self._changed()


# A chapter's steps as cards in a box of widgets, for what runs outside of a notebook's cells.


class CardView:
    """Shows steps as cards, the newest on top (xenlab.chapter.step.View)."""

    def __init__(self, most: int = 200) -> None:
        self._most = most
        self._kept = ""
        self.widget = widgets.VBox()
        self.widget.add_class("xenlab-cards")

    def chapter(self, name: str, site: str, host: str, mode: str, run: Path) -> None:
        """Begin with an empty box."""
        self._kept = f"{run}/output"
        self.widget.children = ()

    def step_started(self, title: str) -> StepView:
        """A card on top of the others."""
        card = CardWidget(title, self._kept)
        self._add(card.widget)
        return card

    def consent(self, needed: ConsentNeeded, give: Callable[[str], None]) -> None:
        """A card to type the consent into."""
        self._add(ConsentCard(needed, give).widget)

    def _add(self, widget: Any) -> None:
        self.widget.children = (widget, *self.widget.children)[: self._most]


class CardWidget(PaintedStep):
    """One step's card as a widget."""

    def __init__(self, title: str, kept: str) -> None:
        card = Card(title, kept=kept)
        super().__init__(card)
        self.widget = widgets.HTML(card.html())

    def paint(self, card: Card) -> None:
        """Replace what the widget shows."""
        self.widget.value = card.html()
