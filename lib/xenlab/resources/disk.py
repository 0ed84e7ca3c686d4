"""The site's own disk: its partition table, its file systems, which one a system runs from."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from xenlab.command import MACHINE, Command
from xenlab.errors import BadInput, CommandFailed, StepFailed
from xenlab.host import RECEIVE, Host, size_and_digest
from xenlab.resources.base import Difference, Made, Report, Resource, made_on
from xenlab.resources.blockdevices import (
    ANOTHER_DISK,
    LOOK,
    MIB,
    NO_DEVICE,
    SAME_DISK,
    SECTION,
    Device,
    Devices,
    absent,
    another_disk,
    look,
    parse,
    sections,
)

# The partitions of the site's own disk: which one a system runs from, by which UUID it is named.
#
# A name of a partition is no identity: last year's disk has the same ones. So commands use
# partitions by disk and number, and what is read at boot names them by PARTUUID, read from that
# disk's table.

INSTALLED_ROOT = "/mnt/dom0"
ROOT_PARTITION = "dom0root"


def by_uuid(uuid: str) -> str:
    """The device of a partition by its UUID, whichever name the disk has at this boot."""
    return f"/dev/disk/by-partuuid/{uuid}"


def installed_root(host: Host, device: str) -> str:
    """Where the installed system's root is: ``/`` once its partition was booted, else a mount.

    Raises StepFailed where the system that runs is such an installed one, from another disk.
    """
    script = """
        mine=$(mountpoint -d /)
        if [ "$mine" = "$(mountpoint -x "$1" 2> /dev/null)" ]; then echo own; exit 0; fi
        sed -n 's/^DEVNAME=//p; s/^PARTNAME=//p' "/sys/dev/block/$mine/uevent" 2> /dev/null || :
    """
    lines = host.inside("/").run(Command.script(script, device)).stdout.splitlines()
    if lines[1:] == [ROOT_PARTITION]:
        raise StepFailed(
            f"cannot work on {device}: because the machine runs from /dev/{lines[0]}, another "
            f"partition {ROOT_PARTITION}: another disk has the names of the site's disk",
            where=host.name,
            hint="name the disk by what stays the same (disk: /dev/disk/by-id/…), boot a rescue "
            "system, or take the other disk out",
        )
    return "/" if lines == ["own"] else INSTALLED_ROOT


def twins(found: Devices) -> list[Device]:
    """The other disks that have partitions with the UUIDs of the named disk's: copies of it."""
    own = {part.uuid for part in found.device.all() if part.uuid} if found.device else set()
    return [disk for disk in found.others if not own.isdisjoint(part.uuid for part in disk.all())]


def refuse_twins(found: Devices) -> None:
    """Raise StepFailed where another disk is a copy of the named one."""
    for twin in twins(found):
        raise StepFailed(
            f"cannot work on {found.path}: because {twin.path} is a copy of {found.path}: a boot "
            "could take the one for the other, as their partitions have the same UUIDs",
            hint=f"take {twin.path} out, or give its partitions UUIDs of their own "
            f"(sfdisk --part-uuid {twin.path} NUMBER UUID)",
        )


@dataclass(frozen=True)
class OnPartitions(Resource):
    """A state that can be put into words once a disk's partitions are made: it names their UUIDs.

    ``made`` gets the UUID of each partition by its name; ``names`` are those that it asks for.
    Refused where another disk is a copy of this one.
    """

    disk: str
    names: tuple[str, ...]
    made: Callable[[Mapping[str, str]], Resource] = field(compare=False)
    summary: str = ""

    def probe(self, host: Host) -> Difference | None:
        """The state's difference, or that the partitions are not made yet."""
        uuids = self._uuids(host)
        if not uuids:
            return Difference(f"{self.summary}, once {self.disk} has its partitions")
        return self.made(uuids).probe(host)

    def commands(self) -> tuple[Command, ...]:
        """Those of the state, with words in the place of UUIDs that nobody knows before a look."""
        return self.made({name: f"UUID-of-{name}" for name in self.names}).commands()

    def apply(self, host: Host, report: Report) -> None:
        """Bring the state about; raises StepFailed where a partition is missing."""
        uuids = self._uuids(host)
        if not uuids:
            raise StepFailed(
                f"cannot tell the UUIDs: because {self.disk} has not the site's partitions",
                hint="run chapter 01_partitions",
            )
        self.made(uuids).apply(host, report)

    def _uuids(self, host: Host) -> dict[str, str]:
        found = look(host, self.disk)
        refuse_twins(found)
        parts = found.device.parts if found.device else ()
        uuids = {part.name: part.uuid for part in parts if part.uuid}
        return uuids if uuids.keys() >= set(self.names) else {}


# A disk's partition table, and the file systems on its partitions.
#
# A block device belongs to the machine, so these look at the machine itself even where the host
# they are given is a root directory on it. An image file is as good as a block device.

# Partition types of the UEFI specification and of the Discoverable Partitions Specification; a root
# is plain Linux data on purpose: systemd-gpt-auto-generator picks "root" types by itself.
EFI_SYSTEM = "C12A7328-F81F-11D2-BA4B-00A0C93EC93B"
BIOS_BOOT = "21686148-6449-6E6F-744E-656564454649"
LINUX_BOOT = "BC13C2FF-59E6-4262-A352-B275FD6F7172"
LINUX_SWAP = "0657FD6D-A4AB-43C4-84E5-0933C84B4F4F"
LINUX_LVM = "E6D6D379-F507-44C2-A23C-238F2A3DF928"
LINUX_DATA = "0FC63DAF-8483-4772-8E79-3D69D8477DE4"

REST = 0
"""The size of the partition that takes what is left."""

_MAKERS = {
    "ext4": ("mkfs.ext4", "-q", "-L"),
    "swap": ("mkswap", "-L"),
    "vfat": ("mkfs.vfat", "-F", "32", "-n"),
}
"""What makes a file system; the last word is the option for its label."""
_MAKE_SECONDS = 1800.0


@dataclass(frozen=True)
class Partition:
    """A partition of a GPT: its name (PARTLABEL), size and type; `REST` takes what is left."""

    name: str
    size_mib: int
    kind: str = LINUX_DATA

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9._-]{1,36}", self.name):
            raise BadInput(
                f"cannot name a partition {self.name!r}: because that is too long, or no word",
                hint="use at most 36 letters, digits, dots, dashes and underscores",
            )


@dataclass(frozen=True)
class PartitionTable(Resource):
    """A disk with this very GPT (howto: Partitionen; sfdisk(8)). Applying it wipes the disk.

    ``identity`` is the disk's to whose wiping somebody has consented.
    """

    disk: str
    partitions: tuple[Partition, ...]
    identity: str = field(default="", compare=False, repr=False)

    def wipes(self) -> str:
        """The disk."""
        return self.disk

    def destroys(self, host: Host) -> tuple[Made, ...]:
        """dom0 and every guest on the disk, also those that the site no longer names."""
        return made_on(look(host, self.disk))

    def consented(self, identity: str, lost: tuple[Made, ...] = ()) -> PartitionTable:
        """The same for a disk with this identity."""
        return replace(self, identity=identity)

    def probe(self, host: Host) -> Difference | None:
        """A table of the partitions that are missing, in the way, or of another size or type.

        It says what is on those that are there now. Raises BadInput where there is no such disk.
        """
        machine = host.inside("/")
        script = f"""
            {LOOK}
            echo '{SECTION}table'
            [ -e "$1" ] || exit {NO_DEVICE}
            LC_ALL=C sfdisk --json -- "$1"
        """
        result = machine.run(Command.script(script, self.disk), check=False)
        if result.status == NO_DEVICE:
            raise absent(self.disk, parse(result.stdout), host)
        if not result.ok and "does not contain a recognized partition table" not in result.stderr:
            raise CommandFailed(result)
        table = sections(result.stdout)["table"]
        return self.compare(
            json.loads(table)["partitiontable"] if result.ok else {}, parse(result.stdout)
        )

    def compare(self, table: dict[str, Any], devices: Devices | None = None) -> Difference | None:
        """The difference to what ``sfdisk --json`` says of a disk ({}: no partition table)."""
        sector = int(table.get("sectorsize", 512))
        found = {
            number_of(p["node"]): (
                p.get("name", ""),
                int(p["size"]) * sector / MIB,
                str(p["type"]).upper(),
            )
            for p in table.get("partitions", [])
        }
        wanted = dict(enumerate(self.partitions, 1))
        disk = devices.device if devices else None
        parts = {number_of(part.path): part for part in disk.parts} if disk else {}
        rows = []
        for number in sorted(found.keys() | wanted.keys()):
            now, then = found.get(number), wanted.get(number)
            same = now and then and now == (then.name, then.size_mib or now[1], then.kind)
            rows.append(
                {
                    "number": str(number),
                    "device": parts[number].path if number in parts else "",
                    "wanted": f"{then.name}, {_size(then.size_mib)}" if then else "none",
                    "found": f"{now[0] or 'without a name'}, {_size(now[1])}" if now else "none",
                    "same": "yes" if same else "no",
                    "lost": content(parts[number]) if number in parts else "",
                }
            )
        if table.get("label") == "gpt" and all(row["same"] == "yes" for row in rows):
            return None
        if disk and disk.system:
            whole = {"number": "none", "device": disk.path, "wanted": "none", "same": "no"}
            rows.insert(0, {**whole, "found": disk.system, "lost": content(disk)})
        return Difference(
            f"partition {self.disk} (GPT, {len(self.partitions)} partitions)", rows=tuple(rows)
        )

    def script(self) -> str:
        """The table as a script for sfdisk."""
        lines = ["label: gpt", "first-lba: 2048", ""]
        for partition in self.partitions:
            size = f"size={partition.size_mib}MiB, " if partition.size_mib else ""
            lines.append(f'name="{partition.name}", {size}type={partition.kind}')
        return "\n".join(lines) + "\n"

    def commands(self) -> tuple[Command, ...]:
        """Write the table and wipe old signatures; sfdisk refuses a disk that is in use.

        A GPT's own GUID stays: a disk without a serial is known by it.
        """
        table = self.script().encode()
        script = f"""
            {RECEIVE}
            {SAME_DISK}
            table=$(mktemp)
            trap 'rm -f -- "$table"' EXIT
            receive "$table" "$3" "$4"
            disk=$(readlink -f -- "$1")
            same_disk "$disk" "$2"
            guid=$(blkid -p -s PTUUID -o value -- "$disk" || :)
            case $guid in
                *-*) keep() {{ printf 'label-id: %s\\n' "$guid"; }} ;;
                *) keep() {{ :; }} ;;
            esac
            {{ keep; cat -- "$table"; }} \\
                | sfdisk --quiet --wipe always --wipe-partitions always -- "$disk"
            if command -v udevadm > /dev/null; then udevadm settle; fi
        """
        command = Command.script(script, self.disk, self.identity, *size_and_digest(table))
        typed = f"sfdisk --wipe always {{disk}} <<'END'\n{self.script()}END"
        command = command.typed_as(typed, disk=self.disk).given(table).within(300).at(MACHINE)
        return (command.refusing({ANOTHER_DISK: another_disk(self.disk)}),)


@dataclass(frozen=True)
class Filesystem(Resource):
    """A file system of this kind (ext4, swap, vfat) with this label. Applying it wipes the device.

    ``identity`` is that of the disk on which somebody has consented to it.
    """

    device: str
    label: str
    kind: str = "ext4"
    options: tuple[str, ...] = ()
    identity: str = field(default="", compare=False, repr=False)

    def __post_init__(self) -> None:
        if not 0 < len(self.label.encode()) <= 16:
            raise BadInput(
                f"cannot label a file system {self.label!r}: because that is too long, or empty",
                hint="use 1 to 16 letters",
            )

    def wipes(self) -> str:
        """The device."""
        return self.device

    def destroys(self, host: Host) -> tuple[Made, ...]:
        """Whose file system is there now."""
        return made_on(look(host, self.device))

    def consented(self, identity: str, lost: tuple[Made, ...] = ()) -> Filesystem:
        """The same on a disk with this identity."""
        return replace(self, identity=identity)

    def probe(self, host: Host) -> Difference | None:
        """Whether another kind or label is there, or nothing; and what would be lost."""
        # blkid's own cache would answer with what was there before
        script = '[ -e "$1" ] || exit 44; blkid -p -o export -- "$1"'
        result = host.inside("/").run(Command.script(script, self.device), check=False)
        if result.status not in (0, 2, 8, NO_DEVICE):
            raise CommandFailed(result)
        difference = self.compare(result.stdout)
        if difference is None or not result.stdout:
            return difference
        device = look(host, self.device).device
        lost = content(device) if device else ""
        return replace(difference, rows=({"device": self.device, "lost": lost},) if lost else ())

    def compare(self, export: str) -> Difference | None:
        """The difference to what ``blkid -p -o export`` says of the device ("": nothing)."""
        now = dict(line.split("=", 1) for line in export.splitlines() if "=" in line)
        kind, label = now.get("TYPE", ""), now.get("LABEL", "")
        if (kind, label) == (self.kind, self.label):
            return None
        there = f", where {kind} “{label}” is now" if kind else ""
        return Difference(f"make {self.kind} “{self.label}” on {self.device}{there}")

    def commands(self) -> tuple[Command, ...]:
        """Make it; the tools refuse a device that is mounted or otherwise in use."""
        script = f"""
            {SAME_DISK}
            [ -e "$1" ] || exit {NO_DEVICE}
            device=$(readlink -f -- "$1")
            same_disk "$device" "$2"
            shift 2
            "$@" -- "$device"
        """
        *maker, labelled = _MAKERS[self.kind]
        maker += [*self.options, labelled, self.label]
        command = Command.script(script, self.device, self.identity, *maker).within(_MAKE_SECONDS)
        refusals = {
            NO_DEVICE: (
                f"cannot make a file system: because there is no device {self.device}",
                "run chapter 01_partitions, or correct disk",
            ),
            ANOTHER_DISK: another_disk(self.device),
        }
        typed = command.typed_as("{maker} {device}", maker=maker, device=self.device)
        return (typed.at(MACHINE).refusing(refusals),)


def content(device: Device) -> str:
    """What a device holds, in words: file system, label, size and where it is mounted."""
    words = []
    for part in device.all():
        what = f"{part.system} “{part.label}”" if part.label else part.system
        place = f"in use as {', '.join(part.places)}" if part.places else ""
        told = ", ".join(word for word in (what, f"{part.mib} MiB" if what else "", place) if word)
        if told:
            words.append(told if part is device else f"{part.path}: {told}")
    return "; ".join(words)


def number_of(partition: str) -> int:
    """The number that a partition's device ends in."""
    found = re.search(r"\d+$", partition)
    return int(found[0]) if found else 0


def _size(mib: float) -> str:
    return f"{mib:.0f} MiB" if mib else "what is left"
