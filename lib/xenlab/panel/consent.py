"""The consent card: a person types a disk's serial, and the step may wipe that disk."""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from typing import Any

import ipywidgets as widgets

GOOD, BAD = "#2f7d4f", "#b3403a"


class ConsentCard:
    """Asks for the serial of one disk; the right one, and nothing else, is passed on.

    A running cell hears no clicks: so the step has stopped, and is run again after the consent.
    """

    def __init__(self, device: str, serial: str, give: Callable[[str], None]) -> None:
        self._device = device
        self._serial = serial
        self._give = give
        self.serial = widgets.Text(
            placeholder="serial of the disk", layout=widgets.Layout(width="240px")
        )
        self.allow = widgets.Button(
            description=f"Wipe {device}", button_style="danger", icon="eraser"
        )
        self.answer = widgets.HTML()
        self.allow.on_click(self._asked)
        question = widgets.HTML(
            f"<b>This step wipes {escape(device)}.</b> Type the disk's serial to allow it: "
            "<code>lsblk -do NAME,SERIAL</code> on the machine shows it. "
            "The step's message says what to type for a disk without one."
        )
        row = widgets.HBox([self.serial, self.allow])
        self.widget = widgets.VBox([question, row, self.answer])
        self.widget.add_class("xenlab-consent")

    def _asked(self, _: Any) -> None:
        typed = self.serial.value.strip()
        if typed != self._serial:
            self._say(BAD, f"{typed or 'nothing'} is not the serial of {self._device}")
            return
        self._give(typed)
        self.serial.disabled = self.allow.disabled = True
        self._say(GOOD, f"{self._device} may be wiped: run the step again")

    def _say(self, colour: str, text: str) -> None:
        self.answer.value = f'<span style="color: {colour}">{escape(text)}</span>'
