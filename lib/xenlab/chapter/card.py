"""A step as a piece of HTML: finished as the report shows it, or drawn anew as it goes on."""

from __future__ import annotations

import base64
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING

from xenlab.chapter import events
from xenlab.masking import clean
from xenlab.resources.base import Asked, Difference

if TYPE_CHECKING:
    import pandas as pd
    from jinja2 import Environment, Template

SHOWN_BYTES = 200 * 1024
"""How much of an output or a diff stands in a page; the files in the run folder hold all."""

SHOWN_ROWS = 500
"""How many rows of a table stand in a page."""

TAIL_LINES = 12
"""How many lines of output are seen while a step runs."""

# White text stands on these, so they read the same on a light and on a dark page.
COLOURS = {
    "ok": "#6b7280",
    "skipped": "#6b7280",
    "changed": "#2f7d4f",
    "would change": "#37699e",
    "would be refused": "#b3403a",
    "running": "#37699e",
    "failed": "#b3403a",
    "unreachable": "#b3403a",
    "unknown": "#946310",
    "aborted": "#946310",
}

RAN = {
    "ok": "not needed",
    "skipped": "was left out",
    "changed": "ran",
    "would change": "would run",
    "would be refused": "would run",
    "running": "runs",
}
"""What became of a step's script, by the step's status."""


@dataclass
class Card:
    """What is to be seen of one step; `html` draws it.

    ``folder`` has the whole output, where a page shows only a part of it.
    """

    title: str
    status: str = "running"
    seconds: float | None = None
    message: str = ""
    note: str = ""
    folder: str = ""
    doing: str = ""
    done: float | None = None
    asked: str = ""
    differences: list[tuple[str, Difference]] = field(default_factory=list)
    script: str = ""
    where: str = ""
    output: str = ""
    lines: int = 0
    cut: bool = False
    looked: str = ""
    looks: int = 0
    tables: list[tuple[list[str], list[list[str]], int]] = field(default_factory=list)
    pictures: list[str] = field(default_factory=list)

    @property
    def colour(self) -> str:
        """The colour of the status."""
        return COLOURS.get(self.status, COLOURS["unknown"])

    @property
    def bad(self) -> bool:
        """Whether the message is one that a person must act on, not a note."""
        return self.status not in ("ok", "skipped", "changed", "would change")

    @property
    def ran(self) -> str:
        """What became of the script, in words."""
        return RAN.get(self.status, "to run")

    @property
    def duration(self) -> str:
        """How long it took, as people say it."""
        return "" if self.seconds is None else duration(self.seconds)

    def take(self, event: events.Event) -> None:
        """Show what has happened in the step."""
        match event:
            case events.Script(text, where):
                self.script, self.where = text, where
            case events.Differs(label, difference):
                self.differences.append((label, difference))
            case events.Progress(Asked() as what):
                self.asked = what
            case events.Progress(what, done):
                self.doing, self.done = what, done
            case events.Output(_, text, "change"):
                self._add_output(text)
            case events.Output(stream, text):
                self.looks += stream == "command"
                self.looked = (self.looked + text)[-SHOWN_BYTES:]
            case events.Table(frame):
                self._add_table(frame)
            case events.Picture(png):
                self.pictures.append(base64.b64encode(png).decode())
            case events.Finished(status, seconds, message):
                self.status, self.seconds, self.message = status, seconds, message

    def _add_output(self, text: str) -> None:
        """Of very much output only the end is held."""
        self.lines += text.count("\n")
        self.output += text
        if len(self.output) > 2 * SHOWN_BYTES:
            self.output = self.output[-SHOWN_BYTES:]
            self.cut = True

    def _add_table(self, frame: pd.DataFrame) -> None:
        """A table's index is shown where it has a name."""
        if any(name is not None for name in frame.index.names):
            frame = frame.reset_index()
        part = frame.head(SHOWN_ROWS)
        rows = [
            ["" if missing else _cell(value) for value, missing in zip(*pair, strict=True)]
            for pair in zip(part.itertuples(False), part.isna().itertuples(False), strict=True)
        ]
        self.tables.append(([str(name) for name in frame.columns], rows, len(frame) - len(rows)))

    def html(self) -> str:
        """HTML with inline styles and no script, every value escaped."""
        text, cut = last_part(self.output)
        return _template().render(
            card=self,
            text=text,
            cut=cut or self.cut,
            tail=tail(self.output or self.looked),
            looked=clean(self.looked),
            diff_lines=diff_lines,
        )


def duration(seconds: float) -> str:
    """A duration as people say it: 0.4 s, 12 s, 3 min 05 s, 1 h 02 min."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def last_part(text: str) -> tuple[str, bool]:
    """The part of an output that stands in a page, at most `SHOWN_BYTES`; whether it was cut."""
    data = text.encode()
    if len(data) <= SHOWN_BYTES:
        return clean(text), False
    part = data[-SHOWN_BYTES:].decode("utf-8", "ignore")
    return clean(part.partition("\n")[2] or part), True


def tail(text: str) -> str:
    """The last lines of an output, for a step that runs."""
    return "\n".join(clean(text[-16384:]).rstrip("\n").split("\n")[-TAIL_LINES:])


def diff_lines(diff: str) -> Sequence[tuple[str, str]]:
    """The lines of a unified diff, each with its kind: head, hunk, plus, minus or same."""
    kinds = {"+": "plus", "-": "minus", "@": "hunk"}
    lines = clean(diff[:SHOWN_BYTES]).rstrip("\n").splitlines()
    return [
        ("head" if number < 2 and line[:3] in ("---", "+++") else kinds.get(line[:1], "same"), line)
        for number, line in enumerate(lines)
    ]


def _cell(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


@cache
def _template() -> Template:
    return environment().get_template("step.html.j2")


def _plain(value: object) -> object:
    # what is HTML already was made of plain texts
    return clean(value) if type(value) is str else value


def environment() -> Environment:
    """Jinja2 over ``xenlab/templates`` for pages: every value is escaped, and plain text."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    return Environment(
        loader=PackageLoader("xenlab", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_plain,
        trim_blocks=True,
        lstrip_blocks=True,
    )


# A step as a card that is drawn anew as it goes on, seldom enough for a browser to keep up.

PAINT_SECONDS = 0.25
"""The least time between two drawings of a step that runs."""

Paint = Callable[[], None]
"""Draws a card anew where people see it."""


class Painter:
    """A sink that draws the card of each step; ``place`` puts a new one where people see it."""

    def __init__(self, place: Callable[[Card], Paint]) -> None:
        self.card = Card("")
        self._place = place
        self._folder = ""
        self._paint: Paint = lambda: None
        self._painted = 0.0
        self._later: threading.Timer | None = None
        self._lock = threading.RLock()

    def on(self, event: events.Event) -> None:
        """Take an event of a chapter's or of the step under way (`events.Sink`)."""
        with self._lock:
            match event:
                case events.Opened():
                    self._folder = f"{event.place}/output"
                case events.Started(title):
                    self.card = Card(title, folder=self._folder)
                    self._paint = self._place(self.card)
                    self._painted = time.monotonic()
                case _:
                    self.card.take(event)
                    self._changed()

    def _changed(self) -> None:
        """Draw now, or once the least time since the last drawing is over."""
        wait = self._painted + PAINT_SECONDS - time.monotonic()
        if self.card.status != "running" or wait <= 0:
            self._draw()
        elif self._later is None:
            self._later = threading.Timer(wait, self._draw_later, [self.card])
            self._later.daemon = True
            self._later.start()

    def _draw_later(self, card: Card) -> None:
        with self._lock:
            if card is self.card and self._later is not None:
                self._draw()

    def _draw(self) -> None:
        if self._later is not None:
            self._later.cancel()
            self._later = None
        self._paint()
        self._painted = time.monotonic()
