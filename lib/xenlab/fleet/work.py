"""What a worker does: one host's run, from its site to its folder."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import yaml
from distributed import Event, Semaphore, get_worker

from xenlab import durable
from xenlab.chapter import events
from xenlab.chapter.recorder import declared_secrets
from xenlab.chapter.step import REFUSED, WOULD_CHANGE
from xenlab.errors import BadInput, XenlabError
from xenlab.fleet.carry import fetched_image, packed
from xenlab.host import Host
from xenlab.resources.base import Asked, Waiting
from xenlab.resources.ssh_access import way_to
from xenlab.runs import execute
from xenlab.runs.cells import Cells
from xenlab.runs.folder import DONE, ChapterState, read
from xenlab.site.schema import Parameters
from xenlab.transport.ssh import SSH

FAILED = "failed"
REFUSED_HOST = "refused"
UNKNOWN = "unknown"

HERE = ".here"
"""The file of a fleet's folder by which a worker knows that it sees the controller's disk."""

Told = dict[str, Any]
"""What is told of a host while its run goes on: plain values, none of them a secret."""

CopyConsole = Callable[[Parameters, Path], None]


@dataclass(frozen=True)
class HostTask:
    """A host's run as a worker gets it: what it holds may be logged, no secret is in it.

    ``folder`` is the fleet's on the controller, ``token`` what its `HERE` says. ``run`` names a
    run that is taken up again. ``books`` are the chapters for a worker that sees no file of ours.
    So many ``uploads`` leave a worker's machine at a time, if not 0. ``image`` is a canary's, that
    the host is given if the worker has it; a host's own is fetched for others if ``fetches``.
    """

    fleet: str
    host: str
    attempt: str
    folder: Path
    token: str
    mode: str
    chapters: tuple[str, ...]
    notebooks: Path
    run: str = ""
    values: Mapping[str, Any] = field(default_factory=dict, repr=False)
    books: Mapping[str, str] = field(default_factory=dict, repr=False)
    uploads: int = 0
    image: str = ""
    fetches: bool = False
    copy_console: CopyConsole | None = field(default=None, repr=False)


@dataclass(frozen=True)
class HostOutcome:
    """How a host's run ended: `DONE`, `refused`, or the status of the step that ended it.

    ``files`` are those of the run where the controller does not see them; ``drift`` the steps that
    would change something. ``image`` is where its image lies in the worker's cache, if others are
    to have it.
    """

    host: str
    status: str
    problem: str = ""
    run: str = ""
    seconds: float = 0.0
    worker: str = ""
    drift: tuple[str, ...] = ()
    files: Mapping[str, bytes] | None = field(default=None, repr=False)
    image: str = ""


# What the controller asks a worker beside its tasks, in the worker's own event loop.

_stops: dict[str, threading.Event] = {}


def stop(fleet: str) -> None:
    """Stop the steps under way of a fleet's hosts on this worker."""
    _stops.setdefault(fleet, threading.Event()).set()


def shares(folder: Path, token: str) -> bool:
    """Whether this worker sees the controller's folder of a fleet."""
    try:
        return (folder / HERE).read_text() == token
    except OSError:
        return False


def has_run(name: str) -> bool:
    """Whether a run lies among this worker's own."""
    return (durable.runs_folder() / name / "run.json").exists()


def missing_secrets(sites: Mapping[str, Parameters]) -> dict[str, str]:
    """The hosts of which this worker cannot read a secret that their sites refer to, and why."""
    found = {}
    for host, site in sites.items():
        try:
            declared_secrets(site.masked)
        except BadInput as error:
            found[host] = str(error)
    return found


# The task itself.


def run_host(task: HostTask) -> HostOutcome:
    """Run a host's chapters; raises nothing: Dask would log what the task was given."""
    worker = get_worker()
    start = time.monotonic()
    claim = Event(f"xenlab {task.attempt}")
    if claim.is_set():
        # the scheduler gives a lost task to another worker; a run is taken up by a person's word
        said = "the worker that ran it was lost; the run may be taken up again"
        return HostOutcome(task.host, UNKNOWN, said, worker=worker.address)
    claim.set()
    try:
        outcome = _run(task, worker.address, partial(worker.log_event, task.fleet))
    except BadInput as error:
        outcome = HostOutcome(task.host, REFUSED_HOST, str(error))
    except XenlabError as error:
        outcome = HostOutcome(task.host, FAILED, str(error))
    except Exception as error:
        outcome = HostOutcome(task.host, FAILED, f"{type(error).__name__}: {error}")
    return replace(outcome, seconds=time.monotonic() - start, worker=worker.address)


def _run(task: HostTask, worker: str, tell: Callable[[Told], None]) -> HostOutcome:
    shared = shares(task.folder, task.token)
    folder = task.folder if shared else durable.runs_folder() / task.folder.name
    plan = _plan(task, folder, task.notebooks if shared else folder / "notebooks")
    told = _Telling(task.host, worker, tell)
    stop = _stops.setdefault(task.fleet, threading.Event())
    uploading: Callable[[], AbstractContextManager[None]] = (
        _one_of(task, worker, stop) if task.uploads else nullcontext
    )
    outcome = execute.execute_plan(
        plan,
        folder.parent,
        told.follow,
        lambda plan, folder: Cells(plan, folder, stop, told.on, uploading),
    )

    def copy_console() -> None:
        if task.copy_console is not None:
            task.copy_console(plan.site, outcome.folder)

    outcome = execute.close(outcome, copy_console)
    left = [chapter.status for chapter in outcome.chapters if chapter.status != DONE]
    steps = (step for chapter in outcome.chapters for step in chapter.steps)
    status = left[0] if left else FAILED if outcome.status else DONE
    image, problem = "", outcome.problem
    if task.fetches and status == DONE:
        image, problem = _fetched(plan.site, stop)
    return HostOutcome(
        task.host,
        status,
        problem,
        outcome.folder.name,
        drift=tuple(s.title for s in steps if s.status in (WOULD_CHANGE, REFUSED)),
        files=None if shared else packed(outcome.folder),
        image=image,
    )


def _fetched(site: Parameters, stop: threading.Event) -> tuple[str, str]:
    """Where a host's image lies in this machine's cache now, or why it does not."""
    ssh = SSH(way_to(site))
    try:
        return str(fetched_image(Host(ssh), site.image, stop)), ""
    except (XenlabError, OSError, ValueError) as error:
        return "", f"the others take images of their own: {error}"
    finally:
        ssh.close()


def _one_of(
    task: HostTask, worker: str, stop: threading.Event
) -> Callable[[], AbstractContextManager[None]]:
    """Waits until one upload more may leave the worker's machine; raises KeyboardInterrupt."""
    machine, here = worker.rpartition(":")[0], get_worker()
    room = Semaphore(task.uploads, f"{task.fleet} uploads of {machine}", here.scheduler, here.loop)

    @contextmanager
    def uploading() -> Iterator[None]:
        while not room.acquire(timeout=1):
            if stop.is_set():
                raise KeyboardInterrupt
        try:
            yield
        finally:
            room.release()

    return uploading


def _plan(task: HostTask, folder: Path, notebooks: Path) -> execute.RunPlan:
    """The host's run, from its site as a file of its own; raises BadInput."""
    file = folder / "sites" / f"{task.host}.yaml"
    image = task.image if Path(task.image).is_file() else ""
    if task.run and not task.values.get("image_from"):
        # as the run began
        image = read(folder.parent / task.run)["parameters"].get("image_from", "")
    write_site(file, {**task.values, **({"image_from": image} if image else {})})
    if notebooks != task.notebooks:
        durable.new_folder(notebooks)
        for name, text in task.books.items():
            _write(notebooks / name, text)
    if task.run:
        return execute.prepare_resume(notebooks, folder.parent / task.run, file)
    return execute.prepare(notebooks, task.chapters, file, mode=task.mode)


def write_site(file: Path, values: Mapping[str, Any]) -> None:
    """Write a host's site as a file that `xenlab run -f` takes."""
    durable.new_folder(file.parent)
    _write(file, yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True))


def _write(file: Path, text: str) -> None:
    if not file.exists() or file.read_text(encoding="utf-8") != text:
        fresh = file.with_name(f".{file.name}.{os.getpid()}.{threading.get_ident()}")
        durable.create(fresh, text.encode())
        fresh.rename(file)


class _Telling:
    """Tells the controller of a host's run what a line of its view shows."""

    def __init__(self, host: str, worker: str, tell: Callable[[Told], None]) -> None:
        self._host = host
        self._worker = worker
        self._tell = tell

    def follow(self, folder: Path, chapters: Mapping[str, Sequence[str]]) -> _Telling:
        """The run begins, in this folder."""
        self._say("began", run=folder.name, worker=self._worker)
        return self

    def __enter__(self) -> _Telling:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """The outcome says how it ended."""

    def begin(self, chapter: str) -> None:
        """A chapter's notebook is started."""
        self._say("chapter", chapter=chapter, status="running")

    def end(self, state: ChapterState) -> None:
        """A chapter's notebook has ended."""
        changed = state.counts.get("changed", 0) + state.counts.get(WOULD_CHANGE, 0)
        self._say("chapter", chapter=state.name, status=state.status, changed=changed)

    def on(self, event: events.Event) -> None:
        """A chapter's event (`events.Sink`): its steps are told, not what they print."""
        match event:
            case events.Started(title) | events.Progress(Waiting() as title):
                self._say("step", title=str(title))
            case events.Progress(Asked() as what):
                self._say("asked", title=str(what))

    def _say(self, what: str, **more: Any) -> None:
        self._tell({"host": self._host, "what": what, **more})
