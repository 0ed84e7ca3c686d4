"""Packages: the seam between a chapter that wants software and the distribution that has it.

Howto: „Software“ and the remarks on Portage in „System“.
"""

from __future__ import annotations

from typing import Protocol

from xenlab.command import Command
from xenlab.errors import BadInput
from xenlab.parameters import Parameters
from xenlab.platform.apt import Apt
from xenlab.platform.portage import Portage
from xenlab.resources.base import Resource


class Packages(Protocol):
    """What a package manager can be asked for; each answer is a Resource."""

    nfs_client: tuple[str, ...]
    """What mounts something over NFS."""

    nfs_server: tuple[str, ...]
    """What exports something over NFS."""

    static_shell: tuple[str, ...]
    """A shell with mount and the like that needs no library."""

    imaging: tuple[str, ...]
    """What takes and proves an image: tar, zstd, getcap."""

    compiler: tuple[str, ...]
    """What compiles a kernel, as far as it is not there anyway."""

    store_folder: str
    """The folder on the share that the store lies in."""

    waiting: Command
    """Prints old and new path, separated by a tab, of each configuration file that was kept."""

    def settled(self) -> tuple[Resource, ...]:
        """How packages are fetched and built: alike in every domain (howto: „Hirnschmalz“)."""

    def lent(self) -> tuple[Resource, ...]:
        """What asks other machines to compile as well, where the site names some."""

    def updated(self) -> Resource:
        """The index of packages is there and not too old."""

    def installed(self, *names: str) -> Resource:
        """These packages are installed."""

    def removed(self, *names: str) -> Resource:
        """These packages are not installed, unless another one needs them, which is an error."""

    def stored(self, *names: str) -> Resource:
        """dom0 has fetched or built these packages, so that they are in the store."""

    def from_store(self, *names: str) -> Resource:
        """These packages are installed; what is not in the store is neither fetched nor built.

        Nothing is written to the store, and what is taken from it is checked once it was read.
        """

    def hypervisor(self) -> Resource:
        """Xen, its tools and the boot loader are installed."""

    def store(self, share: str) -> tuple[Resource, ...]:
        """What was fetched or built, packages and index, is kept on the share for every domain."""


def packages(site: Parameters) -> Packages:
    """A site's answer. Raises BadInput where its platform has none."""
    if site.platform == "debian":
        return Apt(site.share, site.package_proxy)
    if site.platform == "gentoo":
        return Portage(site.portage, site.package_proxy)
    raise BadInput(
        f"platform: nobody has written down yet how {site.platform!r} installs packages",
        hint="use platform: debian",
    )
