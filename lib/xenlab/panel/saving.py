"""Where a person saves a site: in a new file, or over one of a site that nobody changed since."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from pathlib import Path

from xenlab import durable, parameters
from xenlab.errors import BadInput

ELSEWHERE = "save under another name"


def named(text: str) -> Path:
    """The file that a person names; raises BadInput."""
    try:
        return Path(text).expanduser().absolute()
    except RuntimeError as error:
        raise BadInput(f"cannot save to {text}: because {error}") from error


def save(place: Path, data: bytes, known: bytes | None = None) -> None:
    """Write a site's file whole or not at all; links are followed, mode and owner stay.

    ``known`` is what the person has seen of this file, None for any other. Raises BadInput where
    the file that is there is not a site's, has comments, or holds something else by now.
    """
    try:
        place = place.resolve()
        old = _replaceable(place)
        if known is not None and old != known:
            raise changed(place)
        if old is None:
            _create(place, data)
        else:
            _replace(place, data, old)
    except (OSError, RuntimeError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise BadInput(f"cannot save to {place}: because {reason}", hint=ELSEWHERE) from error


def changed(place: Path) -> BadInput:
    """The error for a file that is not as the person has seen it."""
    return BadInput(
        f"cannot save to {place}: because it was changed since it was read",
        hint="read it again, or save under another name",
    )


def _replaceable(place: Path) -> bytes | None:
    """What the site's file holds that may be replaced; None where there is none yet."""
    try:
        found = place.stat()
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(found.st_mode):
        raise _refused(place, "it is not a file")
    if found.st_nlink > 1:
        raise _refused(place, "it is also found under another name (a hard link)")
    try:
        parameters.load(place)
    except BadInput as error:
        raise _refused(place, "it does not hold the parameters of a site") from error
    old = place.read_bytes()
    if b"#" in old:
        raise _refused(place, "it has comments, which would be lost")
    return old


def _refused(place: Path, why: str) -> BadInput:
    return BadInput(f"cannot save to {place}: because {why}", hint=ELSEWHERE)


def _create(place: Path, data: bytes) -> None:
    # it takes the mode that new files have here, and nobody else can take the name meanwhile
    os.close(os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
    try:
        _replace(place, data, b"")
    except BaseException:
        place.unlink(missing_ok=True)
        raise


def _replace(place: Path, data: bytes, old: bytes) -> None:
    file, name = tempfile.mkstemp(prefix=".xenlab-", dir=place.parent)
    fresh = Path(name)
    try:
        try:
            durable.write(file, data)
            _alike(fresh, place)
            os.fsync(file)
        finally:
            os.close(file)
        if place.read_bytes() != old:
            raise changed(place)
        fresh.replace(place)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise
    durable.sync(place.parent)


def _alike(fresh: Path, place: Path) -> None:
    """Owner, mode, ACL and extended attributes as another file has them."""
    wanted, found = place.stat(), fresh.stat()
    if (wanted.st_uid, wanted.st_gid) != (found.st_uid, found.st_gid):
        os.chown(fresh, wanted.st_uid, wanted.st_gid)
    shutil.copystat(place, fresh)
    os.utime(fresh)
