"""The journal of a run: append-only, fsynced, hash-chained JSON lines; the truth of a run."""

from __future__ import annotations

import getpass
import hashlib
import json
import os
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xenlab import durable
from xenlab.durable import kept_file, kept_folder
from xenlab.errors import DiskFull, JournalDamaged

if TYPE_CHECKING:
    import pandas as pd

# The chain of a journal's lines, and what its head says of them: whole, cut off, or changed.

FIRST = "0" * 64
"""What the first record names as the hash of the line before it."""

HEAD = "journal.head"
"""The file that names the last line: without it a missing end would not be seen."""

SYNCED = ("begin", "open", "close", "end")
"""The phases of the records that return only when the head that names them is on disk too."""

_HINT = "compare with a copy of the run folder"


@dataclass(frozen=True)
class Chain:
    """A journal whose chain holds: its records, its head, and what of its end did not get on disk.

    ``torn`` is what stands behind the last record, ``behind`` how many records the head file does
    not know yet, ``head_cut`` whether that file itself was cut off.
    """

    records: tuple[dict[str, Any], ...]
    head: str
    torn: bytes = b""
    behind: int = 0
    head_cut: bool = False


def digest(line: bytes) -> str:
    """The hash of a line, which the next one names."""
    return hashlib.sha256(line).hexdigest()


def head_line(head: str, seq: int) -> bytes:
    """What stands in the head file: always of the same length, so it is written over in place."""
    return f"{head} {seq:012d}\n".encode()


def parse(line: bytes) -> dict[str, Any] | None:
    """A record, or None where a line is none."""
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


def split(data: bytes) -> tuple[list[bytes], bytes]:
    """Whole lines, and what a crash left behind them.

    A disk may have got the end of a line, and zeros for what stands before it.
    """
    *lines, torn = data.split(b"\n")
    if lines and not torn and b"\0" in lines[-1]:
        torn = lines.pop() + b"\n"
    return lines, torn


def read_chain(path: Path) -> Chain:
    """A journal's chain, each link checked up to its head.

    Raises JournalDamaged, which names the first record that does not hold, for what no power cut
    explains: a line is on disk before the head that names it, and that before the next chapter.
    """
    path = kept_file(path.parent, path.name)
    data = path.read_bytes() if path.exists() else b""
    head_file = _read_head(path)
    lines, torn = split(data)
    if torn.endswith(b"\n") and head_file is not None and _count(head_file) > len(lines):
        lines, torn = data.split(b"\n")[:-1], b""
    records: list[dict[str, Any]] = []
    heads = [FIRST]
    for number, line in enumerate(lines, start=1):
        record = parse(line)
        if record is None:
            raise _no_record(path, f"line {number}")
        records.append(record)
        if record.get("prev") != heads[-1] or record.get("seq") != number:
            raise _broken(path, lines, number, head_file or b"")
        heads.append(digest(line))
    known, cut = _known(path, heads, head_file, records)
    return Chain(tuple(records), heads[-1], torn, len(records) - known, cut)


def _read_head(path: Path) -> bytes | None:
    place = kept_file(path.parent, HEAD)
    if not place.exists():
        return None
    head_file = place.read_bytes()
    return head_file if head_file.strip(b"\0") else b""


def _count(head_file: bytes) -> int:
    """The number of the line that a head file names; 0 where it names none."""
    words = head_file.split()
    return int(words[1]) if len(words) == 2 and words[1].isdigit() else 0


def _known(
    path: Path, heads: Sequence[str], head_file: bytes | None, records: Sequence[dict[str, Any]]
) -> tuple[int, bool]:
    """How many records the head file knows, and whether it was cut off; raises JournalDamaged."""
    last = len(records)
    step = records[-1].get("step", "?") if records else "none"
    if head_file is None:
        if last:
            raise JournalDamaged(f"{HEAD} is gone", where=str(path), hint=_HINT)
        return 0, False
    if _count(head_file) > last:
        raise JournalDamaged(
            f"the journal is cut off after line {last} (step {step}): {HEAD} names line "
            f"{_count(head_file)}, which was on disk before",
            where=str(path),
            hint=_HINT,
        )
    for number in range(last, -1, -1):
        # without a number: what earlier versions wrote
        forms = (head_line(heads[number], number), f"{heads[number]}\n".encode())
        whole = head_file in forms
        if whole or forms[0].startswith(head_file):
            if all(r.get("phase") not in SYNCED for r in records[number : last - 1]):
                return number, not whole
            break
    raise JournalDamaged(
        f"the journal's end is not what {HEAD} names: line {last} (step {step}) was changed, or "
        "lines were added or removed there",
        where=str(path),
        hint=_HINT,
    )


def _no_record(path: Path, which: str) -> JournalDamaged:
    return JournalDamaged(f"{which} is no JSON of a record", where=str(path), hint=_HINT)


def _broken(path: Path, lines: Sequence[bytes], number: int, head_file: bytes) -> JournalDamaged:
    """The error for a chain that breaks at a line; one that its follower knows is not to blame."""
    record = parse(lines[number - 1]) or {}
    follower = parse(lines[number]) if number < len(lines) else None
    known = follower.get("prev") if follower else head_file.decode(errors="replace")[:64]
    if known == digest(lines[number - 1]) and record.get("seq") == number > 1:
        number -= 1
        record = parse(lines[number - 1]) or {}
    return JournalDamaged(
        f"the journal's chain breaks at line {number} (step {record.get('step', '?')}): "
        "a record was changed, removed or moved",
        where=str(path),
        hint=_HINT,
    )


COLUMNS = [
    "seq", "time", "chapter", "step", "title", "phase", "status", "host", "boot_id", "operator",
    "commands", "exit_status", "seconds", "attachments", "difference", "message", "mark", "run",
    "prev",
]  # fmt: skip

STARTS = ("begin", "open")
"""The phases of the records before which the reserve is made whole."""

STEP_BYTES = 128 * 1024
"""With less space than this no step is applied: what it prints would not be kept."""

CLOSING = ("kept", "end")
"""The phases of the records that close a run."""

UNFINISHED = ("failed", "unreachable", "unknown", "aborted")
"""The statuses of an attempt at a step that may have left something running."""

LOOKED = ("ok", "skipped", "would change", "would be refused")
"""The statuses of a step that changed nothing."""

LOOKS_SECONDS = 1.0
"""Records of steps that changed nothing are put on disk together: those of this time after the last
was put there wait for the next one. Where the controller loses its power, no more is lost.
"""

DONE_ALREADY = ("final", "close", *CLOSING)
"""The phases of the records that tell of what was done, which is so even if the disk is full."""

RESERVE = ".reserve"
RESERVE_BYTES = 256 * 1024
"""The space that is kept for a run's closing records, in a file of its folder."""

TORN_BYTES = 4096
"""How much of what a crash cut off is recorded: it was never acknowledged."""

LAST_BYTES = 32 * 1024
"""The largest record that is written from the reserve; what is larger leaves its details out."""


class Journal:
    """A run's folder and its ``journal.jsonl``; several threads and processes may append.

    One record a line: `COLUMNS` says which keys there are; ``prev`` is the SHA-256 of the line
    before. What a crash cut off is put into a record of its own, whose phase is "torn".
    Raises JournalDamaged where a file of these is a link that leads out of the folder, DiskFull.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "journal.jsonl"
        self.run = folder.name
        self.operator = f"{getpass.getuser()}@{socket.gethostname()}"
        self._lock = threading.Lock()
        self._keeping = threading.Lock()
        self._size = 0
        self._seq = 0
        self._head = FIRST
        self._full = False
        self._synced = 0.0
        self._unfinished: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
        self._reserve = durable.Reserve(folder / RESERVE, RESERVE_BYTES)
        with durable.space(folder):
            durable.new_folder(folder)
        self._mode = durable.mode_in(folder)
        for name in (self.path.name, HEAD, RESERVE):
            kept_file(folder, name)
        for name in ("output", "input"):
            kept_folder(folder, name)

    def append(self, **fields: Any) -> dict[str, Any]:
        """Write a record, on disk before this returns; returns the whole record.

        That of a step which changed nothing may wait for the next one (`LOOKS_SECONDS`).
        Raises DiskFull, after a record that says so. A record of what was done already is written
        even then, from the reserve; those that close a run are all that can still be written.
        """
        with self._lock, self._open() as file:
            self._catch_up(file)
            try:
                with durable.space(self.folder):
                    if fields.get("phase") in (*STARTS, "running"):
                        durable.require(self.folder, STEP_BYTES)
                    if fields.get("phase") in STARTS:
                        self._reserve.fill()
                    record = self._put(file, fields)
            except DiskFull as full:
                closing = self._put_closing(file, fields, full)
                if closing is None:
                    raise
                record = closing
            if record.get("phase") == "end":
                self._reserve.drop()
        return record

    def save_output(self, name: str, data: bytes, suffix: str = ".txt") -> tuple[str, str]:
        """Keep a step's full output on disk; return its path in the run folder and its SHA-256.

        Raises DiskFull; what was written of it is gone then.
        """
        number = 1
        while True:
            place = self.folder / "output" / f"{name}{'' if number == 1 else f'.{number}'}{suffix}"
            try:
                durable.create(place, data)
            except FileExistsError:
                number += 1
                continue
            except DiskFull as full:
                self.note_full(full)
                raise
            return str(place.relative_to(self.folder)), hashlib.sha256(data).hexdigest()

    def save_input(self, data: bytes) -> tuple[str, str]:
        """Keep what a command was given, once; its path in the run folder and its SHA-256."""
        name = hashlib.sha256(data).hexdigest()
        place = self.folder / "input" / name
        try:
            with self._keeping:
                if not place.exists():
                    durable.replace(place, data)
        except DiskFull as full:
            self.note_full(full)
            raise
        return str(place.relative_to(self.folder)), name

    def note_full(self, full: DiskFull) -> None:
        """Record that the disk is full, once."""
        with self._lock, self._open() as file:
            self._catch_up(file)
            self._say_full(file, full)

    def records(self) -> list[dict[str, Any]]:
        """All whole records, oldest first."""
        return Reader(self.path).fresh()

    def frame(self) -> pd.DataFrame:
        """All records as a DataFrame with the columns of `COLUMNS`."""
        import pandas as pd

        return pd.DataFrame(self.records()).reindex(columns=COLUMNS)

    def head(self) -> str:
        """The SHA-256 of the last line, which stands for all of the journal."""
        with self._lock, self._open() as file:
            self._catch_up(file)
            return self._head

    def unfinished(self, chapter: str = "", step: str = "") -> list[dict[str, Any]]:
        """The attempts that may have left something running: of a step, a chapter, or the run.

        They are those that changed a machine since their step last ended well; each is its last
        record, which says that it was running, failed, was stopped, or is not known to be over.
        """
        with self._lock:
            # asked before each step: the file is opened only where others have written to it
            size = self.path.stat().st_size if self.path.exists() else 0
            if size != self._size:
                with self._open() as file:
                    self._catch_up(file)
            return [
                record
                for (of, number), attempts in self._unfinished.items()
                if chapter in ("", of) and step in ("", number)
                for record in attempts.values()
            ]

    @contextmanager
    def _open(self) -> Iterator[int]:
        with durable.space(self.folder):
            file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, self._mode)
        try:
            durable.lock(file, self.folder)
            yield file
        finally:
            os.close(file)

    def _catch_up(self, file: int) -> None:
        """Read what others have written since, and record what a crash cut off."""
        size = os.fstat(file).st_size
        if size == self._size:
            return
        if size < self._size:
            self._size, self._seq, self._head = 0, 0, FIRST
            self._unfinished.clear()
        lines, torn = split(_read(file, self._size, size))
        for line in lines:
            record = parse(line)
            if record is None:
                raise _no_record(self.path, f"line {self._seq + 1}")
            self._wrote(line, record)
        if torn:
            os.ftruncate(file, self._size)
            said = torn[:TORN_BYTES].decode("utf-8", "backslashreplace")
            with suppress(DiskFull), durable.space(self.folder):
                self._put(file, {"phase": "torn", "message": said})

    def _begin(self) -> None:
        """The names of the journal and its head are on disk before the first record is."""
        self._write_head(synced=True)
        durable.sync(self.folder)
        durable.sync(self.folder.parent)

    def _put(self, file: int, fields: Mapping[str, Any]) -> dict[str, Any]:
        if not self._seq:
            self._begin()
        record = {
            "run": self.run,
            "seq": self._seq + 1,
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "operator": self.operator,
            **fields,
            "prev": self._head,
        }
        text = json.dumps(record, sort_keys=True, ensure_ascii=False)
        # half a character, of a file name that is no UTF-8, must not cost a step its record
        line = text.encode("utf-8", "backslashreplace")
        looked = record.get("phase") == "final" and record.get("status") in LOOKED
        waits = looked and time.monotonic() < self._synced + LOOKS_SECONDS
        try:
            durable.write(file, line + b"\n")
            if not waits:
                os.fdatasync(file)
                self._synced = time.monotonic()
        except BaseException:
            os.ftruncate(file, self._size)
            raise
        self._wrote(line, record)
        if not waits:
            self._write_head(record.get("phase") in SYNCED)
        return record

    def _wrote(self, line: bytes, record: dict[str, Any]) -> None:
        self._note(record)
        self._seq += 1
        self._head = digest(line)
        self._size += len(line) + 1

    def _write_head(self, synced: bool) -> None:
        file = os.open(self.folder / HEAD, os.O_WRONLY | os.O_CREAT, self._mode)
        try:
            durable.write(file, head_line(self._head, self._seq))
            if synced:
                os.fdatasync(file)
        except OSError as error:
            # only a disk that copies on write can be full here; an older head is an honest one
            if error.errno not in durable.FULL:
                raise
        finally:
            os.close(file)

    def _put_closing(
        self, file: int, fields: Mapping[str, Any], full: DiskFull
    ) -> dict[str, Any] | None:
        """Record what was done already, and that the disk is full, in the space that was kept.

        Returns the record if it is one that closes the run, and was written.
        """
        written = None
        if fields.get("phase") in DONE_ALREADY:
            if len(json.dumps(fields)) > LAST_BYTES:
                fields = _shortened(fields)
            written = self._put_from_reserve(file, fields)
        self._say_full(file, full)
        return written if fields.get("phase") in CLOSING else None

    def _say_full(self, file: int, full: DiskFull) -> None:
        if not self._full:
            said = {"phase": "full", "status": "failed", "message": full.message}
            self._put_from_reserve(file, said)

    def _put_from_reserve(self, file: int, fields: Mapping[str, Any]) -> dict[str, Any] | None:
        """Write a record, from the reserve if need be; None where that is used up."""
        while True:
            with suppress(DiskFull), durable.space(self.folder):
                return self._put(file, fields)
            if not self._reserve.give():
                return None

    def _note(self, record: dict[str, Any]) -> None:
        """Keep in mind what is unfinished, so that nobody reads the journal for each step."""
        place = (record.get("chapter", ""), record.get("step", ""))
        mark = record.get("mark", "")
        if record.get("phase") == "running":
            self._unfinished.setdefault(place, {})[mark] = record
        elif record.get("phase") == "final" and record.get("status") not in UNFINISHED:
            self._unfinished.pop(place, None)
        elif record.get("phase") == "final" and mark in self._unfinished.get(place, {}):
            self._unfinished[place][mark] = record
        elif record.get("phase") in STARTS:
            self._full = False
        elif record.get("phase") == "full":
            self._full = True


class Reader:
    """The records of a journal that grows, each of them read once."""

    def __init__(self, path: Path) -> None:
        self._path = kept_file(path.parent, path.name)
        self._offset = 0

    def fresh(self) -> list[dict[str, Any]]:
        """The whole records since the last call, oldest first; raises JournalDamaged."""
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            file.seek(self._offset)
            lines, _ = split(file.read())
        self._offset += sum(len(line) + 1 for line in lines)
        records = [record for line in lines if (record := parse(line)) is not None]
        if len(records) < len(lines):
            raise _no_record(self._path, "a line")
        return records


def output_of(folder: Path, command: Mapping[str, Any]) -> str:
    """What one of a record's ``commands`` printed: it stands there, or in the file named there."""
    output = command.get("output", "")
    if isinstance(output, str):
        return output
    place = kept_file(folder, str(output["path"]))
    return place.read_bytes().decode("utf-8", "replace") if place.is_file() else ""


def verify(path: Path) -> int:
    """Check every link of a journal's chain up to its head; return the number of records.

    Raises JournalDamaged naming the first record that does not hold.
    """
    return len(read_chain(path).records)


def _shortened(fields: Mapping[str, Any]) -> dict[str, Any]:
    """A record without what may be long, and a word on what is left out."""
    light = {key: value for key, value in fields.items() if key not in ("commands", "difference")}
    said = f"{fields.get('message', '')}\nThe disk was full: not all of it is recorded."
    return {**light, "message": said.strip()[-LAST_BYTES:]}


def _read(file: int, start: int, end: int) -> bytes:
    """A part of a file; a read may give less than was asked for."""
    parts = []
    while start < end and (part := os.pread(file, end - start, start)):
        parts.append(part)
        start += len(part)
    return b"".join(parts)
