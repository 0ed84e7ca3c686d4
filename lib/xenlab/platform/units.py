"""systemd's units as resources (systemctl(1))."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath

from xenlab.command import Command
from xenlab.errors import CommandFailed
from xenlab.host import Host
from xenlab.platform.daemon import START_SECONDS, ServiceStates
from xenlab.platform.package_index import NO_ROOT
from xenlab.resources.base import Difference, Report, Resource
from xenlab.resources.files import File, Symlink

UNITS = "/etc/systemd/system"
GENERATORS = "/etc/systemd/system-generators"


# SYSTEMD_OFFLINE makes systemctl look at the files alone, which is all there is in a root
# directory that is not booted. Only what "is-enabled" does not confirm in one call for all names
# is asked name by name: its lines come without names, and SysV scripts are answered first.
_PROBE = """
    offline=$1; wanted=$2; active=$3; shift 3
    [ -z "$offline" ] || export SYSTEMD_OFFLINE=1
    command -v systemctl > /dev/null || exit 127
    states=$(systemctl is-enabled -- "$@" 2> /dev/null) || :
    runs=
    [ -z "$active" ] || runs=$(systemctl is-active -- "$@" 2> /dev/null) || :
    if [ "$(printf '%s\\n' "$states" | grep -cxF -- "$wanted")" = $# ]; then
        [ -z "$active" ] && exit 0
        [ "$(printf '%s\\n' "$runs" | grep -cxF -- "$active")" = $# ] && exit 0
    fi
    for name do
        state=$(systemctl is-enabled -- "$name" 2> /dev/null) || :
        run=-
        [ -z "$active" ] || run=$(systemctl is-active -- "$name" 2> /dev/null) || :
        printf '%s %s %s\\n' "$name" "${state:-missing}" "${run:-inactive}"
    done
"""

_ENABLED = frozenset({"enabled", "static", "indirect", "generated", "alias", "linked"})
_OFF = frozenset({"disabled", "missing", "masked", "not-found", "static", "indirect"})


@dataclass(frozen=True)
class Units(ServiceStates):
    """Whether systemd units are enabled, and run where somebody asks for that."""

    at_boot = "at boot"

    def look(self, host: Host) -> Command:
        """Asks systemctl; where nothing can run, of the files alone."""
        offline = "yes" if host.root != "/" else ""
        state = "enabled" if self.enabled else "disabled"
        active = ("active" if self.running else "inactive") if self.asked(host) else ""
        return Command.script(_PROBE, offline, state, active, *self.names)

    def holds(self, boot: str, run: str, asked: bool) -> bool:
        """What systemctl calls enabled, or not."""
        good = boot in (_ENABLED if self.enabled else _OFF)
        return good and (not asked or (run == "active") == bool(self.running))

    def apply(self, host: Host, report: Report) -> None:
        """Enable or disable the units; start or stop them where systemd runs."""
        report(f"{self.verb} {', '.join(self.names)}")
        offline = host.root != "/"
        script = """
            offline=$1; verb=$2; now=$3; shift 3
            [ -z "$offline" ] || export SYSTEMD_OFFLINE=1
            # what is started at the next boot stands in the files, which systemd reads then: to
            # read all of them now takes it ten seconds on an emulated host, three times a unit
            at_boot() { SYSTEMD_OFFLINE=1 systemctl "$@"; }
            if [ "$verb" = disable ]; then
                # a unit that is not there at all is disabled already
                for name do
                    systemctl cat -- "$name" > /dev/null 2>&1 || [ -n "$offline" ] || continue
                    [ -z "$now" ] || systemctl "$now" -- "$name"
                    at_boot disable -- "$name" || [ -n "$offline" ]
                done
            else
                for name do
                    state=$(systemctl is-enabled -- "$name" 2> /dev/null) || :
                    case $state in
                        enabled | static | indirect | generated | alias | linked) continue ;;
                        masked) systemctl unmask -- "$name" ;;
                    esac
                    at_boot enable -- "$name"
                done
                [ -z "$now" ] || systemctl "$now" -- "$@"
            fi
        """
        now = {True: "start", False: "stop", None: ""}[self.running]
        verb = "enable" if self.enabled else "disable"
        words = ("yes", verb, "") if offline else ("", verb, now)
        host.run(Command.script(script, *words, *self.names), timeout=START_SECONDS)


# systemd reads a unit that it does not know yet when it is asked for it. What is added to one that
# is not there, or masked, has no effect. NeedDaemonReload alone says "no" where the folder of a
# drop-in is new (systemd#31752).
_IS_READ = """
is_read() { # UNIT FILE
    asked=LoadState,NeedDaemonReload,FragmentPath,DropInPaths
    shown=$(systemctl show -p "$asked" -- "$1") || return 1
    case $2 in
        *.d/*)
            case $shown in *LoadState=not-found* | *LoadState=masked*) return 0 ;; esac
            ;;
    esac
    case $shown in *NeedDaemonReload=no*) ;; *) return 1 ;; esac
    printf '%s\\n' "$shown" | sed -n 's/^FragmentPath=//p; s/^DropInPaths=//p' \\
        | tr ' ' '\\n' | grep -qxF -- "$2"
}
"""


@dataclass(frozen=True)
class UnitFile(File):
    """A unit, or what is added to one; systemd knows of it at once where it runs."""

    def probe(self, host: Host) -> Difference | None:
        """The diff of the file, or that systemd goes by what it read before."""
        different = super().probe(host)
        if different is not None or host.root != "/" or host.test(self._asked()):
            return different
        return Difference(f"have systemd read {self.path}")

    def apply(self, host: Host, report: Report) -> None:
        """Write the file; systemd reads its units again unless it has read this very file.

        To read all of them takes ten seconds on an emulated host.
        """
        super().apply(host, report)
        if host.root == "/":
            host.run(self._asked(" || systemctl daemon-reload"), timeout=START_SECONDS)

    def _asked(self, otherwise: str = "") -> Command:
        place = PurePosixPath(self.path)
        added = place.parent.suffix == ".d"
        unit = place.parent.stem if added else place.name
        return Command.script(f'{_IS_READ}is_read "$1" "$2"{otherwise}', unit, self.path)


@dataclass(frozen=True)
class Masked(Resource):
    """Units that are masked (systemctl(1)) and do not run."""

    names: tuple[str, ...]

    def probe(self, host: Host) -> Difference | None:
        """Which of them could still be started, or run."""
        script = """
            for name do
                # nothing is loaded in a root that is not booted
                loaded=$(systemctl show -P LoadState -- "$name" 2> /dev/null) || :
                [ "$(systemctl is-enabled -- "$name" 2> /dev/null)" = masked ] \\
                    && [ "${loaded:-masked}" = masked ] \\
                    && ! systemctl -q is-active -- "$name" || printf '%s\\n' "$name"
            done
        """
        result = host.run(Command.script(script, *self.names), check=False)
        if not result.ok and result.status not in NO_ROOT:
            raise CommandFailed(result)
        found = result.stdout.split() if result.ok else list(self.names)
        return Difference(f"stop and mask {', '.join(found)}") if found else None

    def apply(self, host: Host, report: Report) -> None:
        """Mask them and stop them."""
        host.run(Command.argv("systemctl", "mask", "--now", *self.names), timeout=START_SECONDS)


@dataclass(frozen=True)
class ServerUnordered(Symlink):
    """What is mounted over NFS does not wait for this machine's own NFS server.

    nfs-server-generator writes that order. A server that itself waits for such a mount, or for
    what lies on it, would wait in a circle, and systemd would leave one of the two out.
    """

    path: str = f"{GENERATORS}/nfs-server-generator"
    target: str = "/dev/null"

    def probe(self, host: Host) -> Difference | None:
        """Whether the link is missing, or systemd still goes by what the generator wrote."""
        different = super().probe(host)
        if different is not None or host.root != "/":
            return different
        script = """
            case $(systemctl show -P DropInPaths -- nfs-server.service) in
                */order-with-mounts.conf*) exit 44 ;;
            esac
        """
        result = host.run(Command.script(script), check=False)
        if result.status == 44:
            return Difference("have systemd forget the order of nfs-server-generator")
        return None

    def apply(self, host: Host, report: Report) -> None:
        """Put the generator out of use, and have systemd read its units again."""
        super().apply(host, report)
        if host.root == "/":
            host.run("systemctl daemon-reload", timeout=START_SECONDS)
