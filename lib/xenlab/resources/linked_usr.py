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
from xenlab.resources.guestroot import RECORDS, in_namespace, reported
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
            text = "".join(f"{path}\n" for path in reported(self.name, self.needed()))
            host.write(kept, text)
            self.stopped.apply(host, report)
            self.stopped.verify(host)
        report("making /usr a link to the share")
        guest = (self.name, self.device, self.records)
        in_namespace(host, _LINK, guest, (self.target, self._record), timeout=SWAP_SECONDS)

    @property
    def _record(self) -> str:
        return f"linked {self.target} "


# What is copied is looked for while the guest's own /usr is in its place: a link in it may lead
# through /etc and back.
_LINK = """
target=$1 record=$2
enter
[ "$(guest look /bin)" != link ] || exit 50
[ -e "$records/usr.needed" ] || exit 51
echo swapping | note usr
[ "$(guest look /usr.old)" = none ] || usr_back
case "$(guest look /usr)" in
    folder)
        guest bring < "$records/usr.needed"
        guest move /usr /usr.old
        ;;
    link) ;;
    *) exit 56 ;;
esac
guest link /usr "$target"
leave
printf '%s%s\\n' "$record" "$(uuid)" | note usr
"""
