"""Two labs side by side as a fleet, from empty disks to running guests; one of them is killed."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.whole_lab import (
    CHAPTERS,
    HOUR,
    ROOT,
    Site,
    statuses,
    switched_off_and_on,
    wait_until,
    with_one_guest,
)

from xenlab.journal import Journal
from xenlab.runs import audit

pytestmark = pytest.mark.timeout(3 * HOUR)

DONE = CHAPTERS[: CHAPTERS.index("11_action") + 1]
LABS = ("fleet1", "fleet2")
GUEST = "domu1"
DIES_IN = "05"
"""By then it has booted its own disk."""


class Pair:
    """Two labs, and the file of their fleet: each host is one of the sites."""

    def __init__(self, folder: Path, sites: list[Site]) -> None:
        self.sites = sites
        self.file = folder / "fleet.yaml"
        first, second = (yaml.safe_load(site.parameters.read_text()) for site in sites)
        hosts = {site.name: _differing(first, site) for site in sites}
        (folder / "base.yaml").write_text(yaml.safe_dump(first))
        values = {"fleet": "labs", "base": "base.yaml", "hosts": hosts}
        self.file.write_text(yaml.safe_dump(values))
        assert first.keys() == second.keys()

    def fleet(self, *words: str) -> subprocess.CompletedProcess[str]:
        """A command of fleets, to its end."""
        return self.sites[0].xenlab("fleet", *words, "-f", str(self.file), timeout=2 * HOUR)

    def run_of(self, name: str) -> Path | None:
        """The folder of a lab's run, None before it has begun."""
        return next(iter(self.sites[0].runs.glob(f"*-{name}")), None)

    def record(self) -> dict[str, Any]:
        """How each host's run has ended."""
        said = json.loads(self.fleet("status", "--json").stdout)
        return {name: host["status"] for name, host in said["hosts"].items()}


def _differing(base: dict[str, Any], site: Site) -> dict[str, Any]:
    own = yaml.safe_load(site.parameters.read_text())
    return {
        "lab": site.name,
        "may_wipe": own["may_wipe"],
        "ssh": base["ssh"] | {"config": own["ssh"]["config"]},
    }


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """Both in their rescue systems, with empty disks; the runs of both are in one folder."""
    folder = tmp_path_factory.mktemp("fleet")
    with ExitStack() as labs:
        sites = []
        for name in LABS:
            (folder / name).mkdir()
            lab = with_one_guest(name, GUEST, folder / name)
            sites.append(next(lab))
            labs.callback(next, lab, None)
        yield Pair(folder, [Site(site.parameters, folder / "runs", site.name) for site in sites])


def under_way(run: Path | None, chapter: str) -> bool:
    """Whether a step of a chapter has begun to change something."""
    if run is None:
        return False
    records = Journal(run).records()
    return any(
        record["phase"] == "running" and str(record.get("step", "")).startswith(chapter)
        for record in records
    )


def test_one_that_is_killed_costs_the_other_nothing_and_is_taken_up(pair: Pair) -> None:
    survivor, victim = pair.sites
    words = ["fleet", "run", *DONE, "-f", str(pair.file), "--canary", "0", "--max-failures", "0"]
    with (pair.file.parent / "first.log").open("w") as log:
        process = subprocess.Popen(
            survivor.argv(*words),
            cwd=ROOT,
            env=survivor.environment(),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )

    def killable() -> bool:
        assert process.poll() is None, Path(log.name).read_text()[-3000:]
        return under_way(pair.run_of(victim.name), DIES_IN)

    wait_until(killable, seconds=2 * HOUR, what=f"chapter {DIES_IN} runs on {victim.name}")
    assert victim.xenlab("lab", "down", "--hard", "--lab", victim.name).returncode == 0
    assert process.wait(2 * HOUR) == 1
    said = Path(log.name).read_text()
    assert pair.record()[survivor.name] == "done", said[-3000:]
    assert pair.record()[victim.name] in ("unreachable", "failed", "unknown"), said[-3000:]
    assert survivor.answers(GUEST)
    switched_off_and_on(victim)
    again = pair.fleet("run", "--resume")
    assert again.returncode == 0, again.stdout[-3000:] + again.stderr[-3000:]
    assert set(pair.record().values()) == {"done"}
    assert victim.answers(GUEST)
    for site in pair.sites:
        run = pair.run_of(site.name)
        assert run is not None and audit.inspect(run).problems == ()


def test_then_nothing_is_left_to_do_on_either(pair: Pair) -> None:
    check = pair.fleet("check", *DONE)
    assert check.returncode == 0, check.stdout[-3000:] + check.stderr[-3000:]
    for site in pair.sites:
        run = sorted(pair.sites[0].runs.glob(f"*-{site.name}"))[-1]
        assert set(statuses(run).values()) == {"ok"}
