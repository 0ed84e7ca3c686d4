"""A rack of real sshds, each a host of a fleet, and small chapters for it."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml
from tests.sites import BARE
from tests.ssh.conftest import Sshd
from tests.ssh.small import Site

from xenlab.journal import Journal
from xenlab.runs.folder import every

SECONDS = 600
"""How long a fleet of small chapters may take on a busy machine."""


class Rack(Site):
    """Some hosts, a folder with chapters, a fleet's file; the commands of `Site`."""

    patience = 2
    """How many seconds a host is waited for that does not answer, or a command that was left."""

    def __init__(self, folder: Path, count: int) -> None:
        with ThreadPoolExecutor() as pool:
            started = pool.map(lambda n: Sshd(folder / f"host{n}", alias=f"host{n}"), range(count))
            self.sshds = list(started)
        super().__init__(folder, self.sshds[0])
        # further keys of hosts, by their numbers
        self.own: dict[int, dict[str, Any]] = {}

    image = "own"
    """Whose images the hosts have."""

    @property
    def file(self) -> Path:
        return self.folder / "fleet.yaml"

    def write(self, **keys: object) -> None:
        """The fleet's file and its base, which has these keys."""
        base = BARE | {"power": "manual", "may_wipe": []} | keys
        (self.folder / "base.yaml").write_text(yaml.safe_dump(base))
        hosts = {f"host{number}": self._host(number) for number in range(len(self.sshds))}
        values = {"fleet": "rack", "base": "base.yaml", "hosts": hosts, "image": self.image}
        self.file.write_text(yaml.safe_dump(values))
        (self.folder / "xenlab.toml").write_text(f'runs = "{self.runs}"\n')

    def _host(self, number: int) -> dict[str, Any]:
        guest = {
            "name": f"guest{number}",
            "memory_mib": 320,
            "mac": f"00:16:3e:00:00:{number:02x}",
            "address": f"10.0.2.{120 + number}/24",
        }
        return {
            "ssh": {"config": str(self.sshds[number].config), "patience_seconds": self.patience},
            "address": f"10.0.2.{20 + number}/24",
            "domains": [guest],
            **self.own.get(number, {}),
        }

    def steps_for(self, number: str, count: int = 1, what: str = "Made", **more: str) -> list[str]:
        """Cells that make files, each host its own."""
        words = "".join(f", {key}={value!r}" for key, value in more.items())
        return [
            f'chapter.ensure("{number}.{n} Make {number}.{n}", '
            f'{what}(f"{self.folder}/{{site}}-{number}.{n}"{words}), on=chapter.host)'
            for n in range(1, count + 1)
        ]

    def made(self, number: str, host: int) -> Path:  # type: ignore[override]
        """The file that a host's step makes."""
        return self.folder / f"host{host}-{number}"

    def record(self) -> dict[str, Any]:
        """What is kept of the fleet's last run."""
        folder = sorted(self.runs.glob("*-rack"))[-1]
        found: dict[str, Any] = json.loads((folder / "fleet.json").read_text())
        return found

    def statuses(self) -> list[str]:
        """How each host's last run ended."""
        return [host["status"] for host in self.record()["hosts"].values()]

    def run_of(self, host: int) -> Path:
        """The folder of a host's last run."""
        return self.runs / str(self.record()["hosts"][f"host{host}"]["run"])

    def ended(self, host: int) -> list[tuple[str, str]]:
        """How the steps of cells ended in all runs of a host."""
        records = [
            record
            for run in every(self.runs)
            if run.name.endswith(f"-host{host}")
            for record in Journal(run).records()
        ]
        finals = [r for r in records if r["phase"] == "final" and not r["step"].endswith(".0")]
        return [(r["step"], r["status"]) for r in finals]

    def stop(self) -> None:
        """End all servers."""
        for sshd in self.sshds:
            sshd.stop()
