"""Mounted file systems, and the swap files of guests that lie on one of them."""

from __future__ import annotations

from dataclasses import dataclass

from xenlab.command import Command
from xenlab.errors import CommandFailed, StepFailed
from xenlab.host import Host
from xenlab.resources.base import Difference, Report, Resource
from xenlab.resources.blockdevices import plain

BIND = "bind"

_OTHER_MOUNTED = 45


@dataclass(frozen=True)
class Mount(Resource):
    """Something mounted now on a directory, which is made if it is missing.

    ``kind`` is a file system type, or "bind" for a directory seen in a second place with all that
    is mounted below it. /etc/fstab is not touched.
    """

    source: str
    target: str
    kind: str = "ext4"
    options: str = ""

    def probe(self, host: Host) -> Difference | None:
        """Whether nothing, or another device, is mounted there."""
        script = """
            readlink -f -- "$2" || exit
            stat -L -c 'device %t %T' -- "$1" 2>/dev/null || echo
            cat /proc/self/mountinfo
        """
        result = host.run(Command.script(script, self.source, self.target), check=False)
        wanted = Difference(f"mount {self.source} on {self.target}")
        if not result.ok:
            return wanted
        target, device, *mounts = result.stdout.splitlines()
        # proc_pid_mountinfo(5): the third field is major:minor, the fifth the mount point
        fields = (line.split() for line in mounts)
        there = [f[2] for f in fields if plain(f[4]) == target]
        if not there:
            return wanted
        number = ":".join(str(int(part, 16)) for part in device.split()[1:])
        if self.kind != BIND and self.source.startswith("/dev/") and there[-1] != number:
            return Difference(f"{wanted.summary}, where something else is now")
        return None

    def apply(self, host: Host, report: Report) -> None:
        """Mount it; raises StepFailed where something else is mounted."""
        report(f"mounting {self.target}")
        result = host.run(
            Command.script(
                """
                if mountpoint -q -- "$2"; then exit 45; fi
                mkdir -p -- "$2"
                if [ "$3" = bind ]; then
                    mount --rbind -- "$1" "$2"
                    # what is unmounted in here must stay mounted out there
                    mount --make-rslave -- "$2"
                else
                    mount -t "$3" ${4:+-o "$4"} -- "$1" "$2"
                fi
                """,
                self.source,
                self.target,
                self.kind,
                self.options,
            ),
            check=False,
        )
        if result.status == _OTHER_MOUNTED:
            raise StepFailed(
                f"something else than {self.source} is mounted on {self.target}",
                hint=f"look with findmnt {self.target}, and unmount it",
            )
        if not result.ok:
            raise CommandFailed(result)


@dataclass(frozen=True)
class SwapFile(Resource):
    """A file of this size (MiB) with a swap signature, its blocks allocated, only for root.

    A guest gets it as a disk: howto, Partitionen 6 („am besten als file-backend“).
    """

    path: str
    size_mib: int

    def probe(self, host: Host) -> Difference | None:
        """Whether it is missing, has another size or mode, has holes, or is no swap."""
        script = """
            [ -f "$1" ] || exit 44
            stat -c "%s %a %b %B" -- "$1"
            blkid -p -o value -s TYPE -- "$1" || :
        """
        result = host.run(Command.script(script, self.path), check=False)
        wanted = f"make the swap file {self.path} of {self.size_mib} MiB"
        if not result.ok:
            return Difference(wanted)
        now, _, kind = result.stdout.partition("\n")
        size, mode, blocks, block_size = now.split()
        whole = int(blocks) * int(block_size) >= int(size) == self.size_mib * 1024 * 1024
        if whole and mode == "600" and kind.strip() == "swap":
            return None
        return Difference(f"{wanted} anew: now {int(size) // 1024**2} MiB, mode {mode}")

    def apply(self, host: Host, report: Report) -> None:
        """Make it beside its place and move it there: a guest that runs keeps the file it has."""
        report(f"making {self.path}")
        script = """
            umask 077
            mkdir -p -- "${1%/*}/"
            trap 'rm -f -- "$1.new"' EXIT
            rm -f -- "$1.new"
            # holes would become I/O errors in the guest once the partition is full
            fallocate -l "$2MiB" -- "$1.new"
            chmod 600 -- "$1.new"
            mkswap -- "$1.new"
            mv -f -- "$1.new" "$1"
        """
        host.run(Command.script(script, self.path, self.size_mib), timeout=600)
