"""A state of another machine than the step's own: a guest's, in a step of dom0's."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from xenlab.errors import ConnectionLost, ConnectionRefused
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
        except (ConnectionRefused, ConnectionLost) as error:
            return Difference(f"once {self.name} answers: {error.message}")

    def apply(self, host: Host, report: Report) -> None:
        """Wait until the other machine answers, which may still boot; bring it into the state.

        Raises ConnectionRefused past the deadline.
        """
        deadline = time.monotonic() + self.seconds
        while True:
            try:
                self.host.transport.connect()
                break
            except (ConnectionRefused, ConnectionLost):
                stopped = host.stop is not None and host.stop.is_set()
                if stopped or time.monotonic() > deadline:
                    raise
            report(f"waiting until {self.name} answers")
            time.sleep(1)
        self.resource.apply(self._watched(host), report)

    def verify(self, host: Host) -> None:
        """Raise StepFailed unless the state holds there."""
        self.resource.verify(self._watched(host))

    def _watched(self, host: Host) -> Host:
        other = self.host.marked(host.mark)
        return other.watched(host.on_output, host.on_command, host.on_result, host.stop)
