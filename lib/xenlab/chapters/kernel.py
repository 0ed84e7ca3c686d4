"""Chapters 03, 04 and 08: kernels from one source tree, the menu entry, the boot from the disk."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

import pandas as pd

from xenlab.cache import cache_root
from xenlab.chapter.chapter import Chapter
from xenlab.chapters.disk import assembled_at_boot, kernel_checksum, kernel_tarball, source_tarball
from xenlab.command import CONTROLLER, Command
from xenlab.errors import StepFailed
from xenlab.host import Host
from xenlab.platform.boot import (
    GUEST_INITRD,
    IMAGE,
    NEEDED,
    GuestKernelLinked,
    XenEntry,
    distribution_kernel,
    release_in,
    release_of,
)
from xenlab.platform.power import Power, booted, reboot
from xenlab.resources.base import All, Difference, Programs, Report, Resource
from xenlab.resources.blockdevices import look, refuse_twins
from xenlab.resources.disk import INSTALLED_ROOT
from xenlab.resources.kernel import (
    DOM0,
    RELEASE,
    KernelBuild,
    KernelBuilt,
    KernelConfigured,
    KernelInstalled,
    Option,
    Sources,
    honoured,
    parse_config,
)
from xenlab.resources.xen import compare, toolstack_answers, wait_for_toolstack, xen_state
from xenlab.site.disk_plan import volumes_for_disks
from xenlab.site.rules import builds_kernel
from xenlab.site.schema import Parameters

# Chapters 03 and 08: dom0's kernel and the guests', from one source tree.
#
# Howto: „Domain0-Kernel“, „DomainU-Kernel“.

COMPILER = (
    "gcc", "ld", "make", "flex", "bison", "bc", "perl", "tar", "xz", "readelf", "cmp", "flock",
    "setsid", "/usr/include/libelf.h",
)  # fmt: skip
"""What compiling a kernel takes: programs and one header (Linux' Documentation/process/changes)."""


UEFI_OPTIONS = (
    *("CONFIG_EFI=y", "CONFIG_EFI_STUB=y", "CONFIG_EFIVAR_FS=y"),
    *("CONFIG_VFAT_FS=y", "CONFIG_NLS_CODEPAGE_437=y", "CONFIG_NLS_ISO8859_1=y"),
)
"""What dom0's kernel takes on a UEFI machine: its services, and its system partition."""

VLAN_OPTIONS = ("CONFIG_VLAN_8021Q=y",)
"""What it takes where the uplink is a VLAN."""

BOND_OPTIONS = ("CONFIG_BONDING=y",)
"""What it takes where the uplink is a bond of several cards."""

VOLUMES_OPTIONS = ("CONFIG_MD=y", "CONFIG_BLK_DEV_DM=y", "CONFIG_DM_SNAPSHOT=y")
"""What it takes where the guests' disks are logical volumes, with snapshots of them."""

SCREEN_OPTIONS = (
    *("CONFIG_VT=y", "CONFIG_VGA_CONSOLE=y", "CONFIG_INPUT=y", "CONFIG_INPUT_KEYBOARD=y"),
    *("CONFIG_KEYBOARD_ATKBD=y", "CONFIG_HID=y", "CONFIG_HID_GENERIC=y", "CONFIG_USB_SUPPORT=y"),
    *("CONFIG_USB=y", "CONFIG_USB_XHCI_HCD=y", "CONFIG_USB_EHCI_HCD=y", "CONFIG_USB_HID=y"),
)
"""What it takes for a screen and a keyboard at the machine, of USB or PS/2."""

UEFI_SCREEN_OPTIONS = ("CONFIG_FB=y", "CONFIG_FB_EFI=y", "CONFIG_FRAMEBUFFER_CONSOLE=y")
"""The same where UEFI has set up the screen."""


def builder(chapter: Chapter) -> Host:
    """Who compiles (howto: „mein PC ist schneller als mein Server“)."""
    return chapter.controller if chapter.site.build_on == "controller" else chapter.target


def kernel_build(site: Parameters, flavour: str, on: str = "") -> KernelBuild:
    """The kernel of this site, ``dom0`` or ``domU``, and where its builder keeps it.

    ``on`` is that builder, where it is not the site's ``build_on``.
    """
    if (on or site.build_on) == CONTROLLER:
        store = str(cache_root() / "kernel")
        archive = str(Path(site.kernel_source).expanduser())
        return KernelBuild(flavour, archive, f"{store}/source", store, _own(site, flavour))
    store, trees = f"{site.share}/build", f"{site.share}/src"
    return KernelBuild(flavour, kernel_tarball(site), trees, store, _own(site, flavour))


def wanted_options(chapter: Chapter, flavour: str) -> pd.DataFrame:
    """The howto's list: each statement with the kernel options that it means today.

    ``running`` is what the kernel that runs on the machine now has of them, "?" where it does not
    say.
    """
    options = _asked(chapter.site, flavour)
    script = """
        { zcat /proc/config.gz || cat "/boot/config-$(uname -r)"; } 2> /dev/null \\
            | grep -E "^CONFIG_($1)=" || :
    """
    symbols = "|".join(option.symbol for option in options)
    found = parse_config(chapter.host.run(Command.script(script, symbols)).stdout)
    frame = pd.DataFrame(honoured(options, found))[["howto", "symbol", "wanted", "found"]]
    running = frame["found"] if found else "?"
    return frame.drop(columns="found").assign(running=running)


def build_tools(chapter: Chapter) -> tuple[Resource, ...]:
    """What the builder must have: installed on the target, asked for on the controller."""
    if not builds_kernel(chapter.site):
        return ()
    if chapter.site.build_on == "controller":
        return (Programs(COMPILER, "run `make bootstrap`"),)
    packages = chapter.packages.compiler
    return (
        *((chapter.packages.installed(*packages),) if packages else ()),
        source_tarball(chapter.site, chapter.root),
    )


def kernel_sources(chapter: Chapter) -> tuple[Resource, ...]:
    """The sources of both kernels, unpacked; nothing where the distribution has built them."""
    if not builds_kernel(chapter.site):
        return ()
    build = kernel_build(chapter.site, DOM0)
    return (Sources(build, lambda: kernel_checksum(chapter.site)),)


def kernel_configured(chapter: Chapter, flavour: str) -> tuple[Resource, ...]:
    """The kernel's .config, each option found in it; nothing for the distribution's."""
    site = chapter.site
    return (KernelConfigured(kernel_build(site, flavour)),) if builds_kernel(site) else ()


def kernel_compiled(chapter: Chapter, flavour: str) -> tuple[Resource, ...]:
    """The kernel compiled; nothing for the distribution's."""
    site = chapter.site
    return (KernelBuilt(kernel_build(site, flavour)),) if builds_kernel(site) else ()


def _asked(site: Parameters, flavour: str) -> list[Option]:
    """The options that are asked for: of the distribution's kernel those alone that Xen takes."""
    if builds_kernel(site):
        return kernel_build(site, flavour).options()
    statement = "(the distribution's kernel: built in or as a module)"
    return [Option(statement, name, "y or m") for name in NEEDED[flavour]]


def configured_options(chapter: Chapter, flavour: str) -> pd.DataFrame:
    """The list again, beside what the finished .config says."""
    if not builds_kernel(chapter.site):
        release = release_of(chapter.target)
        there = parse_config(chapter.target.read(f"/boot/config-{release}") or "")
        rows = honoured(_asked(chapter.site, flavour), there)
        fit = [{**row, "ok": "yes" if row["found"] in "ym" else "no"} for row in rows]
        # before step 03.9 there is none to be looked at
        return pd.DataFrame(fit if there else [{**row, "found": "?", "ok": "?"} for row in rows])
    build = kernel_build(chapter.site, flavour)
    config = KernelConfigured(build).config(builder(chapter))
    return pd.DataFrame(honoured(build.options(), config or {}))


def kernel_installed(chapter: Chapter, flavour: str) -> Resource:
    """The kernel where it is booted from: dom0's in /boot, the guests' in /xenboot."""
    if not builds_kernel(chapter.site):
        own = distribution_kernel(*assembled_at_boot(chapter.site))
        return own if flavour == DOM0 else GuestKernelLinked()
    return KernelInstalled(kernel_build(chapter.site, flavour), builder(chapter), chapter.root)


def make(site: Parameters, flavour: str, host: Host, report: Report) -> None:
    """Compile a kernel on this host, ahead of the chapter that asks for it.

    A chapter that comes to its kernel meanwhile follows the build that it finds.
    """
    build = kernel_build(site, flavour)
    sources = Sources(build, lambda: kernel_checksum(site))
    for resource in (sources, KernelConfigured(build), KernelBuilt(build)):
        if resource.probe(host) is not None:
            resource.apply(host, report)
            resource.verify(host)


def build_result(chapter: Chapter, flavour: str) -> pd.DataFrame:
    """What was built: release, size, seconds, notes for Xen, checksum."""
    if not builds_kernel(chapter.site):
        release = release_of(chapter.target) or "not installed yet"
        own = {"built by": f"the distribution: {IMAGE}", "release (uname -r)": release}
        return pd.DataFrame([{"what": what, "is": value} for what, value in own.items()])
    manifest = kernel_build(chapter.site, flavour).manifest(builder(chapter)) or {}
    names = {
        "release": "release (uname -r)",
        "bytes": "image, bytes",
        "seconds": "compiled in, seconds",
        "notes": "ELF notes for Xen",
        "vmlinuz": "sha256 of the image",
    }
    rows = [{"what": what, "is": manifest.get(name, "-")} for name, what in names.items()]
    return pd.DataFrame(rows)


def kernel_release(chapter: Chapter) -> str:
    """``uname -r`` of dom0's kernel.

    Raises StepFailed where it is not there yet; a plan goes on with a word in its place.
    """
    if builds_kernel(chapter.site):
        manifest = kernel_build(chapter.site, DOM0).manifest(builder(chapter)) or {}
        release, lacks = manifest.get("release", ""), "compiled"
    else:
        release, lacks = release_of(chapter.target), "installed"
    if release or chapter.mode == "plan":
        return release or RELEASE
    raise StepFailed(f"the {DOM0} kernel is not {lacks} yet", hint="run chapter 03_dom0_kernel")


def has_initrd(site: Parameters) -> bool:
    """Whether an initrd with modules goes with the kernel: with the distribution's one does."""
    return not builds_kernel(site)


def guests_initrd(site: Parameters) -> str:
    """The initrd that the guests boot with, as dom0 has it; "" for none."""
    return GUEST_INITRD if has_initrd(site) else ""


def release_by_hand(site: Parameters) -> Command:
    """What asks for the release of dom0's kernel where a person has compiled or installed it."""
    if not builds_kernel(site):
        return Command.argv("ssh", site.ssh.host, release_in(INSTALLED_ROOT, "/"))
    _, out = kernel_build(site, DOM0).by_hand
    file = f"{out}/include/config/kernel.release"
    where = () if site.build_on == "controller" else ("ssh", site.ssh.host)
    return Command.argv(*where, "cat", file)


def _own(site: Parameters, flavour: str) -> tuple[str, ...]:
    """Options for hardware, firmware and network are dom0's: no guest ever sees them."""
    if flavour != DOM0:
        return ()
    uefi = site.firmware == "uefi"
    firmware = UEFI_OPTIONS if uefi else ()
    if site.screen:
        firmware += (*SCREEN_OPTIONS, *(UEFI_SCREEN_OPTIONS if uefi else ()))
    vlan = VLAN_OPTIONS if site.uplink_vlan else ()
    bond = BOND_OPTIONS if site.uplink_bond.members else ()
    volumes = VOLUMES_OPTIONS if volumes_for_disks(site) else ()
    return (*firmware, *bond, *vlan, *volumes, *site.kernel_options)


# Chapter 00: which options build the drivers of a machine, and whether dom0's kernel has them.
#
# The sources' own Makefiles say it: obj-$(CONFIG_E1000E) += e1000e.o, in a folder that is built
# itself by obj-$(CONFIG_NET_VENDOR_INTEL) += intel/ (Linux' Documentation/kbuild/makefiles.rst).

_RULE = re.compile(r"([\w.-]+?)-(?:y|m|objs|\$[^=]*?CONFIG_(\w+)[^=:+?]*)\s*[:+?]?=(.*)")

# the Makefiles that name one of these objects, and those of the folders above them
_MAKEFILES = """
    [ -d "$1" ] || exit 44
    cd -- "$1"
    grep -rlE --include=Makefile --include=Kbuild "(^|[[:space:]/])($2)\\.o" drivers \\
        | while read -r file; do
            while folder=${file%/*}; [ "$folder" != "$file" ]; do
                ls "$folder/Makefile" "$folder/Kbuild" 2> /dev/null || :
                file=$folder
            done
        done | sort -u | xargs -r tail -v -n +1 --
"""


@dataclass(frozen=True)
class Driver:
    """A driver that is bound to a device between the site's disk, or uplink, and its bus.

    ``module`` is "" for one that its kernel has built in and tells no more of than a name.
    """

    use: str
    device: str
    bus: str
    name: str
    module: str


@dataclass(frozen=True)
class Rule:
    """That an object or a folder is part of something, where an option is set ("": always).

    ``whole`` is "obj" for the kernel itself, else the object that this one is linked into.
    """

    whole: str
    option: str
    part: str


Rules = Mapping[str, Iterable[Rule]]
"""What the Makefiles say, by their folders."""


def parse_makefiles(text: str) -> dict[str, list[Rule]]:
    """What `_MAKEFILES` prints."""
    parts = re.split(r"^==> (.*) <==\n", text, flags=re.MULTILINE)
    rules: dict[str, list[Rule]] = {}
    for file, content in zip(parts[1::2], parts[2::2], strict=True):
        rules.setdefault(file.rpartition("/")[0], []).extend(parse_makefile(content))
    return rules


def parse_makefile(text: str) -> list[Rule]:
    """What a Makefile of the kernel has built; conditions (``ifdef``) are taken for true."""
    lines = (line.partition("#")[0].strip() for line in text.replace("\\\n", " ").split("\n"))
    found = filter(None, map(_RULE.fullmatch, lines))
    return [Rule(rule[1], rule[2] or "", part) for rule in found for part in rule[3].split()]


def ways_to_build(driver: Driver, rules: Rules) -> list[tuple[str, ...]]:
    """The sets of options of which one builds a driver, those of its folders first.

    A driver without a module may have the name of a part of one (sd of sd_mod), or of something
    quite different as well: what lies in a folder of its bus is taken then, if anything does.
    """
    found: dict[tuple[str, ...], str] = {}
    for folder, own in rules.items():
        for rule in own:
            if _module(rule.part) == _module(f"{driver.module or driver.name}.o"):
                for options in _options(folder, rule, rules, parts=not driver.module):
                    found.setdefault(tuple(dict.fromkeys(filter(None, options))), folder)
    near = [way for way, folder in found.items() if driver.bus in folder.split("/")]
    return near if near and not driver.module else list(found)


def _options(folder: str, rule: Rule, rules: Rules, *, parts: bool) -> Iterator[tuple[str, ...]]:
    wholes = [""] if rule.whole == "obj" else []
    if parts and not wholes:
        same = (each for each in rules[folder] if each.whole == "obj")
        wholes = [each.option for each in same if each.part == f"{rule.whole}.o"]
    for whole in wholes:
        for outer in _of_folder(folder, rules):
            yield (*outer, whole, rule.option)


def _of_folder(folder: str, rules: Rules) -> Iterator[tuple[str, ...]]:
    """The sets of options of which one has a folder built; an empty one where nobody says."""
    said = False
    for parent in PurePosixPath(folder).parents:
        part = f"{PurePosixPath(folder).relative_to(parent)}/"
        for rule in rules.get(str(parent), ()):
            if (rule.whole, rule.part) == ("obj", part):
                said = True
                for outer in _of_folder(str(parent), rules):
                    yield (*outer, rule.option)
    if not said:
        yield ()


def _module(part: str) -> str:
    """An object's name as the kernel has it, "" where it is none."""
    name = part.rpartition("/")[2]
    return name.removesuffix(".o").replace("-", "_") if name.endswith(".o") else ""


def lacking(
    driver: Driver, rules: Rules, wanted: Iterable[Option], config: Mapping[str, str]
) -> tuple[str, ...] | None:
    """The options that would build a driver and are not in a .config; None where nobody knows.

    The fewest that do. What ``wanted`` switches off on one of the ways is among them, and the bus.
    """
    ways = ways_to_build(driver, rules)
    if not ways:
        return None
    best = min(([o for o in way if config.get(o) != "y"] for way in ways), key=len)
    if not best:
        return ()
    every = {option for way in ways for option in way}
    off = [each.symbol for each in wanted if each.wanted == "n" and each.symbol in every]
    bus = driver.bus.upper()
    buses = [bus] if any(bus == r.option for own in rules.values() for r in own) else []
    first = (o for o in (*off, *buses) if config.get(o) != "y")
    return tuple(dict.fromkeys((*first, *best)))


def drivers_lacking(
    site: Parameters, drivers: Iterable[Driver], controller: Host
) -> dict[Driver, tuple[str, ...] | None] | None:
    """For each driver what is `lacking` in dom0's .config as the controller has made it.

    None where it has not made any.
    """
    configured, controller = dom0_config(site), replace(controller, quiet=True)
    build = configured.build
    facts, config = build.facts(controller), configured.config(controller)
    if facts is None or config is None:
        return None
    names = (re.sub(r"[\W_]", ".", driver.module or driver.name) for driver in drivers)
    command = Command.script(_MAKEFILES, build.tree(facts), "|".join(names))
    found = controller.look(command, absent=(44,))
    if found is None:
        return None
    rules = parse_makefiles(found.stdout)
    return {driver: lacking(driver, rules, build.options(), config) for driver in drivers}


@dataclass(frozen=True)
class _Ahead(All):
    """A kernel configured that a later chapter asks for as well: a script has the commands there.

    Whether its .config honours every option is judged beside the drivers (`DriversBuilt`).
    """

    configured: KernelConfigured

    def commands(self) -> tuple[Command, ...]:
        """Those of all parts."""
        return tuple(command.scripted_as("") for command in super().commands())

    def verify(self, host: Host) -> None:
        """Raise StepFailed unless there is a .config."""
        if self.configured.config(host) is None:
            raise StepFailed("the kernel is not configured")


def dom0_configured(chapter: Chapter) -> tuple[Resource, ...]:
    """dom0's kernel configured on the controller, before anything is written to the machine.

    Nothing where the target is to compile, and the controller has not what that takes.
    """
    site = chapter.site
    if not builds_kernel(site):
        return ()
    tools = Programs(COMPILER, "run `make bootstrap`")
    if site.build_on != CONTROLLER and tools.probe(chapter.controller) is not None:
        return ()
    configured = dom0_config(site)
    sources = Sources(configured.build, lambda: kernel_checksum(site))
    return (_Ahead((tools, sources, configured), configured),)


def dom0_config(site: Parameters) -> KernelConfigured:
    """The .config of dom0's kernel on the controller, whoever is to compile it."""
    return KernelConfigured(kernel_build(site, DOM0, CONTROLLER))


# Chapter 04: the menu entry, the boot from the disk.
#
# Howto: „Grub-Konfiguration für Xen“.

UNMOUNT_SECONDS = 300.0


def xen_entry(chapter: Chapter) -> XenEntry:
    """The entry that step 04.2 writes."""
    site = chapter.site
    options = site.xen_options, site.dom0_options
    return XenEntry(kernel_release(chapter), site.dom0_mem_mib, *options, has_initrd(site))


def running_system(chapter: Chapter) -> pd.DataFrame:
    """What runs now, in the machine's own words."""
    state = xen_state(chapter.host)
    if state is None:
        return pd.DataFrame([{"what": "hypervisor", "is": "none"}])
    memory = Command("xl list 0 | awk 'NR == 2 { print $3 \" MiB\" }'")
    version = Command("xl info | sed -n 's/^xen_version *: *//p'")
    rows = {
        "hypervisor": f"Xen {chapter.host.run(version).stdout.strip()}",
        "its command line": state.commandline,
        "dom0's kernel": state.release,
        "its command line ": " ".join(state.kernel_words),
        "dom0's memory": chapter.host.run(memory).stdout.strip(),
    }
    return pd.DataFrame([{"what": what, "is": value} for what, value in rows.items()])


@dataclass(frozen=True)
class DiskBooted(Resource):
    """A machine that booted its disk into Xen, with this entry's kernel and options.

    ``root`` is where the installed system is mounted while the rescue system runs.
    """

    entry: XenEntry
    disk: str
    power: Power = field(compare=False)
    controller: Host = field(compare=False)
    root: str = "/"

    def probe(self, host: Host) -> Difference | None:
        """That the machine does not run Xen, or a table of what runs otherwise."""
        return compare(
            xen_state(host), self.entry.release, self.entry.xen_words, self.entry.dom0_words
        )

    def commands(self) -> tuple[Command, ...]:
        """Unmount the installed system, boot the disk, see what came up."""
        away = (Command.argv("umount", "-R", self.root),) if self.root != "/" else ()
        return (*away, *booted(self.power, "disk"), toolstack_answers())

    def apply(self, host: Host, report: Report) -> None:
        """Unmount the installed system, boot the disk, wait for Xen's services."""
        machine = host.inside("/")
        # GRUB and the kernel find the root by UUIDs, which a copy has as well
        refuse_twins(look(machine, self.disk))
        if self.root != "/":
            report(f"unmounting {self.root}")
            unmount(machine, self.root)
        reboot(self.power, "disk", machine, self.controller, report)
        report("waiting for Xen's services")
        wait_for_toolstack(machine)


def unmount(machine: Host, root: str) -> None:
    """Unmount a root and all below it, or nothing: raises StepFailed, naming who keeps it busy."""
    script = """
        busy=$(find /proc/[0-9]*/root /proc/[0-9]*/cwd /proc/[0-9]*/exe /proc/[0-9]*/fd \\
            -maxdepth 1 \\( -lname "$1" -o -lname "$1/*" \\) 2> /dev/null | cut -d/ -f3 | sort -u)
        for process in $busy; do
            echo "$process $(tr '\\0' ' ' < "/proc/$process/cmdline")" >&2
        done
        [ -z "$busy" ]
        sync
        # the installed system's
        swapoff -a
        if mountpoint -q -- "$1"; then umount -R -- "$1"; fi
        sync
    """
    result = machine.run(Command.script(script, root), check=False, timeout=UNMOUNT_SECONDS)
    if not result.ok:
        raise StepFailed(
            f"{root} cannot be unmounted: {result.stderr.strip() or 'it is busy'}",
            hint="end what still runs in there, then run the step again",
        )
