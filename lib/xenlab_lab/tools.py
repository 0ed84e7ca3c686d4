"""Running the controller's own programs, with progress and a clean end when interrupted."""

from __future__ import annotations

import os
import signal
import subprocess
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from xenlab.errors import LabError

Report = Callable[[str, float | None], None]
"""Told what is being done, and how much of it is done (0.0 to 1.0, None if unknown)."""

STOP_GRACE = 30.0


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
            env={**os.environ, "LC_ALL": "C.UTF-8", **(env or {})},
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
        _end(process)
        raise
    if status:
        lines = "\n  ".join(tail)
        raise LabError(f"{words[0]} failed with exit status {status}:\n  {lines}", hint=hint)


def output(argv: Sequence[str | Path], *, input_text: str | None = None) -> str:
    """What a program prints. Raises LabError if it is missing or fails."""
    words = [str(word) for word in argv]
    try:
        done = subprocess.run(
            words,
            input=input_text,
            stdin=subprocess.DEVNULL if input_text is None else None,
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "LC_ALL": "C.UTF-8"},
        )
    except FileNotFoundError:
        raise missing(words[0]) from None
    if done.returncode:
        raise LabError(
            f"{words[0]} failed with exit status {done.returncode}: {done.stderr.strip()[-400:]}"
        )
    return done.stdout


def missing(program: str) -> LabError:
    """The error for a program that is not installed."""
    return LabError(
        f"the program {program} is not installed", hint="`make lab` installs what is missing"
    )


def _end(process: subprocess.Popen[str]) -> None:
    # mmdebstrap unmounts what it mounted on SIGTERM; SIGKILL at once would leave mounts behind.
    for sig, grace in ((signal.SIGTERM, STOP_GRACE), (signal.SIGKILL, STOP_GRACE)):
        try:
            os.killpg(process.pid, sig)
        except ProcessLookupError:
            break
        try:
            process.wait(grace)
            break
        except subprocess.TimeoutExpired:
            continue
    process.wait()
