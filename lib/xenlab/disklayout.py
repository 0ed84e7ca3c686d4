"""The disk plan of a site: the six kinds of partition in the howto's order, and whether they fit.

Howto: „Partitionen“.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from xenlab.errors import BadInput
from xenlab.parameters import Parameters

Kind = Literal["biosboot", "boot", "swap", "linux"]

BIOSBOOT_MIB = 1
"""GRUB's core image on a GPT disk; no file system is ever made on it."""
TABLES_MIB = 2
"""What the table at each end of a GPT disk takes, partitions beginning at whole MiB."""


@dataclass(frozen=True)
class Partition:
    """One partition: its name (GPT label), its size in MiB, and what it is for."""

    name: str
    mib: int
    kind: Kind


def partitions(site: Parameters) -> list[Partition]:
    """The partitions of a site in their order; the last may take what the disk has left."""
    return [
        Partition("biosboot", BIOSBOOT_MIB, "biosboot"),
        Partition("boot", site.boot_mib, "boot"),
        Partition("dom0swap", site.dom0_swap_mib, "swap"),
        Partition("dom0root", site.dom0_root_mib, "linux"),
        Partition("share", site.share_mib, "linux"),
        *(Partition(domain.partition, site.domu_root_mib, "linux") for domain in site.domains),
        Partition("domuswap", swap_files_mib(site), "linux"),
    ]


def partition_names(site: Parameters) -> tuple[str, ...]:
    """The names of the site's partitions, in their order."""
    return tuple(partition.name for partition in partitions(site))


def device(site: Parameters, name: str) -> str:
    """The device of one of the site's partitions, on the site's own disk."""
    return partition_path(site.disk, partition_names(site).index(name) + 1)


def partition_path(disk: str, number: int) -> str:
    """The device of a disk's partition, by the rules of kernel and udev.

    ``/dev/vda4``, ``/dev/nvme0n1p4``, ``/dev/disk/by-id/…-part4``: it lies on this disk and no
    other, whatever names and labels another one has.
    """
    if disk.startswith(("/dev/disk/", "/dev/mapper/")):
        return f"{disk}-part{number}"
    return f"{disk}{'p' if disk[-1:].isdigit() else ''}{number}"


def swap_files_mib(site: Parameters) -> int:
    """MiB of an ext4 file system that has room for the swap file of every domain.

    mke2fs takes up to 4 % for the journal and 1.6 % for inodes, and more of a small file system.
    """
    files = len(site.domains) * site.domu_swap_mib
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
