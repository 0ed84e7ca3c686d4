"""Built things on disk, keyed by what went into them."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from xenlab.masking import mask

KEY_DIGITS = 16


def cache_root() -> Path:
    """The folder of everything that can be built again.

    $XENLAB_CACHE, or else $XDG_CACHE_HOME/xenlab, or else ~/.cache/xenlab.
    """
    own = os.environ.get("XENLAB_CACHE")
    if own:
        return Path(own).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base).expanduser() if base else Path.home() / ".cache").absolute() / "xenlab"


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
            _close(unfinished)
            write_atomic(unfinished / "inputs.json", mask(text, ()) + "\n")
            unfinished.rename(folder)
        except BaseException:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise
    return folder


def _close(folder: Path) -> None:
    """Leave what is below a folder to its owner alone."""
    for path in (folder, *folder.rglob("*")):
        if not path.is_symlink():
            path.chmod(path.stat().st_mode & 0o700)


@contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold an exclusive lock on a file; the kernel frees it however the process ends.

    Raises BlockingIOError if `wait` is false and another process holds it.
    """
    with path.open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield


def write_atomic(path: Path, text: str, *, mode: int = 0o600) -> None:
    """Replace a file so that a reader sees the old or the new text, never a part."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    with open(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "w") as handle:
        handle.write(text)
        handle.flush()
        os.fsync(handle.fileno())
    beside.rename(path)
