"""Debian's answer to what a service shall be: systemd's units.

Howto: „sshd … + Runlevel“, „syslogd, crond (mind. Runlevel)“.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from xenlab.command import Command
from xenlab.host import Host
from xenlab.platform.base import START_SECONDS, Carrying, NoneFailed, Services, ServiceStates
from xenlab.quoting import unit_word
from xenlab.resources.base import Condition, Difference, Report, Resource
from xenlab.resources.files import File, Symlink

# systemd's units as resources (systemctl(1)).

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
        # a boot that is not over has yet to start them
        [ "$active" != active ] \\
            || timeout 40 systemctl is-system-running --wait > /dev/null 2>&1 || :
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

    def commands(self) -> tuple[Command, ...]:
        """Enable or disable the units, and start or stop them."""
        verb = "enable" if self.enabled else "disable"
        now = () if self.running is None else ("--now",)
        return (Command.argv("systemctl", verb, *now, *self.names),) if self.names else ()

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

    def commands(self) -> tuple[Command, ...]:
        """The file; systemd reads its units again."""
        return (*super().commands(), Command("systemctl daemon-reload"))

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
            # all at once: each call takes a while on an emulated host
            masked() { systemctl "$@" 2> /dev/null | grep -cx masked; }
            [ "$(masked is-enabled -- "$@")" = $# ] \\
                && [ "$(masked show -P LoadState -- "$@")" = $# ] \\
                && ! systemctl -q is-active -- "$@" && exit 0
            for name do
                # nothing is loaded in a root that is not booted
                loaded=$(systemctl show -P LoadState -- "$name" 2> /dev/null) || :
                [ "$(systemctl is-enabled -- "$name" 2> /dev/null)" = masked ] \\
                    && [ "${loaded:-masked}" = masked ] \\
                    && ! systemctl -q is-active -- "$name" || printf '%s\\n' "$name"
            done
        """
        result = host.look(Command.script(script, *self.names))
        found = list(self.names) if result is None else result.stdout.split()
        return Difference(f"stop and mask {', '.join(found)}") if found else None

    def commands(self) -> tuple[Command, ...]:
        """Mask them and stop them."""
        return (Command.argv("systemctl", "mask", "--now", *self.names).within(START_SECONDS),)


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

    def commands(self) -> tuple[Command, ...]:
        """Put the generator out of use, and have systemd read its units again."""
        return (*super().commands(), Command("systemctl daemon-reload").within(START_SECONDS))

    def apply(self, host: Host, report: Report) -> None:
        """In a root directory that is not booted no systemd has read anything yet."""
        if host.root == "/":
            super().apply(host, report)
        else:
            host.change(self.commands()[0])


_WAITED = """
    mount=$(systemd-escape --path --suffix=mount -- "$1"); shift
    mounted=$(systemctl show -P ActiveEnterTimestampMonotonic -- "$mount")
    [ "$mounted" -gt 0 ]
    for name do
        [ "$(systemctl show -P ExecMainStartTimestampMonotonic -- "$name")" -gt "$mounted" ]
    done
"""

# The boot is waited for: what has not been started yet cannot have failed.
_FAILED = """
    command -v systemctl > /dev/null || exit 127
    systemctl is-system-running --wait > /dev/null 2>&1 || :
    for unit in $(systemctl list-units --state=failed --plain --no-legend | cut -d ' ' -f 1); do
        printf '%s\\n' "$unit"
        journalctl --boot --unit "$unit" --lines 5 --output cat --no-pager | sed 's/^/\\t/'
    done
"""


# What is started before a file system is mounted, which `Services.early` lists.
#
# Howto: „/usr sharing“.

EARLY = r"""
mount=$(systemd-escape --path --suffix=mount -- "$1")
before=$(systemctl list-dependencies --after --all --plain --no-legend -- "$mount" \
    | tr -d ' ' | grep '\.service$' | sort -u)
echo "PID 1	/sbin/init"
echo "$mount	/usr/bin/mount"
echo "$mount	/usr/sbin/mount.nfs4"
# unquoted: one name a word
systemctl show -p Id,InactiveExitTimestampMonotonic,ExecCondition,ExecStartPre,ExecStart \
    -- $before | awk '
    BEGIN { RS = ""; FS = "\n" }
    {
        name = started = ""; count = 0
        for (i = 1; i <= NF; i++) {
            value = $i; sub(/^[^=]*=/, "", value)
            if ($i ~ /^Id=/) name = value
            else if ($i ~ /^InactiveExitTimestampMonotonic=/) started = value
            else if (match(value, /path=[^ ;]*/))
                path[++count] = substr(value, RSTART + 5, RLENGTH - 5)
        }
        if (started + 0 > 0) for (i = 1; i <= count; i++) print name "\t" path[i]
    }'
"""
"""The units that are ordered before the mount and were started, with what they execute."""


class Systemd(Services):
    """Debian's answer: systemd, its SysV scripts included."""

    early = EARLY
    of_cgroup = "s|^.*/([^/]+)[.]service(/.*)?$|\\1|p"
    states = Units

    def masked(self, *names: str) -> Resource:
        """These units are masked: also a unit that wants them cannot start them."""
        return Masked(names)

    def reload(self, name: str) -> Command:
        """``systemctl reload``."""
        return Command.argv("systemctl", "try-reload-or-restart", "--", name)

    def carrying(self, name: str, process: str, argument: str) -> Resource:
        """The process of a unit has an argument on its command line."""
        return Carrying(name, process, argument, self.restart(name))

    def defined(self, name: str, **values: Any) -> Resource:
        """A unit below /etc/systemd/system; without a suffix it is a service."""
        unit = name if "." in name else f"{name}.service"
        return UnitFile(f"{UNITS}/{unit}", template=unit, values=values)

    def adjusted(self, name: str, **values: Any) -> Resource:
        """A drop-in of the unit (systemd.unit(5))."""
        path = f"{UNITS}/{name}.service.d/xenlab.conf"
        return UnitFile(path, template=f"{name}.conf", values=values)

    def after_mount(self, name: str, folder: str) -> Resource:
        """RequiresMountsFor=, which an update of the package does not undo."""
        wanted = f"[Unit]\nRequiresMountsFor={unit_word(folder)}\n"
        text = f"# written by xenlab, chapter 15\n{wanted}"
        return UnitFile(f"{UNITS}/{name}.service.d/xenlab-usr.conf", text)

    def waited(self, folder: str, *names: str) -> Resource:
        """By the times that systemd noted."""
        return Condition(
            Command.script(_WAITED, folder, *names),
            f"{folder} is not mounted, or a service did not wait for it",
            "systemctl --failed; systemctl list-dependencies --after",
        )

    def none_failed(self) -> NoneFailed:
        """No unit is in the state "failed" (systemctl(1)), whatever kind it is of."""
        return NoneFailed(Command.script(_FAILED), "systemctl --failed; systemctl status UNIT")

    def server_unordered(self) -> Resource:
        """nfs-server-generator is out of use."""
        return ServerUnordered()

    def control(self, name: str, verb: str) -> Command:
        """``systemctl``, with its own word for the status."""
        words = ("--quiet", "is-active") if verb == "status" else (verb,)
        return Command.argv("systemctl", *words, "--", name)

    def hint(self, name: str) -> str:
        """``systemctl status``."""
        return f"systemctl status {name}"
