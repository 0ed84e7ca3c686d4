"""A guest's root as it is made from dom0: the image in its partition, its own configuration.

A partition that a guest runs from must never be mounted in dom0, not even to look at it
(howto: „DomainU-Root“). So dom0 keeps a record of each guest in ``/var/lib/xenlab/guests/NAME``:

- ``root``: the image's digest and the UUID of the file system that it was unpacked into; while it
  is being unpacked, ``begun`` stands for the digest;
- ``configuration``: what was written into that file system, word by word, under its UUID;
- ``identity``: that UUID again, once the guest has its own host key and machine id;
- ``host_key.pub``: the guest's public host key.

A record is written last and names the file system by its UUID, which each mkfs makes anew and
which can be read while the guest runs. So a kill in the middle, a fresh file system or another
image are all seen, and what a guest changes in itself later is its own business.

A root that was once complete is the guest's, and what else is found there may be: neither is made
anew without a consent by name. What is empty, or was begun here and never completed, is.
"""

from __future__ import annotations

import io
import tarfile
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath

from xenlab.command import Command
from xenlab.errors import CommandFailed, StepFailed
from xenlab.host import Host
from xenlab.login import public_keys
from xenlab.resources.base import Difference, Report, Resource, text_difference
from xenlab.resources.blockdevices import look
from xenlab.resources.disk import content
from xenlab.resources.files import File, Symlink
from xenlab.resources.identity import ANOTHER_DISK, SAME_DISK, refuse_another
from xenlab.resources.made import Made
from xenlab.target import Target, resolve
from xenlab.wholefile import RECEIVE, size_and_digest

RECORDS = "/var/lib/xenlab/guests"
MOUNTS = "/mnt"
UNPACK_SECONDS = 3600.0
CONFIGURE_SECONDS = 600.0

_USED, _MOUNTED = 42, 43

REFUSALS = {
    41: ("another process is working on this guest", "wait for its end, or end it"),
    42: ("a running domain uses {device}", "shut the guest down first: xl shutdown -w {name}"),
    43: ("{device} is mounted", "unmount it"),
    44: ("there is no device {device}", "run chapter 01_partitions"),
    45: ("there is no image {image} with its checksum beside it", "run chapter 06_imaging"),
    46: ("xenstore does not answer, so nobody can say whether the guest runs", "see xen.service"),
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
}

_IN_USE = """
[ -b "$device" ] || exit 44
if [ "$(cat /sys/hypervisor/type 2>/dev/null)" = xen ]; then
    used=$(xenstore-ls -f /local/domain/0) || exit 46
    number=$(stat -L -c %t:%T -- "$device")
    case $used in *"/physical-device = \\"$number\\""*) exit 42 ;; esac
fi
! findmnt -n -S "$(readlink -f -- "$device")" > /dev/null || exit 43
"""

# The lock tells of another run, the store of a running guest, whichever name its device has there.
# A private mount namespace takes its mounts along when it is killed: nothing stays mounted.
GUARD = (
    SAME_DISK
    + """
name=$1 device=$2 records=$3/$1 mount=$4/$1
exec 9> "/run/xenlab-guest-$name.lock"
flock -n 9 || exit 41
"""
    + _IN_USE
    + """
uuid() { blkid -p -s UUID -o value -- "$device"; }
mkdir -p -- "$records" "$mount"
trap 'mountpoint -q -- "$mount" && umount -- "$mount"; rmdir -- "$mount" 2>/dev/null || :' EXIT
"""
)

# blkid ends with 2 where it finds nothing, with 8 where it finds several things.
_UNPACK = """
image=$5 label=$6 identity=$7 agreed=$8 keys=$9
[ -s "$image" ] && read -r generation rest < "$image.sha256" || exit 45
empty() {
    [ "$(blkid -p -s TYPE -o value -- "$device")" = ext4 ] || return 1
    mount -o ro -- "$device" "$mount" || return 1
    set -- $(ls -A -- "$mount" | head -n 2)
    umount -- "$mount"
    [ "$*" = lost+found ] || [ $# = 0 ]
}
bare() {
    found=$(blkid -p -s TYPE -s PTTYPE -o value -- "$device") || [ $? = 2 ] || return 1
    [ -z "$found" ]
}
begun() { [ -n "$now" ] && [ "$(cat -- "$records/root" 2> /dev/null)" = "begun $now" ]; }
now=$(uuid) || now=
if ! empty; then
    bare || begun || [ "$agreed" = "lost $now" ] || exit 52
    same_disk "$(readlink -f -- "$device")" "$identity"
    mkfs.ext4 -q -F -L "$label" -- "$device"
fi
rm -f -- "$records"/*
note() {
    printf '%s %s\\n' "$1" "$(uuid)" > "$records/.new"
    sync -- "$records/.new"
    mv -- "$records/.new" "$records/root"
    sync -- "$records"
}
note begun
mount -- "$device" "$mount"
tar -C "$mount" -I 'zstd -d' --numeric-owner --acls --xattrs --xattrs-include='*' -xpf "$image"
printf '%s\\n' "$generation" > "$mount/etc/xenlab-generation"
if [ -n "$keys" ]; then
    mkdir -p -m 700 -- "$mount/root" "$mount/root/.ssh"
    printf %s "$keys" > "$mount/root/.ssh/authorized_keys"
    chmod 600 -- "$mount/root/.ssh/authorized_keys"
fi
umount -- "$mount"
note "$generation"
"""

# The archive names the folders above each file: tar puts a folder in the place of a link that
# the guest may have planted there, and nothing is ever written outside of the guest's root.
_CONFIGURE = """
record=$5
receive "$records/.files" "$6" "$7"
read -r generation unpacked 2>/dev/null < "$records/root" || exit 47
[ "$generation" != begun ] && [ "$unpacked" = "$(uuid)" ] || exit 47
mount -- "$device" "$mount"
for usr in "" /usr.old; do
    [ -e "$mount$usr/sbin/poweroff" ] || [ -L "$mount$usr/sbin/poweroff" ] || continue
    has_poweroff=yes
done
[ "${has_poweroff:-}" = yes ] || exit 48
tar -C "$mount" --numeric-owner -xpf "$records/.files"
rm -f -- "$records/.files"
shift 7
while [ $# -ge 2 ]; do
    file=$(readlink -e -- "$mount$1") || file=
    case $file in "$(readlink -f -- "$mount")"/*) sed -i -e "$2" -- "$file" ;; esac
    shift 2
done
if [ "$(cat -- "$records/identity" 2>/dev/null)" != "$(uuid)" ]; then
    rm -f -- "$mount"/etc/ssh/ssh_host_* "$mount/etc/machine-id" "$records/host_key.pub"
    ssh-keygen -q -t ed25519 -N '' -C "root@$name" -f "$mount/etc/ssh/ssh_host_ed25519_key" \\
        < /dev/null
    tr -d - < /proc/sys/kernel/random/uuid > "$mount/etc/machine-id"
    chmod 444 "$mount/etc/machine-id"
    cp -- "$mount/etc/ssh/ssh_host_ed25519_key.pub" "$records/host_key.pub"
fi
umount -- "$mount"
uuid > "$records/identity"
{ printf '# file system %s\\n' "$(uuid)"; printf %s "$record"; } > "$records/.new"
sync -- "$records/.new"
mv -- "$records/.new" "$records/configuration"
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

    def resource(self) -> Resource:
        """The same in a guest that runs, where nothing is edited; raises ValueError for that."""
        if self.edit:
            raise ValueError(f"{self.path} can be edited only while the guest is down")
        if self.target:
            return Symlink(self.path, self.target)
        return File(self.path, self.text, mode=self.mode)


@dataclass(frozen=True)
class GuestRoot(Resource):
    """A partition that holds the image, completely unpacked (howto: „DomainU-Root“).

    The file system that is there is used if it is empty, otherwise it is made anew: without a
    consent by name (`destroys`) only what was begun and never completed. A complete root of an
    older image may stay. Refused while a domain uses the partition or it is mounted.
    ``way`` is how this machine will log in to the guest: with its own keys, and no others, as the
    image has none.
    """

    name: str
    device: str
    image: str
    label: str
    mounts: str = MOUNTS
    records: str = RECORDS
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
        if not now.system or (not now.generation and (now.begun or now.empty)):
            return ()
        return (Made(self.label, now.uuid, f"{self.device}, {now.system}"),)

    def consented(self, identity: str, lost: tuple[Made, ...] = ()) -> GuestRoot:
        """The same on a disk with this identity, for what is there now."""
        return replace(self, identity=identity, lost=lost)

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
        in_namespace(
            host,
            GUARD + _UNPACK,
            (
                *(self.name, self.device, self.records, self.mounts),
                *(self.image, self.label, self.identity, agreed),
                "".join(f"{key}\n" for key in keys),
            ),
            timeout=UNPACK_SECONDS,
        )

    def wipes(self) -> str:
        """The partition."""
        return self.device

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
        record = f"{self.records}/{self.name}/root"
        command = Command.script(script, self.image, self.device, record)
        return _found(host.run(command, check=False).stdout)

    def refusal(self, host: Host) -> str:
        """That a domain uses the partition, or that it is mounted."""
        return in_use(host, self.name, self.device)


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
    def empty(self) -> bool:
        return "." in self.entries and self.entries <= {".", "..", "lost+found"}


def _found(text: str) -> _Found:
    """What the look has printed: four lines, then debugfs's: /inode/mode/user/group/name/size/."""
    wanted, uuid, record, system, *listed = [*text.split("\n"), "", "", "", ""]
    entries = frozenset(line.split("/")[5] for line in listed if line.count("/") > 5)
    return _Found(wanted, uuid, record, system, entries)


@dataclass(frozen=True)
class GuestConfigured(Resource):
    """A guest's own files in its root, with a host key and a machine id of its own.

    Refused while a domain uses the partition. Host key (ed25519 alone: making an RSA key takes
    minutes on an emulated machine) and machine id are made once for each unpacked root.
    """

    name: str
    device: str
    files: tuple[GuestFile, ...]
    mounts: str = MOUNTS
    records: str = RECORDS

    def probe(self, host: Host) -> Difference | None:
        """The diff between what dom0 recorded for this file system and what is wanted."""
        path = f"{self.records}/{self.name}/configuration"
        script = 'blkid -p -s UUID -o value -- "$1" 2>/dev/null || echo\ncat -- "$2" 2>/dev/null'
        found = host.run(Command.script(script, self.device, path), check=False)
        uuid, _, recorded = found.stdout.partition("\n")
        wanted = f"# file system {uuid or 'not there yet'}\n{manifest(self.files)}"
        now = recorded if found.ok else None
        return text_difference(f"configure {self.name}", path, now, wanted)

    def refusal(self, host: Host) -> str:
        """That a domain uses the partition, or that it is mounted."""
        return in_use(host, self.name, self.device)

    def apply(self, host: Host, report: Report) -> None:
        """Write everything while the root is mounted once; the record is written last."""
        report("writing the guest's configuration")
        edits = [word for f in self.files if f.edit for word in (f.path, f.edit)]
        data = archive(self.files)
        values = (self.name, self.device, self.records, self.mounts, manifest(self.files))
        in_namespace(
            host,
            GUARD + RECEIVE + _CONFIGURE,
            (*values, *map(str, size_and_digest(data)), *edits),
            input=data,
            timeout=CONFIGURE_SECONDS,
        )


def in_use(host: Host, name: str, device: str) -> str:
    """Why a guest's root cannot be worked on now, "" where it can or is not there yet."""
    result = host.run(Command.script(f"name=$1 device=$2{_IN_USE}", name, device), check=False)
    if result.status not in (_USED, _MOUNTED):
        return ""
    return REFUSALS[result.status][0].format(name=name, device=device)


def manifest(files: tuple[GuestFile, ...]) -> str:
    """Files as one text, sorted by path: what the record on dom0 holds and a diff shows."""
    parts = []
    for file in sorted(files, key=lambda f: f.path):
        if file.target:
            parts.append(f"== {file.path} -> {file.target}\n")
        elif file.edit:
            parts.append(f"== {file.path} edited\n{file.edit}\n")
        else:
            end = "" if not file.text or file.text.endswith("\n") else "\n"
            parts.append(f"== {file.path} {file.mode:o}\n{file.text}{end}")
    return "".join(parts)


def archive(files: tuple[GuestFile, ...]) -> bytes:
    """Files as a tar archive owned by root, each folder above them named first."""
    folders = {"etc/ssh", "etc"}
    written = [file for file in files if not file.edit]
    for file in written:
        folders.update(str(p) for p in PurePosixPath(file.path.lstrip("/")).parents)
    folders.discard(".")
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for folder in sorted(folders):
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(entry)
        for file in sorted(written, key=lambda f: f.path):
            entry = tarfile.TarInfo(file.path.lstrip("/"))
            entry.mode = file.mode
            content = file.text.encode()
            if file.target:
                entry.type, entry.linkname, entry.mode = tarfile.SYMTYPE, file.target, 0o777
                content = b""
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return data.getvalue()


def in_namespace(
    host: Host, script: str, values: tuple[str, ...], *, timeout: float, input: bytes = b""
) -> None:
    """Run a script that begins with `GUARD` in a mount namespace of its own.

    The values begin with the guest's name, its device, the folder of records, that of mounts and,
    where an image is unpacked, the image. Raises StepFailed for the guard's refusals.
    """
    command = Command.argv("unshare", "--mount", "/bin/sh", "-euc", script, "xenlab", *values)
    result = host.run(command, input=input, timeout=timeout, check=False)
    if result.status in REFUSALS:
        name, device, image = values[0], values[1], values[4]
        message, hint = REFUSALS[result.status]
        raise StepFailed(
            message.format(name=name, device=device, image=image),
            hint=hint.format(name=name, device=device),
            where=f"{host.name}: {name}",
        )
    if result.status == ANOTHER_DISK:
        raise refuse_another(values[1])
    if not result.ok:
        raise CommandFailed(result)
