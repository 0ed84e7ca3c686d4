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

# The hotplug scripts never get their lock without a standard input.
_CREATE = """
name=$1 config=$2 log=$3 wanted=$4 panic=$5 seconds=$6 console=$7
from=$(log_size "$log") out=$(mktemp)
status=0
env -u XENLAB_STEP xl create "$config" < /dev/null > "$out" 2>&1 || status=$?
cat -- "$out" >&2
rm -f -- "$out"
[ "$status" = 0 ] || exit 1
[ "$console" = yes ] || exit 0
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
        report(f"creating {self.name}" + (" and watching it boot" if self.console else ""))
        command = Command.script(
            FOLLOW + _CREATE,
            self.name,
            self.config,
            log_path(self.name),
            LOGIN,
            PANIC,
            self.seconds,
            "yes" if self.console else "no",
        )
        refuse(host, command, self.name, timeout=CREATE_SECONDS + self.seconds)


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
    notes: str = "/run/xenlab"

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
