"""A guest's root as it is made from dom0: the image in its partition, its own configuration.

A partition that a guest runs from must never be mounted in dom0, not even to look at it
(howto: „DomainU-Root“). So dom0 keeps a record of each guest in ``/var/lib/xenlab/guests/NAME``:

- ``root``: the image's digest and the UUID of the file system that it was unpacked into;
- ``configuration``: what was written into that file system, word by word, under its UUID;
- ``identity``: that UUID again, once the guest has its own host key and machine id;
- ``host_key.pub``: the guest's public host key.

A record is written last and names the file system by its UUID, which each mkfs makes anew and
which can be read while the guest runs. So a kill in the middle, a fresh file system or another
image are all seen, and what a guest changes in itself later is its own business.
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
        "leave it in shared_usr, or let chapter 09 make its root anew",
    ),
    50: (
        "the /bin of {name} lies in its /usr, without which nothing of it would start",
        "this is for a split layout; on a merged one /usr is mounted before the first process",
    ),
    51: (
        "nobody has asked {name} yet what its boot needs of /usr, and it does not run",
        "start it, then run the step again",
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

_UNPACK = """
image=$5 label=$6 identity=$7 keys=$8
[ -s "$image" ] && read -r generation rest < "$image.sha256" || exit 45
empty() {
    [ "$(blkid -p -s TYPE -o value -- "$device")" = ext4 ] || return 1
    mount -o ro -- "$device" "$mount" || return 1
    set -- $(ls -A -- "$mount" | head -n 2)
    umount -- "$mount"
    [ "$*" = lost+found ] || [ $# = 0 ]
}
if empty; then
    rm -f -- "$records"/*
else
    same_disk "$(readlink -f -- "$device")" "$identity"
    rm -f -- "$records"/*
    mkfs.ext4 -q -F -L "$label" -- "$device"
fi
mount -- "$device" "$mount"
tar -C "$mount" -I 'zstd -d' --numeric-owner --acls --xattrs --xattrs-include='*' -xpf "$image"
printf '%s\\n' "$generation" > "$mount/etc/xenlab-generation"
if [ -n "$keys" ]; then
    mkdir -p -m 700 -- "$mount/root" "$mount/root/.ssh"
    printf %s "$keys" > "$mount/root/.ssh/authorized_keys"
    chmod 600 -- "$mount/root/.ssh/authorized_keys"
fi
umount -- "$mount"
printf '%s %s\\n' "$generation" "$(uuid)" > "$records/.new"
sync -- "$records/.new"
mv -- "$records/.new" "$records/root"
"""

# The archive names the folders above each file: tar puts a folder in the place of a link that
# the guest may have planted there, and nothing is ever written outside of the guest's root.
_CONFIGURE = """
record=$5
receive "$records/.files" "$6" "$7"
read -r generation unpacked 2>/dev/null < "$records/root" || exit 47
[ "$unpacked" = "$(uuid)" ] || exit 47
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

    The file system that is there is used if it is empty, otherwise it is made anew. Refused while
    a domain uses the partition or it is mounted. ``way`` is how this machine will log in to the
    guest: with its own keys, and no others, as the image has none.
    """

    name: str
    device: str
    image: str
    label: str
    mounts: str = MOUNTS
    records: str = RECORDS
    identity: str = field(default="", compare=False, repr=False)
    way: Target | None = field(default=None, compare=False)

    def probe(self, host: Host) -> Difference | None:
        """Whether the record names this image and the partition's present file system."""
        script = """
            cut -d ' ' -f 1 -- "$1.sha256" 2>/dev/null || echo
            blkid -p -s UUID -o value -- "$2" 2>/dev/null || echo
            cat -- "$3" 2>/dev/null || :
        """
        record = f"{self.records}/{self.name}/root"
        found = host.run(Command.script(script, self.image, self.device, record), check=False)
        lines = [*found.stdout.splitlines(), "", "", ""]
        generation, uuid, recorded = lines[:3]
        if found.ok and generation and uuid and recorded == f"{generation} {uuid}":
            return None
        now = recorded.partition(" ")[0][:12] if recorded.endswith(f" {uuid}") else ""
        device = look(host, self.device).device if uuid else None
        lost = f"{content(device)} (unless it is empty)" if device else ""
        row = {"device": self.device, "image now": now, "wanted": generation[:12], "lost": lost}
        return Difference(f"unpack {self.image} into {self.device}", rows=(row,))

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
        in_namespace(
            host,
            GUARD + _UNPACK,
            (
                *(self.name, self.device, self.records, self.mounts),
                *(self.image, self.label, self.identity),
                "".join(f"{key}\n" for key in keys),
            ),
            timeout=UNPACK_SECONDS,
        )

    def consented(self, identity: str) -> GuestRoot:
        """The same on a disk with this identity."""
        return replace(self, identity=identity)

    def wipes(self) -> str:
        """The partition."""
        return self.device

    def refusal(self, host: Host) -> str:
        """That a domain uses the partition, or that it is mounted."""
        return in_use(host, self.name, self.device)


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
