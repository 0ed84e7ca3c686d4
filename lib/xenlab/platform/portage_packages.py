"""Portage's packages: what is installed, with which USE, and what is to go (emerge(1))."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from xenlab.command import Command
from xenlab.errors import CommandFailed, StepFailed
from xenlab.host import Host
from xenlab.platform import distcc, locks
from xenlab.platform.package_index import INSTALL_SECONDS, NO_ROOT, require_names
from xenlab.resources.base import Difference, Report, Resource

INSTALLED = "/var/db/pkg"
PROVIDED = "/etc/portage/profile/package.provided"

# emerge waits for these as well, but without end, and does not say for whom
_LOCKS = locks.patiently(
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
class PortagePackages(Resource):
    """Packages that are installed, or provided by the base system, with these USE flags.

    ``build`` false: only binary packages are taken, and those only where their USE is the same.
    Without ``helpers`` that answer, distcc(1) compiles here; it is only slower.
    """

    names: tuple[str, ...]
    flags: Mapping[str, Mapping[str, bool]]
    build: bool = True
    helpers: tuple[distcc.Helper, ...] = ()

    def __post_init__(self) -> None:
        require_names(self.names, "gentoo")

    def probe(self, host: Host) -> Difference | None:
        """A table of the packages that are missing, or were built with other flags."""
        return self.compare(listing(host, self.names))

    def compare(self, text: str) -> Difference | None:
        """The difference to what the package database lists."""
        found = parse_installed(text)
        rows = tuple(
            {"package": name, "found": state}
            for name in self.names
            if (state := self._state(found.get(name), self.flags.get(name, {})))
        )
        if not rows:
            return None
        return Difference(f"install {', '.join(row['package'] for row in rows)}", rows=rows)

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

    def apply(self, host: Host, report: Report) -> None:
        """Emerge what is missing or built otherwise. Configuration files stay as they are.

        Raises StepFailed where nothing may be built and there is no binary package that fits.
        """
        silent = distcc.silent(host, self.helpers)
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
        result = locks.run(host, command, report, timeout=INSTALL_SECONDS, check=False)
        said = result.stdout + result.stderr
        # where the package is installed, only with other flags, emerge is content with that
        if result.ok and (self.build or self.probe(host) is None):
            return
        if not self.build and (result.ok or "no binary packages" in said):
            raise StepFailed(
                f"no binary package of {' or '.join(self.names)} fits this domain's USE:\n"
                + "\n".join(said.strip().splitlines()[-12:]),
                hint="build it anew where a compiler is, or look at portage: use and package_use",
            )
        raise CommandFailed(result)


@dataclass(frozen=True)
class PortageRemoved(Resource):
    """Packages that are not installed; what the base system provides is none of Portage's."""

    names: tuple[str, ...]

    def __post_init__(self) -> None:
        require_names(self.names, "gentoo")

    def probe(self, host: Host) -> Difference | None:
        """A table of those that are."""
        if not self.names:
            return None
        found = parse_installed(listing(host, self.names, provided=False))
        rows = tuple(
            {"package": name, "found": found[name].name} for name in self.names if name in found
        )
        names = ", ".join(row["package"] for row in rows)
        return Difference(f"remove {names}", rows=rows) if rows else None

    def apply(self, host: Host, report: Report) -> None:
        """Raises StepFailed, with who needs it, where something that is installed does."""
        report(f"removing {', '.join(self.names)}")
        script = 'emerge --color n --nospinner --verbose --depclean -- "$@"'
        command = Command.script(TOOLS + script, *self.names)
        result = locks.run(host, command, report, timeout=INSTALL_SECONDS, check=False)
        left = self.probe(host)
        if left is not None and "pulled in by" in result.stdout:
            names = ", ".join(row["package"] for row in left.rows)
            said = "\n".join(result.stdout.strip().splitlines()[-12:])
            raise StepFailed(f"{names} cannot be removed, something else needs it:\n{said}")
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
    result = host.run(command, check=False)
    if result.status not in (0, _NO_DATABASE, *NO_ROOT):
        raise CommandFailed(result)
    return result.stdout if result.ok else ""


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
