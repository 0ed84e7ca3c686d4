"""A fleet in JupyterLab: a line a host, its chapters as cells, from what its workers tell."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path

import ipywidgets as widgets
import pandas as pd

from xenlab import durable
from xenlab.chapter.card import COLOURS
from xenlab.errors import XenlabError
from xenlab.fleet import engine, hosts, report
from xenlab.fleet.engine import FleetRun, Settings
from xenlab.fleet.record import HostState
from xenlab.fleet.view import Board, Line, cell
from xenlab.fleet.work import HostOutcome, Told
from xenlab.masking import clean
from xenlab.panel.domains import Worker, complaint
from xenlab.runs.execute import wanted_chapters
from xenlab.runs.expected import clock
from xenlab.runs.folder import NOT_RUN
from xenlab.runs.report import status_colours
from xenlab.site.schema import Parameters

DRAW_SECONDS = 0.5
"""How often the table is drawn anew while hosts run."""


class FleetPanel:
    """Runs the chapters on all hosts of a fleet, and shows each as a line (`engine.Shows`)."""

    def __init__(self, file: Path, notebooks: Path) -> None:
        self._file = file
        self._notebooks = notebooks
        self._runs = durable.runs_folder()
        self._worker = Worker(self._show_buttons)
        self._fleet = hosts.load(file)
        # the names of the chapters are known here; which of them run is the run's own business
        self._board = self._new_board(wanted_chapters(notebooks, [], ""))
        asked: dict[str, tuple[str, Callable[[], FleetRun]]] = {
            "Plan": ("search", lambda: self._begin("plan")),
            "Run": ("play", lambda: self._begin("apply")),
            "Take up": ("step-forward", self._resume),
        }
        self.buttons = {
            name: widgets.Button(description=name, icon=icon) for name, (icon, _) in asked.items()
        }
        for name, (_, begin) in asked.items():
            self.buttons[name].on_click(
                lambda _, begin=begin: self._worker.start(lambda: self._execute(begin))
            )
        self.stop = widgets.Button(description="Stop", icon="stop", button_style="danger")
        self.stop.on_click(lambda _: self._worker.stop.set())
        self.message = widgets.HTML()
        self.table = widgets.HTML()
        self.said = widgets.HTML()
        head = widgets.HBox([*self.buttons.values(), self.stop])
        self.widget = widgets.VBox([head, self.message, self.table, self.said])
        self._show_buttons()
        self._draw()

    def wait(self, seconds: float) -> bool:
        """Wait until no host runs; whether that came in time."""
        return self._worker.wait(seconds)

    def connected(self, link: str, at_once: int) -> None:
        """Say how many hosts run at a time, and where Dask shows its own view."""
        dashboard = (
            f' <a href="{escape(link)}" target="_blank">Dask’s dashboard</a>' if link else ""
        )
        self.message.value = f"{at_once} at a time.{dashboard}"

    def told(self, told: Told) -> None:
        """Take what was told of a host."""
        said = self._board.told(told)
        if told["what"] == "asked":
            self._say(said)

    def ended(self, outcome: HostOutcome) -> None:
        """A host's run has ended."""
        self._say(self._board.ended(outcome))

    def _say(self, line: str) -> None:
        self.said.value += f"<div>{escape(clean(line))}</div>"

    def _new_board(self, chapters: Sequence[Path]) -> Board:
        states = {host: HostState() for host in self._fleet.sites}
        return Board(states, [path.stem for path in chapters])

    def _begin(self, mode: str) -> FleetRun:
        self._fleet = hosts.load(self._file)
        chapters = wanted_chapters(self._notebooks, [], "")
        self._board = self._new_board(chapters)
        return engine.begin(self._fleet, self._runs, mode, chapters, _no_console)

    def _resume(self) -> FleetRun:
        self._fleet = hosts.load(self._file)
        run = engine.resume(self._fleet, self._runs, _no_console)
        self._board = Board(run.record.hosts, run.record.facts["chapters"])
        return run

    def _execute(self, begin: Callable[[], FleetRun]) -> None:
        self.message.value = self.said.value = ""
        over = threading.Event()
        drawing = threading.Thread(target=self._keep_drawing, args=(over,), daemon=True)
        drawing.start()
        try:
            run = begin()
            _, problem = engine.execute(run, Settings(), self, self._worker.stop)
            self._say(problem or "all hosts are done")
            if any(state.run for state in run.record.hosts.values()):
                self._say(f"report: {report.write(run.record)}")
        except XenlabError as error:
            self.message.value = complaint(str(error))
        finally:
            over.set()
            drawing.join()
            self._draw()

    def _keep_drawing(self, over: threading.Event) -> None:
        while not over.wait(DRAW_SECONDS):
            self._draw()

    def _draw(self) -> None:
        self.table.value = drawn(self._board)

    def _show_buttons(self) -> None:
        for button in self.buttons.values():
            button.disabled = self._worker.busy
        self.stop.disabled = not self._worker.busy


def drawn(board: Board) -> str:
    """The hosts of a board as an HTML table, and how many there are of each status."""
    colours = status_colours()

    def coloured(text: str, status: str) -> str:
        colour = colours.get(status, COLOURS["unknown"])
        return f'<span style="color: {colour}; font-weight: 600">{escape(clean(text))}</span>'

    def row(host: str, line: Line) -> str:
        signs = (line.cells.get(name, cell(NOT_RUN, 0)) for name in board.chapters)
        cells = [escape(host), *(coloured(*sign) for sign in signs)]
        cells += [clock(line.took), coloured(line.text, line.status)]
        return "<tr>" + "".join(f"<td>{each}</td>" for each in cells) + "</tr>"

    titles = ["host", *(name.partition("_")[0] for name in board.chapters), "time", ""]
    head = "".join(f"<th>{escape(title)}</th>" for title in titles)
    rows = "".join(row(host, line) for host, line in board.lines().items())
    style = "border-spacing: 0.6em 0.1em; border-collapse: separate"
    table = f'<table style="{style}"><tr>{head}</tr>{rows}</table>'
    return f"{table}<div>{escape(board.counts())}</div>"


def _no_console(site: Parameters, folder: Path) -> None:
    """What a lab's console showed is kept by `xenlab fleet run` alone."""


def open_fleet(file: str) -> widgets.VBox:
    """The hosts of a fleet's file, as a cell's last value. Raises BadInput."""
    return FleetPanel(Path(file).expanduser(), Path()).widget


def fleet_history(file: str) -> pd.DataFrame:
    """All steps of all runs of a fleet that are here, with the columns of `report.HISTORY`."""
    return report.history(durable.runs_folder(), hosts.load(Path(file).expanduser()).name)
