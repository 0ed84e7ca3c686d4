"""A state of another machine than the step's own: a guest's, in a step of dom0's."""

from __future__ import annotations

from dataclasses import dataclass, field

from xenlab.errors import ConnectionLost, ConnectionRefused, HostKeyRefused
from xenlab.host import Host
from xenlab.resources.base import Difference, Report, Resource


@dataclass(frozen=True)
class Elsewhere(Resource):
    """A resource on a host of its own; what it does there is the step's output all the same."""

    name: str
    host: Host = field(compare=False)
    resource: Resource

    def probe(self, host: Host) -> Difference | None:
        """The resource's difference, or that the machine does not answer yet."""
        try:
            return self.resource.probe(self.host)
        except HostKeyRefused:
            raise
        except (ConnectionRefused, ConnectionLost) as error:
            return Difference(f"once {self.name} answers: {error.message}")

    def apply(self, host: Host, report: Report) -> None:
        """Bring the other machine into the state."""
        self.resource.apply(self._watched(host), report)

    def verify(self, host: Host) -> None:
        """Raise StepFailed unless the state holds there."""
        self.resource.verify(self._watched(host))

    def _watched(self, host: Host) -> Host:
        other = self.host.marked(host.mark)
        return other.watched(host.on_output, host.on_command, host.on_result, host.stop)
