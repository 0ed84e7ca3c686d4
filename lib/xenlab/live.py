"""What goes on now: a region at the foot of a terminal; elsewhere a line for each event."""

from __future__ import annotations

import threading
import time
from contextlib import AbstractContextManager
from types import TracebackType

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Column

from xenlab.whole import Whole, about, clock

REFRESH_SECONDS = 0.5


class Live(AbstractContextManager["Live"]):
    """One thing after the other, below it the kernel that is compiled meanwhile, and the whole.

    What has ended goes above the region, as a line that stays.
    """

    def __init__(self, console: Console, whole: Whole | None = None) -> None:
        self.console = console
        self._whole = whole
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

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        self._thread.join()
        for task in (self._thing, self._kernel, self._all):
            self._bars.update(task, visible=False)
        self._bars.stop()

    def begin(self, part: str, name: str, total: float | None, line: str) -> None:
        """Something has begun; ``line`` is what is printed where there is no region."""
        with self._changing:
            self._since = time.time()
            if self._whole is not None:
                self._whole.begin(part)
            self._bars.reset(self._thing, total=total, description=escape(name), visible=True)
            self._bars.update(self._thing, count="", now="")
            if not self.console.is_terminal:
                self._print(line, with_whole=True)
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
            if self._whole is not None:
                self._whole.end(part)
            self._bars.update(self._thing, visible=False)
            self.show()
            self.console.print(line, highlight=False, soft_wrap=True)

    def show(self) -> None:
        """Draw the region as it is now."""
        with self._changing:
            now = time.time()
            self._bars.update(self._thing, clock=clock(now - self._since))
            if self._whole is not None:
                self._whole.look()
                self._show_kernel(self._whole, now)
                self._show_whole(self._whole, now)
            self._bars.refresh()

    def _show_kernel(self, whole: Whole, now: float) -> None:
        found = whole.compiling(now)
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

    def _show_whole(self, whole: Whole, now: float) -> None:
        done, left = whole.done(now), whole.remaining(now)
        self._bars.update(
            self._all,
            total=None if done is None else 1,
            completed=done or 0,
            count=whole.place(),
            clock=clock(now - whole.start),
            now="" if left is None else f"[bold]about {about(left)} left",
            visible=True,
        )

    def _print(self, line: str, *, with_whole: bool = False) -> None:
        if with_whole and self._whole is not None:
            line = f"{line} ({self._whole.words(time.time())})"
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _refresh(self) -> None:
        while not self._over.wait(REFRESH_SECONDS):
            self.show()
