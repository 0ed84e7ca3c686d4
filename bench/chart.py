"""Runs as charts, in SVG: what was done when, and how busy the processors were meanwhile."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.processor import Sample
from bench.timeline import Lane, Run, Span
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from xenlab.chapter.card import duration

WIDTH, LABELS, RIGHT = 1180, 220, 28
"""The picture's width, and how much of it is left and right of the time axis."""

ROW, HEAD, FOOT = 19, 58, 30
"""The height of a row, of what stands above a run's first row, and of what lies below its last."""

CURVE = 64
LETTER = 6.0
"""The height of the processors' curve; the mean width of a letter."""

GAP = 0.7
NAMED = 3
SHORTEST = 0.012
"""The gap between two bars; how many steps of a chapter are named, and which share of the run each
must have."""

TICKS = (1, 2, 5, 10, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 14400)
MOST_TICKS = 13

GOOD = {"changed": "changed", "ok": "ok", "": "changed"}
"""The classes of bars by a step's status; any other one is a failure."""


@dataclass(frozen=True)
class Bar:
    """A bar of a row: from where, how wide, its class, and what a pointer on it shows."""

    x: float
    width: float
    kind: str
    says: str


@dataclass(frozen=True)
class Row:
    """A row: its name, its bars, and words right of them, or left where there is more room."""

    y: float
    name: str
    lasted: str
    bars: list[Bar]
    words: str
    words_x: float
    anchor: str


@dataclass(frozen=True)
class Curve:
    """The processors' curves: outlines from the first sample to the last."""

    y: float
    nice: str
    busy: str


@dataclass(frozen=True)
class Panel:
    """One run's part of the picture."""

    top: float
    title: str
    rows: list[Row]
    curve: Curve | None
    ticks: list[tuple[float, str]]
    bottom: float


def draw(runs: Sequence[Run]) -> str:
    """The picture of some runs, one below the other, a second as wide in each."""
    scale = (WIDTH - LABELS - RIGHT) / max(1.0, *(run.seconds for run in runs))
    panels: list[Panel] = []
    for run in runs:
        panels.append(_panel(run, scale, panels[-1].bottom if panels else 0.0))
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("chart.svg.j2").render(
        panels=panels,
        width=WIDTH,
        height=round(panels[-1].bottom),
        left=LABELS,
        right=WIDTH - RIGHT,
        row=ROW,
        curve=CURVE,
        summary=" ".join(_summary(run) for run in runs),
    )


def _panel(run: Run, scale: float, top: float) -> Panel:
    rows = [
        _row(lane, run, scale, top + HEAD + number * ROW) for number, lane in enumerate(run.lanes)
    ]
    below = top + HEAD + len(rows) * ROW
    curve = _curve(run, scale, below + 14) if len(run.samples) > 1 else None
    end = curve.y + CURVE if curve else below
    title = f"{run.name}: {duration(run.seconds)}, {run.steps} steps"
    return Panel(top, title, rows, curve, _ticks(run.seconds, scale), end + FOOT)


def _row(lane: Lane, run: Run, scale: float, y: float) -> Row:
    def bar(span: Span, kind: str) -> Bar:
        x = LABELS + (span.begin - run.begin) * scale
        says = f"{span.name}: {duration(span.seconds)}{', ' if span.status else ''}{span.status}"
        width = span.seconds * scale
        # a gap tells two steps apart, where they are wide enough for one
        return Bar(
            round(x, 1), round(width - GAP if width > 3 * GAP else max(GAP, width), 1), kind, says
        )

    bars = [bar(span, "whole" if lane.parts else "other") for span in lane.whole]
    bars += [bar(span, GOOD.get(span.status, "bad")) for span in lane.parts]
    first, last = min(bar.x for bar in bars), max(bar.x + bar.width for bar in bars)
    before, after = first - LABELS, WIDTH - RIGHT - last
    lasted = _clock(sum(span.seconds for span in lane.whole))
    words = _words(lane, run, (max(before, after) - 12) / LETTER)
    if after >= len(words) * LETTER + 12 or after >= before:
        return Row(y, lane.name, lasted, bars, words, last + 6, "start")
    return Row(y, lane.name, lasted, bars, words, first - 6, "end")


def _words(lane: Lane, run: Run, letters: float) -> str:
    """The longest parts of a row, with their titles where these have room."""
    least = SHORTEST * (run.seconds)
    long = sorted(lane.parts, key=lambda span: -span.seconds)[:NAMED]
    long = [span for span in long if span.seconds >= least]
    titled = [f"{span.name} {_clock(span.seconds)}" for span in long]
    bare = [f"{span.name.partition(' ')[0]} {_clock(span.seconds)}" for span in long]
    candidates = [
        ", ".join([*titled[:with_title], *bare[with_title:named]])
        for named in range(len(long), 0, -1)
        for with_title in range(named, -1, -1)
    ]
    return next((words for words in candidates if len(words) <= letters), "")


def _curve(run: Run, scale: float, y: float) -> Curve:
    def outline(part: str) -> str:
        def height(sample: Sample) -> float:
            share = sample.nice if part == "nice" else sample.nice + sample.busy
            return y + CURVE * (1 - min(1.0, share))

        points = [
            f"{LABELS + (sample.time - run.begin) * scale:.1f},{height(sample):.1f}"
            for sample in run.samples
        ]
        first, last = points[0].partition(",")[0], points[-1].partition(",")[0]
        base = f"{y + CURVE:.1f}"
        return " ".join([f"{first},{base}", *points, f"{last},{base}"])

    return Curve(y, outline("nice"), outline("busy"))


def _ticks(seconds: float, scale: float) -> list[tuple[float, str]]:
    widest = (WIDTH - LABELS - RIGHT) / scale
    step = next((tick for tick in TICKS if widest / tick <= MOST_TICKS), TICKS[-1])
    return [
        (round(LABELS + number * step * scale, 1), _clock(number * step))
        for number in range(int(seconds // step) + 1)
    ]


def _clock(seconds: float) -> str:
    """Minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02}"


def _summary(run: Run) -> str:
    """The picture in words."""
    longest = sorted((p for lane in run.lanes for p in lane.parts), key=lambda span: -span.seconds)
    named = ", ".join(f"{span.name} ({duration(span.seconds)})" for span in longest[:5])
    return f"{run.name} took {duration(run.seconds)}; its longest steps: {named}."
