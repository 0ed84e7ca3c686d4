"""Chapter 09: each guest's root from the image, its own configuration, its pinned host key."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd

from xenlab.chapter import Chapter, way_to
from xenlab.disklayout import device
from xenlab.parameters import Domain, Parameters
from xenlab.platform.guestsystem import GuestSettings, guest_system
from xenlab.resources.base import Resource
from xenlab.resources.guest import GuestConfigured, GuestRoot
from xenlab.resources.guestaccess import HostKeyPinned, HostKeysDiffer, fingerprint, host_keys
from xenlab.resources.image import ImageProof


def image_proven(site: Parameters) -> Resource:
    """The proof of what is in the image."""
    return ImageProof(site.image)


def roots(site: Parameters) -> dict[str, Resource]:
    """Each guest's partition with the image unpacked into it, and who may log in."""
    return {
        d.name: GuestRoot(
            *(d.name, device(site, d.partition), site.image),
            label=d.partition,
            way=way_to(site, d.name),
        )
        for d in site.domains
    }


def configurations(site: Parameters) -> dict[str, Resource]:
    """Each guest's own files, host key and machine id."""
    system = guest_system(site.platform)
    return {
        d.name: GuestConfigured(d.name, device(site, d.partition), system.files(settings(site, d)))
        for d in site.domains
    }


def settings(site: Parameters, domain: Domain) -> GuestSettings:
    """What is a guest's own."""
    return GuestSettings(
        name=domain.name,
        domain=site.domain,
        address=domain.address,
        gateway=site.gateway,
        nameserver=site.nameserver,
        dom0=site.hostname,
        dom0_address=site.address,
    )


def keys_differ(site: Parameters) -> Resource:
    """The condition that no two guests share a host key."""
    return HostKeysDiffer(tuple(d.name for d in site.domains))


def pins(site: Parameters) -> list[Resource]:
    """Each guest's host key, pinned where the site's ssh_config looks for it."""
    return [HostKeyPinned(d.name, way_to(site, d.name)) for d in site.domains]


def fingerprints(book: Chapter) -> Callable[[], pd.DataFrame]:
    """A table of the guests' host keys, read when the step runs."""

    def table() -> pd.DataFrame:
        keys = host_keys(book.target, tuple(d.name for d in book.site.domains))
        rows = [
            [d.name, d.address.partition("/")[0], fingerprint(keys[d.name]) or "not made yet"]
            for d in book.site.domains
        ]
        return pd.DataFrame(rows, columns=["guest", "address", "host key"])

    return table
