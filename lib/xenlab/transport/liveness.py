"""The socket under an SSH connection, which notices when the other side has gone silent."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from typing import Any

from xenlab.transport.local import end_group

LONGEST_SILENCE = 10
"""How many times its patience a connection may be silent where no question could be asked."""


class LivenessSocket:
    """A socket-like object that remembers when the peer was last heard.

    A TCP connection to a machine that was switched off looks alive for many minutes, and
    keepalives that want no answer never notice it. The connection's own thread reads here
    several times a second, so this is where a dead peer can be declared dead: `asked` is called
    when a question was sent, and if nothing at all comes back for ``patience`` seconds, reading
    and writing raise EOFError, which ends everything that waits.
    """

    def __init__(self, channel: Any, patience: float, on_close: Callable[[], None]) -> None:
        self._channel = channel
        self._patience = patience
        self._on_close = on_close
        self._heard = time.monotonic()
        self._asked: float | None = None
        self._stuck: float | None = None
        self._closed = False
        self.silent = False

    @property
    def owed(self) -> float:
        """For how many seconds the peer has owed an answer, 0 where it owes none."""
        asked = self._asked
        return 0.0 if asked is None else time.monotonic() - asked

    def asked(self) -> None:
        """A question that the peer must answer was sent."""
        if self._asked is None:
            self._asked = time.monotonic()

    def recv(self, size: int) -> bytes:
        """Up to ``size`` bytes, b"" at the end; TimeoutError, EOFError from a silent peer."""
        try:
            piece: bytes = self._channel.recv(size)
        except TimeoutError:
            # While keys are renegotiated nobody asks; but no peer is that quiet.
            self._check(self._asked or self._heard + LONGEST_SILENCE * self._patience)
            raise
        except OSError:
            # A reset connection has ended like any other; whoever waits learns that it has.
            return b""
        self._heard = time.monotonic()
        self._asked = None
        return piece

    def send(self, data: bytes) -> int:
        """Send some of the bytes; TimeoutError, EOFError to a silent peer."""
        try:
            sent: int = self._channel.send(data)
        except TimeoutError:
            if self._stuck is None:
                self._stuck = time.monotonic()
            self._check(self._stuck)
            raise
        self._stuck = None
        return sent

    def writable(self) -> bool:
        """Whether a packet can be sent now without waiting for the peer."""
        if not isinstance(self._channel, socket.socket) or self._closed:
            return True
        try:
            poller = select.poll()
            poller.register(self._channel, select.POLLOUT)
            return bool(poller.poll(0))
        except (OSError, ValueError):
            return True

    def settimeout(self, seconds: float) -> None:
        """How long reading and writing wait."""
        self._channel.settimeout(seconds)

    def close(self) -> None:
        """Close the socket and what carries it."""
        if not self._closed:
            self._closed = True
            self._channel.close()
            self._on_close()

    def _check(self, since: float) -> None:
        if time.monotonic() - since > self._patience:
            self.silent = True
        if self.silent:
            raise EOFError("the peer is silent")


def proxy_process(command: str) -> tuple[socket.socket, Callable[[], str], Callable[[], None]]:
    """Start a ProxyCommand; return the socket to it, its last words, and how to end it."""
    ours, theirs = socket.socketpair()
    # Read after the end, so nobody but the garbage collector closes it.
    errors = tempfile.TemporaryFile()  # noqa: SIM115
    process = subprocess.Popen(
        ["/bin/sh", "-c", f"exec {command}"],
        stdin=theirs.fileno(),
        stdout=theirs.fileno(),
        stderr=errors,
        start_new_session=True,
    )
    theirs.close()

    def last_words() -> str:
        with contextlib.suppress(OSError, ValueError):
            words = os.pread(errors.fileno(), 65536, 0).decode("utf-8", "replace")
            return (words.strip().splitlines() or [""])[-1]
        return ""

    return ours, last_words, lambda: end_group(process, 1.0)
