"""A disk that is not the site's: last year's Xen host, with the very labels of the site's own."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from pathlib import Path

from xenlab.chapters.disk import file_systems, partition_table
from xenlab.site.disk_plan import Partition
from xenlab.site.schema import Parameters

OTHER_MIB = 16
SECTOR = 512
BLOCK = 65536


def make(path: Path, site: Parameters) -> str:
    """A raw image with the partitions and file systems of a site, all small; returns its hash."""
    wanted = partition_table(site)
    small = tuple(
        Partition(p.name, 1 if p.name == "biosboot" else OTHER_MIB, p.kind)
        for p in wanted.partitions
    )
    with path.open("wb") as handle:
        handle.truncate((len(small) * OTHER_MIB + 8) << 20)
    table = type(wanted)(str(path), small).script()
    _run("sfdisk", "--quiet", "--", str(path), input=table)
    # an EFI system partition is there by its name alone: FAT is nothing that a controller makes
    made = {f.label: f.kind for f in file_systems(site) if f.kind != "vfat"}
    for part in json.loads(_run("sfdisk", "--json", "--", str(path)))["partitiontable"][
        "partitions"
    ]:
        if part["name"] in made:
            _fill(path, part["name"], made[part["name"]], int(part["start"]))
    return digest(path)


def digest(path: Path) -> str:
    """A hash of all its sectors; those that are zero are known by where they are not."""
    found = hashlib.sha256()
    with path.open("rb") as handle:
        end = path.stat().st_size
        at = _next_data(handle.fileno(), 0, end)
        while at < end:
            block = os.pread(handle.fileno(), BLOCK, at)
            if any(block):
                found.update(f"{at} ".encode() + block)
            at = _next_data(handle.fileno(), at + BLOCK, end)
    return found.hexdigest()


def _next_data(handle: int, at: int, end: int) -> int:
    try:
        return os.lseek(handle, at, os.SEEK_DATA) // BLOCK * BLOCK
    except OSError:
        return end


def _fill(disk: Path, label: str, kind: str, start: int) -> None:
    inside = disk.with_suffix(".part")
    with inside.open("wb") as handle:
        handle.truncate(OTHER_MIB << 20)
    maker = ("mkswap",) if kind == "swap" else ("mkfs.ext4", "-q")
    _run(*maker, "-L", label, str(inside))
    with disk.open("r+b") as handle:
        handle.seek(start * SECTOR)
        handle.write(inside.read_bytes())
    inside.unlink()


def _run(*words: str, input: str = "") -> str:
    done = subprocess.run(words, input=input, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout
