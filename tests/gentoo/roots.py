"""Root directories of the stage with Portage and OpenRC, as the domains of a lab have them."""

from __future__ import annotations

from pathlib import Path

from tests.namespace import Namespace

from xenlab.command import Command
from xenlab.host import Host
from xenlab_lab.stage import portage_stage

UNPACK = """
    mount -t tmpfs -o mode=755 none "$1"
    mkdir -p "$1/stage" "$1/share"
    tar -x -f "$2" -C "$1/stage" --numeric-owner --xattrs --xattrs-include='*'
"""
DOMAIN = """
    root=$1/$2
    mkdir -p "$root" "$root.own" "$root.work"
    mount -t overlay -o "lowerdir=$1/stage,upperdir=$root.own,workdir=$root.work" none "$root"
    mkdir -p "$root/mnt/share"
    mount --bind "$1/share" "$root/mnt/share"
    [ "$3" = rw ] || mount -o "remount,bind,$3" "$root/mnt/share"
    mount -t proc none "$root/proc"
    mount --rbind /dev "$root/dev"
    cat /etc/resolv.conf > "$root/etc/resolv.conf"
"""


def quiet(what: str, done: float | None = None) -> None:
    """A report that nobody reads."""


class Roots:
    """One unpacked stage; each domain has it with changes of its own, and /mnt/share in common.

    All of it lies in memory, and in mounts that nobody else sees.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        archive, _ = portage_stage()
        self.namespace = Namespace(users=True)
        self.machine = Host(self.namespace)
        self.machine.run(Command.script(UNPACK, str(folder), str(archive)), timeout=600)

    def domain(self, name: str, share: str = "rw") -> Host:
        """A domain that has the share ``rw`` or ``ro``."""
        self.machine.run(Command.script(DOMAIN, str(self.folder), name, share), timeout=60)
        return self.machine.inside(str(self.folder / name))

    def end(self) -> None:
        """Nothing is left of it."""
        self.namespace.end()
