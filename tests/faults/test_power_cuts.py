"""The power fails at three random moments of the main job, and the run goes on each time.

The machine is gone at once, as its plug was pulled; the controller lives on and sees it go. Which
moments: a seed decides, which is printed, and taken from ``XENLAB_POWER_CUT_SEED`` where that is
set.
"""

from __future__ import annotations

import ast
import os
import random
import subprocess
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import yaml
from tests.notebooks.chapters import FOLDER, code_cells
from tests.whole_lab import CHAPTERS, HOUR, ROOT, Site, statuses, wait_until, with_one_guest

from xenlab.journal import Journal, verify
from xenlab.runs import folder as runs
from xenlab_lab.lab import Lab

# each wait below has its own deadline
pytestmark = pytest.mark.timeout(4 * 3600)

GUEST = "domu1"
DONE = CHAPTERS[: CHAPTERS.index("11_action") + 1]
CUTS = 3
ATTEMPTS = 3 * CUTS
"""How often a run may be taken up again: a cut may end an attempt, and so may the boot after it."""

LAST = (11, 7)
"""The step that starts the guests, which no boot of dom0 does yet: it is never ``ok`` by then."""

LONGEST_SECONDS = 5.0
"""How long after a step's beginning the power may fail."""

Place = tuple[int, int]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """The committed lab's site with its first guest alone."""
    yield from with_one_guest("power-cuts", GUEST, tmp_path_factory.mktemp("site"))


def place(number: str) -> Place:
    """``04.10`` comes after ``04.9``."""
    chapter, step = number.split(".")[:2]
    return int(chapter), int(step)


def changing() -> list[Place]:
    """The steps of chapters 01 to 11 that change something, in their order."""
    found = []
    for chapter in DONE[1:]:
        for cell in code_cells(FOLDER / f"{chapter}.ipynb"):
            title = cell.step()
            verbs = {
                ast.unparse(call.func).removeprefix("chapter.") for call in cell.chapter_calls()
            }
            if title is not None and verbs & {"ensure", "each", "run"}:
                found.append(place(title.split()[0]))
    return [step for step in sorted(found) if step <= LAST]


class Work:
    """A run, begun and taken up again until it is done."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._known = set(site.runs.glob("*"))
        self._attempts = 0
        self._seen = 0
        site.runs.mkdir(exist_ok=True)
        self._process = self._start("run", *DONE)

    @property
    def folder(self) -> Path | None:
        """The run's folder, once there is one."""
        found = {path.parent for path in self._site.runs.glob("*/journal.jsonl")} - self._known
        return next(iter(found), None)

    def reaches(self, moment: Place) -> str:
        """Wait until a step is running that is this one or comes after it; its title."""
        deadline = time.monotonic() + 2 * HOUR
        while time.monotonic() < deadline:
            if self.folder is not None:
                fresh_ones = Journal(self.folder).records()[self._seen :]
                for record in fresh_ones:
                    if record["phase"] == "running" and place(record["step"]) >= moment:
                        self._seen += len(fresh_ones)
                        return str(record["title"])
            if self._process.poll() is not None:
                assert self._process.returncode != 0, f"the run was done before step {moment}"
                self._again()
            time.sleep(0.1)
        raise AssertionError(f"no step from {moment} on has begun: {self._words()}")

    def ends(self) -> None:
        """Go on until the run is done."""
        while self._process.wait(2 * HOUR) != 0:
            self._again()

    def _again(self) -> None:
        assert self.folder is not None, self._words()
        assert self._attempts < ATTEMPTS, self._words()
        self._process = self._start("run", "--resume", str(self.folder))

    def _start(self, *words: str) -> subprocess.Popen[bytes]:
        self._attempts += 1
        with self._log().open("wb") as log:
            return subprocess.Popen(
                self._site.argv(*words, "-f", str(self._site.parameters)),
                cwd=ROOT,
                env=self._site.environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def _log(self) -> Path:
        return self._site.runs / f"attempt-{self._attempts}.log"

    def _words(self) -> str:
        return f"attempt {self._attempts}: {self._log().read_text(errors='replace')[-3000:]}"


def powered_again(site: Site) -> None:
    """What a person does: the machine is switched on, from what it booted last, and looked at."""

    def up() -> bool:
        done = site.xenlab("lab", "up", "-f", str(site.parameters))
        # the run itself may be booting it, in 04.8
        busy = "because another command does" in done.stdout + done.stderr
        assert busy or done.returncode == 0, done.stdout + done.stderr
        return not busy

    wait_until(up, seconds=HOUR, what="the machine lets us in again")
    if Lab(site.name).status().boot == "disk":
        site.ssh("", "systemctl is-system-running --wait || :", seconds=1800)


def unlike_their_packages(site: Site, domain: str) -> list[str]:
    """The files of packages whose content is another one, but for those that people edit."""
    lines = site.ssh(domain, "dpkg --verify || :", seconds=HOUR).splitlines()
    return [line for line in lines if line.startswith("??5") and " c " not in line]


def test_the_power_fails_at_random_moments_and_the_run_comes_to_its_end(
    site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    seed = os.environ.get("XENLAB_POWER_CUT_SEED") or str(random.SystemRandom().getrandbits(32))
    dice = random.Random(seed)
    moments = sorted(dice.sample(changing(), CUTS))

    def say(text: str) -> None:
        with capsys.disabled():
            print(f"\npower cuts, XENLAB_POWER_CUT_SEED={seed}: {text}", flush=True)

    say(f"planned for {moments}")
    work = Work(site)
    for moment in moments:
        title = work.reaches(moment)
        time.sleep(dice.uniform(0, LONGEST_SECONDS))
        Lab(site.name).machine.kill()
        say(f"the power has failed in {title}")
        powered_again(site)
    work.ends()
    run = work.folder
    assert run is not None
    verify(run / "journal.jsonl")
    assert {r["chapter"] for r in Journal(run).records() if r["phase"] == "close"} == set(DONE)


def test_a_further_run_finds_nothing_to_do(site: Site) -> None:
    again = site.xenlab("run", *DONE, "-f", str(site.parameters), timeout=HOUR)
    assert again.returncode == 0, again.stdout[-3000:] + again.stderr[-3000:]
    ended = statuses(runs.find(site.runs, "last"))
    assert {step: status for step, status in ended.items() if status != "ok"} == {}
    check = site.xenlab("check", *DONE, "-f", str(site.parameters))
    assert check.returncode == 0, check.stdout[-3000:] + check.stderr[-3000:]


def test_no_file_was_cut_short(site: Site) -> None:
    answers = partial(site.answers, GUEST)
    wait_until(answers, seconds=1800, what=f"{GUEST} answers")
    image = yaml.safe_load(site.parameters.read_text())["image"]
    site.ssh("", f"cd {Path(image).parent} && sha256sum --check --quiet {Path(image).name}.sha256")
    assert {domain: unlike_their_packages(site, domain) for domain in ("dom0", GUEST)} == {
        "dom0": [],
        GUEST: [],
    }
