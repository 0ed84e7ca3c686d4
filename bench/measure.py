"""What `make lab` takes: with nothing cached, with warm caches, and a second time; several turns.

Each turn has a clone of the committed state and a cache of its own, both empty at first. Only
Debian packages that this machine has already are not fetched again: what a turn went through stands
among its phases.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

from bench import chart, processor, timeline

from xenlab.cache import PHASES, load_phases
from xenlab.journal import Reader
from xenlab.runs import expected
from xenlab.runs import folder as runs

COLD, WARM, SECOND = "nothing cached", "caches warm, an empty disk", "a second run"
CASES = (COLD, WARM, SECOND)
UNTIL = ("11", "15")
"""The chapters whose ends count."""

IN_ALL = "in all"
HOURS = 3 * 3600.0


class Stopped(Exception):
    """The measurement cannot go on; says why."""


@dataclass(frozen=True)
class Lasted:
    """One `make lab`: when it began, its run, and the seconds of all that it went through.

    ``ends`` are seconds from its begin, ``chapters`` without the waiting for a kernel.
    """

    case: str
    began: float
    run: Path
    changed: int
    ends: dict[str, float] = field(default_factory=dict)
    phases: dict[str, float] = field(default_factory=dict)
    chapters: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Turn:
    """A folder for a clone of ``root``, the clone's cache, and what is kept of them."""

    root: Path
    folder: Path

    @property
    def clone(self) -> Path:
        """The clone."""
        return self.folder / "clone"

    @property
    def cache(self) -> Path:
        """Its cache."""
        return self.folder / "cache"

    def measure(self) -> list[Lasted]:
        """`make lab` in each case; the runs stay. Raises Stopped."""
        self.folder.mkdir(parents=True)
        self._call("git", "clone", "--quiet", str(self.root), str(self.clone), cwd=self.folder)
        found = []
        try:
            for case in CASES:
                if case == WARM:
                    self._call(".venv/bin/xenlab", "lab", "reset", "--yes")
                found.append(self._lab(case))
        finally:
            if (self.clone / ".venv/bin/xenlab").exists():
                self._call(".venv/bin/xenlab", "lab", "down", "--hard")
            shutil.rmtree(self.cache, ignore_errors=True)
            shutil.rmtree(self.clone / ".venv", ignore_errors=True)
        return found

    def accelerated(self) -> str:
        """How the lab's machine runs: "kvm" or "tcg"."""
        return str(json.loads(self._call(".venv/bin/xenlab", "lab", "status", "--json"))["accel"])

    def _lab(self, case: str) -> Lasted:
        shelf = self.clone / "runs"
        began = datetime.now(UTC).timestamp()
        with processor.Sampler(shelf / processor.BESIDE):
            self._call("make", "lab")
        ended = datetime.now(UTC).timestamp()
        # a chart looks for it beside the runs
        (shelf / PHASES).write_bytes((self.cache / PHASES).read_bytes())
        if not (self.folder / "accel").exists():
            (self.folder / "accel").write_text(self.accelerated())
        return lasted(case, runs.find(shelf, "last"), began, ended)

    def _call(self, *words: str, cwd: Path | None = None) -> str:
        """A command in the clone, with its cache; what it printed. Raises Stopped."""
        own = {"XENLAB_CACHE": str(self.cache), "PIP_NO_CACHE_DIR": "1"}
        outer = {name: value for name, value in os.environ.items() if name != "XENLAB_BEGAN"}
        with (self.folder / "log").open("a+") as log:
            start = log.seek(0, os.SEEK_END)
            done = subprocess.run(
                words,
                cwd=cwd or self.clone,
                env={**outer, **own},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                timeout=HOURS,
                check=False,
            )
            log.seek(start)
            said = log.read()
        if done.returncode:
            raise Stopped(
                f"{' '.join(words)} ended with exit status {done.returncode}: {self.folder}/log"
            )
        return said


def lasted(case: str, run: Path, began: float, ended: float) -> Lasted:
    """What a `make lab` between two times took, by its run and the phases beside it."""
    found = Lasted(case, began, run, sum(s.counts.get("changed", 0) for s in runs.states(run)))
    for record in Reader(run / "journal.jsonl").fresh():
        if record.get("phase") == "close" and str(record["chapter"])[:2] in UNTIL:
            end = datetime.fromisoformat(str(record["time"])).timestamp()
            found.ends[f"to the end of {str(record['chapter'])[:2]}"] = end - began
    found.ends[IN_ALL] = ended - began
    for state in runs.states(run):
        found.chapters[state.name] = expected.own_seconds(state)
    for phase in load_phases(run.parent):
        # a boot in a chapter is a part of that; what the shell writes down has whole seconds
        if int(began) <= phase.began and phase.ended and phase.what not in found.phases:
            found.phases[phase.what] = phase.ended - phase.began
    return found


def figures(turns: Sequence[Sequence[Lasted]], facts: Mapping[str, Any]) -> dict[str, Any]:
    """The medians of several turns, each case by itself, with the ``facts`` of where it was."""
    seconds = {}
    for case in CASES:
        each = [one for turn in turns for one in turn if one.case == case]
        seconds[case] = {
            **{
                name: {"median": round(median(values), 1), "turns": [round(v, 1) for v in values]}
                for name in each[0].ends
                if (values := [one.ends[name] for one in each])
            },
            "steps that changed something": [one.changed for one in each],
            "phases": _medians(one.phases for one in each),
            "chapters": _medians(one.chapters for one in each),
        }
    return {**facts, "turns": len(turns), "seconds": seconds}


def middle(turns: Sequence[Sequence[Lasted]], case: str) -> Lasted:
    """The one of a case that took neither the least nor the most."""
    each = [one for turn in turns for one in turn if one.case == case]
    return sorted(each, key=lambda one: one.ends[IN_ALL])[(len(each) - 1) // 2]


def machine(accel: str) -> dict[str, Any]:
    """What the machine is on which this was measured."""
    model = [line for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    memory = [line for line in _lines("/proc/meminfo") if line.startswith("MemTotal:")]
    return {
        "processors": len(os.sched_getaffinity(0)),
        "model": model[0].partition(":")[2].strip() if model else platform.machine(),
        "memory, GiB": round(int(memory[0].split()[1]) / 1024**2, 1),
        "KVM": accel == "kvm",
        "system": f"{platform.freedesktop_os_release()['PRETTY_NAME']}, Linux {platform.release()}",
    }


def keep(turns: Sequence[Sequence[Lasted]], found: Mapping[str, Any], folder: Path) -> None:
    """Write ``lab.json`` into a folder, and a chart of each case's middle turn beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "lab.json").write_text(json.dumps(found, indent=2) + "\n")
    for case in CASES:
        name = case.replace(",", "").replace(" ", "-")
        picture = chart.draw([timeline.load(middle(turns, case).run)])
        (folder / f"{name}.svg").write_text(picture + "\n")


def renew(found: Mapping[str, Any], place: Path) -> None:
    """Put medians into the file that a first `make lab` elsewhere is reckoned by."""
    known, seconds = json.loads(place.read_text()), found["seconds"]
    cold, own = seconds[COLD], found["machine"]
    known["machine"] = f"{own['processors']} processors, {'KVM' if own['KVM'] else 'no KVM'}"
    known["whole"] = round(cold[IN_ALL]["median"])
    # what the machine had already keeps the figure of another one
    known["phases"] |= {name: round(value) for name, value in cold["phases"].items()}
    known["labs"]["debian"] = {
        kind: {name: max(1, round(value)) for name, value in seconds[case]["chapters"].items()}
        for kind, case in (("first", WARM), ("again", SECOND))
    }
    place.write_text(json.dumps(known, indent=2) + "\n")


def measured(root: Path, folder: Path, times: int) -> list[list[Lasted]]:
    """Several turns, one after the other, each in a folder of its own. Raises Stopped."""
    return [Turn(root, folder / str(number)).measure() for number in range(1, times + 1)]


def facts(root: Path, folder: Path) -> dict[str, Any]:
    """When, what and where it was measured."""
    words = ["git", "-C", str(root), "rev-parse", "--short", "HEAD"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    return {
        "command": "python bench/lab.py --measure",
        "measured": datetime.now(UTC).date().isoformat(),
        "revision": done.stdout.strip(),
        "machine": machine((folder / "1" / "accel").read_text()),
    }


def _medians(each: Iterable[Mapping[str, float]]) -> dict[str, float]:
    values: dict[str, list[float]] = {}
    for one in each:
        for name, seconds in one.items():
            values.setdefault(name, []).append(seconds)
    return {name: round(median(own), 1) for name, own in values.items()}


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines()
