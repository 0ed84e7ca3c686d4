"""Gentoo's answer to how software is installed: emerge(1), make.conf(5), portage(5).

Howto: the remarks on Portage in „Hirnschmalz“ and „System“. A domain compiles, the others take what
it built.
"""

from __future__ import annotations

from collections.abc import Iterable

from xenlab import parameters
from xenlab.platform import distcc
from xenlab.platform.package_index import (
    Index,
    new_versions,
    require_unneeded,
)
from xenlab.platform.portage_packages import TOOLS, PortagePackages, PortageRemoved
from xenlab.resources.base import Resource
from xenlab.resources.condition import Together
from xenlab.resources.files import File
from xenlab.resources.relocated import Relocated

TREES = "/var/db/repos"
HYPERVISOR = ("app-emulation/xen", "app-emulation/xen-tools", "sys-boot/grub")

SYNC = f"{TOOLS} emerge --color n --nospinner --quiet --sync"


class Portage:
    """Portage as Gentoo has it today: tree, sources and binary packages below /var.

    The site's settings hold for every domain, or a package that one has built would be of no use to
    the others.
    """

    nfs_client: tuple[str, ...] = ("net-fs/nfs-utils",)
    nfs_server: tuple[str, ...] = ("net-fs/nfs-utils",)
    static_shell: tuple[str, ...] = ("sys-apps/busybox",)
    imaging: tuple[str, ...] = ("app-arch/tar", "app-arch/zstd", "sys-libs/libcap")
    compiler: tuple[str, ...] = ()
    store_folder = "portage"
    waiting = new_versions(r"/\._cfg[0-9]{4}_([^/]*)$", r"/\1")

    def __init__(self, settings: parameters.Portage, proxy: str = "") -> None:
        self.settings = settings
        self.proxy = proxy
        self.helpers = tuple(distcc.parse_helper(text) for text in settings.distcc)

    def settled(self) -> tuple[Resource, ...]:
        """What Portage reads in /etc/portage, from the same templates for all domains."""
        settings = self.settings
        values = {
            "cflags": settings.cflags,
            "use": " ".join(settings.use),
            "proxy": self.proxy,
            "jobs": sum(helper.jobs for helper in self.helpers),
        }
        return (
            File("/etc/portage/make.conf", template="make.conf.j2", values=values),
            _lines_file("package.use", settings.package_use),
            _lines_file("package.accept_keywords", settings.accept_keywords),
            self._repositories(),
            *([distcc.hosts(self.helpers)] if self.helpers else []),
        )

    def lent(self) -> tuple[Resource, ...]:
        """distcc, where the site names servers of it; what it is built with is there by then."""
        return (self.installed("sys-devel/distcc"),) if self.helpers else ()

    def updated(self) -> Resource:
        """The trees were synced not long ago, and from where the site says."""
        if not self.settings.sync:
            return Index(TREES, "*/profiles/repo_name", "emerge --sync", SYNC)
        settings = self._repositories()
        synced = Index(TREES, "*/profiles/repo_name", "emerge --sync", SYNC, settings=settings.path)
        return Together((settings, synced))

    def installed(self, *names: str) -> Resource:
        """These packages are installed with the site's USE; compiled where no binary fits."""
        return PortagePackages(names, self.flags(names), helpers=self.helpers)

    def removed(self, *names: str) -> Resource:
        """``emerge --depclean``: what another package, or a chapter, needs is refused."""
        kept = (*self.nfs_client, *self.nfs_server, *self.static_shell, *self.imaging)
        require_unneeded(names, (*kept, *HYPERVISOR, "net-misc/openssh"))
        return PortageRemoved(names)

    def stored(self, *names: str) -> Resource:
        """Installed in dom0: what it builds is kept as binary packages."""
        return self.installed(*names)

    def from_store(self, *names: str) -> Resource:
        """``emerge --usepkgonly``: a binary that was built with another USE is refused."""
        return PortagePackages(names, self.flags(names), build=False)

    def hypervisor(self) -> Resource:
        """app-emulation/xen, its tools, and GRUB."""
        return self.installed(*HYPERVISOR)

    def store(self, share: str) -> tuple[Resource, ...]:
        """Trees, sources and binary packages lie on the share, linked back."""
        folders = {
            TREES: "repos",
            "/var/cache/distfiles": "distfiles",
            "/var/cache/binpkgs": "binpkgs",
        }
        return tuple(
            Relocated(path, f"{share}/{self.store_folder}/{name}") for path, name in folders.items()
        )

    def _repositories(self) -> File:
        kinds = {
            name: ("rsync" if uri.startswith("rsync://") else "git", uri)
            for name, uri in self.settings.sync.items()
        }
        values = {"repositories": kinds, "trees": TREES}
        return File("/etc/portage/repos.conf/xenlab.conf", template="repos.conf.j2", values=values)

    def flags(self, names: Iterable[str]) -> dict[str, dict[str, bool]]:
        """The USE flags that the site asks for, by package: flag to whether it is on."""
        own: dict[str, dict[str, bool]] = {}
        for line in self.settings.package_use:
            name, *words = line.split()
            own.setdefault(name, {}).update(_switched(words))
        return {name: {**_switched(self.settings.use), **own.get(name, {})} for name in names}


def _lines_file(name: str, lines: Iterable[str]) -> File:
    text = "".join(f"{line}\n" for line in lines)
    return File(f"/etc/portage/{name}/xenlab", f"# written by xenlab, chapter 02\n{text}")


def _switched(words: Iterable[str]) -> dict[str, bool]:
    return {word.lstrip("-"): not word.startswith("-") for word in words}
