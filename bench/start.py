"""How long the command line takes to say something: its help, and that a file is refused.

    .venv/bin/python bench/start.py [TIMES]

Prints the median, the least and the most of several starts, in seconds of the clock and of the
processor: on a busy machine only the latter says something about the program.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
TIMES = 9


def start(words: Sequence[str], status: int) -> tuple[float, float]:
    """Seconds of the clock and of the processor that one start takes."""
    before, begun = os.times(), time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "xenlab", *words], cwd=ROOT, capture_output=True, check=False
    )
    clock, after = time.monotonic() - begun, os.times()
    if done.returncode != status:
        sys.exit(f"xenlab {' '.join(words)} ended with {done.returncode}: {done.stderr.decode()}")
    used = after.children_user + after.children_system
    return clock, used - before.children_user - before.children_system


def main() -> None:
    """Measure and print."""
    times = int(sys.argv[1]) if len(sys.argv) > 1 else TIMES
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "site.yaml"
        file.write_text("site: 1\n")
        print(f"{'':24}{'clock (least to most)':>28}{'processor':>12}")
        for name, words, status in (
            ("xenlab --help", ("--help",), 0),
            ("xenlab run, refused", ("run", "-f", str(file)), 2),
            ("xenlab plan, refused", ("plan", "-f", str(file)), 2),
        ):
            clock, used = zip(*(start(words, status) for _ in range(times)), strict=True)
            spread = f"({min(clock):.2f} to {max(clock):.2f})"
            print(
                f"{name:24}{statistics.median(clock):>10.2f} s {spread:>16}"
                f"{statistics.median(used):>10.2f} s"
            )


if __name__ == "__main__":
    main()
