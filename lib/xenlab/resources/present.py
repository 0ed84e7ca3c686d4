"""What another chapter makes and this one needs: files and devices that must be there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from xenlab.command import Command
from xenlab.errors import StepFailed
from xenlab.host import Host
from xenlab.resources.base import Difference, Report, Resource


def present(host: Host, paths: Sequence[str]) -> set[str]:
    """Which of these paths are there; none of them where there is no root yet."""
    script = 'for path; do [ ! -e "$path" ] || printf "%s\\n" "$path"; done'
    found = host.run(Command.script(script, *paths), check=False)
    return set(found.stdout.splitlines()) if found.ok else set()


@dataclass(frozen=True)
class PathsExist(Resource):
    """A condition: files and devices that must be there; nothing is made."""

    paths: tuple[str, ...]
    hint: str = ""

    def probe(self, host: Host) -> Difference | None:
        """Which of them are missing."""
        there = present(host, self.paths)
        missing = [path for path in self.paths if path not in there]
        if not missing:
            return None
        hint = f"; {self.hint}" if self.hint else ""
        return Difference(f"missing: {', '.join(missing)}{hint}")

    def apply(self, host: Host, report: Report) -> None:
        """Refused: a condition is not made true here."""
        raise StepFailed("this is a condition, and nothing makes it true here", hint=self.hint)
