"""The base system of dom0: the stage on its root, the share, sources and packages moved there.

Howto: „System“.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from xenlab import quoting
from xenlab.command import Command
from xenlab.parameters import Parameters
from xenlab.recipes.disk import SWAP_FOLDER, below
from xenlab.resources.archive import Archive, Upload
from xenlab.resources.base import Resource
from xenlab.resources.checksum import packaged_checksum, read_checksum
from xenlab.resources.condition import Condition
from xenlab.resources.files import File, Line
from xenlab.resources.partitions import OnPartitions
from xenlab.resources.relocated import Relocated

SOURCES = "/usr/src"


def stage(site: Parameters, root: str) -> Archive:
    """The stage on the installed root. Raises BadInput where its checksum file is not right."""
    return Archive(site.stage, stage_checksum(site), root, store=below(root, f"{site.share}/stage"))


def stage_checksum(site: Parameters) -> str:
    """The checksum that the site's stage must have; raises BadInput where it cannot be told."""
    return read_checksum(
        site.stage_checksums, site.stage, site.checksum_keyring, site.checksum_signers
    )


def resolver(site: Parameters) -> Resource:
    """The site's name server, without which the installed system finds no packages."""
    return Line("/etc/resolv.conf", f"nameserver {site.nameserver}", key="nameserver ")


def sources_moved(site: Parameters) -> Relocated:
    """The kernel sources' folder, on the share and linked back."""
    return Relocated(SOURCES, f"{site.share}/src")


def kernel_source(site: Parameters) -> Upload:
    """The kernel source tarball in the sources' folder; raises BadInput as `kernel_checksum`."""
    return Upload(site.kernel_source, kernel_tarball(site), kernel_checksum(site))


def kernel_checksum(site: Parameters) -> str:
    """The checksum that the kernel sources must have: the site's, or by Debian's package.

    Raises BadInput where neither says it.
    """
    if not site.kernel_checksums:
        return packaged_checksum(site.kernel_source)
    return read_checksum(
        site.kernel_checksums, site.kernel_source, site.checksum_keyring, site.checksum_signers
    )


def kernel_tarball(site: Parameters) -> str:
    """The path of the kernel source tarball on the installed system."""
    return f"{site.share}/src/{Path(site.kernel_source).name}"


def fstab(site: Parameters) -> Resource:
    """What is mounted at boot, by the UUIDs of the partitions on the site's own disk."""
    return OnPartitions(
        site.disk,
        ("dom0root", "boot", "dom0swap", "share", "domuswap"),
        lambda uuids: fstab_file(site, uuids),
        "write /etc/fstab",
    )


def fstab_file(site: Parameters, uuids: Mapping[str, str]) -> File:
    """fstab(5), with the UUID of each partition by its name.

    The share has no "nofail": the guests live on it.
    """
    rows = (
        ("dom0root", "/", "ext4", "noatime", "0", "1"),
        ("boot", "/boot", "ext4", "noatime", "0", "2"),
        ("dom0swap", "none", "swap", "sw", "0", "0"),
        ("share", site.share, "ext4", "noatime", "0", "2"),
        ("domuswap", SWAP_FOLDER, "ext4", "noatime", "0", "2"),
    )
    lines = (
        "  ".join([f"PARTUUID={uuids[name]}", *(quoting.fstab(field) for field in fields)])
        for name, *fields in rows
    )
    return File(
        "/etc/fstab", "# written by xenlab, chapter 02; see fstab(5)\n" + "\n".join(lines) + "\n"
    )


def tls_settled() -> Resource:
    """The howto's TLS problem does not arise: kernel and C library are 64 bit.

    A 32 bit Xen cut the segments that a 32 bit C library reaches its thread-local storage through
    with negative offsets, and every access was emulated. 64 bit code goes by the base of %fs, which
    has no limit that Xen would need: no flag, no other glibc.
    """
    script = """
        [ "$(getconf LONG_BIT)" = 64 ]
        # byte 4 of an ELF file is its class: 2 is 64 bit
        [ "$(od -An -tx1 -j4 -N1 "$(readlink -f /sbin/init)" | tr -d ' ')" = 02 ]
    """
    return Condition(
        Command.script(script),
        "the installed system is not 64 bit: it would need the howto's flags",
    )
