"""Runs as pictures, drawn from the tables of `xenlab.history`."""

from __future__ import annotations

import io

import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

LAST_RUNS = 12
"""How many runs a picture shows, the newest ones."""

SLOWEST = 15
"""How many steps a picture shows, the slowest ones."""

_INK, _BAR = "#333333", "#3b6ea5"


class Picture(Figure):
    """A figure that a notebook shows where it is a cell's last value."""

    def _repr_png_(self) -> bytes:
        data = io.BytesIO()
        self.savefig(data, format="png", dpi=130, bbox_inches="tight")
        return data.getvalue()


def chapter_times(steps: pd.DataFrame) -> Picture:
    """The minutes of each chapter, run by run; ``steps`` as `xenlab.history.steps` gives them."""
    minutes = steps.pivot_table(
        index="run", columns="chapter", values="seconds", aggfunc="sum", fill_value=0.0
    ).tail(LAST_RUNS)
    figure = Picture(figsize=(8.6, 1.4 + 0.32 * len(minutes)), layout="constrained")
    axes = _plain(figure, "minutes in steps")
    left = pd.Series(0.0, index=minutes.index)
    colours = colormaps["viridis"].resampled(max(2, len(minutes.columns)))
    for number, chapter in enumerate(minutes.columns):
        widths = minutes[chapter] / 60
        axes.barh(minutes.index, widths, left=left, color=colours(number), label=chapter)
        left = left + widths
    axes.invert_yaxis()
    figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    return figure


def slowest_steps(steps: pd.DataFrame) -> Picture:
    """The steps of the newest run that took longest, in seconds."""
    newest = steps[steps["run"] == steps["run"].max()]
    slow = newest.nlargest(SLOWEST, "seconds")
    figure = Picture(figsize=(8.6, 1.0 + 0.28 * len(slow)), layout="constrained")
    axes = _plain(figure, "seconds")
    bars = axes.barh(slow["title"], slow["seconds"], color=_BAR)
    axes.bar_label(bars, fmt="%.1f", padding=3, fontsize=8, color=_INK)
    axes.invert_yaxis()
    return figure


def _plain(figure: Figure, unit: str) -> Axes:
    axes = figure.subplots()
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0, labelsize=8, labelcolor=_INK)
    axes.tick_params(axis="x", labelsize=8, labelcolor=_INK)
    axes.set_xlabel(unit, fontsize=9, color=_INK)
    return axes
