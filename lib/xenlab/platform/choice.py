"""The answers that a site's platform gives: packages, services, and all others in one place."""

from __future__ import annotations

from functools import cached_property
from typing import Protocol

from xenlab.command import Command
from xenlab.host import Host
from xenlab.platform.apt import Apt
from xenlab.platform.base import INDEX_DAYS, Update, by_platform
from xenlab.platform.base import Services as Services
from xenlab.platform.boot import Grub2, bootloader
from xenlab.platform.interfaces import Interfaces, interfaces
from xenlab.platform.openrc import OpenRc
from xenlab.platform.portage import Portage
from xenlab.platform.power import Power, power
from xenlab.platform.systemd import Systemd
from xenlab.platform.xl import Xl, toolstack
from xenlab.resources.base import Resource
from xenlab.site.schema import Parameters

# Packages: between a chapter that wants software and the distribution that has it.
#
# Howto: „Software“ and the remarks on Portage in „System“.


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

    def sources(
        self, mirror: str = "", security: str = "", folder: str = "", root: str = "/"
    ) -> tuple[Resource, ...]:
        """Where packages come from, if not from where the stage says.

        ``folder`` is the controller's; ``root`` is the installed root as the machine sees it.
        """

    def lent(self) -> tuple[Resource, ...]:
        """What asks other machines to compile as well, where the site names some."""

    def updated(self, days: int = INDEX_DAYS) -> Resource:
        """The index of packages is there and not older than that."""

    def pending(self, host: Host) -> tuple[int, list[Update]] | None:
        """How many packages are installed, and what `upgraded` would do; None: nobody can say."""

    def upgraded(self, *, from_store: bool = False) -> Resource:
        """What is installed is as new as the index says; ``from_store`` as in `from_store`.

        Raises BadInput where the platform leaves that to a person.
        """

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

    def hypervisor(self, firmware: str = "bios") -> Resource:
        """Xen, its tools and the boot loader for this firmware are installed."""

    def store(self, share: str) -> tuple[Resource, ...]:
        """What was fetched or built, packages and index, is kept on the share for every domain."""


def packages(site: Parameters) -> Packages:
    """The package manager of a site's platform. Raises BadInput where it has none."""
    answers: dict[str, Packages] = {
        "debian": Apt(site.share, site.package_proxy),
        "gentoo": Portage(site.portage, site.package_proxy),
    }
    return by_platform(site.platform, "package manager", answers)


def has_releases(site: Parameters) -> bool:
    """Whether a site's `release` says what its stage is, as with Debian."""
    return site.platform == "debian"


def where_stages_come_from(platform: str) -> str:
    """How a person gets the root tarball that becomes a platform's base system."""
    return {
        "debian": "`xenlab lab stage` builds Debian's, with its checksum file, and says where",
        "gentoo": "fetch a stage3 (amd64, openrc) with the .sha256 or DIGESTS file beside it: "
        "https://www.gentoo.org/downloads",
    }.get(platform, "")


def services(platform: str) -> Services:
    """A platform's init system. Raises BadInput where it has none."""
    answers: dict[str, Services] = {"debian": Systemd(), "gentoo": OpenRc()}
    return by_platform(platform, "init system", answers)


# What a site answers to the few questions that distributions and machines answer differently.


class PlatformAnswers:
    """A site's answers; a chapter asks them, never which distribution it works on."""

    def __init__(self, site: Parameters) -> None:
        self.site = site

    @cached_property
    def packages(self) -> Packages:
        """The site's way of installing software."""
        return packages(self.site)

    @cached_property
    def services(self) -> Services:
        """The site's way of keeping services."""
        return services(self.site.platform)

    @cached_property
    def interfaces(self) -> Interfaces:
        """The site's way of giving interfaces their addresses."""
        return interfaces(self.site.platform)

    @cached_property
    def bootloader(self) -> Grub2:
        """The site's way of booting the hypervisor."""
        return bootloader(self.site.platform)

    @cached_property
    def toolstack(self) -> Xl:
        """The site's way of starting, watching and stopping domains."""
        return toolstack(self.site.platform)

    @cached_property
    def power(self) -> Power:
        """The site's way of making the machine boot another medium."""
        return power(self.site)
