"""How busy this machine's processors are: samples of /proc/stat, written while work goes on."""

from __future__ import annotations

import json
import threading
import time
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType

EVERY_SECONDS = 2.0
BESIDE = "processor.jsonl"
"""The name of the samples' file, in the folder that holds the runs' own folders."""

STAT = Path("/proc/stat")


@dataclass(frozen=True)
class Sample:
    """The shares (0 to 1) of all processors' time up to ``time``, since the sample before.

    ``nice`` is work that gives way to other work, as the kernels' builds are; ``waiting`` is for
    a disk.
    """

    time: float
    busy: float
    nice: float
    waiting: float


def shares(before: str, after: str, now: float) -> Sample:
    """The shares between two texts of /proc/stat (see proc_stat(5))."""
    first, second = (
        [int(word) for word in text.split("\n", 1)[0].split()[1:9]] for text in (before, after)
    )
    user, nice, system, idle, waiting, irq, softirq, steal = (
        max(0, new - old) for old, new in zip(first, second, strict=True)
    )
    whole = max(1, user + nice + system + idle + waiting + irq + softirq + steal)
    busy = user + system + irq + softirq + steal
    return Sample(now, *(round(part / whole, 3) for part in (busy, nice, waiting)))


def load(path: Path) -> list[Sample]:
    """The samples of a file, none where it is missing; a last line that was cut off is left out."""
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [Sample(**json.loads(line)) for line in lines]


class Sampler(AbstractContextManager["Sampler"]):
    """Adds a sample to a file every `EVERY_SECONDS`, from the block's begin to its end."""

    def __init__(self, path: Path, every: float = EVERY_SECONDS) -> None:
        self._path = path
        self._every = every
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> Sampler:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        self._thread.join()

    def _sample(self) -> None:
        before = STAT.read_text()
        with self._path.open("a", buffering=1) as file:
            while True:
                over = self._over.wait(self._every)
                after = STAT.read_text()
                file.write(json.dumps(asdict(shares(before, after, time.time()))) + "\n")
                before = after
                if over:
                    return
