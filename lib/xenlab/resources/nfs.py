"""Mounted file systems, and files over NFS: what a server exports and its clients have mounted."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from textwrap import indent
from typing import NamedTuple

from xenlab.command import Command
from xenlab.errors import StepFailed
from xenlab.host import NO_PROGRAM, Host
from xenlab.quoting import fstab
from xenlab.resources.base import Check, Difference, Made, Report, Resource
from xenlab.resources.blockdevices import (
    ANOTHER_DISK,
    GROW,
    MOUNTED,
    SAME_DISK,
    USED,
    WHEN_DOWN,
    another_disk,
    parse_filled,
    plain,
)
from xenlab.resources.files import File
from xenlab.site.disk_plan import in_extents

# Mounted file systems, and the swap files of guests that lie on one of them.

BIND = "bind"

_OTHER_MOUNTED = 45


@dataclass(frozen=True)
class Mount(Resource):
    """Something mounted now on a directory, which is made if it is missing.

    ``kind`` is a file system type, or "bind" for a directory seen in a second place with all that
    is mounted below it. /etc/fstab is not touched.
    """

    source: str
    target: str
    kind: str = "ext4"
    options: str = ""

    def probe(self, host: Host) -> Difference | None:
        """Whether nothing, or another device, is mounted there."""
        script = """
            readlink -f -- "$2" || exit
            stat -L -c 'device %t %T' -- "$1" 2>/dev/null || echo
            cat /proc/self/mountinfo
        """
        result = host.run(Command.script(script, self.source, self.target), check=False)
        wanted = Difference(f"mount {self.source} on {self.target}")
        if not result.ok:
            return wanted
        target, device, *mounts = result.stdout.splitlines()
        # proc_pid_mountinfo(5): the third field is major:minor, the fifth the mount point
        fields = (line.split() for line in mounts)
        there = [f[2] for f in fields if plain(f[4]) == target]
        if not there:
            return wanted
        number = ":".join(str(int(part, 16)) for part in device.split()[1:])
        if self.kind != BIND and self.source.startswith("/dev/") and there[-1] != number:
            return Difference(f"{wanted.summary}, where something else is now")
        return None

    def commands(self) -> tuple[Command, ...]:
        """Mount it; refused where something else is mounted."""
        if self.kind == BIND:
            # what is unmounted in here must stay mounted out there
            mount = "mount --rbind {source} {target}\nmount --make-rslave {target}"
        else:
            how = "-t {kind} -o {options}" if self.options else "-t {kind}"
            mount = f"mount {how} {{source}} {{target}}"
        values = {"source": self.source, "target": self.target}
        values |= {"kind": self.kind, "options": self.options}
        typed = f"mkdir -p {{target}}\n{mount}"
        again = f"if ! mountpoint -q {{target}}; then\n{indent(typed, '    ')}\nfi"
        command = Command.sh(
            f"! mountpoint -q {{target}} || exit {_OTHER_MOUNTED}\n{typed}", **values
        )
        other = (self._other, f"look with findmnt {self.target}, and unmount it")
        command = command.typed_as(typed, **values).scripted_as(again, **values)
        return (command.refusing({_OTHER_MOUNTED: other}),)

    def refusal(self, host: Host) -> str:
        """That something else is mounted there."""
        there = host.test(Command.argv("mountpoint", "-q", self.target))
        return self._other if there else ""

    @property
    def _other(self) -> str:
        return f"cannot mount {self.source}: because something else is mounted on {self.target}"


@dataclass(frozen=True)
class SwapFile(Resource):
    """A file of this size (MiB) with a swap signature, its blocks allocated, only for root.

    A guest gets it as a disk: howto, Partitionen 6 („am besten als file-backend“).
    """

    path: str
    size_mib: int

    def probe(self, host: Host) -> Difference | None:
        """Whether it is missing, smaller, has another mode, has holes, or is no swap.

        One that a guest uses waits until that is down; none shrinks.
        """
        script = """
            [ -f "$1" ] || exit 44
            stat -c "%s %a %b %B" -- "$1"
            blkid -p -o value -s TYPE -- "$1" || echo
            losetup -n -O NAME -j "$1"
        """
        result = host.run(Command.script(script, self.path), check=False)
        wanted = f"make the swap file {self.path} of {self.size_mib} MiB"
        if not result.ok:
            return Difference(wanted)
        now, kind, *used = result.stdout.splitlines()
        size, mode, *blocks = now.split()
        mib, whole = int(size) // 1024**2, int(blocks[0]) * int(blocks[1]) >= int(size)
        what = f"{wanted} anew: now {mib} MiB, mode {mode}"
        if not whole or mode != "600" or kind.strip() != "swap":
            return Difference(what)
        if mib > self.size_mib:
            return Difference(what, stays=shrinks(self.path, mib, self.size_mib))
        waits = f"{what}: {WHEN_DOWN}" if used else ""
        return Difference(what, stays=waits) if mib < self.size_mib else None

    def commands(self) -> tuple[Command, ...]:
        """Make it beside its place and move it there: a guest that runs keeps the file it has."""
        script = """
            umask 077
            mkdir -p -- "${1%/*}/"
            trap 'rm -f -- "$1.new"' EXIT
            rm -f -- "$1.new"
            # holes would become I/O errors in the guest once the partition is full
            fallocate -l "$2MiB" -- "$1.new"
            chmod 600 -- "$1.new"
            mkswap -- "$1.new"
            sync -- "$1.new"
            mv -f -- "$1.new" "$1"
            # chapter 01 is not looked at again by a run that goes on
            sync -- "${1%/*}/"
        """
        typed = """
            fallocate -l {size}MiB {path}
            chmod 600 {path}
            mkswap {path}
        """
        command = Command.script(script, self.path, self.size_mib).within(600)
        return (command.typed_as(typed, path=self.path, size=self.size_mib),)


@dataclass(frozen=True)
class DiskFile(Resource):
    """A file of this size (MiB) that is a guest's disk, its blocks allocated, only for root.

    What it holds is the guest's: it grows, with its ext4, while no guest uses it. None shrinks.
    """

    path: str
    size_mib: int

    def probe(self, host: Host) -> Difference | None:
        """Whether it is missing, or smaller, or its ext4 is."""
        script = f'[ -f "$1" ] || exit 44\n{GROW}\nlook_at "$1"'
        result = host.look(Command.script(script, self.path), absent=(44,))
        if result is None:
            return Difference(f"make the disk file {self.path} of {self.size_mib} MiB")
        return grows(f"the disk file {self.path}", result.stdout, self.size_mib)

    def commands(self) -> tuple[Command, ...]:
        """Make it beside its place and move it there; one that is there is only made longer."""
        script = f"""
            {GROW}
            umask 077
            mkdir -p -- "${{1%/*}}/"
            if [ -e "$1" ]; then
                (unused "$1")
                # what is longer already stays so
                fallocate -l "$2MiB" -- "$1"
                grow_ext4 "$1"
                exit 0
            fi
            trap 'rm -f -- "$1.new"' EXIT
            rm -f -- "$1.new"
            # holes would become I/O errors in the guest once the partition is full
            fallocate -l "$2MiB" -- "$1.new"
            sync -- "$1.new"
            mv -n -- "$1.new" "$1"
            sync -- "${{1%/*}}/"
        """
        typed = "mkdir -p {folder}\nfallocate -l {size}MiB {path}\nchmod 600 {path}"
        folder, size = self.path.rpartition("/")[0], str(self.size_mib)
        values = {"folder": folder, "size": size, "path": self.path}
        once = f"[ -e {{path}} ] || {{\n{typed}\n}}"
        command = Command.script(script, self.path, self.size_mib).within(600)
        command = command.refusing(busy(f"the disk file {self.path}"))
        return (command.typed_as(typed, **values).scripted_as(once, **values),)


def busy(what: str) -> dict[int, tuple[str, str]]:
    """What it means where something of a guest's got into use before it could grow."""
    said = (f"cannot grow {what}: because it is in use", "shut its guest down, or unmount it")
    return dict.fromkeys((USED, MOUNTED), said)


def shrinks(what: str, mib: int, wanted: int) -> str:
    """That something is larger than the site's file says, and stays so."""
    return f"{what} has {mib} MiB, the site's file says {wanted}: none shrinks"


def grows(what: str, text: str, wanted: int) -> Difference | None:
    """What a guest's disk that `GROW` looked at has to become, or stays, as it is larger."""
    found = parse_filled(text)
    if found.mib < wanted or found.behind:
        said = f"grow {what} from {min(found.bytes, found.system or found.bytes) >> 20}"
        said += f" to {max(wanted, found.mib)} MiB"
        return Difference(said, stays=f"{said}: {WHEN_DOWN}" if found.used else "")
    return Difference("", stays=shrinks(what, found.mib, wanted)) if found.mib > wanted else None


# Logical volumes in which guests live: lvm(8). One that is there is the guest's, whatever it holds.


@dataclass(frozen=True)
class VolumeGroup(Resource):
    """A volume group on one partition, which is empty before: anything else there is refused.

    ``identity`` is that of the disk on which somebody has consented to it.
    """

    device: str
    name: str
    identity: str = field(default="", compare=False, repr=False)

    def wipes(self) -> str:
        """The partition, though nothing must be on it."""
        return self.device

    def consented(self, identity: str, lost: tuple[Made, ...] = ()) -> VolumeGroup:
        """The same on a disk with this identity."""
        return replace(self, identity=identity)

    def probe(self, host: Host) -> Difference | None:
        """Whether it is not there yet; raises StepFailed where the partition holds something."""
        script = """
            [ -e "$1" ] || exit 44
            kind=$(blkid -p -s TYPE -s PTTYPE -o value -- "$1") || [ $? = 2 ]
            printf '%s\\n' "$kind"
            pvs --noheadings -o vg_name -- "$1" 2> /dev/null || :
        """
        found = host.look(Command.script(script, self.device), absent=(44, NO_PROGRAM))
        kind, _, group = found.stdout.partition("\n") if found else ("", "", "")
        if kind == "LVM2_member" and group.strip() == self.name:
            return None
        if kind and (kind != "LVM2_member" or group.strip()):
            holds = f"the volume group {group.strip()}" if group.strip() else kind
            raise StepFailed(
                f"cannot make the volume group {self.name}: because {self.device} holds {holds}",
                hint="look what is there (lsblk -f, pvs); name the group in volume_group, or empty "
                "the partition",
            )
        return Difference(f"make the volume group {self.name} on {self.device}")

    def commands(self) -> tuple[Command, ...]:
        """Make it; pvcreate asks before it takes what holds something, and nobody answers."""
        script = f"""
            {SAME_DISK}
            device=$(readlink -f -- "$1")
            same_disk "$device" "$3"
            pvs -- "$device" > /dev/null 2>&1 || pvcreate -- "$device" < /dev/null
            vgcreate -- "$2" "$device"
        """
        command = Command.script(script, self.device, self.name, self.identity).within(600)
        values = {"device": self.device, "name": self.name}
        typed = "pvcreate {device}\nvgcreate {name} {device}"
        once = f"vgs {{name}} > /dev/null 2>&1 || {{\n{typed}\n}}"
        command = command.typed_as(typed, **values).scripted_as(once, **values)
        return (command.refusing({ANOTHER_DISK: another_disk(self.device)}),)


@dataclass(frozen=True)
class Volume(Resource):
    """A logical volume of at least this size (MiB), ``/dev/GROUP/NAME``; with ``swap`` swap space.

    One that is there is never made anew. It grows, with its ext4, while no guest uses it.
    """

    group: str
    name: str
    size_mib: int
    swap: bool = False

    @property
    def device(self) -> str:
        """Where dom0 has it."""
        return f"/dev/{self.group}/{self.name}"

    def probe(self, host: Host) -> Difference | None:
        """Whether it is missing, not active or no swap; raises StepFailed where it must not be."""
        script = f"""
            lvs --noheadings --nosuffix --units b -o lv_size -- "$1" 2> /dev/null || exit 44
            [ -e "$1" ] && echo active || echo -
            blkid -p -s TYPE -s PTTYPE -o value -- "$1" || :
            echo --
            {GROW}
            [ ! -e "$1" ] || look_at "$(readlink -f -- "$1")"
        """
        found = host.look(Command.script(script, self.device), absent=(44, NO_PROGRAM))
        if found is None:
            return Difference(f"make the volume {self.device} of {in_extents(self.size_mib)} MiB")
        said, _, filled = found.stdout.partition("--\n")
        size, active, *kinds = said.split()
        # an lvm that activates nothing shows no device
        filled = filled or f"{size} 0 0 0"
        grown = grows(f"the volume {self.device}", filled, in_extents(self.size_mib))
        if grown is not None and not grown.stays:
            return grown
        if active != "active":
            return Difference(f"activate the volume {self.device}")
        if self.swap and kinds and kinds != ["swap"]:
            raise StepFailed(
                f"cannot make {self.device} swap space: because it holds {' '.join(kinds)}",
                hint="look what that is, and remove it if nobody needs it: wipefs -a",
            )
        if self.swap and not kinds:
            return Difference(f"make swap space on {self.device}")
        return grown

    def commands(self) -> tuple[Command, ...]:
        """Make or grow it, activate it, and write swap's signature if it is blank."""
        script = f"""
            {GROW}
            bytes() {{ lvs --noheadings --nosuffix --units b -o lv_size -- "$1"; }}
            lvs -- "$1/$2" > /dev/null 2>&1 \\
                || lvcreate --yes --wipesignatures y -n "$2" -L "$3m" -- "$1"
            lvchange -a y -- "$1/$2"
            if command -v udevadm > /dev/null; then udevadm settle; fi
            device=$(readlink -f -- "/dev/$1/$2") || device=/dev/$1/$2
            anew=
            if [ "$(bytes "$1/$2")" -lt $(($3 << 20)) ]; then
                [ ! -e "$device" ] || (unused "$device")
                lvextend -L "$3m" -- "$1/$2"
                anew=$4
            fi
            if [ -n "$4" ] && {{ [ -n "$anew" ] || ! blkid -p -- "$device"; }}; then
                mkswap -- "$device"
            elif [ -z "$4" ] && [ -e "$device" ]; then
                if (unused "$device"); then grow_ext4 "$device"; fi
            fi
        """
        words = (self.group, self.name, self.size_mib, "swap" if self.swap else "")
        values = {"group": self.group, "name": self.name, "size": f"{self.size_mib}m"}
        typed = "lvcreate -n {name} -L {size} {group}" + "\nmkswap {device}" * self.swap
        once = f"[ -e {{device}} ] || {{\n{typed}\n}}"
        values |= {"device": self.device}
        command = Command.script(script, *words).within(600)
        command = command.refusing(busy(f"the volume {self.device}"))
        return (command.typed_as(typed, **values).scripted_as(once, **values),)


# Files over NFS: what a server exports, and what its clients have mounted (howto: „NFS“).

FSTAB = "/etc/fstab"
MOUNT_SECONDS = 300.0
WAIT_SECONDS = 15
"""How long clients wait after a restart of the server before they go on."""


class Export(NamedTuple):
    """A line of ``exportfs -s``: what is exported now, to whom, and how."""

    path: str
    client: str
    options: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Exported(Resource):
    """What the files in /etc/exports.d say is exported now (exportfs(8)), to this network alone.

    ``options`` is how: words of exports(5), with commas. Nothing is exported that no file names.
    """

    paths: tuple[str, ...]
    network: str
    options: str

    def probe(self, host: Host) -> Difference | None:
        """Which paths are not exported so, or are to somebody else, or still are."""
        script = """
            exportfs -s
            printf '\\nfiles:\\n'
            cat /etc/exports /etc/exports.d/*.exports 2> /dev/null || :
        """
        result = host.look(Command.script(script), absent=(NO_PROGRAM,))
        now, _, files = (result.stdout if result else "").partition("\nfiles:\n")
        found = parse_exports(now)
        named = {line.split()[0] for line in files.splitlines() if line.strip()}
        wanted = frozenset(self.options.split(","))
        right = {each.path for each in found if each.client == self.network}
        right -= {each.path for each in found if not wanted <= each.options}
        missing = [path for path in self.paths if path not in right]
        strangers = [
            f"{each.path} to {each.client}"
            for each in found
            if each.client != self.network or each.path not in named
        ]
        if not missing and not strangers:
            return None
        how = f" ({self.options})"
        words = [f"export {', '.join(missing)} to {self.network}{how}"] if missing else []
        words += [f"export no more: {', '.join(strangers)}"] if strangers else []
        return Difference("; ".join(words))

    def commands(self) -> tuple[Command, ...]:
        """Have the export files read again."""
        return (Command("exportfs -ra").within(MOUNT_SECONDS),)


def server_settings(address: str) -> File:
    """nfs.conf(5): NFS 4 alone, on this address alone."""
    values = {"address": address, "seconds": WAIT_SECONDS}
    return File("/etc/nfs.conf.d/xenlab.conf", template="nfs.conf", values=values)


@dataclass(frozen=True)
class ServedOn(Resource):
    """The server works as `server_settings` say; else ``restart`` makes it read them.

    What the kernel says of it counts (nfsd(7)): ``kernel`` is where.
    """

    address: str
    restart: Command
    kernel: str = "/proc/fs/nfsd"

    def probe(self, host: Host) -> Difference | None:
        """Where it listens now, which versions it speaks, how long clients wait."""
        script = """
            ss --no-header --tcp --listening --numeric 'sport = :2049' | sed 's/^/listens /'
            for file in versions nfsv4gracetime nfsv4leasetime; do
                [ ! -r "$1/$file" ] || printf '%s %s\\n' "$file" "$(cat -- "$1/$file")"
            done
        """
        result = host.run(Command.script(script, self.kernel), check=False)
        lines = [line.split() for line in result.stdout.splitlines()]
        found = [words[4].rpartition(":")[0] for words in lines if words[0] == "listens"]
        if not result.ok or found != [self.address]:
            now = ", ".join(found) or "nowhere"
            return Difference(f"serve on {self.address}; now on {now}")
        said = {words[0]: words[1:] for words in lines}
        old = sorted({"+2", "+3"} & set(said.get("versions", [])))
        if old:
            return Difference(f"serve NFS 4 alone; now {' '.join(old)} as well")
        times = {name: words for name, words in said.items() if name.endswith("time")}
        if any(words != [str(WAIT_SECONDS)] for words in times.values()):
            now = ", ".join(f"{name} {' '.join(words)}" for name, words in times.items())
            return Difference(f"let clients wait {WAIT_SECONDS} s; now {now}")
        return None

    def commands(self) -> tuple[Command, ...]:
        """Start it anew."""
        return (self.restart.within(MOUNT_SECONDS),)


def parse_exports(text: str) -> list[Export]:
    """What ``exportfs -s`` lists."""
    found = []
    for line in text.splitlines():
        path, _, rest = line.partition(" ")
        client, _, options = rest.strip().partition("(")
        if path and client:
            named = frozenset(options.rstrip(")").split(","))
            # exportfs lists no_subtree_check alone, and where that is not, the other one holds
            other = () if "no_subtree_check" in named else ("subtree_check",)
            found.append(Export(path, client, named.union(other)))
    return found


@dataclass(frozen=True)
class NfsMount(Resource):
    """Something of a server's, mounted now and at every boot by a line in /etc/fstab.

    ``source`` is ``server:/path``; ``options`` are those of nfs(5) and systemd.mount(5).
    """

    source: str
    path: str
    options: str

    @property
    def line(self) -> str:
        """The line in /etc/fstab."""
        fields = (self.source, self.path, "nfs4", self.options, "0", "0")
        return "\t".join(fstab(field) for field in fields)

    def probe(self, host: Host) -> Difference | None:
        """Whether the line or the mount is missing, or that is writable and should not be."""
        script = """
            grep -qxF -- "$1" /etc/fstab || exit 44
            [ "$(findmnt -n -o SOURCE -- "$2")" = "$3" ] || exit 45
            [ -z "$(findmnt -n -o TARGET -O "no$4" -- "$2")" ] || exit 45
        """
        command = Command.script(script, self.line, self.path, self.source, self._access)
        if host.look(command, absent=(2, 44, 45)):
            return None
        return Difference(f"mount {self.source} on {self.path}", f"+{self.line}\n")

    def commands(self) -> tuple[Command, ...]:
        """The line in /etc/fstab, the folder, the mount."""
        return (
            Command.sh("echo {line} >> {fstab}", line=self.line, fstab=FSTAB),
            Command.argv("mount", self.path),
        )

    def apply(self, host: Host, report: Report) -> None:
        """Put the line in the place of another one for that path, then mount it."""
        report(f"mounting {self.path}")
        host.write(FSTAB, with_entry(host.read(FSTAB) or "", fstab(self.path), self.line))
        # systemd learns of the line at the next boot, and of the mount at once
        script = """
            path=$1 source=$2 access=$3
            now=$(findmnt -n -o SOURCE -- "$path" || :)
            [ -z "$now" ] || [ "$now" = "$source" ] || umount -- "$path"
            if [ "$now" = "$source" ]; then
                mount -o "remount,$access" -- "$path"
            else
                mount -- "$path"
            fi
        """
        command = Command.script(script, self.path, self.source, self._access)
        host.run(command, timeout=MOUNT_SECONDS)

    @property
    def _access(self) -> str:
        """Whether it can be written to: ro or rw."""
        return "ro" if "ro" in self.options.split(",") else "rw"


def with_entry(text: str, path: str, line: str) -> str:
    """The text of fstab(5) with this line for a path, at its end; all other lines stay."""
    lines = re.findall(r"[^\n]*\n|[^\n]+", text)
    others = "".join(each for each in lines if each.startswith("#") or each.split()[1:2] != [path])
    return others + ("\n" if others and not others.endswith("\n") else "") + f"{line}\n"


@dataclass(frozen=True)
class ListensOnlyOn(Check):
    """A condition: nobody listens for TCP but on loopback, on these addresses, or on these ports.

    Ports are those that may be reached over any address.
    """

    addresses: tuple[str, ...]
    ports: tuple[str, ...]

    def probe(self, host: Host) -> Difference | None:
        """A table of the listeners that the outside can reach."""
        result = host.run("ss --no-header --tcp --listening --numeric --processes", check=False)
        if not result.ok:
            return Difference("nobody can say yet who listens")
        rows = []
        for line in result.stdout.splitlines():
            words = line.split()
            address, _, port = words[3].rpartition(":")
            plain = address.strip("[]").partition("%")[0]
            local = plain.startswith("127.") or plain == "::1"
            if not local and plain not in self.addresses and port not in self.ports:
                rows.append({"address": address, "port": port, "who": " ".join(words[5:])})
        return (
            Difference("the outside reaches more than it should", rows=tuple(rows))
            if rows
            else None
        )
