"""A guest's root as it is made from dom0, and the one way into it that dom0 takes."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace

from xenlab.command import SAID, Command
from xenlab.errors import StepFailed
from xenlab.host import RECEIVE, Host, size_and_digest
from xenlab.resources.archive import UNPACK_SECONDS, UNTAR
from xenlab.resources.base import Difference, Made, Report, Resource, text_difference
from xenlab.resources.below import REFUSED
from xenlab.resources.blockdevices import (
    ANOTHER_DISK,
    IN_USE,
    MOUNTED,
    NO_DEVICE,
    SAME_DISK,
    USED,
    another_disk,
    content,
    look,
)
from xenlab.resources.files import File, Symlink, packaged
from xenlab.transport.keys import public_keys
from xenlab.transport.ssh_config import Target, resolve

# The one way into a guest's root, which dom0 mounts and works in as root, and nobody trusts.
#
# From the day it first ran, a guest says what each name in its root is: a link into dom0 (absolute
# or with ``..``), a device node, a pipe, a program with a suid bit, a path that leads out of /usr.
# So:
#
# - it is mounted where no other process sees it, in a mount namespace that ends with the work, as
#   ext4 whatever it claims to be, ``nosuid,nodev,noexec``; an error in it is no panic of dom0's;
# - never while a domain has the device, or two processes want it;
# - what is read or written in it goes through `xenlab.resources.below`, which dom0's own python3
#   runs (Xen's tools and Portage need it, so it is there on every dom0). It changes its root first:
#   the kernel resolves every path below that. A chroot holds only who executes nothing of what lies
#   inside, so it neither loads nor starts anything. A shell in the chroot would be the guest's own;
# - a path that a guest reported is looked at (`xenlab.resources.shared_usr`) even before that;
# - a root that was just made, or is seen to be empty, holds no names: an image is unpacked into it
#   by dom0's tar. Where only that is asked, of a guest that may run, debugfs lists the names at the
#   top of a file system that nobody mounts.
#
# A script finds ``$name``, ``$device``, ``$records`` (dom0's folder of records of this guest) and
# ``$scratch`` (gone when it ends), and the values of `InGuestRoot.in_namespace` as ``$1`` and so
# on. Between ``enter`` and ``leave`` it says ``guest VERB WORDS…``.

RECORDS = "/var/lib/xenlab/guests"
OPTIONS = "nosuid,nodev,noexec"
"""What a mount of anything that a guest made has."""

_REASONS = {
    41: ("another process is working on this guest", "wait for its end, or end it"),
    USED: ("a running domain uses {device}", "shut the guest down first: xl shutdown -ww {name}"),
    MOUNTED: ("{device} is mounted", "unmount it"),
    NO_DEVICE: ("there is no device {device}", "run chapter 01_partitions"),
    45: ("there is no image {value} with its checksum beside it", "run chapter 06_imaging"),
    46: ("xenstore does not answer: nobody knows whether the guest runs", "check the service xen"),
    47: ("{device} holds no completely unpacked root", "unpack the image first"),
    48: (
        "the guest's root has no poweroff program, so it could never be shut down",
        "install the init system into the image (Debian: systemd-sysv)",
    ),
    49: (
        "{name} has no /usr of its own any more, so it cannot get it back",
        "leave it in shared_usr, or let chapter 09 make its root anew: --destroy {name}",
    ),
    50: (
        "the /bin of {name} lies in its /usr, without which nothing of it would start",
        "this is for a split layout; on a merged one /usr is mounted before the first process",
    ),
    51: (
        "nobody has asked {name} yet what its boot needs of /usr, and it does not run",
        "start it, then run the step again",
    ),
    52: (
        "{device} holds files of {name} that nobody agreed to lose; nothing was destroyed",
        "run the step again: it says what to agree to",
    ),
    55: ("dom0 has no python3", "install it: Xen's tools need it as well"),
    56: (
        "the /usr or the /usr.old of {name} is not the folder that it should be",
        "look at them in the guest, or let chapter 09 make its root anew: --destroy {name}",
    ),
    57: ("the new root does not take what {name} keeps", "move .kept away from its record in dom0"),
}

# The lock tells of another run, the store of a running guest, whichever name its device has there.
# A private mount namespace takes its mounts along when it is killed: nothing stays mounted.
_GUARD = (
    SAME_DISK
    + RECEIVE
    + """
below=$1 name=$2 device=$3 records=$4
shift 4
exec 9> "/run/xenlab-guest-$name.lock"
flock -n 9 || exit 41
"""
    + IN_USE
    + f"""
command -v python3 > /dev/null || exit 55
uuid() {{ blkid -p -s UUID -o value -- "$device"; }}
enter() {{ # [ro]
    mount -t ext4 -o "{OPTIONS},errors=remount-ro${{1:+,$1}}" -- "$device" "$scratch/root"
}}
guest() {{ python3 -I -S -c "$below" "$scratch/root" "$@"; }}
leave() {{ umount -- "$scratch/root"; }}
unpack() {{ # IMAGE: into a root that is seen to be empty, so that all names in it are the image's
    guest empty
    {UNTAR} -C "$scratch/root" -I 'zstd -d' -xpf "$1"
}}
note() {{ # NAME: standard input becomes this record, on disk when it ends
    cat > "$records/.new"
    sync -- "$records/.new"
    mv -- "$records/.new" "$records/$1"
    sync -- "$records"
}}
usr_back() {{ # the guest's own /usr in its place again, which is at no moment without one
    case "$(guest look /usr.old) $(guest look /usr)" in
        "folder none" | "empty none") guest move /usr.old /usr ;;
        "folder link" | "folder empty" | "empty link" | "empty empty")
            guest exchange /usr.old /usr
            guest remove /usr.old
            ;;
        "link folder" | "empty folder") guest remove /usr.old ;;
        *) exit 56 ;;
    esac
}}
mkdir -p -- "$records"
scratch=$(mktemp -d /run/xenlab-guest-XXXXXX)
trap 'mountpoint -q -- "$scratch/root" && umount -- "$scratch/root"
    rmdir -- "$scratch/root" && rm -rf --one-file-system -- "$scratch" || :' EXIT
trap 'exit 143' HUP INT TERM
mkdir -- "$scratch/root"
"""
)


@dataclass(frozen=True)
class InGuestRoot(Resource):
    """A state of a guest's root that dom0 brings about while no domain uses its device.

    ``records``: where dom0 has a folder for each guest, called as that is, or was ``formerly``.
    """

    name: str
    device: str
    records: str = field(default=RECORDS, kw_only=True)
    formerly: str = field(default="", kw_only=True)

    @property
    def root(self) -> str:
        """Where a person would mount it."""
        return f"/mnt/{self.name}"

    @property
    def folder(self) -> str:
        """Where dom0's records of this guest are."""
        return f"{self.records}/{self.formerly or self.name}"

    def recorded_now(self, host: Host, what: str) -> tuple[str, str | None]:
        """The UUID of the file system ("" without one), and that record (None without one)."""
        script = 'blkid -p -s UUID -o value -- "$1" 2>/dev/null || echo\ncat -- "$2" 2>/dev/null'
        command = Command.script(script, self.device, f"{self.folder}/{what}")
        found = host.run(command, check=False)
        uuid, _, record = found.stdout.partition("\n")
        return uuid, record if found.ok else None

    def refusal(self, host: Host) -> str:
        """That a domain uses the device, or that it is mounted."""
        script = f"device=$1{IN_USE}"
        result = host.run(Command.script(script, self.device), check=False)
        return self._reasons()[result.status][0] if result.status in (USED, MOUNTED) else ""

    def in_namespace(
        self, host: Host, script: str, *values: str, timeout: float, input: bytes = b""
    ) -> None:
        """Run a script on the root, as told above.

        Raises StepFailed where it must not be worked on, or is not what it must be.
        """
        below = packaged("resources", "below.py")
        command = Command.argv(
            *("unshare", "--mount", "--propagation", "private", "--"),
            *("/bin/sh", "-euc", _GUARD + script, "xenlab"),
            *(below, self.name, self.device, self.folder, *values),
        )
        anew = f"or have chapter 09 make its root anew: --destroy {self.name}"
        refusals = {
            **self._reasons(*values[:1]),
            REFUSED: (SAID, f"look at that file in the guest, {anew}"),
            ANOTHER_DISK: another_disk(self.device),
        }
        host.change(command.given(input).within(timeout).refusing(refusals))

    def while_mounted(
        self, *commands: Command, no_links: tuple[str, ...] = ()
    ) -> tuple[Command, ...]:
        """The same commands, with the root mounted as a person would have it there.

        A shell in dom0 follows a link that the guest has planted: the first line warns of it, and
        a script ends where one of the names that it must not follow, ``no_links``, is a link.
        """
        text = """
            # by hand only before the guest has ever run: its links may lead into dom0
            mkdir -p {root}
            mount -o {options} {device} {root}
        """
        ends = """
            for place in {places}; do
                [ ! -L "$place" ] || { umount {root}; echo "$place must be no link" >&2; exit 1; }
            done
        """
        values = {"options": OPTIONS, "device": self.device, "root": self.root}
        mount = Command.sh(text, **values)
        if no_links:
            places = [f"{self.root}/{each}" for each in no_links]
            mount = mount.scripted_as(text + ends, places=places, **values)
        return (mount, *commands, Command.sh("umount {root}", **values))

    def _reasons(self, value: str = "") -> dict[int, tuple[str, str]]:
        """What the exit statuses mean, and what to try."""

        def filled(why: str, hint: str) -> tuple[str, str]:
            known = {"name": self.name, "device": self.device, "value": value}
            message = f"cannot work on {{name}}: because {why}"
            return message.format(**known), hint.format(**known)

        return {status: filled(*reason) for status, reason in _REASONS.items()}


# A guest's root as it is made from dom0: the image in its partition, its own configuration.
#
# A partition that a guest runs from is never mounted in dom0, not even to look at it (howto:
# „DomainU-Root“). So dom0 keeps a record of each guest in ``/var/lib/xenlab/guests/NAME``:
#
# - ``root``: the image's digest and the UUID of the file system that it was unpacked into; while it
#   is being unpacked, ``begun`` stands for the digest;
# - ``configuration``: what was written into that file system, word by word, under its UUID;
# - ``identity``: that UUID again, once the guest has its own host key and machine id;
# - ``host_key.pub``: the guest's public host key.
#
# A record is written last and names the file system by its UUID, which each mkfs makes anew and
# which can be read while the guest runs. So a kill in the middle, a fresh file system or another
# image are all seen, and what a guest changes in itself later is its own business.
#
# A root that was once complete is the guest's, damaged or not, and so may be what else is there:
# neither is made anew without a consent by name. What is empty, or was never completed, is.

CONFIGURE_SECONDS = 600.0

# blkid ends with 2 where it finds nothing, with 8 where it finds several things.
FRESH = """
label=$2 identity=$3 agreed=$4
empty() {
    [ "$(blkid -p -s TYPE -o value -- "$device")" = ext4 ] && enter ro || return 1
    if guest empty; then set -- yes; else set -- no; fi
    leave
    [ "$1" = yes ]
}
bare() { # and never a complete root: its superblock may be damaged
    found=$(blkid -p -s TYPE -s PTTYPE -o value -- "$device") || [ $? = 2 ] || return 1
    [ -z "$found" ] && [ "$was" = begun ]
}
begun() { [ -n "$now" ] && [ "$(cat -- "$records/root" 2> /dev/null)" = "begun $now" ]; }
read -r was recorded 2> /dev/null < "$records/root" || was=begun
now=$(uuid) || now=
[ -n "$now" ] || [ "$was" = begun ] || now=$recorded
if ! empty; then
    bare || begun || [ "$agreed" = "lost $now" ] || exit 52
    same_disk "$(readlink -f -- "$device")" "$identity"
    mkfs.ext4 -q -F -L "$label" -- "$device"
fi
# what a guest is to keep (`xenlab.chapters.roots`) stays until its new root is complete
[ "$was" = begun ] || [ -n "${kept:-}" ] || rm -f -- "$records/.kept"
rm -f -- "$records"/*
echo "begun $(uuid)" | note root
enter
"""

UNPACK = f"""
image=$1 keys=$5
[ -s "$image" ] && read -r generation rest < "$image.sha256" || exit 45
{FRESH}unpack "$image"
[ ! -e "$records/.kept" ] \\
    || {UNTAR} -C "$scratch/root" -I 'zstd -d' -xpf "$records/.kept" || exit 57
printf '%s\\n' "$generation" | guest write /etc/xenlab-generation 644
if [ -n "$keys" ]; then
    guest folder 700 /root /root/.ssh
    printf %s "$keys" | guest write /root/.ssh/authorized_keys 600
fi
leave
echo "$generation $(uuid)" | note root
rm -f -- "$records/.kept"
"""

_CONFIGURE = """
record=$1
receive "$scratch/files" "$2" "$3"
shift 3
read -r generation unpacked 2>/dev/null < "$records/root" || exit 47
[ "$generation" != begun ] && [ "$unpacked" = "$(uuid)" ] || exit 47
enter
[ "$(guest look /sbin/poweroff)" != none ] || [ "$(guest look /usr.old/sbin/poweroff)" != none ] \\
    || exit 48
guest files < "$scratch/files"
while [ $# -ge 2 ]; do
    if [ "$(guest look "$1" followed)" != none ]; then
        guest read "$1" > "$scratch/old"
        sed -e "$2" -- "$scratch/old" > "$scratch/edited"
        guest rewrite "$1" < "$scratch/edited"
    fi
    shift 2
done
if [ "$(cat -- "$records/identity" 2>/dev/null)" != "$(uuid)" ]; then
    key=/etc/ssh/ssh_host_ed25519_key
    guest folder 755 /etc /etc/ssh
    guest remove '/etc/ssh/ssh_host_*' /etc/machine-id
    rm -f -- "$records/host_key.pub"
    ssh-keygen -q -t ed25519 -N '' -C "root@$name" -f "$scratch/key" < /dev/null
    guest write "$key" 600 < "$scratch/key"
    guest write "$key.pub" 644 < "$scratch/key.pub"
    tr -d - < /proc/sys/kernel/random/uuid | guest write /etc/machine-id 444
    note host_key.pub < "$scratch/key.pub"
fi
leave
uuid | note identity
{ printf '# file system %s\\n' "$(uuid)"; printf %s "$record"; } | note configuration
"""


@dataclass(frozen=True)
class GuestFile:
    """A file in a guest's root, or a symbolic link where ``target`` is not empty.

    With ``edit``, a program of sed(1)'s, the file that is there is changed, if there is one.
    """

    path: str
    text: str = ""
    mode: int = 0o644
    target: str = ""
    edit: str = ""

    def in_root(self, root: str) -> Command:
        """What writes it below a root, as a person would type it."""
        path = f"{root}{self.path}"
        if self.edit:
            return Command.argv("sed", "-i", "-e", self.edit, path)
        if self.target:
            return Command.argv("ln", "-sfn", self.target, path)
        return Command.file(path, self.text, None if self.mode == 0o644 else self.mode)

    def resource(self) -> Resource:
        """The same in a guest that runs, where nothing is edited; raises ValueError for that."""
        if self.edit:
            raise ValueError(f"{self.path} can be edited only while the guest is down")
        if self.target:
            return Symlink(self.path, self.target)
        return File(self.path, self.text, mode=self.mode)


@dataclass(frozen=True)
class GuestRoot(InGuestRoot):
    """A partition that holds the image, completely unpacked (howto: „DomainU-Root“).

    The file system that is there is used if it is empty, otherwise it is made anew: without a
    consent by name (`destroys`) only what was begun and never completed. A complete root of an
    older image may stay. Refused while a domain uses the partition or it is mounted.
    ``way`` is how this machine will log in to the guest: with its own keys, and no others, as the
    image has none.
    """

    image: str
    label: str
    identity: str = field(default="", compare=False, repr=False)
    way: Target | None = field(default=None, compare=False)
    lost: tuple[Made, ...] = field(default=(), compare=False, repr=False)

    def probe(self, host: Host) -> Difference | None:
        """Whether the record names this image and the partition's present file system."""
        now = self._look(host)
        if now.record == f"{now.wanted} {now.uuid}" and now.wanted and now.uuid:
            return None
        device = look(host, self.device).device if now.uuid else None
        row = {
            "device": self.device,
            "image now": now.generation[:12],
            "wanted": now.wanted[:12],
            "lost": content(device) if device and not now.empty else "",
        }
        stays = (
            f"{self.name} keeps its root, made from the image {now.generation[:12]} and not from "
            f"{now.wanted[:12] or 'one that is there'}: --destroy {self.label}, or may_destroy: "
            f"[{self.label} {now.uuid}], has it made anew"
        )
        return Difference(
            f"unpack {self.image} into {self.device}",
            rows=(row,),
            stays=stays if now.generation else "",
        )

    def destroys(self, host: Host) -> tuple[Made, ...]:
        """The guest, if its root was complete once, or holds files that nobody here recorded."""
        now = self._look(host)
        fresh = not now.generation and (now.begun or now.empty)
        if (fresh or not now.system) and not now.damaged:
            return ()
        what = f"{self.device}, {now.system or 'a damaged file system'}"
        return (Made(self.label, now.uuid or now.damaged, what),)

    def consented(self, identity: str, lost: tuple[Made, ...] = ()) -> GuestRoot:
        """The same on a disk with this identity, for what is there now."""
        return replace(self, identity=identity, lost=lost)

    def commands(self) -> tuple[Command, ...]:
        """A fresh file system, the image unpacked into it, and who may log in."""
        make = "mkfs.ext4 -q -L {label} {device}"
        # a script asks for no consent by name
        once = "! grep -qsv ^begun {record} || { echo remove {record} to lose it >&2; exit 1; }\n"
        text = f"""
            {UNTAR} -C {{root}} -I zstd -xpf {{image}}
            mkdir -p -m 700 {{root}}/root/.ssh
            cp /root/.ssh/authorized_keys {{root}}/root/.ssh
        """
        values = {"label": self.label, "device": self.device, "image": self.image}
        values |= {"root": self.root, "record": f"{self.folder}/root"}
        made = Command.sh(make, **values).scripted_as(once + make, **values)
        return (made, *self.while_mounted(Command.sh(text, **values)))

    def recorded(self) -> tuple[Command, ...]:
        """Which image it was made from, and in which file system it lies."""
        text = """
            mkdir -p {records}
            uuid=$(blkid -p -s UUID -o value {device})
            echo "$(cut -c 1-64 {image}.sha256) $uuid" > {records}/root
        """
        values = {"records": self.folder, "image": self.image, "device": self.device}
        return (Command.sh(text, **values),)

    def apply(self, host: Host, report: Report) -> None:
        """Unpack the image; the record is written last.

        Raises StepFailed where this machine has no key to log in to the guest with.
        """
        keys = public_keys(resolve(self.way)) if self.way else ()
        if self.way and not keys:
            raise StepFailed(
                f"cannot make {self.name}: because there is no key to log in to it with",
                hint="name a key file in ssh.identity or in the ssh_config, or ssh-add one",
            )
        report(f"unpacking into {self.device}")
        agreed = "".join(f"lost {made.uuid}" for made in self.lost[:1])
        values = (self.image, self.label, self.identity, agreed, "".join(f"{k}\n" for k in keys))
        self._unpack(host, *values)

    def wipes(self) -> str:
        """The partition."""
        return self.device

    def _unpack(self, host: Host, *values: str) -> None:
        self.in_namespace(host, UNPACK, *values, timeout=UNPACK_SECONDS)

    def _look(self, host: Host) -> _Found:
        # debugfs mounts nothing: it may read what a guest runs from
        script = """
            wanted=$(cut -d ' ' -f 1 -- "$1.sha256" 2> /dev/null) || wanted=
            uuid=$(blkid -p -s UUID -o value -- "$2" 2> /dev/null) || uuid=
            record=$(cat -- "$3" 2> /dev/null) || record=
            printf '%s\\n' "$wanted" "$uuid" "$record"
            [ "$record" != "$wanted $uuid" ] || exit 0
            system=$(blkid -p -s TYPE -s PTTYPE -o value -- "$2") || [ $? = 2 ] || system=several
            printf '%s\\n' "${system%%[!a-zA-Z0-9_]*}"
            [ "$system" != ext4 ] || debugfs -c -R 'ls -p /' -- "$2" 2> /dev/null || :
        """
        command = Command.script(script, self.image, self.device, f"{self.folder}/root")
        return _found(host.run(command, check=False).stdout)


@dataclass(frozen=True)
class _Found:
    """The image's digest, what a guest's record says, and what is in its partition."""

    wanted: str = ""
    uuid: str = ""
    record: str = ""
    system: str = ""
    entries: frozenset[str] = frozenset()

    @property
    def begun(self) -> bool:
        return bool(self.uuid) and self.record == f"begun {self.uuid}"

    @property
    def generation(self) -> str:
        """The image that the present file system was completely unpacked from, "" if none was."""
        generation, _, uuid = self.record.partition(" ")
        return generation if uuid and uuid == self.uuid and not self.begun else ""

    @property
    def damaged(self) -> str:
        """The UUID on record of a complete root, where none can be read any more; else ""."""
        generation, _, uuid = self.record.partition(" ")
        return uuid if not self.uuid and generation != "begun" else ""

    @property
    def empty(self) -> bool:
        return "." in self.entries and self.entries <= {".", "..", "lost+found"}


def _found(text: str) -> _Found:
    """What the look has printed: four lines, then debugfs's: /inode/mode/user/group/name/size/."""
    wanted, uuid, record, system, *listed = [*text.split("\n"), "", "", "", ""]
    words = [line.split("/") for line in listed if line.count("/") > 5]
    # what is no folder is never taken for lost+found
    entries = frozenset(each[5] + ("" if each[2].startswith("04") else "/") for each in words)
    return _Found(wanted, uuid, record, system, entries)


@dataclass(frozen=True)
class GuestConfigured(InGuestRoot):
    """A guest's own files in its root, with a host key and a machine id of its own.

    Refused while a domain uses the partition. Host key (ed25519 alone: making an RSA key takes
    minutes on an emulated machine) and machine id are made once for each unpacked root.
    """

    files: tuple[GuestFile, ...]

    def probe(self, host: Host) -> Difference | None:
        """The diff between what dom0 recorded for this file system and what is wanted."""
        uuid, now = self.recorded_now(host, "configuration")
        wanted = f"# file system {uuid or 'not there yet'}\n{manifest(self.files)}"
        path = f"{self.folder}/configuration"
        return text_difference(f"configure {self.name}", path, now, wanted)

    def commands(self) -> tuple[Command, ...]:
        """Its files, a host key and a machine id of its own, while it is down."""
        text = """
            ssh-keygen -t ed25519 -N '' -C root@{name} -f {root}/etc/ssh/ssh_host_ed25519_key
            tr -d - < /proc/sys/kernel/random/uuid > {root}/etc/machine-id
            mkdir -p {records}
            cp {root}/etc/ssh/ssh_host_ed25519_key.pub {records}/host_key.pub
        """
        files = (file.in_root(self.root) for file in in_order(self.files))
        own = Command.sh(text, name=self.name, root=self.root, records=self.folder)
        return self.while_mounted(*files, own)

    def recorded(self) -> tuple[Command, ...]:
        """What was written, and in which file system it lies."""
        path, identity = f"{self.folder}/configuration", f"{self.folder}/identity"
        text = """
            uuid=$(blkid -p -s UUID -o value {device})
            echo "$uuid" > {identity}
            sed -i "1i # file system $uuid" {path}
        """
        stamped = Command.sh(text, device=self.device, path=path, identity=identity)
        return Command.file(path, manifest(self.files)), stamped

    def apply(self, host: Host, report: Report) -> None:
        """Write everything while the root is mounted once; the record is written last."""
        report("writing the guest's configuration")
        edits = [word for f in self.files if f.edit for word in (f.path, f.edit)]
        data = as_json(self.files)
        values = (manifest(self.files), *map(str, size_and_digest(data)), *edits)
        self.in_namespace(host, _CONFIGURE, *values, input=data, timeout=CONFIGURE_SECONDS)


def in_order(files: tuple[GuestFile, ...]) -> list[GuestFile]:
    """Files sorted by path."""
    return sorted(files, key=lambda file: file.path)


def manifest(files: tuple[GuestFile, ...]) -> str:
    """Files as one text, sorted by path: what the record on dom0 holds and a diff shows."""
    parts = []
    for file in in_order(files):
        if file.target:
            parts.append(f"== {file.path} -> {file.target}\n")
        elif file.edit:
            parts.append(f"== {file.path} edited\n{file.edit}\n")
        else:
            end = "" if not file.text or file.text.endswith("\n") else "\n"
            parts.append(f"== {file.path} {file.mode:o}\n{file.text}{end}")
    return "".join(parts)


def as_json(files: tuple[GuestFile, ...]) -> bytes:
    """Files and links as `xenlab.resources.below` reads them."""
    listed = [
        {"path": file.path, "mode": file.mode, "target": file.target, "text": file.text}
        for file in in_order(files)
        if not file.edit
    ]
    return json.dumps(listed, indent=1).encode()
