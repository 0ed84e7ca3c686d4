"""Consent: nothing is wiped unless it was named, and never while it is in use.

A disk's serial in ``may_wipe`` covers what is empty or foreign. What xenlab itself made, a guest
with its data above all, wants a consent by its own name as well: for one run (``--destroy domu1``),
or for the file system that is there now and no later one (``may_destroy: [domu1 UUID]``, or the
name typed into the card).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from xenlab.errors import BadInput, ConsentNeeded
from xenlab.host import Host
from xenlab.journal import Journal
from xenlab.resources.base import Resource
from xenlab.resources.identity import Identified, identified
from xenlab.resources.made import Made


@dataclass(frozen=True)
class Consents:
    """What somebody has agreed to lose: disks by serial, what xenlab made by name.

    "domu1" is whatever has that name, "domu1 UUID" only what is there under it now.
    """

    disks: tuple[str, ...] = ()
    made: tuple[str, ...] = ()

    def without(self, things: Iterable[Made]) -> tuple[Made, ...]:
        """Those of what xenlab made that nobody has agreed to lose."""
        return tuple(t for t in things if t.name not in self.made and str(t) not in self.made)


@dataclass(frozen=True)
class Agreed:
    """What may be destroyed: on the disk with this identity alone, and of what xenlab made this."""

    identity: str = ""
    lost: tuple[Made, ...] = ()


def require_consents(
    host: Host, resources: Iterable[Resource], consents: Consents
) -> dict[str, Agreed]:
    """What may be destroyed, by device; raises ConsentNeeded for all that nobody agreed to lose."""
    agreed = {
        r.wipes(): Agreed(require_consent(host, r.wipes(), consents.disks), r.destroys(host))
        for r in resources
        if r.wipes()
    }
    needed = {device: consents.without(each.lost) for device, each in agreed.items()}
    refused = refusal_by_name(needed)
    if refused is not None:
        raise refused
    return agreed


def require_consent(host: Host, device: str, may_wipe: tuple[str, ...]) -> str:
    """The identity of the device's disk; raises ConsentNeeded unless ``may_wipe`` names it.

    A device that is in use, or holds what is, is refused whatever was consented to.
    """
    found = identified(host, device)
    refused = refusal(found, device, may_wipe)
    if refused is not None:
        raise refused
    return found.identity


def would_refuse(host: Host, resources: Iterable[Resource], consents: Consents) -> str:
    """Why what these wipe would be refused now, "" where it would not be.

    A device that is not there yet lies on the disk that an earlier step partitions.
    """
    try:
        require_consents(host, resources, consents)
    except BadInput:
        return ""
    except ConsentNeeded as refused:
        return f"{refused.message} ({refused.hint})" if refused.made else refused.message
    return ""


def planned_before(journal: Journal, disk: str) -> str:
    """Which step of this run's plan would make the disk anew, in words; "" where none would."""
    finals = (record for record in journal.records() if record.get("phase") == "final")
    latest = {(record["chapter"], record["step"]): record for record in finals}
    for record in latest.values():
        if disk in record.get("wipes", ()):
            return f"step {record['step']} has made {disk} anew"
    return ""


def refusal(found: Identified, device: str, may_wipe: tuple[str, ...]) -> ConsentNeeded | None:
    """Why the device must not be wiped, None where it may be."""
    if found.device.used:
        return ConsentNeeded(
            f"{device} is in use ({', '.join(found.device.used)}) and is never wiped while it is",
            hint="unmount it, or name another disk",
        )
    if any(value in may_wipe for _, value in found.known_by):
        return None
    kind, best = found.known_by[0]
    return ConsentNeeded(
        f"this step destroys all data on {device}, whose disk has the {kind} {best}; "
        f"may_wipe allows only: {', '.join(may_wipe) or 'nothing'}",
        hint=f"add {best!r} to may_wipe if this is really the disk to wipe",
        device=device,
        serial=best,
    )


def refusal_by_name(needed: Mapping[str, Sequence[Made]]) -> ConsentNeeded | None:
    """Why what xenlab made on these devices must not be destroyed, None where that is nothing."""
    things = {str(thing): thing for each in needed.values() for thing in each}
    if not things:
        return None
    listed = "; ".join(f"{thing.name} ({thing.what})" for thing in things.values())
    names = dict.fromkeys(thing.name for thing in things.values())
    return ConsentNeeded(
        f"this step destroys what xenlab made, and nobody has agreed to lose it: {listed}",
        hint=f"to lose it, run this with {' '.join(f'--destroy {name}' for name in names)}, or "
        f"have may_destroy: [{', '.join(things)}]",
        device=", ".join(device for device, each in needed.items() if each),
        made=tuple(things),
    )
