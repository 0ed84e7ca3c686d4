"""A fleet's run as a person sees it: a line a host, its chapters as cells, from what is told."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.table import Column, Table
from rich.text import Text

from xenlab.chapter.card import duration
from xenlab.fleet.record import RUNNING, HostState
from xenlab.fleet.work import HostOutcome, Told
from xenlab.runs.expected import clock
from xenlab.runs.folder import DONE, NOT_RUN, ChapterState
from xenlab.runs.progress import STYLES

CELLS = {
    NOT_RUN: "·",
    RUNNING: "▸",
    DONE: "✓",
    "failed": "✗",
    "refused": "✗",
    "unreachable": "✗",
}
"""What stands for a chapter's status; any other one is a question."""

COLOURS = STYLES | {RUNNING: "cyan", "refused": "bold red"}

CHANGED = "+"
"""Stands for a chapter that is done and has changed something, or would."""

REST_LINES = 6
"""The lines of a terminal that are not hosts."""


@dataclass
class Line:
    """A host as it is shown now; each of ``cells`` is a chapter's sign and its status."""

    status: str = NOT_RUN
    cells: dict[str, tuple[str, str]] = field(default_factory=dict)
    now: str = ""
    since: float = 0.0
    seconds: float = 0.0

    @property
    def took(self) -> float:
        """For how many seconds it has run, or did."""
        return time.time() - self.since if self.status == RUNNING else self.seconds

    @property
    def text(self) -> str:
        """The step that runs, or how the host's run ended."""
        return self.now if self.status == RUNNING else self.status


def cell(status: str, changed: int) -> tuple[str, str]:
    """The sign of a chapter, and the status that colours it."""
    return (CHANGED if status == DONE and changed else CELLS.get(status, "?")), status


class Board:
    """What is known of each host of a fleet's run; threads may tell it more."""

    def __init__(self, hosts: Mapping[str, HostState], chapters: Sequence[str]) -> None:
        self.chapters = list(chapters)
        self._lines = {host: Line(state.status) for host, state in hosts.items()}
        self._lock = threading.RLock()

    def told(self, told: Told) -> str:
        """Take what was told of a host; the line that is worth a mention, "" for none."""
        host, what = told["host"], told["what"]
        with self._lock:
            line = self._lines[host]
            if what == "began":
                line.status, line.since = RUNNING, time.time()
            elif what == "chapter":
                line.cells[told["chapter"]] = cell(told["status"], told.get("changed", 0))
                if told["status"] != RUNNING:
                    return f"{host}: {told['chapter']}: {told['status']}"
            elif what == "step":
                line.now = told["title"]
            elif what == "asked":
                return f"{host}: waiting for you: {told['title']}"
        return ""

    def ended(self, outcome: HostOutcome) -> str:
        """A host's run has ended: its line stays; what is said of it."""
        with self._lock:
            line = self._lines[outcome.host]
            line.status, line.seconds, line.now = outcome.status, outcome.seconds, ""
        why = f"  {outcome.problem.splitlines()[0]}" if outcome.problem else ""
        return f"{outcome.host}: {outcome.status}  {duration(outcome.seconds)}{why}"

    def lines(self) -> dict[str, Line]:
        """The hosts that run first, then those that did not end well, and the others."""
        with self._lock:
            lines = sorted(self._lines.items(), key=lambda item: _rank(item[1].status))
            return {host: replace(line, cells=dict(line.cells)) for host, line in lines}

    def counts(self) -> str:
        """How many hosts there are of each status, in words."""
        counts = Counter(line.status for line in self.lines().values())
        return ", ".join(f"{number} {status}" for status, number in counts.items())


class View:
    """Follows a fleet's run: a region at the foot of a terminal, lines elsewhere."""

    def __init__(
        self, console: Console, hosts: Mapping[str, HostState], chapters: Sequence[str]
    ) -> None:
        self._console = console
        self._board = Board(hosts, chapters)
        self._live: Live | None = None

    def __enter__(self) -> View:
        if self._console.is_terminal:
            self._live = Live(self, console=self._console, refresh_per_second=4, transient=True)
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._live is not None:
            self._live.stop()

    def connected(self, link: str, at_once: int) -> None:
        """Say how many hosts run at a time, and where Dask shows its own view."""
        said = f"{len(self._board.lines())} hosts, {at_once} at a time"
        self._say(f"{said}; dashboard: {link}" if link else said)

    def told(self, told: Told) -> None:
        """Take what was told of a host."""
        said = self._board.told(told)
        if told["what"] == "asked":
            self._say(said, "bold yellow")
        elif said and not self._console.is_terminal:
            self._say(said)

    def ended(self, outcome: HostOutcome) -> None:
        """A host's run has ended: its line stays."""
        self._say(self._board.ended(outcome), _style(outcome.status))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """As many hosts as the terminal has lines for, and how many there are of each status."""
        room = max(1, console.size.height - REST_LINES)
        table = grid(self._board.chapters)
        for host, line in islice(self._board.lines().items(), room):
            signs = [line.cells.get(name, cell(NOT_RUN, 0)) for name in self._board.chapters]
            table.add_row(host, *map(_signed, signs), clock(line.took), Text(line.text))
        yield table
        yield Text(self._board.counts(), "dim")

    def _say(self, text: str, style: str = "") -> None:
        self._console.print(Text(text, style), soft_wrap=True)


def grid(chapters: Sequence[str]) -> Table:
    """An empty table of hosts: a column for each chapter, under its number."""
    cells = (Column(name.partition("_")[0], justify="center") for name in chapters)
    columns = (Column("host", no_wrap=True), *cells, Column("time", justify="right"), Column(""))
    return Table(*columns, box=None, pad_edge=False, header_style="dim", padding=(0, 1, 0, 0))


def table_of(
    hosts: Mapping[str, HostState],
    chapters: Sequence[str],
    states: Mapping[str, Sequence[ChapterState]],
) -> Table:
    """A fleet's last run as a table: what the record says of hosts, the journals of chapters."""
    table = grid(chapters)
    for host, state in hosts.items():
        known = {chapter.name: chapter for chapter in states.get(host, ())}
        signs = [
            cell(known[name].status, known[name].counts.get("changed", 0))
            if name in known
            else cell(NOT_RUN, 0)
            for name in chapters
        ]
        table.add_row(
            host,
            *map(_signed, signs),
            duration(state.seconds) if state.seconds else "",
            Text(state.status, _style(state.status)),
        )
    return table


def _style(status: str) -> str:
    return COLOURS.get(status, "bold yellow")


def _signed(sign: tuple[str, str]) -> Text:
    return Text(sign[0], _style(sign[1]))


def _rank(status: str) -> int:
    return {RUNNING: 0, NOT_RUN: 2, DONE: 3}.get(status, 1)
