"""Conversation: a command that stays, spoken to over a channel of its own, and gone with it."""

from __future__ import annotations

import threading
import time
from typing import Any

from xenlab.connection import FAILURES, Connection
from xenlab.loginshell import Entry

PIECE = 4096


class Conversation:
    """A remote command whose input stays open: it sees the end of it once the connection is gone.

    `xenlab.ssh.SSH.converse` starts one.
    """

    def __init__(self, connection: Connection, channel: Any, entry: Entry) -> None:
        self._connection = connection
        self._channel = channel
        self._entry = entry
        self._heard = {"stdout": b"", "stderr": b""}

    @property
    def alive(self) -> bool:
        """Whether the command still runs, as far as anybody knows."""
        channel = self._channel
        return self._connection.alive and not (channel.closed or channel.exit_status_ready())

    @property
    def complaint(self) -> str:
        """What it has said on standard error."""
        return self._heard["stderr"].decode("utf-8", "replace").strip()

    def answer(self, timeout: float, stop: threading.Event | None = None) -> str:
        """All that it has said when a line is whole, or when it has ended.

        Raises TimeoutError, EOFError where the connection has died, KeyboardInterrupt when ``stop``
        is set.
        """
        channel, deadline = self._channel, time.monotonic() + timeout
        while b"\n" not in self._heard["stdout"]:
            ended = channel.closed or channel.eof_received
            for name, ready, receive in (
                ("stdout", channel.recv_ready, channel.recv),
                ("stderr", channel.recv_stderr_ready, channel.recv_stderr),
            ):
                while ready():
                    self._heard[name] += self._entry.own(name, receive(PIECE))
            if b"\n" in self._heard["stdout"]:
                break
            if not self._connection.alive:
                raise EOFError("the connection was lost")
            if ended:
                break
            if stop is not None and stop.is_set():
                raise KeyboardInterrupt
            if time.monotonic() > deadline:
                raise TimeoutError(timeout)
            channel.status_event.wait(0.01)
        return self._heard["stdout"].decode("utf-8", "replace").strip()

    def say(self, text: str) -> bool:
        """Send a few bytes to its input; whether they went out."""
        try:
            return bool(self._channel.send(text.encode()))
        except FAILURES:
            return False

    def close(self, timeout: float = 0.0) -> None:
        """End its input, wait for its end for so long, and close the channel."""
        try:
            self._channel.shutdown_write()
            self._channel.status_event.wait(timeout)
            self._channel.close()
        except FAILURES:
            return
