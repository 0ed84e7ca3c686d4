"""The real lab, once for all tests: an empty disk that becomes a Xen host."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from tests.browser.conftest import browser, jupyter

from xenlab.journal import Journal
from xenlab.lab import Lab

# one browser for all modules: Playwright can be started once in a process
__all__ = ["browser", "jupyter"]

ROOT = Path(__file__).parents[2]
NAME = "test"
HOUR = 3600.0


@dataclass(frozen=True)
class Site:
    """The lab under test, its parameters file and its run folders."""

    parameters: Path
    runs: Path
    name: str = NAME

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
        words = ["lab", "ssh", "--name", self.name, *([domain] if domain else []), "--", *command]
        result = self.xenlab(*words, timeout=seconds)
        assert result.returncode == 0, result.stderr
        return result.stdout

    def answers(self, domain: str) -> bool:
        """Whether dom0 or a guest lets us in now."""
        words = ["lab", "ssh", "--name", self.name, domain, "--", "true"]
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


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A lab of its own beside any other, with an empty disk, in its rescue system."""
    yield from fresh("lab", NAME, tmp_path_factory.mktemp("site"))


def fresh(parameters: str, name: str, folder: Path) -> Iterator[Site]:
    """A lab called ``name`` for one of the committed parameters files; at the end it is down."""
    lab = Lab(name)
    values = yaml.safe_load((ROOT / "parameters" / f"{parameters}.yaml").read_text())
    values["lab"] = name
    values["ssh"]["config"] = str(lab.folder / "ssh_config")
    values["may_wipe"] = [lab.status().serial]
    file = folder / f"{parameters}.yaml"
    file.write_text(yaml.safe_dump(values))
    site = Site(file, folder / "runs", name)
    lab.down(hard=True)
    lab.reset()
    up = site.xenlab("lab", "up", "-f", str(file))
    assert up.returncode == 0, up.stdout + up.stderr
    yield site
    lab.down(hard=True)


def wait_until(condition: Callable[[], bool], *, seconds: float, what: str) -> None:
    """Wait for an event, looking often; fails with its name past the deadline."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.1)
