"""One step, from its first look to its final record: who shows it, consents to it, writes it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import groupby
from typing import TYPE_CHECKING, Any, TypeVar, TypeVarTuple

from xenlab.chapter import events
from xenlab.chapter.recorder import CommandLog, Recorder
from xenlab.command import Command
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

if TYPE_CHECKING:
    import pandas as pd

Found = TypeVar("Found")
Given = TypeVarTuple("Given")

Wanted = Resource | Callable[[], Resource | Iterable[Resource]]
"""A resource, or what makes some: called inside the step where making them takes a look."""


def looked(look: Callable[[*Given], Found], *given: *Given) -> Found:
    """What a look finds; it changes nothing, so one whose connection broke is repeated, once."""
    try:
        return look(*given)
    except ConnectionLost:
        return look(*given)


def made(wanted: Sequence[Wanted]) -> tuple[Resource, ...]:
    """The resources that are wanted, those that take a look made now."""
    found: list[Resource] = []
    for each in wanted:
        made = each if isinstance(each, Resource) else looked(each)
        found.extend((made,) if isinstance(made, Resource) else made)
    return tuple(found)


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

    def missing(self, things: Iterable[Made]) -> tuple[Made, ...]:
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
    needed = {device: consents.missing(each.lost) for device, each in agreed.items()}
    refused = refusal_by_name(needed)
    if refused is not None:
        raise refused
    return agreed


def require_consent(host: Host, device: str, may_wipe: tuple[str, ...]) -> str:
    """The identity of the device's disk; raises ConsentNeeded unless ``may_wipe`` names it.

    A device that is in use, or holds what is, is refused whatever was consented to. A guest's disk
    file is no disk: what is in it is lost by a consent to its name.
    """
    if not device.startswith("/dev/") and host.test(Command.argv("test", "-f", device)):
        return ""
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
            f"cannot wipe {device}: because it is in use ({', '.join(found.device.used)})",
            hint="unmount it (an array: mdadm --stop), or name another disk",
        )
    every = (found.known_by, *found.others)
    missed = [names for names in every if not any(value in may_wipe for _, value in names)]
    if not missed:
        return None
    kind, best = missed[0][0]
    return ConsentNeeded(
        f"cannot wipe {device} and all data on it: because its disk has the {kind} {best}, and "
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
        f"cannot destroy what xenlab made: because nobody has agreed to lose it: {listed}",
        hint=f"to lose it, run this with {' '.join(f'--destroy {name}' for name in names)}, or "
        f"have may_destroy: [{', '.join(things)}]",
        device=", ".join(device for device, each in needed.items() if each),
        made=tuple(things),
    )


# One step in the journal and on the screen, from its first look to its final record.

OK, CHANGED, WOULD_CHANGE = "ok", "changed", "would change"
REFUSED = "would be refused"
SKIPPED = "skipped"
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
    sink: events.Sink
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
    unforeseen: str = ""

    def __post_init__(self) -> None:
        self.number = self.title.split()[0]
        self.mark = f"{self.journal.run}/{self.number}/{time.time_ns():x}"
        self._start = time.monotonic()
        self._log = CommandLog(self.host, self.recorder.secrets, self.journal, self.sink)
        self._under_way = self.recorder.step(self._log, self.mark)
        self.sink(events.Started(self.title))

    def __enter__(self) -> Step:
        self._under_way.__enter__()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
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
        if difference.unknown:
            self.unforeseen = self.unforeseen or masked.summary
        self.sink(events.Differs(label, masked))

    def looks(self) -> dict[str, str]:
        """The digest of what each look has printed, by its command (`look_digest`)."""
        return self._log.looks()

    def names(self, parts: Mapping[str, Sequence[Resource]], where: str) -> None:
        """Note and show what brings the step's state about, as shell text; ``where`` it runs."""
        texts = {label: typed(resources) for label, resources in parts.items()}
        several = sum(map(bool, texts.values())) > 1
        lines = [f"# {k}\n{text}" if several else text for k, text in texts.items() if text]
        self.script = self._masked("\n".join(lines))
        if self.script:
            self.sink(events.Script(self.script, where))

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
            self.sink(events.Progress(Asked(text), None))
        elif isinstance(what, Waiting):
            self._record("waiting", "running", message=text)
            self.sink(events.Progress(Waiting(f"{label}: {text}" if label else text), None))
        else:
            self.sink(events.Progress(f"{label}: {text}" if label else text, done))

    def table(self, frame: pd.DataFrame) -> None:
        """Keep and show a table."""
        secrets = self.recorder.secrets
        frame = frame.map(lambda v: mask(v, secrets) if isinstance(v, str) else v)
        self.attach("table", frame.to_csv(index=False).encode(), ".csv")
        self.sink(events.Table(frame))

    def finish(self) -> None:
        """Write the final record; raises DiskFull where not all of it could be kept."""
        self.message = self._masked(self.message)
        seconds = time.monotonic() - self._start
        try:
            self._finish(round(seconds, 3))
        finally:
            self.sink(events.Finished(self.status, seconds, self.message))

    def attach(self, name: str, data: bytes, suffix: str) -> None:
        """Keep a table, a picture or a log beside the step's record."""
        path, digest = self.journal.save_output(f"{self.number}-{name}", data, suffix)
        self.attachments.append({"path": path, "sha256": digest})

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
        if self.unforeseen and self.status in (WOULD_CHANGE, REFUSED):
            fields["unforeseen"] = self.unforeseen
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
