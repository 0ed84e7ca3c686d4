"""The disk of a site: partitions, file systems, where they are mounted, swap files of the guests.

Howto: „Partitionen“.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from xenlab.chapter import Chapter
from xenlab.command import Command
from xenlab.disklayout import Kind, device, partitions
from xenlab.errors import StepFailed
from xenlab.host import Host
from xenlab.parameters import Domain, Parameters
from xenlab.resources.archive import RECORD
from xenlab.resources.base import Difference, Report, Resource
from xenlab.resources.condition import Together
from xenlab.resources.disk import (
    BIOS_BOOT,
    LINUX_BOOT,
    LINUX_DATA,
    LINUX_SWAP,
    Filesystem,
    Partition,
    PartitionTable,
)
from xenlab.resources.mount import BIND, Mount, SwapFile

SWAP_FOLDER = "/mnt/domuswap"
"""Where dom0 has the partition with the guests' swap files."""

_TYPES: dict[Kind, str] = {
    "biosboot": BIOS_BOOT,
    "boot": LINUX_BOOT,
    "swap": LINUX_SWAP,
    "linux": LINUX_DATA,
}
# a few large files: hardly any inodes, and no share kept back for root
_FOR_SWAP_FILES = ("-m", "0", "-T", "largefile4")


def partition_table(site: Parameters) -> PartitionTable:
    """The six kinds of partition on the site's disk; the swap files' takes what is left."""
    planned = partitions(site)
    last = planned[-1]
    return PartitionTable(
        site.disk,
        tuple(Partition(p.name, 0 if p is last else p.mib, _TYPES[p.kind]) for p in planned),
    )


def file_systems(site: Parameters) -> tuple[Filesystem, ...]:
    """A file system or swap on every partition but GRUB's own; each is labelled with its name."""
    return tuple(
        Filesystem(
            device(site, p.name),
            p.name,
            "swap" if p.kind == "swap" else "ext4",
            _FOR_SWAP_FILES if p.name == "domuswap" else (),
        )
        for p in partitions(site)
        if p.kind != "biosboot"
    )


def swap_file(domain: Domain) -> str:
    """The path in dom0 of a guest's swap file."""
    return f"{SWAP_FOLDER}/{domain.name}.swap"


def swap_files(site: Parameters, root: str) -> dict[str, Resource]:
    """The swap file of each guest, below the installed root as the machine sees it."""
    return {d.name: SwapFile(below(root, swap_file(d)), site.domu_swap_mib) for d in site.domains}


def mounts(site: Parameters, root: str) -> tuple[Mount, ...]:
    """The installed system's file systems, mounted at and below its root."""
    places = {
        "dom0root": "/",
        "boot": "/boot",
        "share": site.share,
        "domuswap": SWAP_FOLDER,
    }
    return _mounts(site, root, places)


def _mounts(site: Parameters, root: str, places: Mapping[str, str]) -> tuple[Mount, ...]:
    return tuple(
        Mount(device(site, name), below(root, place), options="noatime")
        for name, place in places.items()
    )


def kernel_mounts(root: str) -> tuple[Mount, ...]:
    """What the kernel of the running system shows, seen inside the installed root as well."""
    return (
        Mount("proc", below(root, "/proc"), "proc"),
        *(Mount(path, below(root, path), BIND) for path in ("/sys", "/dev", "/run")),
    )


def mounted_again(book: Chapter) -> list[Resource]:
    """In a rescue system that was booted anew: the installed system, mounted as chapter 02 does.

    But for the guests' swap files, which nobody needs before the disk was booted.
    """
    if book.root == "/":
        return []
    site, root = book.site, book.root
    places = {"dom0root": "/", "boot": "/boot", "share": site.share}
    parts = (*_mounts(site, root, places), *kernel_mounts(root))
    return [MountedAgain(device(site, "dom0root"), Together(parts))]


@dataclass(frozen=True)
class MountedAgain(Resource):
    """A system that was unpacked on a device, mounted with all that belongs to it."""

    device: str
    mounted: Resource

    def probe(self, host: Host) -> Difference | None:
        """What is not mounted."""
        return self.mounted.probe(host)

    def apply(self, host: Host, report: Report) -> None:
        """Mount it; raises StepFailed where the device holds no such system."""
        look = """
            place=$(mktemp -d)
            trap 'umount -- "$place" 2> /dev/null || :; rmdir -- "$place"' EXIT
            mount -t ext4 -o ro,noload -- "$1" "$place" && [ -e "$place/$2" ]
        """
        if not host.test(Command.script(look, self.device, RECORD)):
            raise StepFailed(f"{self.device} holds no system that chapter 02 unpacked")
        self.mounted.apply(host, report)


def partitioned(site: Parameters) -> Resource:
    """What chapter 01 leaves: the table and a file system on every partition."""
    return Together((partition_table(site), *file_systems(site)))


def below(root: str, path: str) -> str:
    """A path of the installed system as the machine itself sees it."""
    return path if root == "/" else root if path == "/" else f"{root}{path}"
