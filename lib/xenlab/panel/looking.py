"""Looks at a machine that decide nothing: they are on no record, and can be stopped."""

from __future__ import annotations

import threading

from xenlab.command import Command, Secret


class Unrecorded:
    """Notes nothing of what a host runs, and stops it once ``stop`` is set (host.Watcher)."""

    secrets: tuple[Secret, ...] = ()
    mark = ""

    def __init__(self, stop: threading.Event) -> None:
        self.stop = stop

    def started(self, host: str, command: Command, input: bytes) -> Unnoted:
        """A command is about to run."""
        return Unnoted()


class Unnoted:
    """One command of which nothing is noted (host.Call)."""

    def output(self, stream: str, piece: bytes) -> None:
        """Nothing."""

    def ended(self, status: int | None, seconds: float) -> None:
        """Nothing."""
