"""What there is to draw of a run: its chapters, steps, kernels and boots, each with its times.

It is read from the run's journal. `xenlab.cache` tells what `make lab` did before and beside
it, `bench.processor` how busy the machine was: both stand beside the run's folder, if anywhere.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from bench import processor
from bench.processor import Sample

from xenlab import cache
from xenlab.errors import BadInput
from xenlab.journal import Reader

DOM0 = "dom0"
GAP_SECONDS = 60.0
"""What ended longer before the next thing began did not lead up to it."""

_GUEST = re.compile(r"^set -- .*/run/xenlab/(\S+)\.(?:console|rebooting)\b", re.MULTILINE)
"""How a command names the guest whose boot it follows."""


@dataclass(frozen=True)
class Span:
    """Something that lasted, between two times in seconds since 1970."""

    name: str
    begin: float
    end: float
    status: str = ""

    @property
    def seconds(self) -> float:
        """How long."""
        return self.end - self.begin


@dataclass
class Lane:
    """A row of the chart: its name, what it shows as a whole, and the parts of that."""

    name: str
    whole: list[Span] = field(default_factory=list)
    parts: list[Span] = field(default_factory=list)


@dataclass(frozen=True)
class Run:
    """What there is to draw of a run."""

    name: str
    begin: float
    end: float
    steps: int
    lanes: list[Lane]
    samples: list[Sample]

    @property
    def seconds(self) -> float:
        """The whole, what led up to the run included."""
        return self.end - self.begin


def load(folder: Path) -> Run:
    """A run's journal, and what stands beside its folder."""
    records = Reader(folder / "journal.jsonl").fresh()
    if not records:
        raise BadInput(f"cannot draw {folder}: its journal holds no record")
    steps = list(_steps(records))
    chapters = _chapters(records, steps)
    begin, end = _time(records[0]), _time(records[-1])
    before, kernels = _beside(cache.load_phases(folder.parent), begin, end)
    boots = [Lane("boots of dom0", _boots(records)), Lane("boots of guests", _guests(records))]
    lanes = [*before, *chapters, *kernels, *(lane for lane in boots if lane.whole)]
    begin = min([begin, *(span.begin for lane in lanes for span in lane.whole)])
    samples = processor.load(folder.parent / processor.BESIDE)
    own = [sample for sample in samples if begin <= sample.time <= end]
    return Run(folder.name, begin, end, len(steps), lanes, own)


def _steps(records: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, Span]]:
    for record in records:
        if record.get("phase") == "final":
            yield str(record.get("chapter")), _span(record)


def _chapters(
    records: Sequence[Mapping[str, Any]], steps: Sequence[tuple[str, Span]]
) -> list[Lane]:
    """A lane a chapter; one that was opened again has two spans."""
    lanes: dict[str, Lane] = {}
    for record in records:
        name, phase, now = str(record.get("chapter", "")), record.get("phase"), _time(record)
        if phase == "open":
            lanes.setdefault(name, Lane(name.replace("_", " "))).whole.append(Span(name, now, now))
        elif name in lanes:
            lanes[name].whole[-1] = replace(lanes[name].whole[-1], end=now)
    for name, span in steps:
        if name in lanes:
            lanes[name].parts.append(span)
            first = lanes[name].whole[0]
            # opening a chapter is a step: it begins before the record that says it is open
            lanes[name].whole[0] = replace(first, begin=min(first.begin, span.begin))
    return list(lanes.values())


def _beside(
    found: Sequence[cache.Phase], begin: float, end: float
) -> tuple[list[Lane], list[Lane]]:
    """Lanes of what led up to a run without a gap, and of the kernels built meanwhile."""
    spans = [Span(phase.what, phase.began, phase.ended) for phase in found if phase.ended]
    names = cache.KERNELS.values()
    kernels = [span for span in spans if span.name in names and begin < span.end <= end]
    before: list[Span] = []
    for span in sorted(spans, key=lambda span: span.end, reverse=True):
        if span.name not in names and begin - GAP_SECONDS < span.end <= begin + 1:
            before.insert(0, span)
            begin = min(begin, span.begin)
    return [Lane(span.name, [span]) for span in before], [Lane(s.name, [s]) for s in kernels]


def _boots(records: Sequence[Mapping[str, Any]]) -> list[Span]:
    """The steps in which the machine got another boot id."""
    found, last = [], ""
    for record in records:
        now = str(record.get("boot_id") or "")
        if record.get("phase") == "final" and str(record.get("host")).partition(":")[0] == DOM0:
            if last and now and now != last:
                found.append(_span(record))
            last = now or last
    return found


def _guests(records: Sequence[Mapping[str, Any]]) -> list[Span]:
    """The steps that boot guests, and which."""
    found = []
    for record in records:
        if record.get("phase") == "final":
            commands = [c for c in record.get("commands") or () if c["phase"] == "change"]
            names = [name for c in commands for name in _GUEST.findall(str(c["command"]))]
            if names:
                span = _span(record)
                title = f"{span.name}: {', '.join(dict.fromkeys(names))}"
                found.append(replace(span, name=title))
    return found


def _span(record: Mapping[str, Any]) -> Span:
    end, seconds = _time(record), float(record.get("seconds", 0))
    return Span(str(record.get("title", "")), end - seconds, end, str(record.get("status", "")))


def _time(record: Mapping[str, Any]) -> float:
    return datetime.fromisoformat(str(record["time"])).timestamp()
