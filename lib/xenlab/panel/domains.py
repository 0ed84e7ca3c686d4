"""The domains as a live table, with buttons and consoles; the thread that a panel works in."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from html import escape
from typing import Any

import ipywidgets as widgets
import pandas as pd

from xenlab.chapter.card import COLOURS
from xenlab.chapter.chapter import Chapter
from xenlab.chapter.notebook import WidgetSink
from xenlab.chapters.overview import overview
from xenlab.command import Command
from xenlab.durable import new_run_folder, runs_folder
from xenlab.errors import BadInput, XenlabError
from xenlab.host import Host
from xenlab.journal import Journal
from xenlab.masking import Secret, clean, mask
from xenlab.panel.site import SiteFile
from xenlab.resources.base import Resource
from xenlab.resources.xen import CRASHED, RUNNING, log_path
from xenlab.site.schema import Parameters

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


def complaint(text: str) -> str:
    """What went wrong, as HTML."""
    style = f"color: {COLOURS['failed']}; white-space: pre-wrap"
    return f'<pre style="{style}">{escape(clean(text))}</pre>'


# The table of the domains.

CHAPTER = "91_panel"
LOOK_SECONDS = 3.0
"""How often the table is read anew."""

NO_CONSOLE = "no console"

CONSOLE_BYTES = 6000
"""How much of a console's log is shown."""


class DomainPanel:
    """The site's guests and dom0; each button is a step, recorded in a journal of its own.

    Whoever follows them opens the chapter, and closes it when he is done; steps have it meanwhile.
    """

    def __init__(self, file: SiteFile) -> None:
        self._file = file
        self._worker = Worker(self._show_buttons)
        self._follower = Worker(self._follow_on)
        self._cards = WidgetSink(most=6)
        self._chapter: Chapter | None = None
        # the chapter's own site also knows the numbers of the disk's partitions
        self._opened_for: Parameters | None = None
        self._number = 0
        self._running: dict[str, Mapping[Any, Any]] = {}
        self.rows: dict[str, _Row] = {}
        self.watch = widgets.ToggleButton(description="Watch", icon="eye", button_style="primary")
        self.stop = widgets.Button(description="Stop", icon="stop", button_style="danger")
        self.dom0 = widgets.HTML()
        self.message = widgets.HTML()
        self.answer = widgets.HTML()
        self.console = widgets.Dropdown(description="console")
        self.console_text = widgets.HTML()
        self.watch.observe(lambda change: self._watched(bool(change["new"])), names="value")
        self.stop.on_click(lambda _: self._stop())
        self.status = widgets.Button(description="Status", icon="info")
        self.status.on_click(lambda _: self._worker.start(self._status))
        self._table = widgets.VBox()
        head = widgets.HBox([self.watch, self.stop, self.status])
        said = (self.answer, self.message)
        below = (self.console, self.console_text, self._cards.widget)
        self.widget = widgets.VBox([head, self._table, *said, *below])
        self._draw()
        file.attach(self._site_changed, lambda: self._worker.busy)

    def close(self) -> None:
        """Watch no longer and let go of the machine, without waiting for it."""
        self.watch.value = False

    def wait(self, seconds: float) -> bool:
        """Wait until nothing is being done; whether that came in time."""
        return self._worker.wait(seconds)

    def wait_closed(self, seconds: float) -> bool:
        """Wait until the machine was let go of; whether that came in time."""
        return self._follower.wait(seconds)

    def _draw(self) -> None:
        """A row for each of the site's guests, of which nothing is known yet."""
        names = [domain.name for domain in self._file.site.domains]
        self.rows = {name: self.rows.get(name) or _Row(name, self._asked) for name in names}
        self._table.children = [self.dom0, *(row.widget for row in self.rows.values())]
        # a browser shows what is chosen where that changes after the options
        self.console.options = [NO_CONSOLE, *names]
        self.console.index = None
        self.console.value = NO_CONSOLE
        self.console_text.value = ""
        self._forget()

    def _forget(self) -> None:
        """Nobody knows how the domains are, so nothing can be done to them."""
        self._running = {}
        self.dom0.value = ""
        for row in self.rows.values():
            row.forget()
        self._show_buttons()

    def _site_changed(self) -> None:
        self._draw()
        self._interrupt()

    def _watched(self, wanted: bool) -> None:
        if wanted:
            self._follow_on()
        else:
            self._forget()
            self._interrupt()

    def _interrupt(self) -> None:
        """End what waits for the machine: a look at it, a step, or the opening."""
        self._worker.stop.set()
        self._follower.stop.set()

    def _follow_on(self) -> None:
        # also where it was wanted again while it ended
        if self.watch.value:
            self._follower.start(self._follow)

    def _follow(self) -> None:
        try:
            while self._wanted(self._follower.stop):
                try:
                    self._look(self._opened())
                    self.message.value = ""
                except XenlabError as error:
                    error.hide(self._chapter.recorder.secrets if self._chapter else ())
                    self.message.value = complaint(str(error))
                except KeyboardInterrupt:
                    continue
                self._follower.stop.wait(LOOK_SECONDS)
        except Exception as error:
            self.message.value = complaint(f"{type(error).__name__}: {error}")
            self.watch.value = False
            raise
        finally:
            self._let_go()

    def _wanted(self, stop: threading.Event) -> bool:
        # whoever wants no more says so first, and sets the event then
        stop.clear()
        return bool(self.watch.value)

    def _let_go(self) -> None:
        """Close the chapter once no step has it any more."""
        self._worker.wait()
        chapter, self._chapter = self._chapter, None
        self._forget()
        if chapter is not None:
            chapter.close()

    def _look(self, chapter: Chapter) -> None:
        # read anew every few seconds, and nothing is decided by it: that is on no record
        secrets = chapter.recorder.secrets
        target = chapter.target.watched(Unrecorded(self._follower.stop, secrets))
        found = chapter.toolstack.domains(target)
        if not self._holds():
            return
        self._show(found)
        name = self.console.value
        if name not in self.rows:
            name = next((n for n in self.rows if self._state(n) == CRASHED), "")
        if name:
            self.console_text.value = console_box(console_end(target, name, secrets))
        else:
            self.console_text.value = ""

    def _opened(self) -> Chapter:
        site = self._file.site
        if self._chapter is not None and self._opened_for is not site:
            self._let_go()
        if self._chapter is None:
            # no step runs without a chapter: its event is free for the opening
            if not self._wanted(self._worker.stop):
                raise KeyboardInterrupt
            journal = Journal(new_run_folder(runs_folder(), site.site))
            stop = self._worker.stop
            self._opened_for = site
            self._chapter = Chapter(CHAPTER, site, journal, self._cards.on, stop=stop)
        return self._chapter

    def _holds(self) -> bool:
        """Whether the chapter is wanted, and was opened for this site."""
        return bool(self.watch.value) and self._opened_for is self._file.site

    def _show(self, table: pd.DataFrame) -> None:
        found: dict[str, Mapping[Any, Any]] = {
            str(row["name"]): row for row in table.to_dict("records")
        }
        self._running = found
        zero = found.get("Domain-0")
        self.dom0.value = _facts("Domain-0", zero) if zero else ""
        for name, row in self.rows.items():
            row.show(found.get(name))
        self._show_buttons()

    def _asked(self, what: str, name: str) -> None:
        self._worker.start(lambda: self._act(what, name))

    def _act(self, what: str, name: str) -> None:
        self.answer.value = ""
        try:
            chapter = self._ready()
            actions: dict[str, Callable[[str], Resource]] = {
                "start": lambda n: chapter.toolstack.running(n, console=True),
                "shut down": chapter.toolstack.stopped,
                "reboot": chapter.toolstack.rebooted,
                "destroy": chapter.toolstack.destroyed,
            }
            self._number += 1
            chapter.ensure(f"91.{self._number} {what.capitalize()} {name}", actions[what](name))
            self._look(chapter)
        except XenlabError as error:
            self.answer.value = complaint(str(error))
        except KeyboardInterrupt:
            self.answer.value = complaint(f"{what} {name} was stopped")

    def _status(self) -> None:
        """Show host and guests on one screen, with what waits."""
        try:
            found = overview(self._file.site)
        except XenlabError as error:
            self.answer.value = complaint(str(error))
            return
        plain = (table.map(lambda value: clean(str(value))) for table in found)
        self.answer.value = "".join(table.to_html(index=False, border=0) for table in plain)

    def _ready(self) -> Chapter:
        """The chapter for a step, opened for the site as it is now; raises BadInput."""
        self._file.required()
        chapter = self._chapter
        if chapter is None or not self._holds():
            raise BadInput(
                "cannot start: because nobody has looked at the domains yet", hint="press Watch"
            )
        return chapter

    def _stop(self) -> None:
        self._worker.stop.set()
        self.stop.description = "Stopping"

    def _show_buttons(self) -> None:
        busy = self._worker.busy
        self.stop.disabled = not busy
        stopping = busy and self._worker.stop.is_set()
        self.stop.description = "Stopping" if stopping else "Stop"
        for name, row in self.rows.items():
            row.enable(self._state(name), busy=busy or not self._running)

    def _state(self, name: str) -> str:
        return str(self._running[name]["state"]) if name in self._running else ""


class _Row:
    """One guest: what xl says of it, and its buttons."""

    def __init__(self, name: str, asked: Callable[[str, str], object]) -> None:
        self.name = name
        self.text = widgets.HTML(layout=widgets.Layout(flex="0 0 30em"))
        self.buttons = {
            what: widgets.Button(description=what, icon=icon, layout=widgets.Layout(width="8.5em"))
            for what, icon in (
                ("start", "play"),
                ("shut down", "power-off"),
                ("reboot", "refresh"),
                ("destroy", "bolt"),
            )
        }
        for what, button in self.buttons.items():
            button.on_click(lambda _, what=what: asked(what, name))
        self.widget = widgets.HBox([self.text, *self.buttons.values()])
        self.widget.add_class("xenlab-domain")

    def show(self, facts: Mapping[Any, Any] | None) -> None:
        """What xl said of it, None where it does not run."""
        self.text.value = _facts(self.name, facts)

    def forget(self) -> None:
        """Nobody knows."""
        self.text.value = _facts(self.name, None, "unknown")

    def enable(self, state: str, *, busy: bool) -> None:
        """Only what can be done in a domain's state, "" where there is none."""
        possible = {
            "start": state != RUNNING,
            "shut down": bool(state),
            "reboot": state == RUNNING,
            "destroy": bool(state),
        }
        for what, button in self.buttons.items():
            button.disabled = busy or not possible[what]


def _facts(name: str, facts: Mapping[Any, Any] | None, text: str = "not running") -> str:
    if facts is not None:
        text = (
            f"domain {facts['id']} · {facts['memory_mib']} MiB · {facts['vcpus']} vcpu · "
            f"{facts['state']} · {facts['seconds']:.0f} s"
        )
    return (
        f'<span style="white-space: nowrap"><b style="display: inline-block; width: 7em">'
        f"{escape(name)}</b>{escape(text)}</span>"
    )


# Looks at a machine that decide nothing: they are on no record, and can be stopped.


class Unrecorded:
    """Notes nothing of what a host runs, and stops it once ``stop`` is set.

    It is the host's watcher, and what the watcher gives for each command (host.Watcher, host.Call).
    """

    mark = ""
    looks = True

    def __init__(self, stop: threading.Event, secrets: tuple[Secret, ...]) -> None:
        self.stop = stop
        self.secrets = secrets

    def started(self, host: str, command: Command, input: bytes) -> Unrecorded:
        """A command is about to run."""
        return self

    def output(self, stream: str, piece: bytes) -> None:
        """Nothing."""

    def ended(self, status: int | None, seconds: float) -> None:
        """Nothing."""


def console_end(host: Host, name: str, secrets: tuple[Secret, ...]) -> str:
    """The last lines of a domain's console as plain text, masked."""
    command = Command.argv("tail", "-c", CONSOLE_BYTES, "--", log_path(name))
    text = host.run(command, check=False).out
    if len(text) == CONSOLE_BYTES:
        # the first line may begin in the middle of a secret
        text = text.partition(b"\n")[2]
    return mask(clean(text.decode("utf-8", "replace")), secrets)


def console_box(text: str) -> str:
    """The end of what a domain's console says, in a box that scrolls, as HTML."""
    # turned upside down, the box stays at its end as more comes; JupyterLab would have the text
    # shrink and scroll by itself instead
    return (
        '<div class="xenlab-console" style="display: flex; flex-direction: column-reverse; '
        "max-height: 24em; overflow: auto; background-color: #1f2430; color: #d6dbe6; "
        'border-radius: 4px">'
        '<pre style="flex: none; overflow: visible; font-size: 12px; line-height: 1.4; margin: 0; '
        'padding: 8px 10px">'
        f"{escape(text)}</pre></div>"
    )
