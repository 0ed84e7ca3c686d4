"""Chapter 14: the share over NFS, in the internal LAN alone; a package fetched once for all.

Howto: „Extreme Dateisystem-Sharing“, Partitionen 4.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Sequence

import pandas as pd

from xenlab import quoting
from xenlab.chapter.chapter import Chapter
from xenlab.chapters.action import at_hand
from xenlab.chapters.configuration import UNMERGED, unmerged_files
from xenlab.host import Host
from xenlab.resources.base import OnHost, PathsExist, Resource
from xenlab.resources.files import File
from xenlab.site.schema import Parameters

# where the share is not mounted, its folder is one of dom0's root, which is not exported
READ_ONLY = "ro,no_subtree_check,no_root_squash,mountpoint"


def lan_network(site: Parameters) -> str:
    """The internal LAN as exports(5) writes it."""
    return str(ipaddress.IPv4Interface(site.lan_address).network)


def exports_file(chapter: Chapter, path: str, options: str) -> File:
    """exports(5): a folder, exported to the internal LAN alone."""
    export = f"{quoting.exports(path)} {lan_network(chapter.site)}({options})"
    heading = f"# written by xenlab, chapter {chapter.name.partition('_')[0]}"
    return File("/etc/exports.d/xenlab.exports", f"{heading}\n{export}\n")


def nfs3_helpers_off(chapter: Chapter) -> Resource:
    """What only NFS 3 needs does not run: it would listen on every address."""
    return chapter.services.masked("rpcbind.socket", "rpcbind", "rpc-statd", "rpc-statd-notify")


def sources_in_guests(chapter: Chapter) -> dict[str, Resource]:
    """The condition that every guest sees the kernel sources in /usr/src."""
    tarball = chapter.site.kernel_source.rpartition("/")[2]
    there = PathsExist((f"/usr/src/{tarball}",))
    guests = chapter.site.lan_guests
    return {guest.name: OnHost(guest.name, chapter.guest(guest.name), there) for guest in guests}


def fetched_once(chapter: Chapter) -> list[Resource]:
    """dom0 fetches or builds the packages: nobody else writes to where the others take them."""
    wanted = chapter.site.shared_packages
    return [chapter.packages.stored(*wanted)] if wanted else []


def installed_from_share(chapter: Chapter) -> dict[str, Resource]:
    """The guests install them from the share; nothing is fetched or built again.

    But for those whose /usr is the share's (chapter 15).
    """
    site = chapter.site
    if not site.shared_packages:
        return {}
    wanted = chapter.packages.from_store(*site.shared_packages)
    return {
        guest.name: OnHost(guest.name, chapter.guest(guest.name), wanted)
        for guest in site.lan_guests
        if guest.name not in site.shared_usr
    }


def nfs_mount_table(chapter: Chapter) -> pd.DataFrame:
    """What each guest has of the share: guest, mounted, from, options."""

    def mounts(guest: Host) -> Sequence[tuple[str, ...]]:
        rows = []
        for line in guest.run("findmnt -n -r -t nfs4 -o TARGET,SOURCE,OPTIONS").stdout.splitlines():
            target, source, options = line.split()
            telling = [w for w in options.split(",") if w in ("ro", "rw") or w.startswith("vers")]
            rows.append((target, source, ", ".join(telling)))
        return rows

    return _of_guests(chapter, ("mounted", "from", "options"), mounts)


def guests_unmerged_table(chapter: Chapter) -> pd.DataFrame:
    """What packages have brought to each guest and not put over a changed file: guest, UNMERGED."""
    return _of_guests(chapter, UNMERGED, lambda guest: unmerged_files(guest, chapter.packages))


def _of_guests(
    chapter: Chapter, columns: tuple[str, ...], look: Callable[[Host], Sequence[tuple[str, ...]]]
) -> pd.DataFrame:
    guests = at_hand(chapter, [guest.name for guest in chapter.site.lan_guests])
    rows = [(name, *row) for name in guests for row in look(chapter.guest(name))]
    return pd.DataFrame(rows, columns=["guest", *columns])
