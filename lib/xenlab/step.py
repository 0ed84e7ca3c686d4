"""One step in the journal and on the screen, from its first look to its final record."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from types import TracebackType
from typing import Any

from xenlab.command import Result, Secret, mask
from xenlab.errors import ConnectionLost, NoConnection, XenlabError
from xenlab.host import Host
from xenlab.journal import Journal
from xenlab.resources.base import Asked, Difference
from xenlab.view import StepView

OK, CHANGED, WOULD_CHANGE = "ok", "changed", "would change"
REFUSED = "would be refused"
FAILED, UNREACHABLE, UNKNOWN, ABORTED = "failed", "unreachable", "unknown", "aborted"


@dataclass
class Step:
    """A step that is under way: a context manager that always leaves a final record.

    An exception inside it becomes the status ``failed``, ``unreachable``, ``unknown`` or
    ``aborted`` and goes on to the caller with the step's place in it.
    """

    journal: Journal
    view: StepView
    chapter: str
    title: str
    host: str
    boot_id: Callable[[], str]
    stop: threading.Event
    secrets: tuple[Secret, ...] = ()
    status: str = OK
    message: str = ""
    differences: dict[str, Difference] = field(default_factory=dict)
    commands: list[dict[str, Any]] = field(default_factory=list)
    attachments: list[dict[str, str]] = field(default_factory=list)
    wipes: list[str] = field(default_factory=list)
    mark: str = ""

    def __post_init__(self) -> None:
        self.number = self.title.split()[0]
        self._start = time.monotonic()
        self._transcript: list[bytes] = []
        self._lock = threading.Lock()

    def __enter__(self) -> Step:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            self.message = mask(_said(error), self.secrets)
            self.status = _status_of(error)
            if isinstance(error, XenlabError) and not error.where:
                error.where = f"{self.host}, {self.chapter}, step {self.number}"
            elif isinstance(error, XenlabError) and self.number not in error.where:
                error.where = f"{error.where}, {self.chapter}, step {self.number}"
        self.finish()

    def differs(self, label: str, difference: Difference) -> None:
        """Note and show a difference."""
        self.differences[label] = difference
        self.view.difference(label, difference)

    def running(self) -> None:
        """Put a RUNNING record on disk before anything is applied."""
        record = self._record("running", "running")
        self.mark = record["mark"]

    def report(self, what: str, done: float | None, label: str = "") -> None:
        """Show what is being done; what a person is asked for is recorded too."""
        if isinstance(what, Asked):
            self._record("asked", "running", message=str(what))
            self.view.progress(what, None)
        else:
            self.view.progress(f"{label}: {what}" if label else what, done)

    def watch(self, host: Host, label: str = "") -> Host:
        """The host as the step's commands use it: marked, recorded and shown."""
        prefix = f"[{label}] " if label else ""

        def command(text: str) -> None:
            self._note("command", f"{prefix}$ {text.rstrip()}\n".encode())

        def result(result: Result) -> None:
            with self._lock:
                self.commands.append(
                    {
                        "command": result.command,
                        "status": result.status,
                        "seconds": round(result.seconds, 3),
                    }
                )

        return host.marked(self.mark).watched(self._note, command, result, self.stop)

    def finish(self) -> None:
        """Write the final record; its output goes to a file of its own."""
        seconds = time.monotonic() - self._start
        self._record("final", self.status, seconds=round(seconds, 3))
        self.view.finished(self.status, seconds, self.message)

    def attach(self, name: str, data: bytes, suffix: str) -> None:
        """Keep a table, a picture or a log beside the step's output."""
        path, digest = self.journal.save_output(f"{self.number}-{name}", data, suffix)
        self.attachments.append({"path": path, "sha256": digest})

    def _note(self, stream: str, piece: bytes) -> None:
        with self._lock:
            self._transcript.append(piece)
        self.view.output(stream, piece.decode("utf-8", "replace"))

    def _record(self, phase: str, status: str, **more: Any) -> dict[str, Any]:
        fields: dict[str, Any] = {
            "chapter": self.chapter,
            "step": self.number,
            "title": self.title,
            "phase": phase,
            "status": status,
            "host": self.host,
            "boot_id": self.boot_id(),
            "mark": self.mark or f"{self.journal.run}/{self.number}/{time.time_ns():x}",
            **more,
        }
        if self.differences:
            fields["difference"] = {k: asdict(d) for k, d in self.differences.items()}
        if phase == "final":
            if self.commands:
                fields["commands"] = self.commands
                fields["exit_status"] = self.commands[-1]["status"]
            if self._transcript:
                data = b"".join(self._transcript)
                fields["output"], fields["output_sha256"] = self.journal.save_output(
                    self.number, data
                )
            if self.wipes:
                fields["wipes"] = self.wipes
            if self.attachments:
                fields["attachments"] = self.attachments
            if self.message:
                fields["message"] = self.message
        return self.journal.append(**fields)


def _said(error: BaseException) -> str:
    if isinstance(error, KeyboardInterrupt):
        return "stopped by a person; what it ran on the machine was ended"
    return str(error) or type(error).__name__


def _status_of(error: BaseException) -> str:
    if isinstance(error, KeyboardInterrupt):
        return ABORTED
    if isinstance(error, ConnectionLost):
        return UNKNOWN
    if isinstance(error, NoConnection):
        return UNREACHABLE
    return FAILED
