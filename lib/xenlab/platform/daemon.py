"""Daemons and what they read: the same under any init system, but for who starts them anew."""

from __future__ import annotations

from dataclasses import dataclass

from xenlab.command import Command
from xenlab.errors import StepFailed
from xenlab.host import Host
from xenlab.resources.base import Difference, Report, Resource
from xenlab.resources.files import File

START_SECONDS = 600.0
"""Deadline of starting, stopping or enabling services, in seconds: an emulated host is slow."""


@dataclass(frozen=True)
class Configured(Resource):
    """A daemon's configuration file. A text that the test command refuses is taken back.

    ``reload`` has a daemon that runs read it again.
    """

    file: File
    reload: Command
    test: tuple[str, ...] = ()

    def probe(self, host: Host) -> Difference | None:
        """The diff of the file."""
        return self.file.probe(host)

    def apply(self, host: Host, report: Report) -> None:
        """Write the file, test it, have it read. Raises StepFailed if it is refused."""
        before = host.read(self.file.path)
        self.file.apply(host, report)
        if self.test:
            result = host.run(Command.argv(*self.test), check=False)
            if not result.ok:
                if before is None:
                    host.run(Command.argv("rm", "-f", "--", self.file.path))
                else:
                    host.write(self.file.path, before, mode=self.file.mode, owner=self.file.owner)
                raise StepFailed(
                    f"{self.file.path} is refused by “{' '.join(self.test)}”, the former one is "
                    f"back: {result.stderr.strip()}"
                )
        if host.root == "/":
            host.run(self.reload, timeout=START_SECONDS)


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
