"""A fleet's run: its hosts as tasks of Dask's workers, one first, and no more than may fail."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import signal
import threading
from collections import deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import dask
from distributed import CancelledError, Client, Event, Future, LocalCluster, wait
from distributed.diagnostics.plugin import WorkerPlugin

from xenlab import durable
from xenlab.chapters.guests import base
from xenlab.errors import BadInput, XenlabError
from xenlab.fleet import work
from xenlab.fleet.carry import unpack
from xenlab.fleet.hosts import CANARY, Fleet
from xenlab.fleet.record import RUNNING, Record
from xenlab.fleet.work import UNKNOWN, CopyConsole, HostOutcome, HostTask, Told
from xenlab.runs.execute import FAILED, INTERRUPTED
from xenlab.runs.folder import run_lock
from xenlab.site.rules import builds_kernel
from xenlab.site.schema import Parameters
from xenlab.transport import local

CONNECT_SECONDS = 30
"""How long a scheduler may take to answer."""

WORKER_SECONDS = 60
"""How long it is waited for a worker where there is none."""

LOOK_SECONDS = 2
"""How often it is looked whether workers are there while no host ends."""

IMAGING = "06_imaging"
"""The chapter that takes an image."""

SHAPING = {
    "release", "stage", "stage_checksums", "share", "firmware", "guest_disks", "portage",
    "package_proxy", "apt_mirror", "apt_security_mirror", "apt_folder",
}  # fmt: skip
"""What shapes a generic root beside what a record says of an image (`base`)."""

LOG = "workers.log"
"""What the processes of the local cluster print."""


@dataclass(frozen=True)
class Settings:
    """How a fleet is run: how many hosts at a time, how many alone first, how many may fail.

    ``uploads`` is how many files a machine with workers sends at a time, 0 for as many as there
    are; ``scheduler`` is the address of Dask's scheduler, "" for a cluster on this machine.
    """

    workers: int = 0
    canary: int = 1
    most_failures: int = 2
    scheduler: str = ""
    uploads: int = 0


class Shows(Protocol):
    """Who shows a fleet's run while it goes on; ``told`` is called from another thread."""

    def connected(self, link: str, at_once: int) -> None:
        """Workers are there: the address of Dask's dashboard, how many hosts run at a time."""

    def told(self, told: Told) -> None:
        """Something was told of a host."""

    def ended(self, outcome: HostOutcome) -> None:
        """A host's run has ended."""


@dataclass(frozen=True)
class FleetRun:
    """What is to be done: the hosts that are left, in their order, and what is kept of them."""

    fleet: Fleet
    record: Record
    todo: tuple[str, ...]
    copy_console: CopyConsole
    again: bool = False

    @property
    def mode(self) -> str:
        """``apply`` or ``plan``."""
        return str(self.record.facts["mode"])


def begin(
    fleet: Fleet, runs: Path, mode: str, chapters: Sequence[Path], copy_console: CopyConsole
) -> FleetRun:
    """A new run of all hosts of a fleet; raises DiskFull, BadInput."""
    names = [path.stem for path in chapters]
    record = Record.create(runs, fleet, mode, names, chapters[0].parent)
    return FleetRun(fleet, record, tuple(fleet.sites), copy_console)


def resume(fleet: Fleet, runs: Path, copy_console: CopyConsole) -> FleetRun:
    """The last run of a fleet, of which some hosts are left to do.

    Raises BadInput where there is none, or it is without one of these hosts.
    """
    record = Record.last(runs, fleet.name)
    if new := [host for host in fleet.sites if host not in record.hosts]:
        raise BadInput(
            f"cannot take up {record.folder.name}: because {', '.join(new)} had no part in it",
            hint="start a new run, or leave the new hosts out with --limit",
        )
    todo = tuple(host for host in fleet.sites if not record.hosts[host].done)
    return FleetRun(fleet, record, todo, copy_console, again=True)


def execute(
    run: FleetRun, settings: Settings, shows: Shows, stop: threading.Event | None = None
) -> tuple[int, str]:
    """Run what is to be done; return the exit status and, in one line, why not all was done.

    ``stop`` stops the steps under way once it is set, as Ctrl-C does. Raises BadInput before any
    machine is touched: a scheduler that does not answer, a secret that a worker has not, another
    controller that is at work on this run.
    """
    if not run.todo:
        return 0, ""
    folder = run.record.folder
    try:
        with (
            run_lock(folder),
            local.ending_cleanly(),
            connected(settings, len(run.todo), folder / LOG) as client,
        ):
            return _Flight(client, run, settings, shows, stop or threading.Event()).go()
    except BadInput:
        if not run.again:
            shutil.rmtree(folder)
        raise


@contextmanager
def connected(settings: Settings, hosts: int, log: Path) -> Iterator[Client]:
    """A client of the scheduler that is named, or of a cluster on this machine until the end.

    That has as many processes as processors, and threads for more hosts than these. Nobody else
    on this machine can give it work: it has keys of its own, for TLS. Raises BadInput.
    """
    # what they say of a scheduler that is gone, we say in a line
    for name in ("distributed", "distributed.client", "tornado.application", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    if settings.scheduler:
        try:
            client = Client(settings.scheduler, timeout=CONNECT_SECONDS)
            client.wait_for_workers(1, timeout=WORKER_SECONDS)
        except (OSError, ValueError) as error:
            raise BadInput(
                f"cannot run the fleet there: because {error}",
                where=settings.scheduler,
                hint="dask scheduler, and dask worker tcp://…; or leave --scheduler out",
            ) from None
        with client:
            yield client
        return
    processors = os.cpu_count() or 1
    at_once = min(settings.workers or processors, hosts)
    processes = min(at_once, processors)
    with (
        # it can stop a process of Python 3.11 for ever: sys._current_frames (CPython #106883)
        dask.config.set({"distributed.worker.profile.enabled": False}),
        LocalCluster(
            n_workers=processes,
            threads_per_worker=-(-at_once // processes),
            host="127.0.0.1",
            security=True,
            dashboard_address="127.0.0.1:0" if find_spec("bokeh") else None,
            silence_logs=logging.CRITICAL,
            # what a worker holds is in files; one that is killed for its size costs its hosts
            memory_limit=0,
        ) as cluster,
        Client(cluster) as client,
    ):
        client.register_plugin(_Quiet(log))
        yield client


class _Quiet(WorkerPlugin):  # type: ignore[misc]
    """A process of the local cluster: what it prints goes to a file, Ctrl-C is the controller's."""

    name = "xenlab-quiet"

    def __init__(self, log: Path) -> None:
        self._log = log

    def setup(self, worker: Any) -> None:
        """Called in the worker's process once it is there."""
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        mode = durable.mode_in(self._log.parent)
        file = os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, mode)
        for stream in (1, 2):
            os.dup2(file, stream)
        os.close(file)


class _Flight:
    """The hosts that run, and those that wait for their turn."""

    def __init__(
        self,
        client: Client,
        run: FleetRun,
        settings: Settings,
        shows: Shows,
        stop: threading.Event,
    ) -> None:
        self._client = client
        self._stop = stop
        self._run = run
        self._record = run.record
        self._settings = settings
        self._shows = shows
        self._topic = f"xenlab-{run.record.folder.name}"
        self._stopped = 0
        self._failed = 0
        self._shares: Mapping[str, bool] = {}
        self._books: dict[str, str] = {}
        self._fetching: set[str] = set()

    def go(self) -> tuple[int, str]:
        """Run the canaries, then the others; the exit status, and why not all was done."""
        self._refuse_unknown_secrets()
        token = self._record.token
        self._shares = self._client.run(work.shares, self._record.folder, token)
        if not all(self._shares.values()):
            self._books = _books(Path(self._record.facts["notebooks"]))
        self._client.subscribe_topic(self._topic, self._on_event)
        self._shows.connected(self._client.dashboard_link or "", self._room())
        todo = self._run.todo
        first = todo[: self._canaries()]
        self._fetching = {self._kind(host) for host in todo[len(first) :]} - {""}
        problem = self._all(first)
        self._fetching.clear()
        if not problem and (bad := self._left(first)):
            problem = f"no other host was started: {bad[0]} came first, and is not done"
        problem = problem or self._all(todo[len(first) :])
        left = self._left(todo)
        if self._stopped:
            return self._stopped, "interrupted"
        if left:
            return FAILED, problem or f"{len(left)} of {len(todo)} hosts are not done"
        return 0, ""

    def _canaries(self) -> int:
        """How many hosts run alone first: none where nothing is changed, or one is done already."""
        again = any(state.done for state in self._record.hosts.values())
        return 0 if again or self._run.mode != "apply" else self._settings.canary

    def _kind(self, host: str) -> str:
        """What its image is made of, "" where it takes its own whatever others have."""
        fleet = self._run.fleet
        shared = fleet.image == CANARY and IMAGING in self._record.facts["chapters"]
        return image_kind(fleet.sites[host]) if shared and self._run.mode == "apply" else ""

    def _left(self, hosts: Sequence[str]) -> list[str]:
        return [host for host in hosts if not self._record.hosts[host].done]

    def _all(self, hosts: Sequence[str]) -> str:
        """Run these hosts, as many at a time as there is room for; return why some were not."""
        waiting, running = deque(hosts), dict[Future, str]()
        while running or waiting:
            try:
                if self._stop.is_set() and not self._stopped:
                    raise KeyboardInterrupt
                if waiting and not running and (why := self._over()):
                    return why
                while waiting and not self._over() and len(running) < self._room():
                    future = self._start(waiting[0])
                    running[future] = waiting.popleft()
                for future in self._ended(running):
                    self._end(running.pop(future), future)
            except OSError:
                # a word to a scheduler that is gone; what it had given out is told as cancelled
                if not self._lost:
                    raise
            except (KeyboardInterrupt, SystemExit) as stopped:
                if self._stopped:
                    raise
                code = getattr(stopped, "code", None)
                self._stopped = code if isinstance(code, int) else INTERRUPTED
                self._client.run(work.stop, self._topic)
        return ""

    def _over(self) -> str:
        """Why no other host is started, "" where that goes on."""
        if self._stopped:
            return "interrupted"
        if self._lost:
            return "no other host was started: the scheduler was lost"
        if self._failed >= self._settings.most_failures > 0:
            return f"no other host was started: {self._failed} have failed"
        return ""

    @property
    def _lost(self) -> bool:
        """Whether the scheduler is gone, and with it all that it had given out."""
        return bool(self._client.status != "running")

    def _room(self) -> int:
        """How many hosts run at a time; raises XenlabError where no worker comes."""
        try:
            self._client.wait_for_workers(1, timeout=WORKER_SECONDS)
        except TimeoutError:
            raise XenlabError(
                f"cannot go on: because no worker has been there for {WORKER_SECONDS} s",
                hint="start some, then xenlab fleet run --resume",
            ) from None
        there = sum(int(each) for each in self._client.nthreads().values())
        return min(there, self._settings.workers or there)

    def _ended(self, running: Collection[Future]) -> Collection[Future]:
        """Those whose task has ended, after a while in which there may be none."""
        if not running:
            return ()
        try:
            done = wait(list(running), timeout=LOOK_SECONDS, return_when="FIRST_COMPLETED").done
        except TimeoutError:
            self._room()
            return ()
        except CancelledError:
            return tuple(running)
        found: Collection[Future] = done
        return found

    def _start(self, host: str) -> Future:
        state = self._record.hosts[host]
        attempt = f"{self._topic} {host} {state.attempts + 1}"
        where = [address for address, shared in self._shares.items() if shared]
        there = (self._record.folder.parent / state.run / "run.json").exists()
        run = state.run if there else ""
        if state.run and not where:
            # a worker's own runs are not seen here: the run goes on where it was, or anew
            found = self._client.run(work.has_run, state.run)
            where = [address for address, has in found.items() if has]
            run = state.run if where else ""
        kind = self._kind(host)
        image = self._record.image(kind)
        fetches = kind in self._fetching and not image
        self._fetching.discard(kind)
        self._record.change(host, status=RUNNING, attempts=state.attempts + 1, problem="")
        task = HostTask(
            self._topic,
            host,
            attempt,
            self._record.folder,
            self._record.token,
            self._run.mode,
            tuple(self._record.facts["chapters"]),
            Path(self._record.facts["notebooks"]),
            run,
            self._run.fleet.values[host],
            self._books,
            self._settings.uploads,
            image,
            fetches,
            self._run.copy_console,
        )
        keep = where if run and not all(self._shares.values()) else None
        return self._client.submit(
            work.run_host, task, key=attempt, pure=False, workers=keep, allow_other_workers=False
        )

    def _end(self, host: str, future: Future) -> None:
        """Note how a host's run has ended; what a worker kept to itself is brought here."""
        try:
            outcome = future.result()
        except Exception as error:
            who = "the scheduler" if self._lost else "its worker"
            outcome = HostOutcome(host, UNKNOWN, f"{who} was lost: {type(error).__name__}")
        if not self._lost:
            future.release()
            Event(future.key, client=self._client).clear()
        if outcome.files is not None:
            try:
                unpack(self._record.folder.parent, outcome.run, outcome.files)
            except XenlabError as error:
                outcome = HostOutcome(host, UNKNOWN, str(error), outcome.run)
        state = self._record.hosts[host]
        self._record.change(
            host,
            status=outcome.status,
            problem=outcome.problem,
            run=outcome.run or state.run,
            seconds=outcome.seconds,
            worker=outcome.worker or state.worker,
            drift=list(outcome.drift),
        )
        if outcome.image:
            self._record.offer(self._kind(host), outcome.image)
        self._failed += not state.done
        self._shows.ended(outcome)

    def _on_event(self, event: tuple[float, Told]) -> None:
        """What a worker tells of a host; called in the client's own thread."""
        _, told = event
        if told["what"] == "began":
            self._record.change(told["host"], run=told["run"], worker=told["worker"])
        self._shows.told(told)

    def _refuse_unknown_secrets(self) -> None:
        """Raise BadInput where a worker has not what a site names as a secret."""
        sites = {host: self._run.fleet.sites[host] for host in self._run.todo}
        for worker, missing in self._client.run(work.missing_secrets, sites).items():
            for host, why in missing.items():
                raise BadInput(f"{host}, on the worker {worker}: {why}")


def image_kind(site: Parameters) -> str:
    """What decides whether an image of one host is another's as well, in short; "" for neither.

    With the distribution's kernel it never is: the image holds the modules of that host's version.
    """
    if site.image_from or not builds_kernel(site):
        return ""
    shaping = site.model_dump(mode="json", include=SHAPING)
    return hashlib.sha256(json.dumps([base(site), shaping]).encode()).hexdigest()[:16]


def _books(notebooks: Path) -> dict[str, str]:
    """The chapters and the modules beside them, for workers that have none."""
    files = (*notebooks.glob("[0-8]*.ipynb"), *notebooks.glob("*.py"))
    return {file.name: file.read_text(encoding="utf-8") for file in sorted(files)}
