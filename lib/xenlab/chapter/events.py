"""What happens to a chapter and its steps, as it is told to whoever shows it: a call an event."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from xenlab.durable import shown
from xenlab.errors import ConsentNeeded
from xenlab.resources.base import Difference

if TYPE_CHECKING:
    import pandas as pd

Phase = Literal["look", "change", "verify"]
"""What a command is for: to see how the machine is, to change it, to see that the change holds."""


@dataclass(frozen=True)
class Opened:
    """A chapter was opened: its site, its host, "apply" or "plan", the folder of its run."""

    name: str
    site: str
    host: str
    mode: str
    run: Path

    @property
    def place(self) -> str:
        """The run's folder as a page names it."""
        return shown(self.run)


@dataclass(frozen=True)
class Started:
    """A step begins: what follows is of this step, until it is `Finished`."""

    title: str


@dataclass(frozen=True)
class Script:
    """What brings the step's state about, as a person would type it; ``where`` is its host."""

    text: str
    where: str


@dataclass(frozen=True)
class Differs:
    """What the step would change; ``label`` tells parts of one step apart."""

    label: str
    difference: Difference


@dataclass(frozen=True)
class Progress:
    """What is being done now and the fraction (0 to 1) done, None where it is not counted.

    `Asked` words are what the step now waits for a person to do, `Waiting` words what it waits for
    that comes by itself.
    """

    what: str
    done: float | None


@dataclass(frozen=True)
class Output:
    """A command ("command") or what it printed ("stdout", "stderr"), masked, as it arrives."""

    stream: str
    text: str
    phase: Phase


@dataclass(frozen=True)
class Table:
    """A table of facts."""

    frame: pd.DataFrame


@dataclass(frozen=True)
class Picture:
    """A picture, as PNG."""

    png: bytes


@dataclass(frozen=True)
class Consent:
    """The step stopped for want of consent; ``give`` takes what a person agreed to lose.

    That is the disk's serial, or each of ``made``, once the person typed the names.
    """

    needed: ConsentNeeded
    give: Callable[[str], None]


@dataclass(frozen=True)
class Finished:
    """The step's final status, its duration in seconds and what a person should know."""

    status: str
    seconds: float
    message: str = ""


Event = (
    Opened | Started | Script | Differs | Progress | Output | Table | Picture | Consent | Finished
)

Sink = Callable[[Event], None]
"""Where a chapter appears. Output and progress come from several threads at once."""


def ignore(event: Event) -> None:
    """Show nothing, for scripts and tests."""
