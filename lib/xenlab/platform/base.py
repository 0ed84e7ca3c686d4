"""What platforms have in common: how one is chosen, locks and indexes of packages, daemons."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, TypeVar

from xenlab.command import Command, Result
from xenlab.errors import BadInput, CommandFailed, StepFailed
from xenlab.host import NO_PROGRAM, Host
from xenlab.resources.base import Check, Difference, Report, Resource, Waiting
from xenlab.site.types import PACKAGE_NAMES

Answer = TypeVar("Answer")


def by_platform(platform: str, what: str, answers: Mapping[str, Answer]) -> Answer:
    """The answer of a platform as a parameters file names it. Raises BadInput where it has none."""
    if platform not in answers:
        raise BadInput(
            f"cannot use platform {platform}: because xenlab knows no {what} of it",
            hint=f"platform: {' or '.join(answers)}",
        )
    return answers[platform]


# Locks of a package manager: whoever holds one is named, and waited for (fcntl(2), proc(5)).
#
# apt-get(8) can wait for one of its locks only, dpkg(1) for none, and emerge(1) does not say for
# whom it waits.

WAIT_SECONDS = 600
"""How long a lock is waited for."""

INSTALL_SECONDS = 3600.0
"""Deadline of fetching an index and of installing packages, in seconds: an emulated host is slow.
"""

WAITING = "waiting for "
"""How each line begins that says for whom."""

_GIVEN_UP = 75

# Only fcntl(2) itself knows who holds such a lock, on every file system, and perl is in every
# Debian and every Gentoo. Asked is for a lock for writing (1) by F_GETLK (5); 2 is the answer that
# nothing stands against it. The numbers are those of Linux on 64 bits.
_HELD = r"""
    use strict;
    my ($seconds, @files) = @ARGV;
    my ($start, $said, $again) = (time, "", 0);
    sub holder {
        my ($process) = @_;
        return "a process on another machine holds it" if $process <= 0;
        my ($command, $since) = ("", "");
        if (open my $file, "<", "/proc/$process/cmdline") {
            ($command = <$file> // "") =~ tr/\0\n/  /;
            $command =~ s/ +$//;
        }
        if (open my $stat, "<", "/proc/$process/stat" and open my $up, "<", "/proc/uptime") {
            my @fields = split " ", <$stat> =~ s/.*\) //r;
            my ($uptime) = split " ", <$up>;
            my @time = gmtime(time - $uptime + $fields[19] / 100);
            $since = sprintf ", since %04d-%02d-%02d %02d:%02d:%02d UTC",
                $time[5] + 1900, $time[4] + 1, @time[3, 2, 1, 0];
        }
        return "process $process" . ($command ne "" && " ($command)") . " holds it$since";
    }
    sub held {
        for my $file (@files) {
            open my $lock, "<", $file or next;
            my $question = pack "s s x4 q q i x4", 1, 0, 0, 0, 0;
            fcntl $lock, 5, $question or next;
            my ($kind, $process) = (unpack "s s x4 q q i", $question)[0, 4];
            return "$file: " . holder($process) if $kind != 2;
        }
        return "";
    }
    while (my $held = held()) {
        if (time - $start >= $seconds) {
            print STDERR "it was locked for $seconds s: $held\n";
            exit 75;
        }
        if ($held ne $said or time >= $again) {
            print STDERR "waiting for $held\n";
            ($said, $again) = ($held, time + 60);
        }
        sleep 1;
    }
    exit($said ne "" ? 46 : 0);
"""

# What was free a moment ago may be locked by now: so a command that failed is tried again, if
# somebody had a lock.
_FUNCTIONS = """
    had_to_wait() {
        answer=0
        perl -e '%s' -- %d %s || answer=$?
        case $answer in 46) return 0 ;; 75) exit 75 ;; *) return 1 ;; esac
    }
    when_unlocked() {
        had_to_wait || :
        until "$@"; do
            failed=$?
            had_to_wait || return "$failed"
        done
    }
"""


def lock_functions(*files: str, seconds: int = WAIT_SECONDS) -> str:
    """Shell functions: ``when_unlocked COMMAND…`` runs it once nobody has these files locked.

    A script that uses them is run by `run_when_unlocked`.
    """
    return _FUNCTIONS % (_HELD, seconds, Command.argv(*files).text)


def run_when_unlocked(
    host: Host,
    command: Command,
    report: Report,
    *,
    timeout: float = INSTALL_SECONDS,
    check: bool = True,
) -> Result:
    """Like ``host.run`` for a script with `lock_functions`: whom it waits for is reported.

    Raises StepFailed, with who it is, if a lock was held for too long.
    """
    lines = _Lines(lambda line: report(Waiting(line)) if line.startswith(WAITING) else None)
    result = replace(host, on_output=lines.hear).run(command, timeout=timeout, check=False)
    if result.status == _GIVEN_UP:
        said = (result.stderr.strip().splitlines() or [""])[-1]
        raise StepFailed(
            f"cannot use the package manager: because {said}",
            hint="wait until it has ended, or look at what it does; never remove a lock file",
        )
    if check and not result.ok:
        raise CommandFailed(result)
    return result


class _Lines:
    """Whole lines out of the pieces in which standard error comes."""

    def __init__(self, take: Callable[[str], None]) -> None:
        self._take = take
        self._begun = b""

    def hear(self, stream: str, piece: bytes) -> None:
        """Take a piece of output."""
        if stream == "stderr":
            *whole, self._begun = (self._begun + piece).split(b"\n")
            for line in whole:
                self._take(line.decode("utf-8", "replace"))


# What packages there are: an index of them, or a tree, that must not be too old.

INDEX_DAYS = 14
"""How old the index may be, in days."""

_MISSING = 44
_DAY = 86400


@dataclass(frozen=True)
class Index(Resource):
    """What ``command`` fetches into ``folder`` was fetched less than ``days`` days ago.

    ``pattern`` is what the folder holds, if it holds an index at all; ``script`` runs the command.
    ``settings`` is a file that says where the index comes from: what is older than it is too old.
    """

    folder: str
    pattern: str
    command: str
    script: str
    settings: str = ""
    days: int = INDEX_DAYS

    def probe(self, host: Host) -> Difference | None:
        """Whether there is no index, or an old one."""
        script = """
            folder=$1 settings=$3
            set -- "$folder"/$2
            [ -e "$1" ] || exit 44
            [ -z "$settings" ] || [ ! "$settings" -nt "$folder" ] || exit 44
            stat -L -c %Y -- "$folder"
            date +%s
        """
        command = Command.script(script, self.folder, self.pattern, self.settings)
        result = host.look(command, _MISSING)
        if result is None or result.status == _MISSING:
            return Difference(f"fetch the package index ({self.command})")
        fetched, now = (int(line) for line in result.stdout.split())
        if now - fetched < self.days * _DAY:
            return None
        then = time.strftime("%Y-%m-%d", time.gmtime(fetched))
        return Difference(f"fetch the package index again ({self.command}): it is of {then}")

    def commands(self) -> tuple[Command, ...]:
        """Fetch it; a source that does not answer is an error."""
        # what has not changed keeps its time: that it was asked for is to be seen all the same
        touch = 'touch -- "$1"'
        command = Command.script(f"{self.script}\n{touch}", self.folder)
        return (command.typed_as(self.command),)

    def apply(self, host: Host, report: Report) -> None:
        """Fetch it once nobody has locked it."""
        report(self.command)
        for command in self.commands():
            run_when_unlocked(host, command, report)


@dataclass(frozen=True)
class Update:
    """A package that would be updated; ``now`` is "" for one that is new."""

    name: str
    now: str
    new: str
    security: bool = False


def difference(updates: Iterable[Update]) -> Difference | None:
    """That these wait, as a table; None for none."""
    rows = tuple(
        {
            "package": each.name,
            "installed": each.now or "-",
            "available": each.new,
            "security": "yes" if each.security else "no",
        }
        for each in updates
    )
    return Difference(f"update {len(rows)} packages", rows=rows) if rows else None


@dataclass(frozen=True)
class PackageState(Resource):
    """Packages that shall be installed, or gone. Raises BadInput for a name that none can have."""

    names: tuple[str, ...]

    system: ClassVar[str]
    """Whose packages they are: "debian" or "gentoo"."""

    def __post_init__(self) -> None:
        for name in self.names:
            try:
                PACKAGE_NAMES[self.system](name)
            except ValueError as error:
                raise BadInput(f"a package's name {error}") from None

    def table(self, verb: str, found: Mapping[str, str]) -> Difference | None:
        """What is to be done to these packages, each with what was found of it; None for none."""
        rows = tuple({"package": name, "found": state} for name, state in found.items())
        return Difference(f"{verb} {', '.join(found)}", rows=rows) if found else None


def new_versions(expression: str, old: str) -> Command:
    """A command that finds what was installed beside a configuration file, instead of over it.

    ``expression`` (an extended regular one) matches the end of such a file's path; ``old`` takes
    its place in the path of the file that was kept. It prints both paths, a tab between them.
    """
    script = r"""
        find /etc -type f | LC_ALL=C sort \
            | sed -nE -e "h; s#$1#$2#; t found" -e d -e ":found" -e 'G; s/\n/\t/p'
    """
    return Command.script(script, expression, old)


def require_unneeded(names: Iterable[str], needed: Iterable[str]) -> None:
    """Raise BadInput for a package that is to go, and that the chapters need."""
    for name in sorted({*names} & {*needed}):
        raise BadInput(
            f"cannot remove {name}: because the chapters need it", hint="take it out of unwanted"
        )


# Daemons and what they read: the same under any init system, but for who starts them anew.

START_SECONDS = 600.0
"""Deadline of starting, stopping or enabling services, in seconds: an emulated host is slow."""


@dataclass(frozen=True)
class ServiceStates(Resource):
    """Whether services are started at boot, and run where somebody asks for that.

    In a root directory that is not booted (`Host.inside`) nothing can run, or would work on the
    machine around it: only what is started at boot counts.
    """

    names: tuple[str, ...]
    enabled: bool
    running: bool | None = None

    at_boot: ClassVar[str]
    """What a table calls the first of a service's two states."""

    @abstractmethod
    def look(self, host: Host) -> Command:
        """What prints a line for a service that may not be as wanted: name, at boot, now or -."""

    @abstractmethod
    def holds(self, boot: str, run: str, asked: bool) -> bool:
        """Whether these are the states that are wanted."""

    def asked(self, host: Host) -> bool:
        """Whether it matters, and can be said, what runs now."""
        return self.running is not None and host.root == "/"

    def probe(self, host: Host) -> Difference | None:
        """A table of the services that are not as wanted."""
        if not self.names:
            return None
        result = host.look(self.look(host), absent=(NO_PROGRAM,))
        unknown = dict.fromkeys(self.names, ("", ""))
        states = unknown if result is None else parse_service_states(result.stdout)
        rows = tuple(
            {"service": name, self.at_boot: boot or "unknown", "now": run or "unknown"}
            for name, (boot, run) in states.items()
            if not self.holds(boot, run, self.asked(host))
        )
        if not rows:
            return None
        return Difference(f"{self.verb} {', '.join(row['service'] for row in rows)}", rows=rows)

    @property
    def verb(self) -> str:
        """What there is to do."""
        if not self.enabled:
            return "disable and stop" if self.running is False else "disable"
        return "enable and start" if self.running else "enable"


def parse_service_states(text: str) -> dict[str, tuple[str, str]]:
    """The services of a probe's output, as name to (state at boot, state now)."""
    found = {}
    for line in text.splitlines():
        words = line.split()
        if len(words) == 3:
            found[words[0]] = (words[1].rstrip(","), words[2])
    return found


@dataclass(frozen=True)
class Carrying(Resource):
    """A daemon that was started with an argument, which its service reads from a file."""

    name: str
    process: str
    argument: str
    restart: Command

    def probe(self, host: Host) -> Difference | None:
        """Whether a process of that name has the argument on its command line."""
        script = """
            for id in $(pidof -- "$1"); do
                tr '\\0' '\\n' < "/proc/$id/cmdline" | grep -qxF -- "$2" && exit 0
            done
            exit 44
        """
        result = host.run(Command.script(script, self.process, self.argument), check=False)
        if result.ok:
            return None
        return Difference(f"restart {self.name}, so that {self.process} gets {self.argument}")

    def commands(self) -> tuple[Command, ...]:
        """Restart the service."""
        return (self.restart.within(START_SECONDS),)

    def apply(self, host: Host, report: Report) -> None:
        """Nothing to do in a root directory that is not booted."""
        if host.root == "/":
            super().apply(host, report)


@dataclass(frozen=True)
class NoneFailed(Check):
    """The condition that no service of a machine has failed.

    ``look`` prints the name of each that has, below it the last lines of its log after a tab.
    """

    look: Command
    hint: str

    def probe(self, host: Host) -> Difference | None:
        """Which have failed, and what they said at last."""
        if host.root == "/":
            result = host.look(self.look, absent=(NO_PROGRAM,), timeout=START_SECONDS)
        else:
            result = None
        if result is None:
            return Difference("nobody can say yet whether a service has failed")
        found = parse_failed(result.stdout)
        if not found:
            return None
        said = (": ".join((name, " / ".join(lines))) for name, lines in found.items())
        return Difference(f"has failed: {'; '.join(said)}", hint=self.hint)


def parse_failed(text: str) -> dict[str, list[str]]:
    """Names of services, each with the lines below it that begin with a tab."""
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        if not line.startswith("\t"):
            found[line] = []
        elif found:
            found[list(found)[-1]].append(line.strip())
    return found


# Programs that a package has replaced, and that still run as they were (proc(5): maps, cgroup).

# $1 an expression for sed that makes a service's name of a line of a process's cgroup
_OUTDATED = """
    grep -sE '^[^ ]+ r-xp .* /(usr|lib|lib32|lib64|bin|sbin|opt)/[^ ]+ [(]deleted[)]$' \\
        /proc/[0-9]*/maps | sed -E 's|^/proc/([0-9]+)/maps:.* (/[^ ]+) [(]deleted[)]$|\\1 \\2|' \\
        | sort -u | while read -r process file; do
            # a login's own programs end with it
            ! grep -qs '/session-[^/]*[.]scope' "/proc/$process/cgroup" || continue
            { read -r name < "/proc/$process/comm"; } 2> /dev/null || continue
            service=$(sed -nE "$1" "/proc/$process/cgroup" | tail -n 1)
            [ "$process" != 1 ] || service=init
            printf '%s\\t%s\\n' "${service:-$name}" "$file"
        done | sort -u
"""


def parse_outdated(text: str) -> dict[str, list[str]]:
    """What that prints: services, each with the files that are no longer there."""
    found: dict[str, list[str]] = {}
    for name, tab, file in (line.partition("\t") for line in text.splitlines()):
        if tab:
            found.setdefault(name, []).append(file)
    return found


# Services: between a chapter that wants a daemon and the init system that has it.
#
# Howto: „sshd … + Runlevel“, „syslogd, crond (mind. Runlevel)“.


class Services(ABC):
    """What an init system can be asked for; each answer is a resource, or a command."""

    early: ClassVar[str]
    """A script that lists what is started before a mount of ``$1``.

    A line is who started something (a service, a unit), a tab, and the path of a program.
    """

    states: ClassVar[type[ServiceStates]]
    """How it tells what is started at boot, and what runs."""

    of_cgroup: ClassVar[str]
    """Has sed(1) make a service's name of a line of /proc/PID/cgroup."""

    def outdated(self, host: Host) -> dict[str, list[str]]:
        """Services that run a program, or use a library, that a package has since replaced.

        "init" is process 1; what belongs to no service is called as the program is.
        """
        found = host.look(Command.script(_OUTDATED, self.of_cgroup), absent=(NO_PROGRAM,))
        return parse_outdated(found.stdout) if found else {}

    def enabled(self, *names: str) -> Resource:
        """These services are started at every boot."""
        return self.states(names, enabled=True)

    def running(self, *names: str) -> Resource:
        """These services are started at every boot, and run now."""
        return self.states(names, enabled=True, running=True)

    def disabled(self, *names: str) -> Resource:
        """These services are not started at boot, and do not run now."""
        return self.states(names, enabled=False, running=False)

    def start(self, name: str) -> Command:
        """The command that starts a service, unless it runs."""
        return self.control(name, "start")

    def stop(self, name: str) -> Command:
        """The command that stops a service, if it runs."""
        return self.control(name, "stop")

    def restart(self, name: str) -> Command:
        """The command that stops a service and starts it again."""
        return self.control(name, "restart")

    def runs(self, name: str) -> Command:
        """The command whose exit status is 0 where a service runs."""
        return self.control(name, "status")

    @abstractmethod
    def control(self, name: str, verb: str) -> Command:
        """The command that has a service start, stop or restart, or tell its status."""

    @abstractmethod
    def hint(self, name: str) -> str:
        """What a person types to see how a service is."""

    @abstractmethod
    def reload(self, name: str) -> Command:
        """The command that has a service read its files again, if it runs."""

    @abstractmethod
    def masked(self, *names: str) -> Resource:
        """These services do not run, and nothing can start them."""

    @abstractmethod
    def carrying(self, name: str, process: str, argument: str) -> Resource:
        """A service's process was started with this argument; else the service is restarted."""

    @abstractmethod
    def defined(self, name: str, **values: Any) -> Resource:
        """A service of our own, from the template of its name; neither enabled nor started."""

    @abstractmethod
    def adjusted(self, name: str, **values: Any) -> Resource:
        """What xenlab adds to a service of the distribution, from the template of its name."""

    @abstractmethod
    def after_mount(self, name: str, folder: str) -> Resource:
        """A service starts once what belongs at this folder is mounted (howto: S58)."""

    @abstractmethod
    def waited(self, folder: str, *names: str) -> Resource:
        """The condition that these services started after the folder was mounted."""

    @abstractmethod
    def none_failed(self) -> NoneFailed:
        """The condition that no service has failed; one that did is named with its last lines."""

    @abstractmethod
    def server_unordered(self) -> Resource:
        """NFS mounts do not wait for this machine's own NFS server (howto: S60)."""
