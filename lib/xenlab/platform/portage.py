"""Gentoo's answer to how software is installed: emerge(1), make.conf(5), portage(5).

Howto: the remarks on Portage in „Hirnschmalz“ and „System“. A domain compiles, the others take what
it built.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from xenlab.command import Command
from xenlab.errors import BadInput, CommandFailed, StepFailed
from xenlab.host import Host
from xenlab.platform.base import (
    INDEX_DAYS,
    Index,
    PackageState,
    Update,
    lock_functions,
    new_versions,
    require_unneeded,
    run_when_unlocked,
)
from xenlab.resources.base import All, Difference, Report, Resource
from xenlab.resources.files import File, Relocated
from xenlab.site import schema as parameters

# distcc: other machines compile what this one is too slow for (distcc(1), distccd(1)).
#
# Howto: „distcc (mein PC ist schneller als mein Server)“.

DISTCC_HOSTS = "/etc/distcc/hosts"
DISTCC_PORT = 3632
DISTCC_JOBS = 4


@dataclass(frozen=True)
class Helper:
    """A machine on which distccd runs, and how many compilations it takes at a time."""

    host: str
    port: int = DISTCC_PORT
    jobs: int = DISTCC_JOBS

    def __str__(self) -> str:
        return f"{self.host}:{self.port}/{self.jobs}"


def parse_helper(text: str) -> Helper:
    """HOST, HOST:PORT, HOST/JOBS or HOST:PORT/JOBS, as in `xenlab.site.types.DistccHost`."""
    place, _, jobs = text.partition("/")
    host, _, port = place.partition(":")
    return Helper(host, int(port or DISTCC_PORT), int(jobs or DISTCC_JOBS))


def distcc_hosts(helpers: Sequence[Helper]) -> File:
    """distcc asks these machines."""
    text = "".join(f"{helper}\n" for helper in helpers)
    return File(DISTCC_HOSTS, f"# written by xenlab, chapter 02\n{text}")


def silent_helpers(host: Host, helpers: Sequence[Helper]) -> list[str]:
    """Those that a machine cannot reach now, as HOST:PORT."""
    script = """
        timeout 20 bash -c ': < "/dev/tcp/$1/$2"' bash "$1" "$2"
    """
    return [
        f"{helper.host}:{helper.port}"
        for helper in helpers
        if not host.test(Command.script(script, helper.host, str(helper.port)), timeout=60)
    ]


# Portage's packages: what is installed, with which USE, and what is to go (emerge(1)).

INSTALLED = "/var/db/pkg"
PROVIDED = "/etc/portage/profile/package.provided"

# emerge waits for these as well, but without end, and does not say for whom
_LOCKS = lock_functions(
    "/var/db/.pkg.portage_lockfile",
    "/var/lib/portage/.world.portage_lockfile",
    "/var/cache/binpkgs/.Packages.portage_lockfile",
)
TOOLS = f"""
    export LC_ALL=C.UTF-8 NOCOLOR=true
    {_LOCKS}
    had_to_wait || :
"""

# A name may itself hold hyphens and digits: the version is what is left at its end (PMS, 3.2).
_VERSION = re.compile(
    r"-[0-9]+(\.[0-9]+)*[a-z]?(_(alpha|beta|pre|rc|p)[0-9]*)*(-r[0-9]+)?", re.ASCII
)
_NO_DATABASE = 44


@dataclass(frozen=True)
class Built:
    """An installed package: name with version, the flags it was built with, all it knows."""

    name: str
    use: frozenset[str] = frozenset()
    knows: frozenset[str] = frozenset()


@dataclass(frozen=True)
class PortagePackages(PackageState):
    """Packages that are installed, or provided by the base system, with these USE flags.

    ``build`` false: only binary packages are taken, and those only where their USE is the same.
    Without ``helpers`` that answer, distcc(1) compiles here; it is only slower.
    """

    flags: Mapping[str, Mapping[str, bool]]
    build: bool = True
    helpers: tuple[Helper, ...] = ()

    system = "gentoo"

    def probe(self, host: Host) -> Difference | None:
        """A table of the packages that are missing, or were built with other flags."""
        return self.compare(listing(host, self.names))

    def compare(self, text: str) -> Difference | None:
        """The difference to what the package database lists."""
        found = parse_installed(text)
        states = {n: self._state(found.get(n), self.flags.get(n, {})) for n in self.names}
        return self.table("install", {name: state for name, state in states.items() if state})

    def _state(self, built: Built | None, flags: Mapping[str, bool]) -> str:
        """What is wrong with a package, "" where nothing is."""
        if built is None:
            return "not installed"
        other = [
            f"{'-' if wanted else ''}{flag}"
            for flag, wanted in flags.items()
            if flag in built.knows and (flag in built.use) != wanted
        ]
        return f"{built.name} with USE {' '.join(other)}" if other else ""

    def commands(self) -> tuple[Command, ...]:
        """Emerge what is missing or built otherwise."""
        how = ("--buildpkg", "--usepkg") if self.build else ("--usepkgonly",)
        words = ("--changed-use", "--binpkg-respect-use=y", *how)
        return (Command.argv("emerge", *words, *self.names),)

    def apply(self, host: Host, report: Report) -> None:
        """Emerge what is missing or built otherwise. Configuration files stay as they are.

        Raises StepFailed where nothing may be built and there is no binary package that fits.
        """
        silent = silent_helpers(host, self.helpers)
        without = f" without {', '.join(silent)}, which do not answer" if silent else ""
        report(f"emerging {len(self.names)} packages{without}")
        script = """
            how=$1; shift
            # --changed-use leaves alone what is installed already, and as it should be
            emerge --color n --nospinner --quiet-build=y --changed-use \
                --binpkg-respect-use=y $how -- "$@"
        """
        how = "--buildpkg --usepkg" if self.build else "--usepkgonly"
        command = Command.script(TOOLS + script, how, *self.names)
        command = command.typed_as(self.commands()[0].text)
        result = run_when_unlocked(host, command, report, check=False)
        said = result.stdout + result.stderr
        # where the package is installed, only with other flags, emerge is content with that
        if result.ok and (self.build or self.probe(host) is None):
            return
        if not self.build and (result.ok or "no binary packages" in said):
            raise StepFailed(
                f"cannot install {', '.join(self.names)}: because no binary package fits this "
                "domain's USE:\n" + "\n".join(said.strip().splitlines()[-12:]),
                hint="build it anew where a compiler is, or look at portage: use and package_use",
            )
        raise CommandFailed(result)


@dataclass(frozen=True)
class PortageRemoved(PackageState):
    """Packages that are not installed; what the base system provides is none of Portage's."""

    system = "gentoo"

    def probe(self, host: Host) -> Difference | None:
        """A table of those that are."""
        if not self.names:
            return None
        found = parse_installed(listing(host, self.names, provided=False))
        return self.table("remove", {n: found[n].name for n in self.names if n in found})

    def commands(self) -> tuple[Command, ...]:
        """Remove them, unless something that is installed needs them."""
        return (Command.argv("emerge", "--depclean", *self.names),) if self.names else ()

    def apply(self, host: Host, report: Report) -> None:
        """Raises StepFailed, with who needs it, where something that is installed does."""
        report(f"removing {', '.join(self.names)}")
        script = 'emerge --color n --nospinner --verbose --depclean -- "$@"'
        command = Command.script(TOOLS + script, *self.names)
        command = command.typed_as(self.commands()[0].text)
        result = run_when_unlocked(host, command, report, check=False)
        left = self.probe(host)
        if left is not None and "pulled in by" in result.stdout:
            names = ", ".join(row["package"] for row in left.rows)
            said = "\n".join(result.stdout.strip().splitlines()[-12:])
            raise StepFailed(
                f"cannot remove {names}: because something else needs it:\n{said}",
                hint="take it out of unwanted, or add what needs it",
            )
        if not result.ok:
            raise CommandFailed(result)


def listing(host: Host, names: Iterable[str], *, provided: bool = True) -> str:
    """What the package database, and the list of what is provided, say of these packages."""
    script = """
        cd -- "$1" 2> /dev/null || exit 44
        [ ! -e "$2" ] || sed "s/^/provided\t/" "$2"
        shift 2
        for name do
            for folder in "$name"-[0-9]*; do
                [ -d "$folder" ] || continue
                use=$(cat "$folder/USE" 2> /dev/null | tr '\n' ' ')
                knows=$(cat "$folder/IUSE" 2> /dev/null | tr '\n' ' ')
                printf 'installed\t%s\t%s\t%s\n' "$folder" "$use" "$knows"
            done
        done
    """
    command = Command.script(script, INSTALLED, PROVIDED if provided else "", *names)
    result = host.look(command, _NO_DATABASE)
    return result.stdout if result is not None and result.ok else ""


def parse_installed(listing: str) -> dict[str, Built]:
    """The packages of a probe's output by category/name; an installed one before a provided one."""
    found: dict[str, Built] = {}
    for kind, words in _lines(listing):
        name = split_version(words[0])
        if name is None or (kind == "provided" and name in found):
            continue
        use, knows = (words[1], words[2]) if len(words) > 2 else ("", "")
        flags = frozenset(flag.lstrip("+-") for flag in knows.split())
        found[name] = Built(words[0], frozenset(use.split()), flags)
    return found


def split_version(package: str) -> str | None:
    """category/name of category/name-version; None where there is no version."""
    for match in _VERSION.finditer(package):
        if match.end() == len(package):
            return package[: match.start()]
    return None


def _lines(listing: str) -> Iterator[tuple[str, list[str]]]:
    for line in listing.splitlines():
        kind, *words = line.split("\t")
        if kind in ("installed", "provided") and words and words[0].strip():
            yield kind, [word.strip() for word in words]


TREES = "/var/db/repos"
HYPERVISOR = ("app-emulation/xen", "app-emulation/xen-tools", "sys-boot/grub")

UEFI_TOOLS = ("sys-boot/efibootmgr", "sys-fs/dosfstools")
UEFI_USE = "# written by xenlab, chapter 02\nsys-boot/grub GRUB_PLATFORMS: efi-64\n"

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
        self.helpers = tuple(parse_helper(text) for text in settings.distcc)

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
            *([distcc_hosts(self.helpers)] if self.helpers else []),
        )

    def sources(
        self, mirror: str = "", security: str = "", folder: str = "", root: str = "/"
    ) -> tuple[Resource, ...]:
        """Nothing: `settled` says where the tree comes from, and its files say the rest."""
        return ()

    def lent(self) -> tuple[Resource, ...]:
        """distcc, where the site names servers of it; what it is built with is there by then."""
        return (self.installed("sys-devel/distcc"),) if self.helpers else ()

    def updated(self, days: int = INDEX_DAYS) -> Resource:
        """The trees were synced not long ago, and from where the site says."""
        index = Index(TREES, "*/profiles/repo_name", "emerge --sync", SYNC, days=days)
        if not self.settings.sync:
            return index
        settings = self._repositories()
        return All((settings, replace(index, settings=settings.path)))

    def pending(self, host: Host) -> tuple[int, list[Update]] | None:
        """Nobody can say without hours of work: what Portage would do depends on what it builds."""
        return None

    def upgraded(self, *, from_store: bool = False) -> Resource:
        """Refused: what an update of @world builds, and asks for, a person decides."""
        raise BadInput(
            "cannot update packages with Portage: because it may ask for other USE flags, and "
            "builds for hours",
            hint="emerge --ask --update --deep --newuse @world in dom0; leave updates empty",
        )

    def installed(self, *names: str) -> Resource:
        """These packages are installed with the site's USE; compiled where no binary fits."""
        return PortagePackages(names, self.flags(names), helpers=self.helpers)

    def removed(self, *names: str) -> Resource:
        """``emerge --depclean``: what another package, or a chapter, needs is refused."""
        needed = (*self.nfs_client, *self.nfs_server, *self.static_shell, *self.imaging)
        require_unneeded(names, (*needed, *HYPERVISOR, "net-misc/openssh"))
        return PortageRemoved(names)

    def stored(self, *names: str) -> Resource:
        """Installed in dom0: what it builds is kept as binary packages."""
        return self.installed(*names)

    def from_store(self, *names: str) -> Resource:
        """``emerge --usepkgonly``: a binary that was built with another USE is refused."""
        return PortagePackages(names, self.flags(names), build=False)

    def hypervisor(self, firmware: str = "bios") -> Resource:
        """app-emulation/xen, its tools, and GRUB for the machine's firmware."""
        if firmware != "uefi":
            return self.installed(*HYPERVISOR)
        # a file of its own: guests, who have the same make.conf, boot without GRUB
        platform = File("/etc/portage/package.use/xenlab-uefi", UEFI_USE)
        return All((platform, self.installed(*HYPERVISOR, *UEFI_TOOLS)))

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
