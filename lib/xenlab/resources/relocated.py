"""A directory that was moved to another file system and linked back to its place."""

from __future__ import annotations

from dataclasses import dataclass

from xenlab.command import Command
from xenlab.errors import CommandFailed, StepFailed
from xenlab.host import Host
from xenlab.resources.base import Difference, Report, Resource

_NOT_THE_SAME = 45
_MOUNTED = 46


@dataclass(frozen=True)
class Relocated(Resource):
    """``path`` is a link to the directory ``to``, and ``to`` holds what was in ``path``.

    The howto's three lines for /usr/src: rsync it to the share, delete it, link it back.
    """

    path: str
    to: str

    def probe(self, host: Host) -> Difference | None:
        """Whether the link or the directory is missing, or the original is not yet deleted."""
        script = 'readlink -- "$1"; [ -d "$2" ] && [ ! -e "$3" ]'
        command = Command.script(script, self.path, self.to, self._aside)
        result = host.run(command, check=False)
        if result.ok and result.stdout == f"{self.to}\n":
            return None
        return Difference(f"move {self.path} to {self.to} and link it back")

    def apply(self, host: Host, report: Report) -> None:
        """Copy, compare, link, delete. Raises StepFailed where the copy is not the same.

        The original goes when its copy and the link are on disk. Cut off anywhere, one of the two
        is whole, and the next time goes on from there.
        """
        report(f"moving {self.path} to {self.to}")
        script = """
            aside=$3
            if [ -d "$aside" ]; then
                # set aside by an earlier time: its copy was on disk, unless somebody took that away
                if [ -d "$2" ]; then
                    rm -rf --one-file-system -- "$aside"
                elif [ ! -e "$1" ]; then
                    rm -f -- "$1"
                    mv -T -- "$aside" "$1"
                fi
            fi
            mkdir -p -- "$2" "${1%/*}/"
            if [ -d "$1" ] && [ ! -L "$1" ]; then
                # a mount below it would be emptied with it
                if grep -qF -- " $(readlink -f -- "$1")/" /proc/self/mounts; then exit 46; fi
                rsync -aHAX -- "$1/" "$2/"
                [ -z "$(rsync -aHAXnc --itemize-changes -- "$1/" "$2/")" ] || exit 45
                sync -f -- "$2"
                mv -T -- "$1" "$aside"
            fi
            ln -sfnT -- "$2" "$1"
            sync -f -- "${1%/*}/"
            rm -rf --one-file-system -- "$aside"
        """
        command = Command.script(script, self.path, self.to, self._aside)
        result = host.run(command, timeout=3600, check=False)
        if result.status == _NOT_THE_SAME:
            raise StepFailed(f"{self.to} is no true copy of {self.path}; nothing was deleted")
        if result.status == _MOUNTED:
            raise StepFailed(
                f"something is mounted below {self.path}; it is not moved",
                hint=f"unmount it: findmnt -R {self.path}",
            )
        if not result.ok:
            raise CommandFailed(result)

    @property
    def _aside(self) -> str:
        """What the original is called from when its copy is on disk until it is deleted."""
        return f"{self.path}.xenlab-moved"
