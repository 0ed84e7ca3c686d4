"""Chapter 18: a way back: guests' roots and files are saved, kept, and restored."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

import pandas as pd

from xenlab.chapter.chapter import Chapter
from xenlab.chapters.shared_usr import WhileDown
from xenlab.command import Command
from xenlab.host import Host
from xenlab.resources.archive import UNPACK_SECONDS, UNTAR
from xenlab.resources.base import Difference, Made, Report, Resource
from xenlab.resources.guest import FRESH, InGuestRoot
from xenlab.site.disk_plan import device, volumes_for_disks
from xenlab.site.schema import Domain

# A backup is a folder in dom0, FOLDER/GUEST/STAMP, which only root may enter: the guest's root
# (root.tar.zst), its file in /etc/xen, dom0's records of it, and SHA256SUMS of all these.
# It gets its name when it is whole and on disk. Never is it on the share, which every guest of the
# internal LAN may read as root: it holds each guest's host key and passwords.
#
# dom0's tar reads a root that nobody trusts, mounted as any guest's (`InGuestRoot`), and it follows
# no link. What it restores, it writes into a file system that is seen to be empty; a name with
# ``..`` is refused by tar itself, and the root holds no links but those of the archive, which tar
# makes last.

STAMP = "%Y%m%dT%H%M%SZ"
ARCHIVE = "root.tar.zst"
CHECK_SECONDS = 1800.0

_LOOK = """
date -u +"$2"
for each in "$1"/[0-9]*Z; do
    [ -d "$each" ] || continue
    cd -- "$each"
    # the archive is read whole only where somebody has touched it since
    if [ "$(stat --printf '%s %.9Y' -- "$3")" = "$(cat seen)" ]; then pass="  ./$3"; else pass=; fi
    if sed "\\\\|${pass:-^$}\\$|d" SHA256SUMS | sha256sum --check --status; then
        state=whole
    else
        state=damaged
    fi
    printf '%s\\t%s\\t%s\\n' "${each##*/}" "$(du -sm . | cut -f 1)" "$state"
done 2> /dev/null
"""


@dataclass(frozen=True)
class Backup:
    """A backup that is there: when it was made (UTC), its size in MiB, and whole or damaged."""

    stamp: str
    mib: int
    state: str


@dataclass(frozen=True)
class Found:
    """The backups of a guest, the oldest first, and dom0's clock."""

    now: datetime
    backups: tuple[Backup, ...]

    @property
    def whole(self) -> list[Backup]:
        """Those with the right checksums."""
        return [each for each in self.backups if each.state == "whole"]


def found_in(host: Host, place: str) -> Found:
    """The backups in a guest's folder; one command."""
    command = Command.script(_LOOK, place, STAMP, ARCHIVE).within(CHECK_SECONDS)
    looked = host.run(command, check=False, timeout=CHECK_SECONDS)
    if not looked.ok:
        # a machine that is only planned for has no root to look into yet
        return Found(datetime.min.replace(tzinfo=UTC), ())
    now, *lines = looked.stdout.splitlines()
    rows = (line.split("\t") for line in lines)
    backups = tuple(Backup(stamp, int(mib), state) for stamp, mib, state in rows)
    return Found(_time(now), backups)


def _time(stamp: str) -> datetime:
    return datetime.strptime(stamp, STAMP).replace(tzinfo=UTC)


# A guest's root and files are saved.

_SAVE = f"""
place=$1 config=$2 format=$3
read -r generation made 2> /dev/null < "$records/root" || exit 47
[ "$generation" != begun ] && [ "$made" = "$(uuid)" ] || exit 47
umask 077
mkdir -p -- "$place"
new=$place/.new
rm -rf --one-file-system -- "$new"
mkdir -- "$new" "$new/record"
enter ro
{{ {UNTAR} --one-file-system --sparse --exclude=./lost+found -C "$scratch/root" -cf - . \\
    || : > "$scratch/failed"; }} | zstd -q -1 -T0 > "$new/{ARCHIVE}" || : > "$scratch/full"
leave
[ ! -e "$scratch/full" ] || {{ rm -rf --one-file-system -- "$new"; exit 65; }}
[ ! -e "$scratch/failed" ] || {{ rm -rf --one-file-system -- "$new"; exit 64; }}
[ ! -e "$config" ] || cp -- "$config" "$new/domain.cfg"
cp -R -- "$records/." "$new/record"
cd -- "$new"
find . -type f ! -name SHA256SUMS -print0 | sort -z | xargs -0 sha256sum > "$scratch/sums"
cp -- "$scratch/sums" SHA256SUMS
rm -f -- "$scratch/sums"
stat --printf '%s %.9Y' -- {ARCHIVE} > seen
cd /
sync -f -- "$new"
mv -- "$new" "$place/$(date -u +"$format")"
sync -f -- "$place"
"""


@dataclass(frozen=True)
class GuestSaved(InGuestRoot):
    """A backup of a guest that is whole, and not older than some days.

    ``place`` is the folder of its backups, ``config`` its file in /etc/xen. Where its root is a
    logical ``volume``, a snapshot of it is read, so that the guest may run; else it has to be down.
    """

    place: str
    config: str
    max_age_days: int
    volume: bool = False

    def probe(self, host: Host) -> Difference | None:
        """Whether the newest backup that is whole is recent enough."""
        found = found_in(host, self.place)
        newest = found.whole[-1].stamp if found.whole else ""
        if newest and found.now - _time(newest) <= timedelta(days=self.max_age_days):
            return None
        return Difference(f"save {self.name}: the last backup is {newest or 'none'}")

    def commands(self) -> tuple[Command, ...]:
        """Archive the root while it is mounted, and its file, with checksums."""
        text = f"""
            mkdir -p -m 700 {{place}}/new
            {UNTAR} --one-file-system -C {{root}} -I 'zstd -1 -T0' -cf {{place}}/new/{ARCHIVE} .
            cp {{config}} {{place}}/new/domain.cfg
            cp -R {{records}} {{place}}/new/record
            (cd {{place}}/new && find . -type f -exec sha256sum {{{{}}}} + > ../sums)
            mv {{place}}/sums {{place}}/new/SHA256SUMS
            mv {{place}}/new {{place}}/$(date -u +{{format}})
        """
        values = {"place": self.place, "root": self.root, "config": self.config, "format": STAMP}
        save = Command.sh(text, records=self.folder, **values)
        if not self.volume:
            return self.while_mounted(save)
        frozen = replace(self, device=self._snapshot)
        taken, gone = self._taken()
        return (taken, *frozen.while_mounted(save), gone)

    def apply(self, host: Host, report: Report) -> None:
        """Save it; raises StepFailed where the guest would have to be down."""
        report(f"saving {self.name}")
        with self._at_rest(host) as resting:
            values = (self.place, self.config, STAMP)
            resting.in_namespace(host, _SAVE, *values, timeout=UNPACK_SECONDS)

    def refusal(self, host: Host) -> str:
        """That it runs, where its root is no volume."""
        return "" if self.volume else super().refusal(host)

    @property
    def _snapshot(self) -> str:
        # no guest's name has a dot in it
        return f"{self.device}.backup"

    def _taken(self) -> tuple[Command, Command]:
        take = "lvcreate -q -y -s -n {name} -l 20%ORIGIN {device}"
        name = self._snapshot.rpartition("/")[2]
        taken = Command.sh(take, name=name, device=self.device)
        return taken, Command.argv("lvremove", "-q", "-y", self._snapshot)

    @contextmanager
    def _at_rest(self, host: Host) -> Iterator[GuestSaved]:
        if not self.volume:
            yield self
            return
        taken, gone = self._taken()
        if host.test(Command.argv("test", "-e", self._snapshot)):
            host.change(gone)
        host.change(taken)
        try:
            yield replace(self, device=self._snapshot)
        finally:
            host.change(gone)

    def _reasons(self, value: str = "") -> dict[int, tuple[str, str]]:
        why = f"cannot save {self.name}: because "
        hint = f"xl shutdown -ww {self.name}; or restart: [{self.name}] in the site's file"
        known = super()._reasons(value)
        return known | {
            42: (f"{why}it runs, and its root is no logical volume", hint),
            64: (f"{why}not all of its root could be read", "look at its file system: e2fsck -n"),
            65: (f"{why}the archive could not be written", f"free space for {self.place}"),
        }


@dataclass(frozen=True)
class Meanwhile(WhileDown):
    """A state that a guest must be down for; where it ran before, it runs again afterwards.

    A root that was to be made anew, and was not, is no root to run from.
    """

    running: Resource = field(kw_only=True)

    def commands(self) -> tuple[Command, ...]:
        """Shut it down, bring the state about, create it again."""
        return (*super().commands(), *self.running.commands())

    def apply(self, host: Host, report: Report) -> None:
        """The same; after a failure too, if that has left its root as it was."""
        ran, whole = self.stopped.probe(host) is not None, not self.wipes()
        try:
            super().apply(host, report)
            whole = True
        finally:
            if ran and whole and self.running.probe(host) is not None:
                self.running.apply(host, report)


def _allowed_down(chapter: Chapter, name: str, wanted: Resource) -> Resource:
    if name not in chapter.site.restart:
        return wanted
    xl = chapter.toolstack
    return Meanwhile(xl.stopped(name), wanted, running=xl.running(name, console=True))


def _place(chapter: Chapter, domain: Domain) -> str:
    return f"{chapter.site.backups.folder}/{domain.record}"


def _named(chapter: Chapter, names: Sequence[str]) -> list[Domain]:
    return [domain for domain in chapter.site.domains if domain.name in names]


def guests_saved(chapter: Chapter) -> dict[str, Resource]:
    """A recent backup of each guest that the site names."""
    site, volume = chapter.site, volumes_for_disks(chapter.site)

    def saved(domain: Domain) -> Resource:
        made = GuestSaved(
            domain.name,
            device(site, domain.partition),
            _place(chapter, domain),
            chapter.toolstack.config_path(domain.name),
            site.backups.max_age_days,
            volume,
            formerly=domain.formerly,
        )
        return made if volume else _allowed_down(chapter, domain.name, made)

    return {each.name: saved(each) for each in _named(chapter, site.backups.guests)}


def backup_table(chapter: Chapter) -> pd.DataFrame:
    """All backups that there are: size in MiB, checksums. One of a guest that went has its name."""
    folder = chapter.site.backups.folder
    listed = chapter.target.look(Command.argv("ls", "--", folder), absent=(2,))
    known = {domain.record: domain.name for domain in chapter.site.domains}
    rows = [
        [known.get(record, record), each.stamp, each.mib, each.state]
        for record in (listed.stdout.split() if listed else ())
        for each in found_in(chapter.target, f"{folder}/{record}").backups
    ]
    return pd.DataFrame(rows, columns=["guest", "backup", "MiB", "checksums"])


# The newest stay.


@dataclass(frozen=True)
class NewestKept(Resource):
    """The newest backups of a guest that are whole, and none that is older than these."""

    place: str
    keep: int
    goes: tuple[str, ...] = ()

    def probe(self, host: Host) -> Difference | None:
        """Which of them are older."""
        if not (goes := self._older(host)):
            return None
        rows = tuple({"goes": f"{self.place}/{stamp}"} for stamp in goes)
        return Difference(f"remove {len(goes)} of the backups in {self.place}", rows=rows)

    def looked(self, host: Host) -> NewestKept:
        """The same, for what is there now."""
        return replace(self, goes=self._older(host))

    def commands(self) -> tuple[Command, ...]:
        """Remove each of them."""
        return tuple(Command.argv("rm", "-r", f"{self.place}/{stamp}") for stamp in self.goes)

    def _older(self, host: Host) -> tuple[str, ...]:
        found = found_in(host, self.place)
        kept = found.whole[-self.keep :]
        if len(kept) < self.keep:
            return ()
        return tuple(each.stamp for each in found.backups if each.stamp < kept[0].stamp)


def newest_kept(chapter: Chapter) -> dict[str, Resource]:
    """Of each guest that the site names, the newest backups."""
    site = chapter.site
    return {
        each.name: NewestKept(_place(chapter, each), site.backups.keep).looked(chapter.target)
        for each in _named(chapter, site.backups.guests)
    }


# A guest's root is made anew from a backup.

_UNPACK_SAVED = f"""
[ -d "$saved" ] && cd -- "$saved" && sha256sum --check --status --strict SHA256SUMS || exit 60
cd /
restore() {{ # into a root that is seen to be empty; then each file is compared
    guest empty
    {UNTAR} -C "$scratch/root" -I 'zstd -d' -xpf "$saved/{ARCHIVE}"
    {UNTAR} -C "$scratch/root" -I 'zstd -d' --compare -f "$saved/{ARCHIVE}" >&2 || exit 61
}}
"""

_RESTORE = f"""
saved=$1 config=$5 stamp=${{1##*/}}
{_UNPACK_SAVED}
read -r generation old < "$saved/record/root"
{FRESH}restore
leave
for each in "$saved"/record/*; do
    case ${{each##*/}} in
        root | restored) ;;
        # a record is of the file system with this UUID
        *) sed "s/$old/$(uuid)/g" -- "$each" | note "${{each##*/}}" ;;
    esac
done
[ -e "$config" ] || [ ! -e "$saved/domain.cfg" ] || cp -- "$saved/domain.cfg" "$config"
echo "$stamp $(uuid)" | note restored
echo "$generation $(uuid)" | note root
"""


@dataclass(frozen=True)
class GuestRestored(InGuestRoot):
    """A guest's root as it was in a backup, once, compared file by file.

    Without a consent by name the root that is there stays. ``label`` is that of its partition.
    """

    saved: str
    config: str
    label: str
    identity: str = field(default="", compare=False, repr=False)
    lost: tuple[Made, ...] = field(default=(), compare=False, repr=False)

    def probe(self, host: Host) -> Difference | None:
        """Whether dom0's record says that it was restored from there."""
        uuid, record = self.recorded_now(host, "restored")
        stamp = self.saved.rpartition("/")[2]
        if uuid and record == f"{stamp} {uuid}\n":
            return None
        made = next(iter(self.destroys(host)), None)
        row = {"device": self.device, "backup": stamp, "lost": made.what if made else ""}
        stays = made and (
            f"{self.name} keeps its root: --destroy {self.label}, or may_destroy: [{made}], has "
            f"it made anew from the backup {stamp}"
        )
        return Difference(f"restore {self.name} from {stamp}", rows=(row,), stays=stays or "")

    def destroys(self, host: Host) -> tuple[Made, ...]:
        """The guest, if there is a file system, or a record of one."""
        uuid, record = self.recorded_now(host, "root")
        known = (record or "begun").split()
        uuid = uuid or ("" if known[0] == "begun" else known[-1])
        return (Made(self.label, uuid, f"{self.device}, the root of {self.name}"),) if uuid else ()

    def consented(self, identity: str, lost: tuple[Made, ...] = ()) -> GuestRestored:
        """The same on a disk with this identity, for what is there now."""
        return replace(self, identity=identity, lost=lost)

    def wipes(self) -> str:
        """The root."""
        return self.device

    def commands(self) -> tuple[Command, ...]:
        """Compare the checksums, make a fresh file system, unpack, compare."""
        text = f"""
            {UNTAR} -C {{root}} -I zstd -xpf {{saved}}/{ARCHIVE}
            {UNTAR} -C {{root}} -I zstd --compare -f {{saved}}/{ARCHIVE}
        """
        unpack = Command.sh(text, root=self.root, saved=self.saved)
        check = Command.sh("(cd {saved} && sha256sum --check SHA256SUMS)", saved=self.saved)
        make = Command.sh("mkfs.ext4 -q -L {label} {device}", label=self.label, device=self.device)
        return (check, make, *self.while_mounted(unpack))

    def apply(self, host: Host, report: Report) -> None:
        """Restore it; raises StepFailed where the backup is damaged: nothing is lost then."""
        report(f"restoring {self.name}")
        agreed = "".join(f"lost {made.uuid}" for made in self.lost[:1])
        values = (self.saved, self.label, self.identity, agreed, self.config)
        self.in_namespace(host, _RESTORE, *values, timeout=UNPACK_SECONDS)

    def _reasons(self, value: str = "") -> dict[int, tuple[str, str]]:
        return super()._reasons(value) | _damaged(self.name, self.saved)


def _damaged(name: str, saved: str) -> dict[int, tuple[str, str]]:
    what = f"cannot restore {name} from {saved}: because "
    return {
        60: (f"{what}it is not there, or has other checksums", "name another backup of it"),
        61: (f"{what}not all files are as in the archive", "look at the disk: dmesg"),
    }


def guests_restored(chapter: Chapter) -> dict[str, Resource]:
    """Each guest's root from the backup that the site names for it."""
    site = chapter.site

    def restored(domain: Domain) -> Resource:
        made = GuestRestored(
            domain.name,
            device(site, domain.partition),
            f"{_place(chapter, domain)}/{site.backups.restore[domain.name]}",
            chapter.toolstack.config_path(domain.name),
            domain.partition,
            formerly=domain.formerly,
        )
        return _allowed_down(chapter, domain.name, made)

    return {each.name: restored(each) for each in _named(chapter, [*site.backups.restore])}
