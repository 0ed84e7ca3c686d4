"""This machine as a transport, and the interruptions of what it runs."""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from xenlab.command import Command, Result
from xenlab.errors import CommandFailed, CommandTimeout, Overdue
from xenlab.host import FOLLOW, PLACE

# This machine as a transport: what the controller itself builds runs through the same Host.

COPY_SECONDS = 3600.0
"""Deadline of a copy on this machine, in seconds."""

QUIET_SECONDS = 1.0
"""How long output may be silent after a command's end before it counts as complete."""


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
        on_output: Callable[[str, bytes], None] | None = None,
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
        assert process.stdin and process.stdout and process.stderr
        writer = threading.Thread(target=_feed, args=(process.stdin, input), daemon=True)
        writer.start()
        collected: dict[str, list[bytes]] = {"stdout": [], "stderr": []}
        deadline = time.monotonic() + timeout
        ended_at = moved_at = 0.0
        try:
            with selectors.DefaultSelector() as selector:
                selector.register(process.stdout, selectors.EVENT_READ, "stdout")
                selector.register(process.stderr, selectors.EVENT_READ, "stderr")
                while selector.get_map():
                    now = time.monotonic()
                    if process.poll() is not None:
                        ended_at = ended_at or now
                        # What was left in the background may hold the streams open for ever.
                        if now > max(ended_at, moved_at) + QUIET_SECONDS:
                            break
                    if now > deadline:
                        raise Overdue(timeout, *map(b"".join, collected.values()))
                    if stop is not None and stop.is_set():
                        raise KeyboardInterrupt
                    for key, _ in selector.select(0.2):
                        piece = os.read(key.fd, 65536)
                        if not piece:
                            selector.unregister(key.fileobj)
                            continue
                        moved_at = now
                        collected[key.data].append(piece)
                        if on_output is not None:
                            on_output(key.data, piece)
            status = process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired as error:
            _end_group(process)
            raise Overdue(timeout, *map(b"".join, collected.values())) from error
        except BaseException:
            _end_group(process)
            raise
        finally:
            process.stdout.close()
            process.stderr.close()
        # The number that a shell reports for a command ended by a signal.
        status = status if status >= 0 else 128 - status
        return status, b"".join(collected["stdout"]), b"".join(collected["stderr"])

    def upload(
        self, local: Path, remote: str, progress: Callable[[int, int], None] | None = None
    ) -> None:
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
        what, start = f"copy {local} to {remote}", time.monotonic()
        try:
            status, out, err = self.execute(command.text, timeout=COPY_SECONDS)
        except Overdue as late:
            result = Result(self.name, what, -1, late.out, late.err, time.monotonic() - start)
            raise CommandTimeout(result, COPY_SECONDS) from None
        if status:
            seconds = time.monotonic() - start
            raise CommandFailed(Result(self.name, what, status, out, err, seconds))
        if progress is not None:
            progress(size, size)


def _feed(stdin: object, data: bytes) -> None:
    try:
        stdin.write(data)  # type: ignore[attr-defined]
        stdin.close()  # type: ignore[attr-defined]
    except BrokenPipeError:
        return


def _end_group(process: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(2)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            continue
        return


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
