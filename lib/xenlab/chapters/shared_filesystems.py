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
from xenlab.chapters.network import bare
from xenlab.command import Command
from xenlab.host import Host
from xenlab.resources.base import All, Condition, OnHost, PathsExist, Resource
from xenlab.resources.files import File
from xenlab.resources.nfs import Exported, ListensOnlyOn, NfsMount, ServedOn, server_settings
from xenlab.site.schema import LanGuest, Parameters

# where the share is not mounted, its folder is one of dom0's root, which is not exported
READ = "ro,no_subtree_check,no_root_squash,mountpoint"
OPTIONS = "vers=4.2,_netdev,x-systemd.mount-timeout=120"


def network(site: Parameters) -> str:
    """The internal LAN as exports(5) writes it."""
    return str(ipaddress.IPv4Interface(site.lan_address).network)


def server_configured(site: Parameters) -> tuple[Resource, ...]:
    """NFS 4 alone, on dom0's address in the LAN alone; one export, which nobody writes to."""
    exports = f"{quoting.exports(site.share)} {network(site)}({READ})\n"
    return (
        server_settings(bare(site.lan_address)),
        File("/etc/exports.d/xenlab.exports", f"# written by xenlab, chapter 14\n{exports}"),
    )


def old_protocols_off(chapter: Chapter) -> Resource:
    """What only NFS 3 needs does not run: it would listen on every address."""
    return chapter.services.masked("rpcbind.socket", "rpcbind", "rpc-statd", "rpc-statd-notify")


def served(chapter: Chapter) -> tuple[Resource, ...]:
    """The server runs, now and after every boot; the share is exported to the LAN."""
    return (
        chapter.services.running("nfs-server"),
        ServedOn(bare(chapter.site.lan_address), chapter.services.restart("nfs-server")),
        exported(chapter),
    )


def exported(chapter: Chapter) -> Resource:
    """What chapter 14 leaves: the share, exported to the LAN."""
    return Exported((chapter.site.share,), network(chapter.site), READ)


def unreachable(site: Parameters) -> Resource:
    """The condition that over the uplink nothing is to be had but ssh."""
    return ListensOnlyOn((bare(site.lan_address),), ("22",))


def mounted(chapter: Chapter) -> dict[str, Resource]:
    """Every guest has the share, and in it the store of packages, read-only."""
    site = chapter.site
    source = f"{bare(site.lan_address)}:{site.share}"
    return _on_guests(chapter, lambda _: NfsMount(source, site.share, f"ro,{OPTIONS}"))


def sources_seen(chapter: Chapter) -> dict[str, Resource]:
    """The condition that every guest sees the kernel sources in /usr/src."""
    name = chapter.site.kernel_source.rpartition("/")[2]
    return _on_guests(chapter, lambda _: PathsExist((f"/usr/src/{name}",)))


def settled(chapter: Chapter) -> dict[str, Resource]:
    """Every guest has the settings by which dom0 fetches and builds packages."""
    parts = chapter.packages.settled()
    return _on_guests(chapter, lambda _: All(parts))


def fetched_once(chapter: Chapter) -> list[Resource]:
    """dom0 fetches or builds the packages: nobody else writes to where the others take them."""
    wanted = chapter.site.shared_packages
    return [chapter.packages.stored(*wanted)] if wanted else []


def installed_from_share(chapter: Chapter) -> dict[str, Resource]:
    """The guests install them from the share; nothing is fetched or built again.

    But for those whose /usr is the share's (chapter 15).
    """
    site = chapter.site
    wanted = chapter.packages.from_store(*site.shared_packages) if site.shared_packages else None
    return _on_guests(chapter, lambda guest: None if guest.name in site.shared_usr else wanted)


def swapping(chapter: Chapter) -> dict[str, Resource]:
    """The condition that every guest uses its swap file."""
    script = "awk '$1 == \"/dev/xvda2\" { found = 1 } END { exit !found }' /proc/swaps"
    used = Condition(Command(script), "the swap file is not in use", "swapon --show; /etc/fstab")
    return _on_guests(chapter, lambda _: used)


def shares(chapter: Chapter) -> Callable[[], pd.DataFrame]:
    """What each guest has of the share: guest, mounted, from, options."""

    def mounts(guest: Host) -> Sequence[tuple[str, ...]]:
        rows = []
        for line in guest.run("findmnt -n -r -t nfs4 -o TARGET,SOURCE,OPTIONS").stdout.splitlines():
            target, source, options = line.split()
            telling = [w for w in options.split(",") if w in ("ro", "rw") or w.startswith("vers")]
            rows.append((target, source, ", ".join(telling)))
        return rows

    return _of_guests(chapter, ("mounted", "from", "options"), mounts)


def waiting(chapter: Chapter) -> Callable[[], pd.DataFrame]:
    """What packages have brought to each guest and not put over a changed file: guest, UNMERGED."""
    return _of_guests(chapter, UNMERGED, lambda guest: unmerged_files(guest, chapter.packages))


def _of_guests(
    chapter: Chapter, columns: tuple[str, ...], look: Callable[[Host], Sequence[tuple[str, ...]]]
) -> Callable[[], pd.DataFrame]:
    def table() -> pd.DataFrame:
        """Read when the step runs."""
        guests = at_hand(chapter, [guest.name for guest in chapter.site.lan_guests])
        rows = [(name, *row) for name in guests for row in look(chapter.guest(name))]
        return pd.DataFrame(rows, columns=["guest", *columns])

    return table


def _on_guests(
    chapter: Chapter, wanted: Callable[[LanGuest], Resource | None]
) -> dict[str, Resource]:
    found = ((guest, wanted(guest)) for guest in chapter.site.lan_guests)
    return {
        guest.name: OnHost(guest.name, chapter.guest(guest.name), resource)
        for guest, resource in found
        if resource is not None
    }
