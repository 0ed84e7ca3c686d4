"""Daemons and what they read: the same under any init system, but for who starts them anew."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from xenlab.command import Command
from xenlab.errors import CommandFailed, StepFailed
from xenlab.host import Host
from xenlab.platform.package_index import NO_ROOT
from xenlab.resources.base import Difference, Report, Resource

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
        result = host.run(self.look(host), check=False)
        if not result.ok and result.status not in NO_ROOT:
            raise CommandFailed(result)
        states = parse_states(result.stdout) if result.ok else dict.fromkeys(self.names, ("", ""))
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


def parse_states(text: str) -> dict[str, tuple[str, str]]:
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

    def apply(self, host: Host, report: Report) -> None:
        """Restart the service; nothing to do in a root directory that is not booted."""
        if host.root == "/":
            report(f"restarting {self.name}")
            host.run(self.restart, timeout=START_SECONDS)


@dataclass(frozen=True)
class NoneFailed(Resource):
    """The condition that no service of a machine has failed.

    ``look`` prints the name of each that has, below it the last lines of its log after a tab.
    """

    look: Command
    hint: str

    def probe(self, host: Host) -> Difference | None:
        """Which have failed, and what they said at last."""
        result = host.run(self.look, check=False, timeout=START_SECONDS)
        if host.root != "/" or result.status in NO_ROOT:
            return Difference("nobody can say yet whether a service has failed")
        if not result.ok:
            raise CommandFailed(result)
        found = parse_failed(result.stdout)
        if not found:
            return None
        said = (": ".join((name, " / ".join(lines))) for name, lines in found.items())
        return Difference(f"has failed: {'; '.join(said)}", hint=self.hint)

    def apply(self, host: Host, report: Report) -> None:
        """Nothing makes it true here: raises StepFailed where a service has failed."""
        if (found := self.probe(host)) is not None:
            raise StepFailed(found.summary, hint=found.hint)


def parse_failed(text: str) -> dict[str, list[str]]:
    """Names of services, each with the lines below it that begin with a tab."""
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        if not line.startswith("\t"):
            found[line] = []
        elif found:
            found[list(found)[-1]].append(line.strip())
    return found
