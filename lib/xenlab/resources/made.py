"""What xenlab made on a disk, as the disk itself tells it to whichever system looks.

The names in the partition table are the mark: they outlive a new dom0, another name of the site and
each mkfs, and a rescue system reads them. The UUID of a file system, which each mkfs makes anew,
tells what is there now from what will be there under the same name.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from xenlab.consistency import DOM0_PARTITIONS
from xenlab.resources.blockdevices import Devices

DOM0 = "dom0"
MARKS = ("dom0root", "domuswap")
"""The partitions that every site's disk has, and hardly any other's."""


@dataclass(frozen=True)
class Made:
    """Something that xenlab made: dom0, or a guest, by the name of its partition.

    ``uuid`` is that of its file system; ``what`` says in words what is there.
    """

    name: str
    uuid: str
    what: str = field(default="", compare=False)

    def __str__(self) -> str:
        """Its name and its UUID, as a consent names it that is for this very file system."""
        return f"{self.name} {self.uuid}".strip()


def made_on(found: Devices) -> tuple[Made, ...]:
    """What is lost of it where the named disk or partition is wiped; each name once.

    A partition that has no file system yet holds nothing; a disk without the mark is not ours.
    """
    if found.disk is None or not any(part.name in MARKS for part in found.disk.all()):
        return ()
    things: dict[str, Made] = {}
    for part in found.device.all() if found.device else ():
        if part.name and part.system:
            name = DOM0 if part.name in DOM0_PARTITIONS else part.name
            what = f"{part.path}, {part.system}, {part.mib} MiB"
            things.setdefault(name, Made(name, part.system_uuid, what))
    return tuple(things.values())
