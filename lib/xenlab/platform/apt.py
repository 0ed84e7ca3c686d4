"""Debian's answer to how software is installed: apt-get(8), dpkg(1), dpkg-query(1)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

from xenlab.command import Command, Result
from xenlab.errors import CommandFailed, StepFailed, XenlabError
from xenlab.host import NO_PROGRAM, Host
from xenlab.platform import apt_sources
from xenlab.platform.base import (
    INDEX_DAYS,
    Index,
    PackageState,
    Update,
    difference,
    lock_functions,
    new_versions,
    require_unneeded,
    run_when_unlocked,
)
from xenlab.resources.base import Difference, Report, Resource
from xenlab.resources.files import Absent, File, Relocated

_LOCKS = lock_functions(
    *("/var/lib/dpkg/lock-frontend", "/var/lib/dpkg/lock"),
    *("/var/lib/apt/lists/lock", "/var/cache/apt/archives/lock"),
)
_TOOLS = f"""
    export DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8
    {_LOCKS}
    update() {{ when_unlocked apt-get -q -o APT::Update::Error-Mode=any update; }}
"""

UPDATE = f"{_TOOLS} update"

HYPERVISOR = {
    "bios": ("xen-system-amd64", "grub-pc"),
    "uefi": ("xen-system-amd64", "grub-efi-amd64", "efibootmgr", "dosfstools"),
}
"""Xen, and GRUB with its tools for the machine's firmware."""

_NEEDED = 45
_NOT_STORED, _NOT_GENUINE = 44, 47

ARCHIVES = "/var/cache/apt/archives"
UNSYNCED = "/var/lib/dpkg/xenlab-unsynced"
"""This file names packages that dpkg calls installed, although a power cut may take their files."""

PROXY = "/etc/apt/apt.conf.d/90xenlab-proxy"

# apt-get(8) takes a package that lies in its folder already by its size alone. So each is compared
# with the index, whose signature apt-get has checked: in the folder that it installs from, which
# nobody else can write to, and so after it was read from the store.
_GENUINE = f"""
    archives={ARCHIVES}
    # DIGEST/NAME of each file that would be fetched into an empty folder
    listed() {{
        none=$(mktemp -d) || return
        answer=0
        apt-get -qq -y --no-install-recommends --print-uris -o Acquire::ForceHash=SHA256 \\
            -o "Dir::Cache::archives=$none" "$@" > "$none/list" || answer=$?
        [ "$answer" != 0 ] || sed -nE "/^'/ {{
            s|^'[^']*' ([^ /]+) [0-9]+ SHA256:([0-9a-f]{{64}})\\$|\\2/\\1|p; t; q 1
        }}" "$none/list" || answer=$?
        rm -rf -- "$none"
        return "$answer"
    }}
    # whether the folder has files of packages that are not installed in that version
    strangers() {{
        format='${{db:Status-Abbrev}}${{Package}}_${{Version}}_${{Architecture}}.deb\\n'
        set -- "$(dpkg-query -W -f "$format" | sed -n 's/:/%3a/g; s/^ii //p')"
        ls -- "$archives" 2> /dev/null | grep '\\.deb$' | grep -qvxF -e "$1"
    }}
    genuine() {{
        echo "${{1%%/*}}  $archives/${{1#*/}}" | sha256sum --check --status 2> /dev/null
    }}
    # what is not genuine goes; what is missing then comes from the store $1, if one is named
    gathered() {{
        store=$1; shift
        for file do
            name=${{file#*/}}
            ! genuine "$file" || continue
            rm -f -- "$archives/$name"
            [ -n "$store" ] || continue
            [ -e "$store/$name" ] || {{ echo "$name" >&2; exit {_NOT_STORED}; }}
            cp -- "$store/$name" "$archives/$name"
            genuine "$file" || {{ rm -- "$archives/$name"; echo "$name" >&2; exit {_NOT_GENUINE}; }}
        done
    }}
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
    store_folder = "apt"
    waiting = new_versions(r"\.(dpkg|ucf)-dist$", "")

    def __init__(self, share: str = "", proxy: str = "") -> None:
        self.share = share
        self.proxy = proxy

    def settled(self) -> tuple[Resource, ...]:
        """The proxy that packages are fetched through; they are built already."""
        if not self.proxy:
            return (Absent(PROXY),)
        return (File(PROXY, template="apt-proxy.conf.j2", values={"proxy": self.proxy}),)

    def sources(
        self, mirror: str = "", security: str = "", folder: str = "", root: str = "/"
    ) -> tuple[Resource, ...]:
        """What sources.list(5) says: mirrors, or the folder, which lies on the share then."""
        return apt_sources.sources(mirror, security, folder, self.share, root)

    def lent(self) -> tuple[Resource, ...]:
        """Nobody: Debian's packages are built already."""
        return ()

    def updated(self, days: int = INDEX_DAYS) -> Resource:
        """The lists are younger than that, and than the sources that xenlab wrote."""
        lists, settings = "/var/lib/apt/lists", apt_sources.SOURCES
        return Index(lists, "*_Packages*", "apt-get update", UPDATE, settings, days)

    def pending(self, host: Host) -> tuple[int, list[Update]] | None:
        """What ``apt-get upgrade`` would do."""
        return pending(host)

    def upgraded(self, *, from_store: bool = False) -> Resource:
        """``apt-get upgrade --with-new-pkgs``: no package is removed for another one."""
        return AptUpgraded(store=f"{self.share}/{self.store_folder}/archives" * from_store)

    def installed(self, *names: str) -> Resource:
        """These packages are installed, without what they merely recommend."""
        return AptPackages(names)

    def removed(self, *names: str) -> Resource:
        """``apt-get remove``: what another package needs is refused, or what the chapters need."""
        needed = (*self.nfs_client, *self.nfs_server, *self.static_shell, *self.imaging)
        xen = (*HYPERVISOR["bios"], "grub-efi-amd64")
        require_unneeded(names, (*needed, *self.compiler, *xen, "openssh-server"))
        return AptRemoved(names)

    def stored(self, *names: str) -> Resource:
        """``apt-get --download-only``, also of what dom0 itself has installed."""
        return AptStored(names)

    def from_store(self, *names: str) -> Resource:
        """``apt-get --no-download``, of copies that are what the index says."""
        return AptPackages(names, store=f"{self.share}/{self.store_folder}/archives")

    def hypervisor(self, firmware: str = "bios") -> Resource:
        """xen-system-amd64 and GRUB for the machine's firmware, not put on a disk yet."""
        answers = ("grub-pc grub-pc/install_devices_empty boolean true",)
        return AptPackages(HYPERVISOR[firmware], answers if firmware == "bios" else ())

    def store(self, share: str) -> tuple[Resource, ...]:
        """The folders of fetched packages and of the index lie on the share, linked back."""
        return (
            Relocated(ARCHIVES, f"{share}/{self.store_folder}/archives"),
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
# systemd is out of sight; it reads its units once, at the end, if any has changed. Chapters start
# what they need.
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


# $1 the policy, $2 lines for debconf, $3 the store, $4 the file `UNSYNCED`; what apt-get is to do
# follows, with "--" and packages at its end.
_INSTALL = """
    # while somebody else installs, the policy is theirs
    had_to_wait || :
    policy=/usr/sbin/policy-rc.d ours=
    begun=$(mktemp)
    units="/etc/init.d /etc/systemd /lib/systemd /usr/lib/systemd"
    leave() {
        [ -z "$ours" ] || rm -f -- "$policy"
        [ ! -d /run/systemd/system ] \\
            || [ -z "$(find $units -cnewer "$begun" -print -quit 2> /dev/null)" ] \\
            || systemctl daemon-reload
        rm -f -- "$begun"
        # dpkg was told not to wait for the disk
        sync
        [ -n "$again" ] || rm -f -- "$unsynced"
    }
    unsynced=$4 again=
    [ ! -e "$unsynced" ] || again=$(cat -- "$unsynced")
    trap leave EXIT
    trap 'exit 143' TERM INT HUP
    if [ ! -e "$policy" ]; then
        ours=yes
        printf '%s' "$1" > "$policy"
        chmod 755 "$policy"
    fi
    if [ -n "$2" ]; then printf '%s\\n' "$2" | debconf-set-selections; fi
    store=$3 option=
    if [ -n "$store" ]; then
        option=--no-download
        # the image may have brought the link to the store, where only dom0 writes
        [ ! -L "$archives" ] || rm -- "$archives"
        mkdir -p -- "$archives"
    fi
    shift 4
    # a script without its text fails, until its package is installed again
    when_unlocked quietly dpkg \\
        --force-unsafe-io --force-confdef --force-confold --configure -a || [ -n "$again" ]
    export unsynced
    install() {
        if [ -n "$store$again" ] || strangers; then
            files=$(listed $reinstall "$@") || return
            gathered "$store" $files
        fi
        when_unlocked quietly apt-get -q -y --no-install-recommends $option $reinstall \\
            -o Dpkg::Use-Pty=0 \\
            -o DPkg::Pre-Install-Pkgs::='sed "s|.*/||; s|_.*||" >> "$unsynced" \\
                && sync -- "$unsynced" "${unsynced%/*}"' \\
            -o Dpkg::Options::=--force-unsafe-io \\
            -o Dpkg::Options::=--force-confdef -o Dpkg::Options::=--force-confold \\
            "$@"
    }
    reinstall=${again:+--reinstall}
    if ! install "$@" $again; then
        # an index that is not quite new may name what the archive has replaced since
        [ -z "$store" ]
        update
        install "$@" $again
    fi
    again=
"""


@dataclass(frozen=True)
class AptPackages(PackageState):
    """Debian packages that are installed; ``answers`` are lines for debconf-set-selections(1).

    ``store``: the folder that they are copied from; what is not in it is not fetched.
    """

    answers: tuple[str, ...] = ()
    store: str = ""

    system = "debian"
    words: ClassVar[tuple[str, ...]] = ("install", "--")
    """What apt-get(8) is to do with them."""

    def probe(self, host: Host) -> Difference | None:
        """A table of the packages that are missing, or were left half installed.

        What a power cut may have left without its files counts as missing.
        """
        return self.compare(listing(host, self.names, UNSYNCED))

    def compare(self, text: str) -> Difference | None:
        """The difference to what dpkg-query lists."""
        states = parse_package_states(text)
        missing = [name for name in self.names if states.get(name, "")[1:] != "i"]
        return self.table("install", {n: states.get(n) or "not installed" for n in missing})

    def commands(self) -> tuple[Command, ...]:
        """Finish what an earlier attempt left half done, then install them all in one go.

        What is unpacked is named in `UNSYNCED` until it is on disk; what a power cut left named
        there is installed again.
        Configuration files that were changed on the host stay as they are. Daemons are installed,
        not started.
        """
        answers = "\n".join(self.answers)
        script = _TOOLS + _GENUINE + _QUIETLY + _INSTALL
        *verb, end = self.words
        words = (*verb, end, *self.names)
        command = Command.script(script, _POLICY, answers, self.store, UNSYNCED, *words)
        typed = "apt-get {verb} -y --no-install-recommends {names}"
        if self.store:
            copy = f"mkdir -p {ARCHIVES}/partial\ncp {{store}}/*.deb {ARCHIVES}"
            typed = f"{copy}\napt-get {{verb}} -y --no-download --no-install-recommends {{names}}"
        if self.answers:
            typed = f"echo {{answers}} | debconf-set-selections\n{typed}"
        values = {"verb": verb, "names": self.names, "store": self.store, "answers": answers}
        return (command.typed_as(typed, **values),)

    def apply(self, host: Host, report: Report) -> None:
        """Install them; raises StepFailed where the store misses one, or holds another."""
        report(f"installing {len(self.names) or 'newer'} packages")
        for command in self.commands():
            result = run_when_unlocked(host, command, report, check=False)
            if not result.ok:
                raise self._refused(result)

    def _refused(self, result: Result) -> XenlabError:
        said = (result.stderr.strip().splitlines() or [""])[-1]
        if self.store and result.status == _NOT_STORED:
            return StepFailed(
                f"cannot install {', '.join(self.names) or 'updates'}: because the store has no "
                f"{said}",
                hint="have dom0 fetch it: apt-get --reinstall --download-only install, in dom0",
            )
        if self.store and result.status == _NOT_GENUINE:
            return StepFailed(
                f"cannot install {said}: because it is not what the signed index says",
                hint=f"delete it in dom0's {self.store}, and have dom0 fetch it again",
            )
        return CommandFailed(result)


# What would be updated, as the index says that is there: "Inst NAME [NOW] (NEW ORIGIN, … [ARCH])",
# without the first brackets where the package is new.

_PENDING = """
    set -- /var/lib/apt/lists/*_Packages*
    [ -e "$1" ] || exit 44
    dpkg-query -W -f '${db:Status-Abbrev}\\n' | grep -c '^.i'
    LC_ALL=C.UTF-8 apt-get -s -q -o Debug::NoLocking=true --no-install-recommends \\
        upgrade --with-new-pkgs
"""
_INST = re.compile(r"Inst (\S+) (?:\[([^]]*)\] )?\((\S+) ([^[]*)\[.*")


def pending(host: Host) -> tuple[int, list[Update]] | None:
    """How many packages are installed, and what would be updated; None where there is no index."""
    found = host.look(Command.script(_PENDING), absent=(_NOT_STORED, NO_PROGRAM), timeout=600)
    return parse_pending(found.stdout) if found else None


def parse_pending(text: str) -> tuple[int, list[Update]]:
    """What that look prints."""
    installed, _, rest = text.partition("\n")
    rows = filter(None, map(_INST.fullmatch, rest.splitlines()))
    updates = [
        Update(row[1], row[2] or "", row[3], security="security" in row[4].lower()) for row in rows
    ]
    return int(installed or 0), updates


@dataclass(frozen=True)
class AptUpgraded(AptPackages):
    """Packages of the newest versions that the index has, with what they need anew."""

    names: tuple[str, ...] = ()

    words = ("upgrade", "--with-new-pkgs", "--")

    def probe(self, host: Host) -> Difference | None:
        """A table of what would be updated; raises StepFailed where there is no index."""
        found = pending(host)
        if found is None:
            raise StepFailed(
                f"cannot update packages: because {host.name} has no index of them",
                hint="run chapter 02, in dom0; a guest sees dom0's once it is in lan_guests",
            )
        return difference(found[1])


@dataclass(frozen=True)
class AptStored(PackageState):
    """Debian packages, with what they need, that dom0 has in its folder for others to install."""

    system = "debian"

    def probe(self, host: Host) -> Difference | None:
        """The files that are not there, or are not what the index says."""
        script = """
            files=$(listed --reinstall install -- "$@") || exit 0
            for file in $files; do genuine "$file" || echo "${file#*/}"; done
            echo known
        """
        found = host.look(Command.script(_TOOLS + _GENUINE + script, *self.names))
        *missing, known = (found.stdout.split() if found else []) or [""]
        if known == "known" and not missing:
            return None
        rows = tuple({"missing in the store": name} for name in missing)
        return Difference(f"fetch {', '.join(self.names)} into the store", rows=rows)

    def commands(self) -> tuple[Command, ...]:
        """Fetch them; where the index is not quite new, that first."""
        script = """
            fetch() {
                files=$(listed --reinstall install -- "$@") || return
                gathered "" $files
                when_unlocked apt-get -q -y --no-install-recommends -o Dpkg::Use-Pty=0 \\
                    --reinstall --download-only install -- "$@"
            }
            fetch "$@" || { update; fetch "$@"; }
        """
        typed = "apt-get install -y --reinstall --download-only --no-install-recommends {names}"
        command = Command.script(_TOOLS + _GENUINE + script, *self.names)
        return (command.typed_as(typed, names=self.names),)

    def apply(self, host: Host, report: Report) -> None:
        """Fetch them once nobody has locked the folder."""
        report(f"fetching {len(self.names)} packages")
        for command in self.commands():
            run_when_unlocked(host, command, report)


@dataclass(frozen=True)
class AptRemoved(PackageState):
    """Debian packages that are not installed; their configuration files may stay."""

    system = "debian"

    def probe(self, host: Host) -> Difference | None:
        """A table of those that are there, whole or in part."""
        if not self.names:
            return None
        states = parse_package_states(listing(host, self.names))
        there = [name for name in self.names if states.get(name, "n")[-1] not in "nc"]
        return self.table("remove", {name: states[name] for name in there})

    def commands(self) -> tuple[Command, ...]:
        """Remove them."""
        return (Command.argv("apt-get", "remove", "-y", *self.names),) if self.names else ()

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
            when_unlocked get remove -- "$@"
        """
        command = Command.script(_TOOLS + script, *names)
        command = command.typed_as("apt-get remove -y {names}", names=names)
        result = run_when_unlocked(host, command, report, check=False)
        if result.status == _NEEDED:
            other = " and ".join(result.stdout.strip().splitlines())
            raise StepFailed(
                f"cannot remove {', '.join(names)} alone: because apt-get would {other} as well",
                hint="take it out of unwanted, or add what needs it",
            )
        if not result.ok:
            raise CommandFailed(result)


def listing(host: Host, names: tuple[str, ...], unsynced: str = "") -> str:
    """What dpkg-query(1) says of these packages: name and state, separated by tabs.

    Where there is a file ``unsynced``, its word does not count.
    """
    script = """
        if [ -e "$1" ]; then shift; printf '%s\\tnot on disk\\n' "$@"; exit; fi
        shift
        dpkg-query -W -f '${Package}\\t${db:Status-Abbrev}\\n' -- "$@"
    """
    # 1: one of them is unknown to dpkg
    command = Command.script(script, unsynced, *names)
    result = host.look(command, 1, absent=(NO_PROGRAM,))
    return result.stdout if result is not None else ""


def parse_package_states(text: str) -> dict[str, str]:
    """The states of packages in such a listing, by name."""
    lines = (line.partition("\t") for line in text.splitlines())
    return {name: state.strip() for name, tab, state in lines if tab}
