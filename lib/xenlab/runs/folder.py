"""Run folders: made, found again, listed; what their journals say of chapters and steps."""

from __future__ import annotations

import difflib
import fcntl
import json
import os
import platform
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from xenlab import durable
from xenlab.durable import kept_file
from xenlab.errors import BadInput
from xenlab.journal import Journal, Reader, digest

DONE = "done"
UNFINISHED = "unfinished"
NOT_RUN = "not run"
BAD = ("failed", "unreachable", "unknown", "aborted")
"""The statuses of a step that end a run; "would change" is none of them."""

PRUNED = "pruned.json"
"""What is left to say of a run whose files were given away (`xenlab runs prune`)."""

LOCK_SECONDS = 10.0
"""How long a run that is taken up again waits for the last processes of its killed forerunner."""


@dataclass(frozen=True)
class StepState:
    """The last final record of a step."""

    number: str
    title: str
    status: str
    seconds: float
    message: str
    record: Mapping[str, Any] = field(repr=False)


@dataclass(frozen=True)
class ChapterState:
    """What a journal says of a chapter since it was last opened.

    ``status`` is "done", one of `BAD`, "not run" where the chapter was never opened, or
    "unfinished" where there is no end-of-chapter record.
    """

    name: str
    status: str
    seconds: float
    message: str
    steps: tuple[StepState, ...]

    @property
    def counts(self) -> dict[str, int]:
        """How many steps ended with each status."""
        found: dict[str, int] = {}
        for step in self.steps:
            found[step.status] = found.get(step.status, 0) + 1
        return found


def create(folder: Path, record: Mapping[str, Any]) -> None:
    """Put ``run.json`` into a fresh run folder; one that is there already is never written over."""
    text = json.dumps(record, indent=2, ensure_ascii=False) + "\n"
    fresh = folder / ".run.json.new"
    fresh.unlink(missing_ok=True)
    durable.create(fresh, text.encode())
    # a link, since a rename would write over
    os.link(fresh, folder / "run.json")
    fresh.unlink()
    durable.sync(folder)


def begin(folder: Path) -> None:
    """Record that a run begins, or goes on, with the ``run.json`` that is there."""
    record = kept_file(folder, "run.json").read_bytes()
    Journal(folder).append(phase="begin", path="run.json", sha256=digest(record))


def read(folder: Path) -> dict[str, Any]:
    """The content of a run's ``run.json``; raises BadInput, and where `kept_file` does."""
    return _document(folder, kept_file(folder, "run.json"))


def _document(folder: Path, place: Path) -> dict[str, Any]:
    try:
        found = json.loads(place.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError("it holds no mapping")
    except FileNotFoundError:
        raise BadInput(
            f"cannot read {place.name}: because this run was not started by `xenlab run`",
            where=str(folder),
            hint="name a run that was",
        ) from None
    except (OSError, ValueError) as error:
        raise BadInput(
            f"cannot read {place.name}: because {error}",
            where=str(folder),
            hint="compare with a copy of the run folder",
        ) from None
    return found


def every(runs: Path) -> list[Path]:
    """All run folders, oldest first (their names begin with the time)."""
    found = [path.parent for path in runs.glob("*/journal.jsonl")]
    found += [path.parent for path in runs.glob("*/run.json")]
    return sorted(set(found), key=lambda folder: folder.name)


def find(runs: Path, name: str) -> Path:
    """A run by its path, its folder's name, or ``last``; raises BadInput with the nearest name."""
    folders = every(runs)
    if name == "last":
        if not folders:
            raise BadInput(
                f"cannot find the last run: because there is no run in {runs} yet",
                hint="name the folder of the runs with --runs",
            )
        return folders[-1]
    for folder in (runs / name, Path(name)):
        if (folder / "journal.jsonl").exists() or (folder / "run.json").exists():
            return folder
    near = difflib.get_close_matches(name, [f.name for f in folders], 1, 0.6)
    raise BadInput(
        f"cannot find the run {name}: because there is none of that name in {runs}",
        hint=near[0] if near else "`xenlab runs` lists them",
    )


class Chapters:
    """What the journal of a run says of its chapters while it grows; each record is read once."""

    def __init__(self, folder: Path) -> None:
        self._reader = Reader(folder / "journal.jsonl")
        self._records: dict[str, list[Mapping[str, Any]]] = {}

    def state(self, chapter: str) -> ChapterState:
        """What the journal says of one chapter now."""
        self._read()
        return _state(chapter, self._records.get(chapter, ()))

    def opened(self) -> list[str]:
        """The chapters that were opened, in this order."""
        self._read()
        return [
            chapter
            for chapter, records in self._records.items()
            if any(record.get("phase") == "open" for record in records)
        ]

    def _read(self) -> None:
        for record in self._reader.fresh():
            self._records.setdefault(str(record.get("chapter", "")), []).append(record)


def states(folder: Path) -> list[ChapterState]:
    """What the journal of a run says of each of its chapters, those that were not run included.

    Of a run that was pruned it is what its summary says, without the steps.
    """
    if (said := pruned(folder)) is not None:
        return [
            ChapterState(c["chapter"], c["status"], c["seconds"], c["message"], ())
            for c in said["chapters"]
        ]
    chapters = Chapters(folder)
    wanted = read(folder)["chapters"] if (folder / "run.json").exists() else []
    return [chapters.state(name) for name in dict.fromkeys([*wanted, *chapters.opened()])]


def pruned(folder: Path) -> dict[str, Any] | None:
    """The summary of a run whose files were given away; None of any other."""
    place = kept_file(folder, PRUNED)
    return _document(folder, place) if place.exists() else None


def require_whole(folder: Path, what: str) -> None:
    """Raise BadInput where a run's files were given away, which ``what`` would need."""
    if (said := pruned(folder)) is not None:
        raise BadInput(
            f"cannot {what} this run: because it was pruned on {said['pruned']}, which left its "
            f"head and a summary",
            where=str(folder),
            hint=f"xenlab show {folder.name}",
        )


def environment(notebooks: Path) -> dict[str, Any]:
    """Versions of xenlab, Python and every installed package, and the git revision."""
    packages = _packages()
    return {
        "xenlab": packages.get("xenlab", ""),
        "python": platform.python_version(),
        "system": platform.platform(),
        "packages": dict(sorted(packages.items())),
        "git": _revision(notebooks),
    }


@cache
def _packages() -> dict[str, str]:
    """What this process may import; a worker that runs many hosts need not look for each."""
    return {d.name: d.version for d in metadata.distributions() if d.name}


@contextmanager
def run_lock(folder: Path) -> Iterator[int]:
    """Hold the run's lock; gives the file descriptor, which a kernel inherits.

    So a run stays locked until the last process that may work on it is gone. Raises BadInput
    when it is still held after `LOCK_SECONDS`.
    """
    mode = durable.mode_in(folder)
    handle = os.open(kept_file(folder, "run.lock"), os.O_RDWR | os.O_CREAT, mode)
    try:
        deadline = time.monotonic() + LOCK_SECONDS
        while True:
            try:
                durable.lock(handle, folder, wait=False)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise BadInput(
                        f"cannot work on the run {folder.name}: because another process does",
                        hint="wait for its end",
                    ) from None
                time.sleep(0.2)
        yield handle
    finally:
        os.close(handle)


def locked(folder: Path) -> bool:
    """Whether somebody holds the run's lock, and works on it."""
    try:
        with kept_file(folder, "run.lock").open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def _state(chapter: str, records: Sequence[Mapping[str, Any]]) -> ChapterState:
    """What a chapter's own records say of it since it was last opened."""
    opened = [n for n, record in enumerate(records) if record.get("phase") == "open"]
    own = records[opened[-1] :] if opened else ()
    last: dict[str, StepState] = {}
    for record in own:
        if record.get("phase") == "final":
            number = str(record["step"])
            last[number] = StepState(
                number,
                str(record.get("title", "")),
                str(record["status"]),
                float(record.get("seconds", 0)),
                str(record.get("message", "")),
                record,
            )
    bad = [step for step in last.values() if step.status in BAD]
    closed = any(record.get("phase") == "close" for record in own)
    if bad:
        status, message = bad[-1].status, bad[-1].message
    else:
        status, message = (DONE if closed else UNFINISHED if own else NOT_RUN), ""
    return ChapterState(chapter, status, _span(own), message, tuple(last.values()))


def _span(records: Sequence[Mapping[str, Any]]) -> float:
    times = [datetime.fromisoformat(str(record["time"])) for record in records]
    return (times[-1] - times[0]).total_seconds() if times else 0.0


def _revision(folder: Path) -> str:
    def git(*words: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(folder), *words], capture_output=True, text=True, check=False
        )
        return done.stdout.strip() if done.returncode == 0 else ""

    try:
        revision = git("rev-parse", "HEAD")
        return revision + ("-dirty" if revision and git("status", "--porcelain") else "")
    except FileNotFoundError:
        return ""
