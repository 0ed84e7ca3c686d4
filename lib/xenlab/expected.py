"""How long things take: from earlier runs on this machine, else from the figures of another one."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from importlib import resources
from pathlib import Path

from xenlab import runs
from xenlab.errors import XenlabError
from xenlab.lab import cache_root, phases, state
from xenlab.parameters import Parameters
from xenlab.runs import DONE, ChapterState
from xenlab.whole import SLOWER, WAIT, Whole, undisturbed

LAST_RUNS = 12
"""How many runs are looked at, the newest ones."""


Seconds = dict[str, float]


@dataclass(frozen=True)
class Figures:
    """What phases take, and chapters that are run on an empty disk first, or again."""

    phases: Seconds
    first: Seconds
    again: Seconds


def of_run(site: Parameters, chapters: Sequence[str], folder: Path) -> Whole:
    """What a run of these chapters takes whose folder will be in ``folder``."""
    known = figures(site)
    parts = _chapters(site, chapters, folder, known)
    return Whole(parts, *_kernels(site, chapters, known), _slower(site))


def of_lab(site: Parameters, names: Sequence[str], chapters: Sequence[str], folder: Path) -> Whole:
    """What these phases of a lab take, and then a run of these chapters."""
    known = figures(site)
    parts = {**_phases(names, known), **_chapters(site, chapters, folder, known)}
    return Whole(parts, *_kernels(site, chapters, known), _slower(site))


def figures(site: Parameters) -> Figures:
    """The figures that xenlab brings: those of chapters are a lab's, by the stage it unpacks."""
    text = resources.files("xenlab").joinpath("data", "expected-seconds.json").read_text()
    found = json.loads(text)
    lab = found["labs"].get(Path(site.stage).name, {}) if site.power == "lab" else {}
    return Figures(found["phases"], lab.get("first", {}), lab.get("again", {}))


def own_seconds(
    chapter: ChapterState, compiled: Iterable[tuple[float, float]] = (), slower: float = 1.0
) -> float:
    """What a chapter took without the waiting for a kernel, and without a compiler beside it."""
    if chapter.name in WAIT:
        waited = sum(step.seconds for step in chapter.steps if "Compile" in step.title)
        return max(1.0, chapter.seconds - waited)
    if not chapter.steps:
        return chapter.seconds
    end = datetime.fromisoformat(str(chapter.steps[-1].record["time"])).timestamp()
    return undisturbed(end - chapter.seconds, end, compiled, slower)


def _slower(site: Parameters) -> float:
    """How much longer chapters take while this machine compiles: the lab is a part of it."""
    return SLOWER if site.power == "lab" else 1.0


def _phases(names: Sequence[str], known: Figures) -> Seconds:
    """The seconds of phases: what each took last, else the figure."""
    took = {phase.what: phase.ended - phase.began for phase in phases.load() if phase.ended}
    return {name: took.get(name, known.phases.get(name, 0.0)) for name in names}


def _kernels(site: Parameters, chapters: Sequence[str], known: Figures) -> tuple[Seconds, set[str]]:
    """The kernels that chapters wait for, and which of them seem to be compiled already."""
    if site.build_on != "controller":
        return {}, set()
    names = [WAIT[chapter] for chapter in chapters if chapter in WAIT]
    store = cache_root() / "kernel"
    flavours = {name: flavour.lower() for flavour, name in phases.KERNELS.items()}
    made = {name for name in names if any(store.glob(f"{flavours[name]}-*/manifest"))}
    return _phases(names, known), made


def _chapters(
    site: Parameters,
    names: Sequence[str],
    folder: Path,
    known: Figures,
) -> dict[str, float | None]:
    """The seconds of chapters, run first on this disk or again; None where nobody knows."""
    first, again = dict(known.first), dict(known.again)
    done: set[str] = set()
    compiled = [
        (phase.began, phase.ended)
        for phase in phases.load()
        if phase.ended and phase.what in phases.KERNELS.values()
    ]
    for states in _earlier(site, folder):
        for chapter in states:
            if chapter.status != DONE:
                continue
            if chapter.name.startswith("01_") and chapter.counts.get("changed"):
                # the disk was partitioned: all begins anew
                done.clear()
            (again if chapter.name in done else first)[chapter.name] = own_seconds(
                chapter, compiled, _slower(site)
            )
            done.add(chapter.name)
    if _is_empty(site):
        done.clear()
    return {name: (again if name in done else first).get(name) for name in names}


def _earlier(site: Parameters, folder: Path) -> Iterator[list[ChapterState]]:
    """The chapters of the newest runs of a site that were to change something, oldest first."""
    for run in runs.every(folder)[-LAST_RUNS:]:
        # a run that is damaged, or still being made, tells nothing
        with suppress(XenlabError, OSError, KeyError):
            record = runs.read(run)
            own = record["parameters"]
            if record["mode"] == "apply" and own["site"] == site.site and own["lab"] == site.lab:
                yield runs.states(run)


def _is_empty(site: Parameters) -> bool:
    """Whether a lab has not booted its disk yet."""
    if site.power != "lab":
        return False
    with suppress(XenlabError):
        return state.of(site.lab).boot == "rescue"
    return False
