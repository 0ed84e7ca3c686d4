"""Chapters 06, 09 and 10: the image, the guests' roots made from it, their configuration files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import pandas as pd

from xenlab.chapter.chapter import Chapter
from xenlab.chapters.disk import swap_space
from xenlab.command import Command
from xenlab.errors import StepFailed, XenlabError
from xenlab.host import Host
from xenlab.platform.choice import packages
from xenlab.platform.power import Power, booted, reboot
from xenlab.platform.xl import Disk, DomainSpec, Vif, advised_type
from xenlab.resources.base import Difference, Report, Resource, present
from xenlab.resources.disk import OnPartitions, by_uuid
from xenlab.resources.image import Image, parse_record
from xenlab.resources.ssh_access import fingerprint, host_keys
from xenlab.resources.xen import toolstack_answers, wait_for_toolstack
from xenlab.site.rules import (
    builds_kernel,
    device,
    dom0_device,
    guest_types,
)
from xenlab.site.schema import Domain, Parameters

# Chapter 06: the image that every guest is made from.
#
# Howto: „Imaging“.

MOUNT_SECONDS = 120.0


def image_taken(chapter: Chapter) -> Resource:
    """The image of the generic root, taken as the site says: running, or at rest."""
    site = chapter.site
    taken = Image(site.image, base(site), without=tuple(site.image_exclude))
    if site.imaging == "bind":
        return taken
    resting = replace(taken, device=dom0_device(site, "dom0root"))
    away = Away(site.image, dom0_device(site, "share"), site.share)
    return ImageAtRest(taken, resting, away, chapter.power, chapter.controller)


def disk_booted_again(chapter: Chapter) -> list[Resource]:
    """In the rescue system that a run was cut off in while it took the image: the disk, booted."""
    if chapter.root == "/":
        return []
    site = chapter.site
    away = Away(site.image, dom0_device(site, "share"), site.share)
    return [DiskBootedAgain(away, chapter.power, chapter.controller)]


def base(site: Parameters) -> str:
    """A short name for what the site asks of the generic root.

    Another software list, say, makes another root, and so another image; what chapters 07 to 11
    do to dom0 afterwards does not. The stage is not in it: where it lies does not matter, and the
    root itself says by its checksum which one it was.
    """
    shaped = {
        "platform": site.platform,
        "software": sorted({*site.software, *packages(site).nfs_client}),
        "services": sorted(site.services),
        # where nothing is unwanted, the root is the one that was made before there was such a key
        **({"unwanted": sorted(site.unwanted)} if site.unwanted else {}),
        # the modules of a kernel that is not built
        **({} if builds_kernel(site) else {"kernel": site.kernel}),
        "without": sorted(site.image_exclude),
        # an image that was taken before this was so is taken anew
        "secrets of dom0": "left out, with the logins in URLs",
    }
    return hashlib.sha256(json.dumps(shaped).encode()).hexdigest()[:16]


def image_record(chapter: Chapter) -> pd.DataFrame:
    """What was recorded beside the image: size, checksum, and each statement of the proof."""
    command = Command.script('cat -- "$1.info" "$1.proof"', chapter.site.image)
    return parse_proof(chapter.target.run(command, check=False).stdout)


def parse_proof(text: str) -> pd.DataFrame:
    """The record and the proof of an image as a table of two columns."""
    info = parse_record("\n".join(line for line in text.splitlines() if "\t" not in line))
    keys: tuple[str, ...] = ("taken", "way", "bytes", "sha256")
    rows = [(key, info[key]) for key in keys if key in info]
    rows += [
        (statement, seen)
        for statement, tab, seen in (line.partition("\t") for line in text.splitlines())
        if tab
    ]
    return pd.DataFrame(rows, columns=["statement", "seen"])


@dataclass(frozen=True)
class Away:
    """A note beside the image, on the share: the machine left its disk for the rescue system."""

    image: str
    device: str
    share: str

    @property
    def _note(self) -> str:
        return f"{self.image}.away"

    def leaves(self, machine: Host) -> None:
        """The machine is about to leave its disk."""
        machine.write(self._note, "the rescue system takes the image\n")

    def is_back(self, machine: Host) -> None:
        """It runs from its disk again."""
        machine.run(Command.argv("rm", "-f", "--", self._note))

    def mount(self, machine: Host) -> None:
        """Mount the share in the rescue system."""
        script = """
            mkdir -p -- "$2"
            mountpoint -q -- "$2" || mount -- "$1" "$2"
        """
        machine.run(Command.script(script, self.device, self.share), timeout=MOUNT_SECONDS)

    def unmount(self, machine: Host) -> None:
        """Unmount it: the power may simply be cut."""
        machine.run(Command.argv("umount", "--", self.share), timeout=MOUNT_SECONDS)

    def seen(self, machine: Host) -> bool:
        """Whether the rescue system was booted for the image; the share is not mounted then."""
        self.mount(machine)
        try:
            return machine.test(Command.argv("test", "-e", self._note))
        finally:
            self.unmount(machine)


@dataclass(frozen=True)
class DiskBootedAgain(Resource):
    """A machine that runs from its disk, and was left in the rescue system by `ImageAtRest`."""

    away: Away
    power: Power = field(compare=False)
    controller: Host = field(compare=False)

    def probe(self, host: Host) -> Difference | None:
        """It is asked only where the machine runs from another medium."""
        return Difference("boot the disk: a run was cut off while the rescue system took the image")

    def commands(self) -> tuple[Command, ...]:
        """Boot the disk."""
        return (*booted(self.power, "disk"), toolstack_answers())

    def apply(self, host: Host, report: Report) -> None:
        """Boot the disk; raises StepFailed where no run had left it for the image."""
        machine = host.inside("/")
        if not self.away.seen(machine):
            raise StepFailed("the machine does not run from its disk, and no image was being taken")
        reboot(self.power, "disk", machine, self.controller, report)
        wait_for_toolstack(machine)
        self.away.is_back(machine)

    def verify(self, host: Host) -> None:
        """The new boot is the proof."""


@dataclass(frozen=True)
class ImageAtRest(Resource):
    """The image of a root that does not run: the rescue system (the howto's CD) takes it.

    Whatever happens, the machine boots its disk again: in this run, or `DiskBootedAgain` in the
    next one where this is killed.
    """

    image: Image
    resting: Image
    away: Away
    power: Power = field(compare=False)
    controller: Host = field(compare=False)

    def probe(self, host: Host) -> Difference | None:
        """As for the image of a running root, and from there."""
        return self.image.probe(host)

    def commands(self) -> tuple[Command, ...]:
        """Boot the rescue system, mount the share, take the image, boot the disk."""
        values = {"device": self.away.device, "share": self.away.share}
        return (
            *booted(self.power, "rescue"),
            Command.sh("mkdir -p {share}\nmount {device} {share}", **values),
            *self.resting.commands(),
            Command.argv("umount", self.away.share),
            *booted(self.power, "disk"),
            toolstack_answers(),
        )

    def recorded(self) -> tuple[Command, ...]:
        """That of the image."""
        return self.resting.recorded()

    def apply(self, host: Host, report: Report) -> None:
        """Boot the rescue system, take the image onto the share, boot the disk."""
        machine = host.inside("/")
        self.away.leaves(machine)
        machine.run("sync", timeout=MOUNT_SECONDS)
        failed: XenlabError | None = None
        reboot(self.power, "rescue", machine, self.controller, report)
        try:
            self._take(machine, report)
        except XenlabError as error:
            failed = error
        reboot(self.power, "disk", machine, self.controller, report)
        wait_for_toolstack(machine)
        self.away.is_back(machine)
        if failed is not None:
            raise failed

    def _take(self, machine: Host, report: Report) -> None:
        self.away.mount(machine)
        try:
            self.resting.apply(machine, report)
        finally:
            self.away.unmount(machine)


# Chapter 09: each guest's root from the image, its own configuration, its pinned host key.


def host_key_table(chapter: Chapter) -> pd.DataFrame:
    """The guests' host keys: guest, address, fingerprint."""
    keys = host_keys(chapter.target, tuple(d.name for d in chapter.site.domains))
    rows = [
        [d.name, d.address.partition("/")[0], fingerprint(keys[d.name]) or "not made yet"]
        for d in chapter.site.domains
    ]
    return pd.DataFrame(rows, columns=["guest", "address", "host key"])


# Chapter 10: a configuration file for each domain, and what it names.


def domain_configured(chapter: Chapter, partition: str, domain: DomainSpec) -> Resource:
    """A domain's configuration file; its first disk, the root, is this partition of the site's.

    The file names it by UUID: at the next boot another disk may have the name of this one. A disk
    file or a logical volume has a name that stays.
    """
    first, *others = domain.disks
    if chapter.site.guest_disks != "partition":
        return chapter.toolstack.configured(replace(domain, cmdline=domain.cmdline.strip()))

    def with_uuid(uuids: Mapping[str, str]) -> Resource:
        root = replace(first, path=by_uuid(uuids[partition]))
        spec = replace(domain, disks=(root, *others), cmdline=domain.cmdline.strip())
        return chapter.toolstack.configured(spec)

    path = chapter.toolstack.config_path(domain.name)
    return OnPartitions(chapter.site.disk, (partition,), with_uuid, f"create {path}")


def further_disks(domain: Domain) -> tuple[Disk, ...]:
    """The disks that a guest has beside root and swap."""
    return tuple(Disk(each.path, each.name, not each.readonly) for each in domain.disks)


def further_paths(site: Parameters) -> tuple[str, ...]:
    """The paths in dom0 of all of these."""
    return tuple(each.path for domain in site.domains for each in domain.disks)


def further_vifs(site: Parameters, domain: Domain) -> tuple[Vif, ...]:
    """The interfaces that a guest has beside that on dom0's bridge."""
    return tuple(Vif(each.mac, each.bridge or site.bridge) for each in domain.nics)


def _memory(domain: Domain) -> int | str:
    own, most = domain.memory_mib, domain.maxmem_mib
    return own if most == own else f"{own}, up to {most}"


def _otherwise(domain: Domain, limits: Mapping[str, tuple[int, int]]) -> str:
    """What a domain runs with, until it is created again, if that is not what the site says."""
    wanted = (domain.vcpus, domain.maxmem_mib)
    vcpus, most = limits.get(domain.name, wanted)
    return "" if (vcpus, most) == wanted else f"vcpus {vcpus}, up to {most} MiB"


def domain_table(chapter: Chapter) -> pd.DataFrame:
    """The site's domains, whether their files are written, and which run with something else."""
    site = chapter.site
    paths = {d.name: chapter.toolstack.config_path(d.name) for d in site.domains}
    types = guest_types(site)
    further = any(d.extra for d in site.domains)
    if "auto" in types.values():
        kind, why = advised_type(chapter.target)
        types |= {name: f"{kind} (auto: {why})" for name, each in types.items() if each == "auto"}
    written = present(chapter.target, list(paths.values()))
    limits = chapter.toolstack.limits(chapter.target) if written else {}
    otherwise = {d.name: _otherwise(d, limits) for d in site.domains}
    rows = [
        {
            "name": d.name,
            "type": types[d.name],
            "memory (MiB)": _memory(d),
            "vcpus": d.vcpus,
            "root": device(site, d.partition),
            "swap": swap_space(site, d),
            "MAC": d.mac,
            "bridge": site.bridge,
            **({"further keys": ", ".join(d.extra)} if further else {}),
            "file": "written" if paths[d.name] in written else "not yet",
            **({"runs with": otherwise[d.name]} if any(otherwise.values()) else {}),
        }
        for d in site.domains
    ]
    return pd.DataFrame(rows)
