"""Chapter 04: the menu entry, dom0's first network and logins, the boot from the disk.

Howto: „Grub-Konfiguration für Xen“.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import pandas as pd

from xenlab.chapter import Chapter, way_to
from xenlab.command import Command
from xenlab.errors import StepFailed
from xenlab.host import Host
from xenlab.platform.bootloader import XenEntry
from xenlab.platform.power import Power, reboot
from xenlab.recipes.kernel import release
from xenlab.resources.base import Difference, Report, Resource
from xenlab.resources.blockdevices import look
from xenlab.resources.files import File
from xenlab.resources.partitions import refuse_twins
from xenlab.resources.running_xen import compare, wait_for_toolstack, xen_state
from xenlab.resources.sshaccess import AuthorizedKeys, OwnKeyPinned, SshHostKeys

UNMOUNT_SECONDS = 300.0


def entry(book: Chapter) -> XenEntry:
    """What the site boots."""
    site = book.site
    return XenEntry(release(book), site.dom0_mem_mib, site.xen_options, site.dom0_options)


def menu_sources(book: Chapter) -> tuple[Resource, ...]:
    """What the boot menu is made from."""
    return book.bootloader.entry(entry(book))


def menu(book: Chapter) -> Resource:
    """The boot menu."""
    return book.bootloader.menu(entry(book))


def first_network(book: Chapter) -> tuple[Resource, ...]:
    """Name and address under which the machine comes up from its disk."""
    site = book.site
    return (
        File("/etc/hostname", f"{site.hostname}\n"),
        *book.interfaces.uplink(site.uplink, site.address, site.gateway, site.bridge),
    )


def login(book: Chapter) -> tuple[Resource, ...]:
    """Host keys of dom0's own, and the keys that may log in."""
    return SshHostKeys(), AuthorizedKeys(book.root)


def host_key_pinned(book: Chapter) -> Resource:
    """dom0's own host key among the pinned ones, before we meet it."""
    return OwnKeyPinned(way_to(book.site))


def running(book: Chapter) -> Resource:
    """The machine runs from its disk: GRUB, Xen, dom0 with its own kernel."""
    return Running(entry(book), book.site.disk, book.power, book.controller, book.root)


def running_table(book: Chapter) -> pd.DataFrame:
    """What runs now, in the machine's own words."""
    state = xen_state(book.host)
    if state is None:
        return pd.DataFrame([{"what": "hypervisor", "is": "none"}])
    memory = Command("xl list 0 | awk 'NR == 2 { print $3 \" MiB\" }'")
    version = Command("xl info | sed -n 's/^xen_version *: *//p'")
    rows = {
        "hypervisor": f"Xen {book.host.run(version).stdout.strip()}",
        "its command line": state.commandline,
        "dom0's kernel": state.release,
        "its command line ": " ".join(state.kernel_words),
        "dom0's memory": book.host.run(memory).stdout.strip(),
    }
    return pd.DataFrame([{"what": what, "is": value} for what, value in rows.items()])


@dataclass(frozen=True)
class Running(Resource):
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
