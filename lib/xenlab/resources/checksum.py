"""Checksums: out of a checksum file, and of a file on this machine or on a host."""

from __future__ import annotations

import hashlib
import re
from functools import lru_cache
from pathlib import Path

from xenlab.command import Command
from xenlab.errors import BadInput
from xenlab.host import Host

_PROGRAMS = {64: "sha256", 128: "sha512"}
_LINE = re.compile(r"([0-9a-f]{64}|[0-9a-f]{128})\s+\*?(?:\./)?(.+)", re.IGNORECASE)
_HEADING = re.compile(r"#\s*(\w+)\s+HASH", re.IGNORECASE)
_HASH_SECONDS = 1800.0


def find_checksum(text: str, name: str) -> str:
    """The checksum of a file out of what sha256sum or sha512sum wrote, "" where there is none.

    Gentoo's signed DIGESTS, with a heading for each kind of checksum, are read as well.
    """
    heading = ""
    for line in text.splitlines():
        if match := _HEADING.match(line):
            heading = match[1].upper()
        elif match := _LINE.fullmatch(line.strip()):
            known = heading in ("", "SHA256", "SHA512")
            if known and Path(match[2]).name == name:
                return match[1].lower()
    return ""


def read_checksum(checksums: str, archive: str) -> str:
    """The checksum of an archive out of its checksum file on this machine (``~`` is expanded).

    Raises BadInput where the file is missing or does not name the archive.
    """
    path, name = Path(checksums).expanduser(), Path(archive).name
    try:
        text = path.read_text(errors="replace")
    except OSError as error:
        raise BadInput(f"the checksum file {path} cannot be read: {error.strerror}") from None
    found = find_checksum(text, name)
    if not found:
        raise BadInput(
            f"{path} has no SHA-256 or SHA-512 checksum of {name}",
            hint=f"write it with: sha256sum {name} > {path.name}",
        )
    return found


def checksum_of(path: Path, like: str = "0" * 64) -> str:
    """The checksum of a file on this machine, of the same kind as ``like``; raises OSError."""
    status = path.stat()
    return _digest(path, _program(like), status.st_size, status.st_mtime_ns)


def require_checksum(path: Path, checksum: str) -> None:
    """Raise BadInput unless a file on this machine is there and has this checksum."""
    try:
        found = checksum_of(path, checksum)
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror}") from None
    if found != checksum:
        raise BadInput(
            f"{path} has a wrong checksum: {found}, and {checksum} is wanted",
            hint="fetch or build the file again, or check which checksum file goes with it",
        )


def has_checksum(host: Host, path: str, checksum: str) -> bool:
    """Whether a file on a host is there and has this checksum."""
    # by standard input: the programs escape strange file names in what they print
    script = '[ -f "$2" ] || exit 1; sum=$("$1" < "$2"); [ "${sum%% *}" = "$3" ]'
    program = f"{_program(checksum)}sum"
    return host.test(Command.script(script, program, path, checksum), timeout=_HASH_SECONDS)


def _program(checksum: str) -> str:
    try:
        return _PROGRAMS[len(checksum)]
    except KeyError:
        raise BadInput(f"{checksum!r} is neither a SHA-256 nor a SHA-512 checksum") from None


@lru_cache(maxsize=16)
def _digest(path: Path, program: str, size: int, mtime_ns: int) -> str:
    # size and time are part of the key: a file that has changed is read again
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, program).hexdigest()
