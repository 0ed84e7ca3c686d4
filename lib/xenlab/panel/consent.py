"""The consent card: a person types what a step may destroy, a disk's serial or a guest's name."""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from typing import Any

import ipywidgets as widgets

from xenlab.errors import ConsentNeeded

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
