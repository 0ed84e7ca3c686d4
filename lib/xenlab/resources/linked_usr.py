"""The howto's own way to a shared /usr: the guest's moved aside, a link to the share in its place.

Howto: „/usr sharing“ („mv /usr /usr.old; ln -s /mnt/share/usr /usr“). It takes a split layout, in
which /bin and /lib are folders of their own: the boot starts from these, mounts the share, and
finds /usr. What it needs of /usr before that is copied to them („cp /usr/bin/{find,xargs} …/bin“).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from xenlab.host import Host
from xenlab.resources.base import Difference, Report, Resource
from xenlab.resources.early_boot import Needed, needed_before
from xenlab.resources.guest import GUARD, MOUNTS, RECORDS, in_namespace
from xenlab.resources.shared_usr import SWAP_SECONDS, recorded


def needed_files(guest: Host, share: str, started: str) -> list[str]:
    """The files in /usr, programs and libraries, that a boot needs before ``share`` is mounted.

    ``started`` is as `needed_before` wants it.
    """
    return in_usr(needed_before(guest, share, started))


def in_usr(needed: Sequence[Needed]) -> list[str]:
    """Programs by the names under which they are started, libraries by where these lead."""
    paths = {path for one in needed for path in (one.program, *one.libraries)}
    return sorted(path for path in paths if path.startswith("/usr/"))


@dataclass(frozen=True)
class UsrLinked(Resource):
    """A guest's /usr is a link to ``target``; its own is kept as /usr.old.

    ``needed`` asks the guest, while it runs from its own /usr, for the files that its boot needs;
    the answer is kept, as a guest that is cut off half-way cannot be asked again. ``stopped`` is
    the state in which the guest is down. Refused for a guest whose /bin lies in /usr.
    """

    name: str
    device: str
    target: str
    needed: Callable[[], Sequence[str]]
    stopped: Resource
    mounts: str = MOUNTS
    records: str = RECORDS

    def probe(self, host: Host) -> Difference | None:
        """What dom0's record of this file system says."""
        uuid, record = recorded(host, self.device, f"{self.records}/{self.name}/usr")
        if uuid and record == f"{self._record}{uuid}":
            return None
        return Difference(f"make /usr of {self.name} a link to {self.target}")

    def apply(self, host: Host, report: Report) -> None:
        """Ask what the boot needs, shut the guest down, copy that, and make the link."""
        kept = f"{self.records}/{self.name}/usr.needed"
        if self.stopped.probe(host) is not None:
            report("looking what the boot needs of /usr")
            text = "".join(f"{path}\n" for path in self.needed())
            host.write(kept, text)
            self.stopped.apply(host, report)
            self.stopped.verify(host)
        report("making /usr a link to the share")
        values = (self.name, self.device, self.records, self.mounts, self.target, self._record)
        in_namespace(host, GUARD + _LINK, values, timeout=SWAP_SECONDS)

    @property
    def _record(self) -> str:
        return f"linked {self.target} "


_LINK = """
target=$5 record=$6
mount -- "$device" "$mount"
[ ! -L "$mount/bin" ] || exit 50
[ -e "$records/usr.needed" ] || exit 51
echo swapping > "$records/usr"
if [ ! -e "$mount/usr.old" ]; then
    mv -- "$mount/usr" "$mount/usr.old"
fi
while read -r path; do
    own=$mount/usr.old/${path#/usr/}
    folder=$mount/$(dirname -- "${path#/usr/}")
    mkdir -p -- "$folder"
    # a library is loaded by a shorter name, which is a link to it
    for file in "${own%/*}"/*; do
        [ "$(readlink -f -- "$file")" = "$(readlink -f -- "$own")" ] || continue
        [ -e "$folder/${file##*/}" ] || cp -pL -- "$file" "$folder/"
    done
done < "$records/usr.needed"
ln -sfnT -- "$target" "$mount/usr"
umount -- "$mount"
printf '%s%s\\n' "$record" "$(uuid)" > "$records/.new"
sync -- "$records/.new"
mv -- "$records/.new" "$records/usr"
"""
