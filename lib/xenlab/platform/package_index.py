"""What packages there are: an index of them, or a tree, that must not be too old."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass

from xenlab.command import Command
from xenlab.errors import BadInput, CommandFailed
from xenlab.host import Host
from xenlab.names import PACKAGE_NAMES
from xenlab.platform import locks
from xenlab.resources.base import Difference, Report, Resource

INSTALL_SECONDS = 3600.0
"""Deadline of fetching an index and of installing packages, in seconds: an emulated host is slow.
"""

INDEX_DAYS = 14
"""How old the index may be, in days."""

NO_ROOT = (125, 126, 127)
"""What chroot answers where the root, or the program in it, is not there yet."""

_MISSING = 44
_DAY = 86400


@dataclass(frozen=True)
class Index(Resource):
    """What ``command`` fetches into ``folder`` was fetched less than ``days`` days ago.

    ``pattern`` is what the folder holds, if it holds an index at all; ``script`` runs the command.
    ``settings`` is a file that says where the index comes from: what is older than it is too old.
    """

    folder: str
    pattern: str
    command: str
    script: str
    days: int = INDEX_DAYS
    settings: str = ""

    def probe(self, host: Host) -> Difference | None:
        """Whether there is no index, or an old one."""
        script = """
            folder=$1 settings=$3
            set -- "$folder"/$2
            [ -e "$1" ] || exit 44
            [ -z "$settings" ] || [ ! "$settings" -nt "$folder" ] || exit 44
            stat -L -c %Y -- "$folder"
            date +%s
        """
        command = Command.script(script, self.folder, self.pattern, self.settings)
        result = host.run(command, check=False)
        if result.status == _MISSING or result.status in NO_ROOT:
            return Difference(f"fetch the package index ({self.command})")
        if not result.ok:
            raise CommandFailed(result)
        fetched, now = (int(line) for line in result.stdout.split())
        if now - fetched < self.days * _DAY:
            return None
        then = time.strftime("%Y-%m-%d", time.gmtime(fetched))
        return Difference(f"fetch the package index again ({self.command}): it is of {then}")

    def apply(self, host: Host, report: Report) -> None:
        """Fetch it; a source that does not answer is an error."""
        report(self.command)
        # what has not changed keeps its time: that it was asked for is to be seen all the same
        touch = 'touch -- "$1"'
        command = Command.script(f"{self.script}\n{touch}", self.folder)
        locks.run(host, command, report, timeout=INSTALL_SECONDS)


def require_names(names: Iterable[str], system: str) -> None:
    """Raise BadInput for a name that no package of this system ("debian", "gentoo") can have."""
    for name in names:
        try:
            PACKAGE_NAMES[system](name)
        except ValueError as error:
            raise BadInput(f"a package's name {error}") from None


def new_versions(expression: str, old: str) -> Command:
    """A command that finds what was installed beside a configuration file, instead of over it.

    ``expression`` (an extended regular one) matches the end of such a file's path; ``old`` takes
    its place in the path of the file that was kept. It prints both paths, a tab between them.
    """
    script = r"""
        find /etc -type f | LC_ALL=C sort \
            | sed -nE -e "h; s#$1#$2#; t found" -e d -e ":found" -e 'G; s/\n/\t/p'
    """
    return Command.script(script, expression, old)


def require_unneeded(names: Iterable[str], needed: Iterable[str]) -> None:
    """Raise BadInput for a package that is to go, and that the chapters need."""
    for name in sorted({*names} & {*needed}):
        raise BadInput(f"unwanted names {name}, which the chapters need")
