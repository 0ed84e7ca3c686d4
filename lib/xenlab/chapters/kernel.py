"""Chapters 03, 04 and 08: kernels from one source tree, the menu entry, the boot from the disk."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from xenlab.chapter.chapter import Chapter
from xenlab.chapters.disk import kernel_checksum, kernel_tarball, source_tarball
from xenlab.command import Command
from xenlab.errors import BadInput, StepFailed
from xenlab.host import Host
from xenlab.platform.boot import Power, XenEntry, booted, reboot
from xenlab.resources.base import Difference, Programs, Report, Resource
from xenlab.resources.blockdevices import look
from xenlab.resources.disk import refuse_twins
from xenlab.resources.kernel import (
    DOM0,
    RELEASE,
    KernelBuild,
    KernelBuilt,
    KernelConfigured,
    KernelInstalled,
    Sources,
    honoured,
    parse_config,
)
from xenlab.resources.xen import compare, toolstack_answers, wait_for_toolstack, xen_state
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


def builder(chapter: Chapter) -> Host:
    """Who compiles (howto: „mein PC ist schneller als mein Server“)."""
    return chapter.controller if chapter.site.build_on == "controller" else chapter.target


def kernel_build(site: Parameters, flavour: str) -> KernelBuild:
    """The kernel of this site, ``dom0`` or ``domU``, and where its builder keeps it."""
    if site.build_on == "controller":
        store = str(_cache() / "kernel")
        archive = str(Path(site.kernel_source).expanduser())
        return KernelBuild(flavour, archive, f"{store}/source", store, _own(site, flavour))
    store, trees = f"{site.share}/build", f"{site.share}/src"
    return KernelBuild(flavour, kernel_tarball(site), trees, store, _own(site, flavour))


def wanted_options(chapter: Chapter, flavour: str) -> pd.DataFrame:
    """The howto's list: each statement with the kernel options that it means today.

    ``running`` is what the kernel that runs on the machine now has of them, "?" where it does not
    say.
    """
    options = kernel_build(chapter.site, flavour).options()
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
    if chapter.site.build_on == "controller":
        return (Programs(COMPILER, "run `make bootstrap`"),)
    packages = chapter.packages.compiler
    return (
        *((chapter.packages.installed(*packages),) if packages else ()),
        source_tarball(chapter.site, chapter.root),
    )


def configured_options(chapter: Chapter, flavour: str) -> pd.DataFrame:
    """The list again, beside what the finished .config says."""
    build = kernel_build(chapter.site, flavour)
    config = KernelConfigured(build).config(builder(chapter))
    return pd.DataFrame(honoured(build.options(), config or {}))


def kernel_installed(chapter: Chapter, flavour: str) -> KernelInstalled:
    """The kernel where it is booted from: dom0's in /boot, the guests' in /xenboot."""
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

    Raises StepFailed where it is not built; a plan goes on with a word in its place.
    """
    manifest = kernel_build(chapter.site, DOM0).manifest(builder(chapter))
    if manifest is not None:
        return manifest["release"]
    if chapter.mode == "plan":
        return RELEASE
    raise StepFailed(f"the {DOM0} kernel is not compiled yet", hint="run chapter 03_dom0_kernel")


def release_by_hand(site: Parameters) -> Command:
    """What asks for the release of dom0's kernel where a person has compiled it."""
    _, out = kernel_build(site, DOM0).by_hand
    file = f"{out}/include/config/kernel.release"
    where = () if site.build_on == "controller" else ("ssh", site.ssh.host)
    return Command.argv(*where, "cat", file)


def _own(site: Parameters, flavour: str) -> tuple[str, ...]:
    """Options for hardware and firmware are dom0's: no guest ever sees them."""
    if flavour != DOM0:
        return ()
    return (*(UEFI_OPTIONS if site.firmware == "uefi" else ()), *site.kernel_options)


def _cache() -> Path:
    """Where things that can be built again are kept: $XENLAB_CACHE, else ~/.cache/xenlab."""
    own = os.environ.get("XENLAB_CACHE")
    base = os.environ.get("XDG_CACHE_HOME")
    folder = Path(own).expanduser() if own else Path(base or Path.home() / ".cache") / "xenlab"
    if not folder.is_absolute():
        raise BadInput(f"the cache folder must be an absolute path, not {folder}")
    return folder


# Chapter 04: the menu entry, the boot from the disk.
#
# Howto: „Grub-Konfiguration für Xen“.

UNMOUNT_SECONDS = 300.0


def xen_entry(chapter: Chapter) -> XenEntry:
    """The entry that step 04.2 writes."""
    site = chapter.site
    return XenEntry(kernel_release(chapter), site.dom0_mem_mib, site.xen_options, site.dom0_options)


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
