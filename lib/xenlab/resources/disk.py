"""The site's own disk: its partition table, its file systems, which one a system runs from."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from xenlab.command import MACHINE, Command
from xenlab.errors import BadInput, CommandFailed, StepFailed
from xenlab.host import NO_PROGRAM, RECEIVE, Host, size_and_digest
from xenlab.resources.base import Difference, Made, Report, Resource, Said, made_on
from xenlab.resources.blockdevices import (
    ANOTHER_DISK,
    GROW,
    LOOK,
    NO_DEVICE,
    SAME_DISK,
    SECTION,
    WHEN_DOWN,
    Devices,
    absent,
    another_disk,
    content,
    look,
    parse,
    parse_filled,
    refuse_twins,
    sections,
)
from xenlab.site.disk_plan import (
    ARRAYS,
    LINUX_RAID,
    Changes,
    Partition,
    Table,
    There,
    changes,
    number_of,
    numbers,
    parse_table,
    partition_path,
)

# The partitions of the site's own disk: which one a system runs from, by which UUID it is named.
#
# A name of a partition is no identity: last year's disk has the same ones. So commands use
# partitions by disk and number, and what is read at boot names them by PARTUUID, read from that
# disk's table; so is the number, for a name.

INSTALLED_ROOT = "/mnt/dom0"
ROOT_PARTITION = "dom0root"


def by_uuid(uuid: str) -> str:
    """The device of a partition by its UUID, whichever name the disk has at this boot."""
    return f"/dev/disk/by-partuuid/{uuid}"


def installed_root(host: Host, device: str) -> str:
    """Where the installed system's root is: ``/`` once its partition was booted, else a mount.

    Raises StepFailed where the system that runs is such an installed one, from another disk.
    """
    script = """
        mine=$(mountpoint -d /)
        if [ "$mine" = "$(mountpoint -x "$1" 2> /dev/null)" ]; then echo own; exit 0; fi
        sed -n 's/^DEVNAME=//p; s/^PARTNAME=//p' "/sys/dev/block/$mine/uevent" 2> /dev/null || :
    """
    lines = host.inside("/").run(Command.script(script, device)).stdout.splitlines()
    if lines[1:] == [ROOT_PARTITION]:
        raise StepFailed(
            f"cannot work on {device}: because the machine runs from /dev/{lines[0]}, another "
            f"partition {ROOT_PARTITION}: another disk has the names of the site's disk",
            where=host.name,
            hint="name the disk by what stays the same (disk: /dev/disk/by-id/…), boot a rescue "
            "system, or take the other disk out",
        )
    return "/" if lines == ["own"] else INSTALLED_ROOT


RAID_MEMBER = "linux_raid_member"
"""What blkid calls a half of an array."""

_NO_TABLE = "does not contain a recognized partition table"

_TABLE = f"""
[ -e "$1" ] || exit {NO_DEVICE}
LC_ALL=C sfdisk --json -- "$1"
"""


def partition_numbers(host: Host, disk: str) -> dict[str, int]:
    """The numbers of the partitions on this very disk, by their names.

    None where it has no table that xenlab made: its partitions will have those of the plan.
    """
    none = (1, NO_DEVICE, NO_PROGRAM)
    found = host.inside("/").look(Command.script(_TABLE, disk), absent=none)
    table = numbers(parse_table(json.loads(found.stdout)["partitiontable"])) if found else {}
    return table if ROOT_PARTITION in table else {}


@dataclass(frozen=True)
class OnPartitions(Resource):
    """A state that can be put into words once a disk's partitions are made: it names their UUIDs.

    ``made`` gets the UUID of each partition by its name, or with ``arrays`` that of the array which
    it is a member of; ``names`` are those that it asks for. Refused where another disk is a copy.
    """

    disk: str
    names: tuple[str, ...]
    made: Callable[[Mapping[str, str]], Resource] = field(compare=False)
    summary: str = ""
    arrays: bool = False

    def probe(self, host: Host) -> Difference | None:
        """The state's difference, or that the partitions are not made yet."""
        uuids = self._uuids(host)
        if not uuids:
            return Difference(f"{self.summary}, once {self.disk} has its partitions")
        return self.made(uuids).probe(host)

    def commands(self) -> tuple[Command, ...]:
        """Those of the state, with words in the place of UUIDs that nobody knows before a look."""
        return self.made({name: f"UUID-of-{name}" for name in self.names}).commands()

    def apply(self, host: Host, report: Report) -> None:
        """Bring the state about; raises StepFailed where a partition is missing."""
        uuids = self._uuids(host)
        if not uuids:
            raise StepFailed(
                f"cannot tell the UUIDs: because {self.disk} has not the site's partitions",
                hint="run chapter 01_partitions",
            )
        self.made(uuids).apply(host, report)

    def _uuids(self, host: Host) -> dict[str, str]:
        found = look(host, self.disk)
        refuse_twins(found)
        parts = found.device.parts if found.device else ()
        uuids = {part.name: part.uuid for part in parts if part.uuid}
        if self.arrays:
            uuids = {p.name: p.system_uuid for p in parts if p.system == RAID_MEMBER}
        return uuids if uuids.keys() >= set(self.names) else {}


# Arrays of the partitions of two disks: mdadm(8).

# Each disk's partition is found by its name: the two tables need not have the same numbers.
_MEMBERS = f"""
name=$1 array=/dev/md/$1
member() {{ # DISK
    disk=$(readlink -f -- "$1")
    number=$(partx -g -r -o NR,TYPE,NAME -- "$disk" | sed -n "s/ {LINUX_RAID} $name\\$//Ip")
    [ -n "$number" ] || exit {NO_DEVICE}
    case $disk in *[0-9]) disk=${{disk}}p ;; esac
    echo "$disk$number"
}}
first=$(member "$2") && second=$(member "$3") || exit {NO_DEVICE}
md=$(readlink -f -- "$array") || md=$array
state() {{ # MEMBER: what is on it, its array's UUID, whether it is in this array
    kind=$(blkid -p -s TYPE -s PTTYPE -o value -- "$1" | tr '\\n' +)
    uuid=$(blkid -p -s UUID -o value -- "$1") || [ $? = 2 ]
    within=$(cat "/sys/class/block/${{md##*/}}/md/dev-${{1##*/}}/state" 2> /dev/null) || within=no
    case $within in *faulty*) within=no ;; no) ;; *) within=yes ;; esac
    kind=${{kind%+}}
    echo "${{kind:-nothing}} ${{uuid:-none}} $within"
}}
"""

_NOT_EMPTY = 47


@dataclass(frozen=True)
class Mirror(Resource):
    """An array (RAID 1) of the partitions of this name on two disks: ``/dev/md/NAME``.

    One that is there is assembled, and never made anew. A new one is made of partitions on which
    there is nothing, so that it asks for no consent. ``numbers`` are those that the partitions get.
    """

    disks: tuple[str, str]
    name: str
    numbers: tuple[int, int] = field(compare=False)

    @property
    def device(self) -> str:
        """Where it is, in any system that assembles it."""
        return f"{ARRAYS}/{self.name}"

    def probe(self, host: Host) -> Difference | None:
        """Whether it is missing, not assembled, or without one of both.

        Raises StepFailed where what is there is something else.
        """
        script = f"""
            {_MEMBERS}
            state "$first"
            state "$second"
        """
        command = Command.script(script, self.name, *self.disks)
        found = host.inside("/").look(command, absent=(NO_DEVICE, NO_PROGRAM))
        states = [line.split() for line in found.stdout.splitlines()] if found else []
        if not states:
            return Difference(f"make {self.device} of both disks' {self.name}")
        return self._compare(states)

    def _compare(self, states: list[list[str]]) -> Difference | None:
        (kind, uuid, here), (other_kind, other_uuid, there) = states
        alike = kind == other_kind and uuid == other_uuid
        if here == there == "yes":
            return None
        lost = kind if here == "no" else other_kind
        if here != there and (alike or lost == "nothing"):
            disk = self.disks[here == "yes"]
            what = f"add {disk}'s {self.name} to {self.device} again"
            hint = f"look at {disk} (dmesg, smartctl -a); if it is well, or new, run this step"
            return Difference(what, hint=hint)
        if here == there and alike and kind in ("nothing", RAID_MEMBER):
            make = f"make {self.device} of both disks' {self.name}"
            return Difference(make if kind == "nothing" else f"assemble {self.device}")
        raise StepFailed(
            f"cannot make {self.device}: because the partitions {self.name} of "
            f"{' and '.join(self.disks)} are no halves of one array: they hold {kind} and "
            f"{other_kind}",
            hint="look what is there (lsblk -f, mdadm --examine), then empty one (wipefs -a)",
        )

    def commands(self) -> tuple[Command, ...]:
        """Make it, assemble it, or add what it is without."""
        options = "--run --level=1 --raid-devices=2 --metadata=1.2 --data-offset=1M"
        options = f"--homehost=any {options} --bitmap=internal"
        script = f"""
            {_MEMBERS}
            add() {{
                # one that failed is still there, in name
                mdadm "$array" --remove failed
                mdadm "$array" --add "$1"
            }}
            set -- $(state "$first") $(state "$second")
            case "$3 $6 $1 $4 $([ "$2" != "$5" ] || echo alike)" in
                "no no nothing nothing alike")
                    mdadm --create "$array" --name="$name" {options} "$first" "$second" ;;
                "yes no "*" nothing " | "yes no "*" alike") add "$second" ;;
                "no yes nothing "* | "no yes "*" alike") add "$first" ;;
                "no no {RAID_MEMBER} {RAID_MEMBER} alike")
                    # whoever found the halves may have given it another name
                    for held in "/sys/class/block/${{first##*/}}"/holders/md*; do
                        [ ! -e "$held" ] || mdadm --stop "/dev/${{held##*/}}"
                    done
                    mdadm --assemble "$array" --homehost=any "$first" "$second" ;;
                *) exit {_NOT_EMPTY} ;;
            esac
            if command -v udevadm > /dev/null; then udevadm settle; fi
        """
        one, two = map(partition_path, self.disks, self.numbers)
        values = {"array": self.device, "name": self.name, "one": one, "two": two}
        typed = f"mdadm --create {{array}} --name={{name}} {options} {{one}} {{two}}"
        once = f"[ -e {{array}} ] || mdadm --assemble {{array}} {{one}} {{two}} || {typed}"
        command = Command.script(script, self.name, *self.disks).typed_as(typed, **values)
        holds = (f"cannot make {self.device}: because a partition is not empty", "run it again")
        no_device = f"cannot make {self.device}: because a disk has no partition {self.name}"
        refusals = {_NOT_EMPTY: holds, NO_DEVICE: (no_device, "run chapter 01_partitions")}
        command = command.scripted_as(once, **values).within(300).at(MACHINE)
        return (command.refusing(refusals),)


# A disk's partition table, and the file systems on its partitions.
#
# A block device belongs to the machine, so these look at the machine itself even where the host
# they are given is a root directory on it. An image file is as good as a block device.

_MAKERS = {
    "ext4": ("mkfs.ext4", "-q", "-L"),
    "swap": ("mkswap", "-L"),
    "vfat": ("mkfs.vfat", "-F", "32", "-n"),
}
"""What makes a file system; the last word is the option for its label."""
_MAKE_SECONDS = 1800.0


@dataclass(frozen=True)
class PartitionTable(Resource):
    """A disk whose GPT has these partitions (howto: Partitionen; sfdisk(8)).

    Applying it wipes the disk; `by_difference` keeps what is there. ``identity`` is the disk's to
    whose wiping somebody has consented; ``why`` says why nothing less than that will do.
    """

    disk: str
    partitions: tuple[Partition, ...]
    why: str = field(default="", compare=False)
    identity: str = field(default="", compare=False, repr=False)

    def wipes(self) -> str:
        """The disk."""
        return self.disk

    def destroys(self, host: Host) -> tuple[Made, ...]:
        """dom0 and every guest on the disk, also those that the site no longer names."""
        return made_on(look(host, self.disk))

    def consented(self, identity: str, lost: tuple[Made, ...] = ()) -> PartitionTable:
        """The same for a disk with this identity."""
        return replace(self, identity=identity)

    def probe(self, host: Host) -> Difference | None:
        """A table of the partitions that are missing, too small, or of another type.

        It says what is on those that are there now. Raises BadInput where there is no such disk.
        """
        table, devices = self._look(host)
        return self.compare(table, devices)

    def _look(self, host: Host) -> tuple[Table, Devices]:
        machine = host.inside("/")
        script = f"{LOOK}\necho '{SECTION}table'\n{_TABLE}"
        result = machine.run(Command.script(script, self.disk), check=False)
        if result.status == NO_DEVICE:
            raise absent(self.disk, parse(result.stdout), host)
        if not result.ok and _NO_TABLE not in result.stderr:
            raise CommandFailed(result)
        text = sections(result.stdout)["table"]
        table = parse_table(json.loads(text)["partitiontable"]) if result.ok else Table()
        return table, parse(result.stdout)

    def compare(self, table: Table, devices: Devices | None = None) -> Difference | None:
        """The difference to a disk's table; more, or larger, partitions are none."""
        found = {part.name: part for part in reversed(table.parts)}
        rows = [self._row(found.get(each.name), each, table.mib) for each in self.partitions]
        if table.label == "gpt" and all(row["same"] == "yes" for row in rows):
            return None
        names = {each.name for each in self.partitions}
        rows += [self._row(p, None, table.mib) for p in table.parts if p.name not in names]
        disk = devices.device if devices else None
        parts = {number_of(part.path): part for part in disk.parts} if disk else {}
        for row in rows:
            part = parts.get(int(row["number"] or 0))
            row |= {"device": part.path, "lost": content(part)} if part else {}
        if disk and disk.system:
            whole = {"number": "none", "device": disk.path, "wanted": "none", "same": "no"}
            rows.insert(0, {**whole, "found": disk.system, "lost": content(disk)})
        what = f"partition {self.disk} (GPT, {len(self.partitions)} partitions)"
        return Difference(f"{what}: {self.why}" if self.why else what, rows=tuple(rows))

    @staticmethod
    def _row(now: There | None, then: Partition | None, mib: int) -> dict[str, str]:
        same = now and then and now.kind == then.kind and now.size >= then.needed_mib * mib
        return {
            "number": str(now.number) if now else "",
            "device": "",
            "wanted": f"{then.name}, {_size(then.size_mib)}" if then else "none",
            "found": f"{now.name or 'without a name'}, {now.size / mib:.0f} MiB" if now else "none",
            "same": "yes" if same else "no",
            "lost": "",
        }

    def by_difference(self, host: Host) -> tuple[Resource, ...]:
        """What makes the table hold these and leaves all that is there where it is.

        What cannot be done so is refused with the reason on a disk that is in use, and else is
        this very table: it asks for a consent that names what is lost.
        """
        table, devices = self._look(host)
        found = changes(self.partitions, table)
        used = devices.device is not None and devices.device.used
        if found.refused and not used:
            return (replace(self, why="; ".join(found.refused)),)
        kept = Said(Difference("", stays="; ".join(found.kept))) if found.kept else None
        todo: Resource = self
        if found.refused:
            todo = Said(
                Difference(
                    f"cannot change the table of {self.disk}: because {'; '.join(found.refused)}, "
                    "and no partition is moved",
                    hint="lower the sizes (*_mib) or the guests in the site's file. Guests' disks "
                    "grow with guest_disks: lvm; a disk is made anew only from a rescue system",
                )
            )
        elif found.grown or found.added:
            todo = PartitionsChanged(self, found, table.guid)
        return (todo, kept) if kept else (todo,)

    def script(self) -> str:
        """The table as a script for sfdisk."""
        lines = ["label: gpt", "first-lba: 2048", ""]
        for partition in self.partitions:
            size = f"size={partition.size_mib}MiB, " if partition.size_mib else ""
            lines.append(f'name="{partition.name}", {size}type={partition.kind}')
        return "\n".join(lines) + "\n"

    def commands(self) -> tuple[Command, ...]:
        """Write the table and wipe old signatures; sfdisk refuses a disk that is in use.

        A GPT's own GUID stays: a disk without a serial is known by it.
        """
        table = self.script().encode()
        script = f"""
            {RECEIVE}
            {SAME_DISK}
            table=$(mktemp)
            trap 'rm -f -- "$table"' EXIT
            receive "$table" "$3" "$4"
            disk=$(readlink -f -- "$1")
            same_disk "$disk" "$2"
            guid=$(blkid -p -s PTUUID -o value -- "$disk" || :)
            case $guid in
                *-*) keep() {{ printf 'label-id: %s\\n' "$guid"; }} ;;
                *) keep() {{ :; }} ;;
            esac
            {{ keep; cat -- "$table"; }} \\
                | sfdisk --quiet --wipe always --wipe-partitions always -- "$disk"
            if command -v udevadm > /dev/null; then udevadm settle; fi
        """
        command = Command.script(script, self.disk, self.identity, *size_and_digest(table))
        typed = f"sfdisk --wipe always {{disk}} <<'END'\n{self.script()}END"
        command = command.typed_as(typed, disk=self.disk).given(table).within(300).at(MACHINE)
        return (command.refusing({ANOTHER_DISK: another_disk(self.disk)}),)


# The kernel is told of the one partition: it would not read the whole table of a disk in use.
_TELL = """
tell() { # HOW NUMBER
    [ ! -b "$disk" ] || partx "--$1" --nr "$2" -- "$disk"
    if command -v udevadm > /dev/null; then udevadm settle; fi
}
disk=$(readlink -f -- "$1")
"""

_WRITE = "sfdisk --quiet --no-reread --no-tell-kernel --wipe never --wipe-partitions"


@dataclass(frozen=True)
class PartitionsChanged(Resource):
    """Partitions of a table grown and added, as `changes` found it; no other one is touched.

    ``guid`` is that of the table which was looked at.
    """

    table: PartitionTable
    changes: Changes
    guid: str

    def probe(self, host: Host) -> Difference | None:
        """What the table differs in."""
        found = self.table.probe(host)
        if found is None:
            return None
        words = [f"grow {each.name}" for each in self.changes.grown]
        words += [f"add {each.name}" for each in self.changes.added]
        lost = ({**row, "lost": ""} for row in found.rows)
        return Difference(f"{', '.join(words)} on {self.table.disk}", rows=tuple(lost))

    def commands(self) -> tuple[Command, ...]:
        """Write the entry of each, and tell the kernel of it: the disk may be in use."""
        grown = [self._written("update", part) for part in self.changes.grown]
        return (*grown, *(self._written("add", part) for part in self.changes.added))

    def verify(self, host: Host) -> None:
        """Raise StepFailed unless the table holds what it must."""
        self.table.verify(host)

    def _written(self, how: str, part: There) -> Command:
        entry, options = f"start={part.start}, size={part.size}", f"never -N {part.number}"
        if how == "add":
            entry = f'part{part.number} : {entry}, name="{part.name}", type={part.kind}'
            options = "always --append"
        script = f"""
            {_TELL}
            [ "$(sfdisk --disk-id -- "$disk")" = "$2" ] || exit {ANOTHER_DISK}
            printf '%s\\n' "$3" | {_WRITE} {options} -- "$disk"
            tell {how} {part.number}
        """
        disk = self.table.disk
        typed = f"{_WRITE} {options} {{disk}} <<'END'\n{entry}\nEND"
        typed += f"\npartx --{how} --nr {part.number} {{disk}}"
        other = f"cannot change {disk}: because its table is not the one that was looked at"
        command = Command.script(script, disk, self.guid, entry).typed_as(typed, disk=disk)
        refusals = {ANOTHER_DISK: (other, "look at the disks (lsblk)")}
        return command.within(300).at(MACHINE).refusing(refusals)


@dataclass(frozen=True)
class Filesystem(Resource):
    """A file system of this kind (ext4, swap, vfat) with this label. Applying it wipes the device.

    ``identity`` is that of the disk on which somebody has consented to it.
    """

    device: str
    label: str
    kind: str = "ext4"
    options: tuple[str, ...] = ()
    identity: str = field(default="", compare=False, repr=False)

    def __post_init__(self) -> None:
        if not 0 < len(self.label.encode()) <= 16:
            raise BadInput(
                f"cannot label a file system {self.label!r}: because that is too long, or empty",
                hint="use 1 to 16 letters",
            )

    def wipes(self) -> str:
        """The device."""
        return self.device

    def destroys(self, host: Host) -> tuple[Made, ...]:
        """Whose file system is there now."""
        return made_on(look(host, self.device))

    def consented(self, identity: str, lost: tuple[Made, ...] = ()) -> Filesystem:
        """The same on a disk with this identity."""
        return replace(self, identity=identity)

    def probe(self, host: Host) -> Difference | None:
        """Whether another kind or label is there, or nothing; and what would be lost."""
        # blkid's own cache would answer with what was there before
        script = '[ -e "$1" ] || exit 44; blkid -p -o export -- "$1"'
        result = host.inside("/").run(Command.script(script, self.device), check=False)
        if result.status not in (0, 2, 8, NO_DEVICE):
            raise CommandFailed(result)
        difference = self.compare(result.stdout)
        if difference is None or not result.stdout:
            return difference
        device = look(host, self.device).device
        lost = content(device) if device else ""
        return replace(difference, rows=({"device": self.device, "lost": lost},) if lost else ())

    def compare(self, export: str) -> Difference | None:
        """The difference to what ``blkid -p -o export`` says of the device ("": nothing)."""
        now = dict(line.split("=", 1) for line in export.splitlines() if "=" in line)
        kind, label = now.get("TYPE", ""), now.get("LABEL", "")
        if (kind, label) == (self.kind, self.label):
            return None
        there = f", where {kind} “{label}” is now" if kind else ""
        return Difference(f"make {self.kind} “{self.label}” on {self.device}{there}")

    def commands(self) -> tuple[Command, ...]:
        """Make it; the tools refuse a device that is mounted or otherwise in use."""
        script = f"""
            {SAME_DISK}
            [ -e "$1" ] || exit {NO_DEVICE}
            device=$(readlink -f -- "$1")
            same_disk "$device" "$2"
            shift 2
            "$@" -- "$device"
        """
        *maker, labelled = _MAKERS[self.kind]
        maker += [*self.options, labelled, self.label]
        command = Command.script(script, self.device, self.identity, *maker).within(_MAKE_SECONDS)
        refusals = {
            NO_DEVICE: (
                f"cannot make a file system: because there is no device {self.device}",
                "run chapter 01_partitions, or correct disk",
            ),
            ANOTHER_DISK: another_disk(self.device),
        }
        typed = command.typed_as("{maker} {device}", maker=maker, device=self.device)
        return (typed.at(MACHINE).refusing(refusals),)


@dataclass(frozen=True)
class Grown(Resource):
    """An ext4 that fills its device; it grows while dom0 has it mounted, not while a guest has."""

    device: str
    label: str

    def probe(self, host: Host) -> Difference | None:
        """Whether it is smaller than its device; None where there is none yet."""
        script = f"""
            [ -b "$1" ] || exit {NO_DEVICE}
            {GROW}
            look_at "$(readlink -f -- "$1")"
        """
        machine = host.inside("/")
        result = machine.look(Command.script(script, self.device), absent=(NO_DEVICE,))
        found = parse_filled(result.stdout) if result else None
        if found is None or not found.behind:
            return None
        what = f"grow ext4 “{self.label}” to the {found.mib} MiB of {self.device}"
        return Difference(what, stays=f"{what}: {WHEN_DOWN}" if found.used else "")

    def commands(self) -> tuple[Command, ...]:
        """Grow it to the end of its device."""
        script = f"""
            {GROW}
            grow_ext4 "$(readlink -f -- "$1")"
        """
        command = Command.script(script, self.device).within(_MAKE_SECONDS).at(MACHINE)
        return (command.typed_as("resize2fs {device}", device=self.device),)


def _size(mib: float) -> str:
    return f"{mib:.0f} MiB" if mib else "what is left"
