"""Debian's answer to how software is installed: apt-get(8), dpkg(1), dpkg-query(1)."""

from __future__ import annotations

from dataclasses import dataclass

from xenlab.command import Command
from xenlab.errors import CommandFailed, StepFailed
from xenlab.host import Host
from xenlab.platform import locks
from xenlab.platform.package_index import (
    INSTALL_SECONDS,
    NO_ROOT,
    Index,
    new_versions,
    require_names,
    require_unneeded,
)
from xenlab.resources.base import Difference, Report, Resource
from xenlab.resources.relocated import Relocated

_LOCKS = locks.patiently(
    *("/var/lib/dpkg/lock-frontend", "/var/lib/dpkg/lock"),
    *("/var/lib/apt/lists/lock", "/var/cache/apt/archives/lock"),
)
_TOOLS = f"""
    export DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8
    {_LOCKS}
    update() {{ patiently apt-get -q -o APT::Update::Error-Mode=any update; }}
"""

UPDATE = f"{_TOOLS} update"

HYPERVISOR = ("xen-system-amd64", "grub-pc")

_NEEDED = 45


class Apt:
    """Debian's answer: apt-get(8) and dpkg-query(1)."""

    nfs_client: tuple[str, ...] = ("nfs-common",)
    nfs_server: tuple[str, ...] = ("nfs-kernel-server",)
    static_shell: tuple[str, ...] = ("busybox-static",)
    imaging: tuple[str, ...] = ("tar", "zstd", "libcap2-bin")
    compiler: tuple[str, ...] = (
        *("gcc", "make", "flex", "bison", "bc", "perl", "xz-utils"),
        *("libelf-dev", "libc6-dev"),
    )
    built_by_dom0 = False
    store_folder = "apt"
    waiting = new_versions(r"\.(dpkg|ucf)-dist$", "")

    def settled(self) -> tuple[Resource, ...]:
        """Nothing: Debian's packages are built already."""
        return ()

    def lent(self) -> tuple[Resource, ...]:
        """Nobody: Debian's packages are built already."""
        return ()

    def updated(self) -> Resource:
        """The lists are younger than `INDEX_DAYS`."""
        return Index("/var/lib/apt/lists", "*_Packages*", "apt-get update", UPDATE)

    def installed(self, *names: str) -> Resource:
        """These packages are installed, without what they merely recommend."""
        return AptPackages(names)

    def removed(self, *names: str) -> Resource:
        """``apt-get remove``: what another package needs is refused, or what the chapters need."""
        kept = (*self.nfs_client, *self.nfs_server, *self.static_shell, *self.imaging)
        require_unneeded(names, (*kept, *self.compiler, *HYPERVISOR, "openssh-server"))
        return AptRemoved(names)

    def from_store(self, *names: str) -> Resource:
        """``apt-get --no-download``."""
        return AptPackages(names, fetch=False)

    def hypervisor(self) -> Resource:
        """xen-system-amd64 and GRUB for BIOS machines, which is not put on a disk yet."""
        answers = ("grub-pc grub-pc/install_devices_empty boolean true",)
        return AptPackages(HYPERVISOR, answers)

    def store(self, share: str) -> tuple[Resource, ...]:
        """The folders of fetched packages and of the index lie on the share, linked back."""
        return (
            Relocated("/var/cache/apt/archives", f"{share}/{self.store_folder}/archives"),
            Relocated("/var/lib/apt/lists", f"{share}/{self.store_folder}/lists"),
        )


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
        require_names(self.names, "debian")

    def probe(self, host: Host) -> Difference | None:
        """A table of the packages that are missing, or were left half installed."""
        return self.compare(listing(host, self.names))

    def compare(self, text: str) -> Difference | None:
        """The difference to what dpkg-query lists."""
        states = parse_states(text)
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
            # while somebody else installs, the policy is theirs
            had_to_wait || :
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
            patiently quietly dpkg \\
                --force-unsafe-io --force-confdef --force-confold --configure -a
            install() {
                patiently quietly apt-get -q -y --no-install-recommends $option \\
                    -o Dpkg::Use-Pty=0 \\
                    -o Dpkg::Options::=--force-unsafe-io \\
                    -o Dpkg::Options::=--force-confdef -o Dpkg::Options::=--force-confold \\
                    install -- "$@"
            }
            if ! install "$@"; then
                # an index that is not quite new may name what the archive has replaced since
                [ -z "$option" ]
                update
                install "$@"
            fi
            # dpkg was told not to wait for the disk
            sync
        """
        answers = "\n".join(self.answers)
        option = "" if self.fetch else "--no-download"
        command = Command.script(_TOOLS + _QUIETLY + script, _POLICY, answers, option, *self.names)
        locks.run(host, command, report, timeout=INSTALL_SECONDS)


@dataclass(frozen=True)
class AptRemoved(Resource):
    """Debian packages that are not installed; their configuration files may stay."""

    names: tuple[str, ...]

    def __post_init__(self) -> None:
        require_names(self.names, "debian")

    def probe(self, host: Host) -> Difference | None:
        """A table of those that are there, whole or in part."""
        if not self.names:
            return None
        states = parse_states(listing(host, self.names))
        rows = tuple(
            {"package": name, "found": states[name]}
            for name in self.names
            if states.get(name, "n")[-1] not in "nc"
        )
        found = ", ".join(row["package"] for row in rows)
        return Difference(f"remove {found}", rows=rows) if rows else None

    def apply(self, host: Host, report: Report) -> None:
        """Remove them. Raises StepFailed where something else would go with them, or come."""
        found = self.probe(host)
        # apt-get(8) refuses a name that its index does not know
        names = [row["package"] for row in found.rows] if found else []
        report(f"removing {', '.join(names)}")
        script = """
            get() { apt-get -q -y -o Dpkg::Use-Pty=0 "$@"; }
            get --simulate remove -- "$@" | awk '
                BEGIN { for (i = 1; i < ARGC; i++) asked[ARGV[i]]; ARGC = 1 }
                $1 == "Remv" && !($2 in asked) { print "remove", $2; found = 1 }
                $1 == "Inst" { print "install", $2; found = 1 }
                END { if (found) exit 45 }
            ' "$@"
            patiently get remove -- "$@"
        """
        command = Command.script(_TOOLS + script, *names)
        result = locks.run(host, command, report, timeout=INSTALL_SECONDS, check=False)
        if result.status == _NEEDED:
            other = " and ".join(result.stdout.strip().splitlines())
            raise StepFailed(
                f"{', '.join(names)} cannot be removed alone: apt-get would {other} as well",
                hint="take it out of unwanted, or add what needs it",
            )
        if not result.ok:
            raise CommandFailed(result)


def listing(host: Host, names: tuple[str, ...]) -> str:
    """What dpkg-query(1) says of these packages: name and state, separated by tabs."""
    template = "${Package}\\t${db:Status-Abbrev}\\n"
    result = host.run(Command.argv("dpkg-query", "-W", "-f", template, "--", *names), check=False)
    if result.status not in (0, 1, *NO_ROOT):
        raise CommandFailed(result)
    return result.stdout


def parse_states(text: str) -> dict[str, str]:
    """The states of packages in such a listing, by name."""
    lines = (line.split("\t") for line in text.splitlines() if "\t" in line)
    return {name: state.strip() for name, state in lines}
