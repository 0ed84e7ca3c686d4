"""Running the controller's own programs, with progress and a clean end; talking to QEMU."""

from __future__ import annotations

import asyncio
import hashlib
import os
import select
import signal
import subprocess
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from qemu.qmp import ExecuteError, QMPClient, QMPError
from qemu.qmp.events import EventListener

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


def write_checksum(file: Path) -> None:
    """Write a file's SHA-256 beside it, as sha256sum does, into FILE.sha256."""
    with file.open("rb") as handle:
        digest = hashlib.file_digest(handle, "sha256").hexdigest()
    file.with_name(f"{file.name}.sha256").write_text(f"{digest}  {file.name}\n")


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


# Finding a process again by its pid file, and waiting for its end without guessing.


def running_pid(pidfile: Path) -> int | None:
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


def wait_for_end(pid: int, seconds: float) -> bool:
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


def kill_process(pid: int) -> None:
    """End a process with SIGKILL and wait until it is gone."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    wait_for_end(pid, 30.0)


def _reap(pid: int) -> None:
    with suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


# Talking to a running QEMU: one short QMP connection per request.

ANSWER_SECONDS = 30.0


@contextmanager
def short_path(socket: Path) -> Iterator[str]:
    """A path to a Unix socket that fits into the 108 bytes the kernel allows."""
    folder = os.open(socket.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{folder}/{socket.name}"
    finally:
        os.close(folder)


def qmp_execute(
    socket: Path, command: str, *, seconds: float = ANSWER_SECONDS, **arguments: Any
) -> Any:
    """Run one QMP command and return its answer.

    Raises LabError if QEMU does not answer within `seconds` or refuses.
    """

    async def talk(client: QMPClient) -> Any:
        return await client.execute(command, arguments or None)

    return _session(socket, talk, command, seconds)


def qmp_job(socket: Path, command: str, *, seconds: float, **arguments: Any) -> None:
    """Start a QEMU background job and wait until it has concluded.

    Raises LabError if the job fails or takes longer than `seconds`.
    """
    job = f"xenlab-{command}"

    async def talk(client: QMPClient) -> None:
        with client.listener("JOB_STATUS_CHANGE") as events:
            await client.execute(command, {"job-id": job, **arguments})
            await _concluded(events, job)
        jobs: Any = await client.execute("query-jobs")
        await client.execute("job-dismiss", {"id": job})
        for one in jobs:
            if one["id"] == job and "error" in one:
                raise qemu_refused(command, str(one["error"]))

    _session(socket, talk, command, seconds)


async def _concluded(events: EventListener, job: str) -> None:
    async for event in events:
        data: Any = event["data"]
        if data["id"] == job and data["status"] == "concluded":
            return


def _session(
    socket: Path, talk: Callable[[QMPClient], Awaitable[Any]], what: str, seconds: float
) -> Any:
    async def whole() -> Any:
        client = QMPClient("xenlab")
        with short_path(socket) as address:
            await client.connect(address)
        try:
            return await talk(client)
        finally:
            # QEMU closes first after `quit`; a lost connection is then the expected end
            with suppress(QMPError, OSError, EOFError):
                await client.disconnect()

    def work() -> Any:
        return asyncio.run(asyncio.wait_for(whole(), seconds))

    try:
        # a thread of its own: a notebook's main thread already runs an event loop
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(work).result()
    except ExecuteError as error:
        raise qemu_refused(what, str(error)) from error
    except TimeoutError as error:
        raise qemu_refused(what, f"it took more than {seconds:.0f} s") from error
    except (QMPError, OSError, EOFError) as error:
        raise qemu_refused(what, f"it does not answer: {error or type(error).__name__}") from error


def qemu_refused(what: str, reason: str) -> LabError:
    """The error for what QEMU does not do."""
    return LabError(f"cannot have QEMU {what}: because {reason}", hint="xenlab lab status")
