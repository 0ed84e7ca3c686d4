"""Files that are whole and on disk before anybody relies on them; where runs and site are."""

from __future__ import annotations

import difflib
import errno
import fcntl
import os
import stat
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from xenlab.errors import BadInput, DiskFull, JournalDamaged

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What the system says where a disk, or somebody's share of it, is full, or a file at its limit."""

NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)
"""What the system says where the files of a file system cannot be locked."""

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


def shared(folder: Path) -> bool:
    """Whether a folder's group reads what is made there: the folder has the setgid bit."""
    return bool(folder.stat().st_mode & stat.S_ISGID)


def mode_in(folder: Path) -> int:
    """The mode of a file of ours in a folder: its owner's, or readable by a folder's group."""
    return 0o640 if shared(folder) else 0o600


def new_folder(place: Path, *, exist_ok: bool = True) -> None:
    """Make a folder of ours, and those above it; whose it is goes as with `mode_in`."""
    if not place.parent.exists():
        new_folder(place.parent)
    if not (exist_ok and place.exists()):
        place.mkdir(mode=0o700, exist_ok=exist_ok)
        if shared(place.parent):
            place.chmod(0o2750)


def create(place: Path, data: bytes, *, mode: int | None = None) -> None:
    """Make a file that is on disk, its name too, before this returns; nothing is left of a failure.

    ``mode`` is `mode_in` its folder unless given. Raises FileExistsError, DiskFull.
    """
    with space(place.parent):
        file = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            try:
                write(file, data)
                os.fchmod(file, mode_in(place.parent) if mode is None else mode)
                os.fsync(file)
            finally:
                os.close(file)
        except BaseException:
            with suppress(OSError):
                place.unlink()
            raise
        sync(place.parent)


def replace(
    place: Path,
    data: bytes,
    ready: Callable[[], object] | None = None,
    *,
    mode: int | None = None,
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
                mode = mode_in(self._place.parent)
                file = os.open(self._place, os.O_WRONLY | os.O_CREAT, mode)
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
        new_folder(place)
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


def lock(file: int, place: Path, *, wait: bool = True) -> None:
    """Have an open file to oneself, among those who ask for that, until it is closed.

    Raises BlockingIOError unless it is to be waited for, and BadInput where the file system has no
    locks, as some NFS.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        raise BadInput(
            f"cannot keep anything in {place}: because files cannot be locked there "
            f"({error.strerror}), and two at work would spoil it",
            hint="a folder on a disk of this machine: XENLAB_RUNS for runs, XENLAB_CACHE for labs",
        ) from error


@contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Have a folder to oneself, among those who ask for that."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        lock(handle, folder)
        yield
    finally:
        os.close(handle)


def new_run_folder(runs: Path, site: str) -> Path:
    """A fresh folder ``<UTC>-<site>``, as `new_folder` makes it; never one that is there already.

    Raises DiskFull, and BadInput where files cannot be locked: nothing is left there then.
    """
    with space(runs):
        runs.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=runs) as file:
            lock(file.fileno(), runs)
    while True:
        folder = runs / f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{site}"
        try:
            with space(runs):
                new_folder(folder, exist_ok=False)
        except FileExistsError:
            time.sleep(1)
            continue
        return folder


# Where the runs and the site of a person are, whichever folder a program or a notebook is in.

SETTINGS = "xenlab.toml"
"""The settings of a folder and of all below it."""

SETTINGS_KEYS = ("runs", "site")

CLONE = Path(__file__).resolve().parents[2]
"""The clone that this program is part of, where it is installed from one."""

STAGING = "scheduler_staging_area"
"""How jupyter-scheduler calls the folder of the copies that it executes, and deletes later."""


def runs_folder() -> Path:
    """Where run folders are kept: as `XENLAB_RUNS`, or else the nearest `xenlab.toml`, says.

    Without either ``xenlab/runs`` in the user's data directory ($XDG_DATA_HOME, or else
    ~/.local/share), which no notebook's copy is in. Raises BadInput for a folder that is thrown
    away unless its whole path was given.
    """
    if named := os.environ.get("XENLAB_RUNS"):
        return _kept(Path.cwd(), named)
    file = settings_file()
    if named := _settings(file).get("runs", ""):
        return _kept(file.parent if file else Path(), named)
    base = Path(os.environ.get("XDG_DATA_HOME", "")).expanduser()
    # a path that is not whole does not count: XDG Base Directory Specification
    return (base if base.is_absolute() else Path.home() / ".local/share") / "xenlab/runs"


def site_file() -> Path | None:
    """The site's file, where `XENLAB_SITE` or else the nearest `xenlab.toml` names one.

    Raises BadInput.
    """
    if named := os.environ.get("XENLAB_SITE"):
        return _whole(named)
    file = settings_file()
    named = _settings(file).get("site", "")
    return (file.parent / _whole(named)) if file and named else None


def settings_file() -> Path | None:
    """The nearest `xenlab.toml`, in the working folder or above it; raises BadInput.

    Somebody else's is refused where anybody may put one, as in /tmp.
    """
    here = Path.cwd()
    for folder in (here, *here.parents):
        file = folder / SETTINGS
        if not file.is_file():
            continue
        if folder.stat().st_mode & 0o002 and file.stat().st_uid not in (0, os.getuid()):
            raise BadInput(
                f"cannot take the settings of {file}: because somebody else put it there",
                hint="work in another folder",
            )
        return file
    return None


def shown(run: Path) -> str:
    """Where a run is, as its pages say it: short within a run, whose folder its person knows.

    Below the folder of the settings as seen from there; anywhere else in full.
    """
    if "XENLAB_RUN" in os.environ:
        return f"{run.parent.name}/{run.name}"
    file, run = settings_file(), run.absolute()
    for base, head in ((file.parent if file else None, ""), (Path.home(), "~/")):
        if base is not None and run.is_relative_to(base):
            return f"{head}{run.relative_to(base)}"
    return str(run)


def _settings(file: Path | None) -> dict[str, str]:
    """What a `xenlab.toml` says; raises BadInput."""
    if file is None:
        return {}
    try:
        found = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadInput(f"cannot read the settings: because {error}", where=str(file)) from None
    for key, value in found.items():
        if key not in SETTINGS_KEYS:
            near = difflib.get_close_matches(key, SETTINGS_KEYS, 1, 0.5)
            hint = f"call it {near[0]}" if near else f"use {' and '.join(SETTINGS_KEYS)}"
            raise BadInput(f"there is no setting {key}", where=str(file), hint=hint)
        if not isinstance(value, str) or not value:
            raise BadInput(f"{key} must be a path in quotes", where=str(file))
    return found


def _kept(base: Path, named: str) -> Path:
    """The folder of a name that counts from ``base``; refused where that is thrown away."""
    path = _whole(named)
    if not path.is_absolute() and (why := _thrown_away(base)):
        raise BadInput(
            f"cannot keep runs in {base / path}: because {why} is thrown away with all in it",
            hint="give a whole path, such as ~/castle/runs, as XENLAB_RUNS or in xenlab.toml",
        )
    return base / path


def _thrown_away(folder: Path) -> str:
    """What is thrown away of which this folder is a part, "" if nothing is known of that."""
    real = folder.resolve()
    above = (real, *real.parents)
    if STAGING in real.parts:
        return "jupyter-scheduler's copy of a notebook"
    # a clone is nothing that a program has copied there; and with our own files we are gone as well
    if CLONE in above or any((each / ".git").exists() for each in above):
        return ""
    places = (tempfile.gettempdir(), "/tmp", "/var/tmp", "/dev/shm")
    found = [place for place in places if Path(place).resolve() in above]
    return f"a temporary folder ({found[0]})" if found else ""


def _whole(named: str) -> Path:
    try:
        return Path(named).expanduser()
    except RuntimeError:
        raise BadInput(f"cannot use {named}: because there is no such home folder") from None
