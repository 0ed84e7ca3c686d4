"""What is shown once: an action that a machine keeps on record, and that a second run leaves alone.

A state can be looked at. That a guest reboots, or that a machine comes back from a power cycle, can
only be tried; the record says that it was, and with what.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from xenlab.host import Host
from xenlab.resources.base import Difference, Report, Resource

RECORDS = "/var/lib/xenlab/shown"


@dataclass(frozen=True)
class Shown(Resource):
    """An action that was carried out, and verified, on this machine with these very inputs.

    ``inputs`` is what the proof is about (a domain's configuration, say): with others it is none.
    Whoever wants to see the action again removes the record, ``/var/lib/xenlab/shown/NAME``.
    """

    name: str
    action: Resource
    inputs: str = ""
    records: str = RECORDS

    def probe(self, host: Host) -> Difference | None:
        """None where the record is of these inputs; else what the action would do."""
        if (host.read(self._path) or "").strip() == self._key:
            return None
        return self.action.probe(host) or Difference(f"show {self.name}")

    def apply(self, host: Host, report: Report) -> None:
        """Carry the action out."""
        self.action.apply(host, report)

    def verify(self, host: Host) -> None:
        """Put on record that the action's own verification holds."""
        self.action.verify(host)
        host.write(self._path, f"{self._key}\n")

    @property
    def _path(self) -> str:
        return f"{self.records}/{self.name}"

    @property
    def _key(self) -> str:
        return hashlib.sha256(self.inputs.encode()).hexdigest()
