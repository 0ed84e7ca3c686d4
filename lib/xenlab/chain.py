"""The chain of a journal's lines, and what its head says of them: whole, cut off, or changed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xenlab.errors import JournalDamaged
from xenlab.runfolder import kept_file

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


def read(path: Path) -> Chain:
    """A journal's chain, each link checked up to its head.

    Raises JournalDamaged, which names the first record that does not hold, for what no power cut
    explains: a line is on disk before the head that names it, and that before the next chapter.
    """
    path = kept_file(path.parent, path.name)
    data = path.read_bytes() if path.exists() else b""
    kept = _kept(path)
    lines, torn = split(data)
    if torn.endswith(b"\n") and kept is not None and _count(kept) > len(lines):
        lines, torn = data.split(b"\n")[:-1], b""
    records: list[dict[str, Any]] = []
    heads = [FIRST]
    for number, line in enumerate(lines, start=1):
        record = parse(line)
        if record is None:
            raise JournalDamaged(f"line {number} is no JSON of a record", where=str(path))
        records.append(record)
        if record.get("prev") != heads[-1] or record.get("seq") != number:
            raise _broken(path, lines, number, kept or b"")
        heads.append(digest(line))
    known, cut = _known(path, heads, kept, records)
    return Chain(tuple(records), heads[-1], torn, len(records) - known, cut)


def _kept(path: Path) -> bytes | None:
    place = kept_file(path.parent, HEAD)
    if not place.exists():
        return None
    kept = place.read_bytes()
    return kept if kept.strip(b"\0") else b""


def _count(kept: bytes) -> int:
    """The number of the line that a head file names; 0 where it names none."""
    words = kept.split()
    return int(words[1]) if len(words) == 2 and words[1].isdigit() else 0


def _known(
    path: Path, heads: Sequence[str], kept: bytes | None, records: Sequence[dict[str, Any]]
) -> tuple[int, bool]:
    """How many records the head file knows, and whether it was cut off; raises JournalDamaged."""
    last = len(records)
    step = records[-1].get("step", "?") if records else "none"
    if kept is None:
        if last:
            raise JournalDamaged(f"{HEAD} is gone", where=str(path), hint=_HINT)
        return 0, False
    if _count(kept) > last:
        raise JournalDamaged(
            f"the journal is cut off after line {last} (step {step}): {HEAD} names line "
            f"{_count(kept)}, which was on disk before",
            where=str(path),
            hint=_HINT,
        )
    for number in range(last, -1, -1):
        # without a number: what earlier versions wrote
        forms = (head_line(heads[number], number), f"{heads[number]}\n".encode())
        whole = kept in forms
        if whole or forms[0].startswith(kept):
            if all(r.get("phase") not in SYNCED for r in records[number : last - 1]):
                return number, not whole
            break
    raise JournalDamaged(
        f"the journal's end is not what {HEAD} names: line {last} (step {step}) was changed, or "
        "lines were added or removed there",
        where=str(path),
        hint=_HINT,
    )


def _broken(path: Path, lines: Sequence[bytes], number: int, kept: bytes) -> JournalDamaged:
    """The error for a chain that breaks at a line; one that its follower knows is not to blame."""
    record = parse(lines[number - 1]) or {}
    follower = parse(lines[number]) if number < len(lines) else None
    known = follower.get("prev") if follower else kept.decode(errors="replace")[:64]
    if known == digest(lines[number - 1]) and record.get("seq") == number > 1:
        number -= 1
        record = parse(lines[number - 1]) or {}
    return JournalDamaged(
        f"the journal's chain breaks at line {number} (step {record.get('step', '?')}): "
        "a record was changed, removed or moved",
        where=str(path),
        hint=_HINT,
    )
