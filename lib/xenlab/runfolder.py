"""The files of a run's folder: none is read or written where a record or a link leads out of it."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from xenlab.errors import JournalDamaged


def kept_file(folder: Path, name: str) -> Path:
    """A file of a run by its name, there or not yet.

    Raises JournalDamaged for one that is not inside the run's folder: who made the run may want a
    file of this machine to be shown, or written over.
    """
    place = (folder / name).resolve()
    if not place.is_relative_to(folder.resolve()):
        raise JournalDamaged(
            f"{name} is not inside the run's folder: a record or a link leads out of it",
            where=str(folder),
            hint="do not trust this run: ask who gave it to you",
        )
    return place


def free_place(folder: Path, stem: str, suffix: str) -> Path:
    """The place of a file that is not there yet: a number is in its name if need be."""
    place, number = folder / f"{stem}{suffix}", 1
    # a link that leads nowhere is there as well
    while os.path.lexists(place):
        number += 1
        place = folder / f"{stem}.{number}{suffix}"
    return place


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Have a folder to oneself, among those who ask for that."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
