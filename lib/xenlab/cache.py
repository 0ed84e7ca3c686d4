"""What can be built again, by what went into it; and how long each phase of building it took."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from xenlab import durable
from xenlab.errors import BadInput
from xenlab.masking import mask

# Built things on disk, keyed by what went into them.

KEY_DIGITS = 16

USUAL_CACHE = "~/.cache/xenlab/"
"""Where the cache is unless the environment says otherwise."""


def cache_root() -> Path:
    """The folder of everything that can be built again.

    $XENLAB_CACHE, or else $XDG_CACHE_HOME/xenlab, or else ~/.cache/xenlab. Raises BadInput for a
    path that is not whole: a run's notebooks are executed in another folder.
    """
    own = os.environ.get("XENLAB_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    folder = Path(own or f"{base}/xenlab").expanduser()
    if not folder.is_absolute():
        raise BadInput(
            f"cannot use the cache folder {folder}: because its path is not whole",
            hint="give XENLAB_CACHE, or XDG_CACHE_HOME, a path that begins with / or ~/",
        )
    return folder


def cached(kind: str, inputs: Mapping[str, Any], build: Callable[[Path], None]) -> Path:
    """The folder that `build` filled for these inputs, built now if it is not there yet.

    `inputs` must hold everything that decides the result (JSON values). Two processes asking at
    the same time build once; what `build` raises is passed on and leaves nothing half-made.
    """
    text = json.dumps(inputs, sort_keys=True, ensure_ascii=False)
    key = hashlib.sha256(text.encode()).hexdigest()[:KEY_DIGITS]
    shelf = cache_root() / kind
    folder = shelf / key
    shelf.mkdir(parents=True, exist_ok=True)
    # a cache that somebody shares with us stays as its owner has it
    with suppress(PermissionError):
        shelf.chmod(0o700)
    if folder.is_dir():
        return folder
    with locked(shelf / f".{key}.lock"):
        if folder.is_dir():
            return folder
        unfinished = shelf / f".{key}.building"
        if unfinished.exists():
            shutil.rmtree(unfinished)
        unfinished.mkdir()
        try:
            build(unfinished)
            durable.create(unfinished / "inputs.json", f"{mask(text, ())}\n".encode())
            _close(unfinished)
            # who finds the folder takes it for whole, after a power cut as well
            unfinished.rename(folder)
        except BaseException:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise
    return folder


def named(folder: Path, name: str) -> tuple[Path, Path]:
    """A file of a built folder and its checksum file, by names that do not change.

    These are links in the folder above, which lead to what was built last.
    """
    # both under one lock: a file of one build has its own checksum file beside it
    with locked(folder.parent / ".names.lock"):
        return _link(folder / name), _link(folder / f"{name}.sha256")


def _link(file: Path) -> Path:
    link, target = file.parents[1] / file.name, Path(file.parent.name, file.name)
    if not (link.is_symlink() and link.readlink() == target):
        fresh = link.with_name(f".{link.name}.new")
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(target)
        fresh.rename(link)
    return link


def _close(folder: Path) -> None:
    """Leave what is below a folder to its owner alone, and have it on disk."""
    for path in (folder, *folder.rglob("*")):
        if not path.is_symlink():
            path.chmod(path.stat().st_mode & 0o700)
            durable.sync(path)


@contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold an exclusive lock on a file; the kernel frees it however the process ends.

    Raises BlockingIOError if `wait` is false and another process holds it.
    """
    with path.open("a") as handle:
        durable.lock(handle.fileno(), path.parent, wait=wait)
        yield


# What the lab makes of each release of Debian that a site may ask for, and where it keeps that.

Release = Literal["trixie", "bookworm"]

DEFAULT_RELEASE: Release = "trixie"

LINUX: dict[Release, str] = {"trixie": "6.12", "bookworm": "6.1"}
"""Which Linux each has: its own kernel is of these sources."""


def stage_of(release: Release) -> str:
    """The root directory of a release as a tarball."""
    return f"{USUAL_CACHE}stage/{release}-stage.tar.zst"


def source_package(release: Release) -> str:
    """The package that brings the kernel sources of a release."""
    return f"linux-source-{LINUX[release]}"


def kernel_source_of(release: Release) -> str:
    """The kernel sources of a release."""
    return f"{USUAL_CACHE}source/{source_package(release)}.tar.xz"


# What a lab takes before and beside a run's chapters: when each thing began, and when it ended.
#
# One file in the cache, a JSON line for each begin and each end; scripts/bootstrap writes there
# too. It says how long the same will take the next time.

PHASES = "phases.jsonl"

PACKAGES = "Debian packages"
RESCUE = "rescue system"
SOURCES = "kernel sources"
KVM = "trial of KVM"
KERNELS = {"dom0": "dom0's kernel", "domU": "domU's kernel"}


def boot_phase(source: str) -> str:
    """The name of the machine's boot from its disk or the rescue system."""
    return f"boot from {source}"


def phases_of_start(source: str, stage: str, kernel_source: str = "") -> list[str]:
    """The phases that starting a machine goes through: from ``source``, with these files.

    What is in the cache is taken to be what is wanted; only building it says so for certain.
    """
    root, archive = cache_root(), Path(kernel_source).expanduser()
    fetched = archive.parent != root / "source" or archive.exists()
    found = [] if fetched else [SOURCES]
    if source == "rescue":
        name = Path(stage).name
        found += [] if (root / "stage" / name).exists() else [name.partition(".")[0]]
        found += [] if any(root.glob("rescue/*/rescue.img")) else [RESCUE]
    if os.access("/dev/kvm", os.R_OK | os.W_OK) and not any(root.glob("kvm/*/verdict")):
        found.append(KVM)
    return [*found, boot_phase(source)]


@dataclass(frozen=True)
class Phase:
    """Something that was begun, in seconds since 1970; ``ended`` is 0 unless it came to its end."""

    what: str
    began: float
    ended: float = 0.0


def load_phases(folder: Path | None = None) -> list[Phase]:
    """The phases of a folder's file, the cache's by default, in the order in which they began."""
    place = (folder or cache_root()) / PHASES
    if not place.is_file():
        return []
    seen = place.stat()
    return [*_phases(place, seen.st_size, seen.st_mtime_ns)]


# what draws a run's progress asks twice a second for a file that is never trimmed
@lru_cache(maxsize=1)
def _phases(place: Path, size: int, changed: int) -> list[Phase]:
    found: dict[tuple[str, float], Phase] = {}
    for line in place.read_text("utf-8", "replace").splitlines():
        # a line that a crash cut off tells nothing
        with suppress(ValueError, TypeError):
            phase = Phase(**json.loads(line))
            found[phase.what, phase.began] = phase
    return sorted(found.values(), key=lambda phase: phase.began)


@contextmanager
def phase_recorded(what: str) -> Iterator[None]:
    """Write down when the block begins, and when it ends unless something is raised."""
    began = round(time.time(), 2)
    _add({"what": what, "began": began})
    yield
    _add({"what": what, "began": began, "ended": round(time.time(), 2)})


def _add(line: dict[str, object]) -> None:
    """A record that cannot be kept is no reason to stop the work."""
    with suppress(OSError):
        folder = cache_root()
        folder.mkdir(parents=True, exist_ok=True)
        file = os.open(folder / PHASES, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            os.write(file, json.dumps(line).encode() + b"\n")
        finally:
            os.close(file)
