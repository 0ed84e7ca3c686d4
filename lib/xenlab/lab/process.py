"""Finding a process again by its pid file, and waiting for its end without guessing."""

from __future__ import annotations

import os
import select
import signal
from contextlib import suppress
from pathlib import Path


def alive(pidfile: Path) -> int | None:
    """The pid in `pidfile` if that process still runs and is the one that was started with it.

    A pid that was given to another program since then counts as dead.
    """
    try:
        pid = int(pidfile.read_text())
        words = Path("/proc", str(pid), "cmdline").read_bytes().split(b"\0")
        state = Path("/proc", str(pid), "stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, ValueError, IndexError):
        return None
    if state in "ZX":
        _reap(pid)
        return None
    return pid if os.fsencode(pidfile) in words else None


def wait_end(pid: int, seconds: float) -> bool:
    """Whether the process ended within `seconds`; collects it if it is a child."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        ended = bool(select.select([handle], [], [], seconds)[0])
    finally:
        os.close(handle)
    if ended:
        _reap(pid)
    return ended


def kill(pid: int) -> None:
    """End a process with SIGKILL and wait until it is gone."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    wait_end(pid, 30.0)


def _reap(pid: int) -> None:
    with suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)
