"""Debian's answer to how software is installed: apt-get(8), dpkg(1), dpkg-query(1)."""

from __future__ import annotations

from dataclasses import dataclass

from xenlab.command import Command
from xenlab.errors import BadInput, CommandFailed
from xenlab.host import Host
from xenlab.names import PACKAGE_NAMES
from xenlab.platform.package_index import INSTALL_SECONDS, NO_ROOT, Index
from xenlab.resources.base import Difference, Report, Resource
from xenlab.resources.relocated import Relocated

UPDATE = """
    export DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8
    apt-get -q -o APT::Update::Error-Mode=any -o DPkg::Lock::Timeout=600 update
"""


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

    def settled(self) -> tuple[Resource, ...]:
        """Nothing: Debian's packages are built already."""
        return ()

    def updated(self) -> Resource:
        """The lists are younger than `INDEX_DAYS`."""
        return Index("/var/lib/apt/lists", "*_Packages*", "apt-get update", UPDATE)

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
        if result.status not in (0, 1, *NO_ROOT):
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
