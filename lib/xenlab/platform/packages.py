"""Packages: the seam between a chapter that wants software and the distribution that has it.

Howto: „Software“ and the remarks on Portage in „System“.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Protocol

from xenlab.command import Command
from xenlab.errors import BadInput, CommandFailed
from xenlab.host import Host
from xenlab.names import PACKAGE_NAMES
from xenlab.resources.base import Difference, Report, Resource
from xenlab.resources.relocated import Relocated

INSTALL_SECONDS = 3600.0
"""Deadline of installing packages, in seconds: an emulated host takes 3 s for a small one."""

INDEX_DAYS = 14
"""How old the package index may be, in days."""

_NO_ROOT = (125, 126, 127)
_DAY = 86400


class Packages(Protocol):
    """What a package manager can be asked for; each answer is a Resource."""

    def updated(self) -> Resource:
        """The index of packages is there and not too old."""

    def installed(self, *names: str) -> Resource:
        """These packages are installed."""

    def from_store(self, *names: str) -> Resource:
        """These packages are installed; what is not in the store is not fetched."""

    def hypervisor(self) -> Resource:
        """Xen, its tools and the boot loader are installed."""

    nfs_client: tuple[str, ...]
    """What mounts something over NFS."""

    nfs_server: tuple[str, ...]
    """What exports something over NFS."""

    static_shell: tuple[str, ...]
    """A shell with mount and the like that needs no library."""

    def store(self, share: str) -> tuple[Resource, ...]:
        """What was fetched, packages and index, is kept on the share for every domain."""


def packages(platform: str) -> Packages:
    """The answer for a platform of the parameters file. Raises BadInput where there is none."""
    if platform == "debian":
        return Apt()
    raise BadInput(
        f"platform: nobody has written down yet how {platform!r} installs packages",
        hint="use platform: debian",
    )


class Apt:
    """Debian's answer: apt-get(8) and dpkg-query(1)."""

    nfs_client: tuple[str, ...] = ("nfs-common",)
    nfs_server: tuple[str, ...] = ("nfs-kernel-server",)
    static_shell: tuple[str, ...] = ("busybox-static",)

    def updated(self) -> Resource:
        """The lists are younger than `INDEX_DAYS`."""
        return AptIndex()

    def installed(self, *names: str) -> Resource:
        """These packages are installed, without what they merely recommend."""
        return AptPackages(names)

    def from_store(self, *names: str) -> Resource:
        """``apt-get --no-download``."""
        return AptPackages(names, fetch=False)

    def hypervisor(self) -> Resource:
        """xen-system-amd64 and GRUB for BIOS machines, which is not put on a disk yet."""
        answers = ("grub-pc grub-pc/install_devices_empty boolean true",)
        return AptPackages(("xen-system-amd64", "grub-pc"), answers)

    def store(self, share: str) -> tuple[Resource, ...]:
        """The folders of fetched packages and of the index lie on the share, linked back."""
        return (
            Relocated("/var/cache/apt/archives", f"{share}/apt/archives"),
            Relocated("/var/lib/apt/lists", f"{share}/apt/lists"),
        )


@dataclass(frozen=True)
class AptIndex(Resource):
    """The package lists were fetched less than ``days`` days ago."""

    days: int = INDEX_DAYS

    def probe(self, host: Host) -> Difference | None:
        """Whether there are no lists, or old ones."""
        script = """
            set -- /var/lib/apt/lists/*_Packages*
            [ -e "$1" ] || exit 44
            stat -L -c %Y /var/lib/apt/lists
            date +%s
        """
        result = host.run(Command.script(script), check=False)
        if result.status == 44 or result.status in _NO_ROOT:
            return Difference("fetch the package index (apt-get update)")
        if not result.ok:
            raise CommandFailed(result)
        fetched, now = (int(line) for line in result.stdout.split())
        if now - fetched < self.days * _DAY:
            return None
        then = time.strftime("%Y-%m-%d", time.gmtime(fetched))
        return Difference(f"fetch the package index again (apt-get update): it is of {then}")

    def apply(self, host: Host, report: Report) -> None:
        """Fetch the lists; a source that does not answer is an error."""
        report("apt-get update")
        script = """
            export DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8
            apt-get -q -o APT::Update::Error-Mode=any -o DPkg::Lock::Timeout=600 update
            # apt gives the lists the server's times, and does not touch what has not changed
            touch /var/lib/apt/lists
        """
        host.run(Command.script(script), timeout=INSTALL_SECONDS)


# Daemons must not start in a root that is not booted: they would run in the rescue system. What a
# broken connection leaves of this file does no harm, since it looks for itself.
_POLICY = """\
#!/bin/sh
# no daemon starts in a root directory that is not booted (written by xenlab)
if ischroot; then exit 101; fi
exit 0
"""

# A package that sees systemd has it read all its units again, and starts its daemons with settings
# that nobody has written yet: seconds for each package on an emulated host. So dpkg works where
# systemd is out of sight; it reads its units once, at the end. Chapters start what they need.
_QUIETLY = """
    quietly() {
        if [ -d /run/systemd/system ]; then
            unshare --mount -- sh -euc '
                mkdir -p /run/xenlab-systemd
                mount --bind /run/systemd /run/xenlab-systemd
                mount -t tmpfs -o mode=755 none /run/systemd
                # where names are resolved by systemd-resolved, resolv.conf leads in there
                ln -s /run/xenlab-systemd/resolve /run/systemd/resolve
                policy=/run/systemd/no-daemon-starts
                printf "#!/bin/sh\\nexit 101\\n" > "$policy"
                chmod 755 "$policy"
                mount --bind "$policy" /usr/sbin/policy-rc.d
                exec "$@"
            ' sh "$@"
        else
            "$@"
        fi
    }
"""


@dataclass(frozen=True)
class AptPackages(Resource):
    """Debian packages that are installed; ``answers`` are lines for debconf-set-selections(1).

    ``fetch`` false: what is not in the folder of fetched packages is not fetched.
    """

    names: tuple[str, ...]
    answers: tuple[str, ...] = ()
    fetch: bool = True

    def __post_init__(self) -> None:
        for name in self.names:
            try:
                PACKAGE_NAMES["debian"](name)
            except ValueError as error:
                raise BadInput(f"a package's name {error}") from None

    def probe(self, host: Host) -> Difference | None:
        """A table of the packages that are missing, or were left half installed."""
        template = "${Package}\\t${db:Status-Abbrev}\\n"
        command = Command.argv("dpkg-query", "-W", "-f", template, "--", *self.names)
        result = host.run(command, check=False)
        if result.status not in (0, 1, *_NO_ROOT):
            raise CommandFailed(result)
        return self.compare(result.stdout)

    def compare(self, listing: str) -> Difference | None:
        """The difference to what dpkg-query lists."""
        lines = (line.split("\t") for line in listing.splitlines() if "\t" in line)
        states = {name: state.strip() for name, state in lines}
        missing = [name for name in self.names if states.get(name, "")[1:] != "i"]
        if not missing:
            return None
        rows = ({"package": name, "found": states.get(name) or "not installed"} for name in missing)
        return Difference(f"install {', '.join(missing)}", rows=tuple(rows))

    def apply(self, host: Host, report: Report) -> None:
        """Finish what an earlier attempt left half done, then install them all in one go.

        Configuration files that were changed on the host stay as they are. Daemons are installed,
        not started.
        """
        report(f"installing {len(self.names)} packages")
        script = """
            export DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8
            policy=/usr/sbin/policy-rc.d ours=
            leave() {
                [ -z "$ours" ] || rm -f -- "$policy"
                [ ! -d /run/systemd/system ] || systemctl daemon-reload
            }
            trap leave EXIT
            trap 'exit 143' TERM INT HUP
            if [ ! -e "$policy" ]; then
                ours=yes
                printf '%s' "$1" > "$policy"
                chmod 755 "$policy"
            fi
            if [ -n "$2" ]; then printf '%s\\n' "$2" | debconf-set-selections; fi
            option=$3
            shift 3
            quietly dpkg --force-unsafe-io --force-confdef --force-confold --configure -a
            install() {
                quietly apt-get -q -y --no-install-recommends $option \\
                    -o DPkg::Lock::Timeout=600 -o Dpkg::Use-Pty=0 \\
                    -o Dpkg::Options::=--force-unsafe-io \\
                    -o Dpkg::Options::=--force-confdef -o Dpkg::Options::=--force-confold \\
                    install -- "$@"
            }
            if ! install "$@"; then
                # an index that is not quite new may name what the archive has replaced since
                [ -z "$option" ]
                apt-get -q -o APT::Update::Error-Mode=any -o DPkg::Lock::Timeout=600 update
                install "$@"
            fi
            # dpkg was told not to wait for the disk
            sync
        """
        answers = "\n".join(self.answers)
        option = "" if self.fetch else "--no-download"
        command = Command.script(_QUIETLY + script, _POLICY, answers, option, *self.names)
        host.run(command, timeout=INSTALL_SECONDS)
