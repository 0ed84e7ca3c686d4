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
        """Whether the link or the directory is missing."""
        script = 'readlink -- "$1"; [ -d "$2" ]'
        result = host.run(Command.script(script, self.path, self.to), check=False)
        if result.ok and result.stdout == f"{self.to}\n":
            return None
        return Difference(f"move {self.path} to {self.to} and link it back")

    def apply(self, host: Host, report: Report) -> None:
        """Copy, compare, delete, link. Raises StepFailed where the copy is not the same."""
        report(f"moving {self.path} to {self.to}")
        script = """
            mkdir -p -- "$2" "${1%/*}/"
            if [ -d "$1" ] && [ ! -L "$1" ]; then
                # a mount below it would be emptied with it
                if grep -qF -- " $(readlink -f -- "$1")/" /proc/self/mounts; then exit 46; fi
                rsync -aHAX -- "$1/" "$2/"
                [ -z "$(rsync -aHAXnc --itemize-changes -- "$1/" "$2/")" ] || exit 45
                rm -rf --one-file-system -- "$1"
            fi
            ln -sfnT -- "$2" "$1"
        """
        result = host.run(Command.script(script, self.path, self.to), timeout=3600, check=False)
        if result.status == _NOT_THE_SAME:
            raise StepFailed(f"{self.to} is no true copy of {self.path}; nothing was deleted")
        if result.status == _MOUNTED:
            raise StepFailed(
                f"something is mounted below {self.path}; it is not moved",
                hint=f"unmount it: findmnt -R {self.path}",
            )
        if not result.ok:
            raise CommandFailed(result)
