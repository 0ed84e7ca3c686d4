"""Consent: nothing is wiped unless its disk's serial was named, and never while it is mounted."""

from __future__ import annotations

from xenlab.errors import ConsentNeeded
from xenlab.host import Host
from xenlab.resources.disk import device_facts


def require_consent(host: Host, device: str, may_wipe: tuple[str, ...]) -> None:
    """Raise ConsentNeeded unless the serial of the device's disk is in ``may_wipe``.

    A device that is mounted, or holds a mounted partition, is refused whatever was consented to.
    """
    facts = device_facts(host, device)
    if facts.mounted_on:
        raise ConsentNeeded(
            f"{device} is in use ({', '.join(facts.mounted_on)}) and is never wiped while it is",
            hint="unmount it, or name another disk",
        )
    if not facts.serial:
        raise ConsentNeeded(
            f"{device} has no serial number, so nobody can consent to wiping just this disk",
            hint="name a disk with a serial (lsblk -o NAME,SERIAL)",
        )
    if facts.serial not in may_wipe:
        raise ConsentNeeded(
            f"this step destroys all data on {device}, whose disk has the serial {facts.serial}; "
            f"may_wipe allows only: {', '.join(may_wipe) or 'nothing'}",
            hint=f"add {facts.serial} to may_wipe if this is really the disk to wipe",
            device=device,
            serial=facts.serial,
        )
