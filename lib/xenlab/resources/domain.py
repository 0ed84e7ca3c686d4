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
from xenlab.resources.console import BOOT_SECONDS, FOLLOW, LOGIN, PANIC, log_path, refuse

CREATE_SECONDS = 300
END_SECONDS = 600
UNKNOWN_DOMAIN = "maybe this domain does not exist"
NOTES = "/run/xenlab"
DOM0_WEIGHT = 1024
"""Dom0's share of the processors, where a guest has 256 (xl(1), "sched-credit2")."""

# The hotplug scripts never get their lock without a standard input.
_CREATE = """
config=$1 log=$2 note=$3
mkdir -p -- "${note%/*}"
log_size "$log" > "$note"
out=$(mktemp)
status=0
env -u XENLAB_STEP xl create "$config" < /dev/null > "$out" 2>&1 || status=$?
cat -- "$out" >&2
rm -f -- "$out"
[ "$status" = 0 ] || exit 1
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


def domain_id(host: Host, name: str) -> int | None:
    """The id of a running domain, None if there is none of that name.

    Raises CommandFailed where xl cannot say.
    """
    found = host.run(Command.argv("xl", "domid", name), check=False)
    if found.ok:
        return int(found.stdout)
    if UNKNOWN_DOMAIN in found.stderr:
        return None
    raise CommandFailed(found, hint="xl works only in a dom0 that runs on Xen")


def _looked_up(host: Host, name: str) -> int | None:
    """Like `domain_id`, for a first look: where there is no Xen, there is no such domain."""
    try:
        return domain_id(host, name)
    except CommandFailed:
        return None


@dataclass(frozen=True)
class DomainRunning(Resource):
    """A domain that runs; with ``console``, its boot is followed up to the login prompt."""

    name: str
    config: str
    console: bool = False
    seconds: int = BOOT_SECONDS

    def probe(self, host: Host) -> Difference | None:
        """Whether xl knows the domain."""
        if _looked_up(host, self.name) is not None:
            return None
        return Difference(f"create {self.name} from {self.config}")

    def apply(self, host: Host, report: Report) -> None:
        """Create it; the console's text is the step's output."""
        _create(host, self.name, self.config, report)
        if self.console:
            _watch(host, self.name, self.seconds, report)


@dataclass(frozen=True)
class DomainsRunning(Resource):
    """Domains that run: created one after the other, then each followed up to its login prompt.

    ``configs`` are pairs of a domain's name and its configuration file.
    """

    configs: tuple[tuple[str, str], ...]
    seconds: int = BOOT_SECONDS

    def probe(self, host: Host) -> Difference | None:
        """Which of them xl does not know."""
        missing = ", ".join(name for name, _ in self._missing(host))
        return Difference(f"create {missing}") if missing else None

    def apply(self, host: Host, report: Report) -> None:
        """Create those that do not run, and watch them boot at the same time.

        A creation runs scripts in dom0 that have 40 seconds each, fixed in libxl: guests that
        boot meanwhile must not take dom0 the processor.
        """
        weight = Command.argv("xl", "sched-credit2", "-d", "Domain-0", "-w", DOM0_WEIGHT)
        host.run(weight, check=False)
        missing = self._missing(host)
        for name, config in missing:
            _create(host, name, config, report)
        for name, _ in missing:
            _watch(host, name, self.seconds, report)

    def _missing(self, host: Host) -> list[tuple[str, str]]:
        return [pair for pair in self.configs if _looked_up(host, pair[0]) is None]


def _create(host: Host, name: str, config: str, report: Report) -> None:
    report(f"creating {name}")
    command = Command.script(FOLLOW + _CREATE, config, log_path(name), _console_note(name))
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
        """Whether it still runs, and as which domain."""
        number = _looked_up(host, self.name)
        return None if number is None else Difference(f"shut down {self.name} (domain {number})")

    def apply(self, host: Host, report: Report) -> None:
        """Ask the guest to shut down and wait until the domain is gone, not only down."""
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
        if domain_id(host, self.name) is not None:
            raise StepFailed(f"{self.name} still runs")


@dataclass(frozen=True)
class DomainDestroyed(DomainStopped):
    """A domain that was ended at once, the howto's “Windows-Reboot”; the guest is not asked."""

    def probe(self, host: Host) -> Difference | None:
        """Whether it runs, and as which domain."""
        number = _looked_up(host, self.name)
        return None if number is None else Difference(f"destroy {self.name} (domain {number})")

    def apply(self, host: Host, report: Report) -> None:
        """Destroy the domain."""
        report(f"destroying {self.name}")
        host.run(Command.argv("xl", "destroy", self.name), timeout=CREATE_SECONDS)


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
        number = _looked_up(host, self.name)
        now = "it does not run" if number is None else f"domain {number}"
        return Difference(f"reboot {self.name} ({now})")

    def apply(self, host: Host, report: Report) -> None:
        """Reboot; the console's text is the step's output."""
        report(f"rebooting {self.name}")
        log = log_path(self.name)
        values = (self.name, self._note, log, LOGIN, PANIC, self.seconds)
        command = Command.script(FOLLOW + _REBOOT, *values)
        refuse(host, command, self.name, timeout=2 * self.seconds + 60)

    def verify(self, host: Host) -> None:
        """The domain has another id than the one noted before."""
        old = (host.read(self._note) or "").strip()
        number = domain_id(host, self.name)
        if number is None or not old or number == int(old):
            raise StepFailed(
                f"{self.name} was not rebooted: its domain was {old or 'not noted'}, "
                f"now it is {number if number is not None else 'gone'}"
            )
