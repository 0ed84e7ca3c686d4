"""Chapter 16: guests come and go: what they run with, and what is left of those that went."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import pandas as pd

from xenlab.chapter.chapter import Chapter
from xenlab.chapters.disk import swap_space
from xenlab.chapters.shared_usr import WhileDown
from xenlab.command import Command
from xenlab.errors import StepFailed
from xenlab.host import Host
from xenlab.platform.running import Values, parse_file
from xenlab.resources.base import All, Difference, Made, Report, Resource, present
from xenlab.resources.blockdevices import ANOTHER_DISK, IN_USE, SAME_DISK, another_disk
from xenlab.resources.files import Absent
from xenlab.resources.guest import RECORDS, InGuestRoot
from xenlab.resources.ssh_access import Unpinned, way_to_guest
from xenlab.site.disk_plan import (
    GUESTS_FOLDER,
    SWAP_FOLDER,
    device,
    number_of,
    volumes_for_disks,
)
from xenlab.site.schema import Domain, Parameters

# What of guests there is on a machine, as it says itself. What xenlab made has a record in dom0
# (`xenlab.resources.guest`); a domain or a file without one is somebody else's, and left alone.

REMOVE_SECONDS = 600.0

_LOOK = """
base=$1 records=$2 disk=$3 group=$4 swap=$5 guests=$6
found() { printf '%s\\t%s\\t%s\\n' "$@"; }
named() { # KIND END FILE…: what a file is called, without its end
    kind=$1 end=$2
    shift 2
    for file do
        [ ! -e "$file" ] || { name=${file##*/}; found "$kind" "${name%"$end"}" "$file"; }
    done
}
for place in "$records"/*/; do
    [ -e "${place}root" ] || continue
    read -r _ uuid < "${place}root" || uuid=
    place=${place%/}
    found record "${place##*/}" "$uuid"
done
named configuration .cfg "$base"/etc/xen/*.cfg
for link in "$base"/etc/xen/auto/*; do
    [ ! -L "$link" ] || { name=$(readlink -- "$link"); name=${name##*/}
        found "start with dom0" "${name%.cfg}" "$link"; }
done
named "swap space" .swap "$base$swap"/*.swap "$base$guests"/*.swap
[ -z "$group" ] || named "swap space" .swap "/dev/$group"/*.swap
for log in "$base"/var/log/xen/console/guest-*.log; do
    [ ! -e "$log" ] || { name=${log##*/guest-}; found "console log" "${name%.log}" "$log"; }
done
{ lsblk -n -l -p -o NAME -- "$disk" 2> /dev/null || :; ls -- "$base$guests"/*.img 2> /dev/null || :
} | while read -r root; do
    uuid=$(blkid -p -s UUID -o value -- "$root" 2> /dev/null) || continue
    found root "$uuid" "$root"
done
xl list 2> /dev/null | awk 'NR > 1 && $1 != "Domain-0" { print "domain\\t" $1 "\\t" $2 }'
"""


class Thing(NamedTuple):
    """Something of a guest's: what it is, whose (a root: its file system's UUID), and where.

    Of a record, ``where`` is the UUID of the root; of a domain its number.
    """

    kind: str
    name: str
    where: str


def things_on(host: Host, disk: str, group: str = "", base: str = "") -> list[Thing]:
    """What of guests there is on a machine; below ``base``, where that is not its root."""
    values = (base, base + RECORDS, disk, group, SWAP_FOLDER, GUESTS_FOLDER)
    # a machine that is only planned for has no root to look into yet
    found = host.run(Command.script(_LOOK, *values), check=False)
    return parse_things(found.stdout) if found.ok else []


def parse_things(text: str) -> list[Thing]:
    """What the look has printed: kind, name and place, with tabs between them."""
    rows = (line.split("\t") for line in text.splitlines())
    return [Thing(*row) for row in rows if len(row) == 3]


def _things(chapter: Chapter) -> list[Thing]:
    site = chapter.site
    group = site.volume_group if volumes_for_disks(site) else ""
    return things_on(chapter.target, site.disk, group)


def _gone(site: Parameters, things: Sequence[Thing]) -> list[str]:
    """The guests that xenlab made and the site no longer names."""
    known = [domain.record for domain in site.domains]
    return [each.name for each in things if each.kind == "record" and each.name not in known]


# Whether guests run with what the site and their files say.


def site_says(site: Parameters, domain: Domain) -> Values:
    """What a guest's configuration is by the site's file, that of chapter 13 included."""
    vifs = [(domain.mac, site.bridge)]
    vifs += [(nic.mac, nic.bridge or site.bridge) for nic in domain.nics]
    vifs += [(g.mac, site.lan_bridge) for g in site.lan_guests if g.name == domain.name]
    disks = [f"xvda1 {device(site, domain.partition)}", f"xvda2 {swap_space(site, domain)}"]
    disks += [f"{d.name} {d.path}{' (read-only)' * d.readonly}" for d in domain.disks]
    return Values(
        memory_mib=domain.memory_mib,
        maxmem_mib=domain.maxmem_mib,
        vcpus=domain.vcpus,
        most_vcpus=domain.vcpus,
        vifs=tuple((mac.lower(), bridge) for mac, bridge in vifs),
        disks=tuple(disks),
    )


def files_say(host: Host, paths: Sequence[str]) -> dict[str, Values]:
    """What xl reads in configuration files, without those that it cannot read."""
    script = """
        for file do
            xl create -n "$file" < /dev/null 2> /dev/null || :
            echo ----
        done
    """
    said = host.run(Command.script(script, *paths), check=False).stdout.split("----\n")
    found = {path: parse_file(text) for path, text in zip(paths, said, strict=False)}
    return {path: values for path, values in found.items() if values}


def guest_values(chapter: Chapter) -> pd.DataFrame:
    """Each guest of the site and of the machine: what the site, its file and its domain have."""
    site, things = chapter.site, _things(chapter)
    made = {each.name for each in things if each.kind == "record"}
    paths = {each.name: each.where for each in things if each.kind == "configuration"}
    files = files_say(chapter.target, [*paths.values()]) if paths else {}
    running = chapter.toolstack.values(chapter.target)
    of_site = {domain.name: site_says(site, domain) for domain in site.domains}
    names = dict.fromkeys((*of_site, *paths, *running))
    rows = [
        {"guest": name, "said by": who, "made by xenlab": "yes" if name in made else "no"}
        | _row(values)
        for name in names
        if name != "Domain-0"
        for who, values in (
            ("the site", of_site.get(name)),
            ("its file", files.get(paths.get(name, ""))),
            ("its domain", running.get(name)),
        )
        if values is not None
    ]
    return pd.DataFrame(rows, columns=["guest", "said by", *_COLUMNS, "made by xenlab"])


_COLUMNS = ("memory (MiB)", "vcpus", "interfaces", "disks")


def _row(values: Values) -> dict[str, str]:
    more = f", up to {values.maxmem_mib}" if values.maxmem_mib > values.memory_mib else ""
    vifs = "; ".join(f"{mac} on {bridge}" for mac, bridge in values.vifs)
    cells = (f"{values.memory_mib}{more}", str(values.vcpus), vifs, "; ".join(values.disks))
    return dict(zip(_COLUMNS, cells, strict=True))


def waiting(chapter: Chapter) -> dict[str, Resource]:
    """What waits until a guest is created again: done for those in ``restart``, else only said."""
    xl, names = chapter.toolstack, [domain.name for domain in chapter.site.domains]
    again = chapter.site.restart
    return {name: xl.created_again(name) if name in again else xl.waiting(name) for name in names}


# Chapter 09: what a guest must be down for, and one under a new name.


def allowed_down(chapter: Chapter, name: str, wanted: Resource, runs_as: str = "") -> Resource:
    """A state that a guest must be down for: it is shut down for it where `restart` names it.

    ``runs_as`` is what its domain is called, if not as the guest is. Chapter 11 starts it again.
    """
    if name not in chapter.site.restart:
        return wanted
    return WhileDown(chapter.toolstack.stopped(runs_as or name), wanted)


def guests_renamed(chapter: Chapter) -> list[Resource]:
    """Guests under new names: their files are called so, and nothing starts them by the old."""
    return [
        allowed_down(chapter, each.name, GuestRenamed(each.formerly, each.name), each.formerly)
        for each in chapter.site.domains
        if each.formerly
    ]


def guests_back(chapter: Chapter) -> list[Resource]:
    """Guests that the site names again: the configuration that each had when it went.

    Without what later chapters have added to it, a guest would start without its LAN.
    """
    path = chapter.toolstack.config_path
    return [Moved(_kept(each.record), path(each.name)) for each in chapter.site.domains]


def _kept(record: str) -> str:
    return f"{RECORDS}/{record}/domain.cfg"


@dataclass(frozen=True)
class Moved(Resource):
    """A file that lies in its new place, where it was in the old one; else nothing."""

    old: str
    new: str

    def probe(self, host: Host) -> Difference | None:
        """Whether it is in the old place."""
        there = present(host, [self.old])
        return Difference(f"move {self.old} to {self.new}") if there else None

    def commands(self) -> tuple[Command, ...]:
        """Move it."""
        places = {"old": self.old, "new": self.new}
        once = "[ ! -e {old} ] || mv {old} {new}"
        return (Command.sh("mv {old} {new}", **places).scripted_as(once, **places),)


@dataclass(frozen=True)
class GuestRenamed(Resource):
    """A guest's configuration file under its new name, with all that chapters have added to it."""

    old: str
    new: str
    folder: str = "/etc/xen"

    def probe(self, host: Host) -> Difference | None:
        """Whether there is a file of its former name."""
        if not present(host, [f"{self.folder}/{self.old}.cfg"]):
            return None
        return Difference(f"call {self.old} {self.new} from now on")

    def commands(self) -> tuple[Command, ...]:
        """Rename the file; chapter 12 links it anew."""
        values = {"folder": self.folder, "old": f"{self.old}.cfg", "new": f"{self.new}.cfg"}
        text = "cd {folder}\nmv {old} {new}\nrm -f auto/*-{old}"
        once = "if [ -e {folder}/{old} ]; then\n" + text + "\nfi"
        return (Command.sh(text, **values).scripted_as(once, **values),)

    def apply(self, host: Host, report: Report) -> None:
        """Rename it; raises StepFailed where a domain of the former name is there."""
        script = """
            ! xl domid "$1" > /dev/null 2>&1 || exit 45
            cd -- "$3"
            for link in auto/*; do
                [ "$(readlink -- "$link")" != "../$1.cfg" ] || rm -- "$link"
            done
            if [ -e "$2.cfg" ]; then rm -- "$1.cfg"; else mv -- "$1.cfg" "$2.cfg"; fi
        """
        report(f"renaming {self.old}")
        command = Command.script(script, self.old, self.new, self.folder)
        host.change(command.refusing({45: self._runs}))

    def refusal(self, host: Host) -> str:
        """That it runs."""
        there = host.test(Command.sh("xl domid {name} > /dev/null 2>&1", name=self.old))
        return self._runs[0] if there else ""

    @property
    def _runs(self) -> tuple[str, str]:
        return (
            f"cannot call {self.old} {self.new}: because it runs",
            f"xl shutdown -ww {self.old}; or restart: [{self.new}] in the site's file",
        )


# What is left of guests that the site no longer names.


def left_table(chapter: Chapter) -> pd.DataFrame:
    """What the machine has of guests that the site does not name."""
    return left_of(chapter.site, _things(chapter))


def left_of(site: Parameters, things: Sequence[Thing]) -> pd.DataFrame:
    """The same, of what was found: guest, what, where, and whose it is."""
    gone = _gone(site, things)
    known = {name for domain in site.domains for name in (domain.name, domain.record)}
    owners = {each.where: each.name for each in things if each.kind == "record"}
    rows = []
    for each in things:
        name = owners.get(each.name, "") if each.kind == "root" else each.name
        if name and name not in known:
            whose = "xenlab's" if name in gone else "not xenlab's: left alone"
            rows.append([name, each.kind, each.where, whose])
    rows.sort(key=lambda row: (row[3] != "xenlab's", row[0]))
    return pd.DataFrame(rows, columns=["guest", "what", "where", "whose"])


def gone_stopped(chapter: Chapter) -> dict[str, Resource]:
    """Guests that the site no longer names are down."""
    gone = _gone(chapter.site, _things(chapter))
    return {name: chapter.toolstack.stopped(name) for name in gone}


def gone_forgotten(chapter: Chapter) -> dict[str, Resource]:
    """Nothing starts them any more, and their host keys are not pinned.

    Their configuration files are kept with dom0's records, with all that chapters have added.
    """
    things = _things(chapter)

    def forgotten(name: str) -> Resource:
        own = [thing for thing in things if thing.name == name]
        links = (Absent(each.where) for each in own if each.kind == "start with dom0")
        files = (Moved(each.where, _kept(name)) for each in own if each.kind == "configuration")
        return All((*links, *files, Unpinned(name, way_to_guest(chapter.site, name))))

    found = {name: forgotten(name) for name in _gone(chapter.site, things)}
    for each in chapter.site.domains:
        if each.formerly:
            way = way_to_guest(chapter.site, each.formerly)
            found[each.formerly] = Unpinned(each.formerly, way)
    return found


def gone_removed(chapter: Chapter) -> dict[str, Resource]:
    """Their data is gone, if somebody agreed to lose it by name."""
    things = _things(chapter)
    return {name: removed(things, name) for name in _gone(chapter.site, things)}


def removed(things: Sequence[Thing], name: str, base: str = "") -> Resource:
    """What is left of one of them, its root found by the UUID on record.

    Raises StepFailed where two devices hold that very file system.
    """

    def of(kind: str, name: str) -> list[str]:
        return [each.where for each in things if (each.kind, each.name) == (kind, name)]

    (uuid,) = of("record", name)
    roots = of("root", uuid) if uuid else []
    if len(roots) > 1:
        raise StepFailed(
            f"cannot tell the root of {name}: because {' and '.join(roots)} hold the same file "
            "system",
            hint="one is a copy: detach it, or give it a UUID of its own (tune2fs -U random)",
        )
    others = (*of("swap space", name), *of("console log", name))
    return GuestRemoved(name, "".join(roots), uuid, others, records=base + RECORDS)


_REMOVE = (
    SAME_DISK
    + """
name=$1 device=$2 folder=$3 identity=$4 agreed=$5
shift 5
exec 9> "/run/xenlab-guest-$name.lock"
flock -n 9 || exit 41
! xl domid "$name" > /dev/null 2>&1 || exit 42
gone() { # a file, a logical volume, or a partition with its entry in the table
    if [ ! -b "$1" ]; then
        rm -f -- "$1"
    elif [ "$(lsblk -d -n -o TYPE -- "$1")" = lvm ]; then
        lvremove -q -y -- "$1"
    else
        part=$(readlink -f -- "$1")
        wipefs -q -a -- "$part"
        number=$(cat "/sys/class/block/${part##*/}/partition" 2> /dev/null) || return 0
        disk=/dev/$(lsblk -d -n -o PKNAME -- "$part")
        sfdisk --quiet --no-reread --no-tell-kernel --delete -- "$disk" "$number"
        partx --delete --nr "$number" -- "$disk"
    fi
}
if [ -n "$device" ]; then
"""
    + IN_USE
    + """
    [ "$(blkid -p -s UUID -o value -- "$device")" = "$agreed" ] || exit 52
    [ ! -b "$device" ] || same_disk "$(readlink -f -- "$device")" "$identity"
    gone "$device"
fi
for other do gone "$other"; done
# what says whose it was goes last
rm -rf --one-file-system -- "$folder"
sync -- "${folder%/*}"
"""
)


@dataclass(frozen=True)
class GuestRemoved(InGuestRoot):
    """Nothing of a guest that the site no longer names: root, swap space, console log, record.

    ``device`` is its root, "" where none was found; ``uuid`` that of the file system there.
    Refused while a domain uses it. Without a consent by name all of it stays.
    """

    uuid: str
    others: tuple[str, ...]
    identity: str = field(default="", compare=False, repr=False)
    lost: tuple[Made, ...] = field(default=(), compare=False, repr=False)

    def probe(self, host: Host) -> Difference | None:
        """Whether its record is there; what goes with it."""
        if not host.test(Command.argv("test", "-d", self.folder)):
            return None
        rows = tuple({"goes": path} for path in (self.device, *self.others, self.folder) if path)
        made = self._made
        return Difference(
            f"remove what is left of {self.name}",
            rows=rows,
            stays=f"{self.name} is no guest of the site any more, and its data stays "
            f"({made.what}): --destroy {self.name}, or may_destroy: [{made}], removes it",
        )

    def destroys(self, host: Host) -> tuple[Made, ...]:
        """All of it, whether or not its root was ever complete."""
        return (self._made,)

    def consented(self, identity: str, lost: tuple[Made, ...] = ()) -> GuestRemoved:
        """The same on a disk with this identity, for what is there now."""
        return replace(self, identity=identity, lost=lost)

    def wipes(self) -> str:
        """The root, or else a file whose loss wants a consent by name alone."""
        return self.device or f"{self.folder}/root"

    def commands(self) -> tuple[Command, ...]:
        """Root, swap space and log, then the record."""
        parts = [
            Command.sh(_typed(path), path=path) for path in (self.device, *self.others) if path
        ]
        return (*parts, Command.argv("rm", "-r", self.folder))

    def apply(self, host: Host, report: Report) -> None:
        """Remove it, if nothing uses it and it is what somebody agreed to lose."""
        report(f"removing {self.name}")
        agreed = "".join(made.uuid for made in self.lost)
        values = (self.name, self.device, self.folder, self.identity, agreed, *self.others)
        refusals = {**self._reasons(), ANOTHER_DISK: another_disk(self.device)}
        command = Command.script(_REMOVE, *values).within(REMOVE_SECONDS)
        host.change(command.refusing(refusals))

    @property
    def _made(self) -> Made:
        return Made(self.name, self.uuid, ", ".join(filter(None, (self.device, *self.others))))


def _typed(path: str) -> str:
    """What removes a thing, as a person would type it."""
    if not path.startswith("/dev/"):
        return "rm {path}"
    if path.startswith("/dev/mapper/") or path.count("/") > 2:
        return "lvremove {path}"
    entry = f'sfdisk --no-reread --delete "/dev/$(lsblk -dno PKNAME {{path}})" {number_of(path)}'
    return f"wipefs -a {{path}}\n{entry}"
