"""The panel: a chapter with its steps, run one by one or to the end; and its three tabs."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

import ipywidgets as widgets

from xenlab.chapter import events
from xenlab.chapter.card import COLOURS
from xenlab.chapter.chapter import Chapter
from xenlab.chapter.notebook import WidgetSink
from xenlab.chapter.opening import SINK, STOP
from xenlab.chapter.step import CHANGED, OK
from xenlab.errors import XenlabError
from xenlab.panel.domains import DomainPanel, Worker, complaint
from xenlab.panel.site import ParametersForm, SiteFile
from xenlab.runs.execute import StepCell, chapter_notebooks, opening_code, step_cells
from xenlab.site.loader import declared
from xenlab.site.schema import Parameters, for_chapter

# A chapter in the panel: its steps with their states, run one by one or to the end, stopped.

WAITING = "to do"
GOOD = (OK, CHANGED)


class ChapterPanel:
    """Runs the step cells of one chapter after another, with what their notebook holds.

    ``file`` gives the parameters. Each chapter that is chosen gets a run folder of its own when
    its first step runs.
    """

    def __init__(self, notebooks: Path, file: SiteFile) -> None:
        self._file = file
        self._paths = chapter_notebooks(notebooks)
        self._worker = Worker(self._show_buttons)
        self._cards = WidgetSink()
        self._name = ""
        self._namespace: dict[str, Any] = {}
        self._steps: list[StepCell] = []
        self._states: dict[str, str] = {}
        self.choice = widgets.Dropdown(options=list(self._paths), description="chapter")
        self.next = _button("Run next", "step-forward", "primary")
        self.to_end = _button("Run to the end", "fast-forward", "")
        self.stop = _button("Stop", "stop", "danger")
        self.message = widgets.HTML()
        self._list = widgets.HTML(layout=widgets.Layout(flex="0 0 22em"))
        self.choice.observe(lambda _: self._chosen(), names="value")
        self.next.on_click(lambda _: self._worker.start(self._run_next))
        self.to_end.on_click(lambda _: self._worker.start(self._run_to_end))
        self.stop.on_click(lambda _: self._stop())
        buttons = widgets.HBox([self.choice, self.next, self.to_end, self.stop])
        body = widgets.HBox([self._list, self._cards.widget])
        self._cards.widget.layout.flex = "1 1 auto"
        self.widget = widgets.VBox([buttons, self.message, body])
        self._begin()
        file.attach(self._begin, lambda: self._worker.busy)

    @property
    def states(self) -> Mapping[str, str]:
        """The state of each step, by its number."""
        return dict(self._states)

    def wait(self, seconds: float) -> bool:
        """Wait until nothing runs; whether that came in time."""
        return self._worker.wait(seconds)

    def close(self) -> None:
        """Stop what runs and let go of the machine, without waiting for either."""
        self._worker.stop.set()
        chapter, self._namespace = self._chapter(), {}
        if chapter is not None:
            threading.Thread(target=self._let_go, args=(chapter,), daemon=True).start()

    def _let_go(self, chapter: Chapter) -> None:
        self._worker.wait()
        chapter.hang_up()

    def _chosen(self) -> None:
        if self.choice.value == self._name:
            return
        if self._worker.busy:
            # the click came before the browser knew that a step runs
            self.choice.value = self._name
            return
        self._begin()

    def _begin(self) -> None:
        """The chosen chapter, of which nothing was done yet."""
        self.close()
        self._name = self.choice.value
        self._steps = step_cells(self._paths[self._name])
        self._states = {step.number: WAITING for step in self._steps}
        self._cards.widget.children = ()
        self.message.value = ""
        self._show_steps()
        self._show_buttons()

    def _chapter(self) -> Chapter | None:
        chapter = self._namespace.get("chapter")
        return chapter if isinstance(chapter, Chapter) else None

    def _left(self) -> list[StepCell]:
        return [step for step in self._steps if self._states[step.number] not in GOOD]

    def _run_next(self) -> None:
        left = self._left()
        if left:
            self._run(left[0])

    def _run_to_end(self) -> None:
        for step in self._left():
            if not self._run(step):
                return

    def _run(self, step: StepCell) -> bool:
        """Run a step's cell, the chapter opened before the first; whether it went well."""
        self.message.value = ""
        try:
            site = self._file.required()
            if not self._namespace:
                self._namespace = self._opened(site)
            if self._worker.stop.is_set():
                raise KeyboardInterrupt
            exec(compile(step.code, f"<{step.number}>", "exec"), self._namespace)
        except XenlabError as error:
            self.message.value = complaint(str(error))
            return False
        except KeyboardInterrupt:
            self.message.value = complaint(f"{step.number} was stopped")
            return False
        except Exception as error:
            self.message.value = complaint(f"{type(error).__name__}: {error}")
            raise
        if not self._left():
            self._end()
        return True

    def _opened(self, site: Parameters) -> dict[str, Any]:
        """What the chapter's cells share once it is open; whatever goes wrong, nothing is left."""
        path = self._paths[self._name]
        namespace: dict[str, Any] = {
            **for_chapter(site, declared(path)),
            SINK: self._on,
            STOP: self._worker.stop,
        }
        try:
            exec(compile(opening_code(path), f"<{path.stem}>", "exec"), namespace)
            if self._worker.stop.is_set():
                raise KeyboardInterrupt
        except BaseException:
            chapter = namespace.get("chapter")
            if isinstance(chapter, Chapter):
                chapter.hang_up()
            raise
        return namespace

    def _end(self) -> None:
        chapter = self._chapter()
        if chapter is not None:
            chapter.close()
            self._namespace = {}

    def _on(self, event: events.Event) -> None:
        """Pass everything on to the cards, and each step's state to the list."""
        self._cards.on(event)
        if isinstance(event, events.Started | events.Finished):
            card = self._cards.card
            number = card.title.partition(" ")[0]
            if number in self._states:
                self._states[number] = card.status
                self._show_steps()

    def _stop(self) -> None:
        self._worker.stop.set()
        self.stop.description = "Stopping"

    def _show_buttons(self) -> None:
        busy = self._worker.busy
        self.choice.disabled = busy
        self.next.disabled = self.to_end.disabled = busy or not self._left()
        self.stop.disabled = not busy
        stopping = busy and self._worker.stop.is_set()
        self.stop.description = "Stopping" if stopping else "Stop"

    def _show_steps(self) -> None:
        rows = "".join(_row(step, self._states[step.number]) for step in self._steps)
        self._list.value = f'<div class="xenlab-steps">{rows}</div>'


def _button(text: str, icon: str, style: str) -> Any:
    return widgets.Button(description=text, icon=icon, button_style=style)


def _row(step: StepCell, status: str) -> str:
    colour = COLOURS.get(status, "#9ca3af")
    return (
        '<div style="line-height: 1.7; white-space: nowrap; overflow: hidden; '
        'text-overflow: ellipsis">'
        f'<span style="display: inline-block; width: 5.6em; color: {colour}">{escape(status)}'
        f"</span>{escape(step.title)}</div>"
    )


# The panel: chapters, domains and parameters on three tabs.


class Panel:
    """All three for one parameters file; ``widget`` is what a notebook shows."""

    def __init__(self, file: Path, notebooks: Path) -> None:
        site = SiteFile(file)
        self.chapters = ChapterPanel(notebooks, site)
        self.domains = DomainPanel(site)
        self.form = ParametersForm(site)
        self.widget = widgets.Tab(
            [self.chapters.widget, self.domains.widget, self.form.widget],
            titles=["Chapters", "Domains", "Parameters"],
        )

    def close(self) -> None:
        """Let go of the machines, without waiting for it."""
        self.chapters.close()
        self.domains.close()


def open_panel(file: str) -> widgets.Tab:
    """The panel for a parameters file, as a cell's last value. Raises BadInput."""
    return Panel(Path(file).expanduser(), Path()).widget
