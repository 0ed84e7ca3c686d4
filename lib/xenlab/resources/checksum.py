"""Checksums: out of a checksum file, and of a file on this machine or on a host."""

from __future__ import annotations

import hashlib
import re
import subprocess
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from xenlab.command import Command
from xenlab.errors import BadInput
from xenlab.host import Host
from xenlab.resources.signature import is_signed, signed_text

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


def read_checksum(
    checksums: str, archive: str, keyring: str = "", signers: Sequence[str] = ()
) -> str:
    """The checksum of an archive out of its checksum file on this machine (``~`` is expanded).

    A signed file is believed as `signed_text` says. Raises BadInput where it is not, where the
    file is missing, or does not name the archive.
    """
    path, name = Path(checksums).expanduser(), Path(archive).name
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BadInput(f"the checksum file {path} cannot be read: {error.strerror}") from None
    signed = is_signed(data)
    text = (
        signed_text(data, str(path), keyring, signers) if signed else data.decode(errors="replace")
    )
    found = find_checksum(text, name)
    if not found:
        raise BadInput(
            f"{path} has no SHA-256 or SHA-512 checksum of {name}",
            hint=f"write it with: sha256sum {name} > {path.name}",
        )
    return found


def packaged_checksum(archive: str) -> str:
    """The SHA-256 of a file on this machine that is as a Debian package brought it.

    apt has compared the package with Debian's signed index when it fetched it, and dpkg has noted
    the MD5 of each file that it unpacked. Raises BadInput where no package brought this one, or it
    was changed since.
    """
    path = Path(archive).expanduser()
    real = path.resolve()
    if not real.is_file():
        raise BadInput(f"there is no file {path} on the controller")
    noted = _noted_by_dpkg(real)
    if not noted:
        raise BadInput(
            f"cannot tell whether {path} is genuine: no Debian package brought it",
            hint="name the file that has its checksum in kernel_checksums",
        )
    status = real.stat()
    if _digest(real, "md5", status.st_size, status.st_mtime_ns) != noted:
        raise BadInput(
            f"{path} is not what its Debian package brought: it was changed since",
            hint="install the package again: apt-get install --reinstall",
        )
    return _digest(real, "sha256", status.st_size, status.st_mtime_ns)


def _noted_by_dpkg(path: Path) -> str:
    try:
        owner = _printed("dpkg-query", "--search", str(path)).partition(": ")[0]
        for line in _printed("dpkg-query", "--control-show", owner, "md5sums").splitlines():
            digest, _, name = line.partition("  ")
            if f"/{name}" == str(path):
                return digest
    except (FileNotFoundError, subprocess.CalledProcessError):
        # no dpkg, no package, or one without such a list
        pass
    return ""


def _printed(*words: str) -> str:
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout


def checksum_of(path: Path, like: str = "0" * 64) -> str:
    """The checksum of a file on this machine, of the same kind as ``like``; raises OSError."""
    status = path.stat()
    return _digest(path, program_of(like), status.st_size, status.st_mtime_ns)


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
    program = f"{program_of(checksum)}sum"
    return host.test(Command.script(script, program, path, checksum), timeout=_HASH_SECONDS)


def program_of(checksum: str) -> str:
    """The kind of checksum that has this length, sha256 or sha512; raises BadInput for others."""
    try:
        return _PROGRAMS[len(checksum)]
    except KeyError:
        raise BadInput(f"{checksum!r} is neither a SHA-256 nor a SHA-512 checksum") from None


@lru_cache(maxsize=16)
def _digest(path: Path, program: str, size: int, mtime_ns: int) -> str:
    # size and time are part of the key: a file that has changed is read again
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, program).hexdigest()
