"""The disk plan of a site: the kinds of partition in the howto's order, and whether they fit.

Howto: „Partitionen“.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from xenlab.errors import BadInput

if TYPE_CHECKING:
    from xenlab.site.schema import Parameters

DOM0_PARTITIONS = ("biosboot", "boot", "dom0swap", "dom0root", "share", "domuswap")
"""The partitions that are there whatever the domains are called; no domain's may be one of them.

On a UEFI machine the first of them is `ESP`.
"""

GUESTS = "guests"
"""The partition with the guests' disk files or logical volumes, where these are such."""

GUESTS_FOLDER = "/mnt/guests"
"""Where dom0 has it."""

SWAP_FOLDER = "/mnt/domuswap"
"""Where dom0 has the partition with the guests' swap files."""

EXTENT_MIB = 4
"""What logical volumes are made of; as much of their partition is LVM's own."""

ESP = "esp"
"""The EFI system partition: it has the number of BIOS machines' biosboot."""

Kind = Literal["biosboot", "esp", "boot", "swap", "linux", "lvm"]

BIOSBOOT_MIB = 1
"""GRUB's core image on a GPT disk; no file system is ever made on it."""
ESP_MIB = 260
"""The least size at which FAT32 has the clusters that it must have on a disk of 4 KiB sectors."""
TABLES_MIB = 2
"""What the table at each end of a GPT disk takes, partitions beginning at whole MiB."""


@dataclass(frozen=True)
class Partition:
    """One partition: its name (GPT label), its size in MiB, and what it is for."""

    name: str
    mib: int
    kind: Kind


def boot_partition(site: Parameters) -> Partition:
    """The first partition, which the machine's firmware asks for."""
    if site.firmware == "uefi":
        return Partition(ESP, ESP_MIB, "esp")
    return Partition("biosboot", BIOSBOOT_MIB, "biosboot")


def partitions(site: Parameters) -> list[Partition]:
    """The partitions of a site in their order; the last may take what the disk has left."""
    return [
        boot_partition(site),
        Partition("boot", site.boot_mib, "boot"),
        Partition("dom0swap", site.dom0_swap_mib, "swap"),
        Partition("dom0root", site.dom0_root_mib, "linux"),
        Partition("share", site.share_mib, "linux"),
        *guest_partitions(site),
    ]


def guest_partitions(site: Parameters) -> tuple[Partition, ...]:
    """What the guests' disks take, the last partitions.

    For their roots one each, or one with a file for each, and one for all swap files; or one for
    volumes of both.
    """
    if volumes_for_disks(site):
        each = sum(in_extents(size) for size in (site.domu_root_mib, site.domu_swap_mib))
        return (Partition(GUESTS, EXTENT_MIB + len(site.domains) * each, "lvm"),)
    swap = Partition("domuswap", swap_files_mib(site), "linux")
    if files_for_disks(site):
        roots = holding_mib(len(site.domains) * site.domu_root_mib)
        return (Partition(GUESTS, roots, "linux"), swap)
    return (*(Partition(d.partition, site.domu_root_mib, "linux") for d in site.domains), swap)


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
    if volumes_for_disks(site):
        return *first, GUESTS
    if files_for_disks(site):
        return *first, GUESTS, last
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
    # a chapter that asks for a guest's root need not know the firmware
    return partition_path(site.disk, 1 if name == ESP else names.index(name) + 1)


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
