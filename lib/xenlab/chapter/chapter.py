"""A chapter of the howto: its steps are looked at, planned, consented to, applied, verified."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pandas as pd

from xenlab.chapter import events, machine_lock
from xenlab.chapter.machine_lock import Ended, Hold, MachineLock, end_attempt, tell_ended
from xenlab.chapter.planned import Planned
from xenlab.chapter.recorder import Recorder, discover_secrets
from xenlab.chapter.selected import Selected, selectable
from xenlab.chapter.step import (
    CHANGED,
    OK,
    REFUSED,
    SKIPPED,
    WOULD_CHANGE,
    Agreed,
    Consents,
    Step,
    Wanted,
    looked,
    made,
    made_anew,
    planned_before,
    require_consents,
    would_refuse,
)
from xenlab.errors import (
    ChapterOrder,
    CommandFailed,
    CommandTimeout,
    ConnectionLost,
    ConnectionRefused,
    ConsentNeeded,
    MachineBusy,
    StepFailed,
    XenlabError,
)
from xenlab.host import Host
from xenlab.journal import Journal
from xenlab.platform.choice import PlatformAnswers
from xenlab.resources.base import Difference, Resource, Waiting
from xenlab.resources.disk import INSTALLED_ROOT, installed_root, partition_numbers
from xenlab.resources.ssh_access import way_to, way_to_guest
from xenlab.site.disk_plan import dom0_device
from xenlab.site.schema import Parameters
from xenlab.transport.local import Local
from xenlab.transport.ssh import SSH, Wait

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RECONNECT_SECONDS = 600.0
"""How long a lost host may take to answer again, and a lost command to end, before we give up."""

SYNC_SECONDS = 600.0
"""How long a machine may take to write to its disks what a step has changed."""

NOTHING = "not needed: the site asks for none of it"


class Chapter(PlatformAnswers):
    """One opened chapter: the site, the machines, and the verbs that its cells use.

    ``host`` is the machine as reached, ``target`` its installed root (the same, once it was booted
    from its disk), ``controller`` this machine. ``mode`` is "apply" or "plan"; ``destroy`` names
    what xenlab made and this run may destroy, ``selected`` the steps that it leaves out,
    ``planned`` what alone it may do. Each verb is a step, and so is opening the chapter; its hosts
    run nothing outside of one. ``sink`` is told what happens; ``stop`` stops the step under way
    once it is set, the opening as well. ``connection`` is a run's, which stays. ``patient``: what
    a killed controller has left at work is waited for before what is left of it is ended.
    """

    def __init__(
        self,
        name: str,
        site: Parameters,
        journal: Journal,
        sink: events.Sink = events.ignore,
        *,
        mode: str = "apply",
        hold: Hold = Hold.STEP,
        stop: threading.Event | None = None,
        destroy: tuple[str, ...] = (),
        connection: SSH | None = None,
        selected: Selected | None = None,
        planned: Planned | None = None,
        patient: bool = False,
    ) -> None:
        super().__init__(site)
        self.name = name
        self.journal = journal
        self.mode = mode
        self.consents: list[str] = []
        self.selected = selected or Selected()
        self._missed = ""
        self._planned = planned
        self._lacks = ""
        self._patience = RECONNECT_SECONDS if patient else 0.0
        self._destroy = destroy
        self._agreed: dict[str, Agreed] = {}
        self._before = planned_before(journal) if mode == "plan" else ""
        self.recorder = Recorder(discover_secrets(site.ssh.identity, site.masked), stop)
        self.controller = Host(Local(), watcher=self.recorder)
        self._own_stop = stop is None
        self._under_way: Step | None = None
        way = way_to(site)
        self._kept = connection is not None and connection.target == way
        self._ssh = connection if connection is not None and self._kept else SSH(way)
        self._machine = MachineLock(self._ssh, journal.folder, hold)
        self._ssh.take_over(self._wait(), self._locked_again)
        self._guests: dict[str, Host] = {}
        self.host = Host(self._ssh, watcher=self.recorder)
        self.root = INSTALLED_ROOT
        self._sink = sink
        self._boot_id = ""
        self._connections = 0
        self._looking = threading.Lock()
        self._number = name.partition("_")[0]
        self._needs = 0
        journal.append(chapter=name, phase="open", status=mode, host=self.host.name)
        sink(events.Opened(name, site.site, self.host.name, mode, journal.folder))
        try:
            self._open()
        except BaseException:
            self._machine.release()
            self.hang_up()
            raise

    @property
    def stop(self) -> threading.Event:
        """What stops the step under way once it is set."""
        return self.recorder.stop

    @property
    def target(self) -> Host:
        """The machine seen from inside the installed root."""
        return self.host.inside(self.root)

    def guest(self, name: str) -> Host:
        """A guest (`way_to_guest`); its connection is kept between steps."""
        if name not in self._guests:
            wait = self._wait(lambda: self.toolstack.why_silent(self.host, name))
            ssh = SSH(way_to_guest(self.site, name), wait=wait, near=self._ssh)
            self._guests[name] = Host(ssh, watcher=self.recorder)
        return self._guests[name]

    def needs(self, chapter: str, *resources: Wanted, again: Wanted = tuple) -> None:
        """Refuse to go on unless what another chapter makes is there (noted only, in plan mode).

        ``again`` is what a boot since has undone of it: brought about once more where something
        is missing. Raises ChapterOrder, which names that chapter.
        """
        self._needs += 1
        title = f"{self._number}.0.{self._needs} Chapter {chapter} came first"
        with self._step(title, self.target) as step:
            found = self._missing(step, resources)
            if found is not None and self._done_again(step, again):
                found = self._missing(step, resources)
            if found is None:
                return
            step.note(f"chapter {self.name} needs chapter {chapter} first: {found.summary}")
            if self.mode == "plan":
                step.status = WOULD_CHANGE
                self._lacks = f"chapter {chapter} comes first"
                return
            said = f"cannot go on: because {step.message}"
            raise ChapterOrder(said, hint=f"run chapter {chapter}")

    def _missing(self, step: Step, resources: Sequence[Wanted]) -> Difference | None:
        step.differences.clear()
        self._differing(step, self.target, resources)
        return Difference.of_all(list(step.differences.values()))

    def _done_again(self, step: Step, again: Wanted) -> bool:
        todo = [one for one in made((again,)) if looked(one.probe, self.host) is not None]
        step.names({"": todo}, self.host.name)
        if not todo or self.mode == "plan":
            return False
        self._starts(step, self.host)
        try:
            self._apply(step, self.host, tuple(todo), "")
        except (StepFailed, CommandFailed) as error:
            step.note(error.message)
            return False
        step.status = CHANGED
        return True

    @selectable
    def ensure(self, title: str, *resources: Wanted, on: Host | None = None) -> None:
        """See to it that states hold: probe, show, ask, apply, verify, record."""
        host = on or self.target
        with self._step(title, host) as step:
            states = made(resources)
            step.names({"": states}, host.name)
            todo = self._differing(step, host, states)
            if self._may_go_on(step, host, todo):
                self._apply(step, host, tuple(todo), "")
                step.status = CHANGED

    @selectable
    def run(self, title: str, *resources: Wanted, on: Host | None = None) -> None:
        """Carry out actions: applied each time, whatever the machine's state is."""
        host = on or self.target
        with self._step(title, host) as step:
            actions = made(resources)
            step.names({"": actions}, host.name)
            self._differing(step, host, actions)
            if self.mode == "plan":
                step.status = WOULD_CHANGE
                return
            self._starts(step, host)
            self._apply(step, host, actions, "")
            step.status = CHANGED

    @selectable
    def each(
        self,
        title: str,
        resources: Mapping[str, Resource] | Callable[[], Mapping[str, Resource]],
        on: Host | None = None,
    ) -> None:
        """Like `ensure`, for several labelled states side by side; all are tried, then judged."""
        host = on or self.target
        with self._step(title, host) as step:
            parts = looked(resources) if callable(resources) else resources
            with ThreadPoolExecutor(len(parts) or 1) as pool:
                self._side_by_side(step, host, parts, pool)

    @selectable
    def facts(
        self, title: str, frame: pd.DataFrame | Callable[[], pd.DataFrame], note: str = ""
    ) -> None:
        """Show and record a table; nothing is changed."""
        with self._step(title, self.host) as step:
            step.message = note
            step.table(looked(frame) if callable(frame) else frame)

    @selectable
    def picture(self, title: str, figure: Figure | Callable[[], Figure]) -> None:
        """Show and record a picture; nothing is changed."""
        with self._step(title, self.host) as step:
            data = io.BytesIO()
            drawn = looked(figure) if callable(figure) else figure
            drawn.savefig(data, format="png", dpi=130, bbox_inches="tight")
            step.attach("picture", data.getvalue(), ".png")
            step.sink(events.Picture(data.getvalue()))

    @selectable
    def check(self, title: str, *resources: Wanted, on: Host | None = None) -> None:
        """What must hold, or the chapter ends here; nothing is changed."""
        host = on or self.target
        with self._step(title, host) as step:
            self._differing(step, host, resources)
            found = Difference.of_all(list(step.differences.values()))
            if self._looks(step):
                self._plan(step, host, [])
                step.status = WOULD_CHANGE if found is not None else step.status
            elif found is not None:
                raise StepFailed(found.summary, hint=found.hint)

    def skip(self, title: str, reason: str) -> None:
        """Record a step that this run leaves out, and why; nothing is looked at."""
        with self._step(title, self.host) as step:
            step.message = reason
            step.status = SKIPPED

    def consent(self, serial_or_made: str) -> None:
        """Note a person's word: a disk's serial, or "NAME UUID" of what xenlab made."""
        self.consents.append(serial_or_made)
        self._note_consent("given", serial_or_made)

    def close(self) -> None:
        """The end of the chapter: without this record it counts as unfinished."""
        self.journal.append(
            chapter=self.name, phase="close", status=OK, host=self.host.name, boot_id=self._boot_id
        )
        self._machine.closed()
        self._leave_guests()
        if not self._kept:
            self._ssh.close()

    def hang_up(self) -> None:
        """End the connections to the machine and to its guests."""
        self._leave_guests()
        self._ssh.close()

    def _leave_guests(self) -> None:
        for guest in self._guests.values():
            guest.transport.close()

    def _open(self) -> None:
        with self._step(f"{self._number}.0 Open the chapter", self.host) as step:
            looked(self._look_around)
            if self.mode == "apply":
                self._machine.opened(self.recorder)
                self._end_strays(step)
                # a person's chapters may be open side by side: what runs may be another one's
                mine = self.name if self._machine.hold is Hold.STEP else ""
                found = [e for e in self._end_left(self.journal.unfinished(mine)) if e.count]
                for ended in found:
                    step.note(f"{ended.attempt['title']}: {ended}")

    def _end_strays(self, step: Step) -> None:
        """End what other runs have left at work on this machine, before anything changes it."""
        while self._machine.strays:
            step.note(self._machine.strays[0].ended(self.host))
            del self._machine.strays[0]

    def _end_left(self, attempts: Sequence[Mapping[str, Any]]) -> list[Ended]:
        """End what earlier attempts have left running, on this machine and in guests that run.

        A patient chapter waits for it before.
        """
        if not attempts:
            return []
        # a chapter that does not know them has run nothing in them
        names = [g.name for g in self.site.lan_guests] if self.site.knows("lan_guests") else []
        run = [name for name in names if not self.toolstack.why_silent(self.host, name)]
        guests = [self.guest(name) for name in run]
        machines = (self.host, self.controller)
        if self._patience:
            there = (*machines, *guests)
            machine_lock.wait_for(attempts, there, self._waiting, self.stop, self._patience)
        return [end_attempt(attempt, machines, guests) for attempt in attempts]

    def _locked_again(self) -> None:
        """Nothing of a step goes over a new connection before the machine is this run's again.

        What a stopped step left is ended all the same.
        """
        if not self.stop.is_set():
            self._machine.again(self.recorder)

    @contextmanager
    def _step(self, title: str, host: Host) -> Iterator[Step]:
        if self._own_stop:
            self.stop.clear()
        self._agreed = {}
        place = (self.journal, self._sink, self.name)
        step = Step(*place, title, host.name, lambda: self._boot_id, self.recorder)
        self._under_way = step
        step.unforeseen = (self._before and f"unknown until {self._before}") or self._lacks
        try:
            with step:
                for ended in self._end_left(self.journal.unfinished(self.name, step.number)):
                    tell_ended(self.journal, ended, self._boot_id)
                reason = self.selected.look.get(step.number)
                try:
                    yield step
                except (CommandFailed, StepFailed) as error:
                    if reason is None:
                        raise
                    step.differs("", Difference(error.message))
                if reason is not None:
                    self._leave_out(step, reason)
        finally:
            self._under_way = None
            if step.status not in (OK, SKIPPED) and self.mode == "apply":
                # whether a guest runs, or as what, may be among what the step has changed
                self._leave_guests()
            self._machine.step_over()

    def _looks(self, step: Step) -> bool:
        """Whether nothing is changed in this step: it is planned, or only looked at."""
        return self.mode == "plan" or step.number in self.selected.look

    def _leave_out(self, step: Step, reason: str) -> None:
        """The end of a step that was only looked at: nothing after it rests upon what is not."""
        step.status = SKIPPED
        found = Difference.of_all(list(step.differences.values()))
        step.note(f"{reason}; it holds" if found is None else f"{reason}; it does not hold")
        if found is not None and not self._missed:
            self._missed = f"step {step.number} comes first, and does not hold: {found.summary}"

    def _side_by_side(
        self, step: Step, host: Host, parts: Mapping[str, Resource], pool: ThreadPoolExecutor
    ) -> None:
        def look(part: tuple[str, Resource]) -> Difference | None:
            with self.recorder.during("look", part[0]):
                return looked(part[1].probe, host)

        if not parts:
            step.message = NOTHING
        step.names({label: (part,) for label, part in parts.items()}, host.name)
        found = dict(zip(parts, pool.map(look, parts.items()), strict=True))
        todo: dict[str, Resource] = {}
        for label, difference in found.items():
            if difference is not None and not self._stays(step, host, parts[label], difference):
                step.differs(label, difference)
                todo[label] = parts[label]
        if not self._may_go_on(step, host, list(todo.values())):
            return
        futures = {
            label: pool.submit(self._apply, step, host, (resource,), label)
            for label, resource in todo.items()
        }
        try:
            errors = {label: future.exception() for label, future in futures.items()}
        except KeyboardInterrupt:
            self.stop.set()
            raise
        failed = {label: error for label, error in errors.items() if error is not None}
        for error in failed.values():
            if isinstance(error, KeyboardInterrupt):
                raise error
        if failed:
            text = "\n".join(f"{label}: {error}" for label, error in failed.items())
            raise StepFailed(text) from next(iter(failed.values()))
        step.status = CHANGED

    def _differing(self, step: Step, host: Host, wanted: Sequence[Wanted]) -> list[Resource]:
        """What differs of these; each difference is noted, under a number if there are several."""
        resources = made(wanted)
        if not resources:
            step.message = NOTHING
        todo: list[Resource] = []
        for resource in resources:
            difference = looked(resource.probe, host)
            if difference is not None and not self._stays(step, host, resource, difference):
                label = f"{len(todo) + 1}" if len(resources) > 1 else ""
                step.differs(label, difference)
                todo.append(resource)
        return todo

    def _may_go_on(self, step: Step, host: Host, todo: list[Resource]) -> bool:
        """Whether there is something to do, in this mode, with consent; a RUNNING record then."""
        if self._looks(step):
            self._plan(step, host, todo)
            return False
        if not todo:
            return False
        self._starts(step, host, todo)
        return True

    def _stays(self, step: Step, host: Host, resource: Resource, difference: Difference) -> bool:
        """Whether a difference may stay, and nobody agreed to lose what is there; it is said."""
        if not difference.stays or (
            resource.wipes() and not self.agreed_to.missing(looked(resource.destroys, host))
        ):
            return False
        step.note(difference.stays)
        return True

    def _plan(self, step: Step, host: Host, todo: list[Resource]) -> None:
        """What `run` would do: a change, a refusal, or what nobody knows before a device is new."""
        if todo:
            step.status = WOULD_CHANGE
        if step.number in self.selected.look:
            return
        step.wipes = sorted({r.wipes() for r in todo} - {""})
        if self._before:
            step.status = WOULD_CHANGE
            step.message = f"unknown until {self._before}; compared with what is there now"
            return
        refused = self._missed if todo else ""
        refused = refused or next(filter(None, (looked(r.refusal, host) for r in todo)), "")
        refused = refused or looked(would_refuse, host, todo, self.agreed_to)
        if refused:
            step.status = REFUSED
            step.note(f"would be refused: {refused}")
        if step.wipes:
            self._before = made_anew(step.number, step.wipes)

    @property
    def agreed_to(self) -> Consents:
        """What somebody has agreed to lose."""
        site = self.site
        # what a chapter does not declare allows nothing
        disks = site.may_wipe if site.knows("may_wipe") else ()
        made = site.may_destroy if site.knows("may_destroy") else ()
        return Consents((*disks, *self.consents), (*made, *self.consents, *self._destroy))

    def _note_consent(self, status: str, what: str) -> None:
        self.journal.append(chapter=self.name, phase="consent", status=status, message=what)

    def _starts(self, step: Step, host: Host, todo: Sequence[Resource] = ()) -> None:
        """Nobody else changes the machine from now on; a RUNNING record is on disk."""
        if self._missed:
            hint = "select that step too, or leave it out with --skip STEP=REASON"
            raise StepFailed(f"cannot go on: because {self._missed}", hint=hint)
        if self._planned is not None:
            self._planned.require(step.number, step.script, step.differences, step.looks())
        self._machine.take(self.recorder)
        self._end_strays(step)
        # what another run has just made there is not lost by a consent to what was there before
        self._consent(host, todo)
        step.running()

    def _consent(self, host: Host, todo: Sequence[Resource]) -> None:
        try:
            self._agreed = looked(require_consents, host, todo, self.agreed_to)
        except ConsentNeeded as needed:
            if needed.serial or needed.made:
                self._sink(events.Consent(needed, self.consent))
            raise
        for each in self._agreed.values():
            for thing in each.lost:
                self._note_consent("used", str(thing))

    def _apply(self, step: Step, host: Host, resources: tuple[Resource, ...], label: str) -> None:
        def report(what: str, done: float | None = None) -> None:
            step.report(what, done, label)

        for wanted in resources:
            agreed = self._agreed.get(wanted.wipes(), Agreed())
            resource = wanted.consented(agreed.identity, agreed.lost)
            try:
                with self.recorder.during("change", label):
                    self._machine.again(self.recorder)
                    resource.apply(host, report)
            except ConnectionLost as error:
                with self.recorder.during("verify", label):
                    self._after_loss(step, host, error)
                    try:
                        looked(resource.verify, host)
                    except XenlabError as still:
                        error.message += f"; and then: {still.message}"
                        raise error from still
                step.note(f"the connection was lost ({error.message}); the verification holds")
            else:
                with self.recorder.during("verify", label):
                    looked(resource.verify, host)
            if wanted.wipes():  # partitions may have other numbers now
                self._connections = 0
        with self.recorder.during("verify", label):
            try:
                self._put_on_disk(host)
            except ConnectionLost:
                # a power cut may have taken back what was not on disk
                for resource in resources:
                    looked(resource.verify, host)
                self._put_on_disk(host)

    def _put_on_disk(self, host: Host) -> None:
        self._boot_changed()
        if host.transport is not self.controller.transport:
            # a power cut takes nothing back of what is on record as changed; on the controller
            # each file is put on disk by itself (xenlab.durable)
            host.inside("/").run("sync", timeout=SYNC_SECONDS)

    def _after_loss(self, step: Step, host: Host, lost: ConnectionLost) -> None:
        """Connect again and wait until what was running there has ended; nothing is run twice."""
        deadline = time.monotonic() + RECONNECT_SECONDS
        try:
            while True:
                try:
                    host.transport.connect(self.stop, seconds=deadline - time.monotonic())
                    if not host.has_marked(step.mark):
                        return
                except (ConnectionRefused, ConnectionLost, CommandTimeout):
                    if time.monotonic() > deadline:
                        raise
                if time.monotonic() > deadline:
                    return
                if self.stop.wait(2):
                    raise KeyboardInterrupt
        except MachineBusy as busy:
            said = f"{lost.message}; meanwhile another run has taken the machine: {busy.message}"
            raise ConnectionLost(said, hint=busy.hint, where=busy.where) from busy
        except KeyboardInterrupt as stopped:
            host.end_stopped(step.mark, stopped)
            raise

    def _boot_changed(self) -> None:
        # parts of a step that work side by side come here together
        with self._looking:
            # no boot leaves a connection alive
            if self._ssh.connections != self._connections:
                self._look_around()

    def _wait(self, in_vain: Callable[[], str] = str) -> Wait:
        plan, patience = self.mode == "plan", self.site.ssh.patience_seconds
        return Wait(patience, self._waiting, in_vain, at_once=plan)

    def _waiting(self, line: str) -> None:
        if self._under_way is not None:
            self._under_way.report(Waiting(line), None)

    def _look_around(self) -> None:
        """Which boot this is, and where the installed root is: ``/`` once the disk was booted."""
        self.site = self.site.numbered(partition_numbers(self.host, self.site.disk))
        boot_id = self.host.boot_id()
        if boot_id != self._boot_id:
            self.root = installed_root(self.host, dom0_device(self.site, "dom0root"))
            self._boot_id = boot_id
        self._connections = self._ssh.connections
