"""What a person at a terminal sees of what goes on: a region at its foot, a run's journal."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Column, Table
from rich.text import Text

from xenlab.chapter.card import RAN, diff_lines, duration
from xenlab.journal import Reader, output_of
from xenlab.masking import clean
from xenlab.runs.expected import Estimate, about, clock
from xenlab.runs.folder import DONE, ChapterState, StepState

# What goes on now: a region at the foot of a terminal; elsewhere a line for each event.

REFRESH_SECONDS = 0.5


class Live:
    """One thing after the other, below it the kernel that is compiled meanwhile, and the whole.

    What has ended goes above the region, as a line that stays.
    """

    def __init__(self, console: Console, estimate: Estimate | None = None) -> None:
        self.console = console
        self._estimate = estimate
        self._bars = Progress(
            TextColumn("{task.description}", table_column=Column(no_wrap=True, min_width=26)),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[count]}", table_column=Column(no_wrap=True, justify="right")),
            TextColumn("{task.fields[clock]}", table_column=Column(no_wrap=True, justify="right")),
            TextColumn("{task.fields[now]}", table_column=Column(no_wrap=True, ratio=1)),
            console=console,
            disable=not console.is_terminal,
            expand=True,
            auto_refresh=False,
        )
        self._thing, self._kernel, self._all = (
            self._bars.add_task(name, visible=False, total=1, count="", clock="", now="")
            for name in ("", "", "[bold]in all")
        )
        self._since = time.time()
        self._compiling = ""
        self._over = threading.Event()
        self._changing = threading.RLock()
        self._thread = threading.Thread(target=self._refresh, daemon=True)

    def __enter__(self) -> Live:
        self._bars.start()
        self.show()
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()
        for task in (self._thing, self._kernel, self._all):
            self._bars.update(task, visible=False)
        self._bars.stop()

    def begin(self, part: str, name: str, total: float | None, line: str) -> None:
        """Something has begun; ``line`` is what is printed where there is no region."""
        with self._changing:
            self._since = time.time()
            if self._estimate is not None:
                self._estimate.begin(part)
            self._bars.reset(self._thing, total=total, description=escape(name), visible=True)
            self._bars.update(self._thing, count="", now="")
            if not self.console.is_terminal:
                self._print(line, with_estimate=True)
            self.show()

    def update(
        self,
        *,
        now: str | None = None,
        completed: float | None = None,
        total: float | None = None,
        count: str | None = None,
    ) -> None:
        """How far it is; ``now`` is markup."""
        said = {"now": now, "completed": completed, "total": total, "count": count}
        with self._changing:
            self._bars.update(
                self._thing,
                **{k: v for k, v in said.items() if v is not None},  # type: ignore[arg-type]
            )

    def end(self, part: str, line: str) -> None:
        """It has ended; the line, as markup, stays."""
        with self._changing:
            if self._estimate is not None:
                self._estimate.end(part)
            self._bars.update(self._thing, visible=False)
            self.show()
            self.console.print(line, highlight=False, soft_wrap=True)

    def show(self) -> None:
        """Draw the region as it is now."""
        with self._changing:
            now = time.time()
            self._bars.update(self._thing, clock=clock(now - self._since))
            if self._estimate is not None:
                self._estimate.look()
                self._show_kernel(self._estimate, now)
                self._show_estimate(self._estimate, now)
            self._bars.refresh()

    def _show_kernel(self, estimate: Estimate, now: float) -> None:
        found = estimate.compiling(now)
        name, spent, expected = found or ("", 0.0, 1.0)
        if name != self._compiling and not self.console.is_terminal:
            if self._compiling:
                self._print(f"{self._compiling}: compiled")
            if name:
                self._print(f"{name}: in the background, about {about(expected)}")
        self._compiling = name
        left = f"about {about(expected - spent)} left, in the background"
        self._bars.update(
            self._kernel,
            description=escape(name),
            completed=min(0.99, spent / expected),
            clock=clock(spent),
            now=left if spent < expected else "longer than expected, in the background",
            visible=bool(name),
        )

    def _show_estimate(self, estimate: Estimate, now: float) -> None:
        done, left = estimate.done(now), estimate.remaining(now)
        self._bars.update(
            self._all,
            total=None if done is None else 1,
            completed=done or 0,
            count=estimate.place(),
            clock=clock(now - estimate.start),
            now="" if left is None else f"[bold]about {about(left)} left",
            visible=True,
        )

    def _print(self, line: str, *, with_estimate: bool = False) -> None:
        if with_estimate and self._estimate is not None:
            line = f"{line} ({self._estimate.words(time.time())})"
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _refresh(self) -> None:
        while not self._over.wait(REFRESH_SECONDS):
            self.show()


# What a person at a terminal sees of a run: its journal, followed while it grows.

LOOK_SECONDS = 0.2
"""How often the journal is looked at."""

STYLES = {
    "ok": "dim",
    "skipped": "dim",
    "done": "green",
    "changed": "green",
    "would change": "cyan",
    "would be refused": "bold red",
    "failed": "bold red",
    "unreachable": "bold red",
    "unknown": "bold yellow",
    "aborted": "bold yellow",
    "unfinished": "bold yellow",
    "not run": "dim",
}


DIFF_STYLES = {
    "plus": "not bold green",
    "minus": "not bold red",
    "hunk": "not bold dim",
    "head": "not bold dim",
    "same": "not bold",
}


class Follower:
    """Shows each step of a run as its journal grows: a region on a terminal, lines elsewhere.

    ``chapters`` gives the titles of each chapter's steps, in their order; ``estimate`` how long
    they take. ``person`` shows what a person must do, by default where the steps are shown;
    ``commands`` says whether each step's are shown as well; ``asked`` is given the record of what a
    person is asked to do.
    """

    def __init__(
        self,
        console: Console,
        folder: Path,
        chapters: Mapping[str, Sequence[str]],
        estimate: Estimate | None = None,
        *,
        person: Console | None = None,
        commands: bool = False,
        asked: Callable[[Mapping[str, Any]], object] | None = None,
    ) -> None:
        self._console = console
        self._person = person or console
        self._with_commands = commands
        self._asked = asked
        self._journal = Reader(folder / "journal.jsonl")
        self._chapters = chapters
        self._over = threading.Event()
        self._looking = threading.Lock()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._live = Live(console, estimate)
        self._finished: dict[str, set[str]] = {}

    def __enter__(self) -> Follower:
        self._journal.fresh()
        self._live.__enter__()
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()
        self._look()
        self._live.__exit__(*error)

    def begin(self, chapter: str) -> None:
        """A chapter's notebook is started."""
        titles = self._chapters.get(chapter, ())
        self._finished[chapter] = set()
        line = f"{chapter}: {len(titles)} steps"
        self._live.begin(chapter, chapter, len(titles) or None, line)
        self._live.update(now="starting", count=f"0/{len(titles)}")

    def end(self, state: ChapterState) -> None:
        """A chapter's notebook has ended."""
        self._look()
        took = duration(state.seconds)
        line = f"{escape(state.name)}: {state.status}  {took}"
        if self._console.is_terminal:
            changed = f"{state.counts.get('changed', 0)} of {sum(state.counts.values())} changed"
            status = f"[{STYLES.get(state.status, '')}]{state.status:10}[/]"
            line = f"{escape(state.name):26} {status} {took:>12}   [dim]{changed}[/]"
        self._live.end(state.name, line)

    def _follow(self) -> None:
        while not self._over.wait(LOOK_SECONDS):
            self._look()

    def _look(self) -> None:
        with self._looking:
            for record in self._journal.fresh():
                self._show(record)

    def _show(self, record: Mapping[str, Any]) -> None:
        chapter, phase = str(record.get("chapter", "")), record.get("phase")
        title = str(record.get("title", ""))
        if phase == "open":
            self._live.update(now=escape(self._next(chapter)))
        elif phase == "running":
            self._live.update(now=escape(title))
        elif phase == "asked":
            said = Text(f"waiting for you: {record.get('message', '')}", style="bold yellow")
            self._person.print(said, soft_wrap=True)
            if self._asked is not None:
                self._asked(record)
        elif phase == "waiting":
            said = Text(str(record.get("message", "")), style="yellow")
            self._console.print(said, soft_wrap=True)
        elif phase == "final":
            self._finished.setdefault(chapter, set()).add(str(record["step"]))
            # opening a chapter is a step as well, and no cell of its own
            titles = self._chapters.get(chapter, ())
            steps = {title.partition(" ")[0] for title in titles}
            done = len(self._finished[chapter] & steps)
            now = escape(self._next(chapter))
            self._live.update(completed=done, count=f"{done}/{len(titles)}", now=now)
            if not self._console.is_terminal:
                self._line(record)
            if record["status"] in ("ok", "changed") and record.get("message"):
                named = f"{title}\n" if self._console.is_terminal else ""
                said = Text(f"{named}    {record['message']}", style="yellow")
                self._console.print(said, soft_wrap=True)
            if record["status"] in ("would change", "would be refused"):
                self._plan(record, named=self._console.is_terminal)
            elif self._with_commands:
                self._commands(record, named=self._console.is_terminal)

    def _next(self, chapter: str) -> str:
        """The first step that has not ended: where a chapter that only looks is now."""
        for title in self._chapters.get(chapter, ()):
            if title.partition(" ")[0] not in self._finished.get(chapter, set()):
                return title
        return ""

    def _line(self, record: Mapping[str, Any]) -> None:
        status = str(record["status"])
        seconds = duration(float(record.get("seconds", 0)))
        line = f"  {status:12}  {record.get('title', '')}  {seconds}"
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _commands(self, record: Mapping[str, Any], *, named: bool) -> None:
        """What a step ran, or did not need to run, as a person would type it."""
        if script := _script(record, whole=True):
            text = Text(f"{record.get('title', '')}\n" if named else "", style="bold")
            text.append(f"    {RAN.get(str(record['status']), 'to run')}:\n", "not bold dim")
            text.append(script.rstrip("\n"), "not bold cyan")
            self._console.print(text, soft_wrap=True)

    def _plan(self, record: Mapping[str, Any], *, named: bool) -> None:
        """What a step would change: a line for each difference, the diff below it."""
        text = Text(f"{record.get('title', '')}\n" if named else "", style="bold")
        for label, difference in (record.get("difference") or {}).items():
            text.append(f"    {label + ': ' if label else ''}{difference['summary']}\n", "not bold")
            for kind, line in diff_lines(difference.get("diff", "")):
                text.append(f"      {line}\n", DIFF_STYLES[kind])
            for row in difference.get("rows", ()):
                if row.get("lost"):
                    text.append(f"      lost: {row['device']}: {row['lost']}\n", "red")
        text.append(_script(record, whole=False), "not bold cyan")
        if record.get("message"):
            style = "bold red" if record["status"] == "would be refused" else "not bold"
            text.append(f"    {record['message']}\n", style)
        text.rstrip()
        if text:
            self._console.print(text, soft_wrap=True)


def summary(chapters: Sequence[ChapterState]) -> Table:
    """A run as a table: chapters and their steps, with states, durations and totals."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("chapter / step", overflow="fold")
    table.add_column("status", no_wrap=True)
    table.add_column("time", justify="right", no_wrap=True)
    for chapter in chapters:
        table.add_row(
            f"[bold]{escape(chapter.name)}",
            styled(chapter.status),
            duration(chapter.seconds) if chapter.steps or chapter.seconds else "",
        )
        for step in chapter.steps:
            table.add_row(f"  {escape(step.title)}", styled(step.status), duration(step.seconds))
    place, words, took = totals(chapters)
    table.add_section()
    table.add_row(f"[bold]{place}", words, took)
    return table


def totals(chapters: Sequence[ChapterState]) -> tuple[str, str, str]:
    """How many chapters are done and steps there are; how the steps ended; how long they took."""
    counts: dict[str, int] = {}
    for chapter in chapters:
        for status, number in chapter.counts.items():
            counts[status] = counts.get(status, 0) + number
    done = sum(1 for chapter in chapters if chapter.status == DONE)
    return (
        f"{done} of {len(chapters)} chapters, {sum(counts.values())} steps",
        ", ".join(f"{number} {status}" for status, number in counts.items()),
        duration(sum(chapter.seconds for chapter in chapters)),
    )


def step_record(folder: Path, step: StepState) -> Text:
    """A step with each of its commands: what for, its exit status and seconds, what it printed."""
    text = Text()
    text.append(f"{step.title}\n", "bold")
    text.append(step.status, STYLES.get(step.status, ""))
    text.append(f"  {duration(step.seconds)}\n")
    if step.message:
        text.append(f"{step.message}\n")
    if script := _script(step.record, whole=True):
        text.append(f"\n{RAN.get(step.status, 'to run')}:\n", "dim")
        text.append(script, "cyan")
    for command in step.record.get("commands") or ():
        status = command["status"] if command["status"] is not None else "unknown"
        facts = [command["phase"], f"exit status {status}", duration(float(command["seconds"]))]
        facts += [str(command[key]) for key in ("host", "label") if key in command]
        facts += [f"{command['times']} times"] if "times" in command else []
        text.append(f"\n{', '.join(facts)}\n", "dim")
        if "input" in command:
            text.append(f"{folder / command['input']['path']} went in\n", "dim")
        text.append(f"$ {str(command['command']).rstrip()}\n", "bold")
        text.append(output_of(folder, command))
    text.rstrip()
    return text


def _script(record: Mapping[str, Any], *, whole: bool) -> str:
    """What a step would run, or has run, as a person types it: indented, "" where nothing.

    Not ``whole``: without the texts of files, which a diff shows.
    """
    text = clean(str(record.get("script", "")))
    if not whole:
        text = re.sub(r"<<'(END_*)'\n.*?^\1$", r"<<'\1' …", text, flags=re.DOTALL | re.MULTILINE)
    return "".join(f"      {line}\n" for line in text.splitlines())


def styled(status: str) -> str:
    """A status in its colour, as Rich's markup."""
    style = STYLES.get(status, "")
    return f"[{style}]{escape(status)}[/]" if style else escape(status)
