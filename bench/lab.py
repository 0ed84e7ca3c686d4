"""What xenlab costs: chapters 00 to 11 on a fresh lab, beside the same commands as a plain script.

    python bench/lab.py [--check] [--in-order] [--recording FOLDER]
    python bench/lab.py --measure [--turns 3]
    python bench/lab.py --chart RUN [RUN …] > run.svg

`xenlab run` takes a lab of its own from an empty disk to running guests, and what it sends to the
machines is recorded. Then the lab gets an empty disk again, and the same commands run as one shell
script over OpenSSH with ControlMaster: side by side where xenlab had several at once, or, with
``--in-order``, one after another as people write scripts. Kernels come from the cache both times.
A machine's speed changes by the hour, so xenlab has its turn before and after the script; its time
is the mean of the two. The promise that ``--check`` holds xenlab to (exit status 1 otherwise): at
most 1.15 times the script's time.

``--measure`` times `make lab` instead, in a clone and a cache of its own: see `bench.measure`. The
medians and a chart go into docs/figures, and are what a first `make lab` elsewhere is reckoned by.

``--chart`` draws runs, each named as for `xenlab show`: chapters, steps, kernels and boots on one
time axis, and how busy the processors were, where this program has written that down beside them.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from statistics import fmean

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "lib"), str(ROOT)]

from bench import chart, events, measure, processor, replay, timeline  # noqa: E402
from bench.measure import Stopped  # noqa: E402

from xenlab.errors import XenlabError  # noqa: E402
from xenlab.journal import Journal  # noqa: E402
from xenlab.runs import folder as runs  # noqa: E402
from xenlab_lab import stage  # noqa: E402
from xenlab_lab.lab import Lab  # noqa: E402

LIMIT = 1.15
TURNS = ("before", "after")
"""When xenlab runs: before the plain script, and after it."""

CHAPTERS = [f"{number:02}" for number in range(12)]
HOURS = 3 * 3600.0


@dataclass
class Measured:
    """Seconds of each chapter and in all; ``rest`` is what followed the last chapter's end."""

    chapters: dict[str, float] = field(default_factory=dict)
    rest: float = 0.0

    @property
    def seconds(self) -> float:
        """The whole."""
        return sum(self.chapters.values()) + self.rest


@dataclass(frozen=True)
class Bench:
    """One measurement: the lab's name, the parameters file, the folder of all that is kept."""

    name: str
    file: Path
    folder: Path
    in_order: bool = False

    def fresh_lab(self) -> Path:
        """A lab with an empty disk that runs its rescue system; returns its ssh_config."""
        for words in (["reset", "--yes"], ["up", "-f", str(self.file)]):
            self._xenlab("lab", *words, "--lab", self.name)
        return Lab(self.name).status().ssh_config

    def end_lab(self) -> None:
        """Take the lab down; its files stay in the cache."""
        self._xenlab("lab", "down", "--hard", "--lab", self.name)

    def xenlab_run(self, turn: str) -> None:
        """Let xenlab run the chapters, recorded; its times stay in the turn's folder."""
        place = self.folder / turn
        start = time.time()
        words = ["run", *CHAPTERS, "-f", str(self.file), "--lab", self.name]
        traced = {
            "XENLAB_TRACE": str(place / "trace"),
            "PYTHONPATH": os.pathsep.join([str(ROOT / "bench/trace"), _python_path()]),
        }
        with processor.Sampler(place / "runs" / processor.BESIDE):
            self._xenlab(*words, "--runs", str(place / "runs"), environment=traced)
        (place / "span").write_text(f"{start} {time.time()}\n")

    def ours(self, turn: str) -> Measured:
        """The times of a run of xenlab; raises Stopped where it had to compile a kernel."""
        folder = runs.find(self.folder / turn / "runs", "last")
        for state in runs.states(folder):
            if any("Compile" in step.title and step.status == "changed" for step in state.steps):
                raise Stopped(f"{state.name} compiled a kernel; the cache has it now: start again")
        begin, end = (float(word) for word in (self.folder / turn / "span").read_text().split())
        found = Measured()
        for name, closed in self.ends(turn):
            found.chapters[name] = closed - begin
            begin = closed
        found.rest = end - begin
        return found

    def ends(self, turn: str) -> list[tuple[str, float]]:
        """When each chapter of a run of xenlab ended."""
        records = Journal(runs.find(self.folder / turn / "runs", "last")).records()
        return [
            (str(r["chapter"]), datetime.fromisoformat(str(r["time"])).timestamp())
            for r in records
            if r.get("phase") == "close"
        ]

    def plain_script(self) -> Path:
        """Make the plain script of what the first turn recorded."""
        trace = self.folder / TURNS[0] / "trace"
        chapters = events.by_chapter(events.load(trace), self.ends(TURNS[0]))
        return replay.write(chapters, trace, self.folder, in_order=self.in_order)

    def plain_run(self, script: Path, ssh_config: Path) -> Measured:
        """Run the plain script; raises Stopped where a command does not end as recorded."""
        done = subprocess.run(
            ["/bin/sh", str(script), str(ssh_config)],
            cwd=ROOT / "notebooks",
            env={**os.environ, "PYTHONPATH": _python_path()},
            stdin=subprocess.DEVNULL,
            timeout=HOURS,
        )
        if done.returncode:
            raise Stopped(f"{script} stopped with exit status {done.returncode}")
        lines = [line.split() for line in script.with_name("times").read_text().splitlines()]
        found = Measured()
        for (name, begin), (_, end) in pairwise(lines):
            found.chapters[name] = float(end) - float(begin)
        return found

    def _xenlab(self, *words: str, environment: dict[str, str] | None = None) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "xenlab", *words],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": _python_path(), **(environment or {})},
            stdin=subprocess.DEVNULL,
            timeout=HOURS,
        )
        if done.returncode:
            raise Stopped(f"xenlab {' '.join(words)} ended with exit status {done.returncode}")


def _python_path() -> str:
    return os.pathsep.join([str(ROOT / "lib"), *filter(None, [os.environ.get("PYTHONPATH")])])


def mean(turns: Sequence[Measured]) -> Measured:
    """The mean of several runs."""
    chapters = {name: fmean(turn.chapters[name] for turn in turns) for name in turns[0].chapters}
    return Measured(chapters, fmean(turn.rest for turn in turns))


def show(ours: Measured, plain: Measured) -> bool:
    """Print the table; whether the promise is kept."""
    table = Table(title="from an empty disk to running guests, seconds")
    table.add_column("chapter")
    for name in ("xenlab", "plain script", "ratio"):
        table.add_column(name, justify="right")
    for name, seconds in ours.chapters.items():
        other = plain.chapters[name]
        table.add_row(name, f"{seconds:.1f}", f"{other:.1f}", f"{seconds / other:.2f} x")
    table.add_row("report", f"{ours.rest:.1f}", "-", "", end_section=True)
    ratio = ours.seconds / plain.seconds
    cells = ("in all", f"{ours.seconds:.1f}", f"{plain.seconds:.1f}", f"{ratio:.2f} x")
    table.add_row(*cells, style="bold")
    console = Console()
    console.print(table)
    verdict = "kept" if ratio <= LIMIT else "BROKEN"
    console.print(f"promise {verdict}: {ratio:.2f} x, at most {LIMIT} x")
    return ratio <= LIMIT


def measurement(turns: int) -> int:
    """Measure `make lab` and keep the figures; the exit status."""
    folder = Path(tempfile.mkdtemp(prefix="xenlab-measure-"))
    print(f"runs and logs: {folder}", file=sys.stderr)
    try:
        found = measure.measured(ROOT, folder, turns)
    except Stopped as error:
        print(error, file=sys.stderr)
        return 2
    figures = measure.figures(found, measure.facts(ROOT, folder))
    measure.keep(found, figures, ROOT / "docs/figures")
    measure.renew(figures, ROOT / "lib/xenlab/data/expected-seconds.json")
    for case, seconds in figures["seconds"].items():
        said = (f"{k} {v['median']:.0f} s" for k, v in seconds.items() if "median" in v)
        print(f"{case}: {', '.join(said)}")
    return 0


def charts(names: Sequence[str]) -> int:
    """Print runs as one picture; the exit status."""
    try:
        folders = [runs.find(ROOT / "runs", name) for name in names]
        print(chart.draw([timeline.load(folder) for folder in folders]))
    except XenlabError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true", help="exit 1 if the promise is broken")
    parser.add_argument("--in-order", action="store_true", help="one command after another")
    parser.add_argument("--name", default="bench", help="the lab's name (default: bench)")
    parser.add_argument("-f", "--file", type=Path, default=ROOT / "parameters/lab.yaml")
    parser.add_argument("--recording", type=Path, help="only replay what lies in this folder")
    parser.add_argument("--chart", nargs="+", metavar="RUN", help="draw these runs")
    parser.add_argument("--measure", action="store_true", help="time `make lab`")
    parser.add_argument("--turns", type=int, default=3, help="how many times (default: 3)")
    options = parser.parse_args()
    if options.measure:
        return measurement(options.turns)
    if options.chart:
        return charts(options.chart)
    folder = options.recording or Path(tempfile.mkdtemp(prefix="xenlab-bench-"))
    bench = Bench(
        options.name, options.file.absolute(), folder.absolute(), in_order=options.in_order
    )
    print(f"recording, script and times: {bench.folder}", file=sys.stderr)
    try:
        # the stage is warm in both, as the kernels are
        stage.stage()
        try:
            if options.recording is None:
                bench.fresh_lab()
                bench.xenlab_run(TURNS[0])
            bench.ours(TURNS[0])
            plain = bench.plain_run(bench.plain_script(), bench.fresh_lab())
            if options.recording is None:
                bench.fresh_lab()
                bench.xenlab_run(TURNS[1])
            done = [turn for turn in TURNS if (bench.folder / turn / "span").exists()]
            turns = [bench.ours(turn) for turn in done]
        finally:
            bench.end_lab()
    except (Stopped, XenlabError) as error:
        print(error, file=sys.stderr)
        return 2
    for turn in turns:
        print(f"xenlab: {turn.seconds:.1f} s", file=sys.stderr)
    return 0 if show(mean(turns), plain) or not options.check else 1


if __name__ == "__main__":
    sys.exit(main())
