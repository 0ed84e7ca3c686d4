"""Strict known_hosts: which keys are pinned for a host, refusing all others, pinning one more."""

from __future__ import annotations

import base64
import fnmatch
import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import paramiko
from cryptography.hazmat.primitives.serialization import SSHCertificate
from paramiko.hostkeys import HostKeyEntry, HostKeys

from xenlab import durable
from xenlab.errors import BadInput, HostKeyRefused, StepFailed
from xenlab.transport.keys import (
    AUTHORITY_SIGNATURES,
    authority_of,
    certificate_from,
    refusal_of_host,
)
from xenlab.transport.ssh_config import SSH_PORT, Target, resolve

MARKERS = ("", "@revoked", "@cert-authority")


@dataclass(frozen=True)
class Pinned:
    """One line of a known_hosts file that names a host."""

    key: paramiko.PKey
    file: Path
    line: int
    marker: str = ""

    @property
    def revoked(self) -> bool:
        """Whether the line says that the key must not be accepted."""
        return self.marker == "@revoked"

    @property
    def authority(self) -> bool:
        """Whether the line names who may sign hosts' certificates."""
        return self.marker == "@cert-authority"

    def __str__(self) -> str:
        return f"{describe(self.key)} ({self.file}:{self.line})"


def host_name(name: str, port: int) -> str:
    """A host as known_hosts writes it: ``[host]:port`` unless the port is 22."""
    name = name.lower()
    return name if port == SSH_PORT else f"[{name}]:{port}"


def own_file(site: str) -> Path:
    """The known_hosts file of xenlab's own for a site: no other site's hosts are named in it.

    It lies in $XDG_STATE_HOME/xenlab, or else in ~/.local/state/xenlab.
    """
    base = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(base).expanduser() / "xenlab" / site / "known_hosts"


def place(target: Target) -> tuple[Path, str, int]:
    """The file that a host's key is pinned in, and the name and port that it is pinned under.

    Raises StepFailed where no such file is named.
    """
    route = resolve(target)
    if not route.known_hosts:
        raise StepFailed(
            f"cannot pin a key of {target.host}: because no known_hosts file is named for it",
            hint="name one in the ssh_config (UserKnownHostsFile) or in ssh.known_hosts",
        )
    return route.known_hosts[0], *route.pinned_as


def describe(key: paramiko.PKey) -> str:
    """Type and fingerprint of a key, as OpenSSH prints them."""
    return f"{key.get_name()} {key.fingerprint}"


def pinned(files: Iterable[Path], name: str, port: int = SSH_PORT) -> list[Pinned]:
    """Every usable line of the files that names the host, revoked ones included.

    As with OpenSSH lines of the mere name count where none names the port. A line that cannot be
    read and a file that is missing are passed over.
    """
    files = [*files]
    lines = [*_lines(files, host_name(name, port))]
    if port == SSH_PORT or any(not line.marker for line in lines):
        return lines
    return [*lines, *_lines(files, host_name(name, SSH_PORT))]


def known_keys(files: Iterable[Path], name: str, port: int = SSH_PORT) -> list[paramiko.PKey]:
    """The keys pinned for a host; several of one type are fine, any of them is accepted."""
    lines = pinned(files, name, port)
    revoked = [line.key for line in lines if line.revoked]
    return [line.key for line in lines if not line.marker and line.key not in revoked]


def has_authority(files: Iterable[Path], name: str, port: int = SSH_PORT) -> bool:
    """Whether a certificate may prove that a host is who it says."""
    return any(line.authority for line in pinned(files, name, port))


def check(
    key: paramiko.PKey,
    files: Sequence[Path],
    name: str,
    port: int = SSH_PORT,
    where: str = "",
    *,
    revoked: Path | None = None,
    strict: str = "yes",
    hash_names: bool = False,
    signatures: Collection[str] = AUTHORITY_SIGNATURES,
) -> None:
    """Accept a host's key only if it is pinned, or certified by an authority that is.

    ``revoked`` is a file of keys that are never accepted (RevokedHostKeys). A key of a host of
    which none is known is pinned where ``strict`` is accept-new. Raises HostKeyRefused with what
    to do.
    """
    lines = pinned(files, name, port)
    host = host_name(name, port)
    there = [file for file in files if file.exists()] or files[:1]
    named = ", ".join(str(file) for file in there) or "any known_hosts file"
    certificate = _certificate_of(key)
    signer = authority_of(certificate) if certificate else b""
    by = [str(line.file) for line in lines if line.revoked and line.key.asbytes() == signer]
    by += [named for line in lines if line.revoked and line.key == key][:1]
    if not by and revoked is not None and _revokes(revoked, key, signer, where):
        by = [str(revoked)]
    if by:
        raise HostKeyRefused(
            f"cannot trust {host}: because it offers {describe(key)}, which is revoked in {by[0]}",
            where=where,
            hint="do not connect; give the machine a new host key",
        )
    note = ""
    if certificate and any(line.authority and line.key.asbytes() == signer for line in lines):
        refused = refusal_of_host(certificate, name, signatures)
        if not refused:
            return
        note = f"; its certificate {refused}"
    if any(not line.marker and line.key == key for line in lines):
        return
    others = [line for line in lines if not line.marker]
    if others:
        raise _changed(key, others, host, f"ssh-keyscan -p {port} {name}", where, note)
    if strict == "accept-new":
        _accept(key, files, name, port, hash_names)
        return
    place = next((file for file in files if file.is_file() or not file.exists()), "known_hosts")
    weak = "; StrictHostKeyChecking no is not followed" if strict == "no" else ""
    raise HostKeyRefused(
        f"cannot trust {host}: because its key is unknown: it offers {describe(key)}, and no "
        f"key of it stands in {named}{note}{weak}",
        where=where,
        hint="compare the fingerprint on the machine's own console "
        "(ssh-keygen -lf /etc/ssh/ssh_host_*_key.pub), "
        f"then pin the key: ssh-keyscan -p {port} {name} >> {place}",
    )


def _changed(
    key: paramiko.PKey, others: list[Pinned], host: str, keyscan: str, where: str, note: str
) -> HostKeyRefused:
    return HostKeyRefused(
        f"cannot trust {host}: because its key has changed: it offers {describe(key)}, "
        f"pinned is {'; '.join(str(line) for line in others)}{note}",
        where=where,
        hint="somebody may stand in between, or the machine was reinstalled: compare the "
        f"fingerprint on its own console; only then ssh-keygen -R '{host}' -f {others[0].file} "
        f"and {keyscan} >> {others[0].file}",
    )


def _accept(
    key: paramiko.PKey, files: Sequence[Path], name: str, port: int, hash_names: bool
) -> None:
    """Pin the key of a host that nobody knows, as accept-new wants it.

    Raises BadInput where the file keeps nothing: each time would be the first one.
    """
    if not files:
        raise BadInput(
            "cannot follow StrictHostKeyChecking accept-new: because no known_hosts file is named",
            where=name,
            hint="name one in the ssh_config (UserKnownHostsFile)",
        )
    pin(files[0], name, port, f"{key.get_name()} {key.get_base64()}", hashed=hash_names)


def _certificate_of(key: paramiko.PKey) -> SSHCertificate | None:
    blob = getattr(key, "public_blob", None)
    return certificate_from(blob.key_blob) if blob is not None else None


def _revokes(file: Path, key: paramiko.PKey, signer: bytes, where: str) -> bool:
    """Whether a file of revoked keys, or a key revocation list, names a key or who signed it."""
    try:
        content = file.read_bytes()
    except OSError as error:
        raise HostKeyRefused(
            f"cannot trust the host: because {file}, which names revoked keys, cannot be read: "
            f"{error.strerror}",
            where=where,
            hint="correct RevokedHostKeys in the ssh_config",
        ) from error
    if not content.startswith(b"SSHKRL\n\0"):
        words = content.split()
        blobs = [base64.b64encode(blob) for blob in (key.asbytes(), signer) if blob]
        return any(blob in words for blob in blobs)
    blob = getattr(key, "public_blob", None)
    offered = blob.key_blob if blob is not None else key.asbytes()
    with tempfile.NamedTemporaryFile(suffix=".pub") as shown:
        kind = blob.key_type if blob is not None else key.get_name()
        shown.write(f"{kind} {base64.b64encode(offered).decode()}\n".encode())
        shown.flush()
        # 0 for a key that is not revoked; the list's format is OpenSSH's own
        command = ["ssh-keygen", "-Q", "-f", str(file), shown.name]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=30)
    return done.returncode != 0


def pin(
    file: Path,
    name: str,
    port: int,
    key_line: str,
    *,
    alone: bool = False,
    hashed: bool = False,
) -> bool:
    """Add a key for a host unless it stands there; whether the file was changed.

    ``key_line`` is a line of a ``.pub`` file or of ssh-keyscan; ``alone``: the host's other keys
    are dropped, but for those of a pattern and revoked ones; ``hashed``: the name is written so
    that nobody can read it. The file is replaced whole, so that a
    reader never sees half a line. Raises BadInput if the line holds no key, and where
    `regular_file` does; raises DiskFull.
    """
    key = _key_of(key_line)
    if key is None:
        raise BadInput(
            f"cannot pin {key_line.strip()!r}: because it is no public host key",
            where=name,
            hint="give a line of a .pub file, or of ssh-keyscan",
        )
    file = regular_file(file, name)
    with durable.space(file.parent):
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # Two that pin at the same time must not lose each other's line.
    with durable.locked_folder(file.parent):
        host, old = host_name(name, port), file.read_bytes() if file.exists() else b""
        new = _without(file, host, old, lambda each: each != key) if alone else old
        if key not in [line.key for line in _lines([file], host) if not line.marker]:
            gap = b"" if not new or new.endswith(b"\n") else b"\n"
            shown = HostKeys.hash_host(host) if hashed else host
            new += gap + f"{shown} {key.get_name()} {key.get_base64()}\n".encode()
        if new != old:
            mode = file.stat().st_mode & 0o777 if file.exists() else 0o600
            durable.replace(file, new, mode=mode)
        return new != old


def regular_file(file: Path, name: str) -> Path:
    """The regular file, there or not yet, that a known_hosts file stands for: a link is followed.

    What replaces a file would replace the link, or the device, that bears its name. Raises
    BadInput where it is no regular file, as with ``UserKnownHostsFile /dev/null``.
    """
    try:
        place = file.expanduser().resolve()
    except (OSError, RuntimeError) as error:
        reason = str(error)
    else:
        if not place.exists() or place.is_file():
            return place
        reason = "it is no regular file"
    raise BadInput(
        f"cannot pin a key in {file}: because {reason}",
        where=name,
        hint="name a file in ssh.known_hosts, or in the ssh_config (UserKnownHostsFile)",
    )


def unpin(file: Path, name: str, port: int, key_line: str) -> bool:
    """Take a key of a host's out of a file; whether the file was changed.

    Lines of a pattern and revoked keys stay. Raises as `pin` does.
    """
    key, file = _key_of(key_line), regular_file(file, name)
    if key is None or not file.exists():
        return False
    with durable.locked_folder(file.parent):
        old = file.read_bytes()
        new = _without(file, host_name(name, port), old, lambda each: each == key)
        if new != old:
            durable.replace(file, new, mode=file.stat().st_mode & 0o777)
        return new != old


def _without(file: Path, host: str, old: bytes, goes: Callable[[paramiko.PKey], bool]) -> bytes:
    """A known_hosts file's text without the host's name in the lines of keys that are to go."""
    lines: list[bytes | None] = [*old.split(b"\n")]
    for found in _lines([file], host):
        if found.marker or not goes(found.key):
            continue
        line = lines[found.line - 1] or b""
        names = line.split()[0]
        if any(mark in names for mark in b"*?!"):
            continue
        # a line may be of several machines
        others = [n for n in names.split(b",") if not _matches(n.decode(errors="replace"), host)]
        lines[found.line - 1] = line.replace(names, b",".join(others), 1) if others else None
    return b"\n".join(line for line in lines if line is not None)


def _key_of(text: str) -> paramiko.PKey | None:
    """The key in a ``.pub`` or known_hosts line, None if there is none."""
    words = text.split()
    for start in range(min(2, len(words))):
        entry = _parse("host", words[start : start + 2])
        if entry is not None:
            return entry
    return None


def _lines(files: Iterable[Path], host: str) -> Iterator[Pinned]:
    for file in files:
        # a device or a pipe holds no lines, and may have no end
        if not file.is_file():
            continue
        try:
            lines = file.read_bytes().split(b"\n")
        except OSError:
            continue
        for number, line in enumerate(lines, 1):
            words = line.decode("utf-8", "replace").split()
            if not words or words[0].startswith("#"):
                continue
            marker = words.pop(0) if words[0].startswith("@") else ""
            if marker not in MARKERS or len(words) < 3 or not _matches(words[0], host):
                continue
            key = _parse(words[0], words[1:3])
            if key is not None:
                yield Pinned(key, file, number, marker)


def _parse(names: str, words: Sequence[str]) -> paramiko.PKey | None:
    if len(words) < 2:
        return None
    try:
        entry = HostKeyEntry.from_line(" ".join([names, *words]))
    except Exception:
        # A damaged key makes paramiko raise anything from binascii.Error to struct.error; one
        # line that cannot be read must not hide the good ones.
        return None
    # A blob of another type than the line claims is as good as damaged.
    if entry is None or entry.key is None or entry.key.get_name() != words[0]:
        return None
    return entry.key


def _matches(names: str, host: str) -> bool:
    found = False
    for name in names.split(","):
        if name.startswith("|1|"):
            # a damaged salt makes paramiko raise either of these
            with suppress(ValueError, AssertionError):
                found = found or HostKeys.hash_host(host, name) == name
            continue
        # known_hosts patterns know * and ? only: brackets belong to [host]:port.
        pattern = re.sub(r"\[", "[[]", name.lstrip("!").lower())
        if fnmatch.fnmatchcase(host, pattern):
            if name.startswith("!"):
                return False
            found = True
    return found
