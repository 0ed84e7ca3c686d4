"""What an earlier attempt at a step, or another run, has left running: it is ended, and told."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
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


@dataclass(frozen=True)
class Stray:
    """A step of another run that is still at work on the machine, though nobody follows it."""

    mark: str
    since: datetime

    def ended(self, machine: Host) -> str:
        """End its processes there; a line for a person."""
        run, number, _ = self.mark.rsplit("/", 2)
        count = machine.end_marked(self.mark)
        return (
            f"step {number} of run {run} was still at work here, since "
            f"{self.since:%Y-%m-%d %H:%M:%S} UTC: {count} processes ended"
        )


def strays(processes: Iterable[str]) -> tuple[Stray, ...]:
    """The steps that processes belong to, oldest first; of each its age in seconds and its mark."""
    ages: dict[str, int] = {}
    for process in processes:
        age, _, mark = process.partition(" ")
        step = mark.rsplit("/", 2)[0]
        ages[step] = max(int(age), ages.get(step, 0))
    now = datetime.now(UTC)
    oldest_first = sorted(ages.items(), key=lambda item: -item[1])
    return tuple(Stray(mark, now - timedelta(seconds=age)) for mark, age in oldest_first)


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
