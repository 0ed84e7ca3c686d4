"""One step in the journal and on the screen, from its first look to its final record."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from types import TracebackType
from typing import Any

import pandas as pd

from xenlab.command import mask
from xenlab.errors import ConnectionLost, DiskFull, NoConnection, XenlabError
from xenlab.journal import Journal
from xenlab.recorder import CommandLog, Phase, Recorder
from xenlab.resources.base import Asked, Difference, Waiting
from xenlab.view import StepView

OK, CHANGED, WOULD_CHANGE = "ok", "changed", "would change"
REFUSED = "would be refused"
FAILED, UNREACHABLE, UNKNOWN, ABORTED = "failed", "unreachable", "unknown", "aborted"

ENDED = "what it ran on the machine was ended"


@dataclass
class Step:
    """A step that is under way: a context manager that always leaves a final record.

    Every command that the chapter's hosts run meanwhile is in that record. An exception inside it
    becomes the status ``failed``, ``unreachable``, ``unknown`` or ``aborted`` and goes on to the
    caller with the step's place in it. Secrets are masked in all that is recorded and shown.
    """

    journal: Journal
    view: StepView
    chapter: str
    title: str
    host: str
    boot_id: Callable[[], str]
    recorder: Recorder
    status: str = OK
    message: str = ""
    differences: dict[str, Difference] = field(default_factory=dict)
    attachments: list[dict[str, str]] = field(default_factory=list)
    wipes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.number = self.title.split()[0]
        self.mark = f"{self.journal.run}/{self.number}/{time.time_ns():x}"
        self._start = time.monotonic()
        self._log = CommandLog(self.host, self.recorder.secrets, self.journal, self._shown)
        self._under_way = self.recorder.step(self._log, self.mark)

    def __enter__(self) -> Step:
        self._under_way.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            self._hide(error)
            self.message = self._masked(_said(error))
            self.status = _status_of(error)
            if isinstance(error, XenlabError) and not error.where:
                error.where = f"{self.host}, {self.chapter}, step {self.number}"
            elif isinstance(error, XenlabError) and self.number not in error.where:
                error.where = f"{error.where}, {self.chapter}, step {self.number}"
        try:
            self.finish()
        except (DiskFull, OSError):
            # what went wrong before is what a person has to know
            if error is None:
                raise
        finally:
            self._under_way.__exit__(None, None, None)

    def differs(self, label: str, difference: Difference) -> None:
        """Note and show a difference."""
        masked = replace(
            difference,
            summary=self._masked(difference.summary),
            diff=self._masked(difference.diff),
            rows=tuple({k: self._masked(v) for k, v in row.items()} for row in difference.rows),
            hint=self._masked(difference.hint),
        )
        self.differences[label] = masked
        self.view.difference(label, masked)

    def note(self, message: str) -> None:
        """Add a sentence to what a person should know."""
        self.message = "; ".join(filter(None, (self.message, message)))

    def running(self) -> None:
        """Put a RUNNING record on disk before anything is applied."""
        self._record("running", "running")

    def report(self, what: str, done: float | None, label: str = "") -> None:
        """Show what is being done; what is waited for, a person or an event, is recorded too."""
        text = self._masked(what)
        if isinstance(what, Asked):
            self._record("asked", "running", message=text)
            self.view.progress(Asked(text), None)
        elif isinstance(what, Waiting):
            self._record("waiting", "running", message=text)
            self.view.progress(Waiting(f"{label}: {text}" if label else text), None)
        else:
            self.view.progress(f"{label}: {text}" if label else text, done)

    def table(self, frame: pd.DataFrame) -> None:
        """Keep and show a table."""
        secrets = self.recorder.secrets
        frame = frame.map(lambda v: mask(v, secrets) if isinstance(v, str) else v)
        self.attach("table", frame.to_csv(index=False).encode(), ".csv")
        self.view.table(frame)

    def finish(self) -> None:
        """Write the final record; raises DiskFull where not all of it could be kept."""
        self.message = self._masked(self.message)
        seconds = time.monotonic() - self._start
        try:
            self._finish(round(seconds, 3))
        finally:
            self.view.finished(self.status, seconds, self.message)

    def attach(self, name: str, data: bytes, suffix: str) -> None:
        """Keep a table, a picture or a log beside the step's record."""
        path, digest = self.journal.save_output(f"{self.number}-{name}", data, suffix)
        self.attachments.append({"path": path, "sha256": digest})

    def _shown(self, stream: str, text: str, phase: Phase) -> None:
        self.view.output(stream, text, phase)

    def _masked(self, text: str) -> str:
        return mask(text, self.recorder.secrets)

    def _hide(self, error: BaseException | None) -> None:
        """Mask secrets in an error and in what led to it: a notebook shows all of them."""
        seen: set[int] = set()
        while error is not None and id(error) not in seen:
            seen.add(id(error))
            if isinstance(error, XenlabError):
                error.hide(self.recorder.secrets)
            else:
                error.args = tuple(self._masked(a) if isinstance(a, str) else a for a in error.args)
            error = error.__cause__ or error.__context__

    def _finish(self, seconds: float) -> None:
        full: DiskFull | OSError | None = None
        try:
            commands = self._log.records(self.number)
        except (DiskFull, OSError) as error:
            full, commands = error, self._log.records(self.number, files=False)
        fields: dict[str, Any] = {"seconds": seconds}
        if commands:
            fields["commands"] = commands
            fields["exit_status"] = commands[-1]["status"]
        if self.wipes:
            fields["wipes"] = self.wipes
        if self.attachments:
            fields["attachments"] = self.attachments
        if self.message:
            fields["message"] = self.message
        self._record("final", self.status, **fields)
        if full is not None:
            raise full

    def _record(self, phase: str, status: str, **more: Any) -> Mapping[str, Any]:
        fields: dict[str, Any] = {
            "chapter": self.chapter,
            "step": self.number,
            "title": self.title,
            "phase": phase,
            "status": status,
            "host": self.host,
            "boot_id": self.boot_id(),
            "mark": self.mark,
            **more,
        }
        if self.differences:
            fields["difference"] = {k: asdict(d) for k, d in self.differences.items()}
        return self.journal.append(**fields)


def _said(error: BaseException) -> str:
    if isinstance(error, KeyboardInterrupt):
        notes = dict.fromkeys(getattr(error, "__notes__", ()))
        return "; ".join(("stopped by a person", *(notes or (ENDED,))))
    return str(error) or type(error).__name__


def _status_of(error: BaseException) -> str:
    if isinstance(error, KeyboardInterrupt):
        return ABORTED
    if isinstance(error, ConnectionLost):
        return UNKNOWN
    if isinstance(error, NoConnection):
        return UNREACHABLE
    return FAILED
