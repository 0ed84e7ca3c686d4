"""One step, from its first look to its final record: who shows it, consents to it, writes it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import groupby
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import pandas as pd

from xenlab.chapter.recorder import CommandLog, Phase, Recorder
from xenlab.errors import (
    BadInput,
    ConnectionLost,
    ConsentNeeded,
    DiskFull,
    NoConnection,
    XenlabError,
)
from xenlab.host import Host
from xenlab.journal import Journal
from xenlab.masking import mask
from xenlab.resources.base import Asked, Difference, Made, Resource, Waiting
from xenlab.resources.blockdevices import Identified, identified

# What a chapter shows its work to: a notebook, a terminal, or nothing.

VIEW = "_xenlab_view"
"""The variable by which a chapter's cells are told where to show their steps (a `View`)."""

STOP = "_xenlab_stop"
"""The variable that holds what stops them once it is set (a `threading.Event`)."""


RUNBOOK = "_xenlab_runbook"
"""The variable that holds what a chapter's cells get where no chapter is opened, only written."""


class StepView(Protocol):
    """Where one step appears."""

    def difference(self, label: str, difference: Difference) -> None:
        """What the step would change; ``label`` tells parts of one step apart."""

    def script(self, text: str, where: str) -> None:
        """What brings the step's state about, as a person would type it; ``where`` is its host."""

    def progress(self, what: str, done: float | None) -> None:
        """What is being done now and the fraction (0 to 1) done, None where it is not counted.

        `Asked` words are what the step now waits for a person to do, `Waiting` words what it waits
        for that comes by itself.
        """

    def output(self, stream: str, text: str, phase: Phase) -> None:
        """A command ("command") or what it printed ("stdout", "stderr"), masked, as it arrives.

        ``phase`` says what the command is for: to look, to change, or to verify.
        """

    def table(self, frame: pd.DataFrame) -> None:
        """A table of facts."""

    def picture(self, png: bytes) -> None:
        """A picture."""

    def finished(self, status: str, seconds: float, message: str = "") -> None:
        """The step's final status, its duration in seconds and what a person should know."""


class View(Protocol):
    """Where a chapter appears."""

    def chapter(self, name: str, site: str, host: str, mode: str, run: Path) -> None:
        """The chapter that was opened, and where."""

    def step_started(self, title: str) -> StepView:
        """A step begins."""

    def consent(self, needed: ConsentNeeded, give: Callable[[str], None]) -> None:
        """A step stopped for want of consent; ``give`` takes what a person agreed to lose.

        That is the disk's serial, or each of ``made``, once the person typed the names.
        """


class Silent:
    """A view that shows nothing, for scripts and tests."""

    def chapter(self, name: str, site: str, host: str, mode: str, run: Path) -> None:
        """Nothing."""

    def step_started(self, title: str) -> StepView:
        """A step that shows nothing."""
        return _SilentStep()

    def consent(self, needed: ConsentNeeded, give: Callable[[str], None]) -> None:
        """Nobody is there to be asked."""


class _SilentStep:
    def difference(self, label: str, difference: Difference) -> None:
        pass

    def script(self, text: str, where: str) -> None:
        pass

    def progress(self, what: str, done: float | None) -> None:
        pass

    def output(self, stream: str, text: str, phase: Phase) -> None:
        pass

    def table(self, frame: pd.DataFrame) -> None:
        pass

    def picture(self, png: bytes) -> None:
        pass

    def finished(self, status: str, seconds: float, message: str = "") -> None:
        pass


# Consent: nothing is wiped unless it was named, and never while it is in use.
#
# A disk's serial in ``may_wipe`` covers what is empty or foreign. What xenlab itself made, a guest
# with its data above all, wants a consent by its own name as well: for one run (``--destroy
# domu1``), or for the file system that is there now and no later one (``may_destroy: [domu1
# UUID]``, or the name typed into the card).


@dataclass(frozen=True)
class Consents:
    """What somebody has agreed to lose: disks by serial, what xenlab made by name.

    "domu1" is whatever has that name, "domu1 UUID" only what is there under it now.
    """

    disks: tuple[str, ...] = ()
    made: tuple[str, ...] = ()

    def without(self, things: Iterable[Made]) -> tuple[Made, ...]:
        """Those of what xenlab made that nobody has agreed to lose."""
        return tuple(t for t in things if t.name not in self.made and str(t) not in self.made)


@dataclass(frozen=True)
class Agreed:
    """What may be destroyed: on the disk with this identity alone, and of what xenlab made this."""

    identity: str = ""
    lost: tuple[Made, ...] = ()


def require_consents(
    host: Host, resources: Iterable[Resource], consents: Consents
) -> dict[str, Agreed]:
    """What may be destroyed, by device; raises ConsentNeeded for all that nobody agreed to lose."""
    agreed = {
        r.wipes(): Agreed(require_consent(host, r.wipes(), consents.disks), r.destroys(host))
        for r in resources
        if r.wipes()
    }
    needed = {device: consents.without(each.lost) for device, each in agreed.items()}
    refused = refusal_by_name(needed)
    if refused is not None:
        raise refused
    return agreed


def require_consent(host: Host, device: str, may_wipe: tuple[str, ...]) -> str:
    """The identity of the device's disk; raises ConsentNeeded unless ``may_wipe`` names it.

    A device that is in use, or holds what is, is refused whatever was consented to.
    """
    found = identified(host, device)
    refused = refusal(found, device, may_wipe)
    if refused is not None:
        raise refused
    return found.identity


def would_refuse(host: Host, resources: Iterable[Resource], consents: Consents) -> str:
    """Why what these wipe would be refused now, "" where it would not be.

    A device that is not there yet lies on the disk that an earlier step partitions.
    """
    try:
        require_consents(host, resources, consents)
    except BadInput:
        return ""
    except ConsentNeeded as refused:
        return f"{refused.message} ({refused.hint})" if refused.made else refused.message
    return ""


def planned_before(journal: Journal) -> str:
    """Which step of this run's plan would first make a device anew; "" where none would."""
    finals = (record for record in journal.records() if record.get("phase") == "final")
    latest = {(record["chapter"], record["step"]): record for record in finals}
    for record in latest.values():
        if record.get("wipes"):
            return made_anew(record["step"], record["wipes"])
    return ""


def made_anew(step: str, devices: Sequence[str]) -> str:
    """What a plan waits for where a step would wipe these, in words."""
    return f"step {step} has made {', '.join(devices)} anew"


def refusal(found: Identified, device: str, may_wipe: tuple[str, ...]) -> ConsentNeeded | None:
    """Why the device must not be wiped, None where it may be."""
    if found.device.used:
        return ConsentNeeded(
            f"{device} is in use ({', '.join(found.device.used)}) and is never wiped while it is",
            hint="unmount it, or name another disk",
        )
    if any(value in may_wipe for _, value in found.known_by):
        return None
    kind, best = found.known_by[0]
    return ConsentNeeded(
        f"this step destroys all data on {device}, whose disk has the {kind} {best}; "
        f"may_wipe allows only: {', '.join(may_wipe) or 'nothing'}",
        hint=f"add {best!r} to may_wipe if this is really the disk to wipe",
        device=device,
        serial=best,
    )


def refusal_by_name(needed: Mapping[str, Sequence[Made]]) -> ConsentNeeded | None:
    """Why what xenlab made on these devices must not be destroyed, None where that is nothing."""
    things = {str(thing): thing for each in needed.values() for thing in each}
    if not things:
        return None
    listed = "; ".join(f"{thing.name} ({thing.what})" for thing in things.values())
    names = dict.fromkeys(thing.name for thing in things.values())
    return ConsentNeeded(
        f"this step destroys what xenlab made, and nobody has agreed to lose it: {listed}",
        hint=f"to lose it, run this with {' '.join(f'--destroy {name}' for name in names)}, or "
        f"have may_destroy: [{', '.join(things)}]",
        device=", ".join(device for device, each in needed.items() if each),
        made=tuple(things),
    )


# One step in the journal and on the screen, from its first look to its final record.

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
    script: str = ""

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

    def names(self, parts: Mapping[str, Sequence[Resource]], where: str) -> None:
        """Note and show what brings the step's state about, as shell text; ``where`` it runs."""
        texts = {label: typed(resources) for label, resources in parts.items()}
        several = sum(map(bool, texts.values())) > 1
        lines = [f"# {k}\n{text}" if several else text for k, text in texts.items() if text]
        self.script = self._masked("\n".join(lines))
        if self.script:
            self.view.script(self.script, where)

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
        if self.script:
            fields["script"] = self.script
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


def typed(resources: Sequence[Resource]) -> str:
    """The commands of several resources as shell text; one that follows itself stands once."""
    found = (one.by_hand() for each in resources for one in each.commands())
    return "\n".join(text for text, _ in groupby(found) if text)


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
