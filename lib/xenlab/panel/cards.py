"""A chapter's steps as cards in a box of widgets, for what runs outside of a notebook's cells."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ipywidgets as widgets

from xenlab.card import Card
from xenlab.errors import ConsentNeeded
from xenlab.painted import PaintedStep
from xenlab.panel.consent import ConsentCard
from xenlab.view import StepView


class CardView:
    """Shows steps as cards, the newest on top (xenlab.view.View)."""

    def __init__(self, most: int = 200) -> None:
        self._most = most
        self._kept = ""
        self.widget = widgets.VBox()
        self.widget.add_class("xenlab-cards")

    def chapter(self, name: str, site: str, host: str, mode: str, run: Path) -> None:
        """Begin with an empty box."""
        self._kept = f"{run}/output"
        self.widget.children = ()

    def step_started(self, title: str) -> StepView:
        """A card on top of the others."""
        card = CardWidget(title, self._kept)
        self._add(card.widget)
        return card

    def consent(self, needed: ConsentNeeded, give: Callable[[str], None]) -> None:
        """A card to type the consent into."""
        self._add(ConsentCard(needed, give).widget)

    def _add(self, widget: Any) -> None:
        self.widget.children = (widget, *self.widget.children)[: self._most]


class CardWidget(PaintedStep):
    """One step's card as a widget."""

    def __init__(self, title: str, kept: str) -> None:
        card = Card(title, kept=kept)
        super().__init__(card)
        self.widget = widgets.HTML(card.html())

    def paint(self, card: Card) -> None:
        """Replace what the widget shows."""
        self.widget.value = card.html()
