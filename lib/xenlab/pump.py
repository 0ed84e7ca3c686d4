"""Pump: both directions of one remote command at once, without threads and without deadlock."""

from __future__ import annotations

import select
import threading
import time
from collections.abc import Callable
from io import BytesIO
from typing import Any, Protocol

from xenlab.errors import Overdue

POLL_SECONDS = 0.2
"""How often a stop wish and the deadline are looked at while nothing moves."""

QUIET_SECONDS = 1.0
LINGER_SECONDS = 15.0
"""After the exit status: how long output may be silent, and how long it may last at most.

A process that was left in the background keeps the streams open for ever; what the command
itself wrote is on its way and comes without such pauses.
"""

PIECE = 32768 - 64
"""What paramiko sends in one packet."""

RECEIVE = 262144


Output = Callable[[str, bytes], None]
"""Called with "stdout" or "stderr" and each piece of output as it arrives."""


class Source(Protocol):
    """Where a command's input comes from."""

    def read(self, size: int, /) -> bytes:
        """The next piece, at most ``size`` bytes; b"" at the end."""


def pump(
    channel: Any,
    data: bytes | Source,
    *,
    timeout: float,
    on_output: Output | None = None,
    stop: threading.Event | None = None,
    writable: Callable[[], bool] = lambda: True,
    keep: bool = True,
    own: Callable[[str, bytes], bytes] = lambda _, piece: piece,
) -> tuple[bytes, bytes]:
    """Feed a command's input and collect its output until it has ended.

    ``channel`` is a paramiko Channel on which the command was started. Returns when the exit
    status is known and the output has come in, or when the channel was closed: the caller looks
    at ``channel.exit_status``. ``own`` picks from each piece what counts as output; without
    ``keep`` standard output goes to ``on_output`` only.
    Raises Overdue past ``timeout`` seconds and KeyboardInterrupt when ``stop`` is set.
    """
    channel.settimeout(0.0)
    poller = select.poll()
    poller.register(channel.fileno(), select.POLLIN)
    out: list[bytes] = []
    err: list[bytes] = []
    feeder = _Feeder(channel, data, writable)
    deadline = time.monotonic() + timeout
    ended_at = moved_at = 0.0
    while True:
        # Looked at first: what arrived before the end is then seen below.
        closed = bool(channel.closed)
        status = channel.status_event.is_set()
        moved = feeder.feed()
        for name, ready, receive, pieces in (
            ("stdout", channel.recv_ready, channel.recv, out),
            ("stderr", channel.recv_stderr_ready, channel.recv_stderr, err),
        ):
            if ready():
                moved = True
                piece = own(name, receive(RECEIVE))
                if not piece:
                    continue
                if keep or name == "stderr":
                    pieces.append(piece)
                if on_output is not None:
                    on_output(name, piece)
        now = time.monotonic()
        if moved:
            moved_at = now
        elif closed or (status and channel.eof_received):
            break
        if status:
            ended_at = ended_at or now
            quiet = now - max(ended_at, moved_at)
            if quiet > QUIET_SECONDS or now > min(deadline, ended_at + LINGER_SECONDS):
                break
        if stop is not None and stop.is_set():
            raise KeyboardInterrupt
        if now > deadline:
            raise Overdue(timeout, b"".join(out), b"".join(err))
        if not moved:
            wait = min(POLL_SECONDS, feeder.pause, max(0.0, deadline - now) + 0.001)
            if channel.eof_received:
                # The channel's descriptor stays readable from now on and would spin.
                channel.status_event.wait(wait)
            else:
                poller.poll(wait * 1000)
    return b"".join(out), b"".join(err)


class _Feeder:
    """The command's standard input: as much as the peer's window allows, then its end."""

    def __init__(self, channel: Any, data: bytes | Source, writable: Callable[[], bool]) -> None:
        self._channel = channel
        self._source = BytesIO(data) if isinstance(data, bytes) else data
        self._piece = self._source.read(PIECE)
        self._writable = writable
        self._open = True
        self.pause = POLL_SECONDS

    def feed(self) -> bool:
        """Send what can be sent without waiting; whether anything went out."""
        if not self._open:
            return False
        moved = False
        for _ in range(8):
            if not self._piece or not self._channel.send_ready() or not self._writable():
                break
            try:
                sent = self._channel.send(self._piece)
            except TimeoutError:
                break
            except OSError:
                sent = 0
            if not sent:
                # The command has closed its input; what it does not want is not an error.
                self._piece = b""
                break
            self._piece = self._piece[sent:] or self._source.read(PIECE)
            moved = True
        if not self._piece:
            self._channel.shutdown_write()
            self._open = False
            self.pause = POLL_SECONDS
        elif moved or self.pause == POLL_SECONDS:
            self.pause = 0.001
        else:
            # Nothing wakes a poll when the peer's window opens: look often, then ever less.
            self.pause = min(0.05, self.pause * 1.5)
        return moved
