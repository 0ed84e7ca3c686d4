"""Disks of this machine for a test alone: one that can be filled, and one that loses its power."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def small_disk(folder: Path, kib: int, files: int = 0) -> Iterator[Path]:
    """A folder with so much space in all, and for so many files."""
    root = [] if os.geteuid() == 0 else ["sudo", "-n"]
    folder.mkdir(exist_ok=True)
    options = f"size={kib}k,nr_inodes={files},mode=0700,uid={os.geteuid()},gid={os.getegid()}"
    mount = ["mount", "-t", "tmpfs", "-o", options, "small-disk", str(folder)]
    subprocess.run([*root, *mount], check=True, timeout=60)
    try:
        yield folder
    finally:
        subprocess.run([*root, "umount", "--lazy", str(folder)], check=True, timeout=60)


def fill_with_files(folder: Path) -> None:
    """Leave no space for another file or folder."""
    with suppress(OSError):
        for number in itertools.count():
            (folder / f"file{number}").touch()


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


@contextmanager
def disk_that_loses_its_power(folder: Path) -> Iterator[Callable[[], Path]]:
    """A disk that gets no content unless somebody waits for it; a call returns what a cut leaves.

    The names are on it by then: a file that nobody waited for is empty.
    """
    root = [] if os.geteuid() == 0 else ["sudo", "-n"]
    image, copy = folder.with_name(f"{folder.name}.img"), folder.with_name(f"{folder.name}.copy")
    after = folder.with_name(f"{folder.name}.after")
    with image.open("wb") as file:
        file.truncate(16 << 20)
    owner = f"root_owner={os.geteuid()}:{os.getegid()}"
    subprocess.run(["mkfs.ext4", "-q", "-E", owner, str(image)], check=True, timeout=60)
    mounted = []

    def mount(disk: Path, place: Path) -> None:
        place.mkdir()
        command = ["mount", "-o", "loop,commit=600", str(disk), str(place)]
        subprocess.run([*root, *command], check=True, timeout=60)
        mounted.append(place)

    def cut() -> Path:
        with (folder / "names").open("w") as file:
            os.fsync(file)
        shutil.copy(image, copy)
        mount(copy, after)
        return after

    try:
        mount(image, folder)
        yield cut
    finally:
        for place in mounted:
            subprocess.run([*root, "umount", "--lazy", str(place)], check=True, timeout=60)
