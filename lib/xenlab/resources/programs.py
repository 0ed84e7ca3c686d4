"""Programs that a machine must have for a step, and which we do not install on it by ourselves."""

from __future__ import annotations

from dataclasses import dataclass

from xenlab.command import Command
from xenlab.errors import StepFailed
from xenlab.host import Host
from xenlab.resources.base import Difference, Report, Resource


@dataclass(frozen=True)
class Programs(Resource):
    """Programs found on the machine's PATH, or files where a name begins with ``/``."""

    names: tuple[str, ...]
    hint: str = ""

    def probe(self, host: Host) -> Difference | None:
        """The names of those that are missing."""
        script = """
            for name do
                case $name in
                    /*) [ -e "$name" ] || printf '%s\\n' "$name" ;;
                    *) command -v -- "$name" > /dev/null || printf '%s\\n' "$name" ;;
                esac
            done
        """
        missing = host.run(Command.script(script, *self.names), check=False).stdout.split()
        if not missing:
            return None
        advice = f"; {self.hint}" if self.hint else ""
        return Difference(f"{', '.join(missing)} missing on {host.name}{advice}")

    def apply(self, host: Host, report: Report) -> None:
        """Nothing is installed from here: raises StepFailed if one is missing."""
        difference = self.probe(host)
        if difference is not None:
            raise StepFailed(difference.summary)
