"""This machine as a transport, and the interruptions of what it runs."""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import IO, Any

from xenlab.command import Command, Result
from xenlab.errors import CommandFailed, CommandTimeout, Overdue, StepFailed
from xenlab.host import FOLLOW, PLACE, Output, Progress

# What both transports need: the output of a command as it comes, a copy's errors, a group's end.

QUIET_SECONDS = 1.0
"""How long output may be silent after a command's end before it counts as complete.

A process that was left in the background keeps the streams open for ever.
"""


MOST_OUTPUT = 256 * 1024 * 1024
"""How many bytes a command may print: what a guest says must not fill this machine's memory."""


class Captured:
    """What a command has printed so far on both streams, each piece passed on as it comes."""

    def __init__(self, on_output: Output | None = None) -> None:
        self._pieces: dict[str, list[bytes]] = {"stdout": [], "stderr": []}
        self._size = 0
        self._on_output = on_output

    def add(self, stream: str, piece: bytes) -> None:
        """Take a piece; an empty one is none. Raises StepFailed past MOST_OUTPUT."""
        self._size += len(piece)
        if self._size > MOST_OUTPUT:
            raise StepFailed(
                f"cannot take what the command prints: because that is more than {MOST_OUTPUT} "
                "bytes",
                hint="look there what it prints",
            )
        if piece:
            self._pieces[stream].append(piece)
            if self._on_output is not None:
                self._on_output(stream, piece)

    @property
    def streams(self) -> tuple[bytes, bytes]:
        """All of stdout, and of stderr."""
        return b"".join(self._pieces["stdout"]), b"".join(self._pieces["stderr"])


def run_copy(
    where: str, what: str, seconds: float, run: Callable[[], tuple[int, bytes, bytes]]
) -> None:
    """Run what copies a file. Raises CommandFailed, CommandTimeout past ``seconds``."""
    start = time.monotonic()
    try:
        status, out, err = run()
    except Overdue as late:
        result = Result(where, what, -1, late.out, late.err, time.monotonic() - start)
        raise CommandTimeout(result, seconds) from None
    if status:
        raise CommandFailed(Result(where, what, status, out, err, time.monotonic() - start))


def end_group(process: subprocess.Popen[Any], grace: float = 2.0) -> None:
    """End a process that leads a group, and all of that: SIGKILL after ``grace`` seconds."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(grace)
            return


# This machine as a transport: what the controller itself builds runs through the same Host.

COPY_SECONDS = 3600.0
"""Deadline of a copy on this machine, in seconds."""


class Local:
    """Runs shell text on the controller; the same contract as `xenlab.transport.ssh.SSH`."""

    def __init__(self, name: str = "controller") -> None:
        self.name = name

    def connect(self, stop: threading.Event | None = None, *, seconds: float | None = None) -> None:
        """Nothing to do: the controller is always there."""

    def close(self) -> None:
        """Nothing to do."""

    def execute(
        self,
        text: str,
        *,
        input: bytes = b"",
        timeout: float,
        on_output: Output | None = None,
        stop: threading.Event | None = None,
        mark: str = "",
        look: bool = False,
    ) -> tuple[int, bytes, bytes]:
        """Run POSIX shell text; return exit status (128 + n for signal n), stdout, stderr.

        It runs under umask 022, with ``XENLAB_STEP=mark`` in its environment.
        Raises Overdue past ``timeout`` seconds and KeyboardInterrupt when ``stop`` is set;
        in both cases the whole process group is ended first.
        """
        process = subprocess.Popen(
            ["/bin/sh", "-c", text],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            umask=0o022,
            env={**os.environ, "XENLAB_STEP": mark} if mark else None,
        )
        threading.Thread(target=_feed, args=(process.stdin, input), daemon=True).start()
        captured = Captured(on_output)
        deadline = time.monotonic() + timeout
        try:
            _read(process, captured, deadline, stop)
            status = process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired as error:
            end_group(process)
            raise Overdue(timeout, *captured.streams) from error
        except BaseException:
            end_group(process)
            raise
        finally:
            # only now: a shell that cannot write its last words does not reach its trap
            for stream in (process.stdout, process.stderr):
                assert stream
                stream.close()
        # The number that a shell reports for a command ended by a signal.
        return status if status >= 0 else 128 - status, *captured.streams

    def upload(self, local: Path, remote: str, progress: Progress | None = None) -> None:
        """Copy a file on this machine, whole or not at all; raises CommandError."""
        size = local.stat().st_size
        command = Command.script(
            FOLLOW
            + PLACE
            + """
            follow "$2"
            temporary=$(mktemp -- "${file%/*}/.xenlab-XXXXXX")
            trap 'rm -f -- "$temporary"' EXIT
            cat -- "$1" > "$temporary"
            place "$temporary" "$file" "" ""
            """,
            local.absolute(),
            remote,
        )
        run_copy(
            self.name,
            f"copy {local} to {remote}",
            COPY_SECONDS,
            lambda: self.execute(command.text, timeout=COPY_SECONDS),
        )
        if progress is not None:
            progress(size, size)


def _feed(stdin: IO[bytes], data: bytes) -> None:
    with suppress(BrokenPipeError), stdin:
        stdin.write(data)


def _read(
    process: subprocess.Popen[bytes],
    captured: Captured,
    deadline: float,
    stop: threading.Event | None,
) -> None:
    """Read what a process prints, until both streams end, or are silent after its own end.

    Raises TimeoutExpired past the deadline and KeyboardInterrupt when ``stop`` is set.
    """
    ended_at = moved_at = 0.0
    with selectors.DefaultSelector() as selector:
        for name in ("stdout", "stderr"):
            selector.register(getattr(process, name), selectors.EVENT_READ, name)
        while selector.get_map():
            now = time.monotonic()
            if process.poll() is not None:
                ended_at = ended_at or now
                if now > max(ended_at, moved_at) + QUIET_SECONDS:
                    break
            if now > deadline:
                raise subprocess.TimeoutExpired(process.args, now - deadline)
            if stop is not None and stop.is_set():
                raise KeyboardInterrupt
            for key, _ in selector.select(0.2):
                piece = os.read(key.fd, 65536)
                if not piece:
                    selector.unregister(key.fileobj)
                    continue
                moved_at = now
                captured.add(key.data, piece)


# Interruptions at the right moment: an exception where we can clean up, later where we cannot.

_ALL = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_Handler = Callable[[int, FrameType | None], object]


@contextmanager
def ending_cleanly() -> Iterator[None]:
    """Within this block SIGTERM and SIGHUP raise SystemExit, so that `finally` runs.

    Only a main thread can do this; in other threads the block changes nothing.
    """

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    with _handlers((signal.SIGTERM, signal.SIGHUP), leave):
        yield


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Within this short block interruptions wait; they take effect at its end."""
    seen: list[int] = []
    try:
        with _handlers(_ALL, lambda number, frame: seen.append(number)):
            yield
    finally:
        for number in seen:
            os.kill(os.getpid(), number)


@contextmanager
def _handlers(numbers: tuple[signal.Signals, ...], handler: _Handler) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, old in before.items():
            # None: installed outside Python, which cannot be put back from here
            signal.signal(number, signal.SIG_DFL if old is None else old)
