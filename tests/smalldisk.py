"""A disk of this machine that is small enough to be filled: a tmpfs of its own."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def small_disk(folder: Path, kib: int) -> Iterator[Path]:
    """A folder with so much space in all."""
    root = [] if os.geteuid() == 0 else ["sudo", "-n"]
    folder.mkdir(exist_ok=True)
    options = f"size={kib}k,mode=0700,uid={os.geteuid()},gid={os.getegid()}"
    mount = ["mount", "-t", "tmpfs", "-o", options, "small-disk", str(folder)]
    subprocess.run([*root, *mount], check=True, timeout=60)
    try:
        yield folder
    finally:
        subprocess.run([*root, "umount", "--lazy", str(folder)], check=True, timeout=60)


def fill(folder: Path) -> Path:
    """Take all the space that is left; returns the file that has it."""
    place = folder / "filler"
    with place.open("ab", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError:
            return place
    return place
