"""GRUB 2: its scripts, the menu that they make, and its code on the disk."""

from __future__ import annotations

from dataclasses import dataclass

from xenlab.command import Command
from xenlab.errors import CommandFailed, StepFailed
from xenlab.host import Host
from xenlab.resources.base import Difference, Report, Resource

ENTRY = "xenlab"
MKCONFIG_SECONDS = 900.0
INSTALL_SECONDS = 600.0

_NO_ROOT = (125, 126, 127)
_WRONG_DISK = 45


@dataclass(frozen=True)
class ScriptsOff(Resource):
    """Scripts in /etc/grub.d that are not executable, so that grub-mkconfig passes them over."""

    names: tuple[str, ...]

    def probe(self, host: Host) -> Difference | None:
        """Which of them are still executable."""
        script = 'for name do [ ! -x "/etc/grub.d/$name" ] || printf "%s\\n" "$name"; done'
        result = host.run(Command.script(script, *self.names), check=False)
        if not result.ok and result.status not in _NO_ROOT:
            raise CommandFailed(result)
        found = result.stdout.split() if result.ok else list(self.names)
        return Difference(f"switch off GRUB's {', '.join(found)}") if found else None

    def apply(self, host: Host, report: Report) -> None:
        """Take the execute bit from them; dpkg keeps the mode of a changed conffile."""
        script = 'for name do [ ! -e "/etc/grub.d/$name" ] || chmod -x "/etc/grub.d/$name"; done'
        host.run(Command.script(script, *self.names))


@dataclass(frozen=True)
class GrubMenu(Resource):
    """/boot/grub/grub.cfg, newer than all it is made from, with the Xen entry as its default."""

    release: str
    xen: str
    dom0: str

    def lines(self) -> tuple[str, ...]:
        """What stands in a menu of this entry; the root's PARTUUID is GRUB's to find out."""
        return (
            f'set default="{ENTRY}"',
            f"/xen.gz placeholder {self.xen}",
            f"/vmlinuz-{self.release} placeholder root=PARTUUID=",
            f" ro {self.dom0}",
        )

    def probe(self, host: Host) -> Difference | None:
        """What is missing in the menu, or which of its sources is newer."""
        script = """
            menu=/boot/grub/grub.cfg
            [ -s "$menu" ] || { echo 'there is none yet'; exit 0; }
            find /etc/default/grub /etc/default/grub.d /etc/grub.d -newer "$menu" 2> /dev/null \\
                | sed 's/$/ is newer/' || :
            for line do
                grep -qF -- "$line" "$menu" || printf 'no “%s” in it\\n' "$line"
            done
        """
        command = Command.script(script, *self.lines())
        result = host.run(command, check=False)
        if not result.ok and result.status not in _NO_ROOT:
            raise CommandFailed(result)
        lines = result.stdout.splitlines() if result.ok else ["there is none yet"]
        if not lines:
            return None
        rows = tuple({"grub.cfg": line} for line in lines)
        return Difference(f"generate the boot menu: {lines[0]}", rows=rows)

    def apply(self, host: Host, report: Report) -> None:
        """Generate it with grub-mkconfig, which puts it in place only if its syntax is right."""
        report("generating the boot menu")
        host.run("LC_ALL=C grub-mkconfig -o /boot/grub/grub.cfg", timeout=MKCONFIG_SECONDS)
        host.run("grub-script-check /boot/grub/grub.cfg")


@dataclass(frozen=True)
class GrubOnDisk(Resource):
    """GRUB for PC BIOS on a disk: boot sector, BIOS boot partition, its modules in /boot/grub."""

    disk: str

    def probe(self, host: Host) -> Difference | None:
        """Whether the boot sector is GRUB's, points to the BIOS boot partition, and that is whole.

        GRUB notes the first sector of its core at byte 92 of the boot sector (boot.S). The core's
        first two sectors hold addresses that are filled in as it is installed.
        """
        script = """
            core=/boot/grub/i386-pc/core.img
            [ -s "$core" ] && [ -s /boot/grub/i386-pc/normal.mod ] || exit 44
            [ "$(od -An -c -j384 -N4 "$1" | tr -d ' ')" = GRUB ] || exit 44
            start=$(partx -g -r -o START,TYPE -- "$1" \\
                | sed -n 's/ 21686148-6449-6e6f-744e-656564454649$//Ip')
            [ "$(od -An -tu8 -j92 -N8 "$1" | tr -d ' ')" = "$start" ] || exit 44
            rest=$(($(stat -c %s "$core") - 1024))
            cmp -s -n "$rest" -i "$((start * 512 + 1024)):1024" -- "$1" "$core" || exit 44
        """
        result = host.run(Command.script(script, self.disk), check=False)
        if result.ok:
            return None
        if result.status not in (1, 2, 44, *_NO_ROOT):
            raise CommandFailed(result)
        return Difference(f"install GRUB on {self.disk}")

    def apply(self, host: Host, report: Report) -> None:
        """Run grub-install; raises StepFailed if /boot does not lie on that disk."""
        report(f"installing GRUB on {self.disk}")
        script = """
            boot=$(mountpoint -d /boot)
            disk=$(readlink -f -- "$1")
            lsblk -n -r -o MAJ:MIN -- "$disk" | grep -qxF -- "$boot" || exit 45
            LC_ALL=C grub-install --target=i386-pc -- "$1"
            sync
        """
        result = host.run(Command.script(script, self.disk), check=False, timeout=INSTALL_SECONDS)
        if result.status == _WRONG_DISK:
            raise StepFailed(
                f"/boot does not lie on {self.disk}; GRUB is not installed there",
                hint="mount the installed system's /boot (chapter 02), or correct disk",
            )
        if not result.ok:
            raise CommandFailed(result)
