"""What a chapter shows its work to: a notebook, a terminal, or nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import pandas as pd

from xenlab.errors import ConsentNeeded
from xenlab.recorder import Phase
from xenlab.resources.base import Difference

VIEW = "_xenlab_view"
"""The variable by which a chapter's cells are told where to show their steps (a `View`)."""

STOP = "_xenlab_stop"
"""The variable that holds what stops them once it is set (a `threading.Event`)."""


class StepView(Protocol):
    """Where one step appears."""

    def difference(self, label: str, difference: Difference) -> None:
        """What the step would change; ``label`` tells parts of one step apart."""

    def progress(self, what: str, done: float | None) -> None:
        """What is being done now and the fraction (0 to 1) done, None where it is not counted.

        `Asked` words are what the step now waits for a person to do, `Waiting` words what it waits
        for that comes by itself.
        """

    def output(self, stream: str, text: str, phase: Phase) -> None:
        """A command ("command") or what it printed ("stdout", "stderr"), masked, as it arrives.

        ``phase`` says what the command is for: to look, to change, or to verify.
        """

    def table(self, frame: pd.DataFrame) -> None:
        """A table of facts."""

    def picture(self, png: bytes) -> None:
        """A picture."""

    def finished(self, status: str, seconds: float, message: str = "") -> None:
        """The step's final status, its duration in seconds and what a person should know."""


class View(Protocol):
    """Where a chapter appears."""

    def chapter(self, name: str, site: str, host: str, mode: str, run: Path) -> None:
        """The chapter that was opened, and where."""

    def step_started(self, title: str) -> StepView:
        """A step begins."""

    def consent(self, needed: ConsentNeeded, give: Callable[[str], None]) -> None:
        """A step stopped for want of consent; ``give`` takes what a person agreed to lose.

        That is the disk's serial, or each of ``made``, once the person typed the names.
        """


class Silent:
    """A view that shows nothing, for scripts and tests."""

    def chapter(self, name: str, site: str, host: str, mode: str, run: Path) -> None:
        """Nothing."""

    def step_started(self, title: str) -> StepView:
        """A step that shows nothing."""
        return _SilentStep()

    def consent(self, needed: ConsentNeeded, give: Callable[[str], None]) -> None:
        """Nobody is there to be asked."""


class _SilentStep:
    def difference(self, label: str, difference: Difference) -> None:
        pass

    def progress(self, what: str, done: float | None) -> None:
        pass

    def output(self, stream: str, text: str, phase: Phase) -> None:
        pass

    def table(self, frame: pd.DataFrame) -> None:
        pass

    def picture(self, png: bytes) -> None:
        pass

    def finished(self, status: str, seconds: float, message: str = "") -> None:
        pass
