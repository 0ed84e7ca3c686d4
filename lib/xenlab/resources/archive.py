"""Archives: what is signed, what its checksum is, a file brought whole, a root unpacked."""

from __future__ import annotations

import hashlib
import re
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath

from xenlab.command import CONTROLLER, Command
from xenlab.errors import BadInput, StepFailed
from xenlab.host import Host
from xenlab.resources.base import Difference, Report, Resource

# A text's OpenPGP signature, looked at by gpgv before a line of the text is believed.

_BEGIN = b"-----BEGIN PGP SIGNED MESSAGE-----"
_STATUS = "[GNUPG:] "


def signed_text(data: bytes, what: str, keyring: str, signers: Sequence[str]) -> str:
    """What a clear-signed text says, without anything that stands outside of the signature.

    ``keyring`` is a file of OpenPGP keys, wherever it came from: who is believed is said by
    ``signers``, fingerprints of primary keys. Raises BadInput unless one of them signed.
    """
    if not keyring or not signers:
        raise BadInput(
            f"cannot believe {what}: because it is signed, and the site does not say by whose key",
            hint="name a file of keys in checksum_keyring (gpg --export > FILE), and the "
            "fingerprints of those who are believed in checksum_signers",
        )
    keys = Path(keyring).expanduser().absolute()
    if not keys.is_file():
        raise BadInput(
            f"cannot check the signature of {what}: because there is no file of keys {keys}",
            hint="name another one in checksum_keyring, or write it: gpg --export > FILE",
        )
    done, said = _gpgv(data, keys, what)
    valid = [words for words in said if words[:1] == ["VALIDSIG"]]
    # a key that has expired, or was taken back, gives a valid signature that is not good
    good = any(words[:1] == ["GOODSIG"] for words in said)
    if done.returncode or not good or not valid:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        reason = lines[-1].removeprefix("gpgv: ") if lines else "gpgv found no good signature"
        raise BadInput(
            f"cannot believe {what}: because its signature is not good ({reason})",
            hint=f"fetch it again; if the key is missing in {keys} or has expired, fetch the key",
        )
    by = [words[-1] for words in valid]
    if not {*by} & {signer.replace(" ", "").upper() for signer in signers}:
        raise BadInput(
            f"cannot believe {what}: because it was signed by {', '.join(by)}, whom "
            "checksum_signers does not name",
            hint="add that fingerprint if it is known to be the right one",
        )
    return done.stdout.decode(errors="replace")


def _gpgv(
    data: bytes, keys: Path, what: str
) -> tuple[subprocess.CompletedProcess[bytes], list[list[str]]]:
    """gpgv's end, and the words of each line of its status output (gnupg's doc/DETAILS)."""
    with tempfile.TemporaryFile() as status:
        words = ["gpgv", "--status-fd", str(status.fileno()), "--keyring", str(keys)]
        try:
            done = subprocess.run(
                [*words, "--output", "-", "-"],
                input=data,
                capture_output=True,
                pass_fds=(status.fileno(),),
                check=False,
            )
        except FileNotFoundError:
            raise BadInput(
                f"cannot check the signature of {what}: because gpgv is not installed",
                hint="apt-get install gpgv",
            ) from None
        status.seek(0)
        lines = status.read().decode(errors="replace").splitlines()
    return done, [line.removeprefix(_STATUS).split() for line in lines]


# Checksums: out of a checksum file, and of a file on this machine or on a host.

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
        raise BadInput(
            f"cannot read the checksum file {path}: because {error.strerror}",
            hint=f"write it with: sha256sum {name} > {path.name}",
        ) from None
    # a text says of itself that it is signed
    if _BEGIN in data:
        text = signed_text(data, str(path), keyring, signers)
    else:
        text = data.decode(errors="replace")
    found = find_checksum(text, name)
    if not found:
        raise BadInput(
            f"cannot check {name}: because {path} has no SHA-256 or SHA-512 checksum of {name}",
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
        raise BadInput(
            f"cannot read {path}: because there is no such file on the controller",
            hint="name one that is there in kernel_source",
        )
    noted = _noted_by_dpkg(real)
    if not noted:
        raise BadInput(
            f"cannot tell whether {path} is genuine: because no Debian package brought it",
            hint="name the file that has its checksum in kernel_checksums",
        )
    status = real.stat()
    if _digest(real, "md5", status.st_size, status.st_mtime_ns) != noted:
        raise BadInput(
            f"cannot believe {path}: because it was changed since its Debian package brought it",
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


_UNPACKED = r"""
    case $1 in
        *.xz) xz --robot --list -- "$1" | sed -n 's/^totals\t//p' | cut -f 4 ;;
        *.zst) zstd -dc -- "$1" | wc -c ;;
        *.gz | *.tgz) gzip -dc -- "$1" | wc -c ;;
        *.bz2) bzip2 -dc -- "$1" | wc -c ;;
        *) stat -L -c %s -- "$1" ;;
    esac
"""


def unpacked_mib(host: Host, path: str) -> int:
    """How many whole MiB a tarball on a host has unpacked: its root takes more, never less.

    0 where the host has nothing to unpack it with; one command.
    """
    found = host.run(Command.script(_UNPACKED, path).within(_HASH_SECONDS), check=False)
    return int(found.stdout.strip() or 0) >> 20


def codename_in(host: Host, path: str) -> str:
    """Which release of a distribution a tarball of a root on a host is, "" where it does not say.

    That is VERSION_CODENAME of os-release(5); one command.
    """
    script = """
        tar -xOf "$1" ./usr/lib/os-release usr/lib/os-release 2> /dev/null \\
            | sed -n 's/^VERSION_CODENAME=//p'
    """
    return host.run(Command.script(script, path), timeout=_HASH_SECONDS).stdout.strip().strip('"')


def require_checksum(path: Path, checksum: str) -> None:
    """Raise BadInput unless a file on this machine is there and has this checksum."""
    try:
        found = checksum_of(path, checksum)
    except OSError as error:
        raise BadInput(
            f"cannot read {path}: because {error.strerror}",
            hint="fetch or build the file, or correct its path",
        ) from None
    if found != checksum:
        raise BadInput(
            f"cannot take {path}: because it has a wrong checksum: {found}, wanted is {checksum}",
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
        raise BadInput(
            f"cannot compare with {checksum!r}: because that is neither a SHA-256 nor a SHA-512",
            hint="write the checksum with sha256sum or sha512sum",
        ) from None


@lru_cache(maxsize=16)
def _digest(path: Path, program: str, size: int, mtime_ns: int) -> str:
    # size and time are part of the key: a file that has changed is read again
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, program).hexdigest()


# Archives: a file brought to a host whole, and a root unpacked from a tarball.

RECORD = "etc/xenlab-generation"
"""Where a root says which archive it was unpacked from, and that this was finished."""

UNTAR = "tar --numeric-owner --acls --xattrs --xattrs-include='*'"
"""Unpacks with owners, ACLs and attributes; without the last word file capabilities would be lost
silently (tar(1)).
"""

UNPACK_SECONDS = 3600.0


def send(host: Host, local: Path, remote: str, report: Report) -> None:
    """Copy a file to a host; it has its name as soon as it is whole, and not before."""

    def progress(done: int, total: int) -> None:
        report(f"uploading {local.name}", done / total if total else None)

    host.run(Command.argv("mkdir", "-p", "--", str(PurePosixPath(remote).parent)))
    host.upload(local, remote, progress)


@dataclass(frozen=True)
class Upload(Resource):
    """A file of the controller, on the host with the same content.

    ``checksum`` (SHA-256 or SHA-512) is what the controller's file must have; "" takes it as it is.
    A record beside the copy (NAME.checksum) spares reading it all again.
    """

    local: str
    remote: str
    checksum: str = ""
    root: str = "/"

    def probe(self, host: Host) -> Difference | None:
        """Whether the copy is missing, or its size or record differ. Raises BadInput, see apply."""
        checksum = self._checksum()
        size = self._path().stat().st_size
        script = 'stat -c %s -- "$1"; cat -- "$1.checksum"'
        result = host.run(Command.script(script, self.remote), check=False)
        if result.ok and result.stdout.split() == [str(size), checksum]:
            return None
        return Difference(f"upload {self._path().name} to {self.remote} ({size // 1024**2} MiB)")

    def commands(self) -> tuple[Command, ...]:
        """Copy it, from this machine."""
        remote = f"{self.root.rstrip('/')}{self.remote}"
        copy = Command.sh("scp {local} dom0:{remote}", local=self._path(), remote=remote)
        return (copy.at(CONTROLLER),)

    def recorded(self) -> tuple[Command, ...]:
        """Its checksum, beside it."""
        return (Command.file(f"{self.remote}.checksum", f"{self._checksum()}\n"),)

    def apply(self, host: Host, report: Report) -> None:
        """Upload it; raises BadInput unless the controller's file is there and right."""
        checksum = self._checksum()
        send(host, self._path(), self.remote, report)
        host.write(f"{self.remote}.checksum", f"{checksum}\n")

    def _path(self) -> Path:
        return Path(self.local).expanduser()

    def _checksum(self) -> str:
        path = self._path()
        if self.checksum or not path.is_file():
            require_checksum(path, self.checksum or "0" * 64)
        return self.checksum or checksum_of(path)


@dataclass(frozen=True)
class Archive(Resource):
    """A root directory unpacked from this very archive (howto: „Stage3 auf dom0-Root aufspielen“).

    ``source`` is a tarball on the controller, which is brought to the folder ``store`` on the host
    for as long as it takes, or, with ``store`` "", one on the host. ``checksum`` is its SHA-256 or
    SHA-512. The record in the root is written last: a root without it is not complete.
    """

    source: str
    checksum: str
    into: str
    store: str = ""

    def probe(self, host: Host) -> Difference | None:
        """Whether the root is empty, half unpacked, or holds something else.

        Raises BadInput if there is something to do and the controller's archive is not right.
        """
        record = self._record(host)
        if record == f"complete {self.checksum}":
            return None
        if self.store:
            require_checksum(self._local(), self.checksum)
        name = PurePosixPath(self.source).name
        if record == f"begun {self.checksum}":
            return Difference(f"unpack {name} into {self.into} again: it was not finished")
        now = f", which is not empty ({record})" if record else ""
        return Difference(f"unpack {name} into {self.into}{now}")

    def commands(self) -> tuple[Command, ...]:
        """Bring it where that is needed, compare its checksum, unpack it."""
        name = PurePosixPath(self.source).name
        tarball = f"{self.store}/{name}" if self.store else self.source
        copy = Command.sh("scp {a} dom0:{b}", a=self._local(), b=tarball).at(CONTROLLER)
        check = Command.sh(
            f"echo {{line}} | {program_of(self.checksum)}sum --check",
            line=f"{self.checksum}  {tarball}",
        )
        text = f"{UNTAR} -C {{into}} -xpf {{tarball}}"
        unpack = Command.sh(text, into=self.into, tarball=tarball)
        folder = Command.argv("mkdir", "-p", self.store)
        return (folder, copy, check, unpack) if self.store else (check, unpack)

    def recorded(self) -> tuple[Command, ...]:
        """That it is complete, in the root."""
        path = f"{self.into.rstrip('/')}/{RECORD}"
        folder = Command.argv("mkdir", "-p", path.rpartition("/")[0])
        return folder, Command.file(path, f"complete {self.checksum}\n")

    def apply(self, host: Host, report: Report) -> None:
        """Unpack it with owners, ACLs and file capabilities.

        Raises StepFailed where the root holds anything but a half unpacked copy of this archive,
        or if the archive has another checksum; nothing is written then.
        """
        if refused := self.refusal(host):
            raise StepFailed(
                refused,
                hint="make its file system anew to have it replaced: wipefs -a its device, then "
                "run chapter 01",
            )
        tarball = self.source
        if self.store:
            tarball = f"{self.store}/{self._local().name}"
            require_checksum(self._local(), self.checksum)
            send(host, self._local(), tarball, report)
        report(f"checking {PurePosixPath(tarball).name}")
        if not has_checksum(host, tarball, self.checksum):
            raise StepFailed(
                f"cannot unpack {tarball}: because it is missing or has a wrong checksum",
                hint="free space on that file system, then run the step again",
            )
        report(f"unpacking {PurePosixPath(tarball).name}")
        host.run(
            Command.script(
                f"""
                mkdir -p -- "$2/${{3%/*}}"
                printf 'begun %s\\n' "$4" > "$2/$3"
                # the archive may hold the record of the root it was made from
                {UNTAR} --anchored --exclude="$3" --exclude="./$3" -C "$2" -xpf "$1"
                sync -f -- "$2"
                printf 'complete %s\\n' "$4" > "$2/$3.new"
                sync -- "$2/$3.new"
                mv -f -- "$2/$3.new" "$2/$3"
                """,
                tarball,
                self.into.rstrip("/"),
                RECORD,
                self.checksum,
            ),
            timeout=UNPACK_SECONDS,
        )
        if self.store:
            host.run(
                Command.script('rm -f -- "$1"; rmdir -- "$2" 2>/dev/null || :', tarball, self.store)
            )

    def refusal(self, host: Host) -> str:
        """That the root holds anything but a half unpacked copy of this archive."""
        record = self._record(host)
        if record in ("", f"begun {self.checksum}"):
            return ""
        return f"cannot unpack into {self.into}: because it already holds other files ({record})"

    def _record(self, host: Host) -> str:
        script = """
            [ -d "$1" ] || exit 44
            if [ -e "$1/$2" ]; then cat -- "$1/$2"; exit 0; fi
            first=$(find "$1" -xdev ! -type d -print -quit)
            [ -n "$first" ] || exit 44
            printf 'there is %s\\n' "$first"
        """
        command = Command.script(script, self.into.rstrip("/") or "/", RECORD)
        result = host.look(command, absent=(44,))
        return result.stdout.strip() if result else ""

    def _local(self) -> Path:
        return Path(self.source).expanduser()
