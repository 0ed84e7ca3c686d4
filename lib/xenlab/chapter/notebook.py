"""What a chapter's first cell calls: the chapter, shown where it runs."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

import ipywidgets as widgets
import pandas as pd
from IPython.core.getipython import get_ipython
from IPython.display import display as ipython_display

from xenlab.chapter import events
from xenlab.chapter.card import Card, Paint, Painter, duration, environment
from xenlab.chapter.chapter import Chapter
from xenlab.chapter.opening import CONNECTION, RUNBOOK, SINK, STOP
from xenlab.chapter.opening import open_chapter as open_shown_by
from xenlab.chapter.step import WOULD_CHANGE
from xenlab.durable import kept_file
from xenlab.errors import ConsentNeeded, XenlabError
from xenlab.masking import clean
from xenlab.resources.base import Asked, Waiting
from xenlab.resources.ssh_access import way_to
from xenlab.site.schema import validate
from xenlab.transport.ssh import SSH

# The consent card: a person types what a step may destroy, a disk's serial or a guest's name.

GOOD, BAD = "#2f7d4f", "#b3403a"


class ConsentCard:
    """Asks for the serial of one disk, or for the names of what xenlab made; nothing else will do.

    A name is consent for what is there now: it is passed on with the UUID of the file system. A
    running cell hears no clicks: so the step has stopped, and is run again after the consent.
    """

    def __init__(self, needed: ConsentNeeded, give: Callable[[str], None]) -> None:
        self._give = give
        self._gives = needed.made or (needed.serial,)
        names = " ".join(thing.partition(" ")[0] for thing in needed.made)
        self._right = names or needed.serial
        self._wiped = names or needed.device
        self._refused = f"“{names}”" if names else f"the serial of {needed.device}"
        question = _by_name(names, needed.device) if names else _by_serial(needed.device)
        self.typed = widgets.Text(
            placeholder="what it destroys, by name" if names else "serial of the disk",
            layout=widgets.Layout(width="240px"),
        )
        self.allow = widgets.Button(
            description=f"Wipe {self._wiped}", button_style="danger", icon="eraser"
        )
        self.answer = widgets.HTML()
        self.allow.on_click(self._asked)
        row = widgets.HBox([self.typed, self.allow])
        self.widget = widgets.VBox([widgets.HTML(question), row, self.answer])
        self.widget.add_class("xenlab-consent")

    def _asked(self, _: Any) -> None:
        typed = self.typed.value.strip()
        if typed != self._right:
            self._say(BAD, f"{typed or 'nothing'} is not {self._refused}")
            return
        for consent in self._gives:
            self._give(consent)
        self.typed.disabled = self.allow.disabled = True
        self._say(GOOD, f"{self._wiped} may be wiped: run the step again")

    def _say(self, colour: str, text: str) -> None:
        self.answer.value = f'<span style="color: {colour}">{escape(text)}</span>'


def _by_serial(device: str) -> str:
    return (
        f"<b>This step wipes {escape(device)}.</b> Type the disk's serial to allow it: "
        "<code>lsblk -do NAME,SERIAL</code> on the machine shows it. "
        "The step's message says what to type for a disk without one."
    )


def _by_name(names: str, device: str) -> str:
    return (
        f"<b>This step destroys what xenlab made on {escape(device)}.</b> All that is in it is "
        f"lost. To allow that, type: <code>{escape(names)}</code>"
    )


# What a step looks like in a notebook: plain HTML that stays in the executed notebook.

# IPython's functions have no types.
_display: Callable[..., Any] = ipython_display
_shell: Callable[[], Any] = get_ipython


class NotebookSink:
    """Shows a chapter in the notebook's cells, one display a step (`events.Sink`)."""

    def __init__(self) -> None:
        self._painter = Painter(_placed)

    def on(self, event: events.Event) -> None:
        """Show it; a run of its own asks nobody for a consent."""
        match event:
            case events.Opened(name, site, host, mode):
                run = event.place
                facts = {"chapter": name, "site": site, "host": host, "mode": mode, "run": run}
                page = environment().get_template("chapter.html.j2").render(facts=facts)
                text = " · ".join(f"{key} {value}" for key, value in facts.items())
                _display({"text/html": page, "text/plain": text}, raw=True)
            case events.Consent(needed, give) if "XENLAB_RUN" not in os.environ:
                _display(ConsentCard(needed, give).widget)
        self._painter.on(event)


def _placed(card: Card) -> Paint:
    """Show a card in the cell's output; what shows it there anew."""
    card.note = f"since {datetime.now(UTC):%H:%M:%S} UTC"
    # None outside IPython
    handle: Any = _display(_bundle(card), raw=True, display_id=True)
    return lambda: handle and handle.update(_bundle(card), raw=True)


def _bundle(card: Card) -> dict[str, str]:
    plain = f"{card.status}  {card.title}  {card.duration}".rstrip()
    if card.message:
        plain += f"\n{card.message}"
    return {"text/html": card.html(), "text/plain": clean(plain)}


# What it looks like in a panel, whose buttons start steps outside of a notebook's cells.


class WidgetSink:
    """Shows steps as cards in a box of widgets, the newest on top, and at most so many."""

    def __init__(self, most: int = 200) -> None:
        self._most = most
        self._painter = Painter(self._placed)
        self.widget = widgets.VBox()
        self.widget.add_class("xenlab-cards")

    @property
    def card(self) -> Card:
        """The card of the step that was started last."""
        return self._painter.card

    def on(self, event: events.Event) -> None:
        """Show it; a chapter begins with an empty box."""
        match event:
            case events.Opened():
                self.widget.children = ()
            case events.Consent(needed, give):
                self._add(ConsentCard(needed, give).widget)
        self._painter.on(event)

    def _placed(self, card: Card) -> Paint:
        html = widgets.HTML(card.html())
        self._add(html)
        return lambda: setattr(html, "value", card.html())

    def _add(self, widget: Any) -> None:
        self.widget.children = (widget, *self.widget.children)[: self._most]


# Whether there is a notebook, and how an error looks in it.


def in_notebook() -> bool:
    """Whether this code runs in a notebook's kernel, not in a plain Python or a terminal."""
    return getattr(_shell(), "kernel", None) is not None


def show_errors_briefly() -> None:
    """Let the errors of xenlab stop a cell with their sentence instead of a traceback."""
    shell = _shell()
    if shell is not None:
        shell.set_custom_exc((XenlabError,), _sentence)


def _sentence(
    shell: Any,
    kind: type[XenlabError],
    error: XenlabError,
    trace: TracebackType | None,
    tb_offset: int | None = None,
) -> list[str]:
    lines = [clean(f"{kind.__name__}: {error}")]
    shell._showtraceback(kind, error, lines)
    return lines


# What a chapter's first cell calls: the chapter, shown where it runs.


def open_chapter(name: str, namespace: Mapping[str, Any]) -> Chapter:
    """Open a chapter for the parameters in a notebook's namespace (``globals()``).

    In a notebook its steps appear as HTML, anywhere else as lines of text. Raises BadInput before
    anything is touched, NoConnection if the host cannot be reached.
    """
    if RUNBOOK in namespace:
        runbook: Chapter = namespace[RUNBOOK]
        return runbook
    if SINK in namespace:
        return open_shown_by(name, namespace, namespace[SINK], namespace.get(STOP))
    if not in_notebook():
        return open_shown_by(name, namespace, TextSink(sys.stdout).on)
    show_errors_briefly()
    return open_shown_by(name, namespace, NotebookSink().on)


def run_connection() -> SSH | None:
    """The machine of the run that this kernel was started for, None where it was for none.

    It is connected to beforehand, beside what else there is to do.
    """
    folder = os.environ.get("XENLAB_RUN")
    record = kept_file(Path(folder), "run.json") if folder else None
    if record is None or not record.exists():
        return None
    ssh = SSH(way_to(validate(json.loads(record.read_text())["parameters"], str(record))))
    threading.Thread(target=ssh.prepare, daemon=True).start()
    return ssh


def forget_chapter() -> None:
    """Make this kernel as new for the run's next chapter; only its connection stays."""
    shell = _shell()
    connection = shell.user_ns.get(CONNECTION)
    shell.reset()
    shell.user_ns[CONNECTION] = connection


class TextSink:
    """Writes a chapter as lines of text, each step when it is finished (`events.Sink`).

    What a step printed is in the run folder, and its message says how to agree to what it asks.
    """

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._title = self._script = ""
        self._lines: list[str] = []

    def on(self, event: events.Event) -> None:
        """Take a line or more for the step; what is waited for is written at once."""
        match event:
            case events.Opened(name, site, host, mode, run):
                self._print(f"{name}: site {site}, host {host}, mode {mode}, run {run}")
            case events.Started(title):
                self._title, self._script, self._lines = title, "", []
            case events.Script(text):
                self._script = text
            case events.Differs(label, difference):
                self._add(f"{label}: {difference.summary}" if label else difference.summary)
                self._add(difference.diff)
                if difference.rows:
                    self._add_table(pd.DataFrame(list(difference.rows)))
            case events.Progress(Asked() as what):
                self._print(f"waiting for you: {what}")
            case events.Progress(Waiting() as what):
                self._print(what)
            case events.Table(frame):
                self._add_table(frame)
            case events.Picture(png):
                self._add(f"(a picture of {len(png)} bytes)")
            case events.Finished(status, seconds, message):
                if status == WOULD_CHANGE and self._script:
                    self._add(f"would run:\n{self._script}")
                self._add(message)
                step = f"{status:12} {self._title}  {duration(seconds)}"
                print(step, *self._lines, sep="\n", file=self._out)

    def _print(self, line: str) -> None:
        print(clean(line), file=self._out, flush=True)

    def _add_table(self, frame: pd.DataFrame) -> None:
        self._add("nothing to show" if frame.empty else frame.to_string(index=False))

    def _add(self, text: str) -> None:
        self._lines += [f"    {line}" for line in clean(text).rstrip("\n").splitlines()]
