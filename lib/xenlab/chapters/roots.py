"""Chapter 09: a guest's root made from another guest's, or anew without what it is to keep."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from pathlib import PurePath

from xenlab.chapter.chapter import Chapter
from xenlab.chapters.changes import allowed_down
from xenlab.command import Command
from xenlab.host import Host
from xenlab.resources.archive import UNPACK_SECONDS, UNTAR
from xenlab.resources.base import Difference, Report, Resource
from xenlab.resources.blockdevices import IN_USE
from xenlab.resources.guest import FRESH, OPTIONS, UNPACK, GuestRoot
from xenlab.site.disk_plan import device
from xenlab.site.schema import Domain

# dom0's tar reads a root that nobody trusts, mounted as any guest's (`InGuestRoot`), and writes
# into one that is seen to be empty. It follows no link: what is a link there becomes one here. A
# file system holds each name once, so no name that is unpacked lies below a link.

_CLONE = f"""
source=$1 of=$5 from=$6
exec 8> "/run/xenlab-guest-$of.lock"
flock -n 8 || exit 60
(
device=$source
{IN_USE}
) || exit 61
read -r generation made 2> /dev/null < "$from/root" || exit 62
[ "$generation" != begun ] && [ "$made" = "$(blkid -p -s UUID -o value -- "$source")" ] || exit 62
[ ! -e "$from/usr" ] || exit 63
{FRESH}guest empty
mkdir -- "$scratch/source"
mount -t ext4 -o "{OPTIONS},errors=remount-ro,ro" -- "$source" "$scratch/source"
{{ {UNTAR} --one-file-system --sparse --exclude=./lost+found -C "$scratch/source" -cf - . \\
    || : > "$scratch/failed"; }} | {UNTAR} -C "$scratch/root" -xpf -
umount -- "$scratch/source"
rmdir -- "$scratch/source"
[ ! -e "$scratch/failed" ] || exit 64
# what tells it from the other one, beside what `GuestConfigured` makes
for each in /var/lib/systemd/random-seed /var/lib/dbus/machine-id; do
    [ "$(guest look "$each")" = none ] || guest remove "$each"
done
leave
echo "$generation $(uuid)" | note root
"""


@dataclass(frozen=True)
class GuestClone(GuestRoot):
    """A partition that holds a copy of another guest's root, which is down meanwhile.

    ``source`` is that guest's. A root that is complete is the guest's
    own from then on: it is never compared with the other one again. Host key and machine id are
    made by `GuestConfigured`, as for any fresh root.
    """

    source: GuestRoot = field(kw_only=True)

    def probe(self, host: Host) -> Difference | None:
        """Whether dom0's record says that it is complete."""
        now = self._look(host)
        if now.generation:
            return None
        lost = now.system if not now.empty else ""
        row = {"device": self.device, "copy of": self.source.name, "lost": lost}
        return Difference(f"copy the root of {self.source.name} into {self.device}", rows=(row,))

    def commands(self) -> tuple[Command, ...]:
        """A fresh file system, and the other one's files in it."""
        text = f"""
            mkdir -p {{there}}
            mount -o ro,{OPTIONS} {{source}} {{there}}
            {UNTAR} --one-file-system -C {{there}} -cf - . | {UNTAR} -C {{root}} -xpf -
            umount {{there}}
        """
        values = {"there": self.source.root, "source": self.source.device, "root": self.root}
        make = Command.sh("mkfs.ext4 -q -L {label} {device}", label=self.label, device=self.device)
        return (make, *self.while_mounted(Command.sh(text, **values)))

    def recorded(self) -> tuple[Command, ...]:
        """The image that the other one was made from, and in which file system the copy lies."""
        text = """
            mkdir -p {records}
            read -r image rest < {source}/root
            echo "$image $(blkid -p -s UUID -o value {device})" > {records}/root
        """
        values = {"records": self.folder, "source": self.source.folder, "device": self.device}
        return (Command.sh(text, **values),)

    def apply(self, host: Host, report: Report) -> None:
        """Copy it; the record is written last. Raises StepFailed where the other one is at work."""
        report(f"copying the root of {self.source.name} into {self.device}")
        agreed = "".join(f"lost {made.uuid}" for made in self.lost[:1])
        source = self.source
        values = (source.device, self.label, self.identity, agreed, source.name, source.folder)
        self.in_namespace(host, _CLONE, *values, timeout=UNPACK_SECONDS)

    def refusal(self, host: Host) -> str:
        """That one of the two is in use."""
        return super().refusal(host) or self.source.refusal(host)

    def _reasons(self, value: str = "") -> dict[int, tuple[str, str]]:
        name = self.source.name
        why = f"cannot make {self.name} like {name}: because "
        return super()._reasons(value) | {
            60: (f"{why}another process is working on {name}", "wait for its end, or end it"),
            61: (
                f"{why}{name} runs, or its root is mounted",
                f"xl shutdown -ww {name}; or restart: [{name}] in the site's file",
            ),
            62: (f"{why}{name} has no complete root", "run chapter 09 for that guest first"),
            63: (
                f"{why}the /usr of {name} is the share's",
                f"take {name} out of shared_usr first, or clone another guest",
            ),
            64: (f"{why}not all of {name} could be read", "look at its file system: e2fsck -n"),
        }


# What a guest keeps is archived before its root is made anew, and is on dom0's disk by then: a root
# that was begun and not completed gets it from there.

_KEEP = f"""
read -r generation made 2> /dev/null < "$records/root" || generation=begun
if [ "$generation" != begun ]; then
    [ "$4" = "lost $made" ] || exit 52
    [ "$made" = "$(uuid)" ] && enter ro || exit 60
    (shift 5; guest find "$@" > "$scratch/paths")
    rm -f -- "$records/.kept" "$records/.new"
    if [ -s "$scratch/paths" ]; then
        (umask 077; : > "$records/.new")
        {{ {UNTAR} --one-file-system --sparse -C "$scratch/root" \\
            --verbatim-files-from -T "$scratch/paths" -cf - || : > "$scratch/failed"; }} \\
            | zstd -q -1 -T0 >> "$records/.new" && sync -- "$records/.new" || exit 62
        [ ! -e "$scratch/failed" ] || exit 61
        mv -- "$records/.new" "$records/.kept"
        sync -- "$records"
    fi
    leave
    kept=yes
fi
"""


@dataclass(frozen=True)
class GuestRenewed(GuestRoot):
    """A partition that holds the image, and what this guest had in some paths before.

    ``keep``: files and folders of its root. They are what they were, beside what the image has
    there.
    """

    keep: tuple[str, ...] = field(kw_only=True)

    def commands(self) -> tuple[Command, ...]:
        """Archive what it keeps, then as for any root, then unpack that into it."""
        # a script may be run again in the middle, or where there is no root yet
        text = f"""
            mkdir -p {{root}} {{folder}}
            mount -o {OPTIONS} {{device}} {{root}}
            (umask 077; {UNTAR} -C {{root}} -I zstd -cf {{kept}} {{paths}})
            umount {{root}}
        """
        careful = f"""
            mkdir -p {{root}} {{folder}}
            if [ ! -e {{kept}} ] && [ "$(blkid -p -s TYPE -o value {{device}})" = ext4 ]; then
                mount -t ext4 -o {OPTIONS} {{device}} {{root}}
                for place in {{above}}; do
                    [ ! -L "$place" ] || {{ umount {{root}}; echo "$place is a link" >&2; exit 1; }}
                done
                (cd {{root}} && find {{paths}} -maxdepth 0 2> /dev/null) > /run/kept || :
                [ ! -s /run/kept ] || {{
                    (umask 077; {UNTAR} -C {{root}} -I zstd -T /run/kept -cf {{kept}}.new)
                    mv {{kept}}.new {{kept}}
                }}
                umount {{root}}
            fi
        """
        back = f"{UNTAR} -C {{root}} -I zstd -xpf {{kept}}\nrm {{kept}}"
        places = (f"{self.root}{above}" for path in self.keep for above in PurePath(path).parents)
        values = {"root": self.root, "folder": self.folder, "device": self.device}
        lists = {
            "paths": [f".{path}" for path in self.keep],
            "above": sorted({*places} - {f"{self.root}/"}),
        }
        values |= {"kept": f"{self.folder}/.kept"}
        saved = Command.sh(text, **values, **lists).scripted_as(careful, **values, **lists)
        restored = Command.sh(back, **values)
        restored = restored.scripted_as(f"[ ! -e {{kept}} ] || {{\n{back}\n}}", **values)
        return (saved, *super().commands(), *self.while_mounted(restored))

    def _unpack(self, host: Host, *values: str) -> None:
        self.in_namespace(host, _KEEP + UNPACK, *values, *self.keep, timeout=UNPACK_SECONDS)

    def _reasons(self, value: str = "") -> dict[int, tuple[str, str]]:
        why = f"cannot make {self.name} anew: because "
        return super()._reasons(value) | {
            60: (
                f"{why}its root cannot be read, and so nothing of it be kept",
                "look at its disk: e2fsck -n; without keep in its entry all of it is lost",
            ),
            61: (f"{why}not all that it keeps could be read", "look at its disk: e2fsck -n"),
            62: (f"{why}what it keeps has no room in dom0", f"free space for {self.records}"),
        }


def root_of(chapter: Chapter, domain: Domain, made: GuestRoot) -> Resource:
    """A guest's root from the image, with what it keeps, or from the guest that it is ``like``."""
    same = {each.name: getattr(made, each.name) for each in fields(made)}
    if not domain.like:
        return GuestRenewed(**same, keep=tuple(domain.keep)) if domain.keep else made
    site = chapter.site
    (other,) = (each for each in site.domains if each.name == domain.like)
    place = device(site, other.partition)
    source = replace(made, name=other.name, device=place, formerly=other.formerly)
    clone = GuestClone(**same, source=source)
    return allowed_down(chapter, other.name, clone)
