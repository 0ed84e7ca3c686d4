"""A step that an earlier run left unfinished: what it started is ended, and the journal told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from xenlab.errors import ConnectionLost, NoConnection
from xenlab.host import Host
from xenlab.journal import Journal


def end(
    journal: Journal,
    record: Mapping[str, Any],
    machines: Sequence[Host],
    guests: Sequence[Host],
    boot_id: str,
) -> None:
    """End the processes of an unfinished step on each machine, and write its final record.

    Steps of later chapters work in guests too; one that is down has nothing running.
    """
    ended = sum(machine.end_marked(record["mark"]) for machine in machines)
    for guest in guests:
        with suppress(NoConnection, ConnectionLost):
            ended += guest.end_marked(record["mark"])
    journal.append(
        chapter=record["chapter"],
        step=record["step"],
        title=record["title"],
        phase="final",
        status="aborted",
        host=record["host"],
        boot_id=boot_id,
        mark=record["mark"],
        message=f"found unfinished when the run was taken up again; {ended} processes ended",
    )
