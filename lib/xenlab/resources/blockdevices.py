"""What block devices a machine has, where they are used, and what tells one from every other."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from xenlab.command import Command
from xenlab.errors import BadInput, StepFailed
from xenlab.host import Host

# What block devices a machine has: their partitions, what is on them, and where they are used.
#
# One command looks at all of them, so that a disk can be told from another one with the same names.

MIB = 1024 * 1024
NO_DEVICE = 44
SECTION = "--- "

# No MOUNTPOINTS: lsblk has it from 2.37 on; and MOUNTPOINT shows one place of several.
LOOK = f"""
echo '{SECTION}device'
# not even the folder is there, as of /dev/disk/by-id without udev: then it names no device
readlink -f -- "$1" || printf '%s\\n' "$1"
echo '{SECTION}swaps'
cat /proc/swaps 2> /dev/null || :
echo '{SECTION}mounts'
cat /proc/self/mountinfo
echo '{SECTION}lsblk'
lsblk -J -b -p -o NAME,KNAME,MAJ:MIN,TYPE,SIZE,RO,SERIAL,FSTYPE,UUID,LABEL,PARTLABEL,PARTUUID
echo '{SECTION}blkid'
# what is on a device lsblk has from udev, which not every rescue system runs
if [ ! -e /run/udev/control ]; then
    # one by one: blkid stops at the first device that has nothing on it
    lsblk -l -n -p -o NAME | xargs -n 1 blkid -p -o export 2> /dev/null || :
fi
"""
"""Shell text that looks at the device "$1" and all others; `parse` reads what it prints."""


_OWN_KINDS = ("disk", "part", "")
"""What lsblk calls a disk and its partitions."""


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
    readonly: bool = False
    places: tuple[str, ...] = ()
    parts: tuple[Device, ...] = ()

    @property
    def mib(self) -> int:
        """Its size in whole MiB."""
        return self.bytes // MIB

    @property
    def used(self) -> tuple[str, ...]:
        """Where it, or a part of it, is mounted; active swap counts as mounted on "[SWAP]".

        And what is made of it: a logical volume, an array, an opened encrypted device.
        """
        places = [place for device in self.all() for place in device.places]
        above = [d for d in self.all() if d is not self and d.kind not in _OWN_KINDS]
        return (*places, *(f"{device.kind} {device.path}" for device in above))

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


def absent(device: str, found: Devices, host: Host) -> BadInput:
    """The error that there is no such device, with those there are."""
    return BadInput(
        f"cannot use the disk: because there is no block device {device}",
        where=host.inside("/").name,
        hint=f"name one of these disks: {found.listed()}",
    )


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
    below: str = "",
) -> Device:
    entry = {**entry, **probed.get(entry["name"], {})}
    keys = (entry.get("maj:min"), entry["name"], entry.get("kname"))
    used = [place for key in keys if key for place in places.get(key, [])]
    # an array of two partitions is known by their name
    array = (entry.get("type") or "").startswith("raid")
    name = entry.get("partlabel") or (below if array else "")
    return Device(
        path=entry["name"],
        # a number is text in the JSON of lsblk before 2.34
        bytes=int(entry["size"] or 0),
        kind=entry.get("type") or "",
        serial=(entry.get("serial") or "").strip(),
        system=entry.get("fstype") or "",
        label=entry.get("label") or "",
        name=name,
        uuid=(entry.get("partuuid") or "").lower(),
        system_uuid=entry.get("uuid") or "",
        # text there before 2.34, 0 or 1 instead of false or true
        readonly=entry.get("ro") in (True, "1"),
        places=tuple(dict.fromkeys(used)),
        parts=tuple(_device(part, places, probed, name) for part in entry.get("children", [])),
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


# What tells a disk from every other one: its hardware's words, else its table's GUID or size.
#
# The same shell text looks when consent is asked and again in the command that destroys: between
# the two, another disk may have got the name.

ANOTHER_DISK = 54

_EACH = "of the disk "

SAME_DISK = f"""
identity() {{
    lsblk -d -n -b -P -o SIZE,SERIAL,WWN -- "$1"
    # lsblk has serials from udev alone, which not every rescue system runs
    for file in serial device/serial wwid device/wwid eui nguid; do
        if [ -r "/sys/class/block/${{1##*/}}/$file" ]; then
            printf '%s: %s\\n' "$file" "$(cat "/sys/class/block/${{1##*/}}/$file" 2> /dev/null)"
        fi
    done
    printf 'guid: %s\\n' "$(blkid -p -s PTUUID -o value -- "$1")"
}}
disks_of() (
    node=$(readlink -f -- "/sys/class/block/${{1##*/}}")
    # a logical volume is on the disk of its one physical volume, an array on those of all members
    set -- "$node"/slaves/*
    if [ -e "$1" ]; then
        for each do disks_of "$each"; done
        exit 0
    fi
    if [ -e "$node/partition" ]; then node=${{node%/*}}; fi
    printf '/dev/%s\\n' "${{node##*/}}"
)
identities() {{
    set -- $(disks_of "$1")
    for disk do
        [ $# = 1 ] || printf '{_EACH}%s\\n' "$disk"
        identity "$disk"
    done
}}
same_disk() {{
    if [ -b "$1" ] && [ "$(identities "$1")" != "$2" ]; then exit {ANOTHER_DISK}; fi
}}
"""
"""Shell functions; ``same_disk DEVICE IDENTITY`` ends the script unless its disks are those.

The device is a path without links. An image file is nobody's disk, and is let through.
"""

# Who uses a device now: a domain, by whichever name its disk has there, or a mount.

USED, MOUNTED = 42, 43

IN_USE = f"""
if [ -f "$device" ]; then
    # a disk file: a domain has it by a loop device, as who mounts it has
    for used in $(losetup -n -O NAME -j "$device"); do
        ! findmnt -n -S "$used" > /dev/null || exit {MOUNTED}
        exit {USED}
    done
else
[ -b "$device" ] || exit {NO_DEVICE}
if [ "$(cat /sys/hypervisor/type 2>/dev/null)" = xen ]; then
    used=$(xenstore-ls -f /local/domain/0) || exit 46
    number=$(stat -L -c %t:%T -- "$device")
    case $used in *"/physical-device = \\"$number\\""*) exit {USED} ;; esac
fi
! findmnt -n -S "$(readlink -f -- "$device")" > /dev/null || exit {MOUNTED}
fi
"""
"""Shell text that ends with `USED` or `MOUNTED` where ``$device``, or that disk file, is in use."""


GROW = f"""
look_at() {{ # DEVICE: its bytes, its ext4's blocks and their size (0 0: it has none), who uses it
    if [ -b "$1" ]; then blockdev --getsize64 "$1"; else stat -c %s -- "$1"; fi
    if [ "$(blkid -p -s TYPE -o value -- "$1")" = ext4 ]; then
        LC_ALL=C dumpe2fs -h -- "$1" 2> /dev/null | sed -n 's/^Block \\(count\\|size\\): *//p'
    else
        printf '0\\n0\\n'
    fi
    (device=$1{IN_USE}) && echo 0 || echo $?
}}
grow_ext4() {{ # DEVICE: up to its end, while it is mounted if it is
    if [ "$(blkid -p -s TYPE -o value -- "$1")" = ext4 ]; then
        findmnt -n -S "$1" > /dev/null || e2fsck -f -p -- "$1" || [ $? = 1 ]
        resize2fs -- "$1"
    fi
}}
unused() {{ # DEVICE
    device=$1{IN_USE}
}}
"""
"""Shell functions; the devices are paths without links, or disk files."""


@dataclass(frozen=True)
class Filled:
    """A device or disk file, and how much of it its ext4 takes (0: it has none), in bytes.

    ``used`` is whether a domain has it, or nobody can tell.
    """

    bytes: int
    system: int
    used: bool

    @property
    def mib(self) -> int:
        """Its size in whole MiB."""
        return self.bytes // MIB

    @property
    def behind(self) -> bool:
        """Whether its ext4 does not reach its end, but for what would be no block group."""
        return bool(self.system) and self.bytes - self.system >= _GROUP


_GROUP = 16 * MIB
WHEN_DOWN = "its guest uses it: shut that down (xl shutdown -ww), then run this step again"
"""Why something of a guest's does not grow now, and what to do."""


def parse_filled(text: str) -> Filled:
    """What ``look_at`` of `GROW` has printed."""
    size, *system, used = (int(word) for word in text.split())
    # dumpe2fs says nothing of a superblock that is damaged
    known = system[0] * system[1] if len(system) == 2 else 0
    return Filled(size, known, used not in (0, MOUNTED))


IDENTIFY = f"""
{SAME_DISK}
{LOOK}
echo '{SECTION}identity'
own=$(readlink -f -- "$1") || own=$1
if [ -b "$own" ]; then identities "$own"; own=$(disks_of "$own"); fi
lsblk -d -n -p -o KNAME | while read -r other; do
    case "
$own
" in *"
$other
"*) continue ;; esac
    echo '{SECTION}other'
    # a disk that was pulled out meanwhile, or a loop device that is gone, is nobody's twin
    identity "$other" || :
done
"""
"""Shell text that looks at all disks, and at the one of the device "$1" first."""


@dataclass(frozen=True)
class Identified:
    """A device, what it holds and where it is used, and what its disk is known by.

    ``known_by`` are pairs of a word for it and the text, the first being the best; ``others`` are
    such pairs of each further disk of an array; ``identity`` is what `SAME_DISK` compares.
    """

    devices: Devices
    known_by: tuple[tuple[str, str], ...]
    identity: str
    others: tuple[tuple[tuple[str, str], ...], ...] = ()

    @property
    def device(self) -> Device:
        """The device itself."""
        assert self.devices.device is not None
        return self.devices.device


def identified(host: Host, device: str) -> Identified:
    """What a disk or partition is; one command. Raises BadInput where there is no such device."""
    machine = host.inside("/")
    text = machine.run(Command.script(IDENTIFY, device)).stdout
    found = parse_identity(text)
    if found.devices.device is None:
        raise absent(device, found.devices, host)
    return found


def parse_identity(text: str) -> Identified:
    """What the look has printed. What another disk shares is no identity."""
    own, *others = re.split(rf"^{SECTION}other\n", text, flags=re.MULTILINE)
    identity = sections(own).get("identity", "").rstrip("\n")
    taken = {value for other in others for _, value in _names(other)}
    devices = parse(own)
    # of an array, each disk has a line before it
    _, *each = re.split(rf"^{_EACH}(.*)\n", identity, flags=re.MULTILINE)
    disks = {disk.path: disk for disk in devices.disks}
    texts = [(text, disks.get(path)) for path, text in zip(each[::2], each[1::2], strict=True)]
    known = [
        _known_by([(k, value) for k, value in _names(text) if value not in taken], disk)
        for text, disk in texts or [(identity, devices.disk)]
    ]
    return Identified(devices, known[0], identity, tuple(known[1:]))


def _known_by(names: list[tuple[str, str]], disk: Device | None) -> tuple[tuple[str, str], ...]:
    by_hardware = [(kind, value) for kind, value in names if kind != _GUID]
    if disk is not None and not by_hardware:
        return (*names, ("path and size", f"{disk.path} {disk.bytes}"))
    return tuple(by_hardware)


def another_disk(device: str) -> tuple[str, str]:
    """What it means where the disk is not the one that was consented to, and what to try."""
    return (
        f"cannot wipe {device}: because its disk is not the one that somebody consented to",
        "look at the machine's disks (lsblk), then run the step again (nothing was destroyed)",
    )


_GUID = "GPT disk GUID"
_KINDS = {
    "SERIAL": "serial",
    "serial": "serial",
    "device/serial": "serial",
    "WWN": "WWN",
    "wwid": "WWN",
    "device/wwid": "WWN",
    "eui": "EUI",
    "nguid": "NGUID",
    "guid": _GUID,
}


def _names(identity: str) -> list[tuple[str, str]]:
    """What a disk is known by, each once; zeros alone are no identity."""
    pairs = re.findall(r'(\w+)="([^"]*)"|^([\w/]+): (.*)$', identity, flags=re.MULTILINE)
    known: dict[str, str] = {}
    for upper, quoted, lower, rest in pairs:
        key, value = upper or lower, (quoted or rest).strip()
        value = value.replace(" ", "") if key == "eui" else value
        # an MBR has a number of 32 bits, which is none
        short = key == "guid" and len(value) < len("21686148-6449-6e6f-744e-656564454649")
        if key in _KINDS and value.strip("0:-. ") and not short:
            known.setdefault(value, _KINDS[key])
    return [(kind, value) for value, kind in known.items()]
