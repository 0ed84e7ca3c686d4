"""Disks: what a device is, the partition table, file systems, and where the installed root is.

A block device belongs to the machine, so these look at the machine itself even where the host they
are given is a root directory on it. An image file is as good as a block device.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from xenlab.command import Command
from xenlab.errors import BadInput, CommandFailed, StepFailed
from xenlab.host import Host
from xenlab.resources.base import Difference, Report, Resource
from xenlab.resources.mount import Mount, SwapFile

__all__ = [
    "INSTALLED_ROOT",
    "DeviceFacts",
    "Filesystem",
    "Mount",
    "Partition",
    "PartitionTable",
    "SwapFile",
    "by_name",
    "device_facts",
    "installed_root",
]

MIB = 1024 * 1024
INSTALLED_ROOT = "/mnt/dom0"
ROOT_PARTITION = "dom0root"

# Partition types of the UEFI specification and of the Discoverable Partitions Specification; a root
# is plain Linux data on purpose: systemd-gpt-auto-generator picks "root" types by itself.
BIOS_BOOT = "21686148-6449-6E6F-744E-656564454649"
LINUX_BOOT = "BC13C2FF-59E6-4262-A352-B275FD6F7172"
LINUX_SWAP = "0657FD6D-A4AB-43C4-84E5-0933C84B4F4F"
LINUX_DATA = "0FC63DAF-8483-4772-8E79-3D69D8477DE4"

_MAKERS = {"ext4": ("mkfs.ext4", "-q"), "swap": ("mkswap",)}
_MAKE_SECONDS = 1800.0
_NO_DEVICE = 44


def by_name(partition: str) -> str:
    """The device of a partition by its GPT name; udev keeps these links."""
    return f"/dev/disk/by-partlabel/{partition}"


@dataclass(frozen=True)
class DeviceFacts:
    """What a device is: the serial of its disk, where it or a part of it is mounted, its size."""

    serial: str
    mounted_on: tuple[str, ...]
    size_mib: int


def device_facts(host: Host, device: str) -> DeviceFacts:
    """The facts of a disk or partition, asked of lsblk(8); a partition has its disk's serial.

    Active swap counts as mounted, on "[SWAP]". Raises BadInput where there is no such device.
    """
    script = """
        [ -b "$1" ] || exit 44
        readlink -f -- "$1"
        grep -s . /sys/class/block/*/serial /sys/class/block/*/device/serial || :
        echo ---
        lsblk -J -b -o NAME,PATH,SERIAL,SIZE,MOUNTPOINTS
    """
    machine = host.inside("/")
    result = machine.run(Command.script(script, device), check=False)
    if result.status == _NO_DEVICE:
        raise BadInput(
            f"there is no block device {device}",
            where=machine.name,
            hint=f"the disks there are: {_disks(machine)}",
        )
    if not result.ok:
        raise CommandFailed(result)
    return parse_facts(result.stdout)


def installed_root(host: Host) -> str:
    """Where the installed system's root is: ``/`` once it was booted, else ``/mnt/dom0``."""
    script = """
        mine=$(mountpoint -d /) && dom0=$(mountpoint -x "$1" 2>/dev/null) && [ "$mine" = "$dom0" ]
    """
    booted = host.inside("/").test(Command.script(script, by_name(ROOT_PARTITION)))
    return "/" if booted else INSTALLED_ROOT


def parse_facts(text: str) -> DeviceFacts:
    """The facts out of what `device_facts` has printed; raises BadInput where lsblk has none."""
    serials, _, tree = text.partition("---\n")
    path, *in_sysfs = serials.splitlines()
    for disk in json.loads(tree)["blockdevices"]:
        found = _find(disk, path)
        if found:
            name = disk["path"].rpartition("/")[2]
            lines = [line.partition(":") for line in in_sysfs]
            known = [serial for file, _, serial in lines if file.split("/")[4] == name]
            # lsblk has serials from udev alone, which not every rescue system runs
            serial = (disk["serial"] or "".join(known[:1])).strip()
            return DeviceFacts(serial, tuple(_mounts(found)), int(found["size"]) // MIB)
    raise BadInput(f"{path} is no disk or partition that lsblk knows")


@dataclass(frozen=True)
class Partition:
    """A partition of a GPT: its name (PARTLABEL), size and type; size 0 takes what is left."""

    name: str
    size_mib: int
    kind: str = LINUX_DATA

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9._-]{1,36}", self.name):
            raise BadInput(
                f"{self.name!r} cannot name a partition",
                hint="use at most 36 letters, digits, dots, dashes and underscores",
            )


@dataclass(frozen=True)
class PartitionTable(Resource):
    """A disk with this very GPT (howto: Partitionen; sfdisk(8)). Applying it wipes the disk."""

    disk: str
    partitions: tuple[Partition, ...]

    def wipes(self) -> str:
        """The disk."""
        return self.disk

    def probe(self, host: Host) -> Difference | None:
        """A table of the partitions that are missing, in the way, or of another size or type.

        Raises BadInput where there is no such disk.
        """
        machine = host.inside("/")
        script = '[ -e "$1" ] || exit 44; LC_ALL=C sfdisk --json -- "$1"'
        result = machine.run(Command.script(script, self.disk), check=False)
        if result.status == _NO_DEVICE:
            raise BadInput(
                f"there is no disk {self.disk}",
                where=machine.name,
                hint=f"the disks there are: {_disks(machine)}",
            )
        if not result.ok and "does not contain a recognized partition table" not in result.stderr:
            raise CommandFailed(result)
        return self.compare(json.loads(result.stdout)["partitiontable"] if result.ok else {})

    def compare(self, table: dict[str, Any]) -> Difference | None:
        """The difference to what ``sfdisk --json`` says of a disk ({}: no partition table)."""
        sector = int(table.get("sectorsize", 512))
        found = [
            (p.get("name", ""), int(p["size"]) * sector / MIB, str(p["type"]).upper())
            for p in table.get("partitions", [])
        ]
        rows = []
        for number in range(max(len(found), len(self.partitions))):
            now = found[number] if number < len(found) else None
            wanted = self.partitions[number] if number < len(self.partitions) else None
            same = (
                now is not None
                and wanted is not None
                and now[0] == wanted.name
                and now[2] == wanted.kind
                and (wanted.size_mib == 0 or now[1] == wanted.size_mib)
            )
            rows.append(
                {
                    "number": str(number + 1),
                    "wanted": f"{wanted.name}, {_size(wanted.size_mib)}" if wanted else "none",
                    "found": f"{now[0] or 'without a name'}, {_size(now[1])}" if now else "none",
                    "same": "yes" if same else "no",
                }
            )
        if table.get("label") == "gpt" and all(row["same"] == "yes" for row in rows):
            return None
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

    def apply(self, host: Host, report: Report) -> None:
        """Write the table and wipe old signatures; sfdisk refuses a disk that is in use."""
        report(f"partitioning {self.disk}")
        host.inside("/").run(
            Command.script(
                """
                sfdisk --quiet --wipe always --wipe-partitions always -- "$1"
                if command -v udevadm >/dev/null; then udevadm settle; fi
                """,
                self.disk,
            ),
            input=self.script().encode(),
            timeout=300,
        )


@dataclass(frozen=True)
class Filesystem(Resource):
    """A file system of this kind (ext4, swap) with this label. Applying it wipes the device."""

    device: str
    label: str
    kind: str = "ext4"
    options: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 0 < len(self.label.encode()) <= 16:
            raise BadInput(f"{self.label!r} cannot label a file system", hint="use 1 to 16 letters")

    def wipes(self) -> str:
        """The device."""
        return self.device

    def probe(self, host: Host) -> Difference | None:
        """Whether another kind or label is there, or nothing."""
        # blkid's own cache would answer with what was there before
        script = '[ -e "$1" ] || exit 44; blkid -p -o export -- "$1"'
        result = host.inside("/").run(Command.script(script, self.device), check=False)
        if result.status not in (0, 2, 8, _NO_DEVICE):
            raise CommandFailed(result)
        return self.compare(result.stdout)

    def compare(self, export: str) -> Difference | None:
        """The difference to what ``blkid -p -o export`` says of the device ("": nothing)."""
        now = dict(line.split("=", 1) for line in export.splitlines() if "=" in line)
        kind, label = now.get("TYPE", ""), now.get("LABEL", "")
        if (kind, label) == (self.kind, self.label):
            return None
        there = f", where {kind} “{label}” is now" if kind else ""
        return Difference(f"make {self.kind} “{self.label}” on {self.device}{there}")

    def apply(self, host: Host, report: Report) -> None:
        """Make it; the tools refuse a device that is mounted or otherwise in use."""
        report(f"making {self.kind} on {self.device}")
        script = '[ -e "$1" ] || exit 44; device=$1; shift; "$@" -- "$device"'
        maker = (*_MAKERS[self.kind], *self.options, "-L", self.label)
        command = Command.script(script, self.device, *maker)
        result = host.inside("/").run(command, timeout=_MAKE_SECONDS, check=False)
        if result.status == _NO_DEVICE:
            raise StepFailed(f"there is no device {self.device}")
        if not result.ok:
            raise CommandFailed(result)


def _size(mib: float) -> str:
    return f"{mib:.0f} MiB" if mib else "what is left"


def _find(device: dict[str, Any], path: str) -> dict[str, Any] | None:
    if device["path"] == path:
        return device
    parts = (_find(part, path) for part in device.get("children", []))
    return next((part for part in parts if part), None)


def _mounts(device: dict[str, Any]) -> list[str]:
    places = [place for place in device.get("mountpoints", []) if place]
    for part in device.get("children", []):
        places += _mounts(part)
    return places


def _disks(machine: Host) -> str:
    result = machine.run("lsblk -dn -o PATH,SIZE,SERIAL", check=False)
    return "; ".join(" ".join(line.split()) for line in result.stdout.splitlines()) or "none"
