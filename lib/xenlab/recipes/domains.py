"""Chapter 10: a configuration file for each domain, and what it names."""

from __future__ import annotations

import pandas as pd

from xenlab.chapter import Chapter
from xenlab.disklayout import device
from xenlab.parameters import Domain, Parameters
from xenlab.platform.toolstack import Disk, DomainSpec, Vif
from xenlab.recipes.disk import swap_file
from xenlab.resources.base import Resource
from xenlab.resources.guestroot import RECORDS
from xenlab.resources.partitions import OnPartitions, by_uuid
from xenlab.resources.present import PathsExist, present

KERNEL = "/xenboot/vmlinuz-domU"
ROOT_NAME, SWAP_NAME = "xvda1", "xvda2"


def spec(site: Parameters, domain: Domain, root: str) -> DomainSpec:
    """A domain as the site wants it, with its root on the device ``root``.

    The network names are the howto's (ethX), not enX0.
    """
    return DomainSpec(
        name=domain.name,
        type=site.guest_type,
        kernel=KERNEL,
        cmdline=f"root=/dev/{ROOT_NAME} ro console=hvc0 net.ifnames=0 {site.domu_options}".strip(),
        memory_mib=domain.memory_mib,
        disks=(Disk(root, ROOT_NAME), Disk(swap_file(domain), SWAP_NAME)),
        vifs=(Vif(domain.mac, site.bridge),),
    )


def guests_configured(site: Parameters) -> Resource:
    """Each guest's root, unpacked and configured, as dom0 recorded it."""
    return PathsExist(tuple(f"{RECORDS}/{d.name}/configuration" for d in site.domains))


def named_things(site: Parameters) -> Resource:
    """The condition that the kernel, partitions and swap files that the files name are there."""
    devices = [path for d in site.domains for path in (device(site, d.partition), swap_file(d))]
    hint = "chapters 01_partitions and 08_domu_kernel make them"
    return PathsExist((KERNEL, *devices), hint)


def configured(book: Chapter) -> dict[str, Resource]:
    """Each domain's configuration file."""
    return {domain.name: _configured(book, domain) for domain in book.site.domains}


def _configured(book: Chapter, domain: Domain) -> Resource:
    """By UUID: at the next boot another disk may have the name that this one has now."""
    return OnPartitions(
        book.site.disk,
        (domain.partition,),
        lambda uuids: book.toolstack.configured(
            spec(book.site, domain, by_uuid(uuids[domain.partition]))
        ),
        f"create {book.toolstack.config_path(domain.name)}",
    )


def table(book: Chapter) -> pd.DataFrame:
    """The domains: name, memory, disks, MAC and bridge, and whether their file is written."""
    site = book.site
    specs = [spec(site, domain, device(site, domain.partition)) for domain in site.domains]
    written = present(book.target, [book.toolstack.config_path(s.name) for s in specs])
    rows = [
        {
            "name": s.name,
            "type": s.type,
            "memory (MiB)": s.memory_mib,
            "disks": ", ".join(f"{disk.name} = {disk.path}" for disk in s.disks),
            "MAC": ", ".join(vif.mac for vif in s.vifs),
            "bridge": ", ".join(vif.bridge for vif in s.vifs),
            "file": "written" if book.toolstack.config_path(s.name) in written else "not yet",
        }
        for s in specs
    ]
    return pd.DataFrame(rows)
