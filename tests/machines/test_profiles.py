"""Machines as people have them: an empty disk becomes a host with running guests, all by two files.

Where the environment names a file in PROFILE_FIGURES, the times of each chapter are written there.
"""

from __future__ import annotations

import json
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from tests import profiles
from tests.lab import second_disk
from tests.management import Castle, Emulator, ipmi_simulated, redfish_emulated
from tests.whole_lab import CHAPTERS, HOUR, Site, statuses

from xenlab import durable
from xenlab.runs import folder as runs
from xenlab.site.schema import load
from xenlab_lab.lab import Lab

pytestmark = pytest.mark.timeout(4 * HOUR)

DONE = CHAPTERS[: CHAPTERS.index("11_action") + 1]


@dataclass(frozen=True)
class Managed(Site):
    """A site whose machine may have a management controller, reached by this environment."""

    reached: tuple[tuple[str, str], ...] = ()

    def environment(self) -> dict[str, str]:
        return {**super().environment(), **dict(self.reached)}


@contextmanager
def following(told: Callable[[], list[str]], medium: Callable[[], str], lab: str) -> Iterator[None]:
    """While it runs, the lab boots each time that its management controller is told to."""
    ended = threading.Event()

    def follow() -> None:
        seen = len(told())
        while not ended.wait(0.5):
            if (now := len(told())) > seen:
                seen = now
                words = Site(Path(), Path(), lab).argv("lab", "boot", medium(), "--lab", lab)
                subprocess.run(words, check=True, stdin=subprocess.DEVNULL, capture_output=True)

    thread = threading.Thread(target=follow)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@contextmanager
def by_ipmi(folder: Path, lab: str) -> Iterator[Castle]:
    """A machine that ipmi_sim switches on."""
    with ipmi_simulated(folder) as castle:

        def medium() -> str:
            devices = [line for line in castle.told() if line.startswith("set boot")]
            return "rescue" if devices[-1:] == ["set boot cdrom"] else "disk"

        def switched_on() -> list[str]:
            return [line for line in castle.told() if line == "set power 1"]

        with following(switched_on, medium, lab):
            yield castle


@contextmanager
def by_redfish(folder: Path, lab: str) -> Iterator[Emulator]:
    """A machine that sushy-tools restarts."""
    with redfish_emulated(folder) as emulator:

        def medium() -> str:
            target = emulator.system()["Boot"]["BootSourceOverrideTarget"]
            return "disk" if target == "Hdd" else "rescue"

        with following(lambda: emulator.told, medium, lab):
            yield emulator


@pytest.fixture(params=profiles.NAMES)
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Managed]:
    """One of the machines in its rescue system, with an empty disk; at its end it is down."""
    name = request.param
    lab, values = Lab(name), profiles.values(name)
    values["ssh"]["config"] = str(lab.folder / "ssh_config")
    (tmp_path / "bmc").mkdir()
    reached: dict[str, str] = {}
    with ExitStack() as managed:
        if values["power"] == "ipmi":
            reached = managed.enter_context(by_ipmi(tmp_path / "bmc", name)).environment
        if values["power"] == "redfish":
            emulator = managed.enter_context(by_redfish(tmp_path / "bmc", name))
            reached = emulator.environment
            values["redfish"]["ca"] = emulator.ca
        reached["PATH"] = (
            f"{reached.get('PATH', '').removesuffix(':/usr/bin:/bin')}:{os.environ['PATH']}"
        )
        file = tmp_path / "castle.yaml"
        file.write_text(yaml.safe_dump(values))
        found = Managed(file, tmp_path / "runs", name, tuple(reached.items()))
        lab.down(hard=True)
        lab.reset()
        words = ["lab", "up", "-f", str(file), "--lab", name]
        words += ["--hardware", str(profiles.hardware(name))]
        # what a router advertises comes with all the rest
        words += ["--open"] if "gateway6" in values else []
        second = lab.machine.second_disk
        has_second = "second_disk_gib" in profiles.hardware(name).read_text()
        # but for one that is the site's too
        has_second = has_second and "mirror" not in values
        before = second_disk.make(second, load(file)) if has_second else ""
        up = found.xenlab(*words)
        assert up.returncode == 0, up.stdout + up.stderr
        yield found
        lab.down(hard=True)
        assert not has_second or second_disk.digest(second) == before, "a step wrote to it"


def written(name: str, first: Path, second: Path) -> None:
    """Add what both runs took to the file of figures that the environment names, if it does."""
    named = os.environ.get("PROFILE_FIGURES")
    if not named:
        return
    file = Path(named)
    found = json.loads(file.read_text()) if file.exists() else {}
    times = {state.name: round(state.seconds) for state in runs.states(first)}
    again = sum(state.seconds for state in runs.states(second))
    found[name] = {"chapters": times, "a second run": round(again)}
    durable.replace(file, f"{json.dumps(found, indent=2, sort_keys=True)}\n".encode())


def test_an_empty_disk_becomes_a_host_and_a_second_run_finds_nothing_to_do(site: Managed) -> None:
    words = ("run", *DONE, "-f", str(site.parameters))
    done = site.xenlab(*words, timeout=2 * HOUR)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    first = runs.find(site.runs, "last")
    guests = [domain.name for domain in load(site.parameters).domains]
    assert [name for name in guests if not site.answers(name)] == []
    if load(site.parameters).mirror:
        arrays = ["boot", "dom0swap", "dom0root", "share", *guests, "domuswap"]
        assert site.ssh("dom0", "cat", "/proc/mdstat").count("[2/2] [UU]") == len(arrays)
    again = site.xenlab(*words, timeout=HOUR)
    assert again.returncode == 0, again.stdout[-3000:] + again.stderr[-3000:]
    second = runs.find(site.runs, "last")
    assert {step: how for step, how in statuses(second).items() if how != "ok"} == {}
    written(site.name, first, second)
