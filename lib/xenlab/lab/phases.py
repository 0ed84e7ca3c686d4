"""What a lab takes before and beside a run's chapters: when each thing began, and when it ended.

One file in the cache, a JSON line for each begin and each end; scripts/bootstrap writes there too.
It says how long the same will take the next time.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from xenlab.lab.cache import cache_root

NAME = "phases.jsonl"

PACKAGES = "Debian packages"
REQUIREMENTS = "Python requirements"
RESCUE = "rescue system"
KVM = "trial of KVM"
KERNELS = {"dom0": "dom0's kernel", "domU": "domU's kernel"}


def boot(source: str) -> str:
    """The name of the machine's boot from its disk or the rescue system."""
    return f"boot from {source}"


def of_start(source: str, stage: str) -> list[str]:
    """The phases that starting a machine goes through: from ``source``, with this stage's file.

    What is in the cache is taken to be what is wanted; only building it says so for certain.
    """
    root, found = cache_root(), []
    if source == "rescue":
        name = Path(stage).name
        found += [] if (root / "stage" / name).exists() else [name.partition(".")[0]]
        found += [] if any(root.glob("rescue/*/rescue.img")) else [RESCUE]
    if os.access("/dev/kvm", os.R_OK | os.W_OK) and not any(root.glob("kvm/*/verdict")):
        found.append(KVM)
    return [*found, boot(source)]


@dataclass(frozen=True)
class Phase:
    """Something that was begun, in seconds since 1970; ``ended`` is 0 unless it came to its end."""

    what: str
    began: float
    ended: float = 0.0


def load(folder: Path | None = None) -> list[Phase]:
    """The phases of a folder's file, the cache's by default, in the order in which they began."""
    place = (folder or cache_root()) / NAME
    found: dict[tuple[str, float], Phase] = {}
    lines = place.read_text("utf-8", "replace").splitlines() if place.is_file() else []
    for line in lines:
        # a line that a crash cut off tells nothing
        with suppress(ValueError, TypeError):
            phase = Phase(**json.loads(line))
            found[phase.what, phase.began] = phase
    return sorted(found.values(), key=lambda phase: phase.began)


@contextmanager
def recorded(what: str) -> Iterator[None]:
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
        file = os.open(folder / NAME, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            os.write(file, json.dumps(line).encode() + b"\n")
        finally:
            os.close(file)
