"""The domains as a live table: start, shut down, reboot, destroy, and what a console says."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from html import escape
from typing import Any

import ipywidgets as widgets
import pandas as pd

from xenlab.chapter import Chapter
from xenlab.command import Command
from xenlab.errors import XenlabError
from xenlab.journal import Journal
from xenlab.opening import new_run_folder, runs_folder
from xenlab.panel.cards import CardView
from xenlab.panel.worker import Worker
from xenlab.parameters import Parameters
from xenlab.plain import clean
from xenlab.resources.base import Resource
from xenlab.resources.domain_state import CRASHED, RUNNING, log_path

CHAPTER = "91_panel"
LOOK_SECONDS = 3.0
"""How often the table is read anew."""

CONSOLE_BYTES = 6000
"""How much of a console's log is shown."""


class DomainPanel:
    """The site's guests and dom0; each button is a step, recorded in a journal of its own."""

    def __init__(self, site: Parameters) -> None:
        self._site = site
        self._worker = Worker(self._show_buttons)
        self._cards = CardView(most=6)
        self._book: Chapter | None = None
        self._number = 0
        self._over = threading.Event()
        self._follower: threading.Thread | None = None
        self._running: dict[str, Mapping[Any, Any]] = {}
        names = [domain.name for domain in site.domains]
        self.rows = {name: _Row(name, self._asked) for name in names}
        self.watch = widgets.ToggleButton(description="Watch", icon="eye", button_style="primary")
        self.stop = widgets.Button(description="Stop", icon="stop", button_style="danger")
        self.dom0 = widgets.HTML()
        self.message = widgets.HTML()
        self.console = widgets.Dropdown(options=["no console", *names], description="console")
        self.console_text = widgets.HTML()
        self.watch.observe(lambda change: self._watched(bool(change["new"])), names="value")
        self.stop.on_click(lambda _: self._stop())
        head = widgets.HBox([self.watch, self.stop])
        table = widgets.VBox([self.dom0, *(row.widget for row in self.rows.values())])
        self.widget = widgets.VBox(
            [head, table, self.message, self.console, self.console_text, self._cards.widget]
        )
        self._show_buttons()

    def close(self) -> None:
        """Watch no longer, and let go of the machine."""
        self._over.set()
        if self._follower is not None:
            self._follower.join()
            self._follower = None
        if self._book is not None:
            self._book.close()
            self._book = None

    def wait(self, seconds: float) -> bool:
        """Wait until nothing is being done; whether that came in time."""
        return self._worker.wait(seconds)

    def _watched(self, wanted: bool) -> None:
        if not wanted:
            self.close()
            return
        self._over.clear()
        self._follower = threading.Thread(target=self._follow, daemon=True)
        self._follower.start()

    def _follow(self) -> None:
        while True:
            try:
                self._look()
                self.message.value = ""
            except XenlabError as error:
                self._say(str(error))
            if self._over.wait(LOOK_SECONDS):
                return

    def _look(self) -> None:
        book = self._opened()
        # read anew every few seconds, and nothing is decided by it: that is on no record
        target = book.target.watched(None)
        self._show(book.toolstack.domains(target))
        name = self.console.value
        if name not in self.rows:
            name = next((n for n in self.rows if self._state(n) == CRASHED), "")
        if name:
            command = Command.argv("tail", "-c", CONSOLE_BYTES, "--", log_path(name))
            text = clean(target.run(command, check=False).stdout)
            self.console_text.value = _console(text)
        else:
            self.console_text.value = ""

    def _opened(self) -> Chapter:
        if self._book is None:
            journal = Journal(new_run_folder(runs_folder(), self._site.site))
            self._book = Chapter(CHAPTER, self._site, journal, self._cards)
        return self._book

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
        try:
            book = self._opened()
            actions: dict[str, Callable[[str], Resource]] = {
                "start": lambda n: book.toolstack.running(n, console=True),
                "shut down": book.toolstack.stopped,
                "reboot": book.toolstack.rebooted,
                "destroy": book.toolstack.destroyed,
            }
            self._number += 1
            book.ensure(f"91.{self._number} {what.capitalize()} {name}", actions[what](name))
            self._look()
        except XenlabError as error:
            self._say(str(error))
        except KeyboardInterrupt:
            self._say(f"{what} {name} was stopped")

    def _stop(self) -> None:
        if self._book is not None:
            self._book.stop.set()

    def _say(self, text: str) -> None:
        self.message.value = f'<pre style="white-space: pre-wrap">{escape(clean(text))}</pre>'

    def _show_buttons(self) -> None:
        busy = self._worker.busy
        self.stop.disabled = not busy
        for name, row in self.rows.items():
            row.enable(self._state(name), busy=busy or not self._running)

    def _state(self, name: str) -> str:
        return str(self._running[name]["state"]) if name in self._running else ""


class _Row:
    """One guest: what xl says of it, and its buttons."""

    def __init__(self, name: str, asked: Callable[[str, str], object]) -> None:
        self.name = name
        self.text = widgets.HTML(_facts(name, None), layout=widgets.Layout(flex="0 0 30em"))
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


def _facts(name: str, facts: Mapping[Any, Any] | None) -> str:
    text = "not running"
    if facts is not None:
        text = (
            f"domain {facts['id']} · {facts['memory_mib']} MiB · {facts['vcpus']} vcpu · "
            f"{facts['state']} · {facts['seconds']:.0f} s"
        )
    return (
        f'<span style="white-space: nowrap"><b style="display: inline-block; width: 7em">'
        f"{escape(name)}</b>{escape(text)}</span>"
    )


def _console(text: str) -> str:
    # turned upside down, the box stays at its end as more comes
    return (
        '<div style="display: flex; flex-direction: column-reverse; max-height: 24em; '
        'overflow: auto; background-color: #1f2430; color: #d6dbe6; border-radius: 4px">'
        '<pre style="font-size: 12px; line-height: 1.4; margin: 0; padding: 8px 10px">'
        f"{escape(text)}</pre></div>"
    )
