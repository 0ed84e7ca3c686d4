"""A real lab of a test's own, what a person does with it, and two ways to be rough with it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from tests.lab import second_disk

from xenlab.chapter.chapter import NOTHING
from xenlab.journal import Journal
from xenlab.site.schema import load
from xenlab_lab.lab import Lab

ROOT = Path(__file__).parents[1]
CHAPTERS = sorted(p.stem for p in (ROOT / "notebooks").glob("[01]?_*.ipynb"))
HOUR = 3600.0


@dataclass(frozen=True)
class Site:
    """The lab under test, its parameters file and its run folders."""

    parameters: Path
    runs: Path
    name: str

    @property
    def ssh_config(self) -> Path:
        """How ssh reaches dom0 and the guests."""
        return Lab(self.name).folder / "ssh_config"

    def xenlab(self, *words: str, timeout: float = HOUR) -> subprocess.CompletedProcess[str]:
        """Run the command line to its end."""
        return subprocess.run(
            self.argv(*words),
            cwd=ROOT,
            env=self.environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    def argv(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "xenlab", *words]

    def environment(self) -> dict[str, str]:
        return {**os.environ, "XENLAB_RUNS": str(self.runs), "COLUMNS": "160"}

    def ssh(self, domain: str, *command: str, seconds: float = 600) -> str:
        """What a command prints on dom0 or on a guest."""
        words = ["lab", "ssh", "--lab", self.name, *([domain] if domain else []), "--", *command]
        result = self.xenlab(*words, timeout=seconds)
        assert result.returncode == 0, result.stderr
        return result.stdout

    def answers(self, domain: str) -> bool:
        """Whether dom0 or a guest lets us in now."""
        words = ["lab", "ssh", "--lab", self.name, domain, "--", "true"]
        return self.xenlab(*words, timeout=300).returncode == 0

    def journals(self) -> list[Journal]:
        """The journals of all runs, oldest first."""
        return [Journal(p.parent) for p in sorted(self.runs.glob("*/journal.jsonl"))]

    def changed(self, **keys: object) -> Path:
        """A copy of the parameters file with some keys changed."""
        values = yaml.safe_load(self.parameters.read_text()) | keys
        path = self.parameters.parent / f"changed-{time.time_ns()}.yaml"
        path.write_text(yaml.safe_dump(values))
        return path


def said(lab: Lab, script: str, seconds: float) -> str:
    """What a script prints on the machine of a lab that no site is known of."""
    done = subprocess.run(
        lab.ssh_argv("dom0", [script]),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def fresh(parameters: str, name: str, folder: Path, **keys: Any) -> Iterator[Site]:
    """A lab called ``name``, in its rescue system, with an empty disk; at the end it is down.

    Its site is one of the committed parameters files, with some keys changed.
    """
    lab = Lab(name)
    values = yaml.safe_load((ROOT / "parameters" / f"{parameters}.yaml").read_text())
    values |= {"lab": name, "may_wipe": [lab.status().serial]}
    values["ssh"]["config"] = str(lab.folder / "ssh_config")
    file = folder / f"{parameters}.yaml"
    file.write_text(yaml.safe_dump(values | keys))
    site = Site(file, folder / "runs", name)
    lab.down(hard=True)
    lab.reset()
    # last year's disk, with the labels of the site's own: no step may write to it
    second = lab.machine.second_disk
    before = second_disk.make(second, load(file))
    up = site.xenlab("lab", "up", "-f", str(file))
    assert up.returncode == 0, up.stdout + up.stderr
    yield site
    lab.down(hard=True)
    assert second_disk.digest(second) == before, "a step wrote to another disk"


def with_one_guest(name: str, guest: str, folder: Path, **keys: Any) -> Iterator[Site]:
    """A lab called ``name`` as in `fresh`: the committed site with one of its guests alone."""
    lab = yaml.safe_load((ROOT / "parameters" / "lab.yaml").read_text())
    alone = {
        "domains": [d for d in lab["domains"] if d["name"] == guest],
        "lan_guests": [g for g in lab["lan_guests"] if g["name"] == guest],
        "autostart": [guest],
        "shared_usr": [],
        "guest_exports": [],
    }
    yield from fresh("lab", name, folder, **alone, **keys)


def statuses(run: Path) -> dict[str, str]:
    """How each step of a run ended, by its number and title."""
    finals = (r for r in Journal(run).records() if r["phase"] == "final")
    return {f"{r['step']} {r['title']}": str(r["status"]) for r in finals}


def without_record(run: Path) -> list[str]:
    """The steps of a run that recorded no command, but for those that say why they need none."""
    finals = [r for r in Journal(run).records() if r["phase"] == "final"]
    for record in finals:
        for command in record.get("commands", ()):
            assert command["phase"] in ("look", "change", "verify"), record["title"]
            # a machine that does not answer leaves a command without an exit status
            assert command["status"] is None or isinstance(command["status"], int)
            assert command["seconds"] >= 0
    return [r["title"] for r in finals if not r.get("commands") and r.get("message") != NOTHING]


def commands_of(run: Path) -> int:
    """How many commands a run gave to its machines."""
    finals = (r for r in Journal(run).records() if r["phase"] == "final")
    return sum(c.get("times", 1) for r in finals for c in r.get("commands", ()))


def killed(site: Site, step: str, *chapters: str) -> Path:
    """Begin a run, and kill everything that works for it in the middle of a step; its folder."""
    known = set(site.runs.glob("*"))
    site.runs.mkdir(exist_ok=True)
    log = (site.runs / "killed.log").open("w")
    run = subprocess.Popen(
        site.argv("run", *chapters, "-f", str(site.parameters)),
        cwd=ROOT,
        env=site.environment(),
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
    )

    def running() -> Path | None:
        assert run.poll() is None, Path(log.name).read_text()[-3000:]
        for folder in {p.parent for p in site.runs.glob("*/journal.jsonl")} - known:
            for record in Journal(folder).records():
                if record["phase"] == "running" and str(record["step"]).startswith(step):
                    return folder
        return None

    wait_until(lambda: running() is not None, seconds=HOUR, what=f"a step {step} is running")
    place = running()
    assert place is not None
    while processes := processes_of(place):
        for process in processes:
            try:
                os.kill(process, signal.SIGKILL)
            except ProcessLookupError:
                continue
        run.wait(60)
    return place


def processes_of(run: Path) -> list[int]:
    """Every process that works for a run: the command itself and the notebooks' kernels.

    Not the machine it works on, which chapter 04 started anew and which outlives the run.
    """
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            environment = (folder / "environ").read_bytes()
            words = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        ours = f"XENLAB_RUNS={run.parent}".encode() in environment.split(b"\0")
        if ours and b"qemu-system" not in words:
            found.append(int(folder.name))
    return found


def power_cycled(site: Site, guests: Sequence[str]) -> None:
    """Pull the plug and put it back: just these guests run again, and no service has failed."""
    switched_off_and_on(site)

    def back() -> bool:
        listing = site.ssh("", "xl", "list").splitlines()[2:]
        return [line.split()[0] for line in listing] == list(guests)

    wait_until(back, seconds=1800, what="exactly the selected guests run, in their order")
    for guest in guests:
        answers = partial(site.answers, guest)
        wait_until(answers, seconds=1800, what=f"{guest} answers")
    check = site.xenlab("check", "12", "-f", str(site.parameters))
    assert check.returncode == 0, check.stdout[-3000:] + check.stderr[-3000:]


def switched_off_and_on(site: Site) -> None:
    """Pull the plug and put it back."""
    assert site.xenlab("lab", "down", "--hard", "--lab", site.name).returncode == 0
    up = site.xenlab("lab", "up", "-f", str(site.parameters))
    assert up.returncode == 0, up.stdout + up.stderr


def wait_until(condition: Callable[[], bool], *, seconds: float, what: str) -> None:
    """Wait for an event, looking often; fails with its name past the deadline."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.1)
