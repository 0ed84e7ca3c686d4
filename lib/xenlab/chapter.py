"""A chapter of the howto: its steps are looked at, planned, consented to, applied, verified."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pandas as pd

from xenlab import abandoned, hidden
from xenlab.consent import planned_before, require_consent, would_refuse
from xenlab.disklayout import device
from xenlab.errors import (
    ChapterOrder,
    CommandTimeout,
    ConnectionLost,
    ConnectionRefused,
    ConsentNeeded,
    StepFailed,
    XenlabError,
)
from xenlab.host import Host
from xenlab.journal import Journal
from xenlab.local import Local
from xenlab.parameters import Parameters
from xenlab.resources.base import Difference, Resource
from xenlab.resources.partitions import ROOT_PARTITION, installed_root
from xenlab.seams import Seams
from xenlab.ssh import SSH, Target
from xenlab.step import CHANGED, OK, REFUSED, WOULD_CHANGE, Step
from xenlab.view import View

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RECONNECT_SECONDS = 600.0
"""How long a lost host may take to answer again, and a lost command to end, before we give up."""


class Chapter(Seams):
    """One opened chapter: the site, the machines, and the verbs that its cells use.

    ``host`` is the machine as reached, ``target`` its installed root (the same, once it was booted
    from its disk), ``controller`` this machine. ``mode`` is "apply" or "plan".
    """

    def __init__(
        self, name: str, site: Parameters, journal: Journal, view: View, *, mode: str = "apply"
    ) -> None:
        super().__init__(site)
        self.name = name
        self.journal = journal
        self.mode = mode
        self.stop = threading.Event()
        self.consents: list[str] = []
        self._identities: dict[str, str] = {}
        self._before = planned_before(journal, site.disk) if mode == "plan" else ""
        self._secrets = hidden.known(site.ssh.identity, site.secrets)
        self.controller = Host(Local(), secrets=self._secrets)
        self.host = Host(SSH(_target(site)), secrets=self._secrets)
        self._view = view
        self._boot_id = self.host.boot_id()
        self._root: str | None = None
        journal.append(
            chapter=name, phase="open", status=mode, host=self.host.name, boot_id=self._boot_id
        )
        view.chapter(name, site.site, self.host.name, mode, journal.folder)

    @property
    def root(self) -> str:
        """Where the installed system's root is: ``/``, or ``/mnt/dom0`` in the rescue system."""
        if self._root is None:
            self._root = installed_root(self.host, device(self.site, ROOT_PARTITION))
        return self._root

    @property
    def target(self) -> Host:
        """The machine seen from inside the installed root."""
        return self.host.inside(self.root)

    def guest(self, name: str) -> Host:
        """A guest, by its alias in the site's ssh_config."""
        return Host(SSH(_target(self.site, name)), secrets=self._secrets)

    def needs(self, chapter: str, resource: Resource) -> None:
        """Refuse to go on unless what another chapter makes is there (noted only, in plan mode).

        Raises ChapterOrder, which names that chapter.
        """
        difference = resource.probe(self.target)
        if difference is None:
            return
        message = f"chapter {self.name} needs chapter {chapter} first: {difference.summary}"
        if self.mode == "plan":
            self.journal.append(chapter=self.name, phase="needs", status="noted", message=message)
            return
        self.journal.append(chapter=self.name, phase="needs", status="failed", message=message)
        raise ChapterOrder(message, where=self.host.name, hint=f"run chapter {chapter}")

    def ensure(self, title: str, *resources: Resource, on: Host | None = None) -> None:
        """See to it that states hold: probe, show, ask, apply, verify, record."""
        host = on or self.target
        with self._step(title, host) as step:
            self._settle(step, host, resources)

    def run(self, title: str, *resources: Resource, on: Host | None = None) -> None:
        """Carry out actions: applied each time, whatever the machine's state is."""
        host = on or self.target
        with self._step(title, host) as step:
            self._differing(step, host, resources)
            if self.mode == "plan":
                step.status = WOULD_CHANGE
                return
            step.running()
            self._apply(step, host, resources, "")
            step.status = CHANGED

    def each(self, title: str, resources: Mapping[str, Resource], on: Host | None = None) -> None:
        """Like `ensure`, for several labelled states side by side; all are tried, then judged."""
        host = on or self.target
        with self._step(title, host) as step, ThreadPoolExecutor(len(resources) or 1) as pool:
            found = dict(
                zip(resources, pool.map(lambda r: r.probe(host), resources.values()), strict=True)
            )
            todo = {label: resources[label] for label, d in found.items() if d is not None}
            for label, difference in found.items():
                if difference is not None:
                    step.differs(label, difference)
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
            if failed:
                text = "\n".join(f"{label}: {error}" for label, error in failed.items())
                raise StepFailed(text) from next(iter(failed.values()))
            step.status = CHANGED

    def facts(
        self, title: str, frame: pd.DataFrame | Callable[[], pd.DataFrame], note: str = ""
    ) -> None:
        """Show and record a table; nothing is changed."""
        with self._step(title, self.host) as step:
            table = frame() if callable(frame) else frame
            step.message = note
            step.attach("table", table.to_csv(index=False).encode(), ".csv")
            step.view.table(table)

    def picture(self, title: str, figure: Figure) -> None:
        """Show and record a picture; nothing is changed."""
        with self._step(title, self.host) as step:
            data = io.BytesIO()
            figure.savefig(data, format="png", dpi=130, bbox_inches="tight")
            step.attach("picture", data.getvalue(), ".png")
            step.view.picture(data.getvalue())

    def check(self, title: str, *resources: Resource, on: Host | None = None) -> None:
        """What must hold, or the chapter ends here; nothing is changed."""
        host = on or self.target
        with self._step(title, host) as step:
            self._differing(step, step.watch(host), resources)
            found = Difference.of_all(list(step.differences.values()))
            if self.mode == "plan":
                self._plan(step, host, [])
                step.status = WOULD_CHANGE if found is not None else step.status
            elif found is not None:
                raise StepFailed(found.summary, hint=found.hint)

    def consent(self, serial: str) -> None:
        """Note a person's word that the disk with this serial may be wiped."""
        self.consents.append(serial)
        self.journal.append(chapter=self.name, phase="consent", status="given", message=serial)

    def close(self) -> None:
        """The end of the chapter: without this record it counts as unfinished."""
        self.journal.append(
            chapter=self.name, phase="close", status=OK, host=self.host.name, boot_id=self._boot_id
        )
        self.host.transport.close()

    def _step(self, title: str, host: Host) -> Step:
        self.stop.clear()
        step = Step(
            journal=self.journal,
            view=self._view.step_started(title),
            chapter=self.name,
            title=title,
            host=host.name,
            boot_id=lambda: self._boot_id,
            stop=self.stop,
            secrets=self._secrets,
        )
        left = self.journal.unfinished(self.name, step.number)
        if left is not None:
            machines = (self.host, self.controller)
            guests = [self.guest(guest.name) for guest in self.site.lan_guests]
            abandoned.end(self.journal, left, machines, guests, self._boot_id)
        return step

    def _settle(self, step: Step, host: Host, resources: tuple[Resource, ...]) -> None:
        todo = self._differing(step, host, resources)
        if self._may_go_on(step, host, todo):
            self._apply(step, host, tuple(todo), "")
            step.status = CHANGED

    def _differing(self, step: Step, host: Host, resources: tuple[Resource, ...]) -> list[Resource]:
        """What differs of these; each difference is noted, under a number if there are several."""
        todo: list[Resource] = []
        for resource in resources:
            difference = self._probe(resource, host)
            if difference is not None:
                label = f"{len(todo) + 1}" if len(resources) > 1 else ""
                step.differs(label, difference)
                todo.append(resource)
        return todo

    def _probe(self, resource: Resource, host: Host) -> Difference | None:
        try:
            return resource.probe(host)
        except ConnectionLost:
            host.transport.connect()
            return resource.probe(host)

    def _may_go_on(self, step: Step, host: Host, todo: list[Resource]) -> bool:
        """Whether there is something to do, in this mode, with consent; a RUNNING record then."""
        if self.mode == "plan":
            self._plan(step, host, todo)
            return False
        if not todo:
            return False
        for wiped in sorted({r.wipes() for r in todo} - {""}):
            self._consent(host, wiped)
        step.running()
        return True

    def _plan(self, step: Step, host: Host, todo: list[Resource]) -> None:
        """What `run` would do: a change, a refusal, or what nobody knows before the disk is new."""
        if todo:
            step.status = WOULD_CHANGE
        step.wipes = sorted({r.wipes() for r in todo} - {""})
        if self._before:
            step.status = WOULD_CHANGE
            step.message = f"unknown until {self._before}; compared with what is there now"
            return
        found = (r.refusal(host) or self._refusal(host, r.wipes()) for r in todo)
        refused = next(filter(None, found), "")
        if refused:
            step.status, step.message = REFUSED, f"would be refused: {refused}"
        if self.site.disk in step.wipes:
            self._before = f"step {step.number} has made {self.site.disk} anew"

    def _refusal(self, host: Host, device: str) -> str:
        allowed = (*self.site.may_wipe, *self.consents)
        return would_refuse(host, device, allowed) if device else ""

    def _consent(self, host: Host, device: str) -> None:
        try:
            allowed = (*self.site.may_wipe, *self.consents)
            self._identities[device] = require_consent(host, device, allowed)
        except ConsentNeeded as needed:
            if needed.serial:
                self._view.consent(needed.device, needed.serial, self.consent)
            raise

    def _apply(self, step: Step, host: Host, resources: tuple[Resource, ...], label: str) -> None:
        watched = step.watch(host, label)

        def report(what: str, done: float | None = None) -> None:
            step.report(what, done, label)

        for wanted in resources:
            resource = wanted.consented(self._identities.get(wanted.wipes(), ""))
            try:
                resource.apply(watched, report)
            except ConnectionLost as error:
                self._after_loss(step, host)
                try:
                    resource.verify(watched)
                except XenlabError as still:
                    raise error from still
                step.message = f"the connection was lost ({error.message}); the verification holds"
            else:
                resource.verify(watched)
        self._boot_changed()

    def _after_loss(self, step: Step, host: Host) -> None:
        """Connect again and wait until what was running there has ended; nothing is run twice."""
        deadline = time.monotonic() + RECONNECT_SECONDS
        while True:
            try:
                host.transport.connect()
                if not host.has_marked(step.mark):
                    return
            except (ConnectionRefused, ConnectionLost, CommandTimeout):
                if time.monotonic() > deadline:
                    raise
            if time.monotonic() > deadline:
                return
            time.sleep(2)

    def _boot_changed(self) -> None:
        now = self.host.boot_id()
        if now != self._boot_id:
            self._boot_id = now
            self._root = None


def _target(site: Parameters, host: str = "") -> Target:
    ssh = site.ssh
    return Target(host or ssh.host, ssh.config, ssh.port, ssh.user, ssh.identity, ssh.known_hosts)
