"""What is kept of a fleet's run beside the runs of its hosts: which they are, how each ended."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from secrets import token_hex
from typing import Any

from xenlab import durable
from xenlab.errors import BadInput, DiskFull
from xenlab.fleet.hosts import Fleet
from xenlab.fleet.work import HERE, UNKNOWN, write_site
from xenlab.runs.folder import DONE, NOT_RUN, locked

FILE = "fleet.json"

RUNNING = "running"


@dataclass
class HostState:
    """How a host's run ended, or that it goes on; ``run`` names its folder, beside the fleet's."""

    status: str = NOT_RUN
    run: str = ""
    problem: str = ""
    seconds: float = 0.0
    worker: str = ""
    attempts: int = 0
    drift: list[str] = field(default_factory=list)

    @property
    def done(self) -> bool:
        """Whether nothing is left to do."""
        return self.status == DONE


class Record:
    """A fleet's folder, ``<UTC>-<fleet>`` among the runs, and its ``fleet.json``.

    Threads may change it; each change is on disk before the next one.
    """

    def __init__(self, folder: Path, facts: dict[str, Any], hosts: dict[str, HostState]) -> None:
        self.folder = folder
        self.facts = facts
        self.hosts = hosts
        self._lock = threading.RLock()

    @classmethod
    def create(
        cls, runs: Path, fleet: Fleet, mode: str, chapters: Sequence[str], notebooks: Path
    ) -> Record:
        """A new folder, with each host's site as a file of its own; raises DiskFull, BadInput."""
        folder = durable.new_run_folder(runs.absolute(), fleet.name)
        durable.create(folder / HERE, token_hex(16).encode())
        for host, values in fleet.values.items():
            write_site(folder / "sites" / f"{host}.yaml", values)
        facts = {
            "fleet": fleet.name,
            "file": str(fleet.file.absolute()),
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "mode": mode,
            "chapters": list(chapters),
            "notebooks": str(notebooks.absolute()),
            "images": {},
        }
        record = cls(folder, facts, {host: HostState() for host in fleet.sites})
        record._save()
        return record

    @classmethod
    def read(cls, folder: Path) -> Record:
        """What is kept in a fleet's folder; raises BadInput.

        A host that ran when its controller was killed is `UNKNOWN`.
        """
        try:
            found = json.loads((folder / FILE).read_text(encoding="utf-8"))
            hosts = {name: HostState(**state) for name, state in found.pop("hosts").items()}
            if not locked(folder):
                for state in hosts.values():
                    state.status = UNKNOWN if state.status == RUNNING else state.status
            return cls(folder, found, hosts)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise BadInput(
                f"cannot read {FILE}: because {error}",
                where=str(folder),
                hint="name the folder of the runs with --runs",
            ) from None

    @classmethod
    def last(cls, runs: Path, fleet: str) -> Record:
        """The last run of a fleet of this name; raises BadInput where there is none."""
        for file in sorted(runs.glob(f"*-{fleet}/{FILE}"), reverse=True):
            found = cls.read(file.parent)
            if found.facts["fleet"] == fleet:
                return found
        raise BadInput(
            f"cannot find a run of the fleet {fleet}: because there is none in {runs} yet",
            hint="xenlab fleet run, or name the folder of the runs with --runs",
        )

    @property
    def token(self) -> str:
        """By which a worker knows that it sees this folder."""
        return (self.folder / HERE).read_text()

    def image(self, kind: str) -> str:
        """Where the image of a canary of this kind lies in a worker's cache, "" for nowhere."""
        return str(self.facts.get("images", {}).get(kind, ""))

    def offer(self, kind: str, image: str) -> None:
        """Note where the image of a canary of this kind lies; as `change` on a full disk."""
        with self._lock, suppress(DiskFull):
            self.facts.setdefault("images", {})[kind] = image
            self._save()

    def change(self, host: str, **fields: Any) -> HostState:
        """Note what is new of a host; on a full disk it is known until there is space again."""
        with self._lock:
            state = self.hosts[host]
            for name, value in fields.items():
                setattr(state, name, value)
            # the hosts that run have something better to do than to end for this
            with suppress(DiskFull):
                self._save()
        return state

    def _save(self) -> None:
        hosts = {name: asdict(state) for name, state in self.hosts.items()}
        text = json.dumps(self.facts | {"hosts": hosts}, indent=1, ensure_ascii=False)
        durable.replace(self.folder / FILE, f"{text}\n".encode())
