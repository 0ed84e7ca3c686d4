"""Chapters 00 to 02: what the controller brings, the disk of a site, the base system on it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pandas as pd

from xenlab import quoting
from xenlab.cache import LINUX
from xenlab.chapter.chapter import Chapter
from xenlab.command import Command
from xenlab.errors import BadInput, StepFailed
from xenlab.host import Host
from xenlab.platform.apt import AptPackages
from xenlab.platform.apt_sources import require_room
from xenlab.platform.boot import EFI_FOLDER, SECOND_EFI_FOLDER
from xenlab.platform.choice import has_releases, where_stages_come_from
from xenlab.platform.power import Managed, power
from xenlab.resources.archive import (
    RECORD,
    Upload,
    codename_in,
    has_checksum,
    packaged_checksum,
    read_checksum,
    require_checksum,
    unpacked_mib,
)
from xenlab.resources.base import All, Check, Difference, Report, Resource
from xenlab.resources.disk import Filesystem, Grown, Mirror, OnPartitions, PartitionTable
from xenlab.resources.files import File
from xenlab.resources.nfs import BIND, DiskFile, Mount, Volume, VolumeGroup
from xenlab.site.disk_plan import (
    ARRAYS,
    BIOS_BOOT,
    DOM0_PARTITIONS,
    EFI_SYSTEM,
    ESP,
    GUESTS,
    GUESTS_FOLDER,
    LINUX_BOOT,
    LINUX_DATA,
    LINUX_LVM,
    LINUX_RAID,
    LINUX_SWAP,
    PLAIN,
    REST,
    SWAP_FOLDER,
    Kind,
    Partition,
    Planned,
    boot_partition,
    device,
    dom0_device,
    files_for_disks,
    guest_partitions,
    mirrored,
    on_mirror,
    partition_names,
    partitions,
    volumes_for_disks,
)
from xenlab.site.rules import LEAST, builds_kernel
from xenlab.site.schema import Domain, Parameters

# The disk of a site: partitions, file systems, where they are mounted, swap files of the guests.
#
# Howto: „Partitionen“.


_TYPES: dict[Kind, str] = {
    "biosboot": BIOS_BOOT,
    "esp": EFI_SYSTEM,
    "boot": LINUX_BOOT,
    "swap": LINUX_SWAP,
    "linux": LINUX_DATA,
    "lvm": LINUX_LVM,
}
_SYSTEMS: dict[Kind, str] = {"swap": "swap", "esp": "vfat"}
_SECOND = "the second disk's"
"""What its EFI system partition is called in here: no name of a partition has a blank."""
# a few large files: hardly any inodes, and no share kept back for root
_FOR_FILES = ("-m", "0", "-T", "largefile4")


def first_partition(site: Parameters) -> Partition:
    """What the firmware boots from: GRUB's core for a BIOS, the system partition for UEFI."""
    first = boot_partition(site)
    return Partition(first.name, first.mib, _TYPES[first.kind])


def partition_tables(site: Parameters) -> tuple[Resource, ...]:
    """The table of each of the site's disks, and the arrays on them."""
    return (*on_both(site, partition_table(site)), *arrays(site, partition_names(site)))


def partition_table(site: Parameters) -> PartitionTable:
    """The six kinds of partition on the site's disk."""
    kept = [p for p in partitions(site)[1:] if p not in guest_partitions(site)]
    others = (Partition(p.name, p.mib, _TYPES[p.kind]) for p in kept)
    return PartitionTable(site.disk, (first_partition(site), *others, *guests_partitions(site)))


def guests_partitions(site: Parameters) -> tuple[Partition, ...]:
    """The last ones, of the guests' disks.

    The one of files or volumes takes what is left: guests come and go inside it. Beside partitions
    it is left free, for more of them; what holds the swap files may be larger than they are.
    """
    one = len(guest_partitions(site)) == 1
    return tuple(
        Partition(p.name, REST if one else p.mib, _TYPES[p.kind], p.mib if _shared(p) else 0)
        for p in guest_partitions(site)
    )


def _shared(planned: Planned) -> bool:
    return planned.name in ("domuswap", GUESTS)


def partitioned(chapter: Chapter, table: PartitionTable) -> tuple[Resource, ...]:
    """A table, brought about without a loss where the disk holds what xenlab made.

    It is made anew where that is nothing, or where somebody has agreed to lose all of it. The same
    on the second disk of a mirror, if there is one, and then the arrays of both.
    """
    site = chapter.site
    tables = (made for each in on_both(site, table) for made in _kept(chapter, each))
    return (*tables, *arrays(site, partition_names(site)))


def _kept(chapter: Chapter, table: PartitionTable) -> tuple[Resource, ...]:
    # a script is written without a disk to be looked at
    if not chapter.host.test(Command.argv("test", "-e", table.disk)):
        return (table,)
    lost = table.destroys(chapter.host)
    return table.by_difference(chapter.host) if chapter.agreed_to.missing(lost) else (table,)


def file_systems(site: Parameters) -> tuple[Filesystem, ...]:
    """A file system or swap on every partition but biosboot; each is labelled with its name."""
    again = [device(on_mirror(site), ESP)] if _two_esps(site) else []
    return tuple(
        Filesystem(
            device(site, p.name),
            p.name,
            _SYSTEMS.get(p.kind, "ext4"),
            _FOR_FILES if _shared(p) else (),
        )
        for p in partitions(site)
        if p.kind not in ("biosboot", "lvm")
    ) + tuple(Filesystem(place, ESP, _SYSTEMS["esp"]) for place in again)


def systems_grown(site: Parameters) -> tuple[Grown, ...]:
    """Each ext4 on a partition, as large as that."""
    ext4 = (each for each in file_systems(site) if each.kind == "ext4")
    return tuple(Grown(each.device, each.label) for each in ext4)


def swap_space(site: Parameters, domain: Domain) -> str:
    """The path in dom0 of a guest's swap file, or of its volume for that."""
    folder = GUESTS_FOLDER if files_for_disks(site) else SWAP_FOLDER
    folder = f"/dev/{site.volume_group}" if volumes_for_disks(site) else folder
    return f"{folder}/{domain.record}.swap"


def in_files(site: Parameters, swap: dict[str, Resource]) -> dict[str, Resource]:
    """These swap files; none where the swap spaces are volumes, which dom0 makes itself."""
    return {} if volumes_for_disks(site) else swap


def guests_volumes(site: Parameters) -> tuple[Resource, ...]:
    """The group of the guests' volumes and two of these each; nothing for partitions and files.

    dom0's lvm does not look at what guests write to themselves: a group there could have the name
    of this one.
    """
    if not volumes_for_disks(site):
        return ()
    group = site.volume_group
    roots = (Volume(group, each.partition, site.domu_root_mib) for each in site.domains)
    swaps = (
        Volume(group, f"{each.record}.swap", site.domu_swap_mib, swap=True) for each in site.domains
    )
    made = VolumeGroup(device(site, GUESTS), group)
    disks = (re.sub(r"[^\w/-]", ".", d.path) for domain in site.domains for d in domain.disks)
    of_guests = ["^/dev/loop", *(f"^{path}(-part|p)?[0-9]*$" for path in disks)]
    reject = ", ".join(f'"r|{pattern}|"' for pattern in of_guests)
    blind = File("/etc/lvm/lvmlocal.conf", f"devices {{\n\tglobal_filter = [ {reject} ]\n}}\n")
    return (AptPackages(("lvm2",)), blind, made, *roots, *swaps)


def disk_files(site: Parameters, root: str) -> dict[str, Resource]:
    """The file of each guest that is its disk; none where that is a partition."""
    if not files_for_disks(site):
        return {}
    return {
        f"{each.name}'s disk": DiskFile(
            below(root, device(site, each.partition)), site.domu_root_mib
        )
        for each in site.domains
    }


def mounts(site: Parameters, root: str) -> tuple[Mount, ...]:
    """The installed system's file systems, mounted at and below its root."""
    places = {name: place for name, place, *_ in _guests_mounted(site)}
    further = (
        Mount(device(site, name), below(root, place), options="noatime")
        for name, place in places.items()
    )
    return (*_own_mounts(site, root), *further)


def _own_mounts(site: Parameters, root: str) -> tuple[Mount, ...]:
    return tuple(
        Mount(dom0_device(site, name), below(root, place), kind, options)
        for name, place, kind, options in (
            ("dom0root", "/", "ext4", "noatime"),
            ("boot", "/boot", "ext4", "noatime"),
            *_esp_mounted(site),
            ("share", site.share, "ext4", "noatime"),
        )
    ) + tuple(
        Mount(dom0_device(on_mirror(site), ESP), below(root, place), kind, options)
        for place, kind, options in _second_esp(site)
    )


def _esp_mounted(site: Parameters) -> tuple[tuple[str, str, str, str], ...]:
    """Where and how the EFI system partition is mounted, if there is one; only root reads it."""
    # dom0 boots by the other disk where one of two is lost
    options = f"umask=0077{',nofail' * mirrored(site)}"
    return ((ESP, EFI_FOLDER, "vfat", options),) if site.firmware == "uefi" else ()


def _second_esp(site: Parameters) -> tuple[tuple[str, str, str], ...]:
    """The same of the second disk's."""
    rows = _esp_mounted(site) if _two_esps(site) else ()
    return tuple((SECOND_EFI_FOLDER, kind, options) for _, _, kind, options in rows)


def _two_esps(site: Parameters) -> bool:
    return mirrored(site) and site.firmware == "uefi"


def kernel_mounts(root: str) -> tuple[Mount, ...]:
    """What the kernel of the running system shows, seen inside the installed root as well."""
    return (
        Mount("proc", below(root, "/proc"), "proc"),
        *(Mount(path, below(root, path), BIND) for path in ("/sys", "/dev", "/run")),
    )


def mounted_again(chapter: Chapter) -> list[Resource]:
    """In a rescue system that was booted anew: the installed system, mounted as chapter 02 does.

    But for the guests' swap files, which nobody needs before the disk was booted.
    """
    if chapter.root == "/":
        return []
    site, root = chapter.site, chapter.root
    parts = (*_own_mounts(site, root), *kernel_mounts(root))
    return [*dom0_arrays(site), MountedAgain(dom0_device(site, "dom0root"), All(parts))]


@dataclass(frozen=True)
class MountedAgain(Resource):
    """A system that was unpacked on a device, mounted with all that belongs to it."""

    device: str
    mounted: Resource

    def probe(self, host: Host) -> Difference | None:
        """What is not mounted."""
        return self.mounted.probe(host)

    def commands(self) -> tuple[Command, ...]:
        """Mount it."""
        return self.mounted.commands()

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


def below(root: str, path: str) -> str:
    """A path of the installed system as the machine itself sees it."""
    return path if root == "/" else root if path == "/" else f"{root}{path}"


# What of a site is on both of its disks, where it has two.

CONFIGURATION = "/etc/mdadm/mdadm.conf"
_HEAD = "# written by xenlab, chapter 03; see mdadm.conf(5)\nMAILADDR root\n"


def on_both(site: Parameters, table: PartitionTable) -> tuple[PartitionTable, ...]:
    """This table on each disk of the site; on two, what holds data is there for arrays."""
    if not mirrored(site):
        return (table,)
    parts = tuple(
        part if part.name in PLAIN else replace(part, kind=LINUX_RAID) for part in table.partitions
    )
    return tuple(replace(table, disk=d, partitions=parts) for d in (site.disk, site.mirror))


def arrays(site: Parameters, names: Iterable[str]) -> tuple[Mirror, ...]:
    """The arrays of the partitions of these names, in the order of a new table; none without."""
    if not mirrored(site):
        return ()
    numbered = enumerate(names, start=1)
    disks = (site.disk, site.mirror)
    return tuple(Mirror(disks, name, (n, n)) for n, name in numbered if name not in PLAIN)


def dom0_arrays(site: Parameters) -> tuple[Mirror, ...]:
    """dom0's own."""
    return arrays(site, DOM0_PARTITIONS[:-1])


def assembled_at_boot(site: Parameters) -> tuple[Resource, ...]:
    """What dom0's initrd needs to assemble its arrays; it comes before that is made."""
    if not mirrored(site):
        return ()
    names = tuple(each.name for each in dom0_arrays(site))

    def written(uuids: Mapping[str, str]) -> File:
        lines = (f"ARRAY {ARRAYS}/{name} metadata=1.2 UUID={uuids[name]}\n" for name in names)
        return File(CONFIGURATION, f"{_HEAD}{''.join(lines)}")

    what = f"write {CONFIGURATION}"
    return OnPartitions(site.disk, names, written, what, arrays=True), AptPackages(("mdadm",))


# The base system of dom0: the stage on its root, the share, sources and packages moved there.
#
# Howto: „System“.


def absent_stage(site: Parameters, file: str) -> BadInput:
    """The error that a file of the stage is not there, with where to get one."""
    hint = where_stages_come_from(site.platform)
    return BadInput(f"there is no stage {file} on the controller", hint=hint)


def stage_checksum(site: Parameters) -> str:
    """The checksum that the site's stage must have; raises BadInput where it cannot be told."""
    if not Path(site.stage_checksums).expanduser().exists():
        raise absent_stage(site, site.stage_checksums)
    return read_checksum(
        site.stage_checksums, site.stage, site.checksum_keyring, site.checksum_signers
    )


def source_tarball(site: Parameters, root: str = "/") -> Upload:
    """The kernel sources' tarball in their folder on the share; raises as `kernel_checksum` does.

    ``root`` is the installed root as the machine sees it.
    """
    return Upload(site.kernel_source, kernel_tarball(site), kernel_checksum(site), root)


def sources_brought(chapter: Chapter) -> tuple[Upload, ...]:
    """That tarball, where kernels are compiled from it."""
    site = chapter.site
    return (source_tarball(site, chapter.root),) if builds_kernel(site) else ()


def kernel_checksum(site: Parameters) -> str:
    """The checksum that the kernel sources must have: the site's, or by Debian's package.

    Raises BadInput where neither says it.
    """
    if not site.kernel_checksums:
        return packaged_checksum(site.kernel_source)
    return read_checksum(
        site.kernel_checksums, site.kernel_source, site.checksum_keyring, site.checksum_signers
    )


def kernel_tarball(site: Parameters) -> str:
    """The path of the kernel source tarball on the installed system."""
    return f"{site.share}/src/{Path(site.kernel_source).name}"


def fstab(site: Parameters) -> Resource:
    """What is mounted at boot: partitions by their UUIDs on the site's own disks, and arrays."""
    summary = "write /etc/fstab"
    names = tuple(name for name, *_ in _fstab_rows(site) if name in PLAIN or not mirrored(site))

    def also_by(uuids: Mapping[str, str]) -> Resource:
        def made(second: Mapping[str, str]) -> File:
            return fstab_file(site, {**uuids, _SECOND: second[ESP]})

        return OnPartitions(site.mirror, (ESP,), made, summary)

    of_one = also_by if _two_esps(site) else partial(fstab_file, site)
    return OnPartitions(site.disk, names, of_one, summary)


def fstab_file(site: Parameters, uuids: Mapping[str, str]) -> File:
    """fstab(5), with the UUID of each partition by its name.

    The share has no "nofail": the guests live on it.
    """

    def where(name: str) -> str:
        if mirrored(site) and name not in (*PLAIN, _SECOND):
            return f"{ARRAYS}/{name}"
        return f"PARTUUID={uuids[name]}"

    lines = (
        "  ".join([where(name), *(quoting.fstab(field) for field in fields)])
        for name, *fields in _fstab_rows(site)
    )
    return File(
        "/etc/fstab", "# written by xenlab, chapter 02; see fstab(5)\n" + "\n".join(lines) + "\n"
    )


def _fstab_rows(site: Parameters) -> tuple[tuple[str, ...], ...]:
    """What fstab says of each partition, by its name."""
    return (
        ("dom0root", "/", "ext4", "noatime", "0", "1"),
        ("boot", "/boot", "ext4", "noatime", "0", "2"),
        *((*how, "0", "2") for how in _esp_mounted(site)),
        *((_SECOND, *how, "0", "2") for how in _second_esp(site)),
        ("dom0swap", "none", "swap", "sw", "0", "0"),
        ("share", site.share, "ext4", "noatime", "0", "2"),
        *((*how, "ext4", "noatime", "0", "2") for how in _guests_mounted(site)),
    )


def _guests_mounted(site: Parameters) -> tuple[tuple[str, str], ...]:
    """The partition of the guests that dom0 mounts, and where."""
    if volumes_for_disks(site):
        return ()
    return ((GUESTS, GUESTS_FOLDER),) if files_for_disks(site) else (("domuswap", SWAP_FOLDER),)


# What the controller brings, as chapter 00 looks at it.

Row = tuple[str, str, str, bool | str]
"""What, wanted, found, and whether that fits."""


def fits_table(rows: list[Row]) -> pd.DataFrame:
    """What a site wants and what there is, side by side."""
    frame = pd.DataFrame(rows, columns=["what", "wanted", "found", "fits"])
    frame["fits"] = [{True: "yes", False: "no"}.get(fits, fits) for fits in frame["fits"]]
    return frame


def controller_software(site: Parameters, controller: Host) -> pd.DataFrame:
    """What the controller has to bring: the stage, and the kernel source where one is compiled."""
    rows: list[Row] = []
    sources = (("kernel source", site.kernel_source),) if builds_kernel(site) else ()
    for name, path in (("stage", site.stage), *sources):
        found = controller.run(
            Command.argv("stat", "-L", "-c", "%s", "--", _own(path)), check=False
        )
        size = f"{int(found.stdout) / 1024**2:.0f} MiB" if found.ok else "missing"
        rows.append((name, path, size, found.ok))
    wanted = stage_checksum(site)
    same = has_checksum(controller, _own(site.stage), wanted)
    rows.append(("stage checksum", f"{wanted[:16]}…", "the same" if same else "another one", same))
    rows += [_kernel_row(site)] if sources else []
    compiles = builds_kernel(site) and site.build_on == "controller"
    needed = ("make", "gcc", "flex", "bison", "bc") if compiles else ()
    script = 'for tool; do command -v "$tool" > /dev/null || printf "%s\\n" "$tool"; done'
    missing = controller.run(Command.script(script, *needed)).stdout.split()
    rows.append(
        (
            "compiler",
            ", ".join(needed) or "none here",
            ", ".join(missing) or "all there",
            not missing,
        )
    )
    return fits_table(rows)


def _kernel_row(site: Parameters) -> Row:
    try:
        wanted = kernel_checksum(site)
        require_checksum(Path(_own(site.kernel_source)), wanted)
    except BadInput as error:
        return ("kernel checksum", site.kernel_checksums or "dpkg's", str(error), False)
    return ("kernel checksum", f"{wanted[:16]}…", "the same", True)


def _own(path: str) -> str:
    """A path on the controller, where ``~`` is this person's home."""
    return str(Path(path).expanduser())


@dataclass(frozen=True)
class Brought(Check):
    """The controller has what the site names: a whole stage, the kernel source, a way to boot."""

    site: Parameters

    def probe(self, host: Host) -> Difference | None:
        """None if all is there; raises BadInput for what is missing or has a wrong checksum."""
        site = self.site
        by = power(site)
        if isinstance(by, Managed):
            by.ready(host)
        wanted = stage_checksum(site)
        if not host.test(Command.argv("test", "-f", _own(site.stage))):
            raise absent_stage(site, site.stage)
        if not has_checksum(host, _own(site.stage), wanted):
            # read once more, for the reason
            require_checksum(Path(_own(site.stage)), wanted)
        self._is_of_the_release(host)
        if builds_kernel(site):
            self._has_sources(host)
        if site.apt_folder:
            require_room(site.apt_folder, site.share_mib - LEAST["share_mib"][0])
        self._has_room(unpacked_mib(host, _own(site.stage)))
        return None

    def _is_of_the_release(self, host: Host) -> None:
        site = self.site
        found = codename_in(host, _own(site.stage)) if has_releases(site) else ""
        if found in LINUX and found != site.release:
            raise BadInput(
                f"the stage is Debian's {found}, and the site says release: {site.release}",
                hint=f"write release: {found}, or name another stage",
            )

    def _has_sources(self, host: Host) -> None:
        source = self.site.kernel_source
        if not host.test(Command.argv("test", "-f", _own(source))):
            raise BadInput(
                f"there is no kernel source {source} on the controller",
                hint="`xenlab lab stage` fetches Debian's, or name another one in kernel_source",
            )
        require_checksum(Path(_own(source)), kernel_checksum(self.site))

    def _has_room(self, stage_mib: int) -> None:
        for key in ("dom0_root_mib", "domu_root_mib"):
            room = getattr(self.site, key)
            if stage_mib > room:
                raise BadInput(
                    f"the stage has {stage_mib} MiB unpacked, and {key} is {room}",
                    hint=f"raise {key}",
                )
