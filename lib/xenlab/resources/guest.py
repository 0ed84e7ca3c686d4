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

import json
from dataclasses import dataclass, field, replace

from xenlab.command import Command
from xenlab.errors import StepFailed
from xenlab.host import Host
from xenlab.login import public_keys
from xenlab.resources.base import Difference, Report, Resource, text_difference
from xenlab.resources.blockdevices import look
from xenlab.resources.disk import content
from xenlab.resources.files import File, Symlink
from xenlab.resources.guestroot import RECORDS, in_namespace, in_use
from xenlab.resources.made import Made
from xenlab.target import Target, resolve
from xenlab.wholefile import size_and_digest

UNPACK_SECONDS = 3600.0
CONFIGURE_SECONDS = 600.0

# blkid ends with 2 where it finds nothing, with 8 where it finds several things.
_UNPACK = """
image=$1 label=$2 identity=$3 agreed=$4 keys=$5
[ -s "$image" ] && read -r generation rest < "$image.sha256" || exit 45
empty() {
    [ "$(blkid -p -s TYPE -o value -- "$device")" = ext4 ] && enter ro || return 1
    if guest empty; then set -- yes; else set -- no; fi
    leave
    [ "$1" = yes ]
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
echo "begun $(uuid)" | note root
enter
unpack "$image"
printf '%s\\n' "$generation" | guest write /etc/xenlab-generation 644
if [ -n "$keys" ]; then
    guest folder 700 /root /root/.ssh
    printf %s "$keys" | guest write /root/.ssh/authorized_keys 600
fi
leave
echo "$generation $(uuid)" | note root
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
            _UNPACK,
            (self.name, self.device, self.records),
            (
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
    words = [line.split("/") for line in listed if line.count("/") > 5]
    # what is no folder is never taken for lost+found
    entries = frozenset(each[5] + ("" if each[2].startswith("04") else "/") for each in words)
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
        data = wanted(self.files)
        in_namespace(
            host,
            _CONFIGURE,
            (self.name, self.device, self.records),
            (manifest(self.files), *map(str, size_and_digest(data)), *edits),
            input=data,
            timeout=CONFIGURE_SECONDS,
        )


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


def wanted(files: tuple[GuestFile, ...]) -> bytes:
    """Files and links as `xenlab.resources.below` reads them."""
    listed = [
        {"path": file.path, "mode": file.mode, "target": file.target, "text": file.text}
        for file in sorted(files, key=lambda f: f.path)
        if not file.edit
    ]
    return json.dumps(listed, indent=1).encode()
