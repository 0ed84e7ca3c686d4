"""What tells a disk from every other one: its hardware's words, else its table's GUID or size.

The same shell text looks when consent is asked and again in the command that destroys: between the
two, another disk may have got the name.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from xenlab.command import Command
from xenlab.errors import StepFailed
from xenlab.host import Host
from xenlab.resources.blockdevices import LOOK, SECTION, Device, Devices, absent, parse, sections

ANOTHER_DISK = 54

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
disk_of() {{
    node=$(readlink -f -- "/sys/class/block/${{1##*/}}")
    if [ -e "$node/partition" ]; then node=${{node%/*}}; fi
    printf '/dev/%s\\n' "${{node##*/}}"
}}
same_disk() {{
    if [ -b "$1" ] && [ "$(identity "$(disk_of "$1")")" != "$2" ]; then exit {ANOTHER_DISK}; fi
}}
"""
"""Shell functions; ``same_disk DEVICE IDENTITY`` ends the script unless the device's disk is that.

The device is a path without links. An image file is nobody's disk, and is let through.
"""

IDENTIFY = f"""
{SAME_DISK}
{LOOK}
echo '{SECTION}identity'
own=$(readlink -f -- "$1")
if [ -b "$own" ]; then own=$(disk_of "$own"); identity "$own"; fi
lsblk -d -n -p -o KNAME | while read -r other; do
    [ "$other" != "$own" ] || continue
    echo '{SECTION}other'
    # a disk that was pulled out meanwhile, or a loop device that is gone, is nobody's twin
    identity "$other" || :
done
"""
"""Shell text that looks at all disks, and at the one of the device "$1" first."""


@dataclass(frozen=True)
class Identified:
    """A device, what it holds and where it is used, and what its disk is known by.

    ``known_by`` are pairs of a word for it and the text, the first being the best; ``identity`` is
    what `SAME_DISK` compares.
    """

    devices: Devices
    known_by: tuple[tuple[str, str], ...]
    identity: str

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
    names = [(kind, value) for kind, value in _names(identity) if value not in taken]
    devices = parse(own)
    by_hardware = [(kind, value) for kind, value in names if kind != _GUID]
    if devices.disk is not None and not by_hardware:
        names.append(("path and size", f"{devices.disk.path} {devices.disk.bytes}"))
        by_hardware = names
    return Identified(devices, tuple(by_hardware), identity)


def refuse_another(device: str) -> StepFailed:
    """The error where the disk is not the one that somebody consented to."""
    return StepFailed(
        f"the disk of {device} is not the one that somebody consented to; nothing was destroyed",
        hint="look at the machine's disks (lsblk), then run the step again",
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
