"""How long things take: from earlier runs on this machine, else from the figures of another one."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from importlib import resources
from pathlib import Path

from xenlab import cache
from xenlab.errors import XenlabError
from xenlab.runs import folder as runs
from xenlab.runs.folder import DONE, ChapterState
from xenlab.site.rules import builds_kernel
from xenlab.site.schema import Parameters

# The whole of what was begun: how long it has gone on, and how long it still takes.
#
# It is reckoned from what each part took before: the parts that are left, one after the other, each
# longer or shorter by as much as those that have ended, and the waiting for a kernel that is
# compiled meanwhile. A lab's chapters are slower beside that: the machine is emulated by the same
# processors.

BEGAN = "XENLAB_BEGAN"
"""The variable that says when the work began of which this process does a part."""

WAIT = {
    "03_dom0_kernel": cache.KERNELS["dom0"],
    "08_domu_kernel": cache.KERNELS["domU"],
}
"""The chapters that end no sooner than a kernel is compiled."""

SLOWER = 3.0
"""How much longer a lab's chapters take beside a compiler: seen on two processors without KVM."""

PRIOR_SECONDS = 120.0
"""How many expected seconds it takes until what was seen counts as much as what was expected."""


def began() -> float:
    """When the work began of which this process does a part: now, unless somebody says."""
    said = os.environ.get(BEGAN, "")
    return float(said) if said.isdigit() else time.time()


@dataclass
class Estimate:
    """How long all that was begun takes: its parts in their order, each one's seconds if known.

    ``kernels`` are compiled beside them, in their order, but those that are ``made`` already;
    chapters are ``slower`` then.
    """

    parts: Mapping[str, float | None]
    kernels: Mapping[str, float] = field(default_factory=dict)
    made: set[str] = field(default_factory=set)
    slower: float = 1.0
    start: float = field(default_factory=began)
    _begun: dict[str, float] = field(default_factory=dict)
    _ended: dict[str, float] = field(default_factory=dict)

    def begin(self, part: str, now: float | None = None) -> None:
        """A part has begun."""
        self._begun[part] = time.time() if now is None else now

    def end(self, part: str, now: float | None = None) -> None:
        """A part has ended."""
        self._ended[part] = time.time() if now is None else now

    def look(self) -> None:
        """See what the phases' file tells of parts and kernels."""
        for phase in cache.load_phases():
            if phase.began >= int(self.start) and (
                phase.what in self.kernels or phase.what in self.parts
            ):
                self.made.discard(phase.what)
                self.begin(phase.what, phase.began)
                if phase.ended:
                    self.end(phase.what, phase.ended)

    def remaining(self, now: float) -> float | None:
        """Seconds that are left; None where nobody knows what a part takes."""
        ready, clock, pace = self._ready(now), now, self._pace()
        compiled = max(ready.values(), default=now)
        for part, seconds in self.parts.items():
            if part in self._ended:
                continue
            if seconds is None:
                return None
            spent = self._work(part, self._begun[part], now) if part in self._begun else 0.0
            work = max(0.0, seconds * pace - spent)
            slower = self._slower(part)
            beside = min(work, max(0.0, compiled - clock) / slower)
            clock += beside * slower + work - beside
            clock = max(clock, ready.get(WAIT.get(part, ""), now))
        return clock - now

    def compiling(self, now: float) -> tuple[str, float, float] | None:
        """The kernel that is compiled now, for how many seconds, and how many it may take."""
        for name, seconds in self.kernels.items():
            if name in self._begun and name not in self._ended:
                return name, now - self._begun[name], seconds
        return None

    def done(self, now: float) -> float | None:
        """The share (0 to 1) of the whole that is done."""
        left = self.remaining(now)
        return None if left is None else (now - self.start) / max(1.0, now - self.start + left)

    def words(self, now: float) -> str:
        """How long it has gone on, and how long it still takes."""
        left = self.remaining(now)
        said = "" if left is None else f", about {about(left)} left"
        return f"{clock(now - self.start)} since the start{said}"

    def place(self) -> str:
        """Which of the parts has its turn: ``3/16``."""
        return f"{min(len(self.parts), len(self.parts.keys() & self._ended) + 1)}/{len(self.parts)}"

    def _ready(self, now: float) -> dict[str, float]:
        """When each kernel is compiled."""
        found, clock = {}, now
        for name, seconds in self.kernels.items():
            if name in self._ended or name in self.made:
                continue
            clock = found[name] = max(now, self._begun.get(name, clock) + seconds)
        return found

    def _slower(self, part: str) -> float:
        """How much longer a part takes beside a compiler; chapters are those with a number."""
        return self.slower if part[:1].isdigit() else 1.0

    def _work(self, part: str, begin: float, end: float) -> float:
        """How long a part would have taken between two times without a compiler beside it."""
        compiled = [
            (self._begun[name], self._ended.get(name, end))
            for name in self.kernels
            if name in self._begun
        ]
        return undisturbed(begin, end, compiled, self._slower(part))

    def _pace(self) -> float:
        """How much longer than expected the parts took that have ended."""
        known = [
            (self._work(part, self._begun[part], self._ended[part]), seconds)
            for part, seconds in self.parts.items()
            if seconds and part in self._begun and part in self._ended and part not in WAIT
        ]
        took, expected = (sum(column) for column in zip(*known, strict=True)) if known else (0, 0)
        return (took + PRIOR_SECONDS) / (expected + PRIOR_SECONDS)


def undisturbed(
    begin: float, end: float, compiled: Iterable[tuple[float, float]], slower: float
) -> float:
    """Seconds between two times, those in which kernels were compiled counted for less."""
    beside = sum(max(0.0, min(end, last) - max(begin, first)) for first, last in compiled)
    return end - begin - beside * (1 - 1 / slower)


def about(seconds: float) -> str:
    """A duration that nobody knows exactly: 20 s, 4 min, 1 h 20 min."""
    if seconds < 57.5:
        return f"{max(5, 5 * round(seconds / 5))} s"
    minutes = max(1, round(seconds / 60))
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"


def clock(seconds: float) -> str:
    """A duration that goes on: 0:07, 12:30, 1:02:05."""
    minutes, rest = divmod(max(0, int(seconds)), 60)
    if minutes < 60:
        return f"{minutes}:{rest:02}"
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


# How long things take: from earlier runs on this machine, else from the figures of another one.

LAST_RUNS = 12
"""How many runs are looked at, the newest ones."""


Seconds = dict[str, float]


@dataclass(frozen=True)
class Figures:
    """What phases take, and chapters that are run on an empty disk first, or again."""

    phases: Seconds
    first: Seconds
    again: Seconds


def estimate(
    site: Parameters, chapters: Sequence[str], folder: Path, phases: Sequence[str] = ()
) -> Estimate:
    """What these phases of a lab take, and then a run of these chapters, with its folder there."""
    known = figures(site)
    parts = {**_phases(phases, known), **_chapters(site, chapters, folder, known)}
    return Estimate(parts, *_kernels(site, chapters, known), _slower(site))


def figures(site: Parameters) -> Figures:
    """The figures that xenlab brings: those of chapters are a lab's, by its platform."""
    text = resources.files("xenlab").joinpath("data", "expected-seconds.json").read_text()
    found = json.loads(text)
    # without a file it is the lab that all of this was measured on
    platform = site.platform if site.knows("platform") else next(iter(found["labs"]))
    lab = found["labs"].get(platform, {}) if site.power == "lab" else {}
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
    took = {phase.what: phase.ended - phase.began for phase in cache.load_phases() if phase.ended}
    return {name: took.get(name, known.phases.get(name, 0.0)) for name in names}


def _kernels(site: Parameters, chapters: Sequence[str], known: Figures) -> tuple[Seconds, set[str]]:
    """The kernels that chapters wait for, and which of them seem to be compiled already."""
    if site.build_on != "controller" or not builds_kernel(site):
        return {}, set()
    names = [WAIT[chapter] for chapter in chapters if chapter in WAIT]
    store = cache.cache_root() / "kernel"
    flavours = {name: flavour.lower() for flavour, name in cache.KERNELS.items()}
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
        for phase in cache.load_phases()
        if phase.ended and phase.what in cache.KERNELS.values()
    ]
    for states in _earlier(site, folder):
        for chapter in states:
            if chapter.status != DONE or "skipped" in chapter.counts:
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
            if runs.pruned(run) is not None:
                continue
            if record["mode"] == "apply" and own["site"] == site.site and own["lab"] == site.lab:
                yield runs.states(run)


def _is_empty(site: Parameters) -> bool:
    """Whether a lab has not booted its disk yet."""
    if site.power != "lab":
        return False
    # what a site on other machines needs nothing of
    from xenlab_lab.lab import state_of

    with suppress(XenlabError):
        return state_of(site.lab).boot == "rescue"
    return False
