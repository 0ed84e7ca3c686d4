"""A setting of the running kernel; what sets it at the next boot is a file's business."""

from __future__ import annotations

from dataclasses import dataclass

from xenlab.command import Command
from xenlab.host import Host
from xenlab.resources.base import Difference, Report, Resource


@dataclass(frozen=True)
class KernelSetting(Resource):
    """A file under /proc/sys with this value (proc(5)).

    ``required`` false: a kernel that has no such setting is right as it is.
    """

    path: str
    value: str
    required: bool = True

    def probe(self, host: Host) -> Difference | None:
        """Whether the kernel has another value."""
        command = Command.script('[ -e "$1" ] || exit 44; cat -- "$1"', self.path)
        found = host.run(command, check=False)
        if found.status == 44 and not self.required:
            return None
        if found.ok and found.stdout.strip() == self.value:
            return None
        now = f", now {found.stdout.strip()}" if found.ok else ""
        return Difference(f"set {self.path} to {self.value}{now}")

    def apply(self, host: Host, report: Report) -> None:
        """Tell the kernel."""
        host.run(Command.script('printf "%s\\n" "$2" > "$1"', self.path, self.value))
