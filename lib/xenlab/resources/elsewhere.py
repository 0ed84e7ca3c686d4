"""A state of another machine than the step's own: a guest's, in a step of dom0's."""

from __future__ import annotations

from dataclasses import dataclass, field

from xenlab.errors import ConnectionLost, ConnectionRefused, Unreachable
from xenlab.host import Host
from xenlab.resources.base import Difference, Report, Resource

ANSWER_SECONDS = 900.0
"""How long a machine that boots may take to answer."""


@dataclass(frozen=True)
class Elsewhere(Resource):
    """A resource on a host of its own; what it does there is the step's output all the same."""

    name: str
    host: Host = field(compare=False)
    resource: Resource
    seconds: float = field(default=ANSWER_SECONDS, compare=False)

    def probe(self, host: Host) -> Difference | None:
        """The resource's difference, or that the machine does not answer yet."""
        try:
            return self.resource.probe(self.host)
        except (ConnectionRefused, Unreachable, ConnectionLost) as error:
            return Difference(f"once {self.name} answers: {error.message}")

    def apply(self, host: Host, report: Report) -> None:
        """Wait until the other machine answers, which may still boot; bring it into the state.

        Raises ConnectionRefused past the deadline, Unreachable at once where waiting is vain.
        """
        self.host.transport.connect(host.stop, seconds=self.seconds)
        self.resource.apply(self.host, report)

    def verify(self, host: Host) -> None:
        """Raise StepFailed unless the state holds there."""
        self.resource.verify(self.host)
