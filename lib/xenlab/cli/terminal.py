"""The terminal of a person: whatever is printed there, only its own program colours it."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from xenlab.masking import clean


class Terminal(Console):
    """A console that shows texts of other machines without the escape sequences in them.

    One of them sets the clipboard, others the title, the keys, or what stands on the line above.
    """

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """The pieces of what is printed, each one's text made plain."""
        for piece in super().render(renderable, options):
            yield piece if piece.control else Segment(clean(piece.text), piece.style)
