"""What a monitor reads of the runs: Prometheus' text format, version 0.0.4, from their folders."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from xenlab.errors import XenlabError
from xenlab.runs import folder as runs
from xenlab.runs.folder import DONE, ChapterState
from xenlab.runs.notify import drifted

HELP = {
    "xenlab_run_active": "Whether a run goes on.",
    "xenlab_last_run_timestamp_seconds": "When the last run that is over began.",
    "xenlab_last_run_seconds": "How long its chapters took.",
    "xenlab_last_run_success": "Whether all its chapters were done.",
    "xenlab_last_run_steps": "How its steps ended.",
    "xenlab_last_success_timestamp_seconds": "When the last run that was done began.",
    "xenlab_drift_steps": "Steps that the last check, or plan, would change.",
}
"""What is measured; each is a gauge, by the site, and by the mode where it is a run's."""

Labels = Mapping[str, str]


@dataclass(frozen=True)
class _Run:
    """A run that is over, or goes on."""

    site: str
    mode: str
    began: float
    chapters: Sequence[ChapterState]
    active: bool

    @property
    def done(self) -> bool:
        """Whether all its chapters are."""
        return bool(self.chapters) and all(each.status == DONE for each in self.chapters)


def text(folder: Path) -> str:
    """The metrics of all runs of a folder; a run that cannot be read tells nothing."""
    found: dict[str, list[str]] = {name: [] for name in HELP}
    for name, labels, value in _samples(folder):
        found[name].append(f"{name}{{{_labels(labels)}}} {value:.17g}")
    lines = [
        line
        for name, samples in found.items()
        if samples
        for line in (f"# HELP {name} {HELP[name]}", f"# TYPE {name} gauge", *samples)
    ]
    return "".join(f"{line}\n" for line in lines)


def _samples(folder: Path) -> Iterator[tuple[str, Labels, float]]:
    """Each measured value; the newest runs are read, as many as are needed."""
    last: set[tuple[str, str]] = set()
    succeeded: set[tuple[str, str]] = set()
    checked: set[str] = set()
    active: dict[str, bool] = {}
    for path in reversed(runs.every(folder)):
        run = _read(path)
        if run is None:
            continue
        key, labels = (run.site, run.mode), {"site": run.site, "mode": run.mode}
        active[run.site] = active.get(run.site, False) or run.active
        if run.active:
            continue
        if key not in last:
            last.add(key)
            yield from _of_last(run, labels)
        if run.done and key not in succeeded:
            succeeded.add(key)
            yield "xenlab_last_success_timestamp_seconds", labels, run.began
        looked = any(each.steps for each in run.chapters)
        if run.mode == "plan" and run.done and looked and run.site not in checked:
            checked.add(run.site)
            yield "xenlab_drift_steps", {"site": run.site}, len(drifted(run.chapters))
    for site, goes_on in active.items():
        yield "xenlab_run_active", {"site": site}, goes_on


def _of_last(run: _Run, labels: Labels) -> Iterator[tuple[str, Labels, float]]:
    yield "xenlab_last_run_timestamp_seconds", labels, run.began
    yield "xenlab_last_run_seconds", labels, sum(each.seconds for each in run.chapters)
    yield "xenlab_last_run_success", labels, run.done
    counts: dict[str, int] = {}
    for chapter in run.chapters:
        for status, number in chapter.counts.items():
            counts[status] = counts.get(status, 0) + number
    for status, number in counts.items():
        yield "xenlab_last_run_steps", {**labels, "status": status}, number


def _read(path: Path) -> _Run | None:
    with suppress(XenlabError, OSError, KeyError, ValueError):
        record: Mapping[str, Any] = runs.read(path)
        began = datetime.fromisoformat(record["started"]).timestamp()
        return _Run(record["site"], record["mode"], began, runs.states(path), runs.locked(path))
    return None


def _labels(labels: Labels) -> str:
    escapes = {"\\": r"\\", '"': r"\"", "\n": r"\n"}
    return ",".join(
        f'{name}="{"".join(escapes.get(c, c) for c in value)}"' for name, value in labels.items()
    )
