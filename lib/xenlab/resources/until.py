"""A state that counts until another has taken its place."""

from __future__ import annotations

from dataclasses import dataclass

from xenlab.command import Command
from xenlab.host import Host
from xenlab.resources.base import Difference, Report, Resource
from xenlab.resources.condition import Together


@dataclass(frozen=True)
class Until(Resource):
    """These states, unless ``replaced`` ends with status 0: a later chapter moved on from them."""

    parts: tuple[Resource, ...]
    replaced: Command

    def probe(self, host: Host) -> Difference | None:
        """All differences as one, none where another state has taken the place."""
        return None if host.test(self.replaced) else Together(self.parts).probe(host)

    def apply(self, host: Host, report: Report) -> None:
        """Apply each part that differs."""
        Together(self.parts).apply(host, report)
