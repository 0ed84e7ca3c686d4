"""What is brought here whole, and verified: a run from a worker's disk, an image from a host."""

from __future__ import annotations

import hashlib
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from xenlab import durable
from xenlab.cache import cached
from xenlab.command import Command
from xenlab.durable import kept_file
from xenlab.errors import JournalDamaged, StepFailed
from xenlab.host import Host
from xenlab.journal import RESERVE
from xenlab.resources.image import parse_record
from xenlab.runs import audit

STAYS = (RESERVE, "run.lock")
"""What is a process's, not the run's."""


PIECE = 16 << 20
"""How many bytes of an image are fetched at a time: so much memory is taken, whatever its size."""

PIECE_SECONDS = 600.0


def packed(folder: Path) -> dict[str, bytes]:
    """The files of a run, by their paths in its folder."""
    found = (
        path for path in sorted(folder.rglob("*")) if path.is_file() and path.name not in STAYS
    )
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def unpack(runs: Path, name: str, files: Mapping[str, bytes]) -> None:
    """Put a run that a worker has sent among the others, verified before it takes its place.

    One of that name that is there already must be its beginning. Raises JournalDamaged for a file
    that would lie elsewhere, a run that is not what was recorded, or not that run; DiskFull.
    """
    if name != Path(name).name or name.startswith("."):
        raise _damaged(name, "that is no name of a run")
    with tempfile.TemporaryDirectory(prefix=".arriving-", dir=runs) as shelf:
        folder = Path(shelf) / name
        durable.new_folder(folder)
        for path, data in files.items():
            place = kept_file(folder, path)
            durable.new_folder(place.parent)
            durable.create(place, data)
        if problems := audit.inspect(folder).problems:
            raise _damaged(name, problems[0])
        place = runs / name
        if place.exists():
            before = (place / "journal.jsonl").read_bytes()
            if not files["journal.jsonl"].startswith(before):
                raise _damaged(name, "it is another run than the one of that name here")
            place.rename(Path(shelf) / "before")
        folder.rename(place)
        durable.sync(runs)


def _damaged(name: str, why: str) -> JournalDamaged:
    return JournalDamaged(
        f"cannot take the run {name} from the worker: because {why}",
        hint="look at it where it was made: `xenlab audit verify` there",
    )


def fetched_image(host: Host, image: str, stop: threading.Event) -> Path:
    """A host's image in this machine's cache, by its digest; checksum and record lie beside it.

    Raises StepFailed where it is not as its record says, or ``stop`` was set; OSError.
    """
    said = host.run(Command.argv("cat", "--", f"{image}.info")).out
    record = parse_record(said.decode(errors="replace"))
    name, wanted = PurePosixPath(image).name, record.get("sha256", "")

    def build(folder: Path) -> None:
        digest, at = hashlib.sha256(), 0
        with (folder / name).open("xb") as file:
            while piece := _piece(host, image, at):
                file.write(piece)
                digest.update(piece)
                at += len(piece)
                if stop.is_set() or at > int(record.get("bytes", 0)):
                    break
        if digest.hexdigest() != wanted:
            why = "the run was stopped" if stop.is_set() else "it is not as its record says"
            raise StepFailed(f"cannot fetch the image {image}: because {why}", where=host.name)
        (folder / f"{name}.sha256").write_text(f"{wanted}  {name}\n")
        (folder / f"{name}.info").write_bytes(said)

    inputs = {key: record.get(key, "") for key in ("sha256", "base", "stage")}
    return cached("image", {"name": name, **inputs}, build) / name


def _piece(host: Host, image: str, at: int) -> bytes:
    command = Command.script('tail -c "+$2" -- "$1" | head -c "$3"', image, at + 1, PIECE)
    return host.run(command, timeout=PIECE_SECONDS).out
