"""Chapters 14 and 15: the share over NFS, a guest that runs from its /usr, guests that serve."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from ipaddress import IPv4Interface

import pandas as pd

from xenlab import quoting
from xenlab.chapter.chapter import Chapter
from xenlab.chapters.configuration import UNMERGED, bare, unmerged_files
from xenlab.chapters.guests import at_hand, now_running
from xenlab.command import Command
from xenlab.host import Host
from xenlab.resources.base import (
    All,
    Condition,
    Difference,
    Made,
    OnHost,
    PathsExist,
    Report,
    Resource,
)
from xenlab.resources.files import Directory, File
from xenlab.resources.guest import OPTIONS
from xenlab.resources.nfs import Exported, ServedOn, server_settings
from xenlab.resources.shared_usr import (
    UsrLinked,
    UsrSwapped,
    begun,
    generation,
    layout,
    needed_before,
    needed_files,
    own_usr_mib,
)
from xenlab.site.disk_plan import device
from xenlab.site.rules import builds_kernel, lan_device
from xenlab.site.schema import GuestExport, LanGuest, Parameters

# Chapter 14: the share over NFS, in the internal LAN alone; a package fetched once for all.
#
# Howto: „Extreme Dateisystem-Sharing“, Partitionen 4.

# where the share is not mounted, its folder is one of dom0's root, which is not exported
READ_ONLY = "ro,no_subtree_check,no_root_squash,mountpoint"


def lan_network(site: Parameters) -> str:
    """The internal LAN as exports(5) writes it."""
    return str(IPv4Interface(site.lan_address).network)


def exports_file(chapter: Chapter, path: str, options: str) -> File:
    """exports(5): a folder, exported to the internal LAN alone."""
    export = f"{quoting.exports(path)} {lan_network(chapter.site)}({options})"
    heading = f"# written by xenlab, chapter {chapter.name.partition('_')[0]}"
    return File("/etc/exports.d/xenlab.exports", f"{heading}\n{export}\n")


def nfs3_helpers_off(chapter: Chapter) -> Resource:
    """What only NFS 3 needs does not run: it would listen on every address."""
    return chapter.services.masked("rpcbind.socket", "rpcbind", "rpc-statd", "rpc-statd-notify")


def sources_in_guests(chapter: Chapter) -> dict[str, Resource]:
    """The condition that every guest sees the kernel sources in /usr/src, where there are any."""
    if not builds_kernel(chapter.site):
        return {}
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


# Chapter 15: a guest that runs from the share's /usr, and what that takes.
#
# Howto: „/usr sharing“.

FOLDER = "usr"


def boot_needs(chapter: Chapter) -> pd.DataFrame:
    """What the boot of the first guest that runs needs before the share is mounted."""
    columns = ["started by", "program", "in /usr", "libraries in /usr"]
    there = now_running(chapter, [guest.name for guest in chapter.site.lan_guests])
    if not there:
        return pd.DataFrame(columns=columns)
    host = chapter.guest(there[0])
    rows = [
        [
            one.unit,
            one.program,
            "yes" if one.path.startswith("/usr/") else "no",
            str(sum(1 for library in one.libraries if library.startswith("/usr/"))),
        ]
        for one in needed_before(host, chapter.site.share, chapter.services.early)
    ]
    return pd.DataFrame(rows, columns=columns)


def usr_methods(chapter: Chapter) -> pd.DataFrame:
    """The ways to a shared /usr, and which of them the guests' layout allows."""
    now = layout(chapter.target)
    rows = [
        ["split", "the howto's: /usr is a link to the share, a few programs copied to /bin"],
        ["merged", "/usr mounted before the first process, the network made by the kernel"],
    ]
    return pd.DataFrame(
        [[kind, way, "here" if kind == now else ""] for kind, way in rows],
        columns=["layout", "way", ""],
    )


GENERATION = "GENERATION"
"""What stands for an image's name on the share, which nobody knows before it is taken."""


def generation_by_hand(site: Parameters) -> Command:
    """What asks dom0 for it."""
    return Command.argv("ssh", site.ssh.host, "cut", "-c", "1-12", f"{site.image}.sha256")


def services_after_share(chapter: Chapter) -> dict[str, Resource]:
    """In each such guest: its services wait for the share, all but sshd.

    One that an earlier run has left down is started first.
    """
    late = [chapter.services.after_mount(name, chapter.site.share) for name in _late(chapter)]

    def wanted(guest: LanGuest) -> Resource:
        root, formerly = _partition(chapter, guest.name), _formerly(chapter, guest.name)
        back = BroughtBack(
            chapter.toolstack.running(guest.name, console=True),
            partial(begun, name=guest.name, device=root, formerly=formerly),
            (usr_swapped(chapter, guest), usr_kernel_options(chapter, guest)),
            chapter.toolstack.extended(guest.name, chapter.name),
        )
        return All((back, OnHost(guest.name, chapter.guest(guest.name), All(tuple(late)))))

    return {guest.name: wanted(guest) for guest in _sharing(chapter)}


def usr_swapped(chapter: Chapter, guest: LanGuest) -> Resource:
    """A guest's own /usr set aside or back in its place, as the site says."""
    shared = guest.name in chapter.site.shared_usr
    partition, stopped = _partition(chapter, guest.name), chapter.toolstack.stopped(guest.name)
    if shared and _literal(chapter):
        there, share = chapter.guest(guest.name), chapter.site.share
        needed = partial(needed_files, there, share, chapter.services.early)
        words = (guest.name, partition, _folder(chapter), needed, stopped)
        return UsrLinked(*words, formerly=_formerly(chapter, guest.name))
    swap = UsrSwapped(guest.name, partition, shared, formerly=_formerly(chapter, guest.name))
    # its kernel must not ask for a first process that goes when /usr comes back
    return WhileDown(stopped, swap, () if shared else (usr_kernel_options(chapter, guest),))


def usr_kernel_options(chapter: Chapter, guest: LanGuest) -> Resource:
    """A guest's configuration with what its first process needs, or without it."""
    shared = guest.name in chapter.site.shared_usr
    words = _words(chapter, guest) if shared and not _literal(chapter) else ""
    return chapter.toolstack.extended(guest.name, chapter.name, cmdline=words)


def usr_running(chapter: Chapter, guest: LanGuest) -> Resource:
    """A guest that runs from the /usr that the site says."""
    condition = OnHost(guest.name, chapter.guest(guest.name), _usr(chapter, guest))
    stopped = chapter.toolstack.stopped(guest.name)
    return Restarted(condition, stopped, chapter.toolstack.running(guest.name, console=True))


def services_waited(chapter: Chapter) -> dict[str, Resource]:
    """The condition that those services started after the share was mounted."""
    waited = chapter.services.waited(chapter.site.share, *_late(chapter))
    return {
        guest.name: OnHost(guest.name, chapter.guest(guest.name), waited)
        for guest in _sharing(chapter)
    }


def usr_saved(chapter: Chapter) -> pd.DataFrame:
    """MiB that each guest's own /usr takes, and could give back."""
    rows = []
    for name in at_hand(chapter, [guest.name for guest in chapter.site.lan_guests]):
        host = chapter.guest(name)
        where = host.run("findmnt -n -o SOURCE -T /usr/.").stdout.strip()
        mib = own_usr_mib(host)
        source = "its own disk" if where.startswith("/dev/") else where
        rows.append([name, source, "-" if mib is None else str(mib)])
    return pd.DataFrame(rows, columns=["guest", "/usr from", "own /usr set aside (MiB)"])


def _late(chapter: Chapter) -> list[str]:
    """All services but sshd: a guest whose share is away must still let somebody in."""
    return [name for name in chapter.site.services if name != "ssh"]


def _sharing(chapter: Chapter) -> list[LanGuest]:
    return [guest for guest in chapter.site.lan_guests if guest.name in chapter.site.shared_usr]


def _partition(chapter: Chapter, name: str) -> str:
    partition = next(d.partition for d in chapter.site.domains if d.name == name)
    return device(chapter.site, partition)


def _formerly(chapter: Chapter, name: str) -> str:
    return next(d.formerly for d in chapter.site.domains if d.name == name)


def _literal(chapter: Chapter) -> bool:
    """Whether the howto's own way is open: the guests, made from dom0's image, are split too."""
    return layout(chapter.target) == "split"


def _folder(chapter: Chapter) -> str:
    name = generation(chapter.target, chapter.site.image) or GENERATION
    return f"{chapter.site.share}/{FOLDER}/{name}"


def _source(chapter: Chapter) -> str:
    return f"{bare(chapter.site.lan_address)}:{_folder(chapter)}"


def _words(chapter: Chapter, guest: LanGuest) -> str:
    """The kernel's own network configuration (nfsroot.rst), the first process, its /usr."""
    own = IPv4Interface(guest.address)
    network = f"ip={own.ip}:::{own.netmask}:{guest.name}:{lan_device(chapter.site, guest.name)}:off"
    return f"{network} init=/.xenlab/init xenlab.usr={_source(chapter)}"


def _usr(chapter: Chapter, guest: LanGuest) -> Resource:
    if guest.name in chapter.site.shared_usr and _literal(chapter):
        linked = Command.script(
            '[ "$(readlink /usr)" = "$1" ] && [ -d /usr/bin ]', _folder(chapter)
        )
        return Condition(linked, f"/usr of {guest.name} is no link to the share's")
    if guest.name in chapter.site.shared_usr:
        script = """
            [ "$(findmnt -n -o SOURCE /usr)" = "$1" ]
            findmnt -n -o OPTIONS /usr | grep -q '^ro,'
        """
        command = Command.script(script, _source(chapter))
        return Condition(command, f"{guest.name} does not run from the share's /usr")
    own = Command("! findmnt -n /usr && [ ! -L /usr ]")
    return Condition(own, f"{guest.name} does not run from its own /usr")


@dataclass(frozen=True)
class WhileDown(Resource):
    """A state that can only be brought about while a guest is down; it is left down.

    ``before`` are the states without which it would not boot, were it left in that one.
    """

    stopped: Resource
    wanted: Resource
    before: tuple[Resource, ...] = ()

    def probe(self, host: Host) -> Difference | None:
        """The wanted state's difference."""
        return self.wanted.probe(host)

    def commands(self) -> tuple[Command, ...]:
        """Shut the guest down, then those of the states."""
        parts = (self.stopped, *self.before, self.wanted)
        return tuple(command for part in parts for command in part.commands())

    def apply(self, host: Host, report: Report) -> None:
        """Shut the guest down if it runs, then bring the state about."""
        for part in (self.stopped, *self.before):
            if part.probe(host) is not None:
                part.apply(host, report)
                part.verify(host)
        self.wanted.apply(host, report)

    def recorded(self) -> tuple[Command, ...]:
        """What the wanted state records."""
        return self.wanted.recorded()

    def wipes(self) -> str:
        """What the wanted state does."""
        return self.wanted.wipes()

    def destroys(self, host: Host) -> tuple[Made, ...]:
        """What the wanted state does."""
        return self.wanted.destroys(host)

    def consented(self, identity: str, lost: tuple[Made, ...] = ()) -> WhileDown:
        """The same, with the wanted state consented to."""
        return replace(self, wanted=self.wanted.consented(identity, lost))


@dataclass(frozen=True)
class BroughtBack(Resource):
    """A guest that runs, whatever moment an earlier run of this chapter was cut off at.

    Half-way it would not boot: where ``begun``, the change of its /usr is brought to its ``end``;
    else its configuration is its ``own``.
    """

    running: Resource
    begun: Callable[[Host], bool]
    end: tuple[Resource, ...]
    own: Resource

    def probe(self, host: Host) -> Difference | None:
        """That it does not run."""
        return self.running.probe(host)

    def commands(self) -> tuple[Command, ...]:
        """Start it."""
        return self.running.commands()

    def apply(self, host: Host, report: Report) -> None:
        """Let it fit together, then start it."""
        before = self.end if self.begun(host) else (self.own,)
        for part in (*before, self.running):
            if part.probe(host) is not None:
                part.apply(host, report)
                part.verify(host)


@dataclass(frozen=True)
class Restarted(Resource):
    """A guest that was created anew unless a condition holds in it as it runs."""

    condition: OnHost
    stopped: Resource
    running: Resource

    def probe(self, host: Host) -> Difference | None:
        """That it does not run, or what does not hold in it."""
        return self.running.probe(host) or self.condition.probe(host)

    def commands(self) -> tuple[Command, ...]:
        """Shut it down, create it."""
        return (*self.stopped.commands(), *self.running.commands())

    def apply(self, host: Host, report: Report) -> None:
        """Shut it down if it runs, create it, wait until it answers and the condition holds."""
        if self.stopped.probe(host) is not None:
            self.stopped.apply(host, report)
            self.stopped.verify(host)
        # a connection to the domain that is gone proves nothing about the new one
        self.condition.host.transport.close()
        self.running.apply(host, report)
        self.condition.apply(host, report)


# Chapter 15's last part: guests that serve something themselves, over NFS.
#
# Howto: „Ganz haarig wird die Sache, wenn ein NFS-Server auf einer DomainU laufen soll“.

SERVER = "nfs-server"
# a folder of the guest's root: without the check a forged file handle reaches all of that root
WRITE = "rw,subtree_check,no_root_squash"
MOUNT_SECONDS = 30


def guest_servers(chapter: Chapter) -> list[Resource]:
    """Each such guest exports its folder to the internal LAN, on its address there.

    dom0 fetches what they install.
    """

    def server(export: GuestExport) -> Resource:
        address = _address(chapter, export)
        parts = (
            Directory(export.path),
            server_settings(address),
            exports_file(chapter, export.path, WRITE),
            nfs3_helpers_off(chapter),
            chapter.packages.from_store(*chapter.packages.nfs_server),
            chapter.services.running(SERVER),
            ServedOn(address, chapter.services.restart(SERVER)),
            Exported((export.path,), lan_network(chapter.site), WRITE),
        )
        return OnHost(export.name, chapter.guest(export.name), All(parts))

    servers = [server(export) for export in chapter.site.guest_exports]
    return [chapter.packages.stored(*chapter.packages.nfs_server), *servers] if servers else []


def export_reachable(chapter: Chapter, export: GuestExport) -> Resource:
    """The condition that dom0 can mount what a guest exports."""
    script = """
        place=$(mktemp -d)
        trap 'rmdir -- "$place"' EXIT
        unshare --mount -- sh -euc '
            timeout "$3" mount -t nfs4 -o "vers=4.2,ro,soft,retry=0,$4" "$1" "$2"
            ls -- "$2" > /dev/null
        ' sh "$1" "$place" "$2" "$3"
    """
    source = f"{_address(chapter, export)}:{export.path}"
    return Condition(
        Command.script(script, source, str(MOUNT_SECONDS), OPTIONS),
        f"dom0 cannot mount {export.path} of {export.name}",
        f"exportfs -s and the service {SERVER} on {export.name}",
    )


def export_table(chapter: Chapter) -> pd.DataFrame:
    """Who serves what, and where: guest, folder, address, and whether it is exported now."""
    rows = []
    there = at_hand(chapter, [export.name for export in chapter.site.guest_exports])
    for export in chapter.site.guest_exports:
        script = 'exportfs -s | grep -q -F -e "$1 "'
        now = export.name in there and chapter.guest(export.name).test(
            Command.script(script, export.path)
        )
        rows.append([export.name, export.path, _address(chapter, export), "yes" if now else "no"])
    return pd.DataFrame(rows, columns=["guest", "folder", "address", "exported now"])


def _address(chapter: Chapter, export: GuestExport) -> str:
    return next(bare(g.address) for g in chapter.site.lan_guests if g.name == export.name)
