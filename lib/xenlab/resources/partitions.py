"""The partitions of the site's own disk: which one a system runs from, by which UUID it is named.

A name of a partition is no identity: last year's disk has the same ones. So commands use partitions
by disk and number, and what is read at boot names them by PARTUUID, read from that disk's table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from xenlab.command import Command
from xenlab.errors import StepFailed
from xenlab.host import Host
from xenlab.resources.base import Difference, Report, Resource
from xenlab.resources.blockdevices import Device, Devices, look

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
            f"the machine runs from /dev/{lines[0]}, a partition {ROOT_PARTITION}, and the site's "
            f"is {device}: another disk has the names of the site's disk",
            where=host.name,
            hint="name the disk by what stays the same (disk: /dev/disk/by-id/…), boot a rescue "
            "system, or take the other disk out",
        )
    return "/" if lines == ["own"] else INSTALLED_ROOT


def twins(found: Devices) -> list[Device]:
    """The other disks that have partitions with the UUIDs of the named disk's: copies of it."""
    own = {part.uuid for part in found.device.all() if part.uuid} if found.device else set()
    return [disk for disk in found.others if not own.isdisjoint(part.uuid for part in disk.all())]


def refuse_twins(found: Devices) -> None:
    """Raise StepFailed where another disk is a copy of the named one."""
    for twin in twins(found):
        raise StepFailed(
            f"{twin.path} is a copy of {found.path}: its partitions have the same UUIDs, so a boot "
            "could take the one for the other",
            hint=f"take {twin.path} out, or give its partitions UUIDs of their own "
            f"(sfdisk --part-uuid {twin.path} NUMBER UUID)",
        )


@dataclass(frozen=True)
class OnPartitions(Resource):
    """A state that can be put into words once a disk's partitions are made: it names their UUIDs.

    ``made`` gets the UUID of each partition by its name; ``names`` are those that it asks for.
    Refused where another disk is a copy of this one.
    """

    disk: str
    names: tuple[str, ...]
    made: Callable[[Mapping[str, str]], Resource] = field(compare=False)
    summary: str = ""

    def probe(self, host: Host) -> Difference | None:
        """The state's difference, or that the partitions are not made yet."""
        uuids = self._uuids(host)
        if not uuids:
            return Difference(f"{self.summary}, once {self.disk} has its partitions")
        return self.made(uuids).probe(host)

    def apply(self, host: Host, report: Report) -> None:
        """Bring the state about; raises StepFailed where a partition is missing."""
        uuids = self._uuids(host)
        if not uuids:
            raise StepFailed(
                f"{self.disk} has not the site's partitions", hint="run chapter 01_partitions"
            )
        self.made(uuids).apply(host, report)

    def _uuids(self, host: Host) -> dict[str, str]:
        found = look(host, self.disk)
        refuse_twins(found)
        parts = found.device.parts if found.device else ()
        uuids = {part.name: part.uuid for part in parts if part.uuid}
        return uuids if uuids.keys() >= set(self.names) else {}
