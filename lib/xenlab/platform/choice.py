"""The answers that a site's platform gives: packages, services, and all others in one place."""

from __future__ import annotations

from functools import cached_property
from typing import Any, Protocol

from xenlab.command import Command
from xenlab.platform.apt import Apt
from xenlab.platform.base import NoneFailed, by_platform
from xenlab.platform.boot import Grub2, Power, bootloader, power
from xenlab.platform.interfaces import Interfaces, interfaces
from xenlab.platform.openrc import OpenRc
from xenlab.platform.portage import Portage
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


def where_stages_come_from(platform: str) -> str:
    """How a person gets the root tarball that becomes a platform's base system."""
    return {
        "debian": "`xenlab lab stage` builds Debian's, with its checksum file, and says where",
        "gentoo": "fetch a stage3 (amd64, openrc) with the .sha256 or DIGESTS file beside it: "
        "https://www.gentoo.org/downloads",
    }.get(platform, "")


# Services: between a chapter that wants a daemon and the init system that has it.
#
# Howto: „sshd … + Runlevel“, „syslogd, crond (mind. Runlevel)“.


class Services(Protocol):
    """What an init system can be asked for; each answer is a Resource."""

    early: str
    """A script that lists what is started before a mount of ``$1``.

    A line is who started something (a service, a unit), a tab, and the path of a program.
    """

    def enabled(self, *names: str) -> Resource:
        """These services are started at every boot."""

    def running(self, *names: str) -> Resource:
        """These services are started at every boot, and run now."""

    def disabled(self, *names: str) -> Resource:
        """These services are not started at boot, and do not run now."""

    def masked(self, *names: str) -> Resource:
        """These services do not run, and nothing can start them."""

    def reload(self, name: str) -> Command:
        """The command that has a service read its files again, if it runs."""

    def carrying(self, name: str, process: str, argument: str) -> Resource:
        """A service's process was started with this argument; else the service is restarted."""

    def defined(self, name: str, **values: Any) -> Resource:
        """A service of our own, from the template of its name; neither enabled nor started."""

    def adjusted(self, name: str, **values: Any) -> Resource:
        """What xenlab adds to a service of the distribution, from the template of its name."""

    def after_mount(self, name: str, folder: str) -> Resource:
        """A service starts once what belongs at this folder is mounted (howto: S58)."""

    def waited(self, folder: str, *names: str) -> Resource:
        """The condition that these services started after the folder was mounted."""

    def none_failed(self) -> NoneFailed:
        """The condition that no service has failed; one that did is named with its last lines."""

    def server_unordered(self) -> Resource:
        """NFS mounts do not wait for this machine's own NFS server (howto: S60)."""

    def start(self, name: str) -> Command:
        """The command that starts a service, unless it runs."""

    def stop(self, name: str) -> Command:
        """The command that stops a service, if it runs."""

    def restart(self, name: str) -> Command:
        """The command that stops a service and starts it again."""

    def runs(self, name: str) -> Command:
        """The command whose exit status is 0 where a service runs."""

    def hint(self, name: str) -> str:
        """What a person types to see how a service is."""


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
