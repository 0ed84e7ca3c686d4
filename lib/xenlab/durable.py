"""Files that are whole and on disk before anybody relies on them; what is left when it is full."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from xenlab.errors import DiskFull, JournalDamaged

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What the system says where a disk, or somebody's share of it, is full, or a file at its limit."""

PORTION = 16 * 1024
"""How much of a reserve is given up at once: others who want space may be quicker than we."""


@contextmanager
def space(folder: Path) -> Iterator[None]:
    """What is done here writes below this folder; raises DiskFull where that disk is full."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        if error.errno == errno.EFBIG:
            raise DiskFull(
                f"cannot go on: because a file below {folder} may not grow further",
                hint="raise the limit (ulimit -f), then take the run up again",
            ) from error
        raise full(folder) from error


def require(folder: Path, size: int) -> None:
    """Raise DiskFull where less than this is free, and say how much."""
    left = free(folder)
    if left < size:
        raise full(folder, f" ({mib(left)} are free)")


def full(folder: Path, how: str = "") -> DiskFull:
    """The error for a full disk that holds this folder."""
    return DiskFull(
        f"cannot go on: because the disk that holds {folder} is full{how}",
        hint="free space there, then take the run up again",
    )


def free(folder: Path) -> int:
    """How many bytes can still be written where this folder is, or will be."""
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    found = os.statvfs(there)
    return found.f_bavail * found.f_frsize


def mib(size: int) -> str:
    """A size as a person reads it."""
    return f"{size / 2**20:.1f} MiB"


def write(file: int, data: bytes) -> None:
    """Write all of it, however little the system takes at a time."""
    rest = memoryview(data)
    while rest:
        taken = os.write(file, rest)
        if not taken:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        rest = rest[taken:]


def create(place: Path, data: bytes, *, mode: int = 0o600) -> None:
    """Make a file that is on disk, its name too, before this returns; nothing is left of a failure.

    Raises FileExistsError, DiskFull.
    """
    with space(place.parent):
        file = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            try:
                write(file, data)
                os.fchmod(file, mode)
                os.fsync(file)
            finally:
                os.close(file)
        except BaseException:
            with suppress(OSError):
                place.unlink()
            raise
        sync(place.parent)


def replace(
    place: Path, data: bytes, ready: Callable[[], object] | None = None, *, mode: int = 0o600
) -> None:
    """Put a whole file in a place, where there may be an older one; raises DiskFull.

    ``ready`` is called when the data is on disk, before it takes its place.
    """
    fresh = place.with_name(f".{place.name}.new")
    fresh.unlink(missing_ok=True)
    create(fresh, data, mode=mode)
    try:
        if ready is not None:
            ready()
        fresh.rename(place)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise
    sync(place.parent)


def sync(place: Path) -> None:
    """Have a file's content, or a folder's names, on disk before this returns."""
    file = os.open(place, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


class Reserve:
    """Space that is kept in a file until it is needed for what must still be said."""

    def __init__(self, place: Path, size: int) -> None:
        self._place = place
        self._size = size

    def fill(self) -> None:
        """Take the space, unless it is there; raises DiskFull."""
        if self._left() < self._size:
            with space(self._place.parent):
                file = os.open(self._place, os.O_WRONLY | os.O_CREAT, 0o600)
                try:
                    os.posix_fallocate(file, 0, self._size)
                finally:
                    os.close(file)

    def give(self) -> bool:
        """Give up a portion; whether there was one."""
        left = self._left()
        if left:
            os.truncate(self._place, max(0, left - PORTION))
        return left > 0

    def drop(self) -> None:
        """Give up all of it."""
        self._place.unlink(missing_ok=True)

    def _left(self) -> int:
        try:
            return self._place.stat().st_size
        except FileNotFoundError:
            return 0


# The files of a run's folder: none is read or written where a record or a link leads out of it.


def kept_file(folder: Path, name: str) -> Path:
    """A file of a run by its name, there or not yet.

    Raises JournalDamaged for one that is not inside the run's folder: who made the run may want a
    file of this machine to be shown, or written over; and for a pipe or a device, which may have
    no end.
    """
    place = _inside(folder, name)
    if place.exists() and not place.is_file():
        raise JournalDamaged(
            f"{name} is no regular file",
            where=str(folder),
            hint="do not trust this run: ask who gave it to you",
        )
    return place


def kept_folder(folder: Path, name: str) -> Path:
    """A folder of a run by its name, made unless it is there; raises JournalDamaged, DiskFull."""
    place = _inside(folder, name)
    with space(folder):
        place.mkdir(mode=0o700, exist_ok=True)
    return place


def _inside(folder: Path, name: str) -> Path:
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
def locked_folder(folder: Path) -> Iterator[None]:
    """Have a folder to oneself, among those who ask for that."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


# Where the folders of runs are.


def runs_folder() -> Path:
    """Where run folders are kept: ``$XENLAB_RUNS``, else ``runs`` beside ``notebooks``."""
    if "XENLAB_RUNS" in os.environ:
        return Path(os.environ["XENLAB_RUNS"])
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / "notebooks").is_dir():
            return folder / "runs"
    return here / "runs"


def new_run_folder(runs: Path, site: str) -> Path:
    """A fresh folder ``<UTC>-<site>``, mode 0700; never one that is there already.

    Raises DiskFull.
    """
    with space(runs):
        runs.mkdir(parents=True, exist_ok=True)
    while True:
        folder = runs / f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{site}"
        try:
            with space(runs):
                folder.mkdir(mode=0o700)
        except FileExistsError:
            time.sleep(1)
            continue
        return folder
