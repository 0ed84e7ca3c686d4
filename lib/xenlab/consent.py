"""Consent: nothing is wiped unless its disk was named, and never while it is in use."""

from __future__ import annotations

from xenlab.errors import BadInput, ConsentNeeded
from xenlab.host import Host
from xenlab.journal import Journal
from xenlab.resources.identity import Identified, identified


def require_consent(host: Host, device: str, may_wipe: tuple[str, ...]) -> str:
    """The identity of the device's disk; raises ConsentNeeded unless ``may_wipe`` names it.

    A device that is in use, or holds what is, is refused whatever was consented to.
    """
    found = identified(host, device)
    refused = refusal(found, device, may_wipe)
    if refused is not None:
        raise refused
    return found.identity


def would_refuse(host: Host, device: str, may_wipe: tuple[str, ...]) -> str:
    """Why wiping the device would be refused now, "" where it would not be.

    A device that is not there yet lies on the disk that an earlier step partitions.
    """
    try:
        refused = refusal(identified(host, device), device, may_wipe)
    except BadInput:
        return ""
    return refused.message if refused else ""


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
