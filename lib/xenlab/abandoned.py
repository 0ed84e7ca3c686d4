"""What an earlier attempt at a step has left running: it is ended, and the journal told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from xenlab.errors import ConnectionLost, NoConnection
from xenlab.host import Host
from xenlab.journal import Journal


@dataclass(frozen=True)
class Ended:
    """How many processes of an attempt were ended; which guests did not answer meanwhile."""

    attempt: Mapping[str, Any]
    count: int
    silent: tuple[str, ...]

    def __str__(self) -> str:
        unknown = f"; {', '.join(self.silent)} did not answer" if self.silent else ""
        return f"{self.count} processes ended{unknown}"


def end(attempt: Mapping[str, Any], machines: Sequence[Host], guests: Sequence[Host]) -> Ended:
    """End the processes of an attempt on each machine, whatever its last record says.

    Steps of later chapters work in guests too: those of them that run.
    """
    mark = attempt["mark"]
    count = sum(machine.end_marked(mark) for machine in machines)
    silent = []
    for guest in guests:
        try:
            count += guest.end_marked(mark)
        except (NoConnection, ConnectionLost):
            silent.append(guest.name)
    return Ended(attempt, count, tuple(silent))


def tell(journal: Journal, ended: Ended, boot_id: str) -> None:
    """Write the final record of an attempt that has none, or that was not over after all."""
    attempt = ended.attempt
    if attempt["phase"] == "final" and not ended.count:
        return
    found = "unfinished" if attempt["phase"] == "running" else "still at work"
    journal.append(
        chapter=attempt["chapter"],
        step=attempt["step"],
        title=attempt["title"],
        phase="final",
        status="aborted",
        host=attempt["host"],
        boot_id=boot_id,
        mark=attempt["mark"],
        message=f"found {found} when the run was taken up again; {ended}",
    )
