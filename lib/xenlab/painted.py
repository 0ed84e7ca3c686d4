"""A step as a card that is drawn anew as it goes on, seldom enough for a browser to keep up."""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod

import pandas as pd

from xenlab.card import Card
from xenlab.recorder import Phase
from xenlab.resources.base import Asked, Difference

PAINT_SECONDS = 0.25
"""The least time between two drawings of a step that runs."""


class PaintedStep(ABC):
    """One step's card; any thread may tell it something (xenlab.view.StepView)."""

    def __init__(self, card: Card) -> None:
        self._card = card
        self._lock = threading.RLock()
        self._later: threading.Timer | None = None
        self._painted = time.monotonic()

    @abstractmethod
    def paint(self, card: Card) -> None:
        """Draw the card where people see it."""

    def difference(self, label: str, difference: Difference) -> None:
        """Show what the step would change."""
        with self._lock:
            self._card.differences.append((label, difference))
            self._changed()

    def progress(self, what: str, done: float | None) -> None:
        """Show what is being done, or what a person is asked for until the step is over."""
        with self._lock:
            if isinstance(what, Asked):
                self._card.asked = what
            else:
                self._card.doing, self._card.done = what, done
            self._changed()

    def output(self, stream: str, text: str, phase: Phase) -> None:
        """Show output; its beginning is let go when there is far more than a page holds."""
        with self._lock:
            if phase == "change":
                self._card.add_output(text)
            else:
                self._card.add_look(stream, text)
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
        self.paint(self._card)
