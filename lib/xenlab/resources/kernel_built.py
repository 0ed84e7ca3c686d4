"""Kernels compiled: detached, followed, found again after a lost connection."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, replace

from xenlab.command import Command
from xenlab.errors import CommandFailed, ConnectionLost, StepFailed
from xenlab.host import Host
from xenlab.resources.base import Difference, Report, Resource
from xenlab.resources.kernel import KernelBuild
from xenlab.resources.kernel_config import script
from xenlab.wholefile import RECEIVE, size_and_digest

COMPILED_FILES = {"dom0": 1590, "domU": 1420}
"""About how many files a build from nothing compiles: what a progress bar is measured by."""

BUILD_SECONDS = 8 * 3600.0
RECONNECT_SECONDS = 600.0

_FAILED, _OTHER_BUILD = 46, 47
_COMPILED = re.compile(rb"^  (?:CC|AS)  ")


@dataclass(frozen=True)
class KernelBuilt(Resource):
    """A kernel compiled from its config; the same inputs are never compiled twice."""

    build: KernelBuild

    def probe(self, host: Host) -> Difference | None:
        """Whether the builder has no kernel of this key."""
        if self.build.manifest(host) is not None:
            return None
        return Difference(f"compile the {self.build.flavour} kernel on {host.name}")

    def apply(self, host: Host, report: Report) -> None:
        """Compile it detached from the connection; a build that runs already is followed.

        Raises StepFailed with the log's last lines if the build fails.
        """
        facts = self.build.require(host)
        log = _Log(self.build.flavour, report)
        text = script("build").encode()
        deadline = time.monotonic() + BUILD_SECONDS
        while True:
            follow = Command.script(
                RECEIVE + script("follow"),
                self.build.tree(facts),
                self.build.work(facts),
                self.build.result(facts),
                self.build.key(facts),
                log.lines,
                *size_and_digest(text),
            )
            try:
                result = log.watch(host).run(
                    follow, input=text, check=False, timeout=deadline - time.monotonic()
                )
            except ConnectionLost:
                report("the connection was lost; the build goes on without it")
                _reconnect(host)
                continue
            if result.ok:
                return
            if result.status == _FAILED:
                tail = "\n  ".join(log.tail)
                raise StepFailed(
                    f"the {self.build.flavour} kernel does not build; the log ends:\n  {tail}",
                    hint=f"the whole log is {self.build.work(facts)}/log on {host.name}",
                )
            if result.status != _OTHER_BUILD:
                raise CommandFailed(result)


class _Log:
    """Counts what a build's log says, and passes it on."""

    def __init__(self, flavour: str, report: Report) -> None:
        self.lines = 0
        self.tail: list[str] = []
        self._flavour = flavour
        self._report = report
        self._compiled = 0
        self._rest = b""

    def watch(self, host: Host) -> Host:
        """The host, whose output is counted too."""

        def seen(stream: str, piece: bytes) -> None:
            if stream == "stdout":
                self._count(piece)

        return replace(host, heard=seen)

    def _count(self, piece: bytes) -> None:
        *lines, self._rest = (self._rest + piece).split(b"\n")
        self.lines += len(lines)
        self._compiled += sum(1 for line in lines if _COMPILED.match(line))
        self.tail = [*self.tail, *(line.decode("utf-8", "replace") for line in lines)][-15:]
        if lines:
            done = min(0.99, self._compiled / COMPILED_FILES[self._flavour])
            self._report(f"compiling the {self._flavour} kernel", done)


def _reconnect(host: Host) -> None:
    deadline = time.monotonic() + RECONNECT_SECONDS
    while True:
        try:
            return host.transport.connect(host.stop, seconds=deadline - time.monotonic())
        except ConnectionLost:
            if time.monotonic() > deadline:
                raise
            time.sleep(1)
