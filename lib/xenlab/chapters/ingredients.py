"""What the machine has against what the site asks for, before anything is touched.

Howto: „Rohstoffe“, „Hirnschmalz“.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import pandas as pd

from xenlab.chapter.chapter import Chapter
from xenlab.chapter.step import refusal
from xenlab.chapters.disk import Row, fits_table
from xenlab.chapters.kernel import COMPILER, Driver, dom0_config, drivers_lacking
from xenlab.command import Command
from xenlab.errors import BadInput
from xenlab.host import Host
from xenlab.platform.xl import best_type
from xenlab.resources.base import Check, Difference, Programs, made_on
from xenlab.resources.blockdevices import IDENTIFY, Identified, parse_identity, refuse_twins
from xenlab.resources.network import look_at_nics, the_nic
from xenlab.site.disk_plan import fits as disk_fits
from xenlab.site.disk_plan import mirrored, needed_mib, on_mirror, partition_names
from xenlab.site.rules import builds_kernel, guest_types
from xenlab.site.schema import Parameters
from xenlab.site.types import AUTO

XEN_MIB = 128
"""Memory that Xen keeps for itself: its heap, its tables of all pages, its console buffer."""

GUEST_MIB = 8
"""Memory that a guest costs beyond its own: page tables, grant tables, its console and store."""

TOOLS = (
    "sfdisk", "lsblk", "blkid", "mkfs.ext4", "mkswap", "fallocate", "findmnt", "mountpoint",
    "mount", "chroot", "tar", "zstd", "xz", "sha256sum", "rsync",
)  # fmt: skip
"""What the chapters call on the machine as it runs now."""

UEFI_TOOLS = ("mkfs.vfat",)
"""What they call on a UEFI machine beside that."""

MIRROR_TOOLS = ("mdadm",)
"""What they call where the site is on two disks."""


@dataclass(frozen=True)
class Machine:
    """What a machine has, as far as Xen and the site's plan care; sizes are MiB.

    On a running Xen, memory and processors are the machine's, not dom0's share of them. ``user``
    is the number of who logs in, ``clock_ahead`` in seconds of the controller's, ``cards`` are the
    MAC addresses of network cards.
    """

    processor: str
    processors: int
    long_mode: bool
    virtualisation: str
    memory_mib: int
    disk: Identified
    system: str
    kernel: str
    under_xen: bool
    missing_tools: tuple[str, ...]
    firmware: str = "bios"
    secure_boot: bool = False
    architecture: str = "x86_64"
    user: str = "0"
    clock_ahead: float = 0.0
    cards: tuple[str, ...] = ()

    @property
    def disk_mib(self) -> int:
        """The size of the site's disk, 0 where there is no such disk."""
        device = self.disk.devices.device
        return device.mib if device else 0

    @property
    def hvm(self) -> bool:
        """Whether the processor helps: VMX or SVM, or "hvm" in Xen's words."""
        return best_type(self.virtualisation) == "pvh"


# few programs and raw text: each program that is started costs an emulated machine 20 ms
_LOOK = f"""
    tail -v -n +1 -- /proc/cpuinfo /proc/meminfo /proc/sys/kernel/osrelease /etc/os-release \\
        /etc/xenlab-rescue /proc/self/status /sys/class/net/*/device/net/*/address \\
        2> /dev/null || :
    printf '\\n==> kernel <==\\n'
    date +%s
    uname -m
    case $(cat /proc/xen/capabilities 2>/dev/null || :) in
        *control_d*) printf '\\n==> xl <==\\n'; xl info ;;
    esac
    printf '\\n==> firmware <==\\n'
    [ ! -d /sys/firmware/efi ] || echo uefi
    # four bytes of attributes, then the value (Linux' Documentation/filesystems/efivarfs)
    for file in /sys/firmware/efi/efivars/SecureBoot-*; do
        [ ! -r "$file" ] || od -An -tu1 -j4 -N1 "$file"
    done
    disk=$1
    shift
    printf '\\n==> missing <==\\n'
    for tool; do command -v "$tool" >/dev/null || printf '%s\\n' "$tool"; done
    printf '\\n==> disks <==\\n'
    set -- "$disk"
    command -v lsblk > /dev/null || exit 0
    {IDENTIFY}
"""


def look_at_machine(host: Host, disk: str) -> Machine:
    """What a machine has; one command."""
    began = time.time()
    result = host.inside("/").run(Command.script(_LOOK, disk, *TOOLS, *UEFI_TOOLS, *MIRROR_TOOLS))
    return parse(result.stdout, (began + time.time()) / 2)


def parse(text: str, now: float = 0.0) -> Machine:
    """The machine out of what `look_at_machine` has printed; ``now`` is the controller's clock."""
    parts = re.split(r"^==> (.*) <==\n", text, flags=re.MULTILINE)
    sections = dict(zip(parts[1::2], parts[2::2], strict=True))
    processor = _pairs(sections["/proc/cpuinfo"], ":")
    memory = _pairs(sections["/proc/meminfo"], ":")
    system = _pairs(sections.get("/etc/os-release", ""), "=")
    xen = _pairs(sections.get("xl", ""), ":")
    flags = processor.get("flags", "").split()
    firmware, *secure = sections.get("firmware", "").split() or ["bios"]
    clock, architecture = sections.get("kernel", f"{now:.0f} x86_64").split()
    hardware = " ".join(flag for flag in ("vmx", "svm") if flag in flags)
    return Machine(
        processor=processor.get("model name", "unknown"),
        # under Xen /proc shows dom0's own share, and the flags are masked
        processors=int(xen.get("nr_cpus", sections["/proc/cpuinfo"].count("\nprocessor") + 1)),
        long_mode="lm" in flags,
        virtualisation=xen.get("virt_caps", hardware) or "none",
        memory_mib=int(xen.get("total_memory", int(memory["MemTotal"].split()[0]) // 1024)),
        disk=parse_identity(sections["disks"]),
        system=sections.get("/etc/xenlab-rescue", "").strip()
        or system.get("PRETTY_NAME", "unknown").strip('"'),
        kernel=sections["/proc/sys/kernel/osrelease"].strip(),
        under_xen=bool(xen),
        missing_tools=tuple(sections["missing"].split()),
        firmware=firmware,
        secure_boot="1" in secure,
        architecture=architecture,
        user=_pairs(sections.get("/proc/self/status", ""), ":").get("Uid", "0").split()[0],
        clock_ahead=int(clock) - now,
        cards=tuple(
            text.strip() for name, text in sections.items() if name.startswith("/sys/class/net/")
        ),
    )


def _pairs(text: str, separator: str) -> dict[str, str]:
    lines = (line.partition(separator) for line in reversed(text.splitlines()))
    return {key.strip(): value.strip() for key, found, value in lines if found}


MOST_WRONG = 24 * 3600
"""How many seconds the machine's clock may differ: packages' indexes hold for days, from today."""

NO_DISKS = {"part": "a partition", "rom": "a CD-ROM drive"}
"""What lsblk calls devices on which no partition table is made, and what people call them."""


def memory_plan(site: Parameters) -> list[tuple[str, int]]:
    """Who gets how many MiB of the machine's memory: Xen, dom0, each guest, what guests cost."""
    return [
        ("Xen", XEN_MIB),
        ("dom0", site.dom0_mem_mib),
        *((domain.name, domain.memory_mib) for domain in site.domains),
        ("guest overhead", GUEST_MIB * len(site.domains)),
    ]


def needed_memory_mib(site: Parameters) -> int:
    """MiB of memory that a machine must have for the site."""
    return sum(size for _, size in memory_plan(site))


def tools(site: Parameters) -> tuple[str, ...]:
    """The programs that the site's chapters call on the machine as it runs now."""
    firmware = UEFI_TOOLS if site.firmware == "uefi" else ()
    return (*TOOLS, *firmware, *(MIRROR_TOOLS if mirrored(site) else ()))


def machine_table(site: Parameters, machine: Machine) -> pd.DataFrame:
    """What the site wants and what the machine has, side by side."""
    memory, disk = needed_memory_mib(site), needed_mib(site)
    known_by = machine.disk.known_by
    missing = [tool for tool in machine.missing_tools if tool in tools(site)]
    allowed = any(value in site.may_wipe for _, value in known_by)
    late = "behind" if machine.clock_ahead < 0 else "ahead"
    rows: list[Row] = [
        _processor(site, machine),
        _virtualisation(site, machine),
        (
            "firmware",
            site.firmware,
            f"{machine.firmware}{' with Secure Boot' * machine.secure_boot}",
            machine.firmware == site.firmware and not machine.secure_boot,
        ),
        ("memory", f"{memory} MiB", f"{machine.memory_mib} MiB", memory <= machine.memory_mib),
        ("disk", f"{disk} MiB on {site.disk}", f"{machine.disk_mib} MiB", disk <= machine.disk_mib),
        (
            "disk to wipe",
            " or ".join(site.may_wipe) or "none",
            " ".join(known_by[0]) if known_by else "none",
            "yes" if allowed else "asks for consent",
        ),
        *_other_disks(site, machine),
        (
            "running system",
            "a rescue system, or dom0 itself",
            f"{machine.system}, Linux {machine.kernel}{', under Xen' * machine.under_xen}",
            True,
        ),
        (
            "clock",
            "the controller's",
            f"{abs(machine.clock_ahead):.0f} s {late}",
            abs(machine.clock_ahead) <= MOST_WRONG,
        ),
        (
            "tools",
            f"{len(tools(site))} programs",
            f"without {', '.join(missing)}" if missing else "all there",
            not missing,
        ),
    ]
    return fits_table(rows)


def _processor(site: Parameters, machine: Machine) -> Row:
    most = max(domain.vcpus for domain in site.domains)
    wanted = "x86-64" if most == 1 else f"{most} × x86-64"
    found = f"{machine.processors} × {machine.processor}"
    return ("processor", wanted, found, machine.long_mode and most <= machine.processors)


def _virtualisation(site: Parameters, machine: Machine) -> Row:
    types = set(guest_types(site).values())
    wanted, found = "not needed (pv guests)", machine.virtualisation
    if "auto" in types:
        wanted = "VMX or SVM for pvh guests, else pv (auto)"
        found = f"{found}: {best_type(found)}"
    if "pvh" in types:
        wanted = "VMX or SVM"
    return ("virtualisation", wanted, found, machine.hvm or "pvh" not in types)


def _other_disks(site: Parameters, machine: Machine) -> list[Row]:
    """Disks with partitions that are called as the site's: whose they are has to be seen."""
    names = set(partition_names(site))
    rows: list[Row] = []
    for other in machine.disk.devices.others:
        same = [part.name for part in other.parts if part.name in names]
        if same:
            found = f"{other.path}, {other.mib} MiB, has {', '.join(same)} too"
            wanted = f"left alone, but for {site.mirror}" if mirrored(site) else "left alone"
            rows.append(("another disk", wanted, found, True))
    return rows


def check_fit(site: Parameters, machine: Machine) -> None:
    """Raise BadInput, StepFailed or ConsentNeeded where the site does not fit the machine."""
    _check_system(machine)
    if "pvh" in guest_types(site).values() and not machine.hvm:
        key = "guest_type" if site.guest_type == "pvh" else "type"
        raise BadInput(
            "pvh guests need a processor with VMX or SVM, and this machine shows neither",
            hint=f"switch it on in the firmware, or use {key}: pv",
        )
    _check_firmware(site, machine)
    missing = [tool for tool in machine.missing_tools if tool in tools(site)]
    if missing:
        raise BadInput(
            f"the running system lacks {', '.join(missing)}",
            hint="install them there, or boot another rescue system",
        )
    _check_disk(site, machine)
    needed = needed_memory_mib(site)
    if needed > machine.memory_mib:
        parts = ", ".join(f"{name} {size}" for name, size in memory_plan(site))
        raise BadInput(
            f"the machine has {machine.memory_mib} MiB of memory and the site needs "
            f"{needed} MiB: {parts}",
            hint="lower dom0_mem_mib or memory_mib of domains, or take fewer domains",
        )
    _check_guests(site, machine)


def _check_system(machine: Machine) -> None:
    """Raise BadInput where nothing could be installed from the system that runs."""
    if not machine.long_mode:
        raise BadInput(f"{machine.processor} is no 64 bit processor; Xen needs one")
    if machine.architecture != "x86_64":
        raise BadInput(
            f"the running system's kernel is one for {machine.architecture}, under which no "
            "program of a stage for x86_64 runs",
            hint="boot a rescue system of 64 bit",
        )
    if machine.user != "0":
        raise BadInput(
            f"the user with number {machine.user} is not root on the machine",
            hint="say how it becomes root (ssh.become: sudo), or have ssh.user name root",
        )
    if abs(machine.clock_ahead) > MOST_WRONG:
        late = "behind" if machine.clock_ahead < 0 else "ahead of"
        raise BadInput(
            f"the machine's clock is {abs(machine.clock_ahead) / 3600:.0f} hours {late} the "
            "controller's: signatures of packages would not be valid",
            hint=f"set it there (date -u -s @{time.time():.0f}; hwclock -w), or the controller's",
        )


def _check_disk(site: Parameters, machine: Machine) -> None:
    """Raise where the site's disk is none, is too small, or not the one that may be wiped."""
    found = machine.disk.devices
    device = found.device
    hint = f"name one of these disks: {found.listed()}"
    if device is None or not device.mib:
        raise BadInput(f"there is no disk {site.disk}", hint=hint)
    if device.kind in NO_DISKS:
        raise BadInput(f"{site.disk} is {NO_DISKS[device.kind]}, not a disk", hint=hint)
    if device.readonly:
        raise BadInput(
            f"disk {site.disk} is read-only",
            hint=f"take its write protection off (blockdev --setrw {site.disk}), or {hint}",
        )
    refuse_twins(found)
    disk_fits(site, device.mib)
    # what is there stays where it is (01.2)
    if made_on(found) or set(partition_names(site)) <= {part.name for part in device.all()}:
        return
    # it would be wiped; where may_wipe names none, whoever is there is asked
    refused = refusal(machine.disk, site.disk, tuple(site.may_wipe))
    if refused is not None and (device.used or site.may_wipe):
        raise refused


def require_another(site: Parameters, first: Machine, second: Machine) -> None:
    """Raise BadInput where a site's two disks are one, by two names."""
    found = first.disk.devices
    if second.disk.devices.path == found.path:
        raise BadInput(
            f"mirror {site.mirror} is the same disk as disk {site.disk}",
            hint=f"name another of these disks: {found.listed()}",
        )


def _check_guests(site: Parameters, machine: Machine) -> None:
    """Raise BadInput where a guest has, or may grow to, more than there is in the machine.

    Or where it has what is the machine's alone.
    """
    for domain in site.domains:
        macs = {domain.mac.lower(), *(nic.mac.lower() for nic in domain.nics)}
        for mac in macs.intersection(machine.cards):
            raise BadInput(
                f"{domain.name} has the MAC address of the machine's own network card: {mac}",
                hint="give the guest another one: 00:16:3e and three bytes of your choice are free",
            )
        if domain.vcpus > machine.processors:
            raise BadInput(
                f"the machine has {machine.processors} processors and {domain.name} has "
                f"{domain.vcpus} vcpus",
                hint="lower vcpus of that domain",
            )
        if domain.maxmem_mib > machine.memory_mib:
            raise BadInput(
                f"the machine has {machine.memory_mib} MiB of memory and {domain.name} may grow "
                f"to {domain.maxmem_mib} MiB",
                hint="lower maxmem_mib of that domain",
            )


def _check_firmware(site: Parameters, machine: Machine) -> None:
    """Raise BadInput where the machine's firmware would not boot the disk."""
    if machine.firmware != site.firmware:
        ways = {"bios": "BIOS", "uefi": "UEFI"}
        raise BadInput(
            f"the machine was booted by {ways[machine.firmware]}, and the site says firmware: "
            f"{site.firmware}: the installed disk would not boot",
            hint=f"set firmware: {machine.firmware}, or boot the rescue system by "
            f"{ways[site.firmware]}, as the disk will be",
        )
    if machine.secure_boot:
        raise BadInput(
            "Secure Boot is on, and neither GRUB nor the kernel of this site is signed",
            hint="switch Secure Boot off in the machine's firmware, then boot the rescue system "
            "again",
        )


@dataclass(frozen=True)
class Fits(Check):
    """The site fits the machine: processor, memory, disk and tools suffice."""

    site: Parameters

    def probe(self, host: Host) -> Difference | None:
        """None if it fits; raises BadInput or StepFailed for the first thing that does not."""
        machine = look_at_machine(host, self.site.disk)
        check_fit(self.site, machine)
        if mirrored(self.site):
            second = look_at_machine(host, self.site.mirror)
            require_another(self.site, machine, second)
            _check_disk(on_mirror(self.site), second)
        return None


# The machine's drivers against dom0's kernel: one image without modules, which has them or not.

# up walks from a device to the root of its bus, and on from what it is made of: the ports of a
# bond or bridge, the disks of an array, the paths of an NVMe. A PCI bridge works without a driver.
_DRIVERS = """
    up() { # USE DIRECTORY
        set -- "$1" "$(readlink -f -- "$2")"
        while [ "${2#/sys/devices/}" != "$2" ]; do
            for below in "$2"/lower_* "$2"/slaves/* "$2"/nvme*; do
                [ ! -L "$below" ] || up "$1" "$below"
            done
            class=
            [ ! -f "$2/class" ] || read -r class < "$2/class" || :
            case $class in
                0x0604*) ;;
                *) [ ! -L "$2/driver" ] || say "$@" ;;
            esac
            set -- "$1" "${2%/*}"
        done
    }
    say() {
        bus=$(readlink "$2/subsystem") name=$(readlink "$2/driver")
        module=$(readlink "$2/driver/module") || :
        printf '%s\\t%s\\t%s\\t%s\\t%s\\n' \\
            "$1" "${2##*/}" "${bus##*/}" "${name##*/}" "${module##*/}"
    }
    uplinks=' '
    uplink() { # NAME: once
        case $uplinks in *" $1 "*) return 0 ;; esac
        uplinks=" $1$uplinks"
        up uplink "/sys/class/net/$1"
    }
    disk=$(readlink -f -- "$1") || :
    up disk "/sys/class/block/$(printf %s "${disk#/dev/}" | tr / '!')"
    shift
    for name do uplink "$name"; done
    # what carries this connection may have another name than in the installed system
    [ ! -r /proc/net/route ] || while read -r name to rest; do
        [ "$to" != 00000000 ] || uplink "$name"
    done < /proc/net/route
    [ ! -r /proc/net/ipv6_route ] || while read -r to length rest; do
        case "${to#"${to%%[!0]*}"}$length" in 00) uplink "${rest##* }" ;; esac
    done < /proc/net/ipv6_route
"""


def look_at_drivers(host: Host, disk: str, *uplinks: str) -> tuple[Driver, ...]:
    """The drivers that the disk and the uplink's cards work by now; one command."""
    found = host.run(Command.script(_DRIVERS, disk, *uplinks)).stdout
    drivers = [Driver(*line.split("\t")) for line in found.splitlines()]
    # a guest's end of the bridge
    return tuple(dict.fromkeys(each for each in drivers if each.bus != "xen-backend"))


@dataclass(frozen=True)
class UplinkFound(Check):
    """The machine has the network card that the site names by its MAC address or as ``auto``."""

    uplink: str

    def probe(self, host: Host) -> Difference | None:
        """None if it is there once; raises BadInput, with the cards that are there."""
        the_nic(self.uplink, look_at_nics(host))
        return None


def uplink_found(site: Parameters) -> tuple[Check, ...]:
    """That condition, where the site names no interface; what a name means only dom0 knows."""
    cards = (site.uplink, *site.uplink_bond.members)
    return tuple(UplinkFound(card) for card in cards if card == AUTO or ":" in card)


def _uplinks_now(host: Host, site: Parameters) -> list[str]:
    """What the uplink's cards are called in the system that runs now, as far as anybody knows."""
    cards = (site.uplink, *site.uplink_bond.members)
    asked = any(card == AUTO or ":" in card for card in cards)
    nics = look_at_nics(host) if asked else ()
    return [the_nic(card, nics).name if card == AUTO or ":" in card else card for card in cards]


def driver_table(chapter: Chapter) -> pd.DataFrame:
    """Each of these drivers, with the options that dom0's kernel lacks for it."""
    uplinks = _uplinks_now(chapter.host, chapter.site)
    drivers = look_at_drivers(chapter.host, chapter.site.disk, *uplinks)
    own = builds_kernel(chapter.site)
    lacks = drivers_lacking(chapter.site, drivers, chapter.controller) if own else {}
    lacks = lacks or {}
    otherwise = "not configured yet" if own else "the distribution's, with all its modules"
    return pd.DataFrame(
        [
            {
                "for": each.use,
                "device": f"{each.bus} {each.device}",
                "driver": each.module or each.name,
                "dom0's kernel": _said(lacks[each]) if each in lacks else otherwise,
            }
            for each in drivers
        ],
        columns=["for", "device", "driver", "dom0's kernel"],
    )


def _said(options: tuple[str, ...] | None) -> str:
    if options is None:
        return "nobody knows"
    return f"lacks {', '.join(_lines(options))}" if options else "has it"


def _lines(options: Iterable[str]) -> list[str]:
    return [f"CONFIG_{option}=y" for option in options]


@dataclass(frozen=True)
class DriversBuilt(Check):
    """dom0's kernel has the drivers that disk and uplink work by now, and all it is asked for."""

    site: Parameters
    controller: Host = field(compare=False)

    def probe(self, host: Host) -> Difference | None:
        """The drivers that its .config lacks; what nobody can tell is said, and stays.

        The distribution's kernel has its modules for all that its rescue systems run on.
        """
        if not builds_kernel(self.site):
            return None
        drivers = look_at_drivers(host, self.site.disk, *_uplinks_now(host, self.site))
        lacks = drivers_lacking(self.site, drivers, self.controller)
        if lacks is None:
            return self._not_configured()
        unknown = [
            f"no Makefile of the sources names {_named(each)}"
            for each, options in lacks.items()
            if options is None
        ]
        for use, name in (("disk", self.site.disk), ("uplink", self.site.uplink)):
            if use not in {each.use for each in drivers}:
                unknown.append(f"no driver of the {use} was found ({name})")
        said = f"{'; '.join(unknown)}: see that dom0's kernel has what it takes"
        wrong = (self._lost(lacks), dom0_config(self.site).probe(self.controller))
        found = Difference.of_all([each for each in wrong if each is not None])
        if found is None:
            return Difference("find the machine's drivers", stays=said) if unknown else None
        return replace(found, hint=f"{found.hint}; {said}") if unknown else found

    def _lost(self, lacks: Mapping[Driver, tuple[str, ...] | None]) -> Difference | None:
        lost = [each for each, options in lacks.items() if options]
        if not lost:
            return None
        new = _lines(dict.fromkeys(option for each in lost for option in lacks[each] or ()))
        own = (o for o in self.site.kernel_options if f"{o.partition('=')[0]}=y" not in new)
        options = json.dumps([*own, *new])
        return Difference(
            f"dom0's kernel lacks drivers of this machine: {', '.join(map(_named, lost))}",
            hint=f"write kernel_options: {options} into the site's file",
        )

    def _not_configured(self) -> Difference:
        summary = "compare the machine's drivers with dom0's kernel, once that is configured"
        if self.site.build_on == "target":
            missing = Programs(COMPILER).probe(self.controller)
            if missing is not None:
                said = "the machine's drivers are not compared with dom0's kernel"
                return Difference(summary, stays=f"{said}: {missing.summary}")
        return Difference(summary)


def _named(driver: Driver) -> str:
    return f"{driver.module or driver.name} ({driver.use}, {driver.device})"
