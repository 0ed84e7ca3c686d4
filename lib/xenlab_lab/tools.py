"""Running the controller's own programs, with progress and a clean end when interrupted."""

from __future__ import annotations

import os
import subprocess
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from xenlab.errors import LabError
from xenlab.transport.local import end_group

Report = Callable[[str, float | None], None]
"""Told what is being done, and how much of it is done (0.0 to 1.0, None if unknown)."""

ENGLISH = {"LC_ALL": "C.UTF-8"}
"""What the environment of a program has, whose messages are read or shown."""

STOP_SECONDS = 30.0
"""How long a program may take to end: mmdebstrap unmounts on SIGTERM what it has mounted."""


def quiet(what: str, done: float | None) -> None:
    """A Report that says nothing."""


def run(
    argv: Sequence[str | Path],
    *,
    report: Report = quiet,
    what: str = "",
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    hint: str = "",
) -> None:
    """Run a program to its end; its last output line is the progress text.

    The program gets a session of its own and is ended with everything it started when this
    process is interrupted. Raises LabError with the last lines if it is missing or fails.
    """
    words = [str(word) for word in argv]
    tail: deque[str] = deque(maxlen=12)
    try:
        process = subprocess.Popen(
            words,
            cwd=cwd,
            env={**os.environ, **ENGLISH, **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
    except FileNotFoundError:
        raise missing(words[0]) from None
    try:
        assert process.stdout is not None
        for line in process.stdout:
            tail.append(line.rstrip())
            report(f"{what}: {tail[-1][:60]}" if what else tail[-1][:80], None)
        status = process.wait()
    except BaseException:
        end_group(process, STOP_SECONDS)
        raise
    if status:
        lines = "\n  ".join(tail)
        raise _failed(words[0], status, f"\n  {lines}", hint)


def output(argv: Sequence[str]) -> str:
    """What a program prints. Raises LabError if it is missing or fails."""
    try:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, **ENGLISH},
        )
    except FileNotFoundError:
        raise missing(argv[0]) from None
    if done.returncode:
        raise _failed(argv[0], done.returncode, f" {done.stderr.strip()[-400:]}")
    return done.stdout


def missing(program: str) -> LabError:
    """The error for a program that is not installed."""
    return LabError(
        f"cannot run {program}: because it is not installed",
        hint="`make lab` installs what is missing",
    )


def _failed(program: str, status: int, said: str, hint: str = "") -> LabError:
    return LabError(
        f"cannot go on without {program}: because it failed with exit status {status}:{said}",
        hint=hint,
    )
