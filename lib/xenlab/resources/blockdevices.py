"""What block devices a machine has: their partitions, what is on them, and where they are used.

One command looks at all of them, so that a disk can be told from another one with the same names.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from xenlab.command import Command
from xenlab.errors import BadInput
from xenlab.host import Host

MIB = 1024 * 1024
NO_DEVICE = 44
SECTION = "--- "

# No MOUNTPOINTS: lsblk has it from 2.37 on; and MOUNTPOINT shows one place of several.
LOOK = f"""
echo '{SECTION}device'
readlink -f -- "$1"
echo '{SECTION}swaps'
cat /proc/swaps 2> /dev/null || :
echo '{SECTION}mounts'
cat /proc/self/mountinfo
echo '{SECTION}lsblk'
lsblk -J -b -p -o NAME,KNAME,MAJ:MIN,TYPE,SIZE,SERIAL,FSTYPE,UUID,LABEL,PARTLABEL,PARTUUID
echo '{SECTION}blkid'
# what is on a device lsblk has from udev, which not every rescue system runs
if [ ! -e /run/udev/control ]; then
    # one by one: blkid stops at the first device that has nothing on it
    lsblk -l -n -p -o NAME | xargs -n 1 blkid -p -o export 2> /dev/null || :
fi
"""
"""Shell text that looks at the device "$1" and all others; `parse` reads what it prints."""


@dataclass(frozen=True)
class Device:
    """A disk, a partition, or what lies on one; ``places`` are where it is mounted itself.

    ``uuid`` is the partition's own, ``system_uuid`` that of the file system on it.
    """

    path: str
    bytes: int
    kind: str = ""
    serial: str = ""
    system: str = ""
    label: str = ""
    name: str = ""
    uuid: str = ""
    system_uuid: str = ""
    places: tuple[str, ...] = ()
    parts: tuple[Device, ...] = ()

    @property
    def mib(self) -> int:
        """Its size in whole MiB."""
        return self.bytes // MIB

    @property
    def used(self) -> tuple[str, ...]:
        """Where it, or a part of it, is mounted; active swap counts as mounted on "[SWAP]"."""
        return tuple(place for device in self.all() for place in device.places)

    def all(self) -> Iterator[Device]:
        """Itself and all that lies on it."""
        yield self
        for part in self.parts:
            yield from part.all()


@dataclass(frozen=True)
class Devices:
    """All block devices, and the path that the name of one of them leads to."""

    path: str
    disks: tuple[Device, ...]

    @property
    def device(self) -> Device | None:
        """The device that was named, None where there is no such one."""
        every = (device for disk in self.disks for device in disk.all())
        return next((device for device in every if device.path == self.path), None)

    @property
    def disk(self) -> Device | None:
        """The disk that it is or lies on."""
        mine = (d for d in self.disks if any(part.path == self.path for part in d.all()))
        return next(mine, None)

    @property
    def others(self) -> tuple[Device, ...]:
        """The disks that it does not lie on."""
        return tuple(disk for disk in self.disks if disk != self.disk)

    def listed(self) -> str:
        """The disks in one line, for a message."""
        words = (f"{d.path} {d.mib} MiB {d.serial}".strip() for d in self.disks if d.kind == "disk")
        return "; ".join(words) or "none"


def look(host: Host, device: str) -> Devices:
    """All block devices of a machine; one command, on the machine itself."""
    machine = host.inside("/")
    return parse(machine.run(Command.script(LOOK, device)).stdout)


def named(host: Host, device: str) -> Devices:
    """The same; raises BadInput where there is no such device."""
    found = look(host, device)
    if found.device is None:
        raise absent(device, found, host)
    return found


def absent(device: str, found: Devices, host: Host) -> BadInput:
    """The error that there is no such device, with those there are."""
    return BadInput(
        f"there is no block device {device}",
        where=host.inside("/").name,
        hint=f"the disks there are: {found.listed()}",
    )


def parse(text: str) -> Devices:
    """What `LOOK` has printed."""
    found = defaultdict(str, sections(text))
    places: dict[str, list[str]] = {}
    for line in found["mounts"].splitlines():
        # proc_pid_mountinfo(5): the source stands behind a dash; btrfs has a number of its own
        fields = line.split()
        source = fields[fields.index("-") + 2]
        for key in {fields[2], plain(source)}:
            places.setdefault(key, []).append(plain(fields[4]))
    for line in found["swaps"].splitlines()[1:]:
        places.setdefault(plain(line.split()[0]), []).append("[SWAP]")
    probed = _probed(found["blkid"])
    path = found["device"].strip()
    disks = json.loads(found["lsblk"] or "{}").get("blockdevices", [])
    return Devices(_canonical(path, disks), tuple(_device(disk, places, probed) for disk in disks))


def sections(text: str) -> dict[str, str]:
    """Text taken apart at its lines that begin with `SECTION`."""
    pieces = re.split(rf"^{SECTION}(.*)\n", text, flags=re.MULTILINE)
    return dict(zip(pieces[1::2], pieces[2::2], strict=True))


def plain(path: str) -> str:
    """A path of the kernel's tables, in which white space and backslashes are octal."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), path)


def _device(
    entry: Mapping[str, Any],
    places: Mapping[str, list[str]],
    probed: Mapping[str, Mapping[str, str]],
) -> Device:
    entry = {**entry, **probed.get(entry["name"], {})}
    keys = (entry.get("maj:min"), entry["name"], entry.get("kname"))
    used = [place for key in keys if key for place in places.get(key, [])]
    return Device(
        path=entry["name"],
        # a number is text in the JSON of lsblk before 2.34
        bytes=int(entry["size"] or 0),
        kind=entry.get("type") or "",
        serial=(entry.get("serial") or "").strip(),
        system=entry.get("fstype") or "",
        label=entry.get("label") or "",
        name=entry.get("partlabel") or "",
        uuid=(entry.get("partuuid") or "").lower(),
        system_uuid=entry.get("uuid") or "",
        places=tuple(dict.fromkeys(used)),
        parts=tuple(_device(part, places, probed) for part in entry.get("children", [])),
    )


_COLUMNS = {
    "TYPE": "fstype",
    "UUID": "uuid",
    "LABEL": "label",
    "PART_ENTRY_NAME": "partlabel",
    "PART_ENTRY_UUID": "partuuid",
}


def _probed(export: str) -> dict[str, dict[str, str]]:
    """What ``blkid -p -o export`` says of each device, under lsblk's names of the columns."""
    found: dict[str, dict[str, str]] = {}
    device = ""
    for line in export.splitlines():
        key, _, value = line.partition("=")
        if key == "DEVNAME":
            device = value
        elif key in _COLUMNS:
            found.setdefault(device, {})[_COLUMNS[key]] = re.sub(r"\\(.)", r"\1", value)
    return found


def _canonical(path: str, entries: list[dict[str, Any]]) -> str:
    """The name that lsblk has for a path: a mapped device is known by two."""
    for entry in entries:
        if entry.get("kname") == path:
            return str(entry["name"])
        below = _canonical(path, entry.get("children", []))
        if below != path:
            return below
    return path
