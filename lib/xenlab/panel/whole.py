"""The panel: chapters, domains and parameters on three tabs."""

from __future__ import annotations

from pathlib import Path

import ipywidgets as widgets

from xenlab.panel.chapters import ChapterPanel
from xenlab.panel.domains import DomainPanel
from xenlab.panel.form import ParametersForm
from xenlab.panel.site import SiteFile


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


def open_panel(file: str, notebooks: str = ".") -> widgets.Tab:
    """The panel for a parameters file, as a cell's last value. Raises BadInput."""
    return Panel(Path(file).expanduser(), Path(notebooks)).widget
