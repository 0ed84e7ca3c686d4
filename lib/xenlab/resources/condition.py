"""Conditions: what must hold on a machine and cannot be brought about from here."""

from __future__ import annotations

from dataclasses import dataclass

from xenlab.command import Command
from xenlab.errors import StepFailed
from xenlab.host import Host
from xenlab.resources.base import Difference, Report, Resource


@dataclass(frozen=True)
class Condition(Resource):
    """A command that only looks and ends with status 0; ``otherwise`` says what is wrong if not."""

    command: Command
    otherwise: str
    hint: str = ""

    def probe(self, host: Host) -> Difference | None:
        """``otherwise``, unless the command ends with status 0."""
        return None if host.test(self.command) else Difference(self.otherwise, hint=self.hint)

    def apply(self, host: Host, report: Report) -> None:
        """Nothing can be done from here: raises StepFailed unless the condition holds."""
        if self.probe(host) is not None:
            raise StepFailed(self.otherwise, hint=self.hint)


@dataclass(frozen=True)
class Together(Resource):
    """Several states as one: it holds if all of them do."""

    parts: tuple[Resource, ...]

    def probe(self, host: Host) -> Difference | None:
        """All differences that are found, as one."""
        found = [part.probe(host) for part in self.parts]
        return Difference.of_all([each for each in found if each is not None])

    def apply(self, host: Host, report: Report) -> None:
        """Apply each part that differs."""
        for part in self.parts:
            if part.probe(host) is not None:
                part.apply(host, report)
