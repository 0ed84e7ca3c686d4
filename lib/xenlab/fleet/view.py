"""A fleet's run as a person sees it: a line a host, its chapters as cells, from what is told."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

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
    """What is known of a host now."""

    status: str = NOT_RUN
    cells: dict[str, str] = field(default_factory=dict)
    now: str = ""
    since: float = 0.0
    seconds: float = 0.0


def cell(status: str, changed: int) -> tuple[str, str]:
    """The sign of a chapter and its style."""
    sign = CHANGED if status == DONE and changed else CELLS.get(status, "?")
    return sign, COLOURS.get(status, "bold yellow")


class View:
    """Follows a fleet's run: a region at the foot of a terminal, lines elsewhere."""

    def __init__(
        self, console: Console, hosts: Mapping[str, HostState], chapters: Sequence[str]
    ) -> None:
        self._console = console
        self._chapters = list(chapters)
        self._lines = {host: Line(state.status) for host, state in hosts.items()}
        self._signs: dict[tuple[str, str], tuple[str, str]] = {}
        self._lock = threading.RLock()
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
        said = f"{len(self._lines)} hosts, {at_once} at a time"
        self._say(f"{said}; dashboard: {link}" if link else said)

    def told(self, told: Told) -> None:
        """Take what was told of a host."""
        host, what = told["host"], told["what"]
        with self._lock:
            line = self._lines[host]
            if what == "began":
                line.status, line.since = RUNNING, time.time()
            elif what == "chapter":
                sign = cell(told["status"], told.get("changed", 0))
                self._signs[host, told["chapter"]] = sign
                if told["status"] != RUNNING and not self._console.is_terminal:
                    self._say(f"{host}: {told['chapter']}: {told['status']}")
            elif what == "step":
                line.now = told["title"]
            elif what == "asked":
                self._say(f"{host}: waiting for you: {told['title']}", "bold yellow")

    def ended(self, outcome: HostOutcome) -> None:
        """A host's run has ended: its line stays."""
        with self._lock:
            line = self._lines[outcome.host]
            line.status, line.seconds, line.now = outcome.status, outcome.seconds, ""
        style = COLOURS.get(outcome.status, "bold yellow")
        why = f"  {outcome.problem.splitlines()[0]}" if outcome.problem else ""
        self._say(f"{outcome.host}: {outcome.status}  {duration(outcome.seconds)}{why}", style)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The hosts that run first, then those that did not end well, and the others."""
        with self._lock:
            order = sorted(self._lines, key=lambda host: _rank(self._lines[host].status))
            room = max(1, console.size.height - REST_LINES)
            table = grid(self._chapters)
            for host in order[:room]:
                line = self._lines[host]
                took = time.time() - line.since if line.status == RUNNING else line.seconds
                signs = [self._signs.get((host, name), cell(NOT_RUN, 0)) for name in self._chapters]
                now = line.now if line.status == RUNNING else line.status
                table.add_row(host, *(Text(*sign) for sign in signs), clock(took), Text(now))
            counts = Counter(line.status for line in self._lines.values())
        yield table
        yield Text(", ".join(f"{number} {status}" for status, number in counts.items()), "dim")

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
        style = COLOURS.get(state.status, "bold yellow")
        table.add_row(
            host,
            *(Text(*sign) for sign in signs),
            duration(state.seconds) if state.seconds else "",
            Text(state.status, style),
        )
    return table


def _rank(status: str) -> int:
    return {RUNNING: 0, NOT_RUN: 2, DONE: 3}.get(status, 1)
