"""Domains: their life from create to destroy (howto: „Und Action!“).

xl(1) is the reference. What creates a domain runs without the step's mark and writes to a file,
not to the connection: xl leaves a process behind that looks after the domain, and neither a lost
connection nor the ending of a step may take that one along.
"""

from __future__ import annotations

from dataclasses import dataclass

from xenlab.command import Command
from xenlab.errors import CommandFailed, StepFailed
from xenlab.host import Host
from xenlab.resources.base import Difference, Report, Resource
from xenlab.resources.console import BOOT_SECONDS, FOLLOW, LOGIN, PANIC, refuse
from xenlab.resources.domain_state import (
    DYING,
    PAUSED,
    Domain,
    domain,
    domains,
    last_words,
    log_path,
    require_running,
)

CREATE_SECONDS = 600
END_SECONDS = 600
GONE_SECONDS = 60
"""How long a domain that is being taken down may still be there."""

NOTES = "/run/xenlab"
# The hotplug scripts never get their lock without a standard input. They have 40 seconds each,
# fixed in libxl, which then takes the domain away again: on a busy machine another try helps.
_CREATE = """
config=$1 log=$2 note=$3
shift 3
mkdir -p -- "${note%/*}"
log_size "$log" > "$note"
out=$(mktemp)
trap 'rm -f -- "$out"' EXIT
for try in 1 2 3; do
    status=0
    env -u XENLAB_STEP xl create "$@" "$config" < /dev/null > "$out" 2>&1 || status=$?
    cat -- "$out" >&2
    [ "$status" != 0 ] || exit 0
    grep -q 'killing execution of .* because of timeout' "$out" || break
done
exit 1
"""

_GONE = """
uptime_seconds; end=$((now + $2))
while xl domid "$1" > /dev/null 2>&1; do
    uptime_seconds
    [ "$now" -lt "$end" ] || exit 1
    sleep 1
done
"""

_WATCH = """
name=$1 log=$2 note=$3 wanted=$4 panic=$5 seconds=$6
read -r from < "$note"
follow "$log" "$from" "$wanted" "$panic" "$name" "$seconds"
"""

# The id is noted before the reboot, so that even after a lost connection one look tells.
_REBOOT = """
name=$1 note=$2 log=$3 wanted=$4 panic=$5 seconds=$6
from=$(log_size "$log")
old=$(xl domid "$name") || exit 56
mkdir -p -- "${note%/*}"
printf '%s\\n' "$old" > "$note"
xl reboot "$name" < /dev/null
uptime_seconds; end=$((now + seconds))
until new=$(xl domid "$name" 2>/dev/null) && [ "$new" != "$old" ]; do
    uptime_seconds
    [ "$now" -lt "$end" ] || exit 51
    sleep 1
done
echo "$name was domain $old and is domain $new now"
follow "$log" "$from" "$wanted" "$panic" "$name" "$seconds"
"""


def _looked_up(host: Host, name: str) -> Domain | None:
    """The domain, for a first look: where there is no Xen, there is no such domain."""
    try:
        return domain(host, name)
    except CommandFailed:
        return None


@dataclass(frozen=True)
class DomainRunning(Resource):
    """A domain that runs; with ``console``, its boot is followed up to the login prompt.

    A paused one goes on; one that crashed or is down is taken away first, its disks as they are.
    """

    name: str
    config: str
    console: bool = False
    seconds: int = BOOT_SECONDS

    def probe(self, host: Host) -> Difference | None:
        """Whether it runs, and what else it does; a crashed one's last lines."""
        found = _looked_up(host, self.name)
        if found is not None and found.runs:
            return None
        return Difference(_to_do(host, self.name, self.config, found))

    def apply(self, host: Host, report: Report) -> None:
        """Create it, or let it go on; the console's text is the step's output."""
        if _brought_up(host, self.name, self.config, report) and self.console:
            _watch(host, self.name, self.seconds, report)


@dataclass(frozen=True)
class DomainsRunning(Resource):
    """Domains that run: created one after the other, let go, each followed up to its prompt.

    ``configs`` are pairs of a domain's name and its configuration file.
    """

    configs: tuple[tuple[str, str], ...]
    seconds: int = BOOT_SECONDS

    def probe(self, host: Host) -> Difference | None:
        """Which of them do not run, and what else they do."""
        try:
            there = {one.name: one for one in domains(host)}
        except CommandFailed:
            there = {}
        found = [(name, config, there.get(name)) for name, config in self.configs]
        idle = [each for each in found if each[2] is None or not each[2].runs]
        if not idle:
            return None
        if all(one is None for _, _, one in idle):
            return Difference(f"create {', '.join(name for name, _, _ in idle)}")
        return Difference("; ".join(_to_do(host, *each) for each in idle))

    def apply(self, host: Host, report: Report) -> None:
        """Create those that do not run, let all go, and watch them boot at the same time.

        A creation runs scripts in dom0 that have 40 seconds each, fixed in libxl: guests that
        boot meanwhile must not take dom0 the processor, so each is paused at first.
        """
        created = [
            name
            for name, config in self.configs
            if _brought_up(host, name, config, report, options=("-p",))
        ]
        for name in created:
            _let_go_on(host, name, report)
        for name in created:
            _watch(host, name, self.seconds, report)


def _to_do(host: Host, name: str, config: str, found: Domain | None) -> str:
    """What makes a domain run that does not."""
    if found is None:
        return f"create {name} from {config}"
    if found.state == PAUSED:
        return f"let {name} go on: domain {found.id} is paused"
    words = last_words(host, found)
    return f"create {name} from {config} again: domain {found.id} is {found.state}{words}"


def _brought_up(
    host: Host, name: str, config: str, report: Report, options: tuple[str, ...] = ()
) -> bool:
    """Make a domain run; whether it was created, with options, so that its boot is to be seen."""
    found = domain(host, name)
    if found is not None and found.runs:
        return False
    if found is not None and found.state == PAUSED:
        _let_go_on(host, name, report)
        return False
    if found is not None:
        _taken_away(host, found, report)
    _create(host, name, config, options, report)
    return True


def _let_go_on(host: Host, name: str, report: Report) -> None:
    report(f"letting {name} go on")
    host.run(Command.argv("xl", "unpause", name))


def _taken_away(host: Host, found: Domain, report: Report) -> None:
    """Destroy a domain, unless that is under way, and wait until nothing is left of it."""
    report(f"destroying {found.name} ({found})")
    if found.state != DYING:
        host.run(Command.argv("xl", "destroy", found.name), timeout=CREATE_SECONDS)
    command = Command.script(FOLLOW + _GONE, found.name, GONE_SECONDS)
    if not host.run(command, timeout=GONE_SECONDS + 60, check=False).ok:
        raise StepFailed(
            f"domain {found.id}, {found.name}, does not go away: it is {found.state}",
            hint="something in dom0 holds its memory or a disk; a reboot of the machine frees it",
        )


def _create(host: Host, name: str, config: str, options: tuple[str, ...], report: Report) -> None:
    report(f"creating {name}")
    values = (config, log_path(name), _console_note(name), *options)
    command = Command.script(FOLLOW + _CREATE, *values)
    host.run(command, timeout=CREATE_SECONDS)


def _watch(host: Host, name: str, seconds: int, report: Report) -> None:
    report(f"watching {name} boot")
    values = (name, log_path(name), _console_note(name), LOGIN, PANIC, seconds)
    refuse(host, Command.script(FOLLOW + _WATCH, *values), name, timeout=CREATE_SECONDS + seconds)


def _console_note(name: str) -> str:
    """Where the size is noted that a console's log had before its domain was created."""
    return f"{NOTES}/{name}.console"


@dataclass(frozen=True)
class DomainStopped(Resource):
    """A domain that was asked to shut down and is gone."""

    name: str
    seconds: int = END_SECONDS

    def probe(self, host: Host) -> Difference | None:
        """Whether it is still there, and as which domain."""
        found = _looked_up(host, self.name)
        return None if found is None else Difference(f"shut down {self.name} ({found})")

    def apply(self, host: Host, report: Report) -> None:
        """Ask the guest to shut down and wait until the domain is gone, not only down.

        A paused one has to go on first; one that hears nothing any more is taken away.
        """
        found = domain(host, self.name)
        if found is None:
            return
        if found.state == PAUSED:
            _let_go_on(host, self.name, report)
        elif not found.runs:
            _taken_away(host, found, report)
            return
        report(f"waiting for {self.name} to shut down")
        command = Command.argv("timeout", self.seconds, "xl", "shutdown", "-ww", self.name)
        result = host.run(command, timeout=self.seconds + 60, check=False)
        if result.status == 124:
            raise StepFailed(
                f"{self.name} did not shut down within {self.seconds} s",
                hint=f"look at its console; xl destroy {self.name} ends it the hard way",
            )
        if not result.ok:
            raise CommandFailed(result)

    def verify(self, host: Host) -> None:
        """Hold only if xl says that there is no such domain."""
        found = domain(host, self.name)
        if found is not None:
            raise StepFailed(f"{self.name} is still there: {found}")


@dataclass(frozen=True)
class DomainDestroyed(DomainStopped):
    """A domain that was ended at once, the howto's “Windows-Reboot”; the guest is not asked."""

    def probe(self, host: Host) -> Difference | None:
        """Whether it is there, and as which domain."""
        found = _looked_up(host, self.name)
        return None if found is None else Difference(f"destroy {self.name} ({found})")

    def apply(self, host: Host, report: Report) -> None:
        """Destroy the domain."""
        found = domain(host, self.name)
        if found is not None:
            _taken_away(host, found, report)


@dataclass(frozen=True)
class DomainRebooted(Resource):
    """An action: a domain reboots, gets a new id, and shows its login prompt again."""

    name: str
    seconds: int = BOOT_SECONDS
    notes: str = NOTES

    @property
    def _note(self) -> str:
        return f"{self.notes}/{self.name}.rebooting"

    def probe(self, host: Host) -> Difference | None:
        """Which domain will be rebooted."""
        found = _looked_up(host, self.name)
        now = "it does not run" if found is None else str(found)
        return Difference(f"reboot {self.name} ({now})")

    def apply(self, host: Host, report: Report) -> None:
        """Reboot; the console's text is the step's output."""
        require_running(host, self.name)
        report(f"rebooting {self.name}")
        log = log_path(self.name)
        values = (self.name, self._note, log, LOGIN, PANIC, self.seconds)
        command = Command.script(FOLLOW + _REBOOT, *values)
        refuse(host, command, self.name, timeout=2 * self.seconds + 60)

    def verify(self, host: Host) -> None:
        """The domain runs and has another id than the one noted before."""
        old = (host.read(self._note) or "").strip()
        found = domain(host, self.name)
        if found is None or not found.runs or not old or found.id == int(old):
            raise StepFailed(
                f"{self.name} was not rebooted: its domain was {old or 'not noted'}, "
                f"now it is {found or 'gone'}"
            )
