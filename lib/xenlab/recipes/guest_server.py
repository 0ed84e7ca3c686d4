"""Chapter 15's last part: guests that serve something themselves, over NFS.

Howto: „Ganz haarig wird die Sache, wenn ein NFS-Server auf einer DomainU laufen soll“.
"""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd

from xenlab import quoting
from xenlab.chapter import Chapter
from xenlab.command import Command
from xenlab.parameters import GuestExport
from xenlab.recipes.action import at_hand
from xenlab.recipes.network import bare
from xenlab.recipes.shared_filesystems import network, old_protocols_off
from xenlab.resources.base import Resource
from xenlab.resources.condition import Condition, Together
from xenlab.resources.elsewhere import Elsewhere
from xenlab.resources.files import Directory, File
from xenlab.resources.guestroot import OPTIONS
from xenlab.resources.nfs import Exported, ServedOn, server_settings

SERVER = "nfs-server"
WRITE = "rw,no_subtree_check,no_root_squash"
MOUNT_SECONDS = 30


def uncircled(book: Chapter) -> dict[str, Resource]:
    """In each such guest: the server waits for the share, and the share not for the server."""
    parts = (
        book.services.server_unordered(),
        book.services.after_mount(SERVER, book.site.share),
    )
    return _on_servers(book, lambda _: Together(parts))


def serving(book: Chapter) -> list[Resource]:
    """Each such guest exports its folder to the internal LAN, on its address there.

    dom0 fetches what they install.
    """
    site, lan = book.site, network(book.site)

    def server(export: GuestExport) -> Resource:
        address = _address(book, export)
        exports = (
            f"# written by xenlab, chapter 15\n{quoting.exports(export.path)} {lan}({WRITE})\n"
        )
        return Together(
            (
                Directory(export.path),
                server_settings(address),
                File("/etc/exports.d/xenlab.exports", exports),
                old_protocols_off(book),
                book.packages.from_store(*book.packages.nfs_server),
                book.services.running(SERVER),
                ServedOn(address, book.services.restart(SERVER)),
                Exported((export.path,), network(site), WRITE),
            )
        )

    servers = list(_on_servers(book, server).values())
    return [book.packages.stored(*book.packages.nfs_server), *servers] if servers else []


def reachable(book: Chapter) -> dict[str, Resource]:
    """The condition that dom0 can mount what each such guest exports."""
    script = """
        place=$(mktemp -d)
        trap 'rmdir -- "$place"' EXIT
        unshare --mount -- sh -euc '
            timeout "$3" mount -t nfs4 -o "vers=4.2,ro,soft,retry=0,$4" "$1" "$2"
            ls -- "$2" > /dev/null
        ' sh "$1" "$place" "$2" "$3"
    """
    return {
        export.name: Condition(
            Command.script(
                script, f"{_address(book, export)}:{export.path}", str(MOUNT_SECONDS), OPTIONS
            ),
            f"dom0 cannot mount {export.path} of {export.name}",
            f"exportfs -s and the service {SERVER} on {export.name}",
        )
        for export in book.site.guest_exports
    }


def table(book: Chapter) -> pd.DataFrame:
    """Who serves what, and where: guest, folder, address, and whether it is exported now."""
    rows = []
    there = at_hand(book, [export.name for export in book.site.guest_exports])
    for export in book.site.guest_exports:
        script = 'exportfs -s | grep -q -F -e "$1 "'
        now = export.name in there and book.guest(export.name).test(
            Command.script(script, export.path)
        )
        rows.append([export.name, export.path, _address(book, export), "yes" if now else "no"])
    return pd.DataFrame(rows, columns=["guest", "folder", "address", "exported now"])


def _address(book: Chapter, export: GuestExport) -> str:
    return next(bare(g.address) for g in book.site.lan_guests if g.name == export.name)


def _on_servers(book: Chapter, wanted: Callable[[GuestExport], Resource]) -> dict[str, Resource]:
    return {
        export.name: Elsewhere(export.name, book.guest(export.name), wanted(export))
        for export in book.site.guest_exports
    }
