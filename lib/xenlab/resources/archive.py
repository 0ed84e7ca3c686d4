"""Archives: a file brought to a host whole, and a root unpacked from a tarball."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from xenlab.command import Command
from xenlab.errors import CommandFailed, StepFailed
from xenlab.host import Host
from xenlab.resources.base import Difference, Report, Resource
from xenlab.resources.checksum import checksum_of, has_checksum, require_checksum

RECORD = "etc/xenlab-generation"
"""Where a root says which archive it was unpacked from, and that this was finished."""

_UNPACK_SECONDS = 3600.0
_EMPTY, _FOREIGN = 44, 45


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

    def probe(self, host: Host) -> Difference | None:
        """Whether the copy is missing, or its size or record differ. Raises BadInput, see apply."""
        checksum = self._checksum()
        size = self._path().stat().st_size
        script = 'stat -c %s -- "$1"; cat -- "$1.checksum"'
        result = host.run(Command.script(script, self.remote), check=False)
        if result.ok and result.stdout.split() == [str(size), checksum]:
            return None
        return Difference(f"upload {self._path().name} to {self.remote} ({size // 1024**2} MiB)")

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

    def apply(self, host: Host, report: Report) -> None:
        """Unpack it with owners, ACLs and file capabilities.

        Raises StepFailed where the root holds anything but a half unpacked copy of this archive,
        or if the archive has another checksum; nothing is written then.
        """
        record = self._record(host)
        if record not in ("", f"begun {self.checksum}"):
            raise StepFailed(
                f"{self.into} already holds other files ({record}) and is not written over",
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
                f"{tarball} is missing or has a wrong checksum",
                hint="is there room on that file system? Run the step again, or make it anew",
            )
        report(f"unpacking {PurePosixPath(tarball).name}")
        host.run(
            Command.script(
                """
                mkdir -p -- "$2/${3%/*}"
                printf 'begun %s\\n' "$4" > "$2/$3"
                # the archive may hold the record of the root it was made from; without
                # --xattrs-include file capabilities would be lost silently (tar(1))
                tar --numeric-owner --acls --xattrs --xattrs-include='*' --anchored \\
                    --exclude="$3" --exclude="./$3" -C "$2" -xpf "$1"
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
            timeout=_UNPACK_SECONDS,
        )
        if self.store:
            host.run(
                Command.script('rm -f -- "$1"; rmdir -- "$2" 2>/dev/null || :', tarball, self.store)
            )

    def _record(self, host: Host) -> str:
        script = """
            [ -d "$1" ] || exit 44
            if [ -e "$1/$2" ]; then cat -- "$1/$2"; exit 0; fi
            first=$(find "$1" -xdev ! -type d -print -quit)
            [ -n "$first" ] || exit 44
            printf '%s\\n' "$first"
            exit 45
        """
        command = Command.script(script, self.into.rstrip("/") or "/", RECORD)
        result = host.run(command, check=False)
        if result.status in (_EMPTY, 125, 126, 127):
            return ""
        if result.status == _FOREIGN:
            return f"there is {result.stdout.strip()}"
        if not result.ok:
            raise CommandFailed(result)
        return result.stdout.strip()

    def _local(self) -> Path:
        return Path(self.source).expanduser()
