"""The journal of a run: append-only, fsynced, hash-chained JSON lines; the truth of a run."""

from __future__ import annotations

import fcntl
import getpass
import hashlib
import json
import os
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xenlab.errors import JournalDamaged

if TYPE_CHECKING:
    import pandas as pd

FIRST = "0" * 64
"""What the first record names as the hash of the line before it."""

HEAD = "journal.head"
"""The file that holds the hash of the last line: without it a missing end would not be seen."""

COLUMNS = [
    "seq", "time", "chapter", "step", "title", "phase", "status", "host", "boot_id", "operator",
    "commands", "exit_status", "seconds", "transcript", "output", "output_sha256", "difference",
    "message", "mark", "run", "prev",
]  # fmt: skip


class Journal:
    """A run's folder and its ``journal.jsonl``; several threads and processes may append.

    One record a line: `COLUMNS` says which keys there are; ``prev`` is the SHA-256 of the line
    before. A line that a crash cut off is moved to ``journal.torn`` before the next is written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "journal.jsonl"
        self.run = folder.name
        self.operator = f"{getpass.getuser()}@{socket.gethostname()}"
        self._lock = threading.Lock()
        self._size = -1
        self._seq = 0
        self._head = FIRST
        self._running: dict[tuple[str, str], dict[str, Any]] = {}
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        (folder / "output").mkdir(mode=0o700, exist_ok=True)

    def append(self, **fields: Any) -> dict[str, Any]:
        """Write a record and fsync it before returning; returns the whole record."""
        with self._lock, self._open() as file:
            self._catch_up(file)
            record = {
                "run": self.run,
                "seq": self._seq + 1,
                "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
                "operator": self.operator,
                **fields,
                "prev": self._head,
            }
            line = json.dumps(record, sort_keys=True, ensure_ascii=False).encode()
            os.write(file, line + b"\n")
            os.fsync(file)
            self._note(record)
            self._seq += 1
            self._head = hashlib.sha256(line).hexdigest()
            self._size += len(line) + 1
            self._write_head()
        return record

    def save_output(self, name: str, data: bytes, suffix: str = ".txt") -> tuple[str, str]:
        """Keep a step's full output; return its path in the run folder and its SHA-256."""
        digest = hashlib.sha256(data).hexdigest()
        number = 1
        while True:
            place = self.folder / "output" / f"{name}{'' if number == 1 else f'.{number}'}{suffix}"
            try:
                handle = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            except FileExistsError:
                number += 1
                continue
            with os.fdopen(handle, "wb") as file:
                file.write(data)
            return str(place.relative_to(self.folder)), digest

    def records(self) -> list[dict[str, Any]]:
        """All whole records, oldest first."""
        return [record for _, record in _records(self.path)] if self.path.exists() else []

    def frame(self) -> pd.DataFrame:
        """All records as a DataFrame with the columns of `COLUMNS`."""
        import pandas as pd

        return pd.DataFrame(self.records()).reindex(columns=COLUMNS)

    def head(self) -> str:
        """The SHA-256 of the last line, which stands for the whole journal."""
        lines = self.path.read_bytes().splitlines() if self.path.exists() else []
        return hashlib.sha256(lines[-1]).hexdigest() if lines else FIRST

    def unfinished(self, chapter: str, step: str) -> dict[str, Any] | None:
        """The last record of a step if it says that the step was running, else None."""
        with self._lock, self._open() as file:
            self._catch_up(file)
            return self._running.get((chapter, step))

    @contextmanager
    def _open(self) -> Iterator[int]:
        file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield file
        finally:
            os.close(file)

    def _catch_up(self, file: int) -> None:
        size = os.fstat(file).st_size
        if size == self._size:
            return
        data = self.path.read_bytes()
        whole, newline, torn = data.rpartition(b"\n")
        if torn:
            with (self.folder / "journal.torn").open("ab") as keep:
                keep.write(torn + b"\n")
                keep.flush()
                os.fsync(keep.fileno())
            os.ftruncate(file, len(whole) + len(newline))
        lines = whole.split(b"\n") if whole else []
        self._seq = len(lines)
        self._head = hashlib.sha256(lines[-1]).hexdigest() if lines else FIRST
        self._size = len(whole) + len(newline)
        self._running.clear()
        for _, record in _records(self.path):
            self._note(record)

    def _write_head(self) -> None:
        # written over in place: 64 digits and a newline never have another length
        file = os.open(self.folder / HEAD, os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            os.write(file, f"{self._head}\n".encode())
        finally:
            os.close(file)

    def _note(self, record: dict[str, Any]) -> None:
        """Keep in mind which steps are running, so that nobody reads the journal for each step."""
        place = (record.get("chapter", ""), record.get("step", ""))
        if record.get("phase") == "running":
            self._running[place] = record
        elif record.get("phase") == "final":
            self._running.pop(place, None)


def transcript(folder: Path, record: Mapping[str, Any]) -> str:
    """What a step's commands printed: it stands in the record, or in the file that this names."""
    if "transcript" in record:
        return str(record["transcript"])
    place = folder / str(record.get("output", ""))
    return place.read_bytes().decode("utf-8", "replace") if place.is_file() else ""


def verify(path: Path) -> int:
    """Check every link of a journal's chain up to its head; return the number of records.

    Raises JournalDamaged naming the first record that does not hold.
    """
    place = path.with_name(HEAD)
    kept = place.read_text(errors="replace").strip() if place.exists() else ""
    head = FIRST
    found = list(_records(path))
    for number, (line, record) in enumerate(found, start=1):
        if record.get("prev") != head or record.get("seq") != number:
            raise _broken(path, [record for _, record in found], number, line, kept)
        head = hashlib.sha256(line).hexdigest()
    if kept != head:
        last = found[-1][1].get("step", "?") if found else "none"
        raise JournalDamaged(
            f"the journal's end is not what {HEAD} names: line {len(found)} (step {last}) was "
            "changed, or lines after it were removed",
            where=str(path),
            hint="compare with a copy of the run folder",
        )
    return len(found)


def _broken(
    path: Path, records: Sequence[Mapping[str, Any]], number: int, line: bytes, head: str
) -> JournalDamaged:
    """The error for a chain that breaks at a line; one that its follower knows is not to blame."""
    record = records[number - 1]
    known = records[number].get("prev") if number < len(records) else head
    if known == hashlib.sha256(line).hexdigest() and record.get("seq") == number > 1:
        number, record = number - 1, records[number - 2]
    return JournalDamaged(
        f"the journal's chain breaks at line {number} (step {record.get('step', '?')}): "
        "a record was changed, removed or moved",
        where=str(path),
        hint="compare with a copy of the run folder",
    )


def _records(path: Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    lines = path.read_bytes().split(b"\n")[:-1]
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
        except ValueError as error:
            raise JournalDamaged(f"line {number} is no JSON: {error}", where=str(path)) from error
        if not isinstance(record, dict):
            raise JournalDamaged(f"line {number} is no record", where=str(path))
        yield line, record
