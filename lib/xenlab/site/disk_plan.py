"""The disk plan of a site: its partitions, whether they fit, what changes in a table that is there.

Howto: „Partitionen“.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import TYPE_CHECKING, Any, Literal

from xenlab.errors import BadInput

if TYPE_CHECKING:
    from xenlab.site.schema import Parameters

DOM0_PARTITIONS = ("biosboot", "boot", "dom0swap", "dom0root", "share", "domuswap")
"""The partitions that are there whatever the domains are called; no domain's may be one of them.

On a UEFI machine the first of them is `ESP`.
"""

GUESTS = "guests"
"""The partition with the guests' disks and swap spaces, where these are files or volumes."""

GUESTS_FOLDER = "/mnt/guests"
"""Where dom0 has it."""

SWAP_FOLDER = "/mnt/domuswap"
"""Where dom0 has the swap files of guests whose roots are partitions."""

EXTENT_MIB = 4
"""What logical volumes are made of; as much of their partition is LVM's own."""

ESP = "esp"
"""The EFI system partition: it has the number of BIOS machines' biosboot."""

PLAIN = ("biosboot", ESP)
"""What the firmware reads by itself: each disk of a mirror has its own."""

ARRAYS = "/dev/md"
"""Where the arrays of a mirror are, each by the name of its partitions."""

Kind = Literal["biosboot", "esp", "boot", "swap", "linux", "lvm"]

BIOSBOOT_MIB = 1
"""GRUB's core image on a GPT disk; no file system is ever made on it."""
ESP_MIB = 260
"""The least size at which FAT32 has the clusters that it must have on a disk of 4 KiB sectors."""
TABLES_MIB = 2
"""What the table at each end of a GPT disk takes, partitions beginning at whole MiB."""


@dataclass(frozen=True)
class Planned:
    """One partition: its name (GPT label), its size in MiB, and what it is for."""

    name: str
    mib: int
    kind: Kind


def boot_partition(site: Parameters) -> Planned:
    """The first partition, which the machine's firmware asks for."""
    if site.firmware == "uefi":
        return Planned(ESP, ESP_MIB, "esp")
    return Planned("biosboot", BIOSBOOT_MIB, "biosboot")


def partitions(site: Parameters) -> list[Planned]:
    """The partitions of a site in their order; `GUESTS` takes what the disk has left."""
    return [
        boot_partition(site),
        Planned("boot", site.boot_mib, "boot"),
        Planned("dom0swap", site.dom0_swap_mib, "swap"),
        Planned("dom0root", site.dom0_root_mib, "linux"),
        Planned("share", site.share_mib, "linux"),
        *guest_partitions(site),
    ]


def guest_partitions(site: Parameters) -> tuple[Planned, ...]:
    """What the guests' disks take, the last partitions.

    One for each root and one for all swap files; or one alone, for files or volumes of both.
    """
    if volumes_for_disks(site):
        each = sum(in_extents(size) for size in (site.domu_root_mib, site.domu_swap_mib))
        return (Planned(GUESTS, EXTENT_MIB + len(site.domains) * each, "lvm"),)
    if files_for_disks(site):
        files = len(site.domains) * (site.domu_root_mib + site.domu_swap_mib)
        return (Planned(GUESTS, holding_mib(files), "linux"),)
    roots = (Planned(d.partition, site.domu_root_mib, "linux") for d in site.domains)
    return (*roots, Planned("domuswap", swap_files_mib(site), "linux"))


def in_extents(mib: int) -> int:
    """The size in MiB of a logical volume that has at least so many."""
    return -(-mib // EXTENT_MIB) * EXTENT_MIB


def files_for_disks(site: Parameters) -> bool:
    """Whether the guests' roots are files, and no partitions."""
    return site.guest_disks == "file"


def volumes_for_disks(site: Parameters) -> bool:
    """Whether the guests' roots, and their swap spaces, are logical volumes."""
    return site.guest_disks == "lvm"


def partition_names(site: Parameters) -> tuple[str, ...]:
    """The names of the site's partitions, in their order, as a BIOS machine has them."""
    *first, last = DOM0_PARTITIONS
    if volumes_for_disks(site) or files_for_disks(site):
        return *first, GUESTS
    return *first, *(domain.partition for domain in site.domains), last


def device(site: Parameters, name: str) -> str:
    """The device of one of the site's partitions, on its own disk; or a guest's file or volume."""
    of_guest = name in (domain.partition for domain in site.domains)
    if of_guest and files_for_disks(site):
        return f"{GUESTS_FOLDER}/{name}.img"
    if of_guest and volumes_for_disks(site):
        return f"/dev/{site.volume_group}/{name}"
    return _device(site, name, partition_names(site))


def dom0_device(site: Parameters, name: str) -> str:
    """The same for one of dom0's before the guests', whom a chapter need not know then."""
    return _device(site, name, DOM0_PARTITIONS[:-1])


def _device(site: Parameters, name: str, names: tuple[str, ...]) -> str:
    if mirrored(site) and name not in PLAIN:
        return f"{ARRAYS}/{name}"
    # a chapter that asks for a guest's root need not know the firmware
    first = ESP if ESP in (name, *site.numbers) else names[0]
    return partition_path(site.disk, with_new(site.numbers, (first, *names[1:]))[name])


def mirrored(site: Parameters) -> bool:
    """Whether the site's data is on two disks, each partition an array with the other disk's."""
    return site.knows("mirror") and bool(site.mirror)


def on_mirror(site: Parameters) -> Parameters:
    """The second of its two disks, as a site of one."""
    numbers = site.mirror_numbers
    return site.model_copy(update={"disk": site.mirror, "mirror": ""}).numbered(numbers)


def partition_path(disk: str, number: int) -> str:
    """The device of a disk's partition, by the rules of kernel and udev.

    ``/dev/vda4``, ``/dev/nvme0n1p4``, ``/dev/disk/by-id/…-part4``: it lies on this disk and no
    other, whatever names and labels another one has.
    """
    if disk.startswith(("/dev/disk/", "/dev/mapper/")):
        return f"{disk}-part{number}"
    return f"{disk}{'p' if disk[-1:].isdigit() else ''}{number}"


def swap_files_mib(site: Parameters) -> int:
    """MiB of a file system that has room for the swap file of every domain."""
    return holding_mib(len(site.domains) * site.domu_swap_mib)


def holding_mib(files: int) -> int:
    """MiB of an ext4 file system that has room for files of so many MiB.

    mke2fs takes up to 4 % for the journal and 1.6 % for inodes, and more of a small file system.
    """
    return files + 32 + math.ceil(files * 0.06)


def needed_mib(site: Parameters) -> int:
    """MiB that a disk must have for the site."""
    return TABLES_MIB + sum(partition.mib for partition in partitions(site))


def fits(site: Parameters, disk_mib: int) -> None:
    """Raise BadInput, with the numbers, unless a disk of so many MiB is large enough."""
    needed = needed_mib(site)
    if needed > disk_mib:
        parts = ", ".join(f"{part.name} {part.mib}" for part in partitions(site))
        raise BadInput(
            f"{site.disk} has {disk_mib} MiB and the site needs {needed} MiB: {parts}",
            where=f"site {site.site}",
            hint="take a larger disk, fewer domains, or smaller sizes (parameters *_mib)",
        )


# A GPT: what a site asks of it, and what has to change in one that is there, without moving any.

# Partition types of the UEFI specification and of the Discoverable Partitions Specification; a root
# is plain Linux data on purpose: systemd-gpt-auto-generator picks "root" types by itself.
EFI_SYSTEM = "C12A7328-F81F-11D2-BA4B-00A0C93EC93B"
BIOS_BOOT = "21686148-6449-6E6F-744E-656564454649"
LINUX_BOOT = "BC13C2FF-59E6-4262-A352-B275FD6F7172"
LINUX_SWAP = "0657FD6D-A4AB-43C4-84E5-0933C84B4F4F"
LINUX_LVM = "E6D6D379-F507-44C2-A23C-238F2A3DF928"
LINUX_RAID = "A19D880F-05FC-4D3B-A006-743F0F84911E"
LINUX_DATA = "0FC63DAF-8483-4772-8E79-3D69D8477DE4"

REST = 0
"""The size of the partition that takes what is left."""

_MIB = 1 << 20


@dataclass(frozen=True)
class Partition:
    """A partition of a GPT: its name (PARTLABEL), size and type; `REST` takes what is left.

    One that is there suffices with ``least_mib``, where that is given.
    """

    name: str
    size_mib: int
    kind: str = LINUX_DATA
    least_mib: int = 0

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9._-]{1,36}", self.name):
            raise BadInput(
                f"cannot name a partition {self.name!r}: because that is too long, or no word",
                hint="use at most 36 letters, digits, dots, dashes and underscores",
            )

    @property
    def needed_mib(self) -> int:
        """What it must have, in MiB."""
        return self.least_mib or self.size_mib


@dataclass(frozen=True)
class There:
    """A partition that is there: its number, name, type, first sector, and how many it has."""

    number: int
    name: str
    kind: str
    start: int
    size: int

    @property
    def end(self) -> int:
        """The first sector behind it."""
        return self.start + self.size


@dataclass(frozen=True)
class Table:
    """A partition table as it is; ``first`` and ``last`` are the sectors that partitions may have.

    ``mib`` is how many sectors are a MiB; ``label`` is the kind of table, "" where there is none,
    and ``guid`` its own identity.
    """

    parts: tuple[There, ...] = ()
    first: int = 0
    last: int = 0
    mib: int = 2048
    label: str = ""
    guid: str = ""

    def free_behind(self, part: There) -> int:
        """How many sectors directly behind a partition are nobody's."""
        later = [other.start for other in self.parts if other.start >= part.end]
        return min([*later, self.last + 1]) - part.end

    def gaps(self) -> Iterator[tuple[int, int]]:
        """Where there is room for whole MiB: the first sector, and the first one behind."""
        at = max(self.first, self.mib)
        for start, end in [*sorted((p.start, p.end) for p in self.parts), (self.last + 1, 0)]:
            begin, behind = -(-at // self.mib) * self.mib, start // self.mib * self.mib
            if begin < behind:
                yield begin, behind
            at = max(at, end)


def parse_table(found: Mapping[str, Any]) -> Table:
    """What ``sfdisk --json`` says of a disk ({}: it has no table)."""
    parts = tuple(
        There(
            number_of(part["node"]),
            part.get("name", ""),
            str(part["type"]).upper(),
            int(part["start"]),
            int(part["size"]),
        )
        for part in found.get("partitions", ())
    )
    sector = int(found.get("sectorsize", 512))
    first, last = int(found.get("firstlba", 0)), int(found.get("lastlba", 0))
    return Table(parts, first, last, _MIB // sector, found.get("label", ""), found.get("id", ""))


def number_of(partition: str) -> int:
    """The number that a partition's device ends in."""
    found = re.search(r"\d+$", partition)
    return int(found[0]) if found else 0


def numbers(table: Table) -> dict[str, int]:
    """The number of each partition by its name; one whose name is none, or taken, has its own."""
    found: dict[str, int] = {}
    for part in sorted(table.parts, key=lambda part: part.number):
        taken = not part.name or part.name in found
        found[f"#{part.number}" if taken else part.name] = part.number
    return found


def with_new(found: Mapping[str, int], names: Iterable[str]) -> dict[str, int]:
    """The same with the names that are new: each in its turn gets the lowest number left."""
    free = (number for number in count(1) if number not in found.values())
    new = [name for name in names if name not in found]
    return {**found, **dict(zip(new, free, strict=False))}


@dataclass(frozen=True)
class Changes:
    """What has to change in a table, and what cannot: ``refused`` says why, in words.

    ``grown`` have their new sizes. ``kept`` says what is there otherwise than the site's file says.
    """

    grown: tuple[There, ...] = ()
    added: tuple[There, ...] = ()
    kept: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()


def changes(wanted: Sequence[Partition], table: Table) -> Changes:
    """What makes a table hold these, while each partition stays where it is with its number.

    None is moved, shrunk or removed. One that is too small grows into what is free behind it. A new
    one is put at the end of the smallest room that it fits into: what is free in front of it is
    left for the partition there to grow.
    """
    times = Counter(part.name for part in table.parts)
    there = {part.name: part for part in reversed(table.parts)}
    grown: list[There] = []
    refused = [
        f"{times[p.name]} partitions are called {p.name}" for p in wanted if times[p.name] > 1
    ]
    for each in wanted:
        now = there.get(each.name)
        if now is None:
            continue
        free, needed = table.free_behind(now), each.needed_mib * table.mib
        if now.kind != each.kind:
            refused.append(f"{each.name} is of the type {now.kind}, and not {each.kind}")
        elif now.size + free < needed:
            refused.append(
                f"{each.name} has {now.size // table.mib} MiB and must have {each.needed_mib} MiB, "
                f"and {free // table.mib} MiB are free behind it"
            )
        elif now.size < needed:
            size = now.size + free if each.size_mib == REST else needed
            grown.append(replace(now, size=size))
    by_number = {part.number: part for part in (*table.parts, *grown)}
    found = _added(wanted, replace(table, parts=tuple(by_number.values())))
    added = [each for each in found if isinstance(each, There)]
    refused += [each for each in found if isinstance(each, str)]
    return Changes(tuple(grown), tuple(added), tuple(_kept(wanted, table)), tuple(refused))


def _added(wanted: Sequence[Partition], table: Table) -> list[There | str]:
    """Those that are not there yet, each with its place; in words where there is none."""
    number = with_new(numbers(table), (each.name for each in wanted))
    found: list[There | str] = []
    for each in wanted:
        if any(part.name == each.name for part in table.parts):
            continue
        gaps = sorted(table.gaps(), key=lambda gap: (gap[1] - gap[0], gap))
        needed = each.needed_mib * table.mib
        fitting = [gap for gap in gaps if gap[1] - gap[0] >= max(needed, table.mib)]
        if not fitting:
            most = max((end - start for start, end in gaps), default=0) // table.mib
            found.append(
                f"{each.name} must have {each.needed_mib} MiB, and the largest free room has "
                f"{most} MiB"
            )
            continue
        rest = each.size_mib == REST
        start, end = fitting[-1] if rest else fitting[0]
        start = start if rest else end - needed
        new = There(number[each.name], each.name, each.kind, start, end - start)
        found.append(new)
        table = replace(table, parts=(*table.parts, new))
    return found


def _kept(wanted: Sequence[Partition], table: Table) -> Iterator[str]:
    """What is there and the site's file does not name, or with another size."""
    asked = {each.name: each for each in wanted}
    for part in table.parts:
        mib, each = part.size // table.mib, asked.get(part.name)
        if each is None:
            name = part.name or f"partition {part.number} without a name"
            yield f"{name} ({mib} MiB) is not in the site's file: it is kept"
        elif not each.least_mib and each.size_mib and mib > each.size_mib:
            yield f"{part.name} has {mib} MiB, the site's file says {each.size_mib}: none shrinks"
