"""A watcher that lets tests stop a command and see what a host tells."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from xenlab.command import Command
from xenlab.masking import Secret


@dataclass
class Watching:
    """Holds each command, its output as told, and its status (xenlab.host.Watcher)."""

    stop: threading.Event = field(default_factory=threading.Event)
    secrets: tuple[Secret, ...] = ()
    mark: str = ""
    looks: bool = True
    commands: list[str] = field(default_factory=list)
    pieces: list[bytes] = field(default_factory=list)
    statuses: list[int | None] = field(default_factory=list)

    def started(self, host: str, command: Command, input: bytes) -> Watching:
        self.commands.append(str(command))
        return self

    def output(self, stream: str, piece: bytes) -> None:
        self.pieces.append(piece)

    def ended(self, status: int | None, seconds: float) -> None:
        self.statuses.append(status)
