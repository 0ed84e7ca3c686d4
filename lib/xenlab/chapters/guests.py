"""Chapters 06 and 09 to 12: the image, the roots made from it, and the domains at work."""

from __future__ import annotations

import hashlib
import json

# Chapter 06: the image that every guest is made from.
#
# Howto: „Imaging“.
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations

import pandas as pd

from xenlab.chapter.chapter import Chapter
from xenlab.chapters.disk import swap_space
from xenlab.command import Command
from xenlab.errors import BadInput, CommandFailed, StepFailed, XenlabError
from xenlab.host import Host
from xenlab.platform.choice import Services, packages
from xenlab.platform.power import Power, booted, reboot
from xenlab.platform.running import Values
from xenlab.platform.xl import Disk, DomainSpec, Vif, Xl, advised_type
from xenlab.resources.base import (
    Check,
    Difference,
    Once,
    OnHost,
    PathsExist,
    Report,
    Resource,
    Until,
    present,
)
from xenlab.resources.blockdevices import SAME_DISK
from xenlab.resources.disk import OnPartitions, by_uuid
from xenlab.resources.image import GivenImage, Image, parse_record
from xenlab.resources.ssh_access import fingerprint, host_keys
from xenlab.resources.xen import FOLDER, RUNNING, toolstack_answers, wait_for_toolstack
from xenlab.site.disk_plan import device, dom0_device, mirrored
from xenlab.site.rules import builds_kernel, guest_types
from xenlab.site.schema import Domain, Parameters

# Chapter 11: domains are created, visited, rebooted, shut down, destroyed, and left running.
#
# What is shown on one domain is shown on the first of the site.

MOUNT_SECONDS = 120.0


def image_taken(chapter: Chapter) -> Resource:
    """The image of the generic root, as the site says: brought, or taken running or at rest."""
    site = chapter.site
    if site.image_from:
        return GivenImage(site.image, base(site), local=site.image_from)
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
    keys = host_keys(chapter.target, tuple(d.record for d in chapter.site.domains))
    rows = [
        [d.name, d.address.partition("/")[0], fingerprint(keys[d.record]) or "not made yet"]
        for d in chapter.site.domains
    ]
    return pd.DataFrame(rows, columns=["guest", "address", "host key"])


# Chapter 10: a configuration file for each domain, and what it names.


def domain_configured(chapter: Chapter, partition: str, domain: DomainSpec) -> Resource:
    """A domain's configuration file; its first disk, the root, is this partition of the site's.

    The file names it by UUID: at the next boot another disk may have the name of this one. A disk
    file, a logical volume or an array has a name that stays.
    """
    first, *others = domain.disks
    if chapter.site.guest_disks != "partition" or mirrored(chapter.site):
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


@dataclass(frozen=True)
class FurtherDisksApart(Check):
    """These disks are there, and none is a part of dom0's own, by whatever name it is called."""

    site: Parameters

    def probe(self, host: Host) -> Difference | None:
        """Which are missing; raises BadInput for one on the site's disk, or that two write to."""
        disks = [(each, domain.name) for domain in self.site.domains for each in domain.disks]
        script = f"""
            {SAME_DISK}
            own=$(disks_of "$(readlink -f -- "$1")"; disks_of "$(readlink -f -- "${{2:-$1}}")")
            shift 2
            for path do
                place=$(readlink -f -- "$path") && [ -e "$place" ] || {{ echo missing; continue; }}
                for disk in $([ ! -b "$place" ] || disks_of "$place"); do
                    ! echo "$own" | grep -qxF -- "$disk" || place=own
                done
                echo "$place"
            done
        """
        own = (self.site.disk, self.site.mirror if mirrored(self.site) else "")
        look = Command.script(script, *own, *(disk.path for disk, _ in disks))
        looked = host.look(look) if disks else None
        places = looked.stdout.splitlines() if looked else []
        found = [(*each, place) for each, place in zip(disks, places, strict=True)]
        another = "name another disk in disks"
        for disk in (disk for disk, _, place in found if place == "own"):
            raise BadInput(
                f"{disk.path} cannot be a guest's disk: it lies on disk {self.site.disk}, which is "
                "dom0's",
                hint=another,
            )
        if missing := [disk.path for disk, _, place in found if place == "missing"]:
            hint = "attach it to the machine, or correct disks"
            return Difference(f"missing: {', '.join(missing)}", hint=hint)
        for (disk, guest, place), (other, neighbour, same) in combinations(found, 2):
            if place == same and not (disk.readonly and other.readonly):
                raise BadInput(
                    f"{guest} and {neighbour} cannot both have {place}: one writes to it "
                    f"({disk.path}, {other.path})",
                    hint=another,
                )
        return None


def further_vifs(site: Parameters, domain: Domain) -> tuple[Vif, ...]:
    """The interfaces that a guest has beside that on dom0's bridge."""
    return tuple(Vif(each.mac, each.bridge or site.bridge) for each in domain.nics)


def _memory(domain: Domain) -> int | str:
    own, most = domain.memory_mib, domain.maxmem_mib
    return own if most == own else f"{own}, up to {most}"


def _otherwise(domain: Domain, running: Mapping[str, Values]) -> str:
    """What a domain runs with, until it is created again, if that is not what the site says."""
    now = running.get(domain.name)
    if now is None or (now.vcpus, now.maxmem_mib) == (domain.vcpus, domain.maxmem_mib):
        return ""
    return f"vcpus {now.vcpus}, up to {now.maxmem_mib} MiB"


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
    running = chapter.toolstack.values(chapter.target) if written else {}
    otherwise = {d.name: _otherwise(d, running) for d in site.domains}
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


def configurations_written(chapter: Chapter) -> Resource:
    """The domains' configuration files."""
    return PathsExist(tuple(chapter.toolstack.config_path(d.name) for d in chapter.site.domains))


def found_domains(chapter: Chapter, names: Sequence[str]) -> pd.DataFrame:
    """The table of domains; in a plan for a machine without Xen, those that would run."""
    try:
        return chapter.toolstack.domains(chapter.target)
    except CommandFailed:
        if chapter.mode == "apply":
            raise
        return pd.DataFrame({"name": names, "state": "would run"})


def at_hand(chapter: Chapter, names: Sequence[str]) -> list[str]:
    """Which of these guests can be looked at: all; in a plan, which waits for none, who runs."""
    return list(names) if chapter.mode == "apply" else now_running(chapter, names)


def now_running(chapter: Chapter, names: Sequence[str]) -> list[str]:
    """Which of these guests run."""
    table = found_domains(chapter, names)
    running = {str(row["name"]) for row in table.to_dict("records") if row["state"] == "running"}
    return [name for name in names if name in running]


# Chapter 12: guests that start together with dom0, proven by a power cycle.
#
# Howto: „Auto-DomainU-Boot“.

BACK_SECONDS = 1800.0
"""How long the guests may take to be there again after a boot, in seconds."""

SAVED = "/var/lib/xen/save"


def power_cycled(chapter: Chapter) -> list[Resource]:
    """The machine was switched off and on; exactly the selected guests came back."""
    names = tuple(chapter.site.autostart)
    cycle = PowerCycled(
        names, chapter.toolstack, chapter.services, chapter.power, chapter.controller
    )
    return [Once("power-cycle", cycle, ", ".join(names))] if names else []


def autostart_table(chapter: Chapter) -> pd.DataFrame:
    """Every guest of the site, its place in the order of starting, and what is linked now."""
    order = {name: place for place, name in enumerate(chapter.site.autostart, 1)}
    links = chapter.target.run(Command.argv("ls", "--", FOLDER), check=False).stdout.split()
    linked = {link.partition("-")[2].removesuffix(".cfg") for link in links}
    rows = [
        {
            "guest": d.name,
            "starts with dom0": "yes" if d.name in order else "no",
            "place": str(order.get(d.name, "-")),
            "linked now": "yes" if d.name in linked else "no",
        }
        for d in chapter.site.domains
    ]
    return pd.DataFrame(rows)


@dataclass(frozen=True)
class PowerCycled(Resource):
    """An action: the machine is switched off and on; then just these guests run, in this order.

    Guests are shut down with dom0, not saved: no memory image is left behind.
    """

    names: tuple[str, ...]
    toolstack: Xl = field(compare=False)
    services: Services = field(compare=False)
    power: Power = field(compare=False)
    controller: Host = field(compare=False)

    def probe(self, host: Host) -> Difference | None:
        """What will be done."""
        who = ", ".join(self.names) or "dom0 alone"
        return Difference(f"switch the machine off and on, and see {who} come back")

    def commands(self) -> tuple[Command, ...]:
        """Guests down, power off and on; the last line waits until the last guest is created."""
        stop, start = self.services.stop("xendomains"), self.services.start("xendomains")
        boot = (*booted(self.power, "disk"), toolstack_answers())
        return (stop, Command("sync"), *boot, start, Command("xl list"))

    def apply(self, host: Host, report: Report) -> None:
        """Restart the machine and wait until the last of the guests was created."""
        machine = host.inside("/")
        report("shutting the guests down")
        machine.run(self.services.stop("xendomains"), timeout=BACK_SECONDS)
        machine.run("sync", timeout=BACK_SECONDS)
        reboot(self.power, "disk", machine, self.controller, report)
        report("waiting for Xen's services")
        wait_for_toolstack(machine)
        report("waiting for the guests")
        # it was started at boot: this only waits until it has created the last of them
        machine.run(self.services.start("xendomains"), timeout=BACK_SECONDS)

    def verify(self, host: Host) -> None:
        """Raise StepFailed unless these guests run, no other, created in this order."""
        found = self._found(host)
        running = [name for name, state in found.items() if state == RUNNING]
        if running != list(self.names) or len(found) > len(running):
            came = (n if s == RUNNING else f"{n} ({s})" for n, s in found.items())
            raise StepFailed(
                f"{', '.join(came) or 'no guest'} came back, wanted: {', '.join(self.names)}",
                hint=f"{self.services.hint('xendomains')}; xl list",
            )
        saved = host.run(Command.script('ls -A -- "$1" 2> /dev/null || :', SAVED)).stdout.split()
        if saved:
            raise StepFailed(f"guests were saved and not shut down: {', '.join(saved)} in {SAVED}")

    def _found(self, host: Host) -> dict[str, str]:
        """The guests that there are with their states, in the order of their creation."""
        table = self.toolstack.domains(host).sort_values("id")
        pairs = zip(table["name"], table["state"], strict=True)
        return {str(name): str(state) for name, state in pairs if name != "Domain-0"}


# Chapters 12 and 15: no service of dom0, or of a guest that runs, has failed.


def none_failed(chapter: Chapter) -> dict[str, Resource]:
    """The condition that no service has failed, in dom0 and in each guest that runs."""
    none = chapter.services.none_failed()
    found: dict[str, Resource] = {"dom0": none}
    for domain in chapter.site.domains:
        inside = OnHost(domain.name, chapter.guest(domain.name), none)
        found[domain.name] = Until((inside,), chapter.toolstack.gone(domain.name))
    return found
