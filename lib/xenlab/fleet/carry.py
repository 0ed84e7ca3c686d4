"""A run's folder brought from a worker's disk to the controller's, whole, and verified there."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

from xenlab import durable
from xenlab.durable import kept_file
from xenlab.errors import JournalDamaged
from xenlab.journal import RESERVE
from xenlab.runs import audit

STAYS = (RESERVE, "run.lock")
"""What is a process's, not the run's."""


def packed(folder: Path) -> dict[str, bytes]:
    """The files of a run, by their paths in its folder."""
    found = (
        path for path in sorted(folder.rglob("*")) if path.is_file() and path.name not in STAYS
    )
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def unpack(runs: Path, name: str, files: Mapping[str, bytes]) -> None:
    """Put a run that a worker has sent among the others, verified before it takes its place.

    One of that name that is there already must be its beginning. Raises JournalDamaged for a file
    that would lie elsewhere, a run that is not what was recorded, or not that run; DiskFull.
    """
    if name != Path(name).name or name.startswith("."):
        raise _damaged(name, "that is no name of a run")
    with tempfile.TemporaryDirectory(prefix=".arriving-", dir=runs) as shelf:
        folder = Path(shelf) / name
        durable.new_folder(folder)
        for path, data in files.items():
            place = kept_file(folder, path)
            durable.new_folder(place.parent)
            durable.create(place, data)
        if problems := audit.inspect(folder).problems:
            raise _damaged(name, problems[0])
        place = runs / name
        if place.exists():
            before = (place / "journal.jsonl").read_bytes()
            if not files["journal.jsonl"].startswith(before):
                raise _damaged(name, "it is another run than the one of that name here")
            place.rename(Path(shelf) / "before")
        folder.rename(place)
        durable.sync(runs)


def _damaged(name: str, why: str) -> JournalDamaged:
    return JournalDamaged(
        f"cannot take the run {name} from the worker: because {why}",
        hint="look at it where it was made: `xenlab audit verify` there",
    )
